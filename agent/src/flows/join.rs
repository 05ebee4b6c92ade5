//! A judgement joined with names: addresses, slots and rule ids to pods, workloads and rules, and
//! for refusals, what isolates the endpoint and which rule comes nearest.

use std::net::IpAddr;
use std::sync::Arc;

use agent_common::{Direction, RuleId, Verdict};
use agent_policy::cluster::Cluster;
use agent_policy::evaluate::Packet;
use agent_policy::model::Pod;

use super::decode::{Cause, Observation};
use crate::answer;
use crate::dto::{Decision, Flow, Party};

/// What names are taken from: the state of the loop at this moment.
pub trait Names {
    /// The objects.
    fn cluster(&self) -> &Cluster;
    /// The pod a slot belongs to.
    fn pod_of_slot(&self, slot: u32) -> Option<Arc<Pod>>;
    /// The pod behind a host-side interface.
    fn pod_of_interface(&self, ifindex: u32) -> Option<Arc<Pod>>;
    /// Whether programs of this node judge, and so report, what arrives at the pod.
    fn judges_arrivals_at(&self, pod: &Pod) -> bool;
    /// `namespace/policy/ingress/0`.
    fn rule(&self, rule: RuleId) -> Option<String>;
    /// This node's name.
    fn node(&self) -> Option<&str>;
}

/// The pod's side of something the kernel saw.
pub fn local_pod(names: &impl Names, slot: u32, address: IpAddr) -> Option<Arc<Pod>> {
    names
        .pod_of_slot(slot)
        .or_else(|| names.cluster().owner_of(address).map(Arc::clone))
}

/// The other side of something the kernel saw.
pub fn peer_party(names: &impl Names, via: u32, address: IpAddr) -> Party {
    let pod = (via != 0)
        .then(|| names.pod_of_interface(via))
        .flatten()
        .or_else(|| names.cluster().owner_of(address).map(Arc::clone));
    match pod {
        Some(pod) => answer::pod_party(&pod),
        None => answer::address_party(names.cluster(), address),
    }
}

/// The rule as people know it; ids that are no longer known stay ids.
pub fn rule_text(names: &impl Names, rule: RuleId) -> Option<String> {
    (rule != RuleId::NONE).then(|| {
        names
            .rule(rule)
            .unwrap_or_else(|| format!("rule-{}", rule.0))
    })
}

/// Puts names to an observation made at `time`. `None` for what may leave one pod of this node for
/// another: it is one connection, and the other pod's programs have the last word on it.
pub fn join(names: &impl Names, observation: &Observation, time: jiff::Timestamp) -> Option<Flow> {
    if is_judged_again(names, observation) {
        return None;
    }
    let pod = local_pod(names, observation.slot, observation.local);
    let local = pod.as_ref().map_or_else(
        || answer::address_party(names.cluster(), observation.local),
        |pod| Party {
            ip: Some(observation.local.to_string()),
            ..answer::pod_party(pod)
        },
    );
    let peer = Party {
        ip: Some(observation.peer.to_string()),
        ..peer_party(names, observation.via, observation.peer)
    };
    let verdict = observation.cause.verdict();
    let mut decision = Decision {
        direction: observation.direction.into(),
        at: match observation.direction {
            Direction::Ingress => "destination",
            Direction::Egress => "source",
        }
        .to_owned(),
        reason: observation.cause.label(),
        rule: rule_text(names, observation.rule),
        revision: observation.revision.to_string(),
        node: names.node().map(str::to_owned),
        isolated_by: Vec::new(),
        nearest: Vec::new(),
    };
    if is_about_rules(observation.cause) {
        let (from, to) = match observation.direction {
            Direction::Ingress => (observation.peer, observation.local),
            Direction::Egress => (observation.local, observation.peer),
        };
        let packet = Packet {
            from,
            to,
            protocol: observation.protocol,
            port: observation.port.unwrap_or_default(),
        };
        let judgement = answer::judgement_of(names.cluster(), &packet, observation.direction);
        decision.isolated_by = judgement
            .isolated_by
            .into_iter()
            .map(|each| each.policy)
            .collect();
        decision.nearest = judgement.nearest;
    }
    let (from, to) = match observation.direction {
        Direction::Ingress => (peer, local),
        Direction::Egress => (local, peer),
    };
    Some(Flow {
        time: time.to_string(),
        from,
        from_port: observation.from_port,
        to,
        protocol: observation.protocol.to_string(),
        port: observation.port,
        verdict: verdict.into(),
        decision,
        packets: observation.packets,
    })
}

