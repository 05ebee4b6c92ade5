//! What NetworkPolicy means, on real packets: manifests in, reachability out. Each claim runs in
//! a lab of its own and is measured over IPv4 and IPv6, TCP, UDP, SCTP and ICMP; `picket matrix`
//! must say the same.

mod check;

use tests::lab::objects::policy;

use crate::check::check;

/// Node → its own pods is allowed whatever policy says (kubelet probes).
const FROM_NODE: &str = "c/host -> *";
#[test]
fn without_policies_everything_reaches_everything() {
    check(&[], &[], &[]);
}

#[test]
fn empty_pod_selector_selects_every_pod_of_the_namespace_and_no_other() {
    check(
        &[policy(
            "a",
            "deny",
            "{podSelector: {}, policyTypes: [Ingress]}",
        )],
        &["* -> a/*"],
        &[FROM_NODE],
    );
}

#[test]
fn isolation_is_per_direction_and_replies_always_pass() {
    check(
        &[policy(
            "a",
            "deny",
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}",
        )],
        &["a/web -> *"],
        &[],
    );
}

#[test]
fn policy_types_default_to_ingress_and_to_egress_only_with_egress_rules() {
    check(
        &[
            policy("a", "ingress", "{podSelector: {matchLabels: {app: web}}}"),
            policy(
                "b",
                "both",
                "{podSelector: {}, egress: [{to: [{podSelector: {}}]}]}",
            ),
        ],
        &["* -> a/web", "* -> b/web", "b/web -> *"],
        &[FROM_NODE],
    );
}

#[test]
fn rules_of_a_direction_that_is_not_listed_mean_nothing() {
    let spec = "{podSelector: {}, policyTypes: [Ingress], egress: [{to: [{podSelector: {}}]}]}";
    check(&[policy("b", "deny", spec)], &["* -> b/web"], &[FROM_NODE]);
}

#[test]
fn both_sides_must_allow() {
    check(
        &[
            policy(
                "a",
                "out",
                "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]}",
            ),
            policy(
                "a",
                "in",
                "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: blue}}}]}]}",
            ),
        ],
        &["a/web -> *", "* -> a/db"],
        &["b/web -> a/db", FROM_NODE],
    );
}

#[test]
fn pod_selector_alone_means_the_policys_own_namespace() {
    check(
        &[policy(
            "a",
            "p",
            "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}",
        )],
        &["* -> a/db"],
        &["a/web -> a/db", FROM_NODE],
    );
}

#[test]
fn namespace_selector_alone_means_all_pods_of_the_namespaces() {
    check(
        &[policy(
            "c",
            "p",
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}]}]}",
        )],
        &["* -> c/one"],
        &["a/* -> c/one", FROM_NODE],
    );
}

#[test]
fn selectors_in_one_item_are_and_in_two_items_or() {
    let both = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: web}}}]}]}";
    check(
        &[policy("c", "and", both)],
        &["* -> c/one"],
        &["a/web -> c/one", FROM_NODE],
    );
    let either = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}, {podSelector: {matchLabels: {app: web}}}]}]}";
    std::thread::spawn(move || {
        check(
            &[policy("c", "or", either)],
            &["* -> c/one"],
            &["a/* -> c/one", FROM_NODE],
        );
    })
    .join()
    .expect("the second half holds too");
}

#[test]
fn empty_namespace_selector_means_every_pod_but_no_address_outside() {
    check(
        &[policy(
            "a",
            "p",
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}",
        )],
        &["198.51.100.7 -> a/*", "2001:db8:1::7 -> a/*"],
        &[],
    );
}

#[test]
fn namespaces_carry_their_name_as_a_label() {
    check(
        &[policy(
            "a",
            "p",
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: b}}}]}]}",
        )],
        &["* -> a/*"],
        &["b/web -> a/*", FROM_NODE],
    );
}

#[test]
fn all_four_match_expression_operators_and_not_in_matches_an_absent_key() {
    let from = |expression: &str| {
        format!(
            "{{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{from: [{{namespaceSelector: {{}}, podSelector: {{matchExpressions: [{expression}]}}}}]}}]}}"
        )
    };
    check(
        &[
            policy(
                "a",
                "in",
                &from("{key: app, operator: In, values: [db, cache]}"),
            ),
            policy(
                "b",
                "not-in",
                &from(
                    "{key: app, operator: NotIn, values: [db]}, {key: tier, operator: DoesNotExist}",
                ),
            ),
            policy(
                "c",
                "exists",
                "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: team, operator: Exists}]}}]}]}",
            ),
        ],
        &["* -> a/web", "* -> b/web", "* -> c/one"],
        &[
            "a/db -> a/web",
            "a/web -> b/web",
            "c/one -> b/web",
            "a/* -> c/one",
            "b/* -> c/one",
            FROM_NODE,
        ],
    );
}

#[test]
fn empty_rule_allows_everything_and_no_rule_nothing() {
    check(
        &[
            policy(
                "a",
                "open",
                "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}",
            ),
            policy(
                "b",
                "shut",
                "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [], egress: []}",
            ),
        ],
        &["* -> b/web", "b/web -> *"],
        &[FROM_NODE],
    );
}

