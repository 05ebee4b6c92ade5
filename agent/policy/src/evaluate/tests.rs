//! Claims about `evaluate`, one by one and over random worlds.

use proptest::prelude::*;

use super::*;
use crate::model::{Change, ObjectName};
use crate::{random, written};

/// Pods `a` and `b` in namespace `ours`, `c` in `theirs`; `a` serves `http` on 8080 and `dns` on 53, `b`
/// serves `http` on 80.
const PODS: &str = "
kind: Namespace
metadata: {name: ours, labels: {team: one}}
---
kind: Namespace
metadata: {name: theirs, labels: {team: two}}
---
kind: Pod
metadata: {namespace: ours, name: a, labels: {app: a}}
spec:
  containers:
  - {name: c, ports: [{name: http, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}]}
status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
---
kind: Pod
metadata: {namespace: ours, name: b, labels: {app: b}}
spec: {containers: [{name: c, ports: [{name: http, containerPort: 80}]}]}
status: {podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]}
---
kind: Pod
metadata: {namespace: theirs, name: c, labels: {app: a}}
spec: {containers: [{name: c}]}
status: {podIPs: [{ip: 10.0.0.3}, {ip: 'fd00::3'}]}
";

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";
const C: &str = "10.0.0.3";
const WORLD: &str = "192.0.2.1";

/// The pods under a policy of namespace `ours` with this spec.
fn under(spec: &str) -> Cluster {
    written::cluster(&format!(
        "{PODS}\n---\nkind: NetworkPolicy\nmetadata: {{namespace: ours, name: p}}\nspec: {spec}"
    ))
}

/// Which of these sources reach a destination and port by TCP.
fn who_reaches<'a>(cluster: &Cluster, to: &str, port: u16, sources: &[&'a str]) -> Vec<&'a str> {
    let reaches =
        |from: &&&str| evaluate(cluster, &written::tcp(from, to, port)).verdict() == Verdict::Allow;
    sources.iter().filter(reaches).copied().collect()
}

#[track_caller]
fn check(spec: &str, to: &str, port: u16, expected: &[&str]) {
    let found = who_reaches(&under(spec), to, port, &[A, B, C, WORLD]);
    // A pod always reaches itself.
    let mut expected = expected.to_vec();
    if !expected.contains(&to) {
        expected.push(to);
    }
    expected.sort_unstable();
    assert_eq!(found, expected, "{spec}");
}

#[test]
fn without_a_policy_everyone_reaches_everyone() {
    let cluster = written::cluster(PODS);
    assert_eq!(
        who_reaches(&cluster, A, 80, &[A, B, C, WORLD]),
        [A, B, C, WORLD]
    );
}

#[test]
fn empty_pod_selector_selects_every_pod_of_the_namespace_and_none_elsewhere() {
    let deny = "{podSelector: {}}";
    check(deny, A, 80, &[]);
    check(deny, B, 80, &[]);
    check(deny, C, 80, &[A, B, C, WORLD]);
}

#[test]
fn absent_and_empty_rule_lists_admit_nobody_and_an_empty_rule_everybody() {
    check("{podSelector: {}, ingress: []}", A, 80, &[]);
    check("{podSelector: {}, ingress: [{}]}", A, 80, &[A, B, C, WORLD]);
    check(
        "{podSelector: {}, ingress: [{from: []}]}",
        A,
        80,
        &[A, B, C, WORLD],
    );
    check(
        "{podSelector: {}, ingress: [{from: [], ports: []}]}",
        A,
        80,
        &[A, B, C, WORLD],
    );
}

#[test]
fn a_pod_selector_alone_means_the_policys_own_namespace() {
    check(
        "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}",
        A,
        80,
        &[A, B],
    );
    let same_labels =
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}}]}]}";
    check(same_labels, B, 80, &[A]);
}

#[test]
fn a_namespace_selector_alone_means_all_pods_of_those_namespaces_and_never_the_world() {
    let two =
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: two}}}]}]}";
    check(two, A, 80, &[C]);
    let all = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}";
    check(all, A, 80, &[A, B, C]);
}

