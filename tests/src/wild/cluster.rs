//! A namespace of pods under policies that chance has written: few labels, ranges and ports, so that
//! rules meet.

use std::net::IpAddr;
use std::sync::Arc;

use agent_policy::model::{
    Change, ContainerPort, Labels, Namespace, NamespaceScope, ObjectName, Peer, Peers, Pod, PodUid,
    Policy, PortMatch, Ports, Protocol, Rule,
};
use agent_policy::selector::{Operator, Requirement, Selector};

use super::frames::Addresses;
use crate::dice::Dice;

const NAMESPACE: &str = "fuzz";
/// Policies by their numbers.
const POLICIES: usize = 6;

/// A pod's name, by its place.
pub fn name(pod: usize) -> ObjectName {
    ObjectName::new(NAMESPACE, format!("pod-{pod}"))
}

/// A pod with labels as its place says, and of this half.
pub fn pod(place: usize, half: usize, addresses: &Addresses) -> Pod {
    let labels = [
        ("app".to_owned(), format!("p{place}")),
        ("half".to_owned(), format!("h{half}")),
    ];
    let port = if place.is_multiple_of(2) { 80 } else { 443 };
    Pod {
        labels: labels.into_iter().collect(),
        addresses: addresses.to_vec(),
        ports: Arc::from([ContainerPort {
            name: "http".to_owned(),
            protocol: Protocol::TCP,
            port,
        }]),
        ..Pod::new(PodUid(Arc::from(format!("uid-{place}"))), name(place))
    }
}

/// Pods with these addresses, and policies about them.
pub fn cluster(dice: &mut Dice, pods: &[Addresses]) -> Vec<Change> {
    let label = (
        "kubernetes.io/metadata.name".to_owned(),
        NAMESPACE.to_owned(),
    );
    let namespace = Namespace {
        name: Arc::from(NAMESPACE),
        labels: [label].into_iter().collect(),
        annotations: Labels::new(),
    };
    let mut changes = vec![Change::Namespace(namespace)];
    for (place, addresses) in pods.iter().enumerate() {
        changes.push(Change::Pod(Box::new(pod(place, place % 2, addresses))));
    }
    for number in 0..=dice.roll(POLICIES) {
        changes.push(Change::Policy(Box::new(policy(dice, number, pods))));
    }
    changes
}

/// Something that happens to a cluster.
pub fn change(dice: &mut Dice, pods: &[Addresses]) -> Change {
    let number = dice.roll(POLICIES);
    match dice.roll(4) {
        0 => Change::PolicyGone(policy_name(number)),
        1 => {
            let place = dice.roll(pods.len());
            let addresses = pods.get(place).expect("a place below their number");
            Change::Pod(Box::new(pod(place, dice.roll(2), addresses)))
        }
        _ => Change::Policy(Box::new(policy(dice, number, pods))),
    }
}

fn policy_name(number: usize) -> ObjectName {
    ObjectName::new(NAMESPACE, format!("policy-{number}"))
}

fn policy(dice: &mut Dice, number: usize, pods: &[Addresses]) -> Policy {
    let selected = pods_by_chance(dice, pods.len());
    let (isolates_ingress, isolates_egress) =
        dice.pick(&[(true, false), (false, true), (true, true)]);
    let rules = |dice: &mut Dice| (0..dice.roll(3)).map(|_| rule(dice, pods)).collect();
    Policy {
        name: policy_name(number),
        pods: selected,
        isolates_ingress,
        isolates_egress,
        ingress: rules(dice),
        egress: rules(dice),
        annotations: Labels::new(),
    }
}

/// All of them, half of them or one.
fn pods_by_chance(dice: &mut Dice, pods: usize) -> Selector {
    let one_of = |key: &str, value: String| {
        Selector::new(vec![Requirement {
            key: key.to_owned(),
            operator: Operator::In([value].into_iter().collect()),
        }])
    };
    match dice.roll(3) {
        0 => Selector::EVERYTHING,
        1 => one_of("half", format!("h{}", dice.roll(2_usize))),
        _ => one_of("app", format!("p{}", dice.roll(pods))),
    }
}

fn rule(dice: &mut Dice, pods: &[Addresses]) -> Rule {
    let peers = match dice.roll(6) {
        0 => Peers::All,
        1 => Peers::Any(vec![block(dice, pods)]),
        2 => Peers::Any(vec![block(dice, pods), peer(dice, pods.len())]),
        _ => Peers::Any(vec![peer(dice, pods.len())]),
    };
    let protocol = dice.pick(&[Protocol::TCP, Protocol::UDP, Protocol::SCTP]);
    let ports = match dice.roll(6) {
        0 | 1 => Ports::All,
        2 => Ports::Any(vec![PortMatch::Protocol(protocol)]),
        3 => Ports::Any(vec![PortMatch::Range {
            protocol,
            first: 80,
            last: 443,
        }]),
        4 => Ports::Any(vec![PortMatch::Named {
            protocol: Protocol::TCP,
            name: "http".to_owned(),
        }]),
        _ => {
            let single = |protocol, port| PortMatch::Range {
                protocol,
                first: port,
                last: port,
            };
            Ports::Any(vec![
                single(Protocol::TCP, 80),
                single(Protocol::UDP, 443),
                single(protocol, 79),
                single(Protocol::SCTP, 80),
            ])
        }
    };
    Rule { peers, ports }
}

fn peer(dice: &mut Dice, pods: usize) -> Peer {
    let namespaces = if dice.one_in(4) {
        NamespaceScope::Selected(Selector::EVERYTHING)
    } else {
        NamespaceScope::Own
    };
    Peer::Pods {
        namespaces,
        pods: pods_by_chance(dice, pods),
    }
}

/// A range around somebody's address, perhaps without that one; or groups.
fn block(dice: &mut Dice, pods: &[Addresses]) -> Peer {
    if dice.one_in(5) {
        let cidr = dice.pick(&["239.0.0.0/8", "ff00::/8", "0.0.0.0/0", "::/0"]);
        return Peer::Block {
            cidr: cidr.parse().expect("a range"),
            except: Vec::new(),
        };
    }
    let around = dice.pick(pods);
    let (address, bits): (IpAddr, u8) = match around {
        [v4, _] if dice.one_in(2) => (v4, 32),
        [_, v6] => (v6, 128),
    };
    let range = |length: u8| {
        let text = format!("{address}/{length}");
        let range: ipnet::IpNet = text.parse().expect("a range of its family");
        range.trunc()
    };
    let length = bits - dice.pick(&[1, 2, 3, 8]);
    let except = if dice.one_in(2) {
        vec![range(bits)]
    } else {
        Vec::new()
    };
    Peer::Block {
        cidr: range(length),
        except,
    }
}
