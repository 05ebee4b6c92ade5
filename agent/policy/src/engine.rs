//! Objects and local endpoints in, plans out: the ground state, the compiler and the planner in
//! one synchronous value that the reconciler owns. No I/O, no clock.

mod adopt;
mod commit;
mod draft;
mod endpoints;
mod resting;
mod sets;
mod transition;

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use agent_common::RuleId;
use agent_common::maps::{PortKey, VerdictKey};

use crate::cluster::{Cluster, Touched};
use crate::compile::Compiler;
use crate::compile::policy_sets::SetId;
use crate::hash::HashMap;
use crate::model::{Change, ObjectName, PodUid, RuleRef};
use crate::plan::{Plan, Refused};
use crate::tables::Tables;
use endpoints::{Endpoint, Endpoints, Slots, Withdrawal};
use resting::{Rest, Resting};
use transition::Foreign;

/// How much the engine may use, and how long rows rest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Options {
    /// Largest number of peer classes.
    pub classes: usize,
    /// Largest number of rows in VERDICTS.
    pub rows: usize,
    /// Largest number of rows in `PEERS_EXACT`.
    pub peers: usize,
    /// Largest number of rows in `PEERS_CIDR`.
    pub prefixes: usize,
    /// Largest number of rows in PORTS.
    pub ports: usize,
    /// Largest number of rows in SERVICES.
    pub services: usize,
    /// Largest number of rows in NAMES.
    pub names: usize,
    /// How long a row that packets under way may still read is kept and not used again.
    pub grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            classes: 65_536,
            rows: 524_288,
            peers: 131_072,
            prefixes: 131_072,
            ports: 131_072,
            services: 65_536,
            names: 32_768,
            grace: Duration::from_secs(2),
        }
    }
}

/// A pod of this node with its host-side interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LocalEndpoint {
    /// The pod.
    pub uid: PodUid,
    /// The host-side interface.
    pub ifindex: u32,
    /// Addresses found on the pod's side; empty: those its object states.
    pub addresses: Vec<IpAddr>,
    /// When the programs were attached, in jiffies (low 32 bits).
    pub attached: u32,
    /// The posture while a state cannot be kept: open.
    pub fails_open: bool,
}

/// How far an endpoint is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Progress {
    /// Its pod was never seen: no row, the posture decides.
    PodUnknown,
    /// Every slot is taken: no row, the posture decides.
    NoSlot,
    /// Known, but no plan with its row was written yet.
    Planned,
    /// Its row is published.
    Published,
}

/// An endpoint as the engine knows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EndpointStatus {
    /// The host-side interface.
    pub ifindex: u32,
    /// The pod.
    pub uid: PodUid,
    /// Its name; `None` while it was never seen.
    pub pod: Option<ObjectName>,
    /// How far it is.
    pub progress: Progress,
    /// Place in per-slot maps; 0 when it has none.
    pub slot: u32,
    /// Policy sets in force by direction, 0 when not isolated; as of the last plan.
    pub sets: [u32; 2],
    /// Revision of its policy, as of the last plan.
    pub revision: u32,
}

/// How much is compiled, for metrics and limits.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Endpoints.
    pub endpoints: usize,
    /// Policy sets.
    pub sets: usize,
    /// Atoms: distinct `from`/`to` lists in use.
    pub atoms: usize,
    /// Peer classes, without class 0.
    pub classes: usize,
    /// Rows of VERDICTS, resting ones included.
    pub rows: usize,
    /// Distinct port functions.
    pub functions: usize,
    /// Of those, how many are in PORTS.
    pub long_functions: usize,
    /// Rows of `PEERS_EXACT`.
    pub peers: usize,
    /// Rows of `PEERS_CIDR`.
    pub prefixes: usize,
    /// Ports of virtual addresses.
    pub services: usize,
}

/// Whose a slot is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SlotOwner {
    /// The pod.
    pub uid: PodUid,
    /// Its name.
    pub pod: ObjectName,
}

/// The engine. See the module.
#[derive(Debug)]
pub struct Engine {
    options: Options,
    cluster: Cluster,
    compiler: Compiler,
    endpoints: Endpoints,
    slots: Slots,
    /// Rows of CONFIGS nobody can see, the one that is free the longest first.
    config_rows: VecDeque<u32>,
    rest: Rest,
    /// Endpoints whose row may differ from what is in the maps.
    touched: BTreeSet<u32>,
    withdrawals: Vec<Withdrawal>,
    /// Sets that published endpoints left in the plan being made.
    left: Vec<SetId>,
    /// A slot became free for endpoints that wait for one.
    has_new_room: bool,
    is_compacting: bool,
    /// Endpoints an earlier agent published and nobody attached yet.
    adopted: HashMap<u32, Endpoint>,
    /// What the first plan after a restart replaces.
    foreign: Option<Foreign>,
    adopted_rows: Vec<VerdictKey>,
    adopted_ports: Vec<PortKey>,
    adopted_rules: Vec<RuleId>,
    /// A plan that was given out, and what rests once it is carried out.
    outstanding: Option<(Arc<Plan>, Vec<Resting>)>,
}

