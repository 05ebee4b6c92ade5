//! The cluster and the sets of local endpoints, compiled: rules become sets, `from`/`to` lists
//! atoms, addresses and prefixes classes, and each (set, class) a port function.
//!
//! Everything here is the *wanted* state, kept up to date in proportion to what changed. What is
//! in the maps and how to get from there to here is [`crate::engine`]'s.

pub(crate) mod addresses;
pub(crate) mod atoms;
pub(crate) mod ids;
mod judgements;
pub(crate) mod peer_classes;
mod peers;
pub(crate) mod policies;
pub(crate) mod policy_sets;
pub(crate) mod port_functions;
pub(crate) mod port_names;
pub(crate) mod prefixes;
pub(crate) mod rows;
pub(crate) mod rules;
pub(crate) mod services;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use agent_common::Address;
use agent_common::maps::{ID_ROWS, PortKey};

use crate::cluster::Cluster;
use crate::model::{ObjectName, RuleId};
use addresses::Addresses;
use atoms::{AtomContent, AtomId, Atoms, Drawing, Redrawn};
use ids::Ids;
use peer_classes::{ClassId, Classes};
use policies::Policies;
use policy_sets::{NameId, SetId, SetRules, Sets};
use port_functions::{Function, FunctionId, Functions, Outcome};
use port_names::PortNames;
use prefixes::{Net, Prefixes};
use rows::{Removed, Rows};
use rules::Rules;
use services::Services;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Compiler {
    pub(crate) ids: Ids,
    pub(crate) rules: Rules,
    pub(crate) sets: Sets,
    pub(crate) atoms: Atoms,
    pub(crate) classes: Classes,
    pub(crate) functions: Functions,
    pub(crate) rows: Rows,
    pub(crate) prefixes: Prefixes,
    pub(crate) addresses: Addresses,
    pub(crate) services: Services,
    names: PortNames,
    policies: Policies,
    /// The function of "not isolated", to compare with.
    open: FunctionId,
    stale_addresses: BTreeSet<Address>,
    stale_prefixes: BTreeSet<Net>,
    /// Keys that may differ from what is in the maps.
    pub(crate) moved: Moved,
    /// What nobody wants any more and is in the maps.
    pub(crate) retired: Retired,
}

/// Keys of the peer maps that may differ from what is in the maps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Moved {
    /// Of `PEERS_EXACT`.
    pub(crate) addresses: BTreeSet<Address>,
    /// Of `PEERS_CIDR`.
    pub(crate) prefixes: BTreeSet<Net>,
}

/// Adds keys to a set. An empty one, as before a load, becomes the set of them at once: far cheaper
/// than key by key.
fn add_all<T: Ord>(set: &mut BTreeSet<T>, keys: impl IntoIterator<Item = T>) {
    if set.is_empty() {
        *set = keys.into_iter().collect();
    } else {
        set.extend(keys);
    }
}

/// Adds one set to another, whichever has fewer keys to the other.
fn merge<T: Ord>(set: &mut BTreeSet<T>, mut other: BTreeSet<T>) {
    if set.len() < other.len() {
        std::mem::swap(set, &mut other);
    }
    set.extend(other);
}

impl Moved {
    /// True when nothing moved.
    pub(crate) fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.prefixes.is_empty()
    }
}

/// What packets under way may still read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Retired {
    /// Rows of `VERDICTS`, holding their functions.
    pub(crate) rows: Vec<Removed>,
    /// Rules of forgotten sets.
    pub(crate) rules: Vec<RuleId>,
    /// Rows of `PORTS` whose last row of `VERDICTS` is gone: nothing can read these any more.
    pub(crate) ports: Vec<PortKey>,
}

impl Retired {
    /// True when nothing was retired.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.rules.is_empty() && self.ports.is_empty()
    }
}