#[test]
fn policies_of_a_pod_are_united() {
    check(
        &[
            policy("a", "deny", "{podSelector: {}}"),
            policy(
                "a",
                "one",
                "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}",
            ),
            policy(
                "a",
                "two",
                "{podSelector: {matchLabels: {tier: back}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: blue}}}], ports: [{port: 81}]}]}",
            ),
        ],
        &["* -> a/*"],
        &["a/web -> a/db TCP/80", "b/web -> a/db TCP/81", FROM_NODE],
    );
}

#[test]
fn ip_block_counts_for_pods_and_outsiders_and_an_except_only_for_its_own_block() {
    check(
        &[policy(
            "c",
            "p",
            "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/16, except: [10.1.1.0/24]}}, {ipBlock: {cidr: 10.1.1.2/32}}, {ipBlock: {cidr: 'fd00:1:1::/48', except: ['fd00:1:1::2/128']}}, {ipBlock: {cidr: 198.51.100.0/24}}]}]}",
        )],
        &["* -> c/one"],
        &[
            "b/web -> c/one * v4",
            "a/db -> c/one * v4",
            "a/web -> c/one * v6",
            "198.51.100.7 -> c/one",
            FROM_NODE,
        ],
    );
}

#[test]
fn egress_ip_block_reaches_its_addresses_and_the_node_only_by_its_address() {
    check(
        &[policy(
            "a",
            "p",
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 198.51.100.0/24}}, {ipBlock: {cidr: 2001:db8::1/128}}]}]}",
        )],
        &["a/web -> *"],
        &["a/web -> 198.51.100.7", "a/web -> c/host * v6"],
    );
}

#[test]
fn ports_limit_protocol_and_number_and_tcp_is_the_default() {
    check(
        &[
            policy(
                "a",
                "tcp",
                "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}",
            ),
            policy(
                "b",
                "udp",
                "{podSelector: {}, ingress: [{ports: [{port: 80, protocol: UDP}]}]}",
            ),
            policy(
                "c",
                "sctp",
                "{podSelector: {}, ingress: [{ports: [{protocol: SCTP}]}]}",
            ),
        ],
        &["* -> a/*", "* -> b/web", "* -> c/one"],
        &[
            "* -> a/* TCP/80",
            "* -> b/web UDP/80",
            "* -> c/one SCTP/80",
            FROM_NODE,
        ],
    );
}

#[test]
fn named_port_is_resolved_at_each_destination_and_for_its_protocol() {
    check(
        &[
            policy(
                "a",
                "http",
                "{podSelector: {}, ingress: [{ports: [{port: http}]}]}",
            ),
            // b/web's http is UDP: a rule for TCP finds no port there.
            policy(
                "b",
                "http",
                "{podSelector: {}, ingress: [{ports: [{port: http, protocol: TCP}]}]}",
            ),
        ],
        &["* -> a/*", "* -> b/web"],
        &["* -> a/web TCP/80", "* -> a/db TCP/81", FROM_NODE],
    );
}

#[test]
fn named_port_in_egress_is_the_destination_pods() {
    check(
        &[policy(
            "c",
            "p",
            "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: http}, {port: http, protocol: UDP}]}]}",
        )],
        &["c/one -> *"],
        &[
            "c/one -> a/web TCP/80",
            "c/one -> a/db TCP/81",
            "c/one -> b/web UDP/80",
        ],
    );
}

#[test]
fn end_port_spans_a_range() {
    check(
        &[
            policy(
                "a",
                "both",
                "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80, endPort: 81}]}]}",
            ),
            policy(
                "a",
                "upper",
                "{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 81, endPort: 65535}]}]}",
            ),
        ],
        &["* -> a/*"],
        &[
            "* -> a/web TCP/80",
            "* -> a/web TCP/81",
            "* -> a/db TCP/81",
            FROM_NODE,
        ],
    );
}

#[test]
fn rule_without_ports_covers_every_protocol_icmp_included() {
    check(
        &[policy(
            "a",
            "p",
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: blue}}}]}]}",
        )],
        &["* -> a/*"],
        &["b/web -> a/*", FROM_NODE],
    );
}

#[test]
fn host_network_pods_are_not_enforced_and_no_pod_selector_matches_them() {
    check(
        &[
            policy(
                "c",
                "deny",
                "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress]}",
            ),
            policy(
                "b",
                "p",
                "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}]}]}",
            ),
        ],
        &[
            "b/web -> c/host",
            "b/web -> 198.51.100.7",
            "b/web -> 2001:db8:1::7",
        ],
        &[],
    );
}

#[test]
fn pods_let_their_own_node_in_whatever_policy_says_but_reach_it_only_by_policy() {
    check(
        &[policy(
            "a",
            "deny",
            "{podSelector: {}, policyTypes: [Ingress, Egress]}",
        )],
        &["* -> a/*", "a/* -> *"],
        &[FROM_NODE],
    );
}

#[test]
fn unreadable_rule_allows_nothing_and_the_rest_of_the_policy_stands() {
    check(
        &[policy(
            "a",
            "p",
            "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}, {from: [{podSelector: {}}], ports: [{port: 80}]}]}",
        )],
        &["* -> a/db"],
        &["a/web -> a/db TCP/80", FROM_NODE],
    );
}
