//! Changes of the ground state, and what each touches.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::namespaces::{Home, PodSlot, implied};
use super::{Cluster, Touched, is_selectable};
use crate::model::{Namespace, Node, ObjectName, Pod, PodUid, Policy};

impl Cluster {
    pub(super) fn put_pod(&mut self, mut pod: Pod) -> Touched {
        self.shared.share(&mut pod);
        let uid = pod.uid.clone();
        self.replace_pod(&uid, Some(Arc::new(pod)))
    }

    pub(super) fn replace_pod(&mut self, uid: &PodUid, new: Option<Arc<Pod>>) -> Touched {
        let old = self.pod(uid).map(Arc::clone);
        if old == new {
            return Touched::default();
        }
        let addresses: BTreeSet<IpAddr> = [&old, &new]
            .into_iter()
            .flatten()
            .flat_map(|pod| pod.addresses.iter().copied())
            .collect();
        let owners_before: Vec<Option<Arc<Pod>>> = addresses
            .iter()
            .map(|address| self.owner_of(*address).map(Arc::clone))
            .collect();
        if let Some(old) = old {
            self.remove_pod(&old);
        }
        if let Some(new) = new {
            self.insert_pod(new);
        }
        let changed = addresses
            .into_iter()
            .zip(owners_before)
            .filter(|(address, before)| {
                !is_same_peer(before.as_deref(), self.owner_of(*address).map(|pod| &**pod))
            })
            .map(|(address, _)| address);
        Touched {
            addresses: changed.collect(),
            pods: BTreeSet::from([uid.clone()]),
            ..Touched::default()
        }
    }

    fn insert_pod(&mut self, pod: Arc<Pod>) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            PodSlot::try_from(self.slots.len() - 1).expect("fewer than 2^32 pods")
        });
        self.by_uid.insert(pod.uid.clone(), slot);
        self.by_name.insert(pod.name.clone(), slot, &pod);
        let home = self.home(&pod.name.namespace);
        home.pods.insert(slot);
        if is_selectable(&pod) {
            home.labels.insert(&slot, &pod.labels);
            self.labels.insert(&slot, &pod.labels);
            for address in &pod.addresses {
                self.by_address.insert(*address, slot, &pod);
            }
        }
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(pod);
        }
    }

    fn remove_pod(&mut self, pod: &Pod) {
        let Some(slot) = self.by_uid.remove(&pod.uid) else {
            return;
        };
        self.by_name.remove(pod.name.clone(), slot, pod);
        if let Some(home) = self.homes.get_mut(&pod.name.namespace) {
            home.pods.remove(&slot);
            if is_selectable(pod) {
                home.labels.remove(&slot, &pod.labels);
            }
        }
        if is_selectable(pod) {
            self.labels.remove(&slot, &pod.labels);
            for address in &pod.addresses {
                self.by_address.remove(*address, slot, pod);
            }
        }
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = None;
        }
        self.free.push(slot);
        self.forget_if_empty(&pod.name.namespace);
    }

    pub(super) fn replace_namespace(&mut self, name: &Arc<str>, new: Option<Namespace>) -> Touched {
        if new.is_none() && !self.homes.contains_key(name) {
            return Touched::default();
        }
        let is_known = new.is_some();
        let new = new.unwrap_or_else(|| implied(name));
        let home = self.home(name);
        home.is_known = is_known;
        let old = std::mem::replace(&mut home.namespace, new.clone());
        let mut touched = Touched::default();
        if old != new {
            self.home_labels.remove(name, &old.labels);
            self.home_labels.insert(name, &new.labels);
            touched.namespaces.insert(Arc::clone(name));
        }
        self.forget_if_empty(name);
        touched
    }

    pub(super) fn replace_node(&mut self, name: &Arc<str>, new: Option<Node>) -> Touched {
        let mut touched = Touched::default();
        if self.nodes.get(name) != new.as_ref() {
            match new {
                Some(node) => self.nodes.insert(Arc::clone(name), node),
                None => self.nodes.remove(name),
            };
            touched.nodes.insert(Arc::clone(name));
        }
        touched
    }

    pub(super) fn replace_policy(
        &mut self,
        name: &ObjectName,
        new: Option<Arc<Policy>>,
    ) -> Touched {
        if self.policy(name) == new.as_ref() {
            return Touched::default();
        }
        let home = self.home(&name.namespace);
        if let Some(old) = home.policies.remove(&name.name) {
            home.policy_selectors.remove(&name.name, &old.pods);
        }
        if let Some(policy) = new {
            home.policy_selectors.insert(&name.name, &policy.pods);
            home.policies.insert(Arc::clone(&name.name), policy);
        }
        self.forget_if_empty(&name.namespace);
        Touched {
            policies: BTreeSet::from([name.clone()]),
            ..Touched::default()
        }
    }

    fn home(&mut self, name: &Arc<str>) -> &mut Home {
        self.homes.entry(Arc::clone(name)).or_insert_with(|| {
            let home = Home::new(name);
            self.home_labels.insert(name, &home.namespace.labels);
            home
        })
    }

    fn forget_if_empty(&mut self, name: &Arc<str>) {
        if let Some(home) = self.homes.get(name)
            && home.is_empty()
        {
            self.home_labels.remove(name, &home.namespace.labels);
            self.homes.remove(name);
        }
    }
}

/// True when a peer at an address looks the same to every policy.
fn is_same_peer(before: Option<&Pod>, after: Option<&Pod>) -> bool {
    match (before, after) {
        (None, None) => true,
        (Some(before), Some(after)) => {
            before.uid == after.uid
                && before.name == after.name
                && before.labels == after.labels
                && before.ports == after.ports
        }
        (Some(_), None) | (None, Some(_)) => false,
    }
}