impl Compiler {
    /// Compiles from nothing, with ids that nobody had.
    pub(crate) fn new(ids: [u64; ID_ROWS as usize]) -> Self {
        let mut ids = Ids::new(ids);
        let mut functions = Functions::default();
        let everything = Function {
            base: Outcome::admitted(0),
            intervals: Vec::new(),
        };
        Self {
            open: functions.hold(everything, &mut ids),
            functions,
            ids,
            rules: Rules::default(),
            sets: Sets::default(),
            atoms: Atoms::default(),
            classes: Classes::default(),
            rows: Rows::default(),
            prefixes: Prefixes::default(),
            addresses: Addresses::default(),
            services: Services::default(),
            names: PortNames::default(),
            policies: Policies::default(),
            stale_addresses: BTreeSet::new(),
            stale_prefixes: BTreeSet::new(),
            moved: Moved::default(),
            retired: Retired::default(),
        }
    }

    /// A policy came, went or changed.
    pub(crate) fn policy_changed(&mut self, name: &ObjectName) {
        self.policies.doubt(name);
    }

    /// What an address is to rules may have changed.
    pub(crate) fn address_changed(&mut self, address: IpAddr) {
        self.stale_addresses.insert(address.into());
    }

    /// What is behind a virtual address, or whether it is one, may have changed.
    pub(crate) fn virtual_address_changed(&mut self, address: IpAddr) {
        self.services.doubt(address);
        self.stale_addresses.insert(address.into());
    }

    /// What every pod of a namespace is to rules may have changed.
    pub(crate) fn namespace_changed(&mut self, cluster: &Cluster, namespace: &str) {
        let pods = cluster.pods_in(namespace);
        let addresses = pods.flat_map(|pod| pod.addresses.iter().copied());
        add_all(&mut self.stale_addresses, addresses.map(Address::from));
    }

    /// Asks everything anew: classes are left that have atoms no rule mentions any more.
    pub(crate) fn compact(&mut self) {
        add_all(&mut self.stale_addresses, self.addresses.all());
        add_all(&mut self.stale_prefixes, self.prefixes.sweep());
    }

    /// A new set of these rules.
    pub(crate) fn make_set(&mut self, cluster: &Cluster, rules: &SetRules) -> SetId {
        let id = self.sets.make(Arc::clone(rules), &mut self.ids);
        for rule in &**rules {
            self.rules.hold(rule.rule);
            if let Some(atom) = rule.atom
                && let Some(drawing) = self.atoms.add_set(atom, id)
            {
                self.atom_came_alive(cluster, atom, &drawing);
            }
            for name in rule.ports.names() {
                self.name_is_used(cluster, *name, rule.atom);
                if let Some(sets) = self.names.sets_mut(*name) {
                    sets.insert(id);
                }
            }
        }
        let default = self.judge(rules, &[]);
        self.rows.insert(id, ClassId::NOTHING, default);
        for class in self.classes_of(rules) {
            self.add_row(id, rules, class);
        }
        id
    }

    /// Forgets a set if no endpoint has or wants it.
    pub(crate) fn drop_set_if_unused(&mut self, id: SetId) {
        let Some(set) = self.sets.take_unused(id) else {
            return;
        };
        self.remove_row(id, ClassId::NOTHING);
        for class in set.rows {
            self.remove_row(id, class);
            if let Some(class) = self.classes.get_mut(class) {
                class.rows.remove(&id);
            }
        }
        for rule in &*set.rules {
            for name in rule.ports.names() {
                match rule.atom {
                    Some(atom) => self.atoms.remove_name(atom, *name),
                    None => self.names.remove_for_everyone(*name),
                }
                if let Some(sets) = self.names.sets_mut(*name) {
                    sets.remove(&id);
                }
            }
            if let Some(atom) = rule.atom
                && let Some(drawing) = self.atoms.remove_set(atom, id)
            {
                self.prefixes.remove(atom, &drawing);
            }
            if self.rules.is_named(rule.rule) {
                self.retired.rules.push(rule.rule);
            } else {
                // No plan with it was ever given out.
                self.rules.release(rule.rule);
            }
        }
    }

