//! Claims about explanations: the rule that decided, the nearest miss, what would admit.

mod properties;
mod services;

use super::*;
use crate::evaluate::by_policy;
use crate::model::Protocol;
use crate::written;

/// A portal in one namespace, an API in another that is isolated for ingress, and a worker whose
/// egress is isolated.
const SHOP: &str = "
kind: Namespace
metadata: {name: web, labels: {tier: edge}}
---
kind: Namespace
metadata: {name: payments}
---
kind: Pod
metadata: {namespace: web, name: portal-1, labels: {app: portal, pod-template-hash: 5d9f}}
spec: {nodeName: node-1, containers: [{name: c}]}
status: {podIP: 10.0.0.1}
---
kind: Pod
metadata: {namespace: payments, name: api-1, labels: {app: payments-api}}
spec: {nodeName: node-1, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIP: 10.0.0.2}
---
kind: Pod
metadata: {namespace: payments, name: worker-1, labels: {app: worker}}
spec: {nodeName: node-1, containers: [{name: c}]}
status: {podIP: 10.0.0.3}
---
kind: NetworkPolicy
metadata: {namespace: payments, name: default-deny-ingress}
spec: {podSelector: {}, policyTypes: [Ingress]}
---
kind: NetworkPolicy
metadata: {namespace: payments, name: allow-case-api}
spec:
  podSelector: {matchLabels: {app: payments-api}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {name: case-management}}
      podSelector: {matchLabels: {app: case-api}}
    ports: [{port: 8080}]
";

fn shop_with(more: &str) -> Cluster {
    written::cluster(&format!("{SHOP}\n---\n{more}"))
}

fn to_api(cluster: &Cluster) -> Explanation {
    explain(cluster, &written::tcp("10.0.0.1", "10.0.0.2", 8080))
}

/// The shop with one more policy for the API.
fn shop_with_policy(name: &str, rest_of_spec: &str) -> Cluster {
    shop_with(&format!(
        "
kind: NetworkPolicy
metadata: {{namespace: payments, name: {name}}}
spec:
  podSelector: {{matchLabels: {{app: payments-api}}}}
{rest_of_spec}"
    ))
}

/// A rule's conditions, a line each: met or not, what about, what it wants, what is there.
fn conditions(near: &NearRule) -> Vec<String> {
    let line = |each: &Condition| {
        let sign = if each.is_met { '+' } else { '-' };
        let subject = match each.subject.as_str() {
            "" => String::new(),
            subject => format!("{subject}: "),
        };
        format!(
            "{sign} {}: {} | {subject}{}",
            each.kind, each.wants, each.has
        )
    };
    near.conditions.iter().map(line).collect()
}

#[test]
fn a_denial_names_every_policy_that_isolates() {
    let side = to_api(&written::cluster(SHOP)).ingress;
    let isolated_by: Vec<String> = side
        .isolated_by
        .iter()
        .map(|it| format!("{}: {it}", it.policy))
        .collect();
    assert_eq!(
        isolated_by,
        [
            "payments/allow-case-api: selects app=payments-api, 1 ingress rule",
            "payments/default-deny-ingress: selects every pod, has no rules",
        ]
    );
}

#[test]
fn the_nearest_rule_says_of_each_condition_what_it_wants_and_what_is_there() {
    let side = to_api(&written::cluster(SHOP)).ingress;
    assert_eq!(side.nearest.len(), 1);
    assert_eq!(
        side.nearest[0].rule.to_string(),
        "payments/allow-case-api/ingress/0"
    );
    assert_eq!(
        conditions(&side.nearest[0]),
        [
            "+ port: TCP/8080 | TCP/8080",
            "- namespace: name=case-management | web: kubernetes.io/metadata.name=web, tier=edge",
            "- pod: app=case-api | web/portal-1: app=portal",
        ]
    );
}

