//! Objects as tests write them: YAML from the little that a test cares about. Each is one document;
//! `"---\n"` goes between two.

use std::fmt::Display;

/// A Namespace; `labels` as in a flow mapping: `team: trusted, stage: beta`.
pub fn namespace(name: &str, labels: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
}

/// A running Pod from `namespace/name`, its labels as in a flow mapping, and its addresses.
pub fn pod<A: Display>(name: &str, labels: &str, addresses: &[A]) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let ips: Vec<String> = addresses
        .iter()
        .map(|address| format!("{{ip: \"{address}\"}}"))
        .collect();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: {namespace}, name: {name}, labels: {{{labels}}}}}\n\
         spec: {{containers: [{{name: c, image: none}}]}}\nstatus: {{podIPs: [{}]}}\n",
        ips.join(", ")
    )
}

/// A NetworkPolicy from its spec.
pub fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{namespace: {namespace}, name: {name}}}\nspec: {spec}\n"
    )
}
