//! THE SPECIFICATION: what the policies of a cluster say of one packet, read in the order of the
//! Kubernetes documentation. Slow, obvious, never optimized.
//!
//! Everything else that knows what a policy means is either built from these functions
//! ([`crate::explain`], [`crate::matrix`]) or tested against them ([`crate::compile`]). Of what is
//! decided before policy is asked, only the node's own traffic is here, because who reaches whom
//! depends on it; replies, neighbour discovery and malformed packets are in
//! `agent_common::classify`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::cluster::{Cluster, is_selectable};
use crate::model::{
    Direction, NamespaceScope, Peer, Peers, Phase, Pod, Policy, PortMatch, Ports, Protocol, Reason,
    Rule, RuleRef, Verdict,
};

/// The first packet of a flow, as policy sees it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Packet {
    /// Source address.
    pub from: IpAddr,
    /// Destination address.
    pub to: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Destination port; without meaning for protocols that have none.
    pub port: u16,
}

/// What one side's policies say of a packet.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
#[must_use]
pub struct Decision {
    /// Why; its verdict is the decision's verdict.
    pub reason: Reason,
    /// The rule that admits it: of those that do, the first by namespace, name and index. To a
    /// Service, the one that admits to the first of its backends by address and port.
    pub rule: Option<RuleRef>,
}

impl Decision {
    const fn by(reason: Reason) -> Self {
        Self { reason, rule: None }
    }

    /// Allow or deny.
    pub const fn verdict(&self) -> Verdict {
        self.reason.verdict()
    }

    /// True when this side lets the packet through.
    pub fn is_allowed(&self) -> bool {
        self.verdict() == Verdict::Allow
    }
}

/// What both sides say: a packet arrives when both allow it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
#[must_use]
pub struct Decisions {
    /// Judged at the source.
    pub egress: Decision,
    /// Judged at the destination.
    pub ingress: Decision,
}

impl Decisions {
    /// Allow when both sides allow.
    pub fn verdict(&self) -> Verdict {
        if self.egress.is_allowed() && self.ingress.is_allowed() {
            Verdict::Allow
        } else {
            Verdict::Deny
        }
    }
}

/// Judges a packet that its source sends itself, at both of its ends: by policy, except that a pod
/// lets its own node in whatever policy says (kubelet's probes).
pub fn evaluate(cluster: &Cluster, packet: &Packet) -> Decisions {
    let mut decisions = by_policy(cluster, packet);
    if let Some(pod) = cluster.owner_of(packet.to.to_canonical())
        && is_node_of(pod, &nodes_at(cluster, packet.from))
    {
        decisions.ingress = Decision::by(Reason::Node);
    }
    decisions
}

/// Judges a packet at both of its ends by the addresses it shows: what policies say of traffic
/// that is only forwarded under its source's address, which a node's may be (masqueraded). An end
/// that is not a pod's own address (a node, a hostNetwork pod, the world) has no policies and is
/// not isolated.
pub fn by_policy(cluster: &Cluster, packet: &Packet) -> Decisions {
    let side = |direction: Direction, endpoint: IpAddr, peer: IpAddr| match cluster
        .owner_of(endpoint.to_canonical())
    {
        Some(pod) => judge(cluster, pod, direction, peer, packet.protocol, packet.port),
        None => Decision::by(Reason::NotIsolated),
    };
    Decisions {
        egress: side(Direction::Egress, packet.from, packet.to),
        ingress: side(Direction::Ingress, packet.to, packet.from),
    }
}

/// The nodes an address is of, by name: those that state it in `status.addresses`, and those of
/// hostNetwork pods that show it. A hostNetwork pod without `spec.nodeName` stands for a node
/// without a name. An address that a pod owns is of no node.
pub(crate) fn nodes_at(cluster: &Cluster, address: IpAddr) -> BTreeSet<&str> {
    let address = address.to_canonical();
    if cluster.owner_of(address).is_some() {
        return BTreeSet::new();
    }
    let stated = cluster
        .nodes()
        .filter(|node| node.addresses.contains(&address))
        .map(|node| &*node.name);
    let shown = cluster
        .pods()
        .filter(|pod| pod.host_network && pod.phase != Phase::Completed)
        .filter(|pod| pod.addresses.contains(&address))
        .map(|pod| &*pod.node);
    stated.chain(shown).collect()
}

