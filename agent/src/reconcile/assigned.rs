//! Local pods' addresses as the container runtime assigned them: known before the pod's first packet,
//! while its object states them some time after. Objects pass through here on their way to the
//! engine; a local pod's comes out with the addresses that its interface was made with.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use agent_policy::cluster::Cluster;
use agent_policy::model::{Change, Pod, PodUid};

use crate::endpoints::{IfIndex, Interface, Sandbox};

/// What the runtime assigned, and what objects say of the same pods.
#[derive(Debug, Default)]
pub(super) struct Assigned {
    by_pod: HashMap<PodUid, Vec<IpAddr>>,
    /// What the object states, of pods that it is kept from.
    stated: HashMap<PodUid, Vec<IpAddr>>,
}

impl Assigned {
    /// An object's change as the engine shall see it.
    pub(super) fn over(&mut self, mut change: Change) -> Change {
        match &mut change {
            Change::Pod(pod) => {
                if let Some(assigned) = self.by_pod.get(&pod.uid) {
                    let stated = std::mem::replace(&mut pod.addresses, assigned.clone());
                    self.stated.insert(pod.uid.clone(), stated);
                }
            }
            Change::PodGone(uid) => {
                self.stated.remove(uid);
            }
            Change::Namespace(_)
            | Change::NamespaceGone(_)
            | Change::Node(_)
            | Change::NodeGone(_)
            | Change::Policy(_)
            | Change::PolicyGone(_)
            | Change::Service(_)
            | Change::ServiceGone(_)
            | Change::EndpointSlice(_)
            | Change::EndpointSliceGone(_) => {}
        }
        change
    }

    /// Interfaces were looked at: what that changes of pods whose objects are known.
    pub(super) fn sight(
        &mut self,
        interfaces: &BTreeMap<IfIndex, Interface>,
        cluster: &Cluster,
    ) -> Vec<Change> {
        let sandboxes = interfaces.values();
        let sandboxes = sandboxes.filter_map(|interface| interface.sandbox.as_ref());
        let assigned: HashMap<PodUid, Vec<IpAddr>> = sandboxes
            .filter(|sandbox| !sandbox.addresses.is_empty())
            .map(|Sandbox { uid, addresses, .. }| (uid.clone(), addresses.clone()))
            .collect();
        let before = std::mem::replace(&mut self.by_pod, assigned);
        let mut changes = Vec::new();
        for (uid, addresses) in &self.by_pod {
            if before.get(uid) == Some(addresses) {
                continue;
            }
            if let Some(pod) = cluster.pod(uid) {
                if !before.contains_key(uid) {
                    self.stated.insert(uid.clone(), pod.addresses.clone());
                }
                changes.push(readdressed(pod, addresses));
            }
        }
        for uid in before.keys().filter(|uid| !self.by_pod.contains_key(*uid)) {
            let stated = self.stated.remove(uid).unwrap_or_default();
            if let Some(pod) = cluster.pod(uid) {
                changes.push(readdressed(pod, &stated));
            }
        }
        changes
    }
}

fn readdressed(pod: &Pod, addresses: &[IpAddr]) -> Change {
    Change::Pod(Box::new(Pod {
        addresses: addresses.to_vec(),
        ..pod.clone()
    }))
}

#[cfg(test)]
mod tests {
    use agent_policy::model::ObjectName;

    use super::*;

    /// Objects and interfaces in the order in which they are told.
    #[derive(Default)]
    struct Told {
        assigned: Assigned,
        cluster: Cluster,
    }

    impl Told {
        fn object(&mut self, addresses: &[&str]) {
            let mut pod = Pod::new(PodUid("u-1".into()), ObjectName::new("shop", "api"));
            pod.addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
            self.apply(Change::Pod(Box::new(pod)));
        }

        fn apply(&mut self, change: Change) {
            self.cluster.apply(self.assigned.over(change));
        }

        fn interfaces(&mut self, made_for: &[&str]) {
            let interface = Interface {
                ifindex: IfIndex(7),
                name: "veth7".to_owned(),
                addresses: Vec::new(),
                inside: "eth0".to_owned(),
                netns: "/run/netns/x".into(),
                sandbox: Some(Sandbox {
                    uid: PodUid("u-1".into()),
                    pod: ObjectName::new("shop", "api"),
                    addresses: made_for.iter().map(|a| a.parse().unwrap()).collect(),
                }),
            };
            let interfaces = BTreeMap::from([(interface.ifindex, interface)]);
            for change in self.assigned.sight(&interfaces, &self.cluster) {
                self.cluster.apply(change);
            }
        }

        fn no_interfaces(&mut self) {
            for change in self.assigned.sight(&BTreeMap::new(), &self.cluster) {
                self.cluster.apply(change);
            }
        }

        fn addresses(&self) -> Vec<String> {
            let pod = self.cluster.pod(&PodUid("u-1".into())).unwrap();
            pod.addresses.iter().map(ToString::to_string).collect()
        }
    }

    #[test]
    fn what_the_runtime_assigned_counts_whichever_comes_first_and_ends_with_the_interface() {
        for is_object_first in [true, false] {
            let mut told = Told::default();
            if is_object_first {
                told.object(&[]);
                told.interfaces(&["10.0.0.7"]);
            } else {
                told.interfaces(&["10.0.0.7"]);
                told.object(&[]);
            }
            assert_eq!(told.addresses(), ["10.0.0.7"], "{is_object_first}");
            // A sandbox made anew, of which the object still states the first one's.
            told.interfaces(&["10.0.0.8"]);
            told.object(&["10.0.0.7"]);
            assert_eq!(told.addresses(), ["10.0.0.8"], "{is_object_first}");
            told.no_interfaces();
            assert_eq!(told.addresses(), ["10.0.0.7"], "{is_object_first}");
            told.object(&["10.0.0.9"]);
            assert_eq!(told.addresses(), ["10.0.0.9"], "{is_object_first}");
        }
    }

    #[test]
    fn a_result_without_addresses_takes_none_away() {
        let mut told = Told::default();
        told.object(&["10.0.0.7"]);
        told.interfaces(&[]);
        assert_eq!(told.addresses(), ["10.0.0.7"]);
    }

    #[test]
    fn a_pod_that_went_while_its_interface_stayed_leaves_nothing_to_come_back() {
        let mut told = Told::default();
        told.object(&["10.0.0.7"]);
        told.interfaces(&["10.0.0.7"]);
        told.apply(Change::PodGone(PodUid("u-1".into())));
        assert!(told.assigned.stated.is_empty());
        told.no_interfaces();
        assert!(told.cluster.pod(&PodUid("u-1".into())).is_none());
    }
}
