//! What is decided before any policy is asked: whose packet it is, and what the link lives by.

use std::collections::HashMap;
use std::net::IpAddr;

use agent_common::classify::Outcome::{Drop, NotMine, Pass};
use agent_common::classify::{Arrival, Hook};
use agent_common::maps::{Counter, Prefix, config_flags, settings_flags};
use agent_common::{Address, Direction, Reason};

use crate::packets::Frame;
use crate::world::{
    NEIGHBOUR, POD, UPLINK, change_pod, change_policy, families, from_pod, from_pod_bytes, node,
    to_pod, to_pod_bytes,
};

fn v6(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Neighbour discovery: ICMPv6 with a hop limit that no router has touched, about the pod's address.
fn discovery(from: &str, to: &str, kind: u8) -> Frame {
    about(from, to, kind, families()[1].pod)
}

/// The same about another address.
fn about(from: &str, to: &str, kind: u8, target: IpAddr) -> Frame {
    let mut frame = Frame::icmp(v6(from), v6(to), kind, 0, 0).with_hop_limit(255);
    frame.payload.extend(Address::from(target).0);
    frame
}

/// Multicast listener discovery: hop limit 1, behind a hop-by-hop header with a router alert.
fn listener(from: &str, kind: u8) -> Frame {
    Frame::icmp(v6(from), v6("ff02::16"), kind, 0, 0)
        .with_hop_limit(1)
        .with_extension(0, vec![5, 2, 0, 0, 1, 0])
}

#[test]
fn arp_passes_both_ways() {
    let node = node();
    assert_eq!(from_pod_bytes(&node, &Frame::arp()), Pass(Reason::Link));
    assert_eq!(to_pod_bytes(&node, 0, &Frame::arp()), Pass(Reason::Link));
}

#[test]
fn frames_that_are_neither_ip_nor_arp_are_malformed() {
    let node = node();
    for ethertype in [[0x81, 0], [0, 38], [0x88, 0xcc]] {
        let mut frame = Frame::arp();
        frame[12..14].copy_from_slice(&ethertype);
        assert_eq!(from_pod_bytes(&node, &frame), Drop(Reason::Malformed));
    }
}

#[test]
fn arp_speaks_of_the_pods_own_address_or_none() {
    let node = node();
    for operation in [1, 2] {
        for (sender, expected) in [
            ([10, 1, 0, 2], Pass(Reason::Link)),
            ([0; 4], Pass(Reason::Link)),
            ([10, 1, 0, 3], Drop(Reason::SpoofedSource)),
            ([10, 1, 0, 1], Drop(Reason::SpoofedSource)),
        ] {
            let frame = Frame::arp_of(operation, sender, [10, 1, 0, 1]);
            assert_eq!(from_pod_bytes(&node, &frame), expected, "{sender:?}");
            let reached = to_pod_bytes(&node, NEIGHBOUR.0, &frame);
            assert_eq!(reached, Pass(Reason::Link), "its sender was asked");
        }
    }
}

#[test]
fn neighbour_discovery_passes_type_by_type() {
    let node = node();
    for kind in 130..=143 {
        let expected = match kind {
            133 | 135 | 136 => Pass(Reason::Link),
            134 | 137 => Drop(Reason::Malformed),
            _ => Drop(Reason::SpoofedSource),
        };
        for (from, to) in [("::", "ff02::1:ff00:2"), ("fe80::2", "fd00:1::1")] {
            let outcome = from_pod(&node, &discovery(from, to, kind));
            assert_eq!(outcome, expected, "type {kind} from {from}");
        }
    }
    for (kind, ingress_ifindex) in [(135, UPLINK), (136, 0), (134, 0), (137, 0)] {
        let frame = discovery("fe80::1", "fe80::2", kind);
        assert_eq!(to_pod(&node, ingress_ifindex, &frame), Pass(Reason::Link));
    }
}

#[test]
fn a_pod_speaks_of_its_own_addresses_unless_it_may_send_from_any() {
    let mut node = node();
    let neighbour = families()[1].neighbour;
    let claims = [
        about("fe80::2", "ff02::1", 136, neighbour),
        about("fd00:1::2", "ff02::1", 136, neighbour),
        about("fd00:1::3", "ff02::1", 136, families()[1].pod),
        about("::", "ff02::1:ff00:3", 135, neighbour),
    ];
    for claim in &claims {
        assert_eq!(from_pod(&node, claim), Drop(Reason::SpoofedSource));
    }
    let question = about("fd00:1::2", "ff02::1:ff00:3", 135, neighbour);
    assert_eq!(from_pod(&node, &question), Pass(Reason::Link));
    change_pod(&mut node, |config, _| {
        config.flags |= config_flags::ANY_SOURCE;
    });
    for claim in &claims {
        assert_eq!(from_pod(&node, claim), Pass(Reason::Link));
    }
}

#[test]
fn neighbour_discovery_never_leaves_the_pods_link() {
    let node = node();
    for (to, expected) in [
        ("ff02::1", Pass(Reason::Link)),
        ("fe80::1", Pass(Reason::Link)),
        ("fd00:1::1", Pass(Reason::Link)),
        ("fd00:2::9", Drop(Reason::Malformed)),
        ("::2", Drop(Reason::Malformed)),
    ] {
        for kind in [133, 135, 136] {
            let outcome = from_pod(&node, &discovery("fd00:1::2", to, kind));
            assert_eq!(outcome, expected, "type {kind} to {to}");
        }
    }
}

#[test]
fn neighbour_discovery_does_not_follow_the_nodes_routes() {
    const BRIDGE: u32 = 77;
    let mut node = node();
    let [_, family] = families();
    let elsewhere: IpAddr = "fd00:1::77".parse().unwrap();
    for (ways, expected) in [
        // Each pod by its own interface, as ptp has them, and a range by another node.
        ([POD.0, NEIGHBOUR.0, UPLINK], [true, false, false]),
        // Pods of a bridge.
        ([BRIDGE, BRIDGE, UPLINK], [true, true, false]),
        // A way for all of them, as for a default: another router's link.
        ([UPLINK; 3], [true; 3]),
    ] {
        let to = [family.pod, family.neighbour, elsewhere];
        node.routes = to.into_iter().map(Address::from).zip(ways).collect();
        for (to, is_on_link) in to.into_iter().zip(expected) {
            let expected = if is_on_link {
                Pass(Reason::Link)
            } else {
                Drop(Reason::Malformed)
            };
            for from in [family.pod, "fe80::2".parse().unwrap()] {
                let frame = discovery(&from.to_string(), &to.to_string(), 135);
                assert_eq!(
                    from_pod(&node, &frame),
                    expected,
                    "{from} to {to}: {ways:?}"
                );
            }
        }
    }
    // Where the node has no way to the pod, nobody shares its link.
    node.routes = HashMap::from([(Address::from(family.neighbour), UPLINK)]);
    let frame = discovery("fe80::2", &family.neighbour.to_string(), 135);
    assert_eq!(from_pod(&node, &frame), Drop(Reason::Malformed));
}

#[test]
fn router_advertisements_and_redirects_come_from_the_node_only() {
    let node = node();
    for kind in [134, 137] {
        let from_another = discovery("fe80::3", "ff02::1", kind);
        let expected = Drop(Reason::Malformed);
        assert_eq!(to_pod(&node, NEIGHBOUR.0, &from_another), expected);
        let from_us = discovery("fe80::2", "ff02::1", kind);
        assert_eq!(from_pod(&node, &from_us), expected);
    }
}

#[test]
fn neighbour_discovery_that_was_routed_or_is_more_than_that_is_malformed() {
    let node = node();
    let frame = discovery("fd00:9::9", "fd00:1::2", 135);
    let mut coded = frame.clone();
    coded.payload[1] = 1;
    let mut long = frame.clone();
    long.payload.resize(100, 0);
    for frame in [
        frame.clone().with_hop_limit(254),
        // RFC 6980.
        frame.clone().with_fragment(0, false),
        frame.clone().with_fragment(0, true),
        frame.clone().with_extension(60, vec![0; 6]),
        coded,
        long,
    ] {
        let outcome = to_pod(&node, UPLINK, &frame);
        assert_eq!(outcome, Drop(Reason::Malformed), "{frame:?}");
    }
    assert_eq!(to_pod(&node, UPLINK, &frame), Pass(Reason::Link));
    let mut short = discovery("fd00:1::2", "ff02::1", 136);
    short.payload.truncate(20);
    assert_eq!(from_pod(&node, &short), Drop(Reason::Malformed));
}

#[test]
fn listener_discovery_passes_behind_a_hop_by_hop_header() {
    let node = node();
    for kind in [130, 131, 132, 143] {
        for from in ["::", "fe80::2"] {
            assert_eq!(from_pod(&node, &listener(from, kind)), Pass(Reason::Link));
        }
        let mut bare = listener("fe80::2", kind);
        bare.extensions.clear();
        assert_eq!(from_pod(&node, &bare), Drop(Reason::SpoofedSource));
        let mut to_one = listener("fe80::2", kind);
        to_one.addresses.1 = v6("fe80::3");
        assert_eq!(from_pod(&node, &to_one), Drop(Reason::SpoofedSource));
    }
}

#[test]
fn a_pod_sends_only_from_its_own_addresses() {
    let node = node();
    for family in families() {
        for source in [family.neighbour, family.stranger, family.node] {
            let frame = Frame::tcp((source, 1), (family.friend, 443), 2);
            assert_eq!(
                from_pod(&node, &frame),
                Drop(Reason::SpoofedSource),
                "{source}"
            );
        }
    }
    let [v4, v6_family] = families();
    let unspecified = Frame::udp((IpAddr::from([0; 4]), 68), (v4.friend, 67));
    assert_eq!(from_pod(&node, &unspecified), Drop(Reason::SpoofedSource));
    for source in ["::", "fe80::2"] {
        let frame = Frame::udp((v6(source), 1), (v6_family.friend, 443));
        assert_eq!(
            from_pod(&node, &frame),
            Drop(Reason::SpoofedSource),
            "{source}"
        );
    }
}

#[test]
fn an_unused_address_place_owns_nothing() {
    let mut node = node();
    change_pod(&mut node, |config, _| {
        config.addresses[1] = Address::UNSPECIFIED;
    });
    let frame = Frame::udp((v6("::"), 1), (families()[1].friend, 443));
    assert_eq!(from_pod(&node, &frame), Drop(Reason::SpoofedSource));
}

#[test]
fn annotated_sources_are_the_pods_too() {
    let mut node = node();
    let [v4, _] = families();
    change_pod(&mut node, |config, _| {
        config.sources[0] = Prefix {
            address: Address::from_v4([192, 168, 4, 0]),
            length: 96 + 22,
        };
        config.source_count = 1;
    });
    let send = |node: &_, source: [u8; 4]| {
        from_pod(node, &Frame::tcp((source.into(), 1), (v4.friend, 443), 2))
    };
    assert_eq!(send(&node, [192, 168, 7, 255]), Pass(Reason::Rule));
    assert_eq!(send(&node, [192, 168, 8, 0]), Drop(Reason::SpoofedSource));
    assert_eq!(send(&node, [192, 168, 3, 255]), Drop(Reason::SpoofedSource));
    let reply = Frame::tcp((v4.friend, 443), ([192, 168, 7, 255].into(), 1), 0x12);
    assert_eq!(
        to_pod(&node, UPLINK, &reply),
        Pass(Reason::Reply),
        "and so are their replies"
    );
    change_pod(&mut node, |config, _| config.source_count = 0);
    assert_eq!(send(&node, [192, 168, 7, 254]), Drop(Reason::SpoofedSource));
    change_pod(&mut node, |config, _| {
        config.flags |= config_flags::ANY_SOURCE;
    });
    assert_eq!(send(&node, [1, 2, 3, 4]), Pass(Reason::Rule));
}

#[test]
fn prefixes_of_every_length_hold_what_they_cover() {
    let mut node = node();
    let [_, family] = families();
    let base = u128::from_be_bytes(Address::from(v6("fdab:cdef:0123:4567:89ab:cdef:0123:4567")).0);
    for length in 0..=128_u32 {
        let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
        change_pod(&mut node, |config, _| {
            config.source_count = 1;
            config.sources[0] = Prefix {
                address: Address((base & mask).to_be_bytes()),
                length,
            };
        });
        let send = |bits: u128| {
            let source = IpAddr::from(bits.to_be_bytes());
            from_pod(&node, &Frame::tcp((source, 1), (family.friend, 443), 2))
        };
        assert!(matches!(send(base), Pass(_)), "/{length}");
        if length > 0 {
            let beside = base ^ (1 << (128 - length));
            assert_eq!(send(beside), Drop(Reason::SpoofedSource), "/{length}");
        }
    }
}

#[test]
fn unicast_for_another_pod_vanishes_without_a_trace_but_its_counter() {
    let node = node();
    for (n, family) in (1_u64..).zip(families()) {
        let flooded = Frame::tcp((family.node, 1), (family.neighbour, 80), 2);
        assert_eq!(
            to_pod(&node, 0, &flooded),
            NotMine,
            "no exemption for the node either"
        );
        assert_eq!(node.counter(Counter::NotMine), n);
    }
    assert!(node.take_events().is_empty());
    assert!(node.denied.borrow().is_empty());
    assert!(node.dropped.borrow().is_empty());
    assert!(node.passed.borrow().is_empty());
}

#[test]
fn groups_are_judged_by_policy() {
    let mut node = node();
    for family in families() {
        let frame = Frame::udp((family.stranger, 1), (family.group, 5353));
        assert_eq!(to_pod(&node, UPLINK, &frame), Drop(Reason::IsolatedNoRule));
        let sent = Frame::udp((family.pod, 1), (family.group, 5353));
        assert_eq!(from_pod(&node, &sent), Drop(Reason::IsolatedNoRule));
    }
    change_policy(&mut node, [0, 0]);
    for family in families() {
        let frame = Frame::udp((family.stranger, 1), (family.group, 5353));
        assert_eq!(to_pod(&node, UPLINK, &frame), Pass(Reason::NotIsolated));
    }
}

#[test]
fn what_came_to_a_group_opens_nothing_for_the_pods_own_address() {
    let node = node();
    for family in families() {
        let asked = Frame::udp((family.friend, 5353), (family.group, 80));
        assert_eq!(to_pod(&node, UPLINK, &asked), Pass(Reason::Rule));
        let told = Frame::udp((family.pod, 80), (family.friend, 5353));
        assert_eq!(from_pod(&node, &told), Drop(Reason::IsolatedNoRule));
    }
}

#[test]
fn two_addresses_that_a_pod_routes_for_have_a_flow_each() {
    let mut node = node();
    change_pod(&mut node, |config, _| {
        config.sources[0] = Prefix {
            address: Address::from_v4([10, 77, 0, 0]),
            length: 96 + 16,
        };
        config.source_count = 1;
    });
    let [v4, _] = families();
    let behind: [IpAddr; 2] = ["10.77.0.1", "10.77.0.2"].map(|ip| ip.parse().unwrap());
    for source in [v4.pod, behind[0], behind[1]] {
        let opens = Frame::tcp((source, 40_000), (v4.friend, 443), 2);
        assert_eq!(from_pod(&node, &opens), Pass(Reason::Rule), "{source}");
    }
    assert_eq!(node.pending.borrow().len(), 3);
}

#[test]
fn an_interface_nobody_published_takes_the_nodes_posture() {
    let mut node = node();
    let [v4, _] = families();
    let at = Arrival {
        hook: Hook::FromPod,
        ifindex: 99,
        ingress_ifindex: 99,
    };
    let frame = Frame::tcp((v4.pod, 1), (v4.friend, 443), 2).bytes();
    assert_eq!(node.classify(at, &frame), Drop(Reason::NotProgrammed));
    assert_eq!(node.classify(at, &[0; 20]), Drop(Reason::NotProgrammed));
    assert_eq!(node.classify(at, &Frame::arp()), Pass(Reason::Link));
    let solicitation = discovery("::", "ff02::1:ff00:2", 135).bytes();
    assert_eq!(node.classify(at, &solicitation), Pass(Reason::Link));
    assert_eq!(node.counter(Counter::UnknownEndpoint), 2);
    let dropped = node.dropped_of(0, Direction::Egress, Reason::NotProgrammed);
    assert_eq!(dropped.packets, 2, "exact, under slot 0");
    node.policy.settings.flags |= settings_flags::UNKNOWN_OPEN;
    assert_eq!(node.classify(at, &frame), Pass(Reason::FailOpen));
}

#[test]
fn an_endpoint_that_is_not_programmed_takes_its_own_posture() {
    let mut node = node();
    let [v4, _] = families();
    node.policy.settings.flags |= settings_flags::UNKNOWN_OPEN;
    change_pod(&mut node, |config, _| config.flags = 0);
    let frame = Frame::tcp((v4.pod, 1), (v4.friend, 443), 2);
    assert_eq!(from_pod(&node, &frame), Drop(Reason::NotProgrammed));
    assert_eq!(
        to_pod(&node, 0, &frame),
        Drop(Reason::NotProgrammed),
        "the node's too"
    );
    assert_eq!(from_pod_bytes(&node, &Frame::arp()), Pass(Reason::Link));
    change_pod(&mut node, |config, _| {
        config.flags = config_flags::FAIL_OPEN;
    });
    assert_eq!(from_pod(&node, &frame), Pass(Reason::FailOpen));
    let not_ours = node.dropped_of(POD.1, Direction::Ingress, Reason::NotProgrammed);
    assert_eq!(not_ours.packets, 1);
}