#[test]
fn both_selectors_in_one_item_are_and_two_items_are_or() {
    let and = "{podSelector: {}, ingress: [{from: [
        {namespaceSelector: {matchLabels: {team: one}}, podSelector: {matchLabels: {app: a}}}]}]}";
    check(and, B, 80, &[A]);
    let or = "{podSelector: {}, ingress: [{from: [
        {namespaceSelector: {matchLabels: {team: two}}}, {podSelector: {matchLabels: {app: a}}}]}]}";
    check(or, B, 80, &[A, C]);
}

#[test]
fn policies_and_rules_add_up() {
    let mut cluster =
        under("{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: b}}}]}]}");
    assert_eq!(who_reaches(&cluster, A, 80, &[B, C, WORLD]), [B]);
    let (policy, findings) = written::policy(
        "metadata: {namespace: ours, name: q}
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: two}}}]}]}",
    );
    assert_eq!(findings, []);
    let _touched = cluster.apply(Change::Policy(Box::new(policy)));
    assert_eq!(who_reaches(&cluster, A, 80, &[B, C, WORLD]), [B, C]);
}

#[test]
fn an_ip_block_has_pods_and_world_but_not_its_exceptions_and_one_family_only() {
    let block = "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.3/32]}}]}]}";
    check(block, A, 80, &[A, B]);
    let all = "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}";
    check(all, A, 80, &[A, B, C, WORLD]);
    let six = who_reaches(&under(all), "fd00::1", 80, &["fd00::2", "2001:db8::1"]);
    assert!(six.is_empty(), "0.0.0.0/0 is IPv4: {six:?}");
}

#[test]
fn two_blocks_each_keep_only_their_own_exceptions() {
    let spec = "{podSelector: {}, ingress: [{from: [
        {ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.2/32]}}, {ipBlock: {cidr: 10.0.0.2/31}}]}]}";
    check(spec, A, 80, &[A, B, C]);
}

#[test]
fn a_port_with_a_number_is_tcp_and_ranges_hold_both_ends() {
    let spec = "{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 82}]}]}";
    for (port, expected) in [(79, vec![]), (80, vec![B]), (82, vec![B]), (83, vec![])] {
        assert_eq!(
            who_reaches(&under(spec), A, port, &[B]),
            expected,
            "port {port}"
        );
    }
    let udp = Packet {
        protocol: Protocol::UDP,
        ..written::tcp(B, A, 80)
    };
    assert_eq!(evaluate(&under(spec), &udp).verdict(), Verdict::Deny);
}

#[test]
fn a_port_name_is_resolved_at_each_destination_and_for_its_protocol() {
    let ingress = "{podSelector: {}, ingress: [{ports: [{port: http}, {port: dns}]}]}";
    assert_eq!(who_reaches(&under(ingress), A, 8080, &[C]), [C]);
    assert!(who_reaches(&under(ingress), A, 80, &[C]).is_empty());
    assert_eq!(who_reaches(&under(ingress), B, 80, &[C]), [C]);
    assert!(
        who_reaches(&under(ingress), A, 53, &[C]).is_empty(),
        "dns is UDP"
    );
    let egress = "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}";
    assert_eq!(who_reaches(&under(egress), A, 8080, &[B]), [B]);
    assert!(
        who_reaches(&under(egress), WORLD, 80, &[B]).is_empty(),
        "no pod, no name"
    );
}

#[test]
fn rules_without_ports_cover_every_protocol_and_rules_with_ports_only_theirs() {
    let icmp = Packet {
        protocol: Protocol::ICMP,
        ..written::tcp(B, A, 0)
    };
    let verdict = |spec: &str| evaluate(&under(spec), &icmp).verdict();
    assert_eq!(verdict("{podSelector: {}, ingress: [{}]}"), Verdict::Allow);
    assert_eq!(
        verdict("{podSelector: {}, ingress: [{ports: [{protocol: TCP}]}]}"),
        Verdict::Deny
    );
}

#[test]
fn each_direction_is_isolated_by_itself() {
    let egress = under("{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress]}");
    assert_eq!(who_reaches(&egress, A, 80, &[B, C]), [B, C]);
    assert!(who_reaches(&egress, B, 80, &[A]).is_empty());
    let decisions = evaluate(&egress, &written::tcp(A, B, 80));
    assert_eq!(decisions.egress.reason, Reason::IsolatedNoRule);
    assert_eq!(decisions.ingress.reason, Reason::NotIsolated);
}