    /// The parts that endpoints' sets are built from.
    pub(crate) fn set_parts(
        &mut self,
    ) -> (
        &mut Policies,
        &mut Atoms,
        &mut PortNames,
        &mut Rules,
        &mut Ids,
    ) {
        (
            &mut self.policies,
            &mut self.atoms,
            &mut self.names,
            &mut self.rules,
            &mut self.ids,
        )
    }

    /// Lists of policies that have changed are known by now: mentions that none of them made again
    /// are forgotten, and atoms that were redrawn have what they have now.
    pub(crate) fn settle_lists(&mut self, cluster: &Cluster) {
        self.policies.forget_stale(&mut self.atoms);
        for redrawn in self.atoms.take_redrawn() {
            self.atom_was_redrawn(cluster, &redrawn);
        }
    }

    /// Gives redrawn atoms back what they are in the maps; the policies that redrew them get atoms of
    /// their own. Without it a list that does not fit would stay wanted by the set in force, and no
    /// other plan fitted either.
    pub(crate) fn take_lists_back(&mut self, cluster: &Cluster) {
        let atoms = self.atoms.take_back();
        self.policies.doubt_those_with(&atoms);
        self.settle_lists(cluster);
    }

    fn atom_came_alive(&mut self, cluster: &Cluster, atom: AtomId, drawing: &Drawing) {
        let drawn = self.prefixes.insert(atom, drawing);
        add_all(&mut self.stale_prefixes, drawn);
        self.atom_members_changed(cluster, &drawing.content);
        self.candidates_changed(&drawing.content);
    }

    fn atom_was_redrawn(&mut self, cluster: &Cluster, redrawn: &Redrawn) {
        let Redrawn { atom, lost, gained } = redrawn;
        let erased = self.prefixes.erase(*atom, lost);
        add_all(&mut self.stale_prefixes, erased);
        self.atom_members_changed(cluster, &lost.content);
        self.candidates_changed(&lost.content);
        self.atom_came_alive(cluster, *atom, gained);
        let names: Vec<NameId> = self.atoms.names(*atom).collect();
        for name in names {
            self.ask_who_declares(cluster, name, Some(&gained.content));
        }
    }

    /// Asks the pods that an atom has by their labels.
    fn atom_members_changed(&mut self, cluster: &Cluster, content: &AtomContent) {
        let addresses = Atoms::pod_addresses(cluster, &content.pods);
        add_all(&mut self.stale_addresses, addresses.map(Address::from));
    }

    /// Asks the candidates inside an atom's blocks.
    fn candidates_changed(&mut self, content: &AtomContent) {
        for block in &content.blocks {
            self.stale_addresses
                .extend(self.addresses.inside(block.cidr.range()));
        }
    }

    /// A rule of a new set resolves a name at its peers. The first such rule asks every peer.
    fn name_is_used(&mut self, cluster: &Cluster, name: NameId, atom: Option<AtomId>) {
        let is_first = match atom {
            Some(atom) => self.atoms.add_name(atom, name),
            None => self.names.add_for_everyone(name),
        };
        if !is_first {
            return;
        }
        let content = atom
            .and_then(|atom| self.atoms.get(atom))
            .map(|atom| Arc::clone(&atom.content));
        if let Some(content) = &content {
            self.atom_members_changed(cluster, content);
        }
        self.ask_who_declares(cluster, name, content.as_deref());
    }

    /// Asks the pods that declare a name, at addresses inside an atom's blocks or anywhere.
    fn ask_who_declares(&mut self, cluster: &Cluster, name: NameId, at: Option<&AtomContent>) {
        if at.is_some_and(|content| content.blocks.is_empty()) {
            return;
        }
        let is_asked = |address: &Address| at.is_none_or(|at| Prefixes::is_in(at, *address));
        for pod in cluster.pods() {
            if self.names.ports_at(name, pod).next().is_some() {
                let addresses = pod.addresses.iter().copied().map(Address::from);
                self.stale_addresses.extend(addresses.filter(is_asked));
            }
        }
    }
}
