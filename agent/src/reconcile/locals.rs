//! Which pod is behind which interface: interfaces that were seen, joined with the pods that the
//! container runtime says they were made for; where it says nothing, with those that own their
//! addresses. Pure: says what has to be done, does nothing.
//!
//! An interface keeps its pod until it goes or another pod takes it over: neither an address that
//! the pod puts on it, nor a namespace that cannot be seen, nor an object that goes changes
//! anything. An interface that comes while its pod is unknown is enclosed: it has our programs and no
//! rows, so the posture decides. One that was there at the first look is left alone until its pod is
//! known: installing closes nothing. A pod's further interfaces are reported and left alone.

mod interfaces;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use agent_policy::cluster::{Cluster, Touched};
use agent_policy::model::{ObjectName, Phase, Pod, PodUid};

use super::{Unclaimed, Unenforced};
use crate::endpoints::{IfIndex, Interface, Sandbox, Sighting, Unreachable};
use interfaces::Interfaces;

/// What has to be done about an interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Decision {
    /// It is a known pod's.
    Enforce {
        /// The interface.
        interface: Interface,
        /// Whose.
        uid: PodUid,
        /// The pod's name.
        pod: ObjectName,
        /// It came after the first complete list: closed until its rows are in.
        is_new: bool,
    },
    /// Nobody knows whose it is, or it proved not to be whose it seemed: programs without rows, so
    /// the posture decides.
    Enclose(Interface),
    /// It is a pod's whose object went: what is in force for it stays.
    Orphan(IfIndex),
    /// It went, or proved to be one that is not enforced.
    Remove(IfIndex),
}

/// Whose an interface is.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Owner {
    uid: PodUid,
    is_orphaned: bool,
}

/// Interfaces and their owners.
#[derive(Debug, Default)]
pub(super) struct Locals {
    node: Option<String>,
    interfaces: Interfaces,
    owners: BTreeMap<IfIndex, Owner>,
    /// Interfaces by the pod they belong to, orphans left out.
    by_owner: HashMap<PodUid, IfIndex>,
    newcomers: BTreeSet<IfIndex>,
    /// Those that were there before the first look, as somebody else says.
    known: BTreeSet<IfIndex>,
    /// Those that have no owner and our programs.
    enclosed: BTreeSet<IfIndex>,
    unreachable: Vec<Unreachable>,
    /// Interfaces to be decided about.
    dirty: BTreeSet<IfIndex>,
    removed: BTreeSet<IfIndex>,
    was_sighted: bool,
}

impl Locals {
    /// Nothing seen yet. With a node's name, only pods of that node are local.
    pub(super) fn new(node: Option<String>) -> Self {
        Self {
            node,
            ..Self::default()
        }
    }

    /// Interfaces that an earlier agent's programs are on, with whose they were. They count as
    /// seen already, so that those whose pod is gone end as orphans, and none is taken off while
    /// its link is there.
    pub(super) fn take_up(&mut self, ifindex: IfIndex, uid: PodUid) {
        self.owners.insert(
            ifindex,
            Owner {
                uid: uid.clone(),
                is_orphaned: false,
            },
        );
        self.by_owner.insert(uid, ifindex);
        self.dirty.insert(ifindex);
    }

    /// An interface that an earlier agent's programs are on and nothing was published for.
    pub(super) fn take_up_enclosed(&mut self, ifindex: IfIndex) {
        self.enclosed.insert(ifindex);
    }

    /// An interface that is no newcomer, whenever a namespace shows it: another layout version's
    /// programs are on it.
    pub(super) fn know(&mut self, ifindex: IfIndex) {
        self.known.insert(ifindex);
    }

