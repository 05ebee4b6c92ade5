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
    /// Whose `has` is: a namespace, a pod; empty where `has` speaks for itself.
    pub subject: String,
    /// What is there: `app=portal`, `TCP/9090`, `10.0.0.9 is no pod`.
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
            "",
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
            let has = match flow.destination {
                None => format!("{} is no pod and names no ports", flow.address),
                Some(pod) => names_text(flow, pod, port),
            };
            let wants = format!("{protocol} port {name:?}");
            tried.add(Kind::NamedPort, is_met, wants, "", has);
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
    let declares = match numbers.as_slice() {
        [] => "declares none of that name".to_owned(),
        numbers => format!("declares it as {}", numbers.join(", ")),
    };
    format!("{} {declares}, asked for {}", pod.name, port_text(flow))
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
                let wants = format!("{} in {wants}", words::selected(pods, "any pod"));
                let has = format!("{} is no pod", flow.address);
                tried.add(Kind::Pod, false, wants, "", has);
                // Further away than any label.
                tried.edits = usize::from(u16::MAX);
                return tried;
            };
            let namespace = flow.cluster.namespace(&pod.name.namespace);
            let is_met = flow.is_in_scope(policy, namespaces, pod);
            let (subject, has) = match (namespaces, namespace) {
                (NamespaceScope::Selected(selector), Some(namespace)) => (
                    pod.name.namespace.to_string(),
                    words::labels(&namespace.labels, selector),
                ),
                (NamespaceScope::Own, _) | (_, None) => {
                    let is_in = format!("{} is in {}", pod.name, pod.name.namespace);
                    (String::new(), is_in)
                }
            };
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
            let name = flow
                .peer
                .map_or_else(String::new, |pod| pod.name.to_string());
            tried.add(
                Kind::IpBlock,
                is_inside,
                cidr.to_string(),
                name.clone(),
                address.clone(),
            );
            let hole = except.iter().find(|hole| hole.contains(&flow.address));
            if let Some(hole) = hole.filter(|_| is_inside) {
                let wants = format!("an address outside {hole}");
                tried.add(Kind::Except, false, wants, name, address);
            }
            if !is_inside {
                tried.edits = usize::from(u16::MAX);
            }
        }
    }
    tried
}
