//! What addresses and prefixes are to rules: their tokens, the classes these make, and the classes
//! nobody has any more.

use std::collections::BTreeSet;
use std::sync::Arc;

use agent_common::Address;

use super::addresses::Candidate;
use super::peer_classes::{Class, ClassId, Token};
use super::policy_sets::{NameId, SetId};
use super::prefixes::Net;
use super::{Compiler, merge};
use crate::cluster::Cluster;
use crate::model::PodUid;

impl Compiler {
    /// Brings addresses and prefixes up to date.
    pub(crate) fn refresh(&mut self, cluster: &Cluster) {
        let mut prefixes = std::mem::take(&mut self.stale_prefixes);
        prefixes.retain(|net| self.refresh_prefix(*net));
        merge(&mut self.moved.prefixes, prefixes);
        let addresses = std::mem::take(&mut self.stale_addresses);
        for address in &addresses {
            self.refresh_address(cluster, *address);
        }
        merge(&mut self.moved.addresses, addresses);
        self.services.refresh(cluster);
    }

    /// True when the prefix may have another class now; false when there is none such any more.
    fn refresh_prefix(&mut self, net: Net) -> bool {
        if let Some(class) = self.prefixes.forget_unwritten(net) {
            self.release_class(class);
            return false;
        }
        let atoms = self.prefixes.atoms_of(net);
        let tokens: Vec<Token> = atoms.into_iter().map(Token::Atom).collect();
        let class = self.class(&tokens);
        self.classes.hold(class);
        match self.prefixes.want(net, class) {
            Some(before) => self.release_class(before),
            None => self.release_class(class),
        }
        true
    }

    fn refresh_address(&mut self, cluster: &Cluster, address: Address) {
        let is_virtual = cluster.is_virtual(address.into());
        let wanted = match self.tokens(cluster, address) {
            Some((tokens, owner)) => Some((self.class(&tokens), Some(owner))),
            // What its prefixes say, and that it is virtual.
            None if is_virtual => {
                let atoms = self.prefixes.atoms_of(Net::host(address));
                let tokens: Vec<Token> = atoms.into_iter().map(Token::Atom).collect();
                Some((self.class(&tokens), None))
            }
            None => None,
        };
        let wanted = wanted.map(|(class, owner)| {
            self.classes.hold(class);
            Candidate {
                class,
                owner,
                is_virtual,
            }
        });
        if let Some(before) = self.addresses.want(address, wanted) {
            self.release_class(before);
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

    /// What is true of an address that rules know more of than its prefixes do.
    pub(super) fn tokens(
        &self,
        cluster: &Cluster,
        address: Address,
    ) -> Option<(Vec<Token>, PodUid)> {
        let pod = cluster.owner_of(address.into())?;
        let mut atoms = self.atoms.of_pod(cluster, pod);
        let is_selected = !atoms.is_empty();
        atoms.extend(self.prefixes.atoms_of(Net::host(address)));
        atoms.sort_unstable();
        atoms.dedup();
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
    pub(super) fn class(&mut self, tokens: &[Token]) -> ClassId {
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

    pub(super) fn drop_class(&mut self, id: ClassId, class: &Class) {
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
}
