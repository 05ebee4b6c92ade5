//! Small worlds in which things meet often: few names, labels, addresses and ranges, and packets
//! on both sides of every edge that rules can draw.

use std::net::IpAddr;
use std::sync::Arc;

use agent_policy::model::{
    BackendPort, Change, ContainerPort, EndpointSlice, Labels, Namespace, NamespaceScope,
    ObjectName, Peer, Peers, Phase, Pod, PodUid, Policy, PortMatch, Ports, Protocol, Rule, Service,
    ServicePort,
};
use agent_policy::selector::{Operator, Requirement, Selector};
use proptest::collection::vec;
use proptest::prelude::*;

/// Pods there can be; the first few are local.
pub(crate) const PODS: usize = 7;
/// Local pods.
pub(crate) const LOCAL: usize = 4;

const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const POD_ADDRESSES: [&str; 9] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.1.1",
    "10.0.1.2",
    "172.16.0.1",
    "fd00::1",
    "fd00::2",
    "fd00:1::1",
];
/// Addresses that Services may have: in ranges, out of them, and a pod's (which an external address
/// may be, too).
const VIRTUAL_ADDRESSES: [&str; 4] = ["10.0.0.200", "10.96.0.1", "fd00:1::200", "172.16.0.1"];
const OTHER_ADDRESSES: [&str; 12] = [
    "10.0.0.0",
    "10.0.0.9",
    "10.0.0.77",
    "10.0.1.9",
    "10.0.255.1",
    "192.168.1.1",
    "8.8.8.8",
    "fd00::3",
    "fd00::9",
    "fd00:1::9",
    "fd00:ffff::1",
    "2001:db8::1",
];
const RANGES: [&str; 12] = [
    "0.0.0.0/0",
    "10.0.0.0/16",
    "10.0.0.0/24",
    "10.0.0.0/30",
    "10.0.1.0/24",
    "10.0.0.9/32",
    "192.168.0.0/16",
    "::/0",
    "fd00::/16",
    "fd00::/126",
    "fd00:1::/64",
    "10.0.0.2/32",
];
/// A port of every stretch that the edges below, and the numbers names resolve to, cut out.
const PORTS: [u16; 10] = [1, 53, 80, 81, 443, 444, 8000, 8080, 8081, 8091];

/// Every (protocol, port) that rules may tell apart.
pub(crate) fn protocols_and_ports() -> impl Iterator<Item = (u8, u16)> {
    let with_ports = [6, 17, 132].into_iter();
    let with_ports = with_ports.flat_map(|protocol| PORTS.map(|port| (protocol, port)));
    with_ports.chain([(1, 0)])
}

/// Every address that rules may tell apart: of each range below, also one that is no pod's.
pub(crate) fn addresses() -> Vec<IpAddr> {
    let virtual_ones = VIRTUAL_ADDRESSES
        .iter()
        .filter(|text| !POD_ADDRESSES.contains(text));
    let all = POD_ADDRESSES
        .iter()
        .chain(&OTHER_ADDRESSES)
        .chain(virtual_ones);
    all.map(|text| text.parse().unwrap()).collect()
}

pub(crate) fn uid(pod: usize) -> PodUid {
    PodUid(Arc::from(format!("uid-{pod}")))
}

fn labels(of: &[(&str, Option<&str>)]) -> Labels {
    let given = of.iter().filter_map(|(key, value)| Some((*key, (*value)?)));
    given
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn label_value() -> impl Strategy<Value = Option<&'static str>> {
    prop_oneof![Just(None), Just(Some("x")), Just(Some("y"))]
}

pub(crate) fn namespace() -> impl Strategy<Value = Change> {
    let namespace = (prop::sample::select(&NAMESPACES[..]), label_value());
    namespace.prop_map(|(name, team)| {
        let mut labels = labels(&[("team", team)]);
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
        Change::Namespace(Namespace {
            name: Arc::from(name),
            labels,
            annotations: Labels::new(),
        })
    })
}

fn container_ports() -> impl Strategy<Value = Vec<ContainerPort>> {
    let port = (
        prop::sample::select(&["http", "dns"][..]),
        prop::sample::select(&[Protocol::TCP, Protocol::UDP][..]),
        prop::sample::select(&[53_u16, 80, 8080][..]),
    );
    vec(port, 0..3).prop_map(|ports| {
        let port = |(name, protocol, port): (&str, Protocol, u16)| ContainerPort {
            name: name.to_owned(),
            protocol,
            port,
        };
        ports.into_iter().map(port).collect()
    })
}

