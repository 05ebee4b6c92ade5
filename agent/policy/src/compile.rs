//! The cluster and the sets of local endpoints, compiled: rules become sets, `from`/`to` lists
//! atoms, addresses and prefixes classes, and each (set, class) a port function.
//!
//! Everything here is the *wanted* state, kept up to date in proportion to what changed. What is
//! in the maps and how to get from there to here is [`crate::engine`]'s.

pub(crate) mod addresses;
pub(crate) mod atoms;
pub(crate) mod ids;
pub(crate) mod peer_classes;
pub(crate) mod policies;
pub(crate) mod policy_sets;
pub(crate) mod port_functions;
pub(crate) mod port_names;
pub(crate) mod prefixes;
pub(crate) mod rows;
pub(crate) mod rules;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use agent_common::Address;
use agent_common::maps::{ID_ROWS, PortKey};

use crate::cluster::Cluster;
use crate::model::{ObjectName, PodUid, RuleId};
use addresses::Addresses;
use atoms::{AtomContent, AtomId, Atoms};
use ids::Ids;
use peer_classes::{Class, ClassId, Classes, Token};
use policies::Policies;
use policy_sets::{NameId, SetId, SetRules, Sets};
use port_functions::{Function, FunctionId, Functions, Outcome};
use port_names::PortNames;
use prefixes::{Net, Prefixes};
use rows::{Removed, Rows};
use rules::Rules;

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

impl Moved {
    /// True when nothing moved.
    pub(crate) fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.prefixes.is_empty()
    }
}

