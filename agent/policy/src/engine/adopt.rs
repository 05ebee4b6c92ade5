//! A restart: what an earlier agent left in the maps, with ids and content nobody remembers.

use std::collections::BTreeSet;

use agent_common::RuleId;
use agent_common::maps::{ID_ROWS, IdKind, NAME_RULE, rule_generation};

use super::endpoints::{Endpoint, Endpoints, Published, Slots, Withdrawal, free_config_rows};
use super::resting::Rest;
use super::transition::Foreign;
use super::{Engine, LocalEndpoint, Options};
use crate::cluster::Cluster;
use crate::compile::Compiler;
use crate::compile::peer_classes::ClassId;
use crate::compile::policy_sets::SetId;
use crate::hash::HashMap;
use crate::tables::Tables;

impl Engine {
    /// An engine for maps that an earlier agent left: everything they hold, read back. The first
    /// plan replaces it, and withdraws endpoints that were not attached by then; endpoints of the
    /// same pod and interface keep their slot, and with it their connections.
    pub fn adopt(options: Options, present: &Tables) -> Self {
        let mut compiler = Compiler::new(first_ids(present));
        let slots = Slots::adopt(present);
        let mut withdrawals = Vec::new();
        let mut adopted = HashMap::default();
        let mut used = BTreeSet::new();
        for (ifindex, word) in &present.endpoints {
            let Some(config) = present.configs.get(&word.config_row) else {
                continue;
            };
            let published = Published {
                row: word.config_row,
                revision: word.revision,
                config: *config,
            };
            let is_slot_taken = config.slot != 0 && !used.insert(config.slot);
            match slots.owner(config.slot) {
                Some(owner) if !is_slot_taken => {
                    let mut endpoint = Endpoint::new(LocalEndpoint {
                        uid: owner.uid.clone(),
                        ifindex: *ifindex,
                        addresses: Vec::new(),
                        attached: config.attached,
                        fails_open: false,
                    });
                    endpoint.slot = config.slot;
                    endpoint.published = Some(published);
                    adopted.insert(*ifindex, endpoint);
                }
                _ => withdrawals.push(Withdrawal {
                    published: Some((*ifindex, published)),
                    slot: if is_slot_taken { 0 } else { config.slot },
                    is_open: !is_slot_taken && present.slots.contains(&config.slot),
                }),
            }
        }
        // Opened, but the earlier agent did not come to publish their endpoints.
        let orphaned = present.slots.iter().filter(|slot| !used.contains(slot));
        withdrawals.extend(orphaned.map(|slot| Withdrawal {
            published: None,
            slot: *slot,
            is_open: true,
        }));
        let adopted_rules = compiler.rules.adopt(present.names.iter());
        let foreign = foreign(present, &mut compiler);
        Self {
            options,
            cluster: Cluster::new(),
            compiler,
            endpoints: Endpoints::default(),
            slots,
            config_rows: free_config_rows(present),
            rest: Rest::default(),
            touched: BTreeSet::new(),
            withdrawals,
            left: Vec::new(),
            has_new_room: false,
            is_compacting: false,
            adopted,
            foreign,
            adopted_rows: present.verdicts.keys().copied().collect(),
            adopted_ports: present.ports.keys().copied().collect(),
            adopted_rules,
            outstanding: None,
        }
    }
}

/// What the first plan replaces; `None` for empty maps.
fn foreign(present: &Tables, compiler: &mut Compiler) -> Option<Foreign> {
    let mut foreign = Foreign::default();
    for (key, row) in &present.verdicts {
        foreign.sets.insert(SetId(key.set));
        if key.class != 0 {
            let rows = foreign.rows.entry(ClassId(key.class)).or_default();
            rows.push((SetId(key.set), *row));
        }
    }
    for (address, entry) in &present.peers {
        let class = ClassId(entry.class);
        compiler.addresses.adopt(*address, class, entry.flags);
        compiler.moved.addresses.insert(*address);
    }
    for (prefix, entry) in present.prefix_rows() {
        compiler.prefixes.adopt(prefix.into(), ClassId(entry.class));
        compiler.moved.prefixes.insert(prefix.into());
    }
    for (key, service) in &present.services {
        compiler.services.adopt((*key).into(), *service);
    }
    let is_empty = present.endpoints.is_empty()
        && present.verdicts.is_empty()
        && present.ports.is_empty()
        && present.peers.is_empty()
        && present.prefixes.is_empty()
        && present.services.is_empty()
        && present.slots.is_empty();
    (!is_empty).then_some(foreign)
}

/// The ids to go on with: IDS says so, and whatever it says, nothing that is in a map is given
/// again.
fn first_ids(present: &Tables) -> [u64; ID_ROWS as usize] {
    let mut ids = present.ids;
    let mut seen = |kind: IdKind, id: u32| {
        if let Some(next) = ids.get_mut(kind as usize) {
            *next = (*next).max(u64::from(id) + 1);
        }
    };
    for (key, row) in &present.verdicts {
        seen(IdKind::Set, key.set);
        seen(IdKind::Class, key.class);
        seen(IdKind::Function, row.function);
    }
    let peers = present.peers.values().copied();
    for entry in peers.chain(present.prefix_rows().map(|(_, entry)| entry)) {
        seen(IdKind::Class, entry.class);
    }
    for service in present.services.values() {
        for backend in service.backends {
            seen(IdKind::Class, backend.class);
        }
    }
    for key in present.ports.keys() {
        seen(IdKind::Function, u32::from_be_bytes(key.function_be));
    }
    for key in present.names.keys().filter(|key| key.kind == NAME_RULE) {
        seen(IdKind::Rule, rule_generation(RuleId(key.id)));
    }
    for word in present.endpoints.values() {
        seen(IdKind::Revision, word.revision);
    }
    for revision in present.peer_revisions.values() {
        seen(IdKind::Revision, *revision);
    }
    for config in present.configs.values() {
        for set in config.sets.into_iter().chain(config.audit_sets) {
            seen(IdKind::Set, set);
        }
    }
    ids
}
