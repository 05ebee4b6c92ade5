//! What is often the cause of a denial, by name.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::conditions::NearRule;
use super::{Kind, Party, words};
use crate::cluster::Cluster;
use crate::evaluate::Flow;
use crate::model::{
    ContainerPort, Direction, NamespaceScope, ObjectName, Peer, Peers, PortMatch, Ports, Protocol,
    RuleRef,
};

/// A usual cause; displayed as a sentence.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Suspect {
    /// The destination lets it in; only the source's egress is missing.
    OnlyEgressMissing,
    /// Every name look-up of the source fails, and with it whatever comes after.
    DnsDenied,
    /// A rule names a port that no container of the destination declares.
    NamedPortUndeclared {
        /// The rule.
        rule: RuleRef,
        /// The name.
        name: String,
        /// The protocol.
        protocol: Protocol,
        /// The destination.
        pod: ObjectName,
        /// What it declares.
        declared: Vec<ContainerPort>,
    },
    /// Only a label of the peer's namespace is missing.
    NamespaceLabelMissing {
        /// The rule.
        rule: RuleRef,
        /// The namespace.
        namespace: Arc<str>,
        /// What the rule wants of it.
        wants: String,
        /// What it has.
        has: String,
    },
    /// The peer shows a node's address: no selector ever selects it.
    HostNetwork {
        /// The address.
        address: IpAddr,
        /// The node, when known.
        node: Option<Arc<str>>,
        /// hostNetwork pods with this address.
        pods: Vec<ObjectName>,
    },
    /// A policy that would admit it comes close to selecting the endpoint, but does not.
    NotSelected {
        /// The policy.
        policy: ObjectName,
        /// What its podSelector wants.
        wants: String,
        /// The endpoint's labels.
        has: String,
    },
    /// A policy has rules that would admit it, but its `policyTypes` leave the direction out.
    DirectionLeftOut {
        /// The policy.
        policy: ObjectName,
        /// The direction.
        direction: Direction,
    },
}

impl fmt::Display for Suspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnlyEgressMissing => f.write_str(
                "the destination lets it in; what is missing is an egress rule at the source",
            ),
            Self::DnsDenied => {
                f.write_str("DNS: every name look-up of the source fails, and what needs it")
            }
            Self::NamedPortUndeclared {
                rule,
                name,
                protocol,
                pod,
                declared,
            } => {
                write!(
                    f,
                    "{rule} names {protocol} port {name:?}, which no container of {pod} "
                )?;
                let named: Vec<String> = declared
                    .iter()
                    .filter(|port| !port.name.is_empty())
                    .map(|port| format!("{} {}/{}", port.name, port.protocol, port.port))
                    .collect();
                if named.is_empty() {
                    f.write_str("declares (it declares no named port)")
                } else {
                    write!(f, "declares (it declares {})", named.join(", "))
                }
            }
            Self::NamespaceLabelMissing {
                rule,
                namespace,
                wants,
                has,
            } => write!(
                f,
                "only the namespace's label is missing: {rule} wants {wants}, {namespace} has {has}"
            ),
            Self::HostNetwork {
                address,
                node,
                pods,
            } => {
                write!(f, "{address} is ")?;
                match node {
                    Some(node) => write!(f, "node {node}")?,
                    None => f.write_str("a node")?,
                }
                f.write_str(": hostNetwork pods are seen as their node")?;
                if let Some(pod) = pods.first() {
                    write!(f, " ({pod} is one)")?;
                }
                f.write_str(", no selector selects them; allow the address by ipBlock")
            }
            Self::NotSelected { policy, wants, has } => write!(
                f,
                "{policy} would allow it, but selects pods with {wants}, this one has {has}"
            ),
            Self::DirectionLeftOut { policy, direction } => write!(
                f,
                "{policy} has {direction} rules that would allow it, but its policyTypes leave \
                 {direction} out, so they count for nothing"
            ),
        }
    }
}