pub(crate) fn pod_of(index: impl Strategy<Value = usize>) -> impl Strategy<Value = Change> {
    let namespace = prop::sample::select(&NAMESPACES[..]);
    let addresses = vec(prop::sample::select(&POD_ADDRESSES[..]), 0..3);
    let phase = prop_oneof![
        8 => Just(Phase::Live),
        1 => Just(Phase::Terminating),
        1 => Just(Phase::Completed),
    ];
    let identity = (index, namespace, 0..3_i64);
    let what = (label_value(), label_value(), addresses, container_ports());
    let how = (phase, prop::bool::weighted(0.05));
    (identity, what, how).prop_map(|(identity, what, how)| {
        let (index, namespace, created) = identity;
        let (app, tier, mut addresses, ports) = what;
        let (phase, host_network) = how;
        addresses.dedup();
        Change::Pod(Box::new(Pod {
            uid: uid(index),
            // A pod never changes its namespace: local pods are told apart by it.
            name: ObjectName::new(
                if index < LOCAL {
                    NAMESPACES[index % 2]
                } else {
                    namespace
                },
                format!("pod-{index}"),
            ),
            labels: labels(&[("app", app), ("tier", tier)]),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            ports: ports.into(),
            host_network: host_network && index >= LOCAL,
            phase,
            created,
            node: "".into(),
            workload: "".into(),
            annotations: Labels::new(),
        }))
    })
}

fn requirement(keys: &'static [&'static str]) -> impl Strategy<Value = Requirement> {
    let values = || vec(prop::sample::select(&["x", "y"][..]), 1..3);
    let owned = |values: Vec<&str>| values.into_iter().map(str::to_owned).collect();
    let operator = prop_oneof![
        4 => values().prop_map(move |values| Operator::In(owned(values))),
        2 => values().prop_map(move |values| Operator::NotIn(owned(values))),
        1 => Just(Operator::Exists),
        1 => Just(Operator::DoesNotExist),
    ];
    let key = prop::sample::select(keys);
    (key, operator).prop_map(|(key, operator)| Requirement {
        key: key.to_owned(),
        operator,
    })
}

/// Mostly of what there is to select by.
fn selector(keys: &'static [&'static str]) -> impl Strategy<Value = Selector> {
    vec(requirement(keys), 0..3).prop_map(Selector::new)
}

fn pods() -> impl Strategy<Value = Selector> {
    selector(&["app", "tier", "app", "tier", "team"])
}

fn namespaces() -> impl Strategy<Value = Selector> {
    selector(&["team", "team", "team", "app"])
}

fn peer() -> impl Strategy<Value = Peer> {
    let scope = prop_oneof![
        Just(NamespaceScope::Own),
        namespaces().prop_map(NamespaceScope::Selected),
    ];
    let pods = (scope, pods()).prop_map(|(namespaces, pods)| Peer::Pods { namespaces, pods });
    let holes = vec(prop::sample::select(&RANGES[..]), 0..3);
    let block = (prop::sample::select(&RANGES[..]), holes).prop_map(|(cidr, holes)| {
        let cidr: ipnet::IpNet = cidr.parse().unwrap();
        let holes = holes.into_iter().map(|hole| hole.parse().unwrap());
        let inside = |hole: &ipnet::IpNet| cidr.contains(hole) && *hole != cidr;
        Peer::Block {
            except: holes.filter(inside).collect(),
            cidr,
        }
    });
    prop_oneof![pods, block]
}