impl Engine {
    /// An engine for empty maps.
    pub fn new(options: Options) -> Self {
        Self::adopt(options, &Tables::default())
    }

    /// Takes a change of the cluster in. Cheap: the work is done by [`Engine::plan`].
    pub fn apply(&mut self, change: Change) -> Touched {
        let touched = self.cluster.apply(change);
        self.touch(&touched);
        touched
    }

    /// Has an address stand for a Service's: see [`Cluster::stand_in`].
    pub fn stand_in(&mut self, address: IpAddr, service: ObjectName) {
        let touched = self.cluster.stand_in(address, service);
        self.touch(&touched);
    }

    fn touch(&mut self, touched: &Touched) {
        for name in &touched.policies {
            self.compiler.policy_changed(name);
            let endpoints = self.endpoints.in_namespace(&name.namespace);
            self.touched.extend(endpoints);
        }
        for namespace in &touched.namespaces {
            self.compiler.namespace_changed(&self.cluster, namespace);
        }
        for address in &touched.addresses {
            self.compiler.address_changed(*address);
        }
        for address in &touched.virtual_addresses {
            self.compiler.virtual_address_changed(*address);
        }
        for uid in &touched.pods {
            let endpoints: Vec<u32> = self.endpoints.of_pod(uid).collect();
            for ifindex in &endpoints {
                self.identify(*ifindex);
            }
            self.touched.extend(endpoints);
        }
    }

    /// A local endpoint appeared, or something about it changed. Its programs may be attached
    /// before or after.
    pub fn attach(&mut self, local: LocalEndpoint) {
        let ifindex = local.ifindex;
        let known = self.endpoints.get(ifindex).map(|known| &known.local.uid);
        if known.is_some_and(|uid| *uid != local.uid) {
            self.detach(ifindex);
        }
        self.touched.insert(ifindex);
        if let Some(endpoint) = self.endpoints.get_mut(ifindex) {
            endpoint.local = local;
            self.identify(ifindex);
            return;
        }
        let earlier = self.adopted.get(&ifindex);
        let endpoint = match earlier.filter(|earlier| earlier.local.uid == local.uid) {
            Some(earlier) => {
                let endpoint = Endpoint {
                    local,
                    ..earlier.clone()
                };
                self.adopted.remove(&ifindex);
                endpoint
            }
            None => Endpoint::new(local),
        };
        self.endpoints.insert(endpoint);
        self.identify(ifindex);
    }

    /// A local endpoint's interface is gone.
    pub fn detach(&mut self, ifindex: u32) {
        if let Some(endpoint) = self.endpoints.remove(ifindex) {
            self.touched.remove(&ifindex);
            self.withdraw_later(&endpoint);
        }
    }

    /// Plans what leads from the maps' content to what the cluster and the endpoints want; `None`
    /// when nothing has to be written. A plan that was not yet [`written`](Self::written) is
    /// given again. `now` is any monotonic clock.
    ///
    /// # Errors
    /// [`Refused`]; nothing was changed then, and the next call tries again.
    pub fn plan(&mut self, now: Duration) -> Result<Option<Arc<Plan>>, Refused> {
        if let Some((plan, _)) = &self.outstanding {
            return Ok(Some(Arc::clone(plan)));
        }
        self.config_rows.extend(self.rest.config_rows(now));
        self.withdraw_unclaimed();
        self.choose_sets();
        self.compiler.refresh(&self.cluster);
        let is_due = self.rest.next_deletion().is_some_and(|due| due <= now);
        if !is_due && self.is_settled() {
            return Ok(None);
        }
        let draft = match self.draft() {
            Ok(draft) => draft,
            // It may be the room of what is not needed any more that is missing; and what has
            // rested goes all the same.
            Err(_) => match self.draft_compacted() {
                Ok(draft) => draft,
                Err(refused) => return self.clear_away(now).map(Some).ok_or(refused),
            },
        };
        let (plan, rest) = self.commit(draft, now);
        if plan.writes.is_empty() {
            self.rest.begin(now + self.options.grace, rest);
            return Ok(None);
        }
        let plan = Arc::new(plan);
        self.outstanding = Some((Arc::clone(&plan), rest));
        Ok(Some(plan))
    }

    /// A draft without what no policy mentions any more, be it in the maps or of a plan that was
    /// refused before; lists that changed stay in force beside what they are to be.
    fn draft_compacted(&mut self) -> Result<draft::Draft, Refused> {
        self.compiler.take_lists_back(&self.cluster);
        // Sets with what those lists were to be go before it is looked what is left.
        self.choose_sets();
        self.compact();
        self.choose_sets();
        self.compiler.refresh(&self.cluster);
        self.draft()
    }

