//! What a lab needs to know of manifests: which pods there are, at which addresses, all of them on
//! the one node that a lab has.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use agent::source::directory;
use agent_policy::cluster::Cluster;
use agent_policy::model::{Change, Labels, Node, Phase, Pod};
use anyhow::{Context as _, Result};

/// The one node of a lab, whatever nodes its manifests name.
const NODE: &str = "lab";

/// A pod to lay out.
#[derive(Clone, Debug)]
pub struct PodManifest {
    /// `namespace/name`.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Shares the node's network.
    pub host_network: bool,
}

/// What a directory of manifests lays out.
#[derive(Debug, Default)]
pub struct Manifests {
    /// The objects, with every pod on one node that has the addresses of all.
    pub cluster: Cluster,
    /// Pods that own an address.
    pub pods: Vec<PodManifest>,
    /// Addresses of the nodes.
    pub node_addresses: Vec<IpAddr>,
    /// Pods that cannot be laid out, and why; problems of the manifests themselves.
    pub remarks: Vec<String>,
}

/// Reads a directory as the agent does, and moves everything to the lab's node.
pub fn read(directory: &Path) -> Result<Manifests> {
    let loaded = directory::load(directory)
        .with_context(|| format!("reading the manifests in {}", directory.display()))?;
    let mut manifests = Manifests {
        remarks: loaded.findings.iter().map(ToString::to_string).collect(),
        ..Manifests::default()
    };
    for mut change in loaded.changes {
        match &mut change {
            Change::Pod(pod) => pod.node = NODE.into(),
            Change::Node(node) => {
                manifests.node_addresses.append(&mut node.addresses);
                continue;
            }
            Change::PodGone(_)
            | Change::Namespace(_)
            | Change::NamespaceGone(_)
            | Change::NodeGone(_)
            | Change::Policy(_)
            | Change::PolicyGone(_)
            | Change::Service(_)
            | Change::ServiceGone(_)
            | Change::EndpointSlice(_)
            | Change::EndpointSliceGone(_) => {}
        }
        // What an object touches matters to a running agent only.
        drop(manifests.cluster.apply(change));
    }
    let node = Node {
        name: Arc::from(NODE),
        labels: Labels::new(),
        addresses: manifests.node_addresses.clone(),
        pod_cidrs: Vec::new(),
    };
    drop(manifests.cluster.apply(Change::Node(node)));
    let mut pods: Vec<Pod> = manifests
        .cluster
        .pods()
        .map(|pod| Pod::clone(pod))
        .collect();
    // Newest first: who owns an address is the newest object that is not completed.
    pods.sort_by(|a, b| (b.created, &b.uid).cmp(&(a.created, &a.uid)));
    let mut owners: BTreeMap<IpAddr, String> = BTreeMap::new();
    for pod in pods {
        let name = pod.name.to_string();
        let mut addresses = Vec::new();
        for address in pod.addresses {
            match owners.get(&address) {
                _ if pod.phase == Phase::Completed => {}
                Some(_) if pod.host_network => addresses.push(address),
                Some(owner) => manifests.remarks.push(format!(
                    "pod {name}: address {address} belongs to {owner}, which is newer"
                )),
                None => {
                    owners.insert(address, name.clone());
                    addresses.push(address);
                }
            }
        }
        if addresses.is_empty() {
            manifests.remarks.push(format!(
                "pod {name}: owns no address, so it is not laid out"
            ));
            continue;
        }
        manifests.pods.push(PodManifest {
            name,
            addresses,
            host_network: pod.host_network,
        });
    }
    manifests.pods.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(manifests)
}
