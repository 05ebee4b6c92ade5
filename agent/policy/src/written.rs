//! Clusters written as manifests, for tests that read best that way.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::serde::de::DeserializeOwned;
use k8s_openapi::serde_json::{self, Value};

use crate::cluster::Cluster;
use crate::evaluate::Packet;
use crate::manifest;
use crate::model::{Change, Finding, Policy, Protocol};

fn typed<T: DeserializeOwned>(document: Value) -> T {
    serde_json::from_value(document).unwrap()
}

pub(crate) fn documents(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap()
}

/// The policy of a document, and what was found.
pub(crate) fn policy(yaml: &str) -> (Policy, Vec<Finding>) {
    manifest::network_policy_json(&documents(yaml)[0])
}

/// Every object of the documents, and what was found.
pub(crate) fn cluster_with_findings(yaml: &str) -> (Cluster, Vec<Finding>) {
    let mut cluster = Cluster::new();
    let mut findings = Vec::new();
    for document in documents(yaml) {
        let kind = document["kind"].as_str().unwrap().to_owned();
        let (change, found) = match kind.as_str() {
            "Pod" => {
                let (pod, found) = manifest::pod(&typed::<core::Pod>(document));
                (pod.map(|pod| Change::Pod(Box::new(pod))), found)
            }
            "Namespace" => {
                let (namespace, found) = manifest::namespace(&typed(document));
                (namespace.map(Change::Namespace), found)
            }
            "Node" => {
                let (node, found) = manifest::node(&typed(document));
                (node.map(Change::Node), found)
            }
            "NetworkPolicy" => {
                let (policy, found) = manifest::network_policy_json(&document);
                (Some(Change::Policy(Box::new(policy))), found)
            }
            kind => panic!("{kind}: not for these tests"),
        };
        findings.extend(found);
        let _touched = change.map(|change| cluster.apply(change));
    }
    (cluster, findings)
}

/// Every object of valid documents.
pub(crate) fn cluster(yaml: &str) -> Cluster {
    let (cluster, findings) = cluster_with_findings(yaml);
    assert_eq!(findings, [], "valid manifests");
    cluster
}

/// A TCP packet.
pub(crate) fn tcp(from: &str, to: &str, port: u16) -> Packet {
    Packet {
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
        protocol: Protocol::TCP,
        port,
    }
}
