//! What NetworkPolicy means, on real packets: manifests in, reachability out. Each claim runs in
//! a lab of its own and is measured over IPv4 and IPv6, TCP, UDP, SCTP and ICMP; `picket matrix`
//! must say the same.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use agent_policy::matrix::{Port, Question};
use agent_policy::model::Protocol;
use anyhow::{Context as _, Result, bail};
use tests::lab::manifests;
use tests::lab::measure::{self, Row, Word};
use tests::lab::stage::{Stage, policy};
use tests::probe::{self, Outcome, Patience, Probe, Server, Servers};

/// Two namespaces of teams and one of nobody; a port named http that is not the same everywhere;
/// a hostNetwork pod.
const CLUSTER: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {team: red}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: b, labels: {team: blue}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: c}}
- apiVersion: v1
  kind: Pod
  metadata: {namespace: a, name: web, labels: {app: web}}
  spec: {containers: [{name: c, image: i, ports: [{name: http, containerPort: 80}]}]}
  status: {podIPs: [{ip: 10.1.1.1}, {ip: 'fd00:1:1::1'}]}
- apiVersion: v1
  kind: Pod
  metadata: {namespace: a, name: db, labels: {app: db, tier: back}}
  spec: {containers: [{name: c, image: i, ports: [{name: http, containerPort: 81}]}]}
  status: {podIPs: [{ip: 10.1.1.2}, {ip: 'fd00:1:1::2'}]}
- apiVersion: v1
  kind: Pod
  metadata: {namespace: b, name: web, labels: {app: web}}
  spec: {containers: [{name: c, image: i, ports: [{name: http, containerPort: 80, protocol: UDP}]}]}
  status: {podIPs: [{ip: 10.1.2.1}, {ip: 'fd00:1:2::1'}]}
- apiVersion: v1
  kind: Pod
  metadata: {namespace: c, name: one}
  spec: {containers: [{name: c, image: i}]}
  status: {podIPs: [{ip: 10.1.3.1}, {ip: 'fd00:1:3::1'}]}
- apiVersion: v1
  kind: Pod
  metadata: {namespace: c, name: host, labels: {app: web}}
  spec: {hostNetwork: true, containers: [{name: c, image: i}]}
  status: {podIPs: [{ip: 192.0.2.1}, {ip: '2001:db8::1'}]}
";
/// Addresses beyond the router.
const OUTSIDE: [&str; 2] = ["198.51.100.7", "2001:db8:1::7"];
/// What every place serves, and ICMP, which the node's kernel does.
const PORTS: [(Protocol, u16); 5] = [
    (Protocol::TCP, 80),
    (Protocol::TCP, 81),
    (Protocol::UDP, 80),
    (Protocol::SCTP, 80),
    (Protocol::ICMP, 0),
];
/// Long enough for an answer that comes at all: a denial that turns out to be slowness fails the
/// claims that expect the answer.
const PATIENCE: Patience = Patience {
    total: Duration::from_millis(700),
    retry: Duration::from_millis(200),
};

/// Applies the policies and measures everything. A flow is `from -> to PORT FAMILY`, for example
/// `a/web -> a/db TCP/80 v4`; `*` in a pattern stands for anything, and a pattern may end early.
/// What `denied` matches is denied unless `allowed` matches it too; all else is allowed.
fn check(policies: &[String], denied: &[&str], allowed: &[&str]) {
    try_check(policies, denied, allowed).expect("what is measured is what is claimed");
}

fn try_check(policies: &[String], denied: &[&str], allowed: &[&str]) -> Result<()> {
    let mut stage = Stage::open(CLUSTER)?;
    let outside: Vec<IpAddr> = OUTSIDE
        .iter()
        .map(|ip| ip.parse())
        .collect::<Result<_, _>>()?;
    for address in &outside {
        stage.lab.add_external(*address)?;
    }
    let _servers = serve(&stage)?;
    stage.apply("policies.yaml", &policies.join("---\n"))?;

    let mut measured = reachability(&stage, PATIENCE, |_| true)?;
    let expected = |flow: &str| {
        let is_any = |patterns: &[&str]| patterns.iter().any(|pattern| matches(pattern, flow));
        !is_any(denied) || is_any(allowed)
    };
    // Silence may be slowness on a busy machine: asked again with patience.
    let again = |flow: &str| measured.get(flow) == Some(&false) && expected(flow);
    let patient = reachability(&stage, Patience::USUAL, again)?;
    measured.extend(patient);
    let wrong: Vec<String> = measured
        .iter()
        .filter(|(flow, reached)| expected(flow) != **reached)
        .map(|(flow, reached)| format!("{flow}: {}", if *reached { "reached" } else { "denied" }))
        .collect();
    if !wrong.is_empty() {
        bail!(
            "{} of {} flows:\n{}",
            wrong.len(),
            measured.len(),
            wrong.join("\n")
        );
    }

    let ports = PORTS.iter().filter(|(protocol, _)| protocol.has_ports());
    let ports = ports
        .map(|&(protocol, number)| Port { protocol, number })
        .collect();
    let cluster = manifests::read(&stage.lab.manifests())?.cluster;
    let judged = measure::judged(
        &cluster,
        &Question {
            ports,
            endpoints: outside,
        },
    )?;
    for row in judged.rows {
        // The matrix judges a hostNetwork pod by its address, as other nodes see it; here it is on
        // the pods' own node, whose traffic always passes.
        if row.from == "c/host" {
            continue;
        }
        let Some(found) = family_of(&stage, &row).and_then(|name| measured.get(&name)) else {
            continue;
        };
        if (row.verdict == Word::Allow) != *found {
            bail!(
                "picket matrix says {:?} of {row}, measured: {found}",
                row.verdict
            );
        }
    }
    Ok(())
}