fn port_match() -> impl Strategy<Value = PortMatch> {
    let protocol =
        || prop::sample::select(&[Protocol::TCP, Protocol::TCP, Protocol::UDP, Protocol::SCTP][..]);
    let edges = [
        (80, 80),
        (443, 443),
        (8000, 8090),
        (443, 8080),
        (53, 53),
        (80, 65535),
    ];
    let range = prop::sample::select(edges.to_vec());
    prop_oneof![
        1 => protocol().prop_map(PortMatch::Protocol),
        4 => (protocol(), range).prop_map(|(protocol, (first, last))| PortMatch::Range {
            protocol,
            first,
            last,
        }),
        3 => (protocol(), prop::sample::select(&["http", "dns"][..])).prop_map(
            |(protocol, name)| PortMatch::Named {
                protocol,
                name: name.to_owned(),
            }
        ),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let peers = prop_oneof![
        1 => Just(Peers::All),
        5 => vec(peer(), 0..4).prop_map(Peers::Any),
    ];
    let ports = prop_oneof![
        2 => Just(Ports::All),
        3 => vec(port_match(), 0..5).prop_map(Ports::Any),
    ];
    (peers, ports).prop_map(|(peers, ports)| Rule { peers, ports })
}

pub(crate) fn policy() -> impl Strategy<Value = Change> {
    let name = (
        // Where local pods live.
        prop::sample::select(&NAMESPACES[..2]),
        prop::sample::select(&["p", "q", "r"][..]),
    );
    let rules = || vec(rule(), 0..4);
    let isolates = prop::sample::select(vec![(true, true), (true, false), (false, true)]);
    (name, pods(), isolates, rules(), rules()).prop_map(
        |((namespace, name), pods, (isolates_ingress, isolates_egress), ingress, egress)| {
            Change::Policy(Box::new(Policy {
                name: ObjectName::new(namespace, name),
                pods,
                isolates_ingress,
                isolates_egress,
                ingress,
                egress,
                annotations: Labels::new(),
            }))
        },
    )
}

fn service_name() -> impl Strategy<Value = ObjectName> {
    prop::sample::select(&["web", "dns"][..]).prop_map(|name| ObjectName::new("a", name))
}

/// A port by its name, at a Service and behind it.
fn named_port() -> impl Strategy<Value = (&'static str, Protocol)> {
    prop_oneof![
        3 => Just(("http", Protocol::TCP)),
        1 => Just(("dns", Protocol::UDP)),
    ]
}

fn service() -> impl Strategy<Value = Change> {
    let addresses = vec(prop::sample::select(&VIRTUAL_ADDRESSES[..]), 1..4);
    let ports = vec(
        (named_port(), prop::sample::select(&[53_u16, 80][..])),
        1..4,
    );
    (service_name(), addresses, ports).prop_map(|(name, addresses, ports)| {
        let ports = ports
            .into_iter()
            .map(|((name, protocol), port)| ServicePort {
                name: name.to_owned(),
                protocol,
                port,
            });
        let mut addresses = addresses.iter().map(|text| text.parse().unwrap());
        Change::Service(Box::new(Service {
            name,
            external_addresses: addresses.next().into_iter().collect(),
            addresses: addresses.collect(),
            ports: ports.collect(),
        }))
    })
}

fn slice_name() -> impl Strategy<Value = ObjectName> {
    (0..4).prop_map(|number| ObjectName::new("a", format!("slice-{number}")))
}

fn endpoint_slice() -> impl Strategy<Value = Change> {
    let address = prop_oneof![
        4 => prop::sample::select(&POD_ADDRESSES[..]),
        1 => prop::sample::select(&OTHER_ADDRESSES[..]),
    ];
    let ports = vec(
        (named_port(), prop::sample::select(&[53_u16, 80, 8080][..])),
        1..3,
    );
    (slice_name(), service_name(), vec(address, 0..3), ports).prop_map(
        |(name, service, addresses, ports)| {
            let ports = ports
                .into_iter()
                .map(|((name, protocol), port)| BackendPort {
                    name: name.to_owned(),
                    protocol,
                    port,
                });
            Change::EndpointSlice(Box::new(EndpointSlice {
                name,
                service: service.name,
                addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
                ports: ports.collect(),
            }))
        },
    )
}

/// One thing that happens to the agent.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Change(Change),
    /// One of a policy's rules, whichever it is, has another list of peers; all else stays.
    Relist(ObjectName, usize, Vec<Peer>),
    /// A local pod's interface appears.
    Attach(usize),
    /// It goes.
    Detach(usize),
}

fn relist() -> impl Strategy<Value = Event> {
    let name = (
        prop::sample::select(&NAMESPACES[..2]),
        prop::sample::select(&["p", "q", "r"][..]),
    );
    (name, 0..6_usize, vec(peer(), 0..4)).prop_map(|((namespace, name), place, peers)| {
        Event::Relist(ObjectName::new(namespace, name), place, peers)
    })
}

pub(crate) fn event() -> impl Strategy<Value = Event> {
    let policy_gone = (
        prop::sample::select(&NAMESPACES[..2]),
        prop::sample::select(&["p", "q", "r"][..]),
    );
    let gone = policy_gone
        .prop_map(|(namespace, name)| Change::PolicyGone(ObjectName::new(namespace, name)));
    prop_oneof![
        10 => pod_of(0..PODS).prop_map(Event::Change),
        2 => (0..PODS).prop_map(|pod| Event::Change(Change::PodGone(uid(pod)))),
        4 => namespace().prop_map(Event::Change),
        10 => policy().prop_map(Event::Change),
        3 => gone.prop_map(Event::Change),
        2 => service().prop_map(Event::Change),
        4 => endpoint_slice().prop_map(Event::Change),
        1 => service_name().prop_map(|name| Event::Change(Change::ServiceGone(name))),
        1 => slice_name().prop_map(|name| Event::Change(Change::EndpointSliceGone(name))),
        6 => relist(),
        1 => (0..LOCAL).prop_map(Event::Detach),
        2 => (0..LOCAL).prop_map(Event::Attach),
    ]
}

/// A populated world, then batches of events.
pub(crate) fn history(batches: usize) -> impl Strategy<Value = Vec<Vec<Event>>> {
    let pods: Vec<_> = (0..PODS).map(|pod| pod_of(Just(pod))).collect();
    let services = (vec(service(), 1..4), vec(endpoint_slice(), 1..5));
    let start = (pods, vec(namespace(), 3), vec(policy(), 1..7), services).prop_map(
        |(pods, namespaces, policies, (services, slices))| {
            let changes = pods.into_iter().chain(namespaces).chain(policies);
            let changes = changes.chain(services).chain(slices);
            let mut events: Vec<Event> = changes.map(Event::Change).collect();
            events.extend((0..LOCAL).map(Event::Attach));
            events
        },
    );
    (start, vec(vec(event(), 1..5), 1..=batches)).prop_map(|(start, mut batches)| {
        batches.insert(0, start);
        batches
    })
}