fn is_judged_again(names: &impl Names, observation: &Observation) -> bool {
    observation.direction == Direction::Egress
        && observation.cause.verdict() == Verdict::Allow
        && names
            .cluster()
            .owner_of(observation.peer)
            .is_some_and(|peer| names.judges_arrivals_at(peer))
}

/// True for verdicts that policies and their rules explain.
fn is_about_rules(cause: Cause) -> bool {
    match cause {
        Cause::Known(reason) => {
            reason.verdict() != Verdict::Allow
                && matches!(
                    reason,
                    agent_common::Reason::IsolatedNoRule
                        | agent_common::Reason::DenyRule
                        | agent_common::Reason::ServiceNone
                        | agent_common::Reason::ServiceUnseen
                        | agent_common::Reason::WouldDeny
                )
        }
        Cause::Unknown(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use agent_common::Reason;
    use agent_policy::model::{
        Change, Labels, Node, ObjectName, Peers, PodUid, Policy, Ports, Protocol, Rule,
    };
    use agent_policy::selector::Selector;

    use super::*;
    use crate::dto::{DirectionWord, VerdictWord};

    struct Known {
        cluster: Cluster,
        /// Programs judge what arrives at portal-1.
        arrivals: bool,
    }

    impl Names for Known {
        fn cluster(&self) -> &Cluster {
            &self.cluster
        }
        fn pod_of_slot(&self, slot: u32) -> Option<Arc<Pod>> {
            (slot == 3).then(|| {
                Arc::clone(
                    self.cluster
                        .pod_named(&ObjectName::new("shop", "api-1"))
                        .unwrap(),
                )
            })
        }
        fn pod_of_interface(&self, ifindex: u32) -> Option<Arc<Pod>> {
            (ifindex == 9).then(|| {
                Arc::clone(
                    self.cluster
                        .pod_named(&ObjectName::new("web", "portal-1"))
                        .unwrap(),
                )
            })
        }
        fn judges_arrivals_at(&self, pod: &Pod) -> bool {
            self.arrivals && &*pod.name.name == "portal-1"
        }
        fn rule(&self, rule: RuleId) -> Option<String> {
            (rule.0 == 7).then(|| "shop/allow-web/ingress/0".to_owned())
        }
        fn node(&self) -> Option<&str> {
            Some("node-a")
        }
    }

    /// Two pods of node-a, which is 192.0.2.7; api-1 is isolated.
    fn known() -> Known {
        let pod = |namespace: &str, name: &str, workload: &str, last: u8| {
            Change::Pod(Box::new(Pod {
                labels: Labels::from([("app".to_owned(), workload.to_owned())]),
                addresses: vec![IpAddr::from([10, 0, 0, last])],
                node: "node-a".into(),
                workload: format!("Deployment/{workload}").into(),
                ..Pod::new(
                    PodUid(format!("{namespace}/{name}").into()),
                    ObjectName::new(namespace, name),
                )
            }))
        };
        let mut cluster = Cluster::new();
        for change in [
            pod("shop", "api-1", "api", 1),
            pod("web", "portal-1", "portal", 2),
            Change::Node(Node {
                name: "node-a".into(),
                labels: Labels::new(),
                addresses: vec![IpAddr::from([192, 0, 2, 7])],
                pod_cidrs: Vec::new(),
            }),
            Change::Policy(Box::new(Policy {
                name: ObjectName::new("shop", "default-deny"),
                pods: Selector::EVERYTHING,
                isolates_ingress: true,
                isolates_egress: false,
                ingress: vec![Rule {
                    peers: Peers::Any(Vec::new()),
                    ports: Ports::All,
                }],
                egress: Vec::new(),
                annotations: Labels::new(),
            })),
        ] {
            drop(cluster.apply(change));
        }
        Known {
            cluster,
            arrivals: false,
        }
    }

    fn observation(cause: Reason) -> Observation {
        Observation {
            direction: Direction::Ingress,
            cause: Cause::Known(cause),
            local: IpAddr::from([10, 0, 0, 1]),
            peer: IpAddr::from([10, 0, 0, 2]),
            from_port: Some(40_000),
            port: Some(8080),
            protocol: Protocol::TCP,
            slot: 3,
            via: 0,
            rule: RuleId::NONE,
            revision: 9,
            packets: 1,
        }
    }

    #[test]
    fn a_refusal_names_both_ends_and_what_isolates() {
        let flow = join(
            &known(),
            &observation(Reason::IsolatedNoRule),
            jiff::Timestamp::UNIX_EPOCH,
        )
        .unwrap();
        assert_eq!(flow.from.to_string(), "web/portal-1");
        assert_eq!(flow.to.to_string(), "shop/api-1");
        assert_eq!(flow.verdict, VerdictWord::Deny);
        assert_eq!(flow.decision.isolated_by, ["shop/default-deny"]);
        assert_eq!(flow.decision.direction, DirectionWord::Ingress);
        assert_eq!(flow.decision.at, "destination");
        assert_eq!(flow.time, "1970-01-01T00:00:00Z");
    }

    #[test]
    fn an_allowed_flow_names_its_rule_and_egress_turns_the_ends() {
        let flow = join(
            &known(),
            &Observation {
                rule: RuleId(7),
                direction: Direction::Egress,
                ..observation(Reason::Rule)
            },
            jiff::Timestamp::UNIX_EPOCH,
        )
        .unwrap();
        assert_eq!(
            flow.decision.rule.as_deref(),
            Some("shop/allow-web/ingress/0")
        );
        assert_eq!(flow.from.to_string(), "shop/api-1");
        assert_eq!(flow.decision.at, "source");
        assert!(
            flow.decision.isolated_by.is_empty(),
            "only refusals are explained"
        );
    }

    #[test]
    fn a_connection_between_two_pods_here_is_told_once_by_the_one_it_reaches() {
        let leaving = |cause| Observation {
            direction: Direction::Egress,
            ..observation(cause)
        };
        let told = |arrivals, observation: &Observation| {
            let known = Known {
                arrivals,
                ..known()
            };
            join(&known, observation, jiff::Timestamp::UNIX_EPOCH).is_some()
        };
        assert!(!told(true, &leaving(Reason::NotIsolated)));
        assert!(
            told(true, &leaving(Reason::IsolatedNoRule)),
            "a refusal never arrives"
        );
        assert!(
            told(false, &leaving(Reason::NotIsolated)),
            "nobody judges it again"
        );
        assert!(told(true, &observation(Reason::NotIsolated)));
    }

    #[test]
    fn a_masqueraded_local_pod_is_named_and_strangers_are_addresses() {
        let hidden = Observation {
            via: 9,
            peer: IpAddr::from([192, 0, 2, 1]),
            ..observation(Reason::Rule)
        };
        let flow = join(&known(), &hidden, jiff::Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(flow.from.to_string(), "web/portal-1");
        assert_eq!(
            flow.from.ip.as_deref(),
            Some("192.0.2.1"),
            "as the packet shows it"
        );
        let stranger = Observation {
            peer: IpAddr::from([192, 0, 2, 1]),
            ..observation(Reason::Rule)
        };
        let flow = join(&known(), &stranger, jiff::Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(flow.from.to_string(), "192.0.2.1");
    }

    #[test]
    fn what_was_refused_under_the_nodes_address_is_explained_by_that_address() {
        let forwarded = Observation {
            peer: IpAddr::from([192, 0, 2, 7]),
            ..observation(Reason::IsolatedNoRule)
        };
        let flow = join(&known(), &forwarded, jiff::Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(flow.from.to_string(), "node:node-a");
        assert_eq!(flow.decision.nearest.len(), 1, "not let in as its own node");
    }

    #[test]
    fn a_rule_that_is_no_longer_known_keeps_its_number() {
        assert_eq!(rule_text(&known(), RuleId(8)), Some("rule-8".to_owned()));
        assert_eq!(rule_text(&known(), RuleId::NONE), None);
    }
}