#[test]
fn the_addition_is_one_rule_beside_the_nearest() {
    let addition = to_api(&written::cluster(SHOP)).ingress.addition.unwrap();
    assert_eq!(addition.policy.to_string(), "payments/allow-case-api");
    assert!(!addition.is_new_policy);
    assert_eq!(
        addition.yaml,
        "- from:\n  \
           - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: web}}\n    \
             podSelector: {matchLabels: {app: portal}}\n  \
           ports: [{protocol: TCP, port: 8080}]\n"
    );
}

#[test]
fn where_only_policies_for_every_pod_isolate_the_addition_is_a_policy_of_its_own() {
    let cluster = written::cluster(SHOP);
    let side = explain(&cluster, &written::tcp("10.0.0.2", "10.0.0.3", 80)).ingress;
    let addition = side.addition.unwrap();
    assert!(addition.is_new_policy);
    assert_eq!(
        addition.yaml,
        "apiVersion: networking.k8s.io/v1\n\
         kind: NetworkPolicy\n\
         metadata:\n  \
           namespace: payments\n  \
           name: allow-worker-1-from-api-1\n\
         spec:\n  \
           podSelector: {matchLabels: {app: worker}}\n  \
           policyTypes: [Ingress]\n  \
           ingress:\n  \
           - from:\n    \
             - podSelector: {matchLabels: {app: payments-api}}\n    \
             ports: [{protocol: TCP, port: 80}]\n"
    );
}

#[test]
fn fewer_failed_conditions_come_first_then_labels_that_differ_less() {
    let cluster = shop_with_policy(
        "others",
        "  ingress:
  - from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: nothing-like-it}}}]
  - from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: portals}}}]
",
    );
    let rules: Vec<String> = to_api(&cluster)
        .ingress
        .nearest
        .iter()
        .map(|near| near.rule.to_string())
        .collect();
    assert_eq!(
        rules,
        [
            "payments/others/ingress/1",
            "payments/others/ingress/0",
            "payments/allow-case-api/ingress/0",
        ]
    );
}

#[test]
fn of_several_peers_and_ports_the_nearest_are_shown() {
    let cluster = shop_with_policy(
        "several",
        "  ingress:
  - from:
    - ipBlock: {cidr: 192.0.2.0/24}
    - namespaceSelector: {matchLabels: {tier: edge}}
    ports: [{port: 9090, protocol: UDP}, {port: 8080, protocol: UDP}]
",
    );
    let side = to_api(&cluster).ingress;
    assert_eq!(
        conditions(&side.nearest[0]),
        [
            "- protocol: UDP | TCP",
            "+ port: UDP/8080 | TCP/8080",
            "+ namespace: tier=edge | web: tier=edge",
            "+ pod: any pod | web/portal-1: app=portal, pod-template-hash=5d9f",
        ]
    );
}

#[test]
fn an_exception_is_a_condition_of_its_own() {
    let cluster = shop_with_policy(
        "block",
        "  ingress:
  - from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/24]}}]
",
    );
    let side = to_api(&cluster).ingress;
    assert_eq!(
        conditions(&side.nearest[0]),
        [
            "+ port: any port | TCP/8080",
            "+ ipBlock: 10.0.0.0/8 | web/portal-1: 10.0.0.1",
            "- except: an address outside 10.0.0.0/24 | web/portal-1: 10.0.0.1",
        ]
    );
}

#[test]
fn a_rule_that_could_not_be_read_is_shown_as_that() {
    let (cluster, _findings) = written::cluster_with_findings(&format!(
        "{SHOP}
---
kind: NetworkPolicy
metadata: {{namespace: payments, name: broken}}
spec:
  podSelector: {{matchLabels: {{app: payments-api}}}}
  ingress: [{{from: [{{ipBlock: {{cidr: 10.0.0.0/33}}}}]}}]
"
    ));
    let side = to_api(&cluster).ingress;
    assert_eq!(
        side.nearest[0].rule.to_string(),
        "payments/broken/ingress/0"
    );
    assert_eq!(side.nearest[0].conditions[0].kind, Kind::Readable);
}