    /// Interfaces were looked at.
    pub(super) fn sight(&mut self, sighting: Sighting) {
        for ifindex in &sighting.vanished {
            self.forget(*ifindex);
            self.known.remove(ifindex);
        }
        self.known
            .retain(|ifindex| sighting.links.contains_key(ifindex));
        let known: BTreeSet<IfIndex> = self
            .interfaces
            .iter()
            .map(|interface| &interface.ifindex)
            .chain(self.owners.keys())
            .chain(&self.enclosed)
            .copied()
            .collect();
        for ifindex in known {
            if sighting.interfaces.contains_key(&ifindex) {
                continue;
            }
            // No namespace shows it, which says nothing of the link and of who sends through it.
            match sighting.links.get(&ifindex) {
                Some(name) if self.is_ours(ifindex) => self.keep(ifindex, name),
                Some(_) | None => self.forget(ifindex),
            }
        }
        for (ifindex, interface) in sighting.interfaces {
            if self.interfaces.get(ifindex) == Some(&interface) {
                continue;
            }
            if interface.sandbox.is_some() {
                let beside = self.interfaces.beside(&interface);
                self.dirty.extend(beside.map(|other| other.ifindex));
            }
            let before = self.interfaces.insert(interface);
            if self.was_sighted && before.is_none() && !self.known.contains(&ifindex) {
                self.newcomers.insert(ifindex);
            }
            self.dirty.insert(ifindex);
        }
        self.unreachable = sighting.unreachable;
        self.was_sighted = true;
    }

    /// Objects changed.
    pub(super) fn touch(&mut self, touched: &Touched, cluster: &Cluster) {
        let of_pods = touched.pods.iter().filter_map(|uid| cluster.pod(uid));
        let addresses = of_pods
            .flat_map(|pod| pod.addresses.iter())
            .chain(&touched.addresses);
        for address in addresses {
            self.dirty.extend(self.interfaces.with_address(*address));
        }
        let owned = touched.pods.iter().filter_map(|uid| self.by_owner.get(uid));
        self.dirty.extend(owned);
        for uid in &touched.pods {
            self.dirty.extend(self.interfaces.made_for(uid));
        }
        // An orphan's object may come back.
        let orphans = self.owners.iter();
        let orphans = orphans
            .filter(|(_, owner)| owner.is_orphaned && touched.pods.contains(&owner.uid))
            .map(|(ifindex, _)| *ifindex);
        self.dirty.extend(orphans);
    }

    /// What has to be done since this was last asked: removals first, so that a pod whose interface
    /// was replaced is free for the new one.
    pub(super) fn decide(&mut self, cluster: &Cluster) -> Vec<Decision> {
        let removed = std::mem::take(&mut self.removed);
        let mut decisions: Vec<Decision> = removed.into_iter().map(Decision::Remove).collect();
        // Twice: an interface may become its pod's only after another let go of the pod.
        for _ in 0..2 {
            for ifindex in std::mem::take(&mut self.dirty) {
                if let Some(interface) = self.interfaces.get(ifindex).cloned() {
                    self.decide_one(interface, cluster, &mut decisions);
                }
            }
        }
        decisions
    }

    fn decide_one(
        &mut self,
        interface: Interface,
        cluster: &Cluster,
        decisions: &mut Vec<Decision>,
    ) {
        let ifindex = interface.ifindex;
        if self.interfaces.first_of(&interface).is_some() {
            decisions.extend(self.leave_alone(ifindex));
            return;
        }
        let current = self.owners.get(&ifindex).cloned();
        let Some(pod) = self.owner_of(&interface, current.as_ref(), cluster) else {
            decisions.extend(self.disown(interface, current, cluster));
            return;
        };
        if let Some(current) = &current
            && current.uid != pod.uid
        {
            self.release(&current.uid, ifindex);
        }
        let before = self.by_owner.insert(pod.uid.clone(), ifindex);
        if let Some(other) = before.filter(|other| *other != ifindex) {
            // It had the pod by an address alone.
            self.owners.remove(&other);
            self.enclosed.insert(other);
            let other = self.interfaces.get(other).cloned();
            decisions.extend(other.map(Decision::Enclose));
        }
        let owner = Owner {
            uid: pod.uid.clone(),
            is_orphaned: false,
        };
        self.owners.insert(ifindex, owner);
        self.enclosed.remove(&ifindex);
        decisions.push(Decision::Enforce {
            interface,
            uid: pod.uid.clone(),
            pod: pod.name.clone(),
            is_new: self.newcomers.remove(&ifindex),
        });
    }

    /// Another interface of a pod that has one: reported, and nothing else.
    fn leave_alone(&mut self, ifindex: IfIndex) -> Option<Decision> {
        self.newcomers.remove(&ifindex);
        let owner = self.owners.remove(&ifindex);
        if let Some(owner) = &owner {
            self.release(&owner.uid, ifindex);
        }
        let was_ours = self.enclosed.remove(&ifindex) || owner.is_some();
        was_ours.then_some(Decision::Remove(ifindex))
    }