/// Finds the usual causes of a denial on one side.
pub(super) fn find(
    cluster: &Cluster,
    flow: &Flow<'_>,
    direction: Direction,
    peer: &Party,
    near: &[NearRule],
) -> Vec<Suspect> {
    let mut found = Vec::new();
    let is_dns = flow.port == 53 && matches!(flow.protocol, Protocol::UDP | Protocol::TCP);
    if direction == Direction::Egress && is_dns {
        found.push(Suspect::DnsDenied);
    }
    if let Party::Node {
        address,
        name,
        pods,
    } = peer
    {
        found.push(Suspect::HostNetwork {
            address: *address,
            node: name.clone(),
            pods: pods.clone(),
        });
    }
    for near in near.iter().filter(|near| near.failed() == 1) {
        found.extend(sole_cause(flow, near));
    }
    // A port name nobody declares is a mistake even where more is wrong.
    for near in near {
        for suspect in undeclared(cluster, flow, near) {
            if !found.contains(&suspect) {
                found.push(suspect);
            }
        }
    }
    found
}

/// The one condition that fails, when it has a name.
fn sole_cause(flow: &Flow<'_>, near: &NearRule) -> Option<Suspect> {
    let failed = near.conditions.iter().find(|condition| !condition.is_met)?;
    match failed.kind {
        Kind::Selects => Some(Suspect::NotSelected {
            policy: near.rule.policy.clone(),
            wants: failed.wants.clone(),
            has: failed.has.clone(),
        }),
        Kind::Direction => Some(Suspect::DirectionLeftOut {
            policy: near.rule.policy.clone(),
            direction: near.rule.direction,
        }),
        Kind::Namespace => namespace_label(flow, near),
        Kind::Readable
        | Kind::Protocol
        | Kind::Port
        | Kind::NamedPort
        | Kind::Pod
        | Kind::IpBlock
        | Kind::Except => None,
    }
}

fn namespace_label(flow: &Flow<'_>, near: &NearRule) -> Option<Suspect> {
    let namespace = flow.cluster.namespace(&flow.peer?.name.namespace)?;
    let policy = flow.cluster.policy(&near.rule.policy)?;
    let rules = policy.rules(near.rule.direction);
    let Peers::Any(peers) = &rules.get(usize::try_from(near.rule.index).ok()?)?.peers else {
        return None;
    };
    peers.iter().find_map(|peer| match peer {
        Peer::Pods {
            namespaces: NamespaceScope::Selected(selector),
            ..
        } if !selector.selects(&namespace.labels) => {
            let mut requirements = selector.requirements.iter();
            requirements
                .any(|requirement| !namespace.labels.contains_key(&requirement.key))
                .then(|| Suspect::NamespaceLabelMissing {
                    rule: near.rule.clone(),
                    namespace: Arc::clone(&namespace.name),
                    wants: selector.to_string(),
                    has: words::labels(&namespace.labels, selector),
                })
        }
        Peer::Pods { .. } | Peer::Block { .. } => None,
    })
}

fn undeclared(cluster: &Cluster, flow: &Flow<'_>, near: &NearRule) -> Vec<Suspect> {
    let rule = cluster.policy(&near.rule.policy).and_then(|policy| {
        let rules = policy.rules(near.rule.direction);
        rules.get(usize::try_from(near.rule.index).ok()?)
    });
    let (Some(rule), Some(pod)) = (rule, flow.destination) else {
        return Vec::new();
    };
    let Ports::Any(ports) = &rule.ports else {
        return Vec::new();
    };
    let is_declared = |protocol: Protocol, name: &str| {
        let mut ports = pod.ports.iter();
        ports.any(|port| port.name == name && port.protocol == protocol)
    };
    ports
        .iter()
        .filter_map(|port| match port {
            PortMatch::Named { protocol, name } if !is_declared(*protocol, name) => {
                Some(Suspect::NamedPortUndeclared {
                    rule: near.rule.clone(),
                    name: name.clone(),
                    protocol: *protocol,
                    pod: pod.name.clone(),
                    declared: pod.ports.to_vec(),
                })
            }
            PortMatch::Named { .. } | PortMatch::Range { .. } | PortMatch::Protocol(_) => None,
        })
        .collect()
}