#[test]
fn a_policy_that_nearly_selects_the_pod_is_a_suspect() {
    let cluster = shop_with(
        "
kind: NetworkPolicy
metadata: {namespace: payments, name: allow-api}
spec:
  podSelector: {matchLabels: {app: payments-api-server}}
  ingress: [{from: [{namespaceSelector: {}}]}]
",
    );
    let side = to_api(&cluster).ingress;
    assert_eq!(
        side.suspects,
        [Suspect::NotSelected {
            policy: ObjectName::new("payments", "allow-api"),
            wants: "app=payments-api-server".to_owned(),
            has: "app=payments-api".to_owned(),
        }]
    );
    assert_eq!(side.isolated_by.len(), 2, "it does not isolate");
    assert_eq!(
        side.addition.unwrap().policy.to_string(),
        "payments/allow-case-api"
    );
}

#[test]
fn a_direction_left_out_of_policy_types_is_a_suspect() {
    let cluster = shop_with_policy(
        "allow-api",
        "  policyTypes: [Egress]
  ingress: [{}]
",
    );
    assert_eq!(
        to_api(&cluster).ingress.suspects,
        [Suspect::DirectionLeftOut {
            policy: ObjectName::new("payments", "allow-api"),
            direction: Direction::Ingress,
        }]
    );
}

#[test]
fn a_label_that_only_the_namespace_misses_is_a_suspect() {
    let cluster = shop_with_policy(
        "allow-web",
        "  ingress: [{from: [{namespaceSelector: {matchLabels: {team: web}}}]}]
",
    );
    let side = to_api(&cluster).ingress;
    assert_eq!(
        side.suspects[0].to_string(),
        "only the namespace's label is missing: payments/allow-web/ingress/0 wants team=web, web \
         has kubernetes.io/metadata.name=web, tier=edge"
    );
}

#[test]
fn a_port_name_that_nobody_declares_is_a_suspect() {
    let cluster = shop_with_policy(
        "allow-web",
        "  ingress: [{ports: [{port: web}]}]
",
    );
    let side = to_api(&cluster).ingress;
    assert_eq!(
        side.suspects[0].to_string(),
        "payments/allow-web/ingress/0 names TCP port \"web\", which no container of \
         payments/api-1 declares (it declares http TCP/8080)"
    );
    assert_eq!(
        conditions(&side.nearest[0])[0],
        "- named port: TCP port \"web\" | payments/api-1 declares none of that name, asked for TCP/8080"
    );
}

#[test]
fn a_pods_own_node_is_let_in_by_no_rule_and_its_isolation_is_still_said() {
    let cluster = shop_with(
        "
kind: Node
metadata: {name: node-1}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
",
    );
    let packet = written::tcp("192.0.2.1", "10.0.0.2", 8080);
    let side = explain(&cluster, &packet).ingress;
    assert_eq!(side.decision.reason, Reason::Node);
    assert_eq!(side.decision.rule, None);
    assert_eq!(side.isolated_by.len(), 2);
    let forwarded = explain_decisions(&cluster, &packet, by_policy(&cluster, &packet)).ingress;
    assert_eq!(forwarded.decision.reason, Reason::IsolatedNoRule);
    assert_eq!(forwarded.nearest.len(), 1);
}