    /// An interface whose pod is not known (any more).
    fn disown(
        &mut self,
        interface: Interface,
        current: Option<Owner>,
        cluster: &Cluster,
    ) -> Option<Decision> {
        let ifindex = interface.ifindex;
        let Some(current) = current else {
            let is_due = self.newcomers.contains(&ifindex) && self.enclosed.insert(ifindex);
            return is_due.then_some(Decision::Enclose(interface));
        };
        self.release(&current.uid, ifindex);
        let is_anothers = |sandbox: &Sandbox| {
            if sandbox.is_static() {
                // Its mirror in the API has another UID, and its name.
                let known = cluster.pod(&current.uid);
                return known.is_some_and(|pod| pod.name != sandbox.pod);
            }
            let by_name = *current.uid.0 == *sandbox.pod.to_string();
            sandbox.uid != current.uid && !by_name
        };
        if interface.sandbox.as_ref().is_some_and(is_anothers) {
            // It had an address of the pod that it seemed to be.
            self.owners.remove(&ifindex);
            self.enclosed.insert(ifindex);
            return Some(Decision::Enclose(interface));
        }
        let orphaned = Owner {
            uid: current.uid,
            is_orphaned: true,
        };
        self.owners.insert(ifindex, orphaned);
        (!current.is_orphaned).then_some(Decision::Orphan(ifindex))
    }

    /// Interfaces that came, before objects say whose they are: programs without rows for each.
    pub(super) fn enclose_newcomers(&mut self) -> Vec<Interface> {
        let newcomers = self.newcomers.iter();
        let interfaces = newcomers.filter_map(|ifindex| self.interfaces.get(*ifindex));
        let first = interfaces.filter(|interface| self.interfaces.first_of(interface).is_none());
        let unowned = first.filter(|interface| !self.owners.contains_key(&interface.ifindex));
        let unowned: Vec<Interface> = unowned.cloned().collect();
        let enclosed = unowned.into_iter();
        enclosed
            .filter(|interface| self.enclosed.insert(interface.ifindex))
            .collect()
    }

