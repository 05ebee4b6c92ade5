//! Interfaces as they were last seen, and what they are looked up by.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::path::PathBuf;

use agent_policy::model::PodUid;

use crate::endpoints::{IfIndex, Interface};

/// A map of interfaces with its indexes.
#[derive(Debug, Default)]
pub(super) struct Interfaces {
    all: BTreeMap<IfIndex, Interface>,
    by_address: HashMap<IpAddr, BTreeSet<IfIndex>>,
    by_sandbox: HashMap<PodUid, BTreeSet<IfIndex>>,
    by_netns: HashMap<PathBuf, BTreeSet<IfIndex>>,
}

impl Interfaces {
    pub(super) fn get(&self, ifindex: IfIndex) -> Option<&Interface> {
        self.all.get(&ifindex)
    }

    /// All of them, by index.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Interface> {
        self.all.values()
    }

    /// Takes one in; returns what was there with its index.
    pub(super) fn insert(&mut self, interface: Interface) -> Option<Interface> {
        let ifindex = interface.ifindex;
        let before = self.remove(ifindex);
        for address in &interface.addresses {
            self.by_address.entry(*address).or_default().insert(ifindex);
        }
        if let Some(sandbox) = &interface.sandbox {
            let made_for = self.by_sandbox.entry(sandbox.uid.clone()).or_default();
            made_for.insert(ifindex);
        }
        let inside = self.by_netns.entry(interface.netns.clone()).or_default();
        inside.insert(ifindex);
        self.all.insert(ifindex, interface);
        before
    }

    pub(super) fn remove(&mut self, ifindex: IfIndex) -> Option<Interface> {
        let interface = self.all.remove(&ifindex)?;
        for address in &interface.addresses {
            remove(&mut self.by_address, address, ifindex);
        }
        if let Some(sandbox) = &interface.sandbox {
            remove(&mut self.by_sandbox, &sandbox.uid, ifindex);
        }
        remove(&mut self.by_netns, &interface.netns, ifindex);
        Some(interface)
    }

    /// Those that show an address.
    pub(super) fn with_address(&self, address: IpAddr) -> impl Iterator<Item = IfIndex> {
        self.by_address.get(&address).into_iter().flatten().copied()
    }

    /// Those that were made for a pod.
    pub(super) fn made_for(&self, uid: &PodUid) -> impl Iterator<Item = IfIndex> {
        self.by_sandbox.get(uid).into_iter().flatten().copied()
    }

    /// The others of the same network namespace; none while none is seen that one leads to.
    pub(super) fn beside(&self, interface: &Interface) -> impl Iterator<Item = &Interface> {
        let is_seen = !interface.netns.as_os_str().is_empty();
        let inside = self.by_netns.get(&interface.netns).filter(|_| is_seen);
        let own = interface.ifindex;
        let others = inside
            .into_iter()
            .flatten()
            .filter(move |each| **each != own);
        others.filter_map(|each| self.all.get(each))
    }

    /// Of a pod's interfaces the one that it was made with, where the runtime says so of another.
    pub(super) fn first_of(&self, interface: &Interface) -> Option<&Interface> {
        if interface.sandbox.is_some() {
            return None;
        }
        self.beside(interface).find(|other| other.sandbox.is_some())
    }
}

/// Takes an interface out of an index.
fn remove<K: Eq + Hash>(index: &mut HashMap<K, BTreeSet<IfIndex>>, key: &K, ifindex: IfIndex) {
    if let Some(all) = index.get_mut(key) {
        all.remove(&ifindex);
        if all.is_empty() {
            index.remove(key);
        }
    }
}