/// True when the pod runs on one of these nodes. Without a `spec.nodeName` it runs on the node
/// without a name: manifests that name no node describe a single one.
pub(crate) fn is_node_of(pod: &Pod, nodes: &BTreeSet<&str>) -> bool {
    nodes.contains(&*pod.node)
}

/// Judges a packet between an endpoint and a peer's address at the endpoint's side. `port` is
/// always the destination's: the endpoint's for ingress, the peer's for egress. What goes out to a
/// Service is judged by the backends it may come to.
pub fn judge(
    cluster: &Cluster,
    endpoint: &Pod,
    direction: Direction,
    peer: IpAddr,
    protocol: Protocol,
    port: u16,
) -> Decision {
    let peer = peer.to_canonical();
    // "A pod cannot block access to itself": no policy is asked.
    if endpoint.addresses.contains(&peer) {
        return Decision::by(Reason::Itself);
    }
    let isolating = isolating(cluster, endpoint, direction);
    if isolating.is_empty() {
        return Decision::by(Reason::NotIsolated);
    }
    let admitting = |address, port| {
        let flow = Flow::new(cluster, endpoint, direction, address, protocol, port);
        flow.first_rule_of(&isolating, direction)
    };
    if direction == Direction::Egress
        && let Some(backends) = cluster.backends(peer, protocol, port)
    {
        let backends = backends.into_iter();
        let rules: Vec<_> = backends
            .map(|(address, port)| admitting(address, port))
            .collect();
        return through_a_service(&rules);
    }
    match admitting(peer, port) {
        Some(rule) => by_rule(rule),
        None => Decision::by(Reason::IsolatedNoRule),
    }
}

fn by_rule(rule: RuleRef) -> Decision {
    Decision {
        reason: Reason::Rule,
        rule: Some(rule),
    }
}

/// Judges a packet to a virtual address, by the rules that admit it to each of the backends of which
/// the Service proxy is about to choose one: whoever may reach all of them may reach the Service, and
/// whoever may reach only some cannot be told from here to have reached one of those.
fn through_a_service(admitting: &[Option<RuleRef>]) -> Decision {
    let admitted = admitting.iter().flatten().count();
    match admitting.first() {
        None => Decision::by(Reason::NoEndpoints),
        Some(Some(first)) if admitted == admitting.len() => by_rule(first.clone()),
        Some(_) if admitted == 0 => Decision::by(Reason::ServiceNone),
        Some(_) => Decision::by(Reason::ServiceUnseen),
    }
}

/// True when policies let a pod send to a backend of a Service.
pub(crate) fn admits(
    cluster: &Cluster,
    endpoint: &Pod,
    backend: IpAddr,
    protocol: Protocol,
    port: u16,
) -> bool {
    let isolating = isolating(cluster, endpoint, Direction::Egress);
    let flow = Flow::new(
        cluster,
        endpoint,
        Direction::Egress,
        backend,
        protocol,
        port,
    );
    isolating.is_empty() || flow.first_rule_of(&isolating, Direction::Egress).is_some()
}

/// The policies that isolate a pod in a direction, by name: those of its namespace whose
/// `podSelector` selects it and whose `policyTypes` name the direction.
pub fn isolating<'a>(
    cluster: &'a Cluster,
    endpoint: &Pod,
    direction: Direction,
) -> Vec<&'a Arc<Policy>> {
    let policies = cluster.policies_in(&endpoint.name.namespace);
    isolating_of(policies, endpoint, direction)
}

/// The same, of policies that are all those of the pod's namespace.
pub fn isolating_of<'a>(
    policies: impl IntoIterator<Item = &'a Arc<Policy>>,
    endpoint: &Pod,
    direction: Direction,
) -> Vec<&'a Arc<Policy>> {
    if !is_selectable(endpoint) {
        return Vec::new();
    }
    policies
        .into_iter()
        .filter(|policy| policy.isolates(direction))
        .filter(|policy| policy.pods.selects(&endpoint.labels))
        .collect()
}

