//! Random clusters, policies and packets for property tests: small worlds, so that things meet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::cluster::Cluster;
use crate::evaluate::Packet;
use crate::model::{
    Change, ContainerPort, Labels, Namespace, NamespaceScope, Node, ObjectName, Peer, Peers, Phase,
    Pod, PodUid, Policy, PortMatch, Ports, Protocol, Rule,
};
use crate::selector::{Operator, Requirement, Selector};

const KEYS: [&str; 3] = ["app", "tier", "env"];
const VALUES: [&str; 3] = ["web", "api", "db"];
const PORT_NAMES: [&str; 2] = ["http", "dns"];
/// The numbers that ports, and the edges of ranges, are made of.
const NUMBERS: [u16; 5] = [53, 80, 81, 8080, 65535];

pub(crate) fn labels() -> impl Strategy<Value = Labels> {
    vec((select(&KEYS), select(&VALUES)), 0..3).prop_map(|pairs| {
        pairs
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    })
}

pub(crate) fn selector() -> impl Strategy<Value = Selector> {
    let values = || vec(select(&VALUES).prop_map(str::to_owned), 1..3);
    let operator = prop_oneof![
        4 => values().prop_map(Operator::In),
        1 => values().prop_map(Operator::NotIn),
        1 => Just(Operator::Exists),
        1 => Just(Operator::DoesNotExist),
    ];
    let requirement = (select(&KEYS), operator).prop_map(|(key, operator)| Requirement {
        key: key.to_owned(),
        operator,
    });
    vec(requirement, 0..3).prop_map(Selector::new)
}

pub(crate) fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        3 => (0_u8..12).prop_map(|host| IpAddr::V4(Ipv4Addr::new(10, 0, 0, host))),
        1 => (0_u16..12)
            .prop_map(|host| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host))),
    ]
}

fn namespace_name() -> impl Strategy<Value = Arc<str>> {
    select(&["red", "green", "blue"]).prop_map(Arc::from)
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![
        4 => Just(Protocol::TCP),
        2 => Just(Protocol::UDP),
        1 => Just(Protocol::SCTP),
    ]
}

/// Of two nodes, or not said.
fn node_name() -> impl Strategy<Value = &'static str> {
    select(&["", "node", "other"])
}

pub(crate) fn pod() -> impl Strategy<Value = Pod> {
    let port = (
        prop_oneof![1 => Just(""), 2 => select(&PORT_NAMES)],
        protocol(),
        select(&NUMBERS),
    )
        .prop_map(|(name, protocol, port)| ContainerPort {
            name: name.to_owned(),
            protocol,
            port,
        });
    let phase = prop_oneof![
        6 => Just(Phase::Live),
        1 => Just(Phase::Terminating),
        1 => Just(Phase::Completed),
    ];
    (
        (namespace_name(), 0_u8..6, 0_u8..2),
        labels(),
        vec(address(), 0..3),
        vec(port, 0..3),
        (prop::bool::weighted(0.1), node_name()),
        phase,
        0_i64..3,
    )
        .prop_map(
            |((namespace, number, uid), labels, addresses, ports, how, phase, created)| {
                let (host_network, node) = how;
                let name = ObjectName::new(namespace, format!("pod-{number}"));
                Pod {
                    uid: PodUid(Arc::from(format!("{name}-{uid}"))),
                    workload: format!("Pod/{}", name.name).into(),
                    name,
                    labels,
                    addresses,
                    ports: ports.into(),
                    host_network,
                    phase,
                    created,
                    node: node.into(),
                    annotations: Labels::new(),
                }
            },
        )
}

pub(crate) fn namespace() -> impl Strategy<Value = Namespace> {
    (namespace_name(), labels()).prop_map(|(name, mut labels)| {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_string());
        Namespace {
            name,
            labels,
            annotations: Labels::new(),
        }
    })
}