#[test]
fn a_pod_reaches_itself_on_any_of_its_addresses() {
    let deny = under("{podSelector: {}, policyTypes: [Ingress, Egress]}");
    let decisions = evaluate(&deny, &written::tcp(A, A, 80));
    assert_eq!(decisions.egress.reason, Reason::Itself);
    assert_eq!(decisions.ingress.reason, Reason::Itself);
}

#[test]
fn the_deciding_rule_is_the_first_by_policy_name_and_index() {
    let cluster = written::cluster(&format!(
        "{PODS}
---
kind: NetworkPolicy
metadata: {{namespace: ours, name: z}}
spec: {{podSelector: {{}}, ingress: [{{}}]}}
---
kind: NetworkPolicy
metadata: {{namespace: ours, name: b}}
spec: {{podSelector: {{}}, ingress: [{{ports: [{{port: 1}}]}}, {{}}, {{}}]}}
"
    ));
    let rule = evaluate(&cluster, &written::tcp(B, A, 80)).ingress.rule;
    assert_eq!(rule.unwrap().to_string(), "ours/b/ingress/1");
}

#[test]
fn a_host_network_pod_is_its_node() {
    let cluster = written::cluster(&format!(
        "{PODS}
---
kind: Pod
metadata: {{namespace: ours, name: host, labels: {{app: b}}}}
spec: {{hostNetwork: true, nodeName: elsewhere, containers: [{{name: c}}]}}
status: {{podIP: 192.0.2.1}}
---
kind: NetworkPolicy
metadata: {{namespace: ours, name: p}}
spec: {{podSelector: {{}}, ingress: [{{from: [{{podSelector: {{}}}}]}}]}}
"
    ));
    assert_eq!(
        who_reaches(&cluster, A, 80, &[B, WORLD]),
        [B],
        "not selected"
    );
    let to_host = evaluate(&cluster, &written::tcp(B, WORLD, 80));
    assert_eq!(to_host.ingress.reason, Reason::NotIsolated, "not enforced");
}

/// What a pod on node `one`, closed by policy, says of packets from these addresses. Node `one` is
/// 192.0.2.1 and a hostNetwork pod shows 192.0.2.2 of it; node `two` is 192.0.2.3; 192.0.2.4 is
/// shown by a hostNetwork pod of no node, 192.0.2.5 by one of node `one` that is completed.
fn let_in_by_closed_pod(node_name: &str, sources: &[&str]) -> Vec<Reason> {
    let cluster = written::cluster(&format!(
        "
kind: Node
metadata: {{name: one}}
status: {{addresses: [{{type: InternalIP, address: 192.0.2.1}}]}}
---
kind: Node
metadata: {{name: two}}
status: {{addresses: [{{type: InternalIP, address: 192.0.2.3}}]}}
---
kind: Pod
metadata: {{namespace: ours, name: host}}
spec: {{hostNetwork: true, nodeName: one, containers: [{{name: c}}]}}
status: {{podIP: 192.0.2.2}}
---
kind: Pod
metadata: {{namespace: ours, name: nowhere}}
spec: {{hostNetwork: true, containers: [{{name: c}}]}}
status: {{podIP: 192.0.2.4}}
---
kind: Pod
metadata: {{namespace: ours, name: done}}
spec: {{hostNetwork: true, nodeName: one, containers: [{{name: c}}]}}
status: {{phase: Succeeded, podIP: 192.0.2.5}}
---
kind: Pod
metadata: {{namespace: ours, name: closed}}
spec: {{{node_name}containers: [{{name: c}}]}}
status: {{podIP: {A}}}
---
kind: NetworkPolicy
metadata: {{namespace: ours, name: deny}}
spec: {{podSelector: {{}}, policyTypes: [Ingress, Egress]}}
"
    ));
    sources
        .iter()
        .map(|from| {
            let packet = written::tcp(from, A, 80);
            let by_policy = by_policy(&cluster, &packet).ingress.reason;
            assert_eq!(by_policy, Reason::IsolatedNoRule, "{from}, forwarded");
            evaluate(&cluster, &packet).ingress.reason
        })
        .collect()
}

const NODES: [&str; 5] = [
    "192.0.2.1",
    "192.0.2.2",
    "192.0.2.3",
    "192.0.2.4",
    "192.0.2.5",
];