    /// A plan of nothing but the deletions that are due; `None` when none is.
    fn clear_away(&mut self, now: Duration) -> Option<Arc<Plan>> {
        let writes = self.rest.deletions(now, &mut self.compiler);
        if writes.is_empty() {
            return None;
        }
        let plan = Arc::new(Plan {
            writes,
            is_clearing: true,
            ..Plan::default()
        });
        self.outstanding = Some((Arc::clone(&plan), Vec::new()));
        Some(plan)
    }

    /// The last plan was carried out, wholly.
    pub fn written(&mut self, now: Duration) {
        if let Some((_, rest)) = self.outstanding.take() {
            self.rest.begin(now + self.options.grace, rest);
        }
    }

    /// When [`Engine::plan`] will have something to do although nothing changed.
    pub fn next_deadline(&self) -> Option<Duration> {
        if !self.touched.is_empty() {
            return Some(Duration::ZERO);
        }
        self.rest.next_deletion()
    }

    /// Moves addresses and prefixes out of classes that name what no policy mentions any more.
    /// For idle times: in proportion to everything compiled.
    pub fn compact(&mut self) {
        self.compiler.compact();
        self.is_compacting = true;
        let all = self.endpoints.iter().map(|endpoint| endpoint.local.ifindex);
        self.touched.extend(all);
    }

    /// The ground state.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// What a rule id in a counter or event means.
    pub fn rule_ref(&self, rule: RuleId) -> Option<&RuleRef> {
        self.compiler.rules.get(rule)
    }

    /// Every rule that something in force may refer to.
    pub fn rules(&self) -> impl Iterator<Item = (RuleId, &RuleRef)> {
        self.compiler.rules.iter()
    }

    /// Whose a slot is, or was while nobody else has it.
    pub fn slot_owner(&self, slot: u32) -> Option<&SlotOwner> {
        self.slots.owner(slot)
    }

    /// Every endpoint, by interface.
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        self.endpoints.iter().map(status).collect()
    }

    /// How much is compiled.
    pub fn counts(&self) -> Counts {
        let compiler = &self.compiler;
        let (functions, long_functions, _) = compiler.functions.counts();
        Counts {
            endpoints: self.endpoints.len(),
            sets: compiler.sets.len(),
            atoms: compiler.atoms.live(),
            classes: compiler.classes.len(),
            rows: compiler.rows.len() + self.rest.verdicts(),
            // The function of "not isolated" is in no map.
            functions: functions.saturating_sub(1),
            long_functions,
            peers: compiler.addresses.present(),
            prefixes: compiler.prefixes.len(),
            services: compiler.services.len(),
        }
    }

    fn is_settled(&self) -> bool {
        let compiler = &self.compiler;
        self.touched.is_empty()
            && self.withdrawals.is_empty()
            && self.foreign.is_none()
            && compiler.moved.is_empty()
            && compiler.services.is_settled()
            && compiler.retired.is_empty()
            && compiler.rows.is_settled()
    }

    fn withdraw_later(&mut self, endpoint: &Endpoint) {
        for set in endpoint.wanted {
            if let Some(set) = self.compiler.sets.get_mut(set) {
                set.wanted -= 1;
            }
            self.compiler.drop_set_if_unused(set);
        }
        if endpoint.slot != 0 {
            let ifindex = endpoint.local.ifindex;
            self.withdrawals.push(Withdrawal {
                is_open: endpoint.published.is_some(),
                published: endpoint.published.map(|published| (ifindex, published)),
                slot: endpoint.slot,
            });
        }
    }

    /// After a restart: what the earlier agent published and nobody claims, or whose pod is not
    /// known any more, goes with the first plan.
    fn withdraw_unclaimed(&mut self) {
        if self.foreign.is_none() {
            return;
        }
        let unclaimed: Vec<Endpoint> = self.adopted.drain().map(|(_, endpoint)| endpoint).collect();
        for endpoint in unclaimed {
            self.withdraw_later(&endpoint);
        }
        let orphans: Vec<u32> = self
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.published.is_some() && endpoint.pod.is_none())
            .map(|endpoint| endpoint.local.ifindex)
            .collect();
        for ifindex in orphans {
            if let Some(endpoint) = self.endpoints.remove(ifindex) {
                let local = endpoint.local.clone();
                self.withdraw_later(&endpoint);
                self.endpoints.insert(Endpoint::new(local));
            }
        }
    }
}

fn status(endpoint: &Endpoint) -> EndpointStatus {
    let published = endpoint.published.as_ref();
    let progress = match (&endpoint.pod, published, endpoint.slot) {
        (_, Some(_), _) => Progress::Published,
        (None, None, _) => Progress::PodUnknown,
        (Some(_), None, 0) => Progress::NoSlot,
        (Some(_), None, _) => Progress::Planned,
    };
    EndpointStatus {
        ifindex: endpoint.local.ifindex,
        uid: endpoint.local.uid.clone(),
        pod: endpoint.pod.as_ref().map(|pod| pod.name.clone()),
        progress,
        slot: endpoint.slot,
        sets: published.map_or([0; 2], |published| published.config.sets),
        revision: published.map_or(0, |published| published.revision),
    }
}
