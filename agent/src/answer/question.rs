//! `can` and `why`: every pair of pods two references stand for, judged and folded into one answer.

use std::net::IpAddr;

use agent_policy::cluster::Cluster;
use agent_policy::evaluate::{self, Decisions, Packet};
use agent_policy::model::{Protocol, Verdict};

use super::judge;
use super::reference::{PortName, PortReference, Reference};
use super::resolve::{End, ResolveError, Resolved, resolve};
use crate::dto::{Explanation, VerdictWord};

/// Pairs of addresses one question may stand for.
const MOST_PAIRS: usize = 20_000;

/// Why a question cannot be answered.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AnswerError {
    /// Who is meant is not known.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// `can` without a port.
    #[error("{0}: on which port? add :PORT, for example {0}:8080 or {0}:53/UDP")]
    PortMissing(String),
    /// `why` without a port to someone who declares none.
    #[error("{0} declares no container ports; add :PORT")]
    NothingDeclared(String),
    /// No destination has a port of that name.
    #[error("{to}: no pod of it names a {port} port; declared are {}", declared_text(.declared))]
    PortUnknown {
        /// The destination.
        to: String,
        /// Protocol and name.
        port: String,
        /// What there is.
        declared: Vec<String>,
    },
    /// Nothing of one end shares an address family with the other.
    #[error("{from} and {to} have no address family in common")]
    NoPair {
        /// The source.
        from: String,
        /// The destination.
        to: String,
    },
    /// The two references stand for too many pairs.
    #[error(
        "{from} and {to} stand for {pairs} pairs of pods, at most {MOST_PAIRS} are judged at once; name a pod"
    )]
    TooMany {
        /// The source.
        from: String,
        /// The destination.
        to: String,
        /// How many.
        pairs: usize,
    },
}

fn declared_text(declared: &[String]) -> String {
    if declared.is_empty() {
        "none".to_owned()
    } else {
        declared.join(", ")
    }
}

/// May `from` open a connection to `to`, which says a port?
///
/// # Errors
/// Either end means nobody, or the port is missing or unknown.
pub fn can(
    cluster: &Cluster,
    from: &Reference,
    to: &Reference,
    namespace: &str,
) -> Result<Explanation, AnswerError> {
    let port = to
        .port
        .as_ref()
        .ok_or_else(|| AnswerError::PortMissing(to.to_string()))?;
    let from = resolve(cluster, from, namespace)?;
    let to = resolve(cluster, to, namespace)?;
    explain(cluster, &from, &to, port)
}

/// As [`can`], but a destination without a port is asked about on every port it declares.
///
/// # Errors
/// As [`can`]; and a destination without a port that declares none.
pub fn why(
    cluster: &Cluster,
    from: &Reference,
    to: &Reference,
    namespace: &str,
) -> Result<Vec<Explanation>, AnswerError> {
    let ends = (
        resolve(cluster, from, namespace)?,
        resolve(cluster, to, namespace)?,
    );
    if let Some(port) = &to.port {
        return Ok(vec![explain(cluster, &ends.0, &ends.1, port)?]);
    }
    let ports = declared_ports(&ends.1);
    if ports.is_empty() {
        return Err(AnswerError::NothingDeclared(ends.1.party.to_string()));
    }
    ports
        .iter()
        .map(|port| explain(cluster, &ends.0, &ends.1, port))
        .collect()
}

/// Judges every pair the two ends stand for; the answer's judgements are those of the first pair
/// that is refused, or of the first pair when none is.
pub(crate) fn explain(
    cluster: &Cluster,
    from: &Resolved,
    to: &Resolved,
    port: &PortReference,
) -> Result<Explanation, AnswerError> {
    explain_by(evaluate::evaluate, cluster, from, to, port)
}

/// As [`explain`], of what the kernel refused: it knows its node's own traffic by origin, so what
/// showed the node's address was only forwarded and is judged by it.
pub(crate) fn explain_refused(
    cluster: &Cluster,
    from: &Resolved,
    to: &Resolved,
    port: &PortReference,
) -> Result<Explanation, AnswerError> {
    explain_by(evaluate::by_policy, cluster, from, to, port)
}

fn explain_by(
    decide: fn(&Cluster, &Packet) -> Decisions,
    cluster: &Cluster,
    from: &Resolved,
    to: &Resolved,
    port: &PortReference,
) -> Result<Explanation, AnswerError> {
    let pairs = pairs(from, to, port)?;
    let judged: Vec<(&Packet, Verdict)> = pairs
        .iter()
        .map(|pair| (pair, decide(cluster, pair).verdict()))
        .collect();
    let allowed_pairs = judged
        .iter()
        .filter(|(_, verdict)| *verdict == Verdict::Allow)
        .count();
    let shown = judged
        .iter()
        .find(|(_, verdict)| *verdict != Verdict::Allow)
        .or_else(|| judged.first())
        .map(|(pair, _)| *pair)
        .ok_or_else(|| AnswerError::NoPair {
            from: from.party.to_string(),
            to: to.party.to_string(),
        })?;
    let is_allowed = allowed_pairs == pairs.len();
    let number = shown.port;
    Ok(Explanation {
        from: from.party.clone(),
        to: to.party.clone(),
        protocol: port.protocol.to_string(),
        port: Some(number),
        port_name: match &port.port {
            PortName::Name(name) => Some(name.clone()),
            PortName::Number(_) => None,
        },
        verdict: if is_allowed {
            VerdictWord::Allow
        } else {
            VerdictWord::Deny
        },
        partly: allowed_pairs > 0 && !is_allowed,
        pairs: pairs.len(),
        allowed_pairs,
        judgements: judge::judgements(cluster, shown, decide(cluster, shown)),
        observed: None,
    })
}

