//! Why a packet is allowed or denied, and what is nearest to admitting it.
//!
//! A NetworkPolicy never denies: it isolates, and fails to admit. So a denial names every policy
//! that isolates the endpoint, and the rules that come nearest to admitting the packet, condition
//! by condition. Values only: how they read on a terminal is the command's business. The verdicts
//! are those of [`crate::evaluate`], and every condition is tried with its functions.

mod addition;
mod conditions;
mod kind;
mod suspects;
#[cfg(test)]
mod tests;
mod words;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::cluster::Cluster;
use crate::evaluate::{Decision, Decisions, Flow, Packet, admits, evaluate, isolating};
use crate::model::{Direction, ObjectName, Pod, Reason, RuleRef, Verdict};
use crate::selector::Selector;

pub use addition::Addition;
pub use conditions::{Condition, NearRule};
pub use kind::Kind;
pub use suspects::Suspect;
pub use words::distance;

/// How many of the nearest rules are given.
const NEAREST: usize = 3;

/// Both sides of a packet.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The packet.
    pub packet: Packet,
    /// At the source.
    pub egress: Side,
    /// At the destination.
    pub ingress: Side,
}

impl Explanation {
    /// Allow when both sides allow.
    pub fn verdict(&self) -> Verdict {
        if self.egress.decision.is_allowed() && self.ingress.decision.is_allowed() {
            Verdict::Allow
        } else {
            Verdict::Deny
        }
    }

    /// Both sides, in the order a packet meets them.
    pub fn sides(&self) -> [&Side; 2] {
        [&self.egress, &self.ingress]
    }
}

/// One side of a packet: leaving the source, or entering the destination.
#[derive(Clone, Debug)]
pub struct Side {
    /// Which side.
    pub direction: Direction,
    /// Whose policies are asked.
    pub endpoint: Party,
    /// The other end.
    pub peer: Party,
    /// What they say.
    pub decision: Decision,
    /// Where the Service proxy may take the packet, when the peer's address is a Service's, in order.
    pub behind: Vec<Behind>,
    /// Every policy that isolates the endpoint in this direction, by name.
    pub isolated_by: Vec<Isolating>,
    /// When denied: the rules that come nearest to admitting it, nearest first; at most three.
    pub nearest: Vec<NearRule>,
    /// When denied: what is often the cause.
    pub suspects: Vec<Suspect>,
    /// When denied: the smallest addition to the policies that admits it on this side.
    pub addition: Option<Addition>,
}

/// Who is behind an address, as policy sees it; displayed as `namespace/pod`, `node:name` or
/// `ip:address`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Party {
    /// A pod.
    Pod(Arc<Pod>),
    /// A node, and the hostNetwork pods that share its address.
    Node {
        /// The address.
        address: IpAddr,
        /// The node's name; `None` when only its hostNetwork pods are known.
        name: Option<Arc<str>>,
        /// hostNetwork pods with this address, by name.
        pods: Vec<ObjectName>,
    },
    /// Anyone else.
    World(IpAddr),
}

impl Party {
    /// Finds out who is behind an address.
    pub fn of(cluster: &Cluster, address: IpAddr) -> Self {
        let address = address.to_canonical();
        if let Some(pod) = cluster.owner_of(address) {
            return Self::Pod(Arc::clone(pod));
        }
        let node = cluster
            .nodes()
            .find(|node| node.addresses.contains(&address));
        let name = node.map(|node| Arc::clone(&node.name));
        let mut pods: Vec<ObjectName> = cluster
            .pods()
            .filter(|pod| pod.host_network && pod.addresses.contains(&address))
            .map(|pod| pod.name.clone())
            .collect();
        pods.sort_unstable();
        if name.is_none() && pods.is_empty() {
            Self::World(address)
        } else {
            Self::Node {
                address,
                name,
                pods,
            }
        }
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(pod) => pod.name.fmt(f),
            Self::Node {
                name: Some(name), ..
            } => write!(f, "node:{name}"),
            Self::Node { address, .. } | Self::World(address) => write!(f, "ip:{address}"),
        }
    }
}

/// Where a Service proxy may take a packet; displayed as `namespace/pod:8080`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Behind {
    /// Who is there.
    pub party: Party,
    /// Its address.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
    /// Policy lets the endpoint send there.
    pub is_allowed: bool,
}

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.party, self.port)
    }
}

/// A policy that isolates an endpoint; displayed as `selects every pod, has no rules`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Isolating {
    /// The policy.
    pub policy: ObjectName,
    /// The direction.
    pub direction: Direction,
    /// Which pods of its namespace it selects.
    pub pods: Selector,
    /// How many rules it has in the direction.
    pub rules: usize,
}

impl Isolating {
    /// Whom it selects: `every pod`, or the labels it wants.
    pub fn selects(&self) -> String {
        words::selected(&self.pods, "every pod")
    }
}

