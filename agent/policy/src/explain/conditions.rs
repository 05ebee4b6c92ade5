//! A rule as a list of conditions, each tried on a packet; the rules that come nearest.

use std::sync::Arc;

use super::{Kind, words};
use crate::cluster::Cluster;
use crate::evaluate::Flow;
use crate::model::{
    Direction, NamespaceScope, Peer, Peers, Pod, Policy, PortMatch, Ports, Rule, RuleRef,
};
use crate::selector::Selector;

/// One condition of a rule: what it wants, and who has what instead.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Condition {
    /// What it is about.
    pub kind: Kind,
    /// True when it holds.
    pub is_met: bool,
    /// What the rule wants: `app=case-api`, `TCP/8080`, `10.0.0.0/8`.
    pub wants: String,
    /// Who was looked at: a namespace, a pod, an address; empty for the packet itself.
    pub subject: String,
    /// What is there: `app=portal`, `TCP/9090`.
    pub has: String,
}

/// A rule that does not admit a packet, and how far it is from it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NearRule {
    /// The rule.
    pub rule: RuleRef,
    /// Its conditions; of several peers or ports those of the nearest.
    pub conditions: Vec<Condition>,
    /// Letters of labels that would have to change.
    pub edits: usize,
}

impl NearRule {
    /// How many conditions fail.
    pub fn failed(&self) -> usize {
        let mut failed = 0;
        for condition in &self.conditions {
            failed += usize::from(!condition.is_met);
        }
        failed
    }
}

/// Conditions, and the letters of labels that would have to change.
#[derive(Default)]
struct Tried {
    conditions: Vec<Condition>,
    edits: usize,
}

impl Tried {
    fn failed(&self) -> usize {
        let failed = self.conditions.iter().filter(|it| !it.is_met);
        failed.count()
    }

    fn add(
        &mut self,
        kind: Kind,
        is_met: bool,
        wants: impl Into<String>,
        subject: impl Into<String>,
        has: impl Into<String>,
    ) {
        self.conditions.push(Condition {
            kind,
            is_met,
            wants: wants.into(),
            subject: subject.into(),
            has: has.into(),
        });
    }

    fn nearest(all: impl Iterator<Item = Self>) -> Option<Self> {
        all.min_by_key(|tried| (tried.failed(), tried.edits))
    }
}

/// Every rule that might have been meant for the packet, nearest first: those of the policies
/// that isolate the endpoint, and those of policies that come close to selecting it or that only
/// leave the direction out of their `policyTypes`.
pub(super) fn nearest(
    cluster: &Cluster,
    flow: &Flow<'_>,
    endpoint: &Pod,
    direction: Direction,
) -> Vec<NearRule> {
    let mut near: Vec<NearRule> = cluster
        .policies_in(&endpoint.name.namespace)
        .filter(|policy| is_candidate(policy, endpoint))
        .flat_map(|policy| rules_of(flow, endpoint, direction, policy))
        .collect();
    near.sort_by(|a, b| {
        let key = |near: &NearRule| (near.failed(), near.edits);
        key(a).cmp(&key(b)).then_with(|| a.rule.cmp(&b.rule))
    });
    near
}

fn is_candidate(policy: &Policy, endpoint: &Pod) -> bool {
    policy.pods.selects(&endpoint.labels) || words::is_near_miss(&policy.pods, &endpoint.labels)
}

fn rules_of<'a>(
    flow: &'a Flow<'a>,
    endpoint: &'a Pod,
    direction: Direction,
    policy: &'a Arc<Policy>,
) -> impl Iterator<Item = NearRule> + 'a {
    (0..)
        .zip(policy.rules(direction))
        .map(move |(index, rule)| {
            let reference = RuleRef {
                policy: policy.name.clone(),
                direction,
                index,
            };
            of_rule(flow, endpoint, policy, reference, rule)
        })
}

/// Tries every condition of a rule.
pub(super) fn of_rule(
    flow: &Flow<'_>,
    endpoint: &Pod,
    policy: &Policy,
    reference: RuleRef,
    rule: &Rule,
) -> NearRule {
    let mut tried = Tried::default();
    if !policy.isolates(reference.direction) {
        tried.add(
            Kind::Direction,
            false,
            format!("policyTypes with {}", type_word(reference.direction)),
            policy.name.to_string(),
            format!("only {}", type_word(reference.direction.opposite())),
        );
    }
    if !policy.pods.selects(&endpoint.labels) {
        tried.add(
            Kind::Selects,
            false,
            policy.pods.to_string(),
            endpoint.name.to_string(),
            words::labels(&endpoint.labels, &policy.pods),
        );
        tried.edits += words::edits(&policy.pods, &endpoint.labels);
    }
    if *rule == Rule::NOTHING {
        tried.add(
            Kind::Readable,
            false,
            "a rule that can be read",
            reference.to_string(),
            "it allows nothing until it is mended",
        );
    } else {
        for part in [ports(flow, &rule.ports), peers(flow, policy, &rule.peers)] {
            tried.edits += part.edits;
            tried.conditions.extend(part.conditions);
        }
    }
    NearRule {
        rule: reference,
        conditions: tried.conditions,
        edits: tried.edits,
    }
}

const fn type_word(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "Ingress",
        Direction::Egress => "Egress",
    }
}

fn ports(flow: &Flow<'_>, ports: &Ports) -> Tried {
    match ports {
        Ports::All => {
            let mut tried = Tried::default();
            tried.add(Kind::Port, true, "any port", "", port_text(flow));
            tried
        }
        Ports::Any(ports) => {
            let all = ports.iter().map(|port| port_item(flow, port));
            Tried::nearest(all).unwrap_or_else(|| {
                let mut tried = Tried::default();
                tried.add(Kind::Port, false, "no port at all", "", port_text(flow));
                tried
            })
        }
    }
}

