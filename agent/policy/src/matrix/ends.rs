//! Who stands in the matrix, with which addresses, ports and rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{End, Port, Question};
use crate::cluster::Cluster;
use crate::evaluate::{is_node_of, isolating, nodes_at};
use crate::hash::HashMap;
use crate::model::{Direction, Finding, ObjectName, Phase, Pod, Policy, Rule, Severity};

/// An end and what is the same for all its pairs.
pub(super) struct Side<'a> {
    pub(super) end: End,
    addresses: Vec<IpAddr>,
    /// The nodes that an address is of; none for a pod's own.
    nodes: BTreeMap<IpAddr, BTreeSet<&'a str>>,
    /// The pod that policies see behind the end's addresses; none for hostNetwork.
    pub(super) pod: Option<&'a Pod>,
    /// Per direction, the rules of the policies that isolate it; `None` when none does.
    rules: [Option<Vec<Numbered<'a>>>; 2],
}

/// A rule and its place in the memory of answers.
#[derive(Clone, Copy)]
pub(super) struct Numbered<'a> {
    pub(super) policy: &'a Policy,
    pub(super) rule: &'a Rule,
    pub(super) number: usize,
}

impl<'a> Side<'a> {
    fn new(cluster: &'a Cluster, end: End, addresses: Vec<IpAddr>) -> Self {
        let nodes = addresses
            .iter()
            .map(|address| (*address, nodes_at(cluster, *address)))
            .collect();
        Self {
            end,
            addresses,
            nodes,
            pod: None,
            rules: [None, None],
        }
    }

    pub(super) fn ports(&self, question: &Question) -> Vec<Port> {
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
    pub(super) fn pair(&self, destination: &Self) -> Option<(IpAddr, IpAddr)> {
        destination.addresses.iter().find_map(|to| {
            let is_same_family = |from: &&IpAddr| from.is_ipv4() == to.is_ipv4();
            let from = self.addresses.iter().find(is_same_family)?;
            Some((*from, *to))
        })
    }

    /// True when this is the pod's node, at this address of it.
    pub(super) fn is_node_of(&self, pod: &Pod, address: IpAddr) -> bool {
        let nodes = self.nodes.get(&address);
        nodes.is_some_and(|nodes| is_node_of(pod, nodes))
    }

    pub(super) fn rules(&self, direction: Direction) -> Option<&[Numbered<'a>]> {
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

/// Everyone who stands in the matrix, pods first; and how many rules were numbered.
pub(super) fn sides<'a>(
    cluster: &'a Cluster,
    question: &Question,
    findings: &mut Vec<Finding>,
) -> (Vec<Side<'a>>, usize) {
    let mut numbering = Numbering {
        cluster,
        first: HashMap::default(),
        next: 0,
    };
    let mut sides = pods(cluster, &mut numbering, findings);
    for address in endpoints(cluster, question, findings) {
        sides.push(Side::new(cluster, End::External(address), vec![address]));
    }
    (sides, numbering.next)
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
                let mut side = Side::new(cluster, End::Pod(Arc::clone(pod)), addresses);
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

pub(super) fn warning(object: &str, message: String) -> Finding {
    Finding {
        severity: Severity::Warning,
        object: object.to_owned(),
        field: String::new(),
        message,
    }
}
