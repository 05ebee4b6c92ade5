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
mod rules;
mod syntax;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::serde_json::Value;

use crate::model::{Finding, Labels, Namespace, Node, ObjectName, Pod, Policy, Severity};

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
    let policy = policy::closed(namespace_or_default(namespace), name_or_unnamed(name));
    let finding = Finding {
        severity: Severity::Error,
        object: format!("networkpolicy {}", policy.name),
        field: String::new(),
        message: format!(
            "cannot be read: {problem}; until it is mended it isolates every pod of namespace \
             {:?} in both directions and allows nothing",
            policy.name.namespace
        ),
    };
    (policy, finding)
}

/// Reads a Pod; `None` when it has no name.
pub fn pod(object: &core::Pod) -> (Option<Pod>, Vec<Finding>) {
    pods::read(object)
}

/// Reads a Namespace; `None` when it has no name.
pub fn namespace(object: &core::Namespace) -> (Option<Namespace>, Vec<Finding>) {
    let metadata = &object.metadata;
    let name = metadata.name.clone().unwrap_or_default();
    let mut reader = Reader::new("namespace", &name);
    if !reader.has_name(&name) {
        return (None, reader.findings);
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
    (Some(namespace), reader.findings)
}

/// Reads a Node; `None` when it has no name.
pub fn node(object: &core::Node) -> (Option<Node>, Vec<Finding>) {
    let metadata = &object.metadata;
    let name = metadata.name.clone().unwrap_or_default();
    let mut reader = Reader::new("node", &name);
    if !reader.has_name(&name) {
        return (None, reader.findings);
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
    (Some(node), reader.findings)
}

/// Collects the findings of one object.
struct Reader {
    object: String,
    findings: Vec<Finding>,
}

impl Reader {
    fn new(kind: &str, name: &str) -> Self {
        let name = name_or_unnamed(name);
        Self {
            object: format!("{kind} {name}"),
            findings: Vec::new(),
        }
    }

    fn namespaced(kind: &str, name: &ObjectName) -> Self {
        Self::new(kind, &name.to_string())
    }

    fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(Severity::Error, field.into(), message.into());
    }

    fn warning(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(Severity::Warning, field.into(), message.into());
    }

    fn add(&mut self, severity: Severity, field: String, message: String) {
        self.findings.push(Finding {
            severity,
            object: self.object.clone(),
            field,
            message,
        });
    }

    fn has_name(&mut self, name: &str) -> bool {
        if name.is_empty() {
            self.error("metadata.name", "missing: name it; it is left out");
        }
        !name.is_empty()
    }

    fn check_name(&mut self, name: &str, validity: Result<(), &'static str>) {
        if let Err(problem) = validity {
            self.warning(
                "metadata.name",
                format!("{name:?}: {problem}; the API server would refuse it, here it counts"),
            );
        }
    }

    /// The object's labels as they are written: one that no valid selector can name harms nobody.
    fn labels(&mut self, metadata: &ObjectMeta) -> Labels {
        let labels = metadata.labels.clone().unwrap_or_default();
        for (key, value) in &labels {
            let validity = syntax::label_key(key).and_then(|()| syntax::label_value(value));
            if let Err(problem) = validity {
                self.warning(
                    format!("metadata.labels[{key}]"),
                    format!("{value:?}: {problem}; the API server would refuse it, here it counts"),
                );
            }
        }
        labels
    }

    fn address(&mut self, addresses: &mut Vec<IpAddr>, field: String, text: &str) {
        match text.parse::<IpAddr>() {
            Ok(address) => {
                let address = address.to_canonical();
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            Err(_) => self.error(
                field,
                format!("{text:?}: not an IP address; it is left out"),
            ),
        }
    }
}

fn our_annotations(annotations: Option<&BTreeMap<String, String>>) -> Labels {
    annotations
        .into_iter()
        .flatten()
        .filter(|(key, _)| key.starts_with(OUR_ANNOTATIONS))
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
