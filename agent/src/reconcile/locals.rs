//! Which pod is behind which interface: interfaces that were seen, joined with the pods that own
//! their addresses. Pure: says what has to be done, does nothing.
//!
//! An interface keeps its pod until it goes or another pod takes it over: neither an address that
//! the pod puts on it, nor a namespace that cannot be seen, nor an object that goes changes
//! anything. An interface that comes while its pod is unknown is enclosed: it has our programs and no
//! rows, so the posture decides. One that was there at the first look is left alone until its pod is
//! known: installing closes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;

use agent_policy::cluster::{Cluster, Touched};
use agent_policy::model::{ObjectName, Phase, Pod, PodUid};

use super::{Unclaimed, Unenforced};
use crate::endpoints::{IfIndex, Interface, Sighting, Unreachable};

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
    /// It came and nobody knows whose it is: programs without rows, so the posture decides.
    Enclose(Interface),
    /// It is a pod's whose object went: what is in force for it stays.
    Orphan(IfIndex),
    /// It went.
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
    interfaces: BTreeMap<IfIndex, Interface>,
    by_address: HashMap<IpAddr, BTreeSet<IfIndex>>,
    owners: BTreeMap<IfIndex, Owner>,
    /// Interfaces by the pod they belong to, orphans left out.
    by_owner: HashMap<PodUid, IfIndex>,
    newcomers: BTreeSet<IfIndex>,
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

    /// Interfaces were looked at.
    pub(super) fn sight(&mut self, sighting: Sighting) {
        for ifindex in &sighting.vanished {
            self.forget(*ifindex);
        }
        let known: BTreeSet<IfIndex> = self
            .interfaces
            .keys()
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
            if self.interfaces.get(&ifindex) == Some(&interface) {
                continue;
            }
            let before = self.interfaces.remove(&ifindex);
            if self.was_sighted && before.is_none() {
                self.newcomers.insert(ifindex);
            }
            self.unlist(before.as_ref());
            for address in &interface.addresses {
                self.by_address.entry(*address).or_default().insert(ifindex);
            }
            self.interfaces.insert(ifindex, interface);
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
            self.dirty
                .extend(self.by_address.get(address).into_iter().flatten());
        }
        let owned = touched.pods.iter().filter_map(|uid| self.by_owner.get(uid));
        self.dirty.extend(owned);
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
                decisions.extend(self.decide_one(ifindex, cluster));
            }
        }
        decisions
    }

    fn decide_one(&mut self, ifindex: IfIndex, cluster: &Cluster) -> Option<Decision> {
        let interface = self.interfaces.get(&ifindex)?.clone();
        let current = self.owners.get(&ifindex).cloned();
        let Some(pod) = self.owner_of(&interface, current.as_ref(), cluster) else {
            let Some(current) = current else {
                let is_due = self.newcomers.contains(&ifindex) && self.enclosed.insert(ifindex);
                return is_due.then_some(Decision::Enclose(interface));
            };
            self.release(&current.uid, ifindex);
            let orphaned = Owner {
                uid: current.uid,
                is_orphaned: true,
            };
            self.owners.insert(ifindex, orphaned);
            return (!current.is_orphaned).then_some(Decision::Orphan(ifindex));
        };
        if let Some(current) = &current
            && current.uid != pod.uid
        {
            self.release(&current.uid, ifindex);
        }
        self.by_owner.insert(pod.uid.clone(), ifindex);
        let owner = Owner {
            uid: pod.uid.clone(),
            is_orphaned: false,
        };
        self.owners.insert(ifindex, owner);
        self.enclosed.remove(&ifindex);
        Some(Decision::Enforce {
            interface,
            uid: pod.uid.clone(),
            pod: pod.name.clone(),
            is_new: self.newcomers.remove(&ifindex),
        })
    }

    /// The pod an interface belongs to.
    fn owner_of<'a>(
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
            .find(|pod| {
                // A pod has one interface here; the first one that shows its address.
                let at = self.by_owner.get(&pod.uid);
                at.is_none_or(|at| *at == interface.ifindex)
            })
            .or(kept)
    }

    fn is_local(&self, pod: &Pod) -> bool {
        let is_here = self.node.as_ref().is_none_or(|node| *node == pod.node);
        is_here && !pod.host_network
    }

    /// Lets go of a pod, so that other interfaces that show its addresses may have it.
    fn release(&mut self, uid: &PodUid, ifindex: IfIndex) {
        if self.by_owner.get(uid) == Some(&ifindex) {
            self.by_owner.remove(uid);
            let others = self.interfaces.values().filter(|other| {
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
        self.interfaces.entry(ifindex).or_insert_with(|| {
            self.dirty.insert(ifindex);
            Interface {
                ifindex,
                name: name.to_owned(),
                addresses: Vec::new(),
                netns: PathBuf::new(),
            }
        });
    }

    fn forget(&mut self, ifindex: IfIndex) {
        let interface = self.interfaces.remove(&ifindex);
        self.unlist(interface.as_ref());
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

    fn unlist(&mut self, interface: Option<&Interface>) {
        let Some(interface) = interface else { return };
        for address in &interface.addresses {
            if let Some(all) = self.by_address.get_mut(address) {
                all.remove(&interface.ifindex);
                if all.is_empty() {
                    self.by_address.remove(address);
                }
            }
        }
    }

    /// An interface that is there.
    pub(super) fn interface(&self, ifindex: IfIndex) -> Option<&Interface> {
        self.interfaces.get(&ifindex)
    }

    /// Interfaces that lead to an address and whose pod nobody knows: those enclosed, and those
    /// left alone.
    pub(super) fn unclaimed(&self) -> Vec<Unclaimed> {
        let unowned = self
            .interfaces
            .values()
            .filter(|interface| !self.owners.contains_key(&interface.ifindex));
        unowned
            .map(|interface| Unclaimed {
                interface: interface.clone(),
                is_enclosed: self.enclosed.contains(&interface.ifindex),
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
        self.unreachable.iter().filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use agent_policy::model::{Change, Labels};

    use super::*;

    fn pod(name: &str, address: &str, node: &str) -> Pod {
        Pod {
            uid: PodUid(name.into()),
            name: ObjectName::new("shop", name),
            labels: Labels::new(),
            addresses: vec![address.parse().unwrap()],
            ports: Vec::new(),
            host_network: false,
            phase: Phase::Live,
            created: 0,
            node: node.to_owned(),
            workload: name.to_owned(),
            annotations: Labels::new(),
        }
    }

    /// Both sides of the join, and what it said so far.
    struct Join {
        cluster: Cluster,
        locals: Locals,
    }

    impl Join {
        fn new(node: Option<&str>) -> Self {
            Self {
                cluster: Cluster::new(),
                locals: Locals::new(node.map(str::to_owned)),
            }
        }

        fn change(&mut self, change: Change) -> Vec<String> {
            let touched = self.cluster.apply(change);
            self.locals.touch(&touched, &self.cluster);
            self.decide()
        }

        fn add(&mut self, pod: Pod) -> Vec<String> {
            self.change(Change::Pod(Box::new(pod)))
        }

        fn remove(&mut self, name: &str) -> Vec<String> {
            self.change(Change::PodGone(PodUid(name.into())))
        }

        fn see(&mut self, interfaces: &[(u32, &[&str])]) -> Vec<String> {
            self.see_vanish(interfaces, &[])
        }

        /// Nothing is seen inside namespaces, while these links are there.
        fn see_only_links(&mut self, links: &[u32]) -> Vec<String> {
            let links = links
                .iter()
                .map(|index| (IfIndex(*index), format!("veth{index}")));
            self.locals.sight(Sighting {
                interfaces: BTreeMap::new(),
                links: links.collect(),
                vanished: BTreeSet::new(),
                unreachable: Vec::new(),
                noticed: Instant::now(),
            });
            self.decide()
        }

        fn see_vanish(&mut self, interfaces: &[(u32, &[&str])], gone: &[u32]) -> Vec<String> {
            let interface = |(index, addresses): &(u32, &[&str])| Interface {
                ifindex: IfIndex(*index),
                name: format!("veth{index}"),
                addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
                netns: "/run/netns/x".into(),
            };
            let interfaces: Vec<Interface> = interfaces.iter().map(interface).collect();
            let links = interfaces.iter();
            self.locals.sight(Sighting {
                links: links
                    .map(|each| (each.ifindex, each.name.clone()))
                    .collect(),
                interfaces: interfaces
                    .into_iter()
                    .map(|each| (each.ifindex, each))
                    .collect(),
                vanished: gone.iter().map(|index| IfIndex(*index)).collect(),
                unreachable: Vec::new(),
                noticed: Instant::now(),
            });
            self.decide()
        }

        fn decide(&mut self) -> Vec<String> {
            let words = |decision| match decision {
                Decision::Enforce {
                    interface,
                    uid,
                    is_new,
                    ..
                } => {
                    let new = if is_new { " new" } else { "" };
                    format!("{} is {}{new}", interface.ifindex, uid.0)
                }
                Decision::Enclose(interface) => format!("{} enclosed", interface.ifindex),
                Decision::Orphan(ifindex) => format!("{ifindex} orphaned"),
                Decision::Remove(ifindex) => format!("{ifindex} removed"),
            };
            self.locals
                .decide(&self.cluster)
                .into_iter()
                .map(words)
                .collect()
        }
    }

    #[test]
    fn pod_and_interface_meet_whichever_comes_first() {
        let mut join = Join::new(None);
        assert!(join.see(&[(7, &["10.0.0.1"])]).is_empty());
        assert_eq!(join.add(pod("a", "10.0.0.1", "")), ["7 is a"]);
        assert!(join.add(pod("b", "10.0.0.2", "")).is_empty());
        assert_eq!(
            join.see(&[(7, &["10.0.0.1"]), (8, &["10.0.0.2"])]),
            ["8 is b new"]
        );
        assert!(
            join.see(&[(7, &["10.0.0.1"]), (8, &["10.0.0.2"])])
                .is_empty()
        );
    }

    #[test]
    fn interfaces_of_the_first_look_are_not_new_and_unknown_ones_are_left_alone() {
        let mut join = Join::new(None);
        join.add(pod("a", "10.0.0.1", ""));
        assert_eq!(
            join.see(&[(7, &["10.0.0.1"]), (9, &["10.9.9.9"])]),
            ["7 is a"]
        );
    }

    #[test]
    fn an_interface_that_comes_is_enclosed_until_its_pod_is_known() {
        let mut join = Join::new(None);
        assert!(join.see(&[(7, &["10.0.0.1"])]).is_empty());
        // Closed as soon as there is a link, before it has addresses.
        let seven: (u32, &[&str]) = (7, &["10.0.0.1"]);
        assert_eq!(join.see(&[seven, (8, &[])]), ["8 enclosed"]);
        assert!(join.see(&[seven, (8, &["10.0.0.2"])]).is_empty(), "once");
        let unclaimed: Vec<(u32, bool)> = join
            .locals
            .unclaimed()
            .iter()
            .map(|each| (each.interface.ifindex.0, each.is_enclosed))
            .collect();
        assert_eq!(unclaimed, [(7, false), (8, true)]);
        assert_eq!(join.add(pod("b", "10.0.0.2", "")), ["8 is b new"]);
        assert_eq!(join.add(pod("a", "10.0.0.1", "")), ["7 is a"]);
        assert!(join.locals.unclaimed().is_empty());
        // Never known, and gone.
        let both: &[(u32, &[&str])] = &[seven, (8, &["10.0.0.2"])];
        let third: &[(u32, &[&str])] = &[seven, (8, &["10.0.0.2"]), (9, &["10.0.0.3"])];
        assert_eq!(join.see(third), ["9 enclosed"]);
        assert_eq!(join.see(both), ["9 removed"]);
    }

    #[test]
    fn only_pods_of_the_named_node_are_local_and_host_network_pods_never() {
        let mut join = Join::new(Some("n1"));
        join.see(&[(7, &["10.0.0.1"]), (8, &["10.0.0.2"]), (9, &["10.0.0.3"])]);
        assert!(join.add(pod("a", "10.0.0.1", "n2")).is_empty());
        assert_eq!(join.add(pod("b", "10.0.0.2", "n1")), ["8 is b"]);
        let mut host = pod("c", "10.0.0.3", "n1");
        host.host_network = true;
        assert!(join.add(host).is_empty());
        assert_eq!(join.add(pod("b", "10.0.0.2", "n2")), ["8 orphaned"]);
    }

    #[test]
    fn a_replaced_interface_takes_the_pod_over() {
        let mut join = Join::new(None);
        join.add(pod("a", "10.0.0.1", ""));
        join.see(&[(7, &["10.0.0.1"])]);
        assert_eq!(join.see(&[(8, &["10.0.0.1"])]), ["7 removed", "8 is a new"]);
        // The same index again, between two looks.
        assert_eq!(
            join.see_vanish(&[(8, &["10.0.0.1"])], &[8]),
            ["8 removed", "8 is a new"]
        );
    }

    #[test]
    fn an_interface_whose_pod_object_went_is_orphaned_until_it_goes() {
        let mut join = Join::new(None);
        join.add(pod("a", "10.0.0.1", ""));
        join.see(&[(7, &["10.0.0.1"])]);
        assert_eq!(join.remove("a"), ["7 orphaned"]);
        assert!(join.see(&[(7, &["10.0.0.1"])]).is_empty());
        assert_eq!(join.see(&[]), ["7 removed"]);
    }

    #[test]
    fn an_address_given_to_another_pod_goes_with_the_interface() {
        let mut join = Join::new(None);
        join.add(pod("a", "10.0.0.1", ""));
        join.see(&[(7, &["10.0.0.1"])]);
        join.remove("a");
        assert_eq!(join.add(pod("b", "10.0.0.1", "")), ["7 is b"]);
    }

    #[test]
    fn a_terminating_pod_keeps_its_interface_and_a_completed_one_only_while_nobody_else_has_it() {
        let mut join = Join::new(None);
        join.add(pod("a", "10.0.0.1", ""));
        join.see(&[(7, &["10.0.0.1"])]);
        let mut ending = pod("a", "10.0.0.1", "");
        ending.phase = Phase::Terminating;
        assert_eq!(join.add(ending), ["7 is a"]);
        let mut newer = pod("b", "10.0.0.1", "");
        newer.created = 5;
        assert_eq!(join.add(newer), ["7 is a"]);
        let mut ended = pod("a", "10.0.0.1", "");
        ended.phase = Phase::Completed;
        assert_eq!(join.add(ended), ["7 is b"]);
    }

    #[test]
    fn an_address_that_a_pod_puts_on_its_interface_does_not_make_it_another() {
        let mut join = Join::new(None);
        join.add(pod("victim", "10.0.0.1", ""));
        join.add(pod("thief", "10.0.0.2", ""));
        join.see(&[(7, &["10.0.0.1"]), (8, &["10.0.0.2"])]);
        let both: &[&str] = &["10.0.0.1", "10.0.0.2"];
        assert_eq!(join.see(&[(7, &["10.0.0.1"]), (8, both)]), ["8 is thief"]);
        assert_eq!(
            join.see(&[(7, &["10.0.0.1"]), (8, &["10.0.0.1"])]),
            ["8 is thief"]
        );
        // Nor at first sight, while the victim's own interface is there.
        let mut join = Join::new(None);
        join.add(pod("victim", "10.0.0.1", ""));
        join.add(pod("thief", "10.0.0.2", ""));
        assert_eq!(
            join.see(&[(7, &["10.0.0.1"]), (8, both)]),
            ["7 is victim", "8 is thief"]
        );
    }

    #[test]
    fn what_an_earlier_agent_left_is_taken_up_orphaned_or_removed() {
        let mut join = Join::new(None);
        join.add(pod("a", "10.0.0.1", ""));
        for (index, uid) in [(7, "a"), (8, "gone"), (9, "b")] {
            join.locals.take_up(IfIndex(index), PodUid(uid.into()));
        }
        assert_eq!(
            join.see(&[(7, &["10.0.0.1"]), (8, &["10.0.0.2"])]),
            ["9 removed", "7 is a", "8 orphaned"]
        );
    }

    #[test]
    fn what_an_earlier_agent_left_is_kept_while_its_link_is_there_whatever_is_seen() {
        let mut join = Join::new(None);
        join.add(pod("a", "10.0.0.1", ""));
        for (index, uid) in [(7, "a"), (8, "gone"), (9, "b")] {
            join.locals.take_up(IfIndex(index), PodUid(uid.into()));
        }
        assert_eq!(
            join.see_only_links(&[1, 7, 8]),
            ["9 removed", "7 is a", "8 orphaned"]
        );
        // Seen after all: it is not new, so nothing is closed.
        assert_eq!(join.see(&[(7, &["10.0.0.1"])]), ["8 removed", "7 is a"]);
        assert!(join.see_only_links(&[1, 7]).is_empty());
        assert_eq!(join.see_only_links(&[1]), ["7 removed"]);
    }

    #[test]
    fn what_an_earlier_agent_enclosed_stays_so_until_its_pod_is_known_or_it_goes() {
        let mut join = Join::new(None);
        for index in [7, 8] {
            join.locals.take_up_enclosed(IfIndex(index));
        }
        assert_eq!(join.see(&[(7, &["10.0.0.1"])]), ["8 removed"]);
        let unclaimed = join.locals.unclaimed();
        assert!(unclaimed.iter().all(|each| each.is_enclosed) && unclaimed.len() == 1);
        assert_eq!(join.add(pod("a", "10.0.0.1", "")), ["7 is a"]);
    }

    #[test]
    fn an_orphans_object_that_comes_back_finds_its_interface_by_identity() {
        let mut join = Join::new(None);
        join.locals.take_up(IfIndex(7), PodUid("a".into()));
        assert_eq!(join.see_only_links(&[7]), ["7 orphaned"]);
        assert_eq!(join.add(pod("a", "10.0.0.1", "")), ["7 is a"]);
    }

    #[test]
    fn a_pod_that_is_reachable_by_macvlan_only_is_reported() {
        let mut join = Join::new(None);
        join.add(pod("a", "10.0.0.1", ""));
        let place = Unreachable {
            netns: "/run/netns/x".into(),
            interface: "net1".to_owned(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            why: "a macvlan interface".to_owned(),
        };
        join.locals.sight(Sighting {
            interfaces: BTreeMap::new(),
            links: BTreeMap::new(),
            vanished: BTreeSet::new(),
            unreachable: vec![place],
            noticed: Instant::now(),
        });
        let unenforced = join.locals.unenforced(&join.cluster);
        let pods: Vec<String> = unenforced.iter().map(|each| each.pod.to_string()).collect();
        assert_eq!(pods, ["shop/a"]);
    }
}
