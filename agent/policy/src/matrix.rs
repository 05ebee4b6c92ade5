//! Every pair: who reaches whom, on which port.
//!
//! The answers come from the functions of [`crate::evaluate`]; only the questions are asked once
//! instead of once a packet: which policies isolate an end, whether a rule has an end among its
//! peers.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::cluster::Cluster;
use crate::evaluate::{Flow, isolating};
use crate::model::{
    Direction, Finding, ObjectName, Phase, Pod, Policy, Protocol, Rule, Severity, Verdict,
};

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
    /// Judged at the destination; allow when it is no pod or not isolated.
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
/// too; a pair without one has no row. hostNetwork pods are ends with their node's address, and
/// like it not isolated. Completed pods, pods without an address, and pods all of whose addresses
/// by now belong to another pod are left out, each with a finding; so is an endpoint without a
/// port to judge as destination.
pub fn matrix(cluster: &Cluster, question: &Question) -> Matrix {
    let mut findings = Vec::new();
    let mut numbering = Numbering {
        cluster,
        first: HashMap::new(),
        next: 0,
    };
    let mut sides = pods(cluster, &mut numbering, &mut findings);
    let endpoints = endpoints(cluster, question, &mut findings);
    sides.extend(
        endpoints
            .into_iter()
            .map(|address| Side::new(End::External(address), vec![address])),
    );
    let ports: Vec<Vec<Port>> = sides.iter().map(|side| side.ports(question)).collect();
    let mut rows = Vec::new();
    let mut pairs_without_family = 0_usize;
    let mut judge = Judge {
        cluster,
        ends: sides.len(),
        is_peer: vec![Vec::new(); numbering.next],
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
        findings.push(warning(
            "matrix",
            format!("{pairs_without_family} pairs have no address family in common: no row"),
        ));
    }
    Matrix {
        ends: sides.into_iter().map(|side| side.end).collect(),
        rows,
        findings,
    }
}

/// An end and what is the same for all its pairs.
struct Side<'a> {
    end: End,
    addresses: Vec<IpAddr>,
    /// The pod that policies see behind the end's addresses; none for hostNetwork.
    pod: Option<&'a Pod>,
    /// Per direction, the rules of the policies that isolate it; `None` when none does.
    rules: [Option<Vec<Numbered<'a>>>; 2],
}

/// A rule and its place in the memory of answers.
#[derive(Clone, Copy)]
struct Numbered<'a> {
    policy: &'a Policy,
    rule: &'a Rule,
    number: usize,
}

/// One end of a pair that is being judged.
#[derive(Clone, Copy)]
struct At<'a> {
    end: usize,
    side: &'a Side<'a>,
    address: IpAddr,
}

impl<'a> Side<'a> {
    fn new(end: End, addresses: Vec<IpAddr>) -> Self {
        Self {
            end,
            addresses,
            pod: None,
            rules: [None, None],
        }
    }

    fn ports(&self, question: &Question) -> Vec<Port> {
        let ports: Vec<Port> = match &self.end {
            End::Pod(pod) if question.ports.is_empty() => pod
                .ports
                .iter()
                .map(|port| Port {
                    protocol: port.protocol,
                    number: port.port,
                })
                .collect(),
            End::Pod(_) | End::External(_) => question.ports.clone(),
        };
        let mut seen = BTreeSet::new();
        ports
            .into_iter()
            .filter(|port| seen.insert(*port))
            .collect()
    }

    /// The addresses a connection from here to there would have.
    fn pair(&self, destination: &Self) -> Option<(IpAddr, IpAddr)> {
        destination.addresses.iter().find_map(|to| {
            let is_same_family = |from: &&IpAddr| from.is_ipv4() == to.is_ipv4();
            let from = self.addresses.iter().find(is_same_family)?;
            Some((*from, *to))
        })
    }

    fn rules(&self, direction: Direction) -> Option<&[Numbered<'a>]> {
        let [ingress, egress] = &self.rules;
        match direction {
            Direction::Ingress => ingress.as_deref(),
            Direction::Egress => egress.as_deref(),
        }
    }
}