    /// The pod an interface belongs to.
    fn owner_of<'a>(
        &self,
        interface: &Interface,
        current: Option<&Owner>,
        cluster: &'a Cluster,
    ) -> Option<&'a Pod> {
        match &interface.sandbox {
            Some(sandbox) => self.owner_by_sandbox(interface.ifindex, sandbox, cluster),
            None => self.owner_by_address(interface, current, cluster),
        }
    }

    /// The pod that the runtime made the interface for, once its object is known; completed or not.
    fn owner_by_sandbox<'a>(
        &self,
        ifindex: IfIndex,
        sandbox: &Sandbox,
        cluster: &'a Cluster,
    ) -> Option<&'a Pod> {
        let by_name = || {
            let owners = sandbox.addresses.iter();
            let owners = owners.filter_map(|address| cluster.owner_of(*address));
            let mut named = owners.filter(|pod| pod.name == sandbox.pod);
            // The API knows a static pod by its mirror, which has a UID of its own.
            named.find(|pod| sandbox.is_static() || pod.goes_by_its_name())
        };
        let pod = cluster.pod(&sandbox.uid).or_else(by_name)?;
        // A sandbox that is made anew waits for its predecessor to go; an interface that only has
        // an address of the pod's does not keep it.
        let at = self.by_owner.get(&pod.uid);
        let is_free = at.is_none_or(|at| *at == ifindex || !self.has_sandbox(*at));
        (self.is_local(pod) && is_free).then_some(pod)
    }

    fn has_sandbox(&self, ifindex: IfIndex) -> bool {
        let interface = self.interfaces.get(ifindex);
        interface.is_some_and(|interface| interface.sandbox.is_some())
    }

    /// The pod whose object states an address of the interface.
    fn owner_by_address<'a>(
        &self,
        interface: &Interface,
        current: Option<&Owner>,
        cluster: &'a Cluster,
    ) -> Option<&'a Pod> {
        let kept = current
            .filter(|owner| !owner.is_orphaned || !self.by_owner.contains_key(&owner.uid))
            .and_then(|owner| cluster.pod(&owner.uid))
            .map(AsRef::as_ref)
            .filter(|pod| self.is_local(pod));
        // A terminating pod keeps its interface; a completed one only until another has the address.
        if let Some(pod) = kept
            && pod.phase != Phase::Completed
        {
            return Some(pod);
        }
        let owners = interface
            .addresses
            .iter()
            .filter_map(|address| cluster.owner_of(*address));
        owners
            .map(AsRef::as_ref)
            .filter(|pod| self.is_local(pod))
            // One that an interface was made for has that one.
            .filter(|pod| self.interfaces.made_for(&pod.uid).next().is_none())
            .find(|pod| {
                // A pod has one interface here; the first one that shows its address.
                let at = self.by_owner.get(&pod.uid);
                at.is_none_or(|at| *at == interface.ifindex)
            })
            .or(kept)
    }

    fn is_local(&self, pod: &Pod) -> bool {
        let is_here = self.node.as_ref().is_none_or(|node| **node == *pod.node);
        is_here && !pod.host_network
    }

    /// Lets go of a pod, so that other interfaces that show its addresses may have it.
    fn release(&mut self, uid: &PodUid, ifindex: IfIndex) {
        if self.by_owner.get(uid) == Some(&ifindex) {
            self.by_owner.remove(uid);
            let others = self.interfaces.iter().filter(|other| {
                other.ifindex != ifindex && !self.owners.contains_key(&other.ifindex)
            });
            self.dirty.extend(others.map(|other| other.ifindex));
        }
    }

    /// Our programs are on it.
    fn is_ours(&self, ifindex: IfIndex) -> bool {
        self.owners.contains_key(&ifindex) || self.enclosed.contains(&ifindex)
    }

    /// An interface of ours that no namespace shows stays as it was last seen.
    fn keep(&mut self, ifindex: IfIndex, name: &str) {
        if self.interfaces.get(ifindex).is_some() {
            return;
        }
        self.dirty.insert(ifindex);
        self.interfaces.insert(Interface {
            ifindex,
            name: name.to_owned(),
            addresses: Vec::new(),
            inside: String::new(),
            netns: PathBuf::new(),
            sandbox: None,
        });
    }

    fn forget(&mut self, ifindex: IfIndex) {
        self.interfaces.remove(ifindex);
        self.newcomers.remove(&ifindex);
        self.dirty.remove(&ifindex);
        if let Some(owner) = self.owners.remove(&ifindex) {
            self.release(&owner.uid, ifindex);
            self.removed.insert(ifindex);
        }
        if self.enclosed.remove(&ifindex) {
            self.removed.insert(ifindex);
        }
    }

    /// An interface that is there.
    pub(super) fn interface(&self, ifindex: IfIndex) -> Option<&Interface> {
        self.interfaces.get(ifindex)
    }

    /// Interfaces that lead to an address and whose pod nobody knows: those enclosed, and those
    /// left alone.
    pub(super) fn unclaimed(&self) -> Vec<Unclaimed> {
        let unowned = self.interfaces.iter().filter(|interface| {
            let is_owned = self.owners.contains_key(&interface.ifindex);
            !is_owned && self.interfaces.first_of(interface).is_none()
        });
        unowned
            .map(|interface| Unclaimed {
                interface: interface.clone(),
                is_enclosed: self.enclosed.contains(&interface.ifindex),
                error: None,
            })
            .filter(|each| each.is_enclosed || !each.interface.addresses.is_empty())
            .collect()
    }

    /// Local pods that cannot be enforced.
    pub(super) fn unenforced(&self, cluster: &Cluster) -> Vec<Unenforced> {
        let of = |place: &Unreachable| {
            let mut owners = place
                .addresses
                .iter()
                .filter_map(|address| cluster.owner_of(*address));
            let pod = owners.find(|pod| self.is_local(pod))?;
            // Its other interface is enforced, and this one shares an address with it.
            if self.by_owner.contains_key(&pod.uid) {
                return None;
            }
            Some(Unenforced {
                pod: pod.name.clone(),
                place: place.clone(),
            })
        };
        let unreachable = self.unreachable.iter().filter_map(of);
        let seconds = self.interfaces.iter().filter_map(|interface| {
            let first = self.interfaces.first_of(interface)?;
            Some(Unenforced {
                pod: first.sandbox.as_ref()?.pod.clone(),
                place: Unreachable {
                    netns: interface.netns.clone(),
                    interface: interface.inside.clone(),
                    addresses: interface.addresses.clone(),
                    why: format!("another interface than {}, which is enforced", first.inside),
                },
            })
        });
        unreachable.chain(seconds).collect()
    }
}

#[cfg(test)]
mod tests;