fn block() -> impl Strategy<Value = Peer> {
    (address(), 24_u8..=32, vec((0_u8..12, 29_u8..=32), 0..2)).prop_map(
        |(address, prefix, holes)| {
            let shift = if address.is_ipv4() { 0 } else { 96 };
            let cidr = IpNet::new(address, prefix + shift)
                .expect("prefix fits the family")
                .trunc();
            let except = holes
                .into_iter()
                .filter_map(|(host, prefix)| {
                    let hole: IpAddr = if address.is_ipv4() {
                        Ipv4Addr::new(10, 0, 0, host).into()
                    } else {
                        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.into()).into()
                    };
                    let hole = IpNet::new(hole, prefix + shift).ok()?.trunc();
                    (cidr.contains(&hole) && cidr != hole).then_some(hole)
                })
                .collect();
            Peer::Block { cidr, except }
        },
    )
}

pub(crate) fn rule() -> impl Strategy<Value = Rule> {
    let scope = prop_oneof![
        Just(NamespaceScope::Own),
        selector().prop_map(NamespaceScope::Selected),
    ];
    let peer = prop_oneof![
        3 => (scope, selector()).prop_map(|(namespaces, pods)| Peer::Pods { namespaces, pods }),
        1 => block(),
    ];
    let peers = prop_oneof![
        1 => Just(Peers::All),
        6 => vec(peer, 0..3).prop_map(Peers::Any),
    ];
    let port = prop_oneof![
        1 => protocol().prop_map(PortMatch::Protocol),
        4 => (protocol(), select(&NUMBERS), select(&NUMBERS)).prop_map(|(protocol, a, b)| {
            PortMatch::Range {
                protocol,
                first: a.min(b),
                last: a.max(b),
            }
        }),
        2 => (protocol(), select(&PORT_NAMES)).prop_map(|(protocol, name)| PortMatch::Named {
            protocol,
            name: name.to_owned(),
        }),
    ];
    let ports = prop_oneof![
        1 => Just(Ports::All),
        2 => vec(port, 0..3).prop_map(Ports::Any),
    ];
    (peers, ports).prop_map(|(peers, ports)| Rule { peers, ports })
}

pub(crate) fn policy() -> impl Strategy<Value = Policy> {
    (
        (namespace_name(), 0_u8..4),
        selector(),
        (any::<bool>(), any::<bool>()),
        vec(rule(), 0..3),
        vec(rule(), 0..3),
    )
        .prop_map(
            |((namespace, number), pods, (isolates_ingress, isolates_egress), ingress, egress)| {
                Policy {
                    name: ObjectName::new(namespace, format!("policy-{number}")),
                    pods,
                    isolates_ingress,
                    isolates_egress,
                    ingress,
                    egress,
                    annotations: Labels::new(),
                }
            },
        )
}

/// Any event.
pub(crate) fn change() -> impl Strategy<Value = Change> {
    let node = address().prop_map(|address| Node {
        name: Arc::from("node"),
        labels: Labels::new(),
        addresses: vec![address],
        pod_cidrs: Vec::new(),
    });
    prop_oneof![
        8 => pod().prop_map(|pod| Change::Pod(Box::new(pod))),
        2 => pod().prop_map(|pod| Change::PodGone(pod.uid)),
        2 => namespace().prop_map(Change::Namespace),
        1 => namespace_name().prop_map(Change::NamespaceGone),
        1 => node.prop_map(Change::Node),
        1 => Just(Change::NodeGone(Arc::from("node"))),
        4 => policy().prop_map(|policy| Change::Policy(Box::new(policy))),
        1 => policy().prop_map(|policy| Change::PolicyGone(policy.name)),
    ]
}

/// A cluster that has seen some events.
pub(crate) fn cluster() -> impl Strategy<Value = Cluster> {
    vec(change(), 0..40).prop_map(|changes| {
        let mut cluster = Cluster::new();
        for change in changes {
            let _touched = cluster.apply(change);
        }
        cluster
    })
}

pub(crate) fn packet() -> impl Strategy<Value = Packet> {
    let protocol = prop_oneof![9 => protocol(), 1 => Just(Protocol::ICMP)];
    (address(), address(), protocol, select(&NUMBERS)).prop_map(|(from, to, protocol, port)| {
        Packet {
            from,
            to,
            protocol,
            port,
        }
    })
}