/// The connections that a question stands for.
fn pairs(from: &Resolved, to: &Resolved, port: &PortReference) -> Result<Vec<Packet>, AnswerError> {
    let number = from.ends.len() * to.ends.len();
    if number > MOST_PAIRS {
        return Err(AnswerError::TooMany {
            from: from.party.to_string(),
            to: to.party.to_string(),
            pairs: number,
        });
    }
    let mut pairs = Vec::with_capacity(number);
    let mut is_port_known = false;
    for destination in &to.ends {
        let Some(number) = port_at(destination, port) else {
            continue;
        };
        is_port_known = true;
        for source in &from.ends {
            // A workload asked about itself means its other replicas.
            if source == destination && number_of_ends(from, to) > 1 {
                continue;
            }
            for (source_address, address) in
                same_family(source.addresses(), destination.addresses())
            {
                pairs.push(Packet {
                    from: source_address,
                    to: address,
                    protocol: port.protocol,
                    port: number,
                });
            }
        }
    }
    if !is_port_known {
        return Err(AnswerError::PortUnknown {
            to: to.party.to_string(),
            port: port.to_string(),
            declared: declared_ports(to).iter().map(ToString::to_string).collect(),
        });
    }
    Ok(pairs)
}

fn number_of_ends(from: &Resolved, to: &Resolved) -> usize {
    from.ends.len().max(to.ends.len())
}

/// The first addresses of each family that both have.
fn same_family(from: &[IpAddr], to: &[IpAddr]) -> impl Iterator<Item = (IpAddr, IpAddr)> {
    [IpAddr::is_ipv4 as fn(&IpAddr) -> bool, IpAddr::is_ipv6]
        .into_iter()
        .filter_map(|is_family| {
            let first = |addresses: &[IpAddr]| addresses.iter().copied().find(is_family);
            Some((first(from)?, first(to)?))
        })
}

/// The number a port has at an end: names are resolved at the destination pod.
fn port_at(end: &End, port: &PortReference) -> Option<u16> {
    match (&port.port, end) {
        (PortName::Number(number), _) => Some(*number),
        (PortName::Name(name), End::Pod(pod)) => pod
            .ports
            .iter()
            .find(|declared| declared.name == *name && declared.protocol == port.protocol)
            .map(|declared| declared.port),
        (PortName::Name(_), End::Address(_)) => None,
    }
}

/// Every port some pod of an end declares, by protocol and number.
pub(crate) fn declared_ports(to: &Resolved) -> Vec<PortReference> {
    let mut ports: Vec<(Protocol, u16)> = to
        .ends
        .iter()
        .filter_map(|end| match end {
            End::Pod(pod) => Some(pod.ports.iter()),
            End::Address(_) => None,
        })
        .flatten()
        .map(|port| (port.protocol, port.port))
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
        .into_iter()
        .map(|(protocol, port)| PortReference {
            protocol,
            port: PortName::Number(port),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use agent_policy::model::{
        Change, Labels, Node, ObjectName, Pod, PodUid, Policy as NetworkPolicy,
    };
    use agent_policy::selector::Selector;

    use super::*;

    /// A pod that nobody may reach, on node-a, which is 192.0.2.7.
    fn closed() -> Cluster {
        let mut cluster = Cluster::new();
        for change in [
            Change::Pod(Box::new(Pod {
                addresses: vec![IpAddr::from([10, 0, 0, 1])],
                node: "node-a".into(),
                workload: "Pod/api".into(),
                ..Pod::new(PodUid("shop/api".into()), ObjectName::new("shop", "api"))
            })),
            Change::Node(Node {
                name: "node-a".into(),
                labels: Labels::new(),
                addresses: vec![IpAddr::from([192, 0, 2, 7])],
                pod_cidrs: Vec::new(),
            }),
            Change::Policy(Box::new(NetworkPolicy {
                name: ObjectName::new("shop", "deny"),
                pods: Selector::EVERYTHING,
                isolates_ingress: true,
                isolates_egress: false,
                ingress: Vec::new(),
                egress: Vec::new(),
                annotations: Labels::new(),
            })),
        ] {
            drop(cluster.apply(change));
        }
        cluster
    }

    #[test]
    fn a_pods_own_node_may_and_what_was_refused_under_its_address_may_not() {
        let cluster = closed();
        let end = |text: &str| {
            let reference: Reference = text.parse().unwrap();
            resolve(&cluster, &reference, "shop").unwrap()
        };
        let (from, to) = (end("192.0.2.7"), end("api"));
        let port = PortReference {
            protocol: Protocol::TCP,
            port: PortName::Number(80),
        };
        let own = explain(&cluster, &from, &to, &port).unwrap();
        assert_eq!(own.verdict, VerdictWord::Allow);
        assert_eq!(own.judgements[1].reason.as_deref(), Some("node"));
        let refused = explain_refused(&cluster, &from, &to, &port).unwrap();
        assert_eq!(refused.verdict, VerdictWord::Deny);
    }
}
