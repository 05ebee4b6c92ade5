//! Atoms: whole `from`/`to` lists, each once, and which pods they have. Only atoms of live sets
//! are asked; an atom that dies stays in the classes it is in until those are left or compacted.
//!
//! A list that changes stays the same atom where no other rule shares it: what it gained and lost
//! moves, all the rest stays as it is.

mod redrawing;
mod selectors;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::peer_classes::ClassId;
use super::policy_sets::{NameId, SetId};
use super::prefixes::Net;
use crate::cluster::Cluster;
use crate::hash::HashMap;
use crate::model::{NamespaceScope, Peer, Pod, Policy};
use crate::selector::Selector;

use redrawing::Numbers;
pub(crate) use redrawing::{Drawing, Redrawn};
use selectors::PodSelectors;

/// An atom; only within this process.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct AtomId(u32);

/// Pods of one item of a `from`/`to` list.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct PodPeer {
    /// The namespace when the item names none, else which ones it selects.
    pub(crate) scope: Scope,
    /// Which pods.
    pub(crate) pods: Selector,
}

/// Where a [`PodPeer`] looks.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Scope {
    /// In the policy's own namespace.
    Namespace(Arc<str>),
    /// In namespaces with these labels.
    Selected(Selector),
}

/// A range of addresses minus its own exceptions.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Block {
    pub(crate) cidr: Net,
    pub(crate) except: Vec<Net>,
}

impl Block {
    /// Its range, then its exceptions.
    pub(crate) fn nets(&self) -> impl Iterator<Item = Net> {
        std::iter::once(self.cidr).chain(self.except.iter().copied())
    }
}

/// What an atom is: the union of its pods and blocks, sorted, each once.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct AtomContent {
    pub(crate) pods: Vec<PodPeer>,
    pub(crate) blocks: Vec<Block>,
}

impl AtomContent {
    /// The atom of one rule's list.
    pub(crate) fn of(policy: &Policy, peers: &[Peer]) -> Self {
        let mut pods = Vec::new();
        let mut blocks = Vec::new();
        for peer in peers {
            match peer {
                Peer::Pods {
                    namespaces,
                    pods: selector,
                } => {
                    let scope = match namespaces {
                        NamespaceScope::Own => Scope::Namespace(Arc::clone(&policy.name.namespace)),
                        NamespaceScope::Selected(selector) => Scope::Selected(selector.clone()),
                    };
                    pods.push(PodPeer {
                        scope,
                        pods: selector.clone(),
                    });
                }
                Peer::Block { cidr, except } => {
                    // No packet carries an IPv6 address in IPv4's mapped range.
                    let Some(cidr) = Net::of(*cidr) else { continue };
                    let holes = except.iter().filter_map(|hole| Net::of(*hole));
                    blocks.push(Block {
                        cidr,
                        except: each_once(holes.collect()),
                    });
                }
            }
        }
        Self {
            pods: each_once(pods),
            blocks: each_once(blocks),
        }
    }
}

fn each_once<T: Ord>(mut items: Vec<T>) -> Vec<T> {
    items.sort_unstable();
    items.dedup();
    items
}

/// An atom in use.
#[derive(Clone, Debug)]
pub(crate) struct Atom {
    /// What it is.
    pub(crate) content: Arc<AtomContent>,
    numbers: Numbers,
    /// Compiled policies that mention it.
    mentions: usize,
    /// Live sets with a rule for it: it is live while there is one.
    pub(crate) sets: BTreeSet<SetId>,
    /// Classes that have it, stale ones included.
    pub(crate) classes: BTreeSet<ClassId>,
    /// Port names that rules for it resolve at the peer, and how many rules do.
    names: BTreeMap<NameId, usize>,
}

/// The atoms in use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Atoms {
    by_content: HashMap<Arc<AtomContent>, AtomId>,
    entries: Vec<Option<Atom>>,
    free: Vec<AtomId>,
    selectors: PodSelectors,
    live: usize,
    redrawn: Vec<Redrawn>,
    /// What the maps have of atoms that were redrawn since the last plan was decided.
    in_force: BTreeMap<AtomId, Arc<AtomContent>>,
}