#[test]
fn another_node_as_peer_is_a_suspect_because_no_selector_selects_it() {
    let cluster = shop_with(
        "
kind: Node
metadata: {name: node-2}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
kind: Pod
metadata: {namespace: web, name: proxy, labels: {app: case-api}}
spec: {hostNetwork: true, nodeName: node-2, containers: [{name: c}]}
status: {podIP: 192.0.2.1}
",
    );
    let side = explain(&cluster, &written::tcp("192.0.2.1", "10.0.0.2", 8080)).ingress;
    assert_eq!(side.peer.to_string(), "node:node-2");
    assert_eq!(
        side.suspects,
        [Suspect::HostNetwork {
            address: "192.0.2.1".parse().unwrap(),
            node: Some(Arc::from("node-2")),
            pods: vec![ObjectName::new("web", "proxy")],
        }]
    );
    let yaml = side.addition.unwrap().yaml;
    assert!(yaml.contains("ipBlock: {cidr: \"192.0.2.1/32\"}"), "{yaml}");
}

const WORKER_EGRESS: &str = "
kind: NetworkPolicy
metadata: {namespace: payments, name: egress}
spec: {podSelector: {}, policyTypes: [Egress]}
";

#[test]
fn egress_that_alone_is_missing_is_said_first() {
    let cluster = shop_with(WORKER_EGRESS);
    let explanation = explain(&cluster, &written::tcp("10.0.0.3", "10.0.0.1", 80));
    assert_eq!(explanation.egress.suspects, [Suspect::OnlyEgressMissing]);
    assert_eq!(explanation.ingress.decision.reason, Reason::NotIsolated);
}

#[test]
fn dns_is_a_suspect_of_denied_egress() {
    let cluster = shop_with(WORKER_EGRESS);
    let packet = Packet {
        protocol: Protocol::UDP,
        ..written::tcp("10.0.0.3", "10.0.0.1", 53)
    };
    let suspects = explain(&cluster, &packet).egress.suspects;
    assert!(suspects.contains(&Suspect::DnsDenied), "{suspects:?}");
}

#[test]
fn words_that_yaml_reads_as_something_else_are_quoted() {
    let cluster = written::cluster(
        "
kind: Pod
metadata: {namespace: 'y', name: a, labels: {app: 'true', zone: '1'}}
spec: {containers: [{name: c}]}
status: {podIP: 10.0.0.1}
---
kind: Pod
metadata: {namespace: web, name: b, labels: {app: web}}
spec: {containers: [{name: c}]}
status: {podIP: 10.0.0.2}
---
kind: NetworkPolicy
metadata: {namespace: web, name: deny}
spec: {podSelector: {matchLabels: {app: web}}}
",
    );
    let side = explain(&cluster, &written::tcp("10.0.0.1", "10.0.0.2", 80)).ingress;
    assert_eq!(
        side.addition.unwrap().yaml,
        "- from:\n  \
           - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: \"y\"}}\n    \
             podSelector: {matchLabels: {app: \"true\"}}\n  \
           ports: [{protocol: TCP, port: 80}]\n"
    );
}

#[test]
fn distance_counts_letters_to_change() {
    for (a, b, expected) in [
        ("", "", 0),
        ("api", "api", 0),
        ("api", "app", 1),
        ("api", "api-server", 7),
        ("kitten", "sitting", 3),
        ("", "abc", 3),
        ("abc", "", 3),
    ] {
        assert_eq!(words::distance(a, b), expected, "{a} {b}");
    }
}

#[test]
fn the_admitting_rule_can_be_shown_as_met_conditions() {
    let cluster = shop_with_policy(
        "allow-web",
        "  ingress: [{from: [{namespaceSelector: {matchLabels: {tier: edge}}}], ports: [{port: http}]}]
",
    );
    let packet = written::tcp("10.0.0.1", "10.0.0.2", 8080);
    let explanation = explain(&cluster, &packet);
    let rule = explanation.ingress.decision.rule.unwrap();
    assert_eq!(rule.to_string(), "payments/allow-web/ingress/0");
    let shown = conditions_of(&cluster, &packet, &rule).unwrap();
    assert_eq!(
        conditions(&shown)[0],
        "+ named port: TCP port \"http\" | payments/api-1 declares it as 8080, asked for TCP/8080"
    );
    assert!(shown.conditions.iter().all(|condition| condition.is_met));
}
