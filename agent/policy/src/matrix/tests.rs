//! The matrix on small worlds, and against `evaluate` on random ones.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::evaluate::{Packet, evaluate};
use crate::model::{Change, ContainerPort, Labels, Node, ObjectName, PodUid, Policy};
use crate::random;
use crate::selector::Selector;

fn pod(name: &str, addresses: &[&str], ports: &[(Protocol, u16)]) -> Pod {
    Pod {
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        ports: ports
            .iter()
            .map(|(protocol, port)| ContainerPort {
                name: String::new(),
                protocol: *protocol,
                port: *port,
            })
            .collect(),
        node: "node-1".into(),
        workload: format!("Pod/{name}").into(),
        ..Pod::new(PodUid(Arc::from(name)), ObjectName::new("shop", name))
    }
}

fn cluster(pods: &[Pod]) -> Cluster {
    let mut cluster = Cluster::new();
    for pod in pods {
        let _touched = cluster.apply(Change::Pod(Box::new(pod.clone())));
    }
    cluster
}

fn http() -> Port {
    Port {
        protocol: Protocol::TCP,
        number: 80,
    }
}

fn pairs(matrix: &Matrix) -> Vec<(String, String, u16)> {
    let name = |end: usize| matrix.ends[end].to_string();
    matrix
        .rows
        .iter()
        .map(|row| (name(row.from), name(row.to), row.port.number))
        .collect()
}

proptest! {
    #[test]
    fn every_row_is_what_evaluate_says(
        cluster in random::cluster(),
        endpoints in proptest::collection::vec(random::address(), 0..3),
        is_declared in any::<bool>(),
    ) {
        let ports = if is_declared { vec![] } else { vec![http()] };
        let matrix = matrix(&cluster, &Question { ports, endpoints });
        for row in &matrix.rows {
            let decisions = evaluate(&cluster, &Packet {
                from: row.from_address,
                to: row.to_address,
                protocol: row.port.protocol,
                port: row.port.number,
            });
            prop_assert_eq!(row.ingress, decisions.ingress.verdict(), "{:?}", row);
            prop_assert_eq!(row.egress, decisions.egress.verdict(), "{:?}", row);
            prop_assert_eq!(row.verdict(), decisions.verdict());
        }
    }

    #[test]
    fn no_end_pair_and_port_comes_twice_and_none_with_itself(cluster in random::cluster()) {
        let matrix = matrix(&cluster, &Question { ports: vec![http()], endpoints: vec![] });
        let names: BTreeSet<String> = matrix.ends.iter().map(ToString::to_string).collect();
        prop_assert_eq!(names.len(), matrix.ends.len());
        let distinct: BTreeSet<_> = pairs(&matrix).into_iter().collect();
        prop_assert_eq!(distinct.len(), matrix.rows.len());
        prop_assert!(matrix.rows.iter().all(|row| row.from != row.to));
    }

    #[test]
    fn every_pod_has_rows_or_a_finding(cluster in random::cluster()) {
        let matrix = matrix(&cluster, &Question::default());
        for pod in cluster.pods() {
            let is_end = matrix.ends.contains(&End::Pod(Arc::clone(pod)));
            let object = format!("pod {}", pod.name);
            let is_said = matrix.findings.iter().any(|finding| finding.object == object);
            prop_assert!(is_end || is_said, "{pod:?}");
        }
    }
}

#[test]
fn a_destination_is_judged_on_each_declared_port_once() {
    let web = pod(
        "web",
        &["10.0.0.1"],
        &[
            (Protocol::TCP, 80),
            (Protocol::TCP, 80),
            (Protocol::UDP, 53),
        ],
    );
    let db = pod("db", &["10.0.0.2"], &[]);
    let matrix = matrix(&cluster(&[web, db]), &Question::default());
    let expected = [80, 53].map(|port| ("shop/db".to_owned(), "shop/web".to_owned(), port));
    assert_eq!(pairs(&matrix), expected);
}

#[test]
fn given_ports_replace_the_declared_ones() {
    let web = pod("web", &["10.0.0.1"], &[(Protocol::TCP, 443)]);
    let db = pod("db", &["10.0.0.2"], &[]);
    let question = Question {
        ports: vec![http()],
        endpoints: vec![],
    };
    let matrix = matrix(&cluster(&[web, db]), &question);
    assert!(matrix.rows.iter().all(|row| row.port == http()));
    assert_eq!(matrix.rows.len(), 2);
}

