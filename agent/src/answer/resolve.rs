//! Who a reference means among the pods there are; for unknown names, the nearest ones there are.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use agent_policy::cluster::Cluster;
use agent_policy::explain::distance;
use agent_policy::model::{ObjectName, Phase, Pod};

use super::reference::{Reference, Who, short_kind};
use crate::dto::Party;

/// One place where a connection can start or end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum End {
    /// A pod.
    Pod(Arc<Pod>),
    /// An address that is no pod's.
    Address(IpAddr),
}

impl End {
    /// Its addresses.
    pub fn addresses(&self) -> &[IpAddr] {
        match self {
            Self::Pod(pod) => &pod.addresses,
            Self::Address(address) => std::slice::from_ref(address),
        }
    }

    /// For people and JSON.
    pub fn party(&self, cluster: &Cluster) -> Party {
        match self {
            Self::Pod(pod) => pod_party(pod),
            Self::Address(address) => address_party(cluster, *address),
        }
    }
}

/// What a reference means.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The whole of it: the workload, when a workload was named.
    pub party: Party,
    /// Every place it stands for; never empty.
    pub ends: Vec<End>,
}

/// Why a reference means nobody.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ResolveError {
    /// No pod and no workload is called so.
    #[error("{what} {name}: there is none{}", nearest_text(.nearest))]
    Unknown {
        /// `pod`, `deployment`.
        what: String,
        /// The name.
        name: String,
        /// Names there are, nearest first.
        nearest: Vec<String>,
    },
    /// Its pods have no address.
    #[error(
        "{0}: no pod of it has an address yet (status.podIP), so nothing can reach it or be reached by it"
    )]
    NoAddress(String),
    /// No Node object is called so, or it states no address.
    #[error("node {name}: {}", node_text(.known))]
    Node {
        /// The name.
        name: String,
        /// Nodes with an address.
        known: Vec<String>,
    },
    /// Two workloads share the name.
    #[error("{name}: there are several; write one of {}", .candidates.join(", "))]
    Ambiguous {
        /// The name.
        name: String,
        /// The references that are unique.
        candidates: Vec<String>,
    },
}

fn node_text(known: &[String]) -> String {
    if known.is_empty() {
        "no Node object states an address; write the address instead".to_owned()
    } else {
        format!(
            "there is none with an address; there are {}",
            known.join(", ")
        )
    }
}

fn nearest_text(nearest: &[String]) -> String {
    if nearest.is_empty() {
        String::new()
    } else {
        format!("; nearest: {}", nearest.join(", "))
    }
}

/// How many near names an error offers.
const NEAR_NAMES: usize = 3;

/// Finds who is meant. `current` is the namespace of references that say none.
///
/// # Errors
/// Nobody is called so, several are, or nobody of them has an address.
pub fn resolve(
    cluster: &Cluster,
    reference: &Reference,
    current: &str,
) -> Result<Resolved, ResolveError> {
    match &reference.who {
        Who::Address(address) => {
            let address = address.to_canonical();
            let end = match cluster.owner_of(address) {
                Some(pod) => End::Pod(Arc::clone(pod)),
                None => End::Address(address),
            };
            Ok(Resolved {
                party: end.party(cluster),
                ends: vec![end],
            })
        }
        Who::Node(name) => node(cluster, name),
        Who::Workload {
            namespace,
            kind: "Pod",
            name,
        } => {
            let namespace = namespace.as_deref().unwrap_or(current);
            let pod = pod_named(cluster, namespace, name).ok_or_else(|| {
                unknown(cluster, "pod", namespace, name, |pod| {
                    vec![pod.name.to_string()]
                })
            })?;
            one_pod(pod)
        }
        Who::Workload {
            namespace,
            kind,
            name,
        } => {
            let namespace = namespace.as_deref().unwrap_or(current);
            workload(cluster, namespace, &format!("{kind}/{name}")).unwrap_or_else(|| {
                // `job/db` may also be a pod of a namespace called `job`.
                if let Some(pod) = pod_named(cluster, &short_kind(kind), name) {
                    return one_pod(pod);
                }
                Err(unknown(
                    cluster,
                    &kind.to_ascii_lowercase(),
                    namespace,
                    name,
                    workload_candidate,
                ))
            })
        }
        Who::Named { namespace, name } => {
            let namespace = namespace.as_deref().unwrap_or(current);
            if let Some(pod) = pod_named(cluster, namespace, name) {
                return one_pod(pod);
            }
            let workloads: BTreeSet<&str> = living(cluster, namespace)
                .map(|pod| &*pod.workload)
                .filter(|workload| workload.split_once('/').is_some_and(|(_, its)| its == name))
                .collect();
            let mut named = workloads.iter();
            match (named.next(), named.next()) {
                (Some(only), None) => workload(cluster, namespace, only)
                    .unwrap_or_else(|| Err(unknown(cluster, "pod", namespace, name, candidates))),
                (Some(_), Some(_)) => Err(ResolveError::Ambiguous {
                    name: format!("{namespace}/{name}"),
                    candidates: workloads
                        .iter()
                        .map(|workload| format!("{namespace}/{}", short_workload(workload)))
                        .collect(),
                }),
                (None, _) => Err(unknown(
                    cluster,
                    "pod or workload",
                    namespace,
                    name,
                    candidates,
                )),
            }
        }
    }
}

