//! Kubernetes objects to the model, with a finding for everything the API server would reject.
//!
//! Nothing here widens access. In a NetworkPolicy a rule that cannot be read admits nothing and
//! keeps its index; the other rules stand and the policy isolates. Where it cannot be read *whom*
//! or *in which direction* it isolates, it isolates more, and rules that might then admit more
//! than was meant admit nothing. A document that is not even a NetworkPolicy in form is read by
//! [`network_policy_json`] as far as it goes, one that is no document at all becomes
//! [`salvage_policy`].

mod cidr;
mod json;
mod pods;
mod policy;
mod reader;
mod rules;
mod services;
mod syntax;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::serde_json::Value;

use crate::model::{
    EndpointSlice, Finding, Labels, Namespace, Node, Pod, Policy, Service, Severity,
};
use reader::Reader;

pub use reader::brief;
pub use syntax::identity;

/// Prefix of the annotations that are kept.
const OUR_ANNOTATIONS: &str = "picket.dev/";
/// What stands for a name that is missing.
const UNNAMED: &str = "(unnamed)";
/// The label that every namespace has.
const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Reads a NetworkPolicy. There is always a policy: where something cannot be read, one that
/// admits less.
pub fn network_policy(object: &NetworkPolicy) -> (Policy, Vec<Finding>) {
    policy::read(policy::Parts::from_typed(object))
}

/// Reads a NetworkPolicy document, also one that has a value of the wrong type (a string for a
/// number) or a field that NetworkPolicy does not have (`podSelectors`): what that is part of is
/// unreadable, the rest stands.
pub fn network_policy_json(document: &Value) -> (Policy, Vec<Finding>) {
    policy::read(json::parts(document))
}

/// What a NetworkPolicy becomes of which no more is known than its name: it isolates every pod of
/// its namespace in both directions and admits nothing. For documents that cannot be parsed and
/// have no last good content; `problem` says why. Without a name, pass an empty one.
pub fn salvage_policy(namespace: &str, name: &str, problem: &str) -> (Policy, Finding) {
    let name = if syntax::identity(name).is_ok() {
        name
    } else {
        UNNAMED
    };
    let policy = policy::closed(namespace_or_default(namespace), name);
    let finding = Finding {
        severity: Severity::Error,
        object: format!("networkpolicy {}", policy.name),
        field: String::new(),
        message: format!(
            "cannot be read: {}; until it is mended it isolates every pod of namespace \
             {:?} in both directions and allows nothing",
            brief(problem),
            policy.name.namespace
        ),
    };
    (policy, finding)
}

/// Reads a Pod; `None` when it has no name.
pub fn pod(object: &core::Pod) -> (Option<Pod>, Vec<Finding>) {
    pods::read(object)
}

/// Reads a Service; `None` when it has no name.
pub fn service(object: &core::Service) -> (Option<Service>, Vec<Finding>) {
    services::service(object)
}

/// Reads an `EndpointSlice`; `None` when it has no name.
pub fn endpoint_slice(object: &discovery::EndpointSlice) -> (Option<EndpointSlice>, Vec<Finding>) {
    services::endpoint_slice(object)
}

/// Reads a Namespace; `None` when it has no name.
pub fn namespace(object: &core::Namespace) -> (Option<Namespace>, Vec<Finding>) {
    let metadata = &object.metadata;
    let name = metadata.name.clone().unwrap_or_default();
    let mut reader = Reader::new("namespace", &name);
    if !reader.has_name(&name) {
        return (None, reader.finish());
    }
    reader.check_name(&name, syntax::dns_label(&name));
    let mut labels = reader.labels(metadata);
    if let Some(written) = labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.clone())
        && written != name
    {
        reader.warning(
            format!("metadata.labels[{NAMESPACE_NAME_LABEL}]"),
            format!("{written:?}: is always the namespace's name and is read as {name:?}"),
        );
    }
    let namespace = Namespace {
        name: Arc::from(name),
        labels,
        annotations: our_annotations(metadata.annotations.as_ref()),
    };
    (Some(namespace), reader.finish())
}

/// Reads a Node; `None` when it has no name.
pub fn node(object: &core::Node) -> (Option<Node>, Vec<Finding>) {
    let metadata = &object.metadata;
    let name = metadata.name.clone().unwrap_or_default();
    let mut reader = Reader::new("node", &name);
    if !reader.has_name(&name) {
        return (None, reader.finish());
    }
    let mut addresses = Vec::new();
    let stated = object
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    for (index, address) in stated.enumerate() {
        // The other types are host names.
        if matches!(&*address.type_, "InternalIP" | "ExternalIP") {
            let field = format!("status.addresses[{index}].address");
            reader.address(&mut addresses, field, &address.address);
        }
    }
    let mut pod_cidrs = Vec::new();
    if let Some(spec) = &object.spec {
        let stated = spec.pod_cidrs.clone().unwrap_or_default();
        let stated = if stated.is_empty() {
            spec.pod_cidr.clone().into_iter().collect()
        } else {
            stated
        };
        for (index, text) in stated.iter().enumerate() {
            match cidr::parse(text) {
                Ok(parsed) => pod_cidrs.push(parsed.network),
                Err(problem) => reader.error(
                    format!("spec.podCIDRs[{index}]"),
                    format!("{text:?}: {problem}; it is left out"),
                ),
            }
        }
    }
    let labels = reader.labels(metadata);
    let node = Node {
        name: Arc::from(name),
        labels,
        addresses,
        pod_cidrs,
    };
    (Some(node), reader.finish())
}

/// True for annotations that mean something here: no other one is kept.
pub fn is_our_annotation(key: &str) -> bool {
    key.starts_with(OUR_ANNOTATIONS)
}

fn our_annotations(annotations: Option<&BTreeMap<String, String>>) -> Labels {
    annotations
        .into_iter()
        .flatten()
        .filter(|(key, _)| is_our_annotation(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// A manifest without a namespace means the one kubectl would put it into.
fn namespace_or_default(namespace: &str) -> &str {
    if namespace.is_empty() {
        "default"
    } else {
        namespace
    }
}

fn name_or_unnamed(name: &str) -> &str {
    if name.is_empty() { UNNAMED } else { name }
}