#[test]
fn endpoints_are_both_source_and_destination() {
    let web = pod("web", &["10.0.0.1"], &[]);
    let question = Question {
        ports: vec![http()],
        endpoints: vec!["192.0.2.1".parse().unwrap(), "192.0.2.1".parse().unwrap()],
    };
    let matrix = matrix(&cluster(&[web]), &question);
    let expected = [("shop/web", "192.0.2.1"), ("192.0.2.1", "shop/web")]
        .map(|(from, to)| (from.to_owned(), to.to_owned(), 80));
    assert_eq!(pairs(&matrix), expected);
}

#[test]
fn an_endpoint_without_given_ports_is_no_destination_and_it_is_said() {
    let web = pod("web", &["10.0.0.1"], &[(Protocol::TCP, 80)]);
    let question = Question {
        ports: vec![],
        endpoints: vec!["192.0.2.1".parse().unwrap()],
    };
    let matrix = matrix(&cluster(&[web]), &question);
    assert_eq!(
        pairs(&matrix),
        [("192.0.2.1".to_owned(), "shop/web".to_owned(), 80)]
    );
    assert_eq!(matrix.findings[0].object, "endpoint 192.0.2.1");
}

#[test]
fn a_pair_is_judged_on_the_destinations_first_address_that_the_source_can_reach() {
    let dual = pod("dual", &["fd00::1", "10.0.0.1"], &[]);
    let four = pod("four", &["10.0.0.2"], &[]);
    let six = pod("six", &["fd00::3"], &[]);
    let question = Question {
        ports: vec![http()],
        endpoints: vec![],
    };
    let matrix = matrix(&cluster(&[dual, four, six]), &question);
    let to_dual: Vec<(IpAddr, IpAddr)> = matrix
        .rows
        .iter()
        .filter(|row| matrix.ends[row.to].to_string() == "shop/dual")
        .map(|row| (row.from_address, row.to_address))
        .collect();
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(
        to_dual,
        [
            (address("10.0.0.2"), address("10.0.0.1")),
            (address("fd00::3"), address("fd00::1")),
        ]
    );
    let message = &matrix.findings[0].message;
    assert!(message.starts_with("2 pairs have no address family in common"));
}

#[test]
fn a_host_network_pod_stands_with_its_nodes_address() {
    let mut agent = pod("agent", &[], &[]);
    agent.host_network = true;
    let mut cluster = cluster(&[agent, pod("web", &["10.0.0.1"], &[])]);
    let _touched = cluster.apply(Change::Node(Node {
        name: Arc::from("node-1"),
        labels: Labels::new(),
        addresses: vec!["192.0.2.10".parse().unwrap()],
        pod_cidrs: vec![],
    }));
    let question = Question {
        ports: vec![http()],
        endpoints: vec![],
    };
    let matrix = matrix(&cluster, &question);
    let [out, _back] = matrix.rows.as_slice() else {
        panic!("two rows: {:?}", matrix.rows);
    };
    assert_eq!(out.from_address, "192.0.2.10".parse::<IpAddr>().unwrap());
    assert_eq!(matrix.findings, []);
}

#[test]
fn a_pod_lets_in_its_nodes_address_and_host_network_pods_but_not_those_of_other_nodes() {
    let host = |name: &str, address: &str, node: &str| Pod {
        host_network: true,
        node: node.into(),
        ..pod(name, &[address], &[])
    };
    let mut cluster = cluster(&[
        pod("closed", &["10.0.0.1"], &[]),
        host("here", "192.0.2.10", "node-1"),
        host("there", "192.0.2.20", "node-2"),
    ]);
    let _touched = cluster.apply(Change::Node(Node {
        name: Arc::from("node-1"),
        labels: Labels::new(),
        addresses: vec!["192.0.2.11".parse().unwrap()],
        pod_cidrs: vec![],
    }));
    let _touched = cluster.apply(Change::Policy(Box::new(Policy {
        name: ObjectName::new("shop", "deny"),
        pods: Selector::EVERYTHING,
        isolates_ingress: true,
        isolates_egress: false,
        ingress: vec![],
        egress: vec![],
        annotations: Labels::new(),
    })));
    let question = Question {
        ports: vec![http()],
        endpoints: vec!["192.0.2.11".parse().unwrap(), "192.0.2.12".parse().unwrap()],
    };
    let matrix = matrix(&cluster, &question);
    let is_closed = |row: &&Row| matrix.ends[row.to].to_string() == "shop/closed";
    let into_closed: Vec<(String, Verdict)> = matrix
        .rows
        .iter()
        .filter(is_closed)
        .map(|row| (matrix.ends[row.from].to_string(), row.ingress))
        .collect();
    let expected = [
        ("shop/here", Verdict::Allow),
        ("shop/there", Verdict::Deny),
        ("192.0.2.11", Verdict::Allow),
        ("192.0.2.12", Verdict::Deny),
    ];
    assert_eq!(
        into_closed,
        expected.map(|(from, verdict)| (from.to_owned(), verdict))
    );
}