/// Numbers the rules of policies as they are first met.
struct Numbering<'a> {
    cluster: &'a Cluster,
    first: HashMap<(&'a ObjectName, Direction), usize>,
    next: usize,
}

impl<'a> Numbering<'a> {
    fn rules_of(&mut self, pod: &Pod, direction: Direction) -> Option<Vec<Numbered<'a>>> {
        let policies = isolating(self.cluster, pod, direction);
        if policies.is_empty() {
            return None;
        }
        let mut numbered = Vec::new();
        for policy in policies {
            let rules = policy.rules(direction);
            let first = *self
                .first
                .entry((&policy.name, direction))
                .or_insert_with(|| {
                    let first = self.next;
                    self.next += rules.len();
                    first
                });
            numbered.extend((first..).zip(rules).map(|(number, rule)| Numbered {
                policy,
                rule,
                number,
            }));
        }
        Some(numbered)
    }
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

/// The pods that are ends, by namespace and name.
fn pods<'a>(
    cluster: &'a Cluster,
    numbering: &mut Numbering<'a>,
    findings: &mut Vec<Finding>,
) -> Vec<Side<'a>> {
    let mut pods: Vec<&'a Arc<Pod>> = cluster.pods().collect();
    pods.sort_unstable_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
    let mut sides = Vec::new();
    for pod in pods {
        match addresses_of(cluster, pod) {
            Ok(addresses) => {
                let mut side = Side::new(End::Pod(Arc::clone(pod)), addresses);
                if !pod.host_network {
                    side.pod = Some(&**pod);
                    side.rules = [Direction::Ingress, Direction::Egress]
                        .map(|direction| numbering.rules_of(pod, direction));
                }
                sides.push(side);
            }
            Err(reason) => findings.push(warning(
                &format!("pod {}", pod.name),
                format!("{reason}: it has no row"),
            )),
        }
    }
    sides
}

/// The addresses a pod stands in the matrix with, or why it does not.
fn addresses_of(cluster: &Cluster, pod: &Pod) -> Result<Vec<IpAddr>, String> {
    if pod.phase == Phase::Completed {
        return Err("completed".to_owned());
    }
    let successor = cluster.pod_named(&pod.name);
    if successor.is_some_and(|other| other.uid != pod.uid) {
        return Err("replaced by a newer pod of the same name".to_owned());
    }
    let mut addresses = &pod.addresses;
    if let Some(node) = cluster.node(&pod.node)
        && pod.host_network
        && addresses.is_empty()
    {
        addresses = &node.addresses;
    }
    let Some(first) = addresses.first() else {
        return Err("no address (status.podIPs)".to_owned());
    };
    let is_own = |address: &&IpAddr| match cluster.owner_of(**address) {
        Some(owner) => owner.uid == pod.uid,
        None => pod.host_network,
    };
    let own: Vec<IpAddr> = addresses.iter().filter(is_own).copied().collect();
    if own.is_empty() {
        let owner = cluster.owner_of(*first);
        let owner = owner.map_or_else(String::new, |owner| owner.name.to_string());
        return Err(format!(
            "its address {first} belongs to the newer pod {owner}"
        ));
    }
    Ok(own)
}

/// The endpoints that are ends, as given.
fn endpoints(cluster: &Cluster, question: &Question, findings: &mut Vec<Finding>) -> Vec<IpAddr> {
    let mut taken: Vec<IpAddr> = Vec::new();
    for address in &question.endpoints {
        let address = address.to_canonical();
        let object = format!("endpoint {address}");
        if let Some(pod) = cluster.owner_of(address) {
            let message = format!("is pod {}: it has no rows of its own", pod.name);
            findings.push(warning(&object, message));
        } else if !taken.contains(&address) {
            taken.push(address);
            if question.ports.is_empty() {
                let message = "no port to judge: it has no rows as destination; give ports";
                findings.push(warning(&object, message.to_owned()));
            }
        }
    }
    taken
}

fn warning(object: &str, message: String) -> Finding {
    Finding {
        severity: Severity::Warning,
        object: object.to_owned(),
        field: String::new(),
        message,
    }
}

#[cfg(test)]
mod tests;
