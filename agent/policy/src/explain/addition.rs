//! The smallest addition to the policies that admits a packet on one side.

use std::fmt::Write as _;
use std::sync::Arc;

use super::conditions::NearRule;
use crate::cluster::Cluster;
use crate::evaluate::{Flow, isolating};
use crate::model::{Direction, Labels, ObjectName, Pod};

/// Labels by which people know a workload, best first.
const TELLING_LABELS: [&str; 5] = [
    "app.kubernetes.io/name",
    "app",
    "k8s-app",
    "name",
    "app.kubernetes.io/component",
];
/// Labels that change with a rollout or differ between replicas: no policy should want them.
const PASSING_LABELS: [&str; 10] = [
    "pod-template-hash",
    "pod-template-generation",
    "controller-revision-hash",
    "controller-uid",
    "job-name",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
    "batch.kubernetes.io/job-completion-index",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
];

/// Something to add, as YAML.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Addition {
    /// The policy to add it to, or a new one.
    pub policy: ObjectName,
    /// The direction.
    pub direction: Direction,
    /// True when `yaml` is a whole policy, because every policy that isolates the endpoint selects
    /// every pod of the namespace: a rule added there would open all of them.
    pub is_new_policy: bool,
    /// A whole policy, or one item for `spec.ingress` or `spec.egress`.
    pub yaml: String,
    /// What it admits beside what was asked for, when that is much.
    pub caution: Option<&'static str>,
}

/// Makes the addition.
pub(super) fn smallest(
    cluster: &Cluster,
    flow: &Flow<'_>,
    endpoint: &Pod,
    direction: Direction,
    near: &[NearRule],
) -> Addition {
    let policies = isolating(cluster, endpoint, direction);
    let mut narrow = policies
        .iter()
        .filter(|policy| !policy.pods.requirements.is_empty());
    // People look for the rule beside the one that nearly was it.
    let place = |policy: &ObjectName| near.iter().position(|near| near.rule.policy == *policy);
    let nearest = narrow
        .clone()
        .filter_map(|policy| Some((place(&policy.name)?, policy)))
        .min_by_key(|(place, _)| *place)
        .map(|(_, policy)| policy);
    let rule = rule(flow, endpoint, direction);
    let caution = caution(flow);
    if let Some(policy) = nearest.or_else(|| narrow.next()) {
        return Addition {
            policy: policy.name.clone(),
            direction,
            is_new_policy: false,
            yaml: rule,
            caution,
        };
    }
    let policy = new_name(cluster, flow, endpoint, direction);
    let mut yaml = String::new();
    let type_word = match direction {
        Direction::Ingress => "Ingress",
        Direction::Egress => "Egress",
    };
    // Every pod of the namespace is isolated already: this isolates no other.
    let written = write!(
        yaml,
        "apiVersion: networking.k8s.io/v1\n\
         kind: NetworkPolicy\n\
         metadata:\n\
         \x20 namespace: {}\n\
         \x20 name: {}\n\
         spec:\n\
         \x20 podSelector: {}\n\
         \x20 policyTypes: [{type_word}]\n\
         \x20 {direction}:\n",
        scalar(&policy.namespace),
        scalar(&policy.name),
        selector(&telling_labels(&endpoint.labels)),
    );
    debug_assert!(written.is_ok(), "writing to a string cannot fail");
    for line in rule.lines() {
        yaml.push_str("  ");
        yaml.push_str(line);
        yaml.push('\n');
    }
    Addition {
        policy,
        direction,
        is_new_policy: true,
        yaml,
        caution,
    }
}

/// One item of `spec.ingress` or `spec.egress`.
fn rule(flow: &Flow<'_>, endpoint: &Pod, direction: Direction) -> String {
    let field = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let peer = match flow.peer {
        None => {
            let bits = if flow.address.is_ipv4() { 32 } else { 128 };
            format!("  - ipBlock: {{cidr: \"{}/{bits}\"}}\n", flow.address)
        }
        Some(pod) => {
            let pods = selector(&telling_labels(&pod.labels));
            if pod.name.namespace == endpoint.name.namespace {
                format!("  - podSelector: {pods}\n")
            } else {
                format!(
                    "  - namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {}}}}}\n    \
                     podSelector: {pods}\n",
                    scalar(&pod.name.namespace)
                )
            }
        }
    };
    let mut yaml = format!("- {field}:\n{peer}");
    // A rule can list ports of these protocols only; for any other it must leave them out.
    if flow.protocol.has_ports() {
        let ports = format!(
            "  ports: [{{protocol: {}, port: {}}}]\n",
            flow.protocol, flow.port
        );
        yaml.push_str(&ports);
    }
    yaml
}

fn caution(flow: &Flow<'_>) -> Option<&'static str> {
    if !flow.protocol.has_ports() {
        return Some(
            "a rule can only admit this protocol by leaving out ports, which admits every \
             protocol and port",
        );
    }
    match flow.peer {
        Some(pod) if telling_labels(&pod.labels).is_empty() => Some(
            "the peer has no labels that tell it apart: this admits every pod of its namespace; \
             label it first",
        ),
        Some(_) | None => None,
    }
}

/// The labels to select a pod by: the one people know it by, else all that stay.
fn telling_labels(labels: &Labels) -> Labels {
    let telling = TELLING_LABELS
        .iter()
        .find_map(|key| labels.get_key_value(*key));
    if let Some((key, value)) = telling {
        return Labels::from([(key.clone(), value.clone())]);
    }
    labels
        .iter()
        .filter(|(key, _)| !PASSING_LABELS.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn selector(labels: &Labels) -> String {
    if labels.is_empty() {
        return "{}".to_owned();
    }
    let labels: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{}: {}", scalar(key), scalar(value)))
        .collect();
    format!("{{matchLabels: {{{}}}}}", labels.join(", "))
}

/// A string as YAML: bare only where every YAML reads it as a string.
fn scalar(text: &str) -> String {
    const WORDS: [&str; 11] = [
        "y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf",
    ];
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'));
    let is_word = WORDS.contains(&text.to_ascii_lowercase().as_str());
    if is_plain && !is_word {
        text.to_owned()
    } else {
        format!("{text:?}")
    }
}

/// A name that says what the policy is for and that no policy has.
fn new_name(
    cluster: &Cluster,
    flow: &Flow<'_>,
    endpoint: &Pod,
    direction: Direction,
) -> ObjectName {
    let workload = |pod: &Pod| match pod.workload.split_once('/') {
        Some((_, name)) => name.to_owned(),
        None => pod.name.name.to_string(),
    };
    let preposition = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let peer = flow.peer.map_or_else(
        || flow.address.to_string().replace([':', '.'], "-"),
        workload,
    );
    let base = format!("allow-{}-{preposition}-{peer}", workload(endpoint));
    // Names of workloads may have more than a policy's name, and less room for two of them.
    let base: String = base
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(200)
        .collect();
    let base = base.trim_matches('-');
    let named = |name: &str| ObjectName::new(Arc::clone(&endpoint.name.namespace), name);
    let mut name = named(base);
    let mut number = 2_u32;
    while cluster.policy(&name).is_some() {
        name = named(&format!("{base}-{number}"));
        number += 1;
    }
    name
}