impl Atoms {
    /// The atom of this content, mentioned once more. `before` is what the same rule mentions
    /// until now: it becomes the atom of this content when nothing else is.
    pub(crate) fn mention(&mut self, content: AtomContent, before: Option<AtomId>) -> AtomId {
        let known = self.by_content.get(&content).copied();
        let content = Arc::new(content);
        let redrawn = before.filter(|before| known.is_none() && self.redraw(*before, &content));
        if let Some(id) = known.or(redrawn) {
            if let Some(atom) = self.get_mut(id) {
                atom.mentions += 1;
            }
            return id;
        }
        let atom = Atom {
            numbers: Numbers::of(&content),
            content: Arc::clone(&content),
            mentions: 1,
            sets: BTreeSet::new(),
            classes: BTreeSet::new(),
            names: BTreeMap::new(),
        };
        let id = if let Some(id) = self.free.pop()
            && let Some(place) = self.entries.get_mut(id.0 as usize)
        {
            *place = Some(atom);
            id
        } else {
            let id = AtomId(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
            self.entries.push(Some(atom));
            id
        };
        self.by_content.insert(content, id);
        id
    }

    /// One compiled policy less mentions it.
    pub(crate) fn forget_mention(&mut self, id: AtomId) {
        if let Some(atom) = self.get_mut(id) {
            atom.mentions = atom.mentions.saturating_sub(1);
        }
        self.free_if_unused(id);
    }

    /// An atom by id.
    pub(crate) fn get(&self, id: AtomId) -> Option<&Atom> {
        self.entries.get(id.0 as usize)?.as_ref()
    }

    fn get_mut(&mut self, id: AtomId) -> Option<&mut Atom> {
        self.entries.get_mut(id.0 as usize)?.as_mut()
    }

    /// Live atoms.
    pub(crate) const fn live(&self) -> usize {
        self.live
    }

    /// A live set has a rule for it; its content when it comes alive by that.
    pub(crate) fn add_set(&mut self, id: AtomId, set: SetId) -> Option<Drawing> {
        let atom = self.get_mut(id)?;
        let was_dead = atom.sets.is_empty();
        atom.sets.insert(set);
        if !was_dead {
            return None;
        }
        let drawing = atom.drawing();
        self.live += 1;
        for peer in &drawing.content.pods {
            self.selectors.insert(id, peer);
        }
        Some(drawing)
    }

    /// The set is gone; its content when it dies by that.
    pub(crate) fn remove_set(&mut self, id: AtomId, set: SetId) -> Option<Drawing> {
        let atom = self.get_mut(id)?;
        if !atom.sets.remove(&set) || !atom.sets.is_empty() {
            return None;
        }
        let drawing = atom.drawing();
        self.live -= 1;
        for peer in &drawing.content.pods {
            self.selectors.remove(id, peer);
        }
        self.free_if_unused(id);
        Some(drawing)
    }

    /// One more rule for it resolves this name at the peer; true when it is the first.
    pub(crate) fn add_name(&mut self, id: AtomId, name: NameId) -> bool {
        self.get_mut(id).is_some_and(|atom| {
            let rules = atom.names.entry(name).or_default();
            *rules += 1;
            *rules == 1
        })
    }

    /// One rule less for it resolves this name.
    pub(crate) fn remove_name(&mut self, id: AtomId, name: NameId) {
        if let Some(atom) = self.get_mut(id)
            && let Some(rules) = atom.names.get_mut(&name)
        {
            *rules -= 1;
            if *rules == 0 {
                atom.names.remove(&name);
            }
        }
    }

    /// Names that rules for it resolve at the peer.
    pub(crate) fn names(&self, id: AtomId) -> impl Iterator<Item = NameId> + '_ {
        self.get(id)
            .into_iter()
            .flat_map(|atom| atom.names.keys().copied())
    }

    /// A class has it.
    pub(crate) fn add_class(&mut self, id: AtomId, class: ClassId) {
        if let Some(atom) = self.get_mut(id) {
            atom.classes.insert(class);
        }
    }

    /// The class is gone.
    pub(crate) fn remove_class(&mut self, id: AtomId, class: ClassId) {
        if let Some(atom) = self.get_mut(id) {
            atom.classes.remove(&class);
        }
        self.free_if_unused(id);
    }

    /// The live atoms that have a pod by its labels, each once or more, in no particular order.
    pub(crate) fn of_pod(&self, cluster: &Cluster, pod: &Pod) -> Vec<AtomId> {
        self.selectors.of_pod(cluster, pod)
    }

    /// The addresses of the pods that some items of an atom have by their labels.
    pub(crate) fn pod_addresses(
        cluster: &Cluster,
        pods: &[PodPeer],
    ) -> impl Iterator<Item = IpAddr> {
        let selected = pods.iter().flat_map(|peer| match &peer.scope {
            Scope::Namespace(namespace) => {
                cluster.pods_selected(&NamespaceScope::Own, namespace, &peer.pods)
            }
            Scope::Selected(selector) => {
                let scope = NamespaceScope::Selected(selector.clone());
                cluster.pods_selected(&scope, "", &peer.pods)
            }
        });
        selected.flat_map(|pod| pod.addresses.iter().copied())
    }

    /// The content names this atom no longer, unless it names another that got it meanwhile.
    fn forget_content(&mut self, id: AtomId, content: &Arc<AtomContent>) {
        if self.by_content.get(content) == Some(&id) {
            self.by_content.remove(content);
        }
    }

    fn free_if_unused(&mut self, id: AtomId) {
        let is_unused = self.get(id).is_some_and(|atom| {
            atom.mentions == 0 && atom.sets.is_empty() && atom.classes.is_empty()
        });
        if !is_unused {
            return;
        }
        if let Some(place) = self.entries.get_mut(id.0 as usize)
            && let Some(atom) = place.take()
        {
            self.forget_content(id, &atom.content);
            self.in_force.remove(&id);
            self.free.push(id);
        }
    }
}