/// The measured flow that a row of the matrix speaks of.
fn family_of(stage: &Stage, row: &Row) -> Option<String> {
    let (from, to) = (
        stage.lab.place(&row.from).ok()?,
        stage.lab.place(&row.to).ok()?,
    );
    let (_, address) = from.pair_with(to)?;
    let family = if address.is_ipv4() { "v4" } else { "v6" };
    Some(format!(
        "{} -> {} {}/{} {family}",
        row.from, row.to, row.protocol, row.port
    ))
}

fn serve(stage: &Stage) -> Result<Servers> {
    let mut servers = Vec::new();
    for place in stage.lab.places().values() {
        for &address in &place.addresses {
            for (protocol, port) in PORTS {
                if protocol.has_ports() {
                    servers.push(Server {
                        namespace: &place.namespace,
                        address,
                        protocol,
                        port,
                    });
                }
            }
        }
    }
    Servers::start(&servers)
}

/// Which flows are reached, by name.
fn reachability(
    stage: &Stage,
    patience: Patience,
    wanted: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, bool>> {
    let places = || {
        stage
            .lab
            .places()
            .iter()
            .filter(|(name, _)| !name.starts_with("sentinel"))
    };
    let mut probes = BTreeMap::new();
    for (from, source) in places() {
        for (to, destination) in places().filter(|(to, _)| *to != from) {
            for (family, v4) in [("v4", true), ("v6", false)] {
                let Some((a, b)) = source.address(v4).zip(destination.address(v4)) else {
                    continue;
                };
                for (protocol, port) in PORTS {
                    let port_name = match protocol {
                        Protocol::ICMP => "ICMP".to_owned(),
                        _ => format!("{protocol}/{port}"),
                    };
                    let name = format!("{from} -> {to} {port_name} {family}");
                    if wanted(&name) {
                        let namespace = &source.namespace;
                        let probe = Probe {
                            namespace,
                            source: a,
                            destination: b,
                            protocol,
                            port,
                        };
                        probes.insert(name, probe);
                    }
                }
            }
        }
    }
    let (names, probes): (Vec<String>, Vec<Probe<'_>>) = probes.into_iter().unzip();
    let outcomes = probe::run(&probes, patience)?;
    let mut reached = BTreeMap::new();
    for (name, outcome) in names.into_iter().zip(outcomes) {
        if let Outcome::Failed(kind) = outcome {
            bail!("{name}: {kind}: denied packets vanish, so this is no verdict");
        }
        reached.insert(name, outcome.is_reached());
    }
    Ok(reached)
}

/// Word by word; `*` stands for one word, or within a word for anything.
fn matches(pattern: &str, flow: &str) -> bool {
    let mut words = flow.split(' ');
    pattern.split(' ').all(|wanted| {
        words
            .next()
            .is_some_and(|word| match wanted.split_once('*') {
                Some((head, tail)) => word.starts_with(head) && word.ends_with(tail),
                None => word == wanted,
            })
    })
}

/// Node → its own pods is allowed whatever policy says (kubelet probes).
const FROM_NODE: &str = "c/host -> *";

#[test]
fn patterns_match_word_by_word() {
    let flow = "a/web -> a/db TCP/80 v4";
    assert!(matches("a/* -> * TCP/80", flow));
    assert!(matches("* -> a/db", flow));
    assert!(!matches("a/* -> b/*", flow));
    assert!(!matches("a/web -> a/db TCP/8 v4", flow));
    assert!(!matches("a/web -> a/db TCP/80 v6", flow));
}

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

#[test]
fn every_flow_that_is_measured_has_a_place() -> Result<()> {
    let stage = Stage::without_agent(CLUSTER)?;
    let _servers = serve(&stage)?;
    let flows = reachability(&stage, Patience::USUAL, |_| true)?;
    let unreached: Vec<&String> = flows
        .iter()
        .filter(|(_, reached)| !**reached)
        .map(|(flow, _)| flow)
        .collect();
    assert_eq!(unreached, Vec::<&String>::new(), "without an agent");
    flows
        .get("a/web -> a/db SCTP/80 v6")
        .context("named as the claims name them")?;
    Ok(())
}
