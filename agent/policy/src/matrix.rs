//! Every pair: who reaches whom, on which port.
//!
//! The answers come from the functions of [`crate::evaluate`]; only the questions are asked once
//! instead of once a packet: which policies isolate an end, whether a rule has an end among its
//! peers.

mod ends;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use self::ends::{Numbered, Side};
use crate::cluster::Cluster;
use crate::evaluate::Flow;
use crate::model::{Direction, Finding, Pod, Protocol, Verdict};

/// A port to judge.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Port {
    /// Protocol.
    pub protocol: Protocol,
    /// Number.
    pub number: u16,
}

/// What to judge.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Exactly these ports; when empty, those the destination's containers declare.
    pub ports: Vec<Port>,
    /// Addresses outside the cluster that stand beside the pods as source and destination.
    pub endpoints: Vec<IpAddr>,
}

/// One end of a pair; displayed as `namespace/pod` or as the address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum End {
    /// A pod.
    Pod(Arc<Pod>),
    /// An address that is no pod's.
    External(IpAddr),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(pod) => pod.name.fmt(f),
            Self::External(address) => address.fmt(f),
        }
    }
}

/// One pair on one port.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Row {
    /// Source: its place in [`Matrix::ends`].
    pub from: usize,
    /// Destination: its place in [`Matrix::ends`].
    pub to: usize,
    /// The source's address of this pair.
    pub from_address: IpAddr,
    /// The destination's address of this pair.
    pub to_address: IpAddr,
    /// Where the connection goes.
    pub port: Port,
    /// Judged at the destination; allow when it is no pod or not isolated, or the source its node.
    pub ingress: Verdict,
    /// Judged at the source; allow when it is no pod or not isolated.
    pub egress: Verdict,
}

impl Row {
    /// Allow when both sides allow.
    pub fn verdict(&self) -> Verdict {
        if self.ingress == Verdict::Allow && self.egress == Verdict::Allow {
            Verdict::Allow
        } else {
            Verdict::Deny
        }
    }
}

/// Every pair of distinct ends.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// Pods by namespace and name, then the external endpoints as given.
    pub ends: Vec<End>,
    /// By source, destination, and the port as declared or given.
    pub rows: Vec<Row>,
    /// Who or what has no row, and why.
    pub findings: Vec<Finding>,
}

/// Judges every ordered pair of distinct pods and endpoints.
///
/// A pair is judged once, on the first of the destination's addresses whose family the source has
/// too; a pair without one has no row. hostNetwork pods are ends with their node's address, like
/// it not isolated, and let in by every pod of their node. Completed pods, pods without an address,
/// and pods all of whose addresses by now belong to another pod are left out, each with a finding;
/// so is an endpoint without a port to judge as destination.
pub fn matrix(cluster: &Cluster, question: &Question) -> Matrix {
    let mut findings = Vec::new();
    let (sides, rules) = ends::sides(cluster, question, &mut findings);
    let ports: Vec<Vec<Port>> = sides.iter().map(|side| side.ports(question)).collect();
    let mut rows = Vec::new();
    let mut pairs_without_family = 0_usize;
    let mut judge = Judge {
        cluster,
        ends: sides.len(),
        is_peer: vec![Vec::new(); rules],
    };
    for (from, source) in sides.iter().enumerate() {
        for (to, destination) in sides.iter().enumerate() {
            if from == to {
                continue;
            }
            let Some((from_address, to_address)) = source.pair(destination) else {
                pairs_without_family += 1;
                continue;
            };
            let source = At {
                end: from,
                side: source,
                address: from_address,
            };
            let destination = At {
                end: to,
                side: destination,
                address: to_address,
            };
            for port in ports.get(to).into_iter().flatten() {
                rows.push(Row {
                    from,
                    to,
                    from_address,
                    to_address,
                    port: *port,
                    ingress: judge.verdict(Direction::Ingress, destination, source, *port),
                    egress: judge.verdict(Direction::Egress, source, destination, *port),
                });
            }
        }
    }
    if pairs_without_family > 0 {
        let pairs = match pairs_without_family {
            1 => "1 pair has".to_owned(),
            several => format!("{several} pairs have"),
        };
        findings.push(ends::warning(
            "matrix",
            format!("{pairs} no address family in common: no row"),
        ));
    }
    Matrix {
        ends: sides.into_iter().map(|side| side.end).collect(),
        rows,
        findings,
    }
}

/// One end of a pair that is being judged.
#[derive(Clone, Copy)]
struct At<'a> {
    end: usize,
    side: &'a Side<'a>,
    address: IpAddr,
}

/// Judges pairs and remembers whether a rule has an end among its peers.
struct Judge<'a> {
    cluster: &'a Cluster,
    ends: usize,
    /// By rule number, then by end and family.
    is_peer: Vec<Vec<Option<bool>>>,
}

impl<'a> Judge<'a> {
    fn verdict(
        &mut self,
        direction: Direction,
        endpoint: At<'a>,
        peer: At<'a>,
        port: Port,
    ) -> Verdict {
        let Some(pod) = endpoint.side.pod else {
            return Verdict::Allow;
        };
        let Some(rules) = endpoint.side.rules(direction) else {
            return Verdict::Allow;
        };
        if pod.addresses.contains(&peer.address) {
            return Verdict::Allow;
        }
        if direction == Direction::Ingress && peer.side.is_node_of(pod, peer.address) {
            return Verdict::Allow;
        }
        let flow = Flow {
            cluster: self.cluster,
            address: peer.address,
            peer: peer.side.pod,
            destination: match direction {
                Direction::Ingress => endpoint.side.pod,
                Direction::Egress => peer.side.pod,
            },
            protocol: port.protocol,
            port: port.number,
        };
        let is_admitted = rules.iter().any(|numbered| {
            self.is_peer(*numbered, peer, &flow) && flow.is_on(&numbered.rule.ports)
        });
        if is_admitted {
            Verdict::Allow
        } else {
            Verdict::Deny
        }
    }

    fn is_peer(&mut self, numbered: Numbered<'a>, peer: At<'a>, flow: &Flow<'a>) -> bool {
        let look = || flow.is_from_or_to(numbered.policy, &numbered.rule.peers);
        let Some(answers) = self.is_peer.get_mut(numbered.number) else {
            return look();
        };
        if answers.is_empty() {
            answers.resize(self.ends * 2, None);
        }
        let place = peer.end * 2 + usize::from(peer.address.is_ipv6());
        answers
            .get_mut(place)
            .map_or_else(look, |answer| *answer.get_or_insert_with(look))
    }
}
