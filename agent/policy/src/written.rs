//! Clusters written as manifests, for tests that read best that way.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::serde::de::DeserializeOwned;
use k8s_openapi::serde_json::{self, Value, json};

use crate::cluster::Cluster;
use crate::evaluate::Packet;
use crate::manifest;
use crate::model::{
    Change, Direction, Finding, NamespaceScope, Peer, Peers, Policy, PortMatch, Ports, Protocol,
    Rule,
};
use crate::selector::{Operator, Selector};

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
            "Service" => {
                let (service, found) = manifest::service(&typed(document));
                let change = service.map(|service| Change::Service(Box::new(service)));
                (change, found)
            }
            "EndpointSlice" => {
                let (slice, found) = manifest::endpoint_slice(&typed(document));
                (
                    slice.map(|slice| Change::EndpointSlice(Box::new(slice))),
                    found,
                )
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

/// The document that a policy is read from. Empty lists of peers and ports cannot be written.
pub(crate) fn document(policy: &Policy) -> Value {
    let types: Vec<&str> = [
        (policy.isolates_ingress, "Ingress"),
        (policy.isolates_egress, "Egress"),
    ]
    .into_iter()
    .filter_map(|(isolates, word)| isolates.then_some(word))
    .collect();
    let rules = |direction: Direction, peers: &str| -> Vec<Value> {
        let rules = policy.rules(direction).iter();
        rules.map(|rule| rule_document(rule, peers)).collect()
    };
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "namespace": *policy.name.namespace, "name": *policy.name.name },
        "spec": {
            "podSelector": selector_document(&policy.pods),
            "policyTypes": types,
            "ingress": rules(Direction::Ingress, "from"),
            "egress": rules(Direction::Egress, "to"),
        },
    })
}

fn rule_document(rule: &Rule, peers_field: &str) -> Value {
    let mut document = json!({});
    if let Peers::Any(peers) = &rule.peers {
        document[peers_field] = peers.iter().map(peer_document).collect();
    }
    if let Ports::Any(ports) = &rule.ports {
        document["ports"] = ports.iter().map(port_document).collect();
    }
    document
}

fn peer_document(peer: &Peer) -> Value {
    match peer {
        Peer::Pods {
            namespaces: NamespaceScope::Own,
            pods,
        } => json!({ "podSelector": selector_document(pods) }),
        Peer::Pods {
            namespaces: NamespaceScope::Selected(namespaces),
            pods,
        } => json!({
            "namespaceSelector": selector_document(namespaces),
            "podSelector": selector_document(pods),
        }),
        Peer::Block { cidr, except } => {
            let except: Vec<String> = except.iter().map(ToString::to_string).collect();
            json!({ "ipBlock": { "cidr": cidr.to_string(), "except": except } })
        }
    }
}

fn port_document(port: &PortMatch) -> Value {
    match port {
        PortMatch::Protocol(protocol) => json!({ "protocol": protocol.to_string() }),
        PortMatch::Range {
            protocol,
            first,
            last,
        } => json!({ "protocol": protocol.to_string(), "port": first, "endPort": last }),
        PortMatch::Named { protocol, name } => {
            json!({ "protocol": protocol.to_string(), "port": name })
        }
    }
}

fn selector_document(selector: &Selector) -> Value {
    let requirements = selector.requirements.iter();
    let expressions: Vec<Value> = requirements
        .map(|requirement| match &requirement.operator {
            Operator::In(values) => {
                json!({ "key": requirement.key, "operator": "In", "values": values })
            }
            Operator::NotIn(values) => {
                json!({ "key": requirement.key, "operator": "NotIn", "values": values })
            }
            Operator::Exists => json!({ "key": requirement.key, "operator": "Exists" }),
            Operator::DoesNotExist => json!({ "key": requirement.key, "operator": "DoesNotExist" }),
        })
        .collect();
    json!({ "matchExpressions": expressions })
}