impl Retired {
    /// True when nothing was retired.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.rules.is_empty() && self.ports.is_empty()
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
        self.policies.forget(name, &mut self.atoms);
    }

    /// What an address is to rules may have changed.
    pub(crate) fn address_changed(&mut self, address: IpAddr) {
        self.stale_addresses.insert(address.into());
    }

    /// What every pod of a namespace is to rules may have changed.
    pub(crate) fn namespace_changed(&mut self, cluster: &Cluster, namespace: &str) {
        let pods = cluster.pods_in(namespace);
        let addresses = pods.flat_map(|pod| pod.addresses.iter().copied());
        self.stale_addresses.extend(addresses.map(Address::from));
    }

    /// Asks everything anew: classes are left that have atoms no rule mentions any more.
    pub(crate) fn compact(&mut self) {
        self.stale_addresses.extend(self.addresses.all());
        self.stale_prefixes.extend(self.prefixes.sweep());
    }

    /// A new set of these rules.
    pub(crate) fn make_set(&mut self, cluster: &Cluster, rules: &SetRules) -> SetId {
        let id = self.sets.make(Arc::clone(rules), &mut self.ids);
        for rule in &**rules {
            self.rules.hold(rule.rule);
            if let Some(atom) = rule.atom
                && let Some(content) = self.atoms.add_set(atom, id)
            {
                self.atom_came_alive(cluster, atom, &content);
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
                && let Some(content) = self.atoms.remove_set(atom, id)
            {
                self.prefixes.remove(atom, &content);
            }
            self.retired.rules.push(rule.rule);
        }
    }

    /// Brings addresses and prefixes up to date.
    pub(crate) fn refresh(&mut self, cluster: &Cluster) {
        for net in std::mem::take(&mut self.stale_prefixes) {
            let atoms = self.prefixes.atoms_of(net);
            let tokens: Vec<Token> = atoms.into_iter().map(Token::Atom).collect();
            let class = self.class(&tokens);
            self.classes.hold(class);
            match self.prefixes.want(net, class) {
                Some(before) => self.release_class(before),
                None => self.release_class(class),
            }
            self.moved.prefixes.insert(net);
        }
        for address in std::mem::take(&mut self.stale_addresses) {
            let wanted = self.tokens(cluster, address).map(|(tokens, owner)| {
                let class = self.class(&tokens);
                self.classes.hold(class);
                (class, owner)
            });
            if let Some(before) = self.addresses.want(address, wanted) {
                self.release_class(before);
            }
            self.moved.addresses.insert(address);
        }
    }

    /// A key in the maps carries another class now.
    pub(crate) fn settle_class(&mut self, before: Option<ClassId>, after: Option<ClassId>) {
        if let Some(after) = after {
            self.classes.hold_present(after);
        }
        if let Some(before) = before
            && let Some(class) = self.classes.release_present(before)
        {
            self.drop_class(before, &class);
        }
    }

    /// A key will not carry this class after all.
    pub(crate) fn release_class(&mut self, id: ClassId) {
        if let Some(class) = self.classes.release(id) {
            self.drop_class(id, &class);
        }
    }

    /// The function that holds for a set and class; set 0 passes everything.
    pub(crate) fn function(&self, set: SetId, class: ClassId) -> Option<FunctionId> {
        if set == SetId::NOT_ISOLATED {
            Some(self.open)
        } else {
            self.rows.function(set, class)
        }
    }

    /// True when a packet may be judged differently by (set, class) before and after.
    pub(crate) fn judges_differently(
        &self,
        before: (SetId, ClassId),
        after: (SetId, ClassId),
    ) -> bool {
        let shape = |(set, class)| {
            self.function(set, class)
                .and_then(|function| self.functions.shape(function))
        };
        shape(before) != shape(after)
    }

    /// Live sets that may judge one of these tokens.
    pub(crate) fn sets_of(&self, tokens: impl Iterator<Item = Token>) -> BTreeSet<SetId> {
        let mut sets = BTreeSet::new();
        for token in tokens {
            match token {
                Token::Atom(atom) => {
                    if let Some(atom) = self.atoms.get(atom) {
                        sets.extend(&atom.sets);
                    }
                }
                Token::Port(name, _) => sets.extend(self.names.sets(name)),
            }
        }
        sets
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

    fn atom_came_alive(&mut self, cluster: &Cluster, atom: AtomId, content: &AtomContent) {
        self.atom_members_changed(cluster, content);
        self.stale_prefixes
            .extend(self.prefixes.insert(atom, content));
        for block in &content.blocks {
            self.stale_addresses
                .extend(self.addresses.inside(block.cidr.range()));
        }
    }

    fn atom_members_changed(&mut self, cluster: &Cluster, content: &AtomContent) {
        let addresses = Atoms::pod_addresses(cluster, content);
        self.stale_addresses
            .extend(addresses.into_iter().map(Address::from));
    }

    /// A rule of a new set resolves a name at its peers. The first such rule asks every peer.
    fn name_is_used(&mut self, cluster: &Cluster, name: NameId, atom: Option<AtomId>) {
        let is_asked = |address: &Address, content: Option<&AtomContent>| {
            content.is_none_or(|content| Prefixes::is_in(content, *address))
        };
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
            if content.blocks.is_empty() {
                return;
            }
        }
        for pod in cluster.pods() {
            if self.names.ports_at(name, pod).next().is_some() {
                let addresses = pod.addresses.iter().copied().map(Address::from);
                self.stale_addresses
                    .extend(addresses.filter(|address| is_asked(address, content.as_deref())));
            }
        }
    }

    /// What is true of an address that rules know more of than its prefixes do.
    fn tokens(&self, cluster: &Cluster, address: Address) -> Option<(Vec<Token>, PodUid)> {
        let pod = cluster.owner_of(address.into())?;
        let by_labels = self.atoms.of_pod(cluster, pod);
        let is_selected = !by_labels.is_empty();
        let mut atoms: BTreeSet<AtomId> = by_labels.into_iter().collect();
        atoms.extend(self.prefixes.atoms_of(Net::host(address)));
        let names: BTreeSet<NameId> = atoms
            .iter()
            .flat_map(|atom| self.atoms.names(*atom))
            .chain(self.names.for_everyone())
            .collect();
        let ports: BTreeSet<Token> = names
            .into_iter()
            .flat_map(|name| {
                self.names
                    .ports_at(name, pod)
                    .map(move |port| Token::Port(name, port))
            })
            .collect();
        if !is_selected && ports.is_empty() {
            return None;
        }
        let tokens = atoms.into_iter().map(Token::Atom).chain(ports).collect();
        Some((tokens, pod.uid.clone()))
    }

    /// The class with these tokens; a new one gets its rows.
    fn class(&mut self, tokens: &[Token]) -> ClassId {
        let (id, is_new) = self.classes.intern(tokens, &mut self.ids);
        if !is_new {
            return id;
        }
        for token in tokens {
            match token {
                Token::Atom(atom) => self.atoms.add_class(*atom, id),
                Token::Port(name, _) => {
                    if let Some(classes) = self.names.classes_mut(*name) {
                        classes.insert(id);
                    }
                }
            }
        }
        for set in self.sets_of(tokens.iter().copied()) {
            if let Some(rules) = self.sets.get(set).map(|set| Arc::clone(&set.rules)) {
                self.add_row(set, &rules, id);
            }
        }
        id
    }

    fn drop_class(&mut self, id: ClassId, class: &Class) {
        for set in &class.rows {
            self.remove_row(*set, id);
            if let Some(set) = self.sets.get_mut(*set) {
                set.rows.remove(&id);
            }
        }
        for token in &*class.tokens {
            match token {
                Token::Atom(atom) => self.atoms.remove_class(*atom, id),
                Token::Port(name, _) => {
                    if let Some(classes) = self.names.classes_mut(*name) {
                        classes.remove(&id);
                    }
                }
            }
        }
    }

    /// Classes that the rules may judge otherwise than class 0.
    fn classes_of(&self, rules: &SetRules) -> BTreeSet<ClassId> {
        let mut classes = BTreeSet::new();
        for rule in &**rules {
            match rule.atom {
                Some(atom) => {
                    if let Some(atom) = self.atoms.get(atom) {
                        classes.extend(&atom.classes);
                    }
                }
                None => {
                    for name in rule.ports.names() {
                        classes.extend(self.names.classes(*name));
                    }
                }
            }
        }
        classes
    }

    fn judge(&mut self, rules: &SetRules, tokens: &[Token]) -> FunctionId {
        let names = &self.names;
        let function = policy_sets::function(rules, tokens, |name| names.protocol(name));
        self.functions.hold(function, &mut self.ids)
    }

    /// Adds the row if it differs from the one for class 0.
    fn add_row(&mut self, set: SetId, rules: &SetRules, class: ClassId) {
        let Some(tokens) = self
            .classes
            .get(class)
            .map(|class| Arc::clone(&class.tokens))
        else {
            return;
        };
        let function = self.judge(rules, &tokens);
        if self.rows.function(set, ClassId::NOTHING) == Some(function) {
            // Not the last holder: the row for class 0 has it too.
            self.functions.release(function);
            return;
        }
        self.rows.insert(set, class, function);
        if let Some(set) = self.sets.get_mut(set) {
            set.rows.insert(class);
        }
        if let Some(class) = self.classes.get_mut(class) {
            class.rows.insert(set);
        }
    }

    fn remove_row(&mut self, set: SetId, class: ClassId) {
        let Some(removed) = self.rows.remove(set, class) else {
            return;
        };
        if removed.is_written {
            self.retired.rows.push(removed);
        } else {
            let ports = self.functions.release(removed.function);
            self.retired.ports.extend(ports);
        }
    }
}
