//! Which live atoms select a pod, without asking every atom.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{AtomId, PodPeer, Scope};
use crate::cluster::Cluster;
use crate::cluster::labels::SelectorIndex;
use crate::hash::HashMap;
use crate::model::{Labels, Pod};
use crate::selector::Selector;

/// Pod selectors of live atoms: by where they look, then by the labels they want.
#[derive(Clone, Debug, Default)]
pub(super) struct PodSelectors {
    by_namespace: HashMap<Arc<str>, Scoped>,
    by_selector: HashMap<Selector, Scoped>,
    namespaces: SelectorIndex<Selector>,
}

/// The selectors of one scope. Selectors repeat between atoms, so each is asked once.
#[derive(Clone, Debug, Default)]
struct Scoped {
    index: SelectorIndex<Selector>,
    atoms: HashMap<Selector, BTreeSet<AtomId>>,
}

impl Scoped {
    fn insert(&mut self, atom: AtomId, pods: &Selector) {
        let atoms = self.atoms.entry(pods.clone()).or_default();
        if atoms.is_empty() {
            self.index.insert(pods, pods);
        }
        atoms.insert(atom);
    }

    fn remove(&mut self, atom: AtomId, pods: &Selector) {
        if let Some(atoms) = self.atoms.get_mut(pods) {
            atoms.remove(&atom);
            if atoms.is_empty() {
                self.atoms.remove(pods);
                self.index.remove(pods, pods);
            }
        }
    }

    fn collect(&self, labels: &Labels, found: &mut Vec<AtomId>) {
        for selector in self.index.candidates(labels) {
            if selector.selects(labels)
                && let Some(atoms) = self.atoms.get(selector)
            {
                found.extend(atoms);
            }
        }
    }
}

impl PodSelectors {
    pub(super) fn insert(&mut self, atom: AtomId, peer: &PodPeer) {
        match &peer.scope {
            Scope::Namespace(namespace) => self
                .by_namespace
                .entry(Arc::clone(namespace))
                .or_default()
                .insert(atom, &peer.pods),
            Scope::Selected(selector) => {
                if !self.by_selector.contains_key(selector) {
                    self.namespaces.insert(selector, selector);
                }
                self.by_selector
                    .entry(selector.clone())
                    .or_default()
                    .insert(atom, &peer.pods);
            }
        }
    }

    pub(super) fn remove(&mut self, atom: AtomId, peer: &PodPeer) {
        match &peer.scope {
            Scope::Namespace(namespace) => {
                if let Some(scoped) = self.by_namespace.get_mut(namespace) {
                    scoped.remove(atom, &peer.pods);
                    if scoped.atoms.is_empty() {
                        self.by_namespace.remove(namespace);
                    }
                }
            }
            Scope::Selected(selector) => {
                if let Some(scoped) = self.by_selector.get_mut(selector) {
                    scoped.remove(atom, &peer.pods);
                    if scoped.atoms.is_empty() {
                        self.by_selector.remove(selector);
                        self.namespaces.remove(selector, selector);
                    }
                }
            }
        }
    }

    pub(super) fn of_pod(&self, cluster: &Cluster, pod: &Pod) -> Vec<AtomId> {
        let mut found = Vec::new();
        if let Some(scoped) = self.by_namespace.get(&pod.name.namespace) {
            scoped.collect(&pod.labels, &mut found);
        }
        if let Some(namespace) = cluster.namespace(&pod.name.namespace) {
            for selector in self.namespaces.candidates(&namespace.labels) {
                if selector.selects(&namespace.labels)
                    && let Some(scoped) = self.by_selector.get(selector)
                {
                    scoped.collect(&pod.labels, &mut found);
                }
            }
        }
        found
    }
}
