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

/// A Service from `namespace/name`, its virtual addresses, and its ports as items of a flow
/// sequence: `{port: 80, targetPort: 8080}`.
pub fn service<A: Display>(name: &str, addresses: &[A], ports: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let addresses: Vec<String> = addresses
        .iter()
        .map(|address| format!("\"{address}\""))
        .collect();
    let addresses = addresses.join(", ");
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: {namespace}, name: {name}}}\n\
         spec: {{clusterIPs: [{addresses}], ports: [{ports}]}}\n"
    )
}

/// What is behind the Service `namespace/name`: addresses of one family, and ports as items of a
/// flow sequence.
pub fn endpoint_slice<A: Display>(service: &str, addresses: &[A], ports: &str) -> String {
    let (namespace, name) = service.split_once('/').unwrap_or(("default", service));
    let endpoints: Vec<String> = addresses
        .iter()
        .map(|address| format!("{{addresses: [\"{address}\"]}}"))
        .collect();
    let is_v6 = addresses
        .first()
        .is_some_and(|first| first.to_string().contains(':'));
    let (family, suffix) = if is_v6 {
        ("IPv6", "v6")
    } else {
        ("IPv4", "v4")
    };
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{namespace: {namespace}, name: {name}-{suffix}, \
         labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: {family}\n\
         endpoints: [{}]\nports: [{ports}]\n",
        endpoints.join(", ")
    )
}

/// A NetworkPolicy from its spec.
pub fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{namespace: {namespace}, name: {name}}}\nspec: {spec}\n"
    )
}