fn port_item(flow: &Flow<'_>, port: &PortMatch) -> Tried {
    let mut tried = Tried::default();
    let protocol = match port {
        PortMatch::Protocol(protocol)
        | PortMatch::Range { protocol, .. }
        | PortMatch::Named { protocol, .. } => *protocol,
    };
    if flow.protocol != protocol {
        let has = flow.protocol.to_string();
        tried.add(Kind::Protocol, false, protocol.to_string(), "", has);
    }
    // The port is tried as if the protocol were right, so that only what is wrong is said.
    let as_if = Flow { protocol, ..*flow };
    let is_met = as_if.is_port(port);
    match port {
        PortMatch::Protocol(_) => {
            let wants = format!("any {protocol} port");
            tried.add(Kind::Port, is_met, wants, "", port_text(flow));
        }
        PortMatch::Range { first, last, .. } => {
            let wants = if first == last {
                format!("{protocol}/{first}")
            } else {
                format!("{protocol}/{first}-{last}")
            };
            tried.add(Kind::Port, is_met, wants, "", port_text(flow));
        }
        PortMatch::Named { name, .. } => {
            let (subject, has) = match flow.destination {
                None => (
                    flow.address.to_string(),
                    "is no pod: no port names".to_owned(),
                ),
                Some(pod) => (pod.name.to_string(), names_text(flow, pod, port)),
            };
            let wants = format!("{protocol} port {name:?}");
            tried.add(Kind::NamedPort, is_met, wants, subject, has);
        }
    }
    tried
}

fn port_text(flow: &Flow<'_>) -> String {
    if flow.protocol.has_ports() {
        format!("{}/{}", flow.protocol, flow.port)
    } else {
        flow.protocol.to_string()
    }
}

fn names_text(flow: &Flow<'_>, pod: &Pod, wanted: &PortMatch) -> String {
    let PortMatch::Named { protocol, name } = wanted else {
        return String::new();
    };
    let numbers: Vec<String> = pod
        .ports
        .iter()
        .filter(|port| port.name == *name && port.protocol == *protocol)
        .map(|port| port.port.to_string())
        .collect();
    if numbers.is_empty() {
        format!("declares none of that name, asked for {}", port_text(flow))
    } else {
        let numbers = numbers.join(", ");
        format!("declares it as {numbers}, asked for {}", port_text(flow))
    }
}

fn peers(flow: &Flow<'_>, policy: &Policy, peers: &Peers) -> Tried {
    let whole = |is_met: bool, wants: &str| {
        let mut tried = Tried::default();
        tried.add(Kind::Pod, is_met, wants, "", peer_name(flow));
        tried
    };
    match peers {
        Peers::All => whole(true, "anyone"),
        Peers::Any(peers) => {
            let all = peers.iter().map(|peer| peer_item(flow, policy, peer));
            Tried::nearest(all).unwrap_or_else(|| whole(false, "nobody"))
        }
    }
}

fn peer_name(flow: &Flow<'_>) -> String {
    flow.peer
        .map_or_else(|| flow.address.to_string(), |pod| pod.name.to_string())
}

fn peer_item(flow: &Flow<'_>, policy: &Policy, peer: &Peer) -> Tried {
    let mut tried = Tried::default();
    match peer {
        Peer::Pods { namespaces, pods } => {
            let everywhere = Selector::EVERYTHING;
            let asked = match namespaces {
                NamespaceScope::Own => &everywhere,
                NamespaceScope::Selected(selector) => selector,
            };
            let wants = match namespaces {
                NamespaceScope::Own => policy.name.namespace.to_string(),
                NamespaceScope::Selected(selector) => words::selected(selector, "any namespace"),
            };
            let Some(pod) = flow.peer else {
                let address = flow.address.to_string();
                let wants = format!("{} in {wants}", words::selected(pods, "any pod"));
                tried.add(Kind::Pod, false, wants, address, "is no pod");
                // Further away than any label.
                tried.edits = usize::from(u16::MAX);
                return tried;
            };
            let namespace = flow.cluster.namespace(&pod.name.namespace);
            let is_met = flow.is_in_scope(policy, namespaces, pod);
            let has = match (namespaces, namespace) {
                (NamespaceScope::Selected(selector), Some(namespace)) => {
                    words::labels(&namespace.labels, selector)
                }
                (NamespaceScope::Own, _) | (_, None) => pod.name.namespace.to_string(),
            };
            let subject = pod.name.namespace.to_string();
            tried.add(Kind::Namespace, is_met, wants, subject, has);
            if !is_met {
                tried.edits += namespace.map_or(0, |it| words::edits(asked, &it.labels));
            }
            tried.add(
                Kind::Pod,
                pods.selects(&pod.labels),
                words::selected(pods, "any pod"),
                pod.name.to_string(),
                words::labels(&pod.labels, pods),
            );
            tried.edits += words::edits(pods, &pod.labels);
        }
        Peer::Block { cidr, except } => {
            let address = flow.address.to_string();
            let is_inside = cidr.contains(&flow.address);
            let name = peer_name(flow);
            tried.add(
                Kind::IpBlock,
                is_inside,
                cidr.to_string(),
                name.clone(),
                address.clone(),
            );
            let hole = except.iter().find(|hole| hole.contains(&flow.address));
            if let Some(hole) = hole.filter(|_| is_inside) {
                tried.add(Kind::Except, false, format!("not in {hole}"), name, address);
            }
            if !is_inside {
                tried.edits = usize::from(u16::MAX);
            }
        }
    }
    tried
}