impl fmt::Display for Isolating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "selects {}, ", self.selects())?;
        match self.rules {
            0 => f.write_str("has no rules"),
            1 => write!(f, "1 {} rule", self.direction),
            rules => write!(f, "{rules} {} rules", self.direction),
        }
    }
}

/// Explains a packet that its source sends itself.
pub fn explain(cluster: &Cluster, packet: &Packet) -> Explanation {
    explain_decisions(cluster, packet, evaluate(cluster, packet))
}

/// Explains what was said of a packet: by [`evaluate`], or by
/// [`by_policy`](crate::evaluate::by_policy) when it may have been forwarded.
pub fn explain_decisions(cluster: &Cluster, packet: &Packet, decisions: Decisions) -> Explanation {
    let Decisions { egress, ingress } = decisions;
    let ends = (
        Party::of(cluster, packet.from),
        Party::of(cluster, packet.to),
    );
    let is_egress_denied = !egress.is_allowed();
    let is_ingress_allowed = ingress.is_allowed();
    let (from, to) = ends.clone();
    let mut egress = side(cluster, packet, Direction::Egress, from, to, egress);
    let (from, to) = ends;
    let ingress = side(cluster, packet, Direction::Ingress, to, from, ingress);
    if is_egress_denied && is_ingress_allowed {
        egress.suspects.insert(0, Suspect::OnlyEgressMissing);
    }
    Explanation {
        packet: *packet,
        egress,
        ingress,
    }
}

fn side(
    cluster: &Cluster,
    packet: &Packet,
    direction: Direction,
    endpoint: Party,
    peer: Party,
    decision: Decision,
) -> Side {
    let mut side = Side {
        direction,
        endpoint,
        peer,
        decision,
        behind: Vec::new(),
        isolated_by: Vec::new(),
        nearest: Vec::new(),
        suspects: Vec::new(),
        addition: None,
    };
    let Party::Pod(pod) = side.endpoint.clone() else {
        return side;
    };
    let policies = isolating(cluster, &pod, direction);
    side.isolated_by = policies
        .iter()
        .map(|policy| Isolating {
            policy: policy.name.clone(),
            direction,
            pods: policy.pods.clone(),
            rules: policy.rules(direction).len(),
        })
        .collect();
    if direction == Direction::Egress {
        side.behind = behind(cluster, &pod, packet);
    }
    let peer = match direction {
        Direction::Ingress => packet.from,
        Direction::Egress => packet.to,
    };
    let reason = side.decision.reason;
    let refused = if reason == Reason::IsolatedNoRule {
        Some((peer, packet.port))
    } else if matches!(reason, Reason::ServiceNone | Reason::ServiceUnseen) {
        // The first backend that it may not reach.
        let mut behind = side.behind.iter();
        let refused = behind.find(|behind| !behind.is_allowed);
        refused.map(|behind| (behind.address, behind.port))
    } else {
        None
    };
    if let Some((peer, port)) = refused {
        let flow = Flow::new(cluster, &pod, direction, peer, packet.protocol, port);
        let near = conditions::nearest(cluster, &flow, &pod, direction);
        side.suspects = suspects::find(cluster, &flow, direction, &side.peer, &near);
        side.addition = Some(addition::smallest(cluster, &flow, &pod, direction, &near));
        side.nearest = near;
        side.nearest.truncate(NEAREST);
    }
    side
}

/// What is behind the Service that a packet is sent to.
fn behind(cluster: &Cluster, endpoint: &Pod, packet: &Packet) -> Vec<Behind> {
    let to = packet.to.to_canonical();
    let backends = cluster.backends(to, packet.protocol, packet.port);
    let backends = backends.into_iter().flatten();
    backends
        .map(|(address, port)| Behind {
            party: Party::of(cluster, address),
            address,
            port,
            is_allowed: admits(cluster, endpoint, address, packet.protocol, port),
        })
        .collect()
}

/// The conditions of the rule that admits a packet, all met: what `why` prints for an allow.
pub fn conditions_of(cluster: &Cluster, packet: &Packet, rule: &RuleRef) -> Option<NearRule> {
    let (endpoint, peer) = match rule.direction {
        Direction::Ingress => (packet.to, packet.from),
        Direction::Egress => (packet.from, packet.to),
    };
    let pod = cluster.owner_of(endpoint.to_canonical())?;
    // The rule that admits to a Service is that for the first of its backends.
    let backends = match rule.direction {
        Direction::Ingress => None,
        Direction::Egress => cluster.backends(peer.to_canonical(), packet.protocol, packet.port),
    };
    let first = backends.and_then(|backends| backends.first().copied());
    let (peer, port) = first.unwrap_or((peer, packet.port));
    let flow = Flow::new(cluster, pod, rule.direction, peer, packet.protocol, port);
    let policy = cluster.policy(&rule.policy)?;
    let index = usize::try_from(rule.index).ok()?;
    let found = policy.rules(rule.direction).get(index)?;
    Some(conditions::of_rule(&flow, pod, policy, rule.clone(), found))
}
