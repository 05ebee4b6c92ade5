//! How long new pods wait: from the first sign of their interface to their policy being in force.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use super::{Endpoint, EndpointState, Histogram};
use crate::endpoints::{IfIndex, Sighting};

/// Interfaces that came while the agent was looking.
#[derive(Debug, Default)]
pub(super) struct Newcomers {
    known: HashSet<IfIndex>,
    /// Those not in force yet, with when they were noticed.
    waiting: HashMap<IfIndex, Instant>,
    has_looked: bool,
}

impl Newcomers {
    /// Takes a sighting in. What is there at the first one did not wait for this agent.
    pub(super) fn sight(&mut self, sighting: &Sighting) {
        let is_there = |ifindex: &IfIndex| {
            sighting.links.contains_key(ifindex) && !sighting.vanished.contains(ifindex)
        };
        self.known.retain(is_there);
        self.waiting.retain(|ifindex, _| is_there(ifindex));
        for ifindex in sighting.links.keys() {
            if self.known.insert(*ifindex) && self.has_looked {
                self.waiting.insert(*ifindex, sighting.noticed);
            }
        }
        self.has_looked = true;
    }

    /// Counts those whose policy is in force now.
    pub(super) fn arrive(
        &mut self,
        endpoints: &BTreeMap<IfIndex, Endpoint>,
        waited: &mut Histogram,
    ) {
        self.waiting.retain(|ifindex, since| {
            let endpoint = endpoints.get(ifindex);
            let is_in_force =
                endpoint.is_some_and(|endpoint| endpoint.state == EndpointState::Enforced);
            if is_in_force {
                waited.observe(since.elapsed());
            }
            !is_in_force
        });
    }
}

#[cfg(test)]
mod tests {
    use agent_policy::model::{ObjectName, PodUid};

    use super::*;
    use crate::endpoints::Interface;

    fn sighting(links: &[u32], vanished: &[u32]) -> Sighting {
        Sighting {
            interfaces: BTreeMap::new(),
            links: links
                .iter()
                .map(|ifindex| (IfIndex(*ifindex), format!("veth{ifindex}")))
                .collect(),
            vanished: vanished.iter().copied().map(IfIndex).collect(),
            unreachable: Vec::new(),
            noticed: Instant::now(),
        }
    }

    fn endpoint(ifindex: u32, state: EndpointState) -> (IfIndex, Endpoint) {
        let interface = Interface {
            ifindex: IfIndex(ifindex),
            name: format!("veth{ifindex}"),
            addresses: Vec::new(),
            inside: "eth0".to_owned(),
            netns: std::path::PathBuf::new(),
            sandbox: None,
        };
        let endpoint = Endpoint {
            interface,
            uid: PodUid("u".into()),
            pod: ObjectName::new("shop", "api"),
            state,
        };
        (IfIndex(ifindex), endpoint)
    }

    #[test]
    fn a_new_pod_is_counted_once_when_its_policy_is_in_force() {
        let mut newcomers = Newcomers::default();
        let mut waited = Histogram::default();
        newcomers.sight(&sighting(&[1, 2], &[]));
        newcomers.sight(&sighting(&[1, 2, 3], &[]));
        let all = |state: EndpointState| {
            [1, 2, 3]
                .map(|ifindex| endpoint(ifindex, state.clone()))
                .into()
        };
        newcomers.arrive(&all(EndpointState::Pending), &mut waited);
        assert_eq!(waited.count(), 0);
        for _twice in 0..2 {
            newcomers.arrive(&all(EndpointState::Enforced), &mut waited);
            assert_eq!(waited.count(), 1, "those there at the start did not wait");
        }
        // Its index is another pod's now.
        newcomers.sight(&sighting(&[1, 2, 3], &[3]));
        newcomers.arrive(&all(EndpointState::Enforced), &mut waited);
        assert_eq!(waited.count(), 2);
    }
}