/// A node by its own addresses.
fn node(cluster: &Cluster, name: &str) -> Result<Resolved, ResolveError> {
    let found = cluster
        .nodes()
        .find(|node| *node.name == *name && !node.addresses.is_empty());
    let Some(node) = found else {
        let with_address = cluster.nodes().filter(|node| !node.addresses.is_empty());
        let mut known: Vec<String> = with_address.map(|node| node.name.to_string()).collect();
        known.sort_unstable();
        known.truncate(NEAR_NAMES);
        return Err(ResolveError::Node {
            name: name.to_owned(),
            known,
        });
    };
    let mut ends = Vec::new();
    for is_family in [IpAddr::is_ipv4 as fn(&IpAddr) -> bool, IpAddr::is_ipv6] {
        let first = node.addresses.iter().copied().find(is_family);
        ends.extend(first.map(End::Address));
    }
    Ok(Resolved {
        party: Party {
            node: Some(name.to_owned()),
            ..Party::default()
        },
        ends,
    })
}

/// A pod as a party.
pub fn pod_party(pod: &Pod) -> Party {
    Party {
        namespace: Some(pod.name.namespace.to_string()),
        pod: Some(pod.name.name.to_string()),
        workload: Some(pod.workload.to_string()).filter(|workload| !workload.is_empty()),
        node: None,
        ip: pod.addresses.first().map(ToString::to_string),
        labels: BTreeMap::clone(&pod.labels),
    }
}

/// An address that is no pod's: a node, or the world.
pub fn address_party(cluster: &Cluster, address: IpAddr) -> Party {
    Party {
        node: cluster
            .nodes()
            .find(|node| node.addresses.contains(&address))
            .map(|node| node.name.to_string()),
        ip: Some(address.to_string()),
        ..Party::default()
    }
}

/// `Deployment/api` as `deploy/api`.
pub fn short_workload(workload: &str) -> String {
    match workload.split_once('/') {
        Some((kind, name)) => format!("{}/{name}", short_kind(kind)),
        None => workload.to_owned(),
    }
}

fn workload_text(pod: &Pod) -> String {
    format!("{}/{}", pod.name.namespace, short_workload(&pod.workload))
}

/// References that mean a pod, or the workload it belongs to.
fn candidates(pod: &Pod) -> Vec<String> {
    let mut names = vec![pod.name.to_string()];
    names.extend(workload_candidate(pod));
    names
}

fn workload_candidate(pod: &Pod) -> Vec<String> {
    if pod.workload.is_empty() || pod.workload.starts_with("Pod/") {
        return Vec::new();
    }
    vec![workload_text(pod)]
}

fn pod_named<'a>(cluster: &'a Cluster, namespace: &str, name: &str) -> Option<&'a Arc<Pod>> {
    cluster.pod_named(&ObjectName::new(namespace, name))
}

fn living<'a>(cluster: &'a Cluster, namespace: &str) -> impl Iterator<Item = &'a Arc<Pod>> {
    cluster
        .pods_in(namespace)
        .filter(|pod| pod.phase != Phase::Completed)
}

fn one_pod(pod: &Arc<Pod>) -> Result<Resolved, ResolveError> {
    if pod.addresses.is_empty() {
        return Err(ResolveError::NoAddress(pod.name.to_string()));
    }
    Ok(Resolved {
        party: pod_party(pod),
        ends: vec![End::Pod(Arc::clone(pod))],
    })
}

/// Every pod of a workload; `None` when there is no such workload.
fn workload(
    cluster: &Cluster,
    namespace: &str,
    workload: &str,
) -> Option<Result<Resolved, ResolveError>> {
    let mut pods: Vec<&Arc<Pod>> = living(cluster, namespace)
        .filter(|pod| *pod.workload == *workload)
        .collect();
    pods.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let first = *pods.first()?;
    let ends: Vec<End> = pods
        .iter()
        .filter(|pod| !pod.addresses.is_empty())
        .map(|pod| End::Pod(Arc::clone(pod)))
        .collect();
    if ends.is_empty() {
        return Some(Err(ResolveError::NoAddress(format!(
            "{namespace}/{}",
            short_workload(workload)
        ))));
    }
    // Labels that every replica has; a canary's differ.
    let mut labels = BTreeMap::clone(&first.labels);
    labels.retain(|key, value| pods.iter().all(|pod| pod.labels.get(key) == Some(value)));
    let party = Party {
        namespace: Some(namespace.to_owned()),
        workload: Some(workload.to_owned()),
        labels,
        ..Party::default()
    };
    Some(Ok(Resolved { party, ends }))
}

fn unknown(
    cluster: &Cluster,
    what: &str,
    namespace: &str,
    name: &str,
    candidates: impl Fn(&Pod) -> Vec<String>,
) -> ResolveError {
    let wanted = format!("{namespace}/{name}");
    let names: BTreeSet<String> = cluster.pods().flat_map(|pod| candidates(pod)).collect();
    let mut near: Vec<(usize, String)> = names
        .into_iter()
        .map(|each| {
            // The kind between namespace and name is no part of how near a name is.
            let bare = match each.split('/').collect::<Vec<_>>().as_slice() {
                [namespace, _, name] => format!("{namespace}/{name}"),
                _ => each.clone(),
            };
            (distance(&wanted, &bare), each)
        })
        .collect();
    near.sort_unstable();
    ResolveError::Unknown {
        what: what.to_owned(),
        name: wanted,
        nearest: near
            .into_iter()
            .take(NEAR_NAMES)
            .map(|(_, each)| each)
            .collect(),
    }
}
