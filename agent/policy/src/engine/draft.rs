//! A plan before it is decided: everything that would move, counted against the limits. Nothing
//! is changed by making one, so refusing it leaves the old state as it is.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::Address;
use agent_common::maps::Config;

use super::Engine;
use super::endpoints::{Endpoint, Published};
use super::transition::{Change, Meanwhile, ServiceRow, Transition, TransitionalRow};
use crate::compile::peer_classes::ClassId;
use crate::compile::policy_sets::SetId;
use crate::compile::prefixes::{Net, Row};
use crate::plan::Refused;

/// A published endpoint whose row changes.
#[derive(Clone, Debug)]
pub(super) struct Flip {
    pub(super) ifindex: u32,
    pub(super) config: Config,
    /// It judges some packet differently as soon as it is published.
    pub(super) is_revised: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) flips: Vec<Flip>,
    /// Published endpoints that keep a set which judges some prefix differently afterwards.
    pub(super) redrawn: Vec<u32>,
    /// Endpoints to publish for the first time.
    pub(super) fresh: Vec<(u32, Config)>,
    /// Rows of `PEERS_EXACT` that change.
    pub(super) peers: Vec<(Address, Row)>,
    /// Rows of `PEERS_CIDR` that change.
    pub(super) prefixes: Vec<(Net, Row)>,
    /// Rows of SERVICES that may change.
    pub(super) services: Vec<ServiceRow>,
    /// True when moving keys need care while endpoints flip.
    pub(super) has_targets: bool,
    pub(super) meanwhile: BTreeMap<Change, Meanwhile>,
    /// Rows of transitional classes, whose ids are still to be given.
    pub(super) transitional: Vec<(Change, Vec<TransitionalRow>)>,
    /// Buckets of peers whose connections are to be judged again.
    pub(super) buckets: BTreeSet<u16>,
}

impl Engine {
    pub(super) fn draft(&self) -> Result<Draft, Refused> {
        let foreign = self.foreign.as_ref();
        let mut transition = Transition::new(&self.compiler, foreign);
        let gone = self
            .withdrawals
            .iter()
            .filter_map(|gone| gone.published.as_ref());
        for set in gone.flat_map(|(_, published)| published.sets()) {
            transition.leave(set);
        }
        let mut changing = Vec::new();
        let mut fresh = Vec::new();
        for ifindex in &self.touched {
            let Some(endpoint) = self.endpoints.get(*ifindex) else {
                continue;
            };
            if endpoint.pod.is_none() || endpoint.slot == 0 {
                continue;
            }
            let config = endpoint.config();
            let Some(published) = &endpoint.published else {
                fresh.push((*ifindex, config));
                continue;
            };
            if published.config == config {
                continue;
            }
            let pairs = published.sets().into_iter().zip(endpoint.wanted);
            let pairs: Vec<(SetId, SetId)> = pairs.filter(|(from, to)| from != to).collect();
            for (from, to) in &pairs {
                transition.flip(*from, *to);
            }
            changing.push((*ifindex, config, pairs));
        }
        let redrawn = self.redrawn(&transition);
        let flips = changing.into_iter().map(|(ifindex, config, pairs)| Flip {
            ifindex,
            config,
            // Between the two, what it keeps would be judged as before and stamped as after.
            is_revised: redrawn.binary_search(&ifindex).is_err()
                && pairs
                    .into_iter()
                    .any(|(from, to)| transition.is_revised(from, to)),
        });
        let flips = flips.collect();
        let meanwhile = transition.meanwhile();
        let own = meanwhile
            .iter()
            .filter(|(_, meanwhile)| **meanwhile == Meanwhile::Own);
        let transitional = own
            .map(|(change, _)| (*change, transition.rows(*change, ClassId::NOTHING)))
            .collect();
        let buckets = transition.buckets();
        let draft = Draft {
            flips,
            redrawn,
            fresh,
            has_targets: transition.has_targets(),
            meanwhile,
            transitional,
            buckets,
            peers: transition.peers,
            prefixes: transition.prefixes,
            services: transition.services,
        };
        self.check(&draft)?;
        Ok(draft)
    }

    /// Published endpoints, in order, that keep a set which judges some prefix differently.
    fn redrawn(&self, transition: &Transition<'_>) -> Vec<u32> {
        let sets = transition.redrawn();
        if sets.is_empty() {
            return Vec::new();
        }
        let keeps_one = |endpoint: &&Endpoint| {
            let published = endpoint.published.as_ref();
            let published = published.map_or([SetId::NOT_ISOLATED; 2], Published::sets);
            let mut both = published.into_iter().zip(endpoint.wanted);
            both.any(|(from, to)| from == to && sets.contains(&to))
        };
        let keepers = self.endpoints.iter().filter(keeps_one);
        keepers.map(|endpoint| endpoint.local.ifindex).collect()
    }

    fn check(&self, draft: &Draft) -> Result<(), Refused> {
        let options = &self.options;
        let compiler = &self.compiler;
        let transitional: usize = draft.transitional.iter().map(|(_, rows)| rows.len()).sum();
        let new_peers = draft
            .peers
            .iter()
            .filter(|(_, row)| row.present.is_none() && row.wanted.is_some());
        let (_, _, port_rows) = compiler.functions.counts();
        let adopted = self.adopted_rows.len();
        let resting = self.rest.verdicts() + compiler.retired.rows.len();
        for (what, map, wanted, limit) in [
            (
                "peer classes",
                "",
                compiler.classes.len() + draft.transitional.len(),
                options.classes,
            ),
            (
                "verdict rows",
                "VERDICTS",
                compiler.rows.len() + resting + adopted + transitional,
                options.rows,
            ),
            (
                "exact peer rows",
                "PEERS_EXACT",
                compiler.addresses.present() + new_peers.count(),
                options.peers,
            ),
            (
                "prefix rows",
                "PEERS_CIDR",
                compiler.prefixes.needed(options.prefixes),
                options.prefixes,
            ),
            (
                "port rows",
                "PORTS",
                port_rows + self.adopted_ports.len(),
                options.ports,
            ),
            (
                "ports of Services' addresses",
                "SERVICES",
                compiler.services.len(),
                options.services,
            ),
            (
                "names of rules and pods",
                "NAMES",
                compiler.rules.names_wanted() + self.slots.taken(),
                options.names,
            ),
        ] {
            if wanted > limit {
                return Err(Refused::Limit {
                    what,
                    map,
                    wanted,
                    limit,
                });
            }
        }
        let (wanted, free) = (
            draft.flips.len() + draft.fresh.len(),
            self.config_rows.len(),
        );
        if wanted > free {
            return Err(Refused::ConfigRows {
                wanted,
                free,
                retry_at: self.rest.next_config_row(),
            });
        }
        self.compiler.ids.check()
    }
}