#[test]
fn a_pod_lets_its_own_node_in_and_judges_other_nodes_by_their_address() {
    let denied = Reason::IsolatedNoRule;
    assert_eq!(
        let_in_by_closed_pod("nodeName: one, ", &NODES),
        [Reason::Node, Reason::Node, denied, denied, denied]
    );
}

#[test]
fn without_node_names_pods_and_host_network_pods_are_on_one_node() {
    let denied = Reason::IsolatedNoRule;
    assert_eq!(
        let_in_by_closed_pod("", &NODES),
        [denied, denied, denied, Reason::Node, denied]
    );
}

#[test]
fn a_pods_way_to_its_own_node_is_judged_by_policy() {
    let cluster = written::cluster(&format!(
        "{PODS}
---
kind: Pod
metadata: {{namespace: theirs, name: host}}
spec: {{hostNetwork: true, containers: [{{name: c}}]}}
status: {{podIP: 192.0.2.1}}
---
kind: NetworkPolicy
metadata: {{namespace: ours, name: deny}}
spec: {{podSelector: {{}}, policyTypes: [Egress]}}
"
    ));
    let decisions = evaluate(&cluster, &written::tcp(A, WORLD, 80));
    assert_eq!(decisions.egress.reason, Reason::IsolatedNoRule);
}

proptest! {
    #[test]
    fn a_rule_that_was_unreadable_never_admits_more(
        cluster in random::cluster(),
        mut policy in random::policy(),
        at in any::<prop::sample::Index>(),
        packets in proptest::collection::vec(random::packet(), 20),
    ) {
        let mut before = cluster.clone();
        let _touched = before.apply(Change::Policy(Box::new(policy.clone())));
        let place = at.index(policy.ingress.len() + 1);
        policy.ingress.insert(place, Rule::NOTHING);
        let place = at.index(policy.egress.len() + 1);
        policy.egress.insert(place, Rule::NOTHING);
        let mut after = cluster;
        let _touched = after.apply(Change::Policy(Box::new(policy)));
        for packet in &packets {
            prop_assert_eq!(
                evaluate(&before, packet).verdict(),
                evaluate(&after, packet).verdict()
            );
        }
    }

    #[test]
    fn a_further_rule_never_denies_and_a_rule_less_never_admits(
        cluster in random::cluster(),
        mut policy in random::policy(),
        rule in random::rule(),
        packets in proptest::collection::vec(random::packet(), 20),
    ) {
        let mut less = cluster.clone();
        let _touched = less.apply(Change::Policy(Box::new(policy.clone())));
        policy.ingress.push(rule.clone());
        policy.egress.push(rule);
        let mut more = cluster;
        let _touched = more.apply(Change::Policy(Box::new(policy)));
        for packet in &packets {
            if evaluate(&less, packet).verdict() == Verdict::Allow {
                prop_assert_eq!(evaluate(&more, packet).verdict(), Verdict::Allow);
            }
        }
    }

    #[test]
    fn a_decision_by_rule_names_a_rule_of_a_policy_that_isolates(
        cluster in random::cluster(),
        packet in random::packet(),
    ) {
        let decisions = evaluate(&cluster, &packet);
        let ends = [
            (decisions.ingress, Direction::Ingress, packet.to),
            (decisions.egress, Direction::Egress, packet.from),
        ];
        for (decision, direction, endpoint) in ends {
            prop_assert_eq!(decision.rule.is_some(), decision.reason == Reason::Rule);
            if let Some(rule) = decision.rule {
                let pod = cluster.owner_of(endpoint).unwrap();
                let isolating = isolating(&cluster, pod, direction);
                let names: Vec<&ObjectName> = isolating.iter().map(|it| &it.name).collect();
                prop_assert!(names.contains(&&rule.policy));
                prop_assert_eq!(rule.direction, direction);
            }
        }
    }

    #[test]
    fn isolating_policies_are_those_the_index_finds(cluster in random::cluster()) {
        for pod in cluster.pods() {
            for direction in Direction::ALL {
                prop_assert_eq!(
                    isolating(&cluster, pod, direction),
                    cluster.policies_selecting(pod, direction)
                );
            }
        }
    }
}