/// A packet seen from one of its ends, with what rules ask about it looked up once.
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a> {
    pub(crate) cluster: &'a Cluster,
    /// The other end's address.
    pub address: IpAddr,
    /// The pod that owns the other end's address.
    pub peer: Option<&'a Pod>,
    /// The pod that the packet is for: where named ports are resolved.
    pub destination: Option<&'a Pod>,
    /// Protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
}

impl<'a> Flow<'a> {
    /// Looks up the ends of a packet; parameters as for [`judge`].
    pub fn new(
        cluster: &'a Cluster,
        endpoint: &'a Pod,
        direction: Direction,
        address: IpAddr,
        protocol: Protocol,
        port: u16,
    ) -> Self {
        let address = address.to_canonical();
        let peer = cluster.owner_of(address).map(|pod| &**pod);
        let destination = match direction {
            Direction::Ingress => Some(endpoint),
            Direction::Egress => peer,
        };
        Self {
            cluster,
            address,
            peer,
            destination,
            protocol,
            port,
        }
    }

    /// The first rule of policies, which are in order, that admits it.
    fn first_rule_of(&self, policies: &[&Arc<Policy>], direction: Direction) -> Option<RuleRef> {
        let rules = policies.iter().flat_map(|policy| {
            (0..)
                .zip(policy.rules(direction))
                .map(move |rule| (policy, rule))
        });
        let mut admitting = rules.filter(|(policy, (_, rule))| self.is_admitted_by(policy, rule));
        admitting.next().map(|(policy, (index, _))| RuleRef {
            policy: policy.name.clone(),
            direction,
            index,
        })
    }

    /// True when the rule admits it: one of its peers is the other end, and one of its ports is
    /// the destination port.
    pub fn is_admitted_by(&self, policy: &Policy, rule: &Rule) -> bool {
        self.is_from_or_to(policy, &rule.peers) && self.is_on(&rule.ports)
    }

    /// True when a rule's `from` or `to` has the other end.
    pub fn is_from_or_to(&self, policy: &Policy, peers: &Peers) -> bool {
        match peers {
            Peers::All => true,
            Peers::Any(peers) => peers.iter().any(|peer| self.is_peer(policy, peer)),
        }
    }

    /// True when one item of a rule's `from` or `to` has the other end. Pods that the cluster
    /// does not know, or whose address is not their own (hostNetwork), can be reached by an
    /// ipBlock only; a pod's address matches ipBlocks like any other.
    pub fn is_peer(&self, policy: &Policy, peer: &Peer) -> bool {
        match peer {
            Peer::Pods { namespaces, pods } => self.peer.is_some_and(|pod| {
                self.is_in_scope(policy, namespaces, pod) && pods.selects(&pod.labels)
            }),
            Peer::Block { cidr, except } => {
                cidr.contains(&self.address)
                    && !except.iter().any(|hole| hole.contains(&self.address))
            }
        }
    }

    /// True when the pod's namespace is one that a peer of the policy speaks of.
    pub fn is_in_scope(&self, policy: &Policy, scope: &NamespaceScope, pod: &Pod) -> bool {
        match scope {
            NamespaceScope::Own => pod.name.namespace == policy.name.namespace,
            NamespaceScope::Selected(selector) => self
                .cluster
                .namespace(&pod.name.namespace)
                .is_some_and(|namespace| selector.selects(&namespace.labels)),
        }
    }

    /// True when a rule's `ports` cover the packet.
    pub fn is_on(&self, ports: &Ports) -> bool {
        match ports {
            Ports::All => true,
            Ports::Any(ports) => ports.iter().any(|port| self.is_port(port)),
        }
    }

    /// True when one item of a rule's `ports` covers the packet.
    pub fn is_port(&self, port: &PortMatch) -> bool {
        match port {
            PortMatch::Protocol(protocol) => self.protocol == *protocol,
            PortMatch::Range {
                protocol,
                first,
                last,
            } => self.protocol == *protocol && (*first..=*last).contains(&self.port),
            PortMatch::Named { protocol, name } => {
                self.protocol == *protocol
                    && self.destination.is_some_and(|pod| {
                        pod.ports.iter().any(|declared| {
                            declared.name == *name
                                && declared.protocol == *protocol
                                && declared.port == self.port
                        })
                    })
            }
        }
    }
}

#[cfg(test)]
mod tests;
