//! Fragments: later ones get what their first one got, never more.

use std::net::IpAddr;

use agent_common::Reason;
use agent_common::classify::Outcome::{self, Drop, Pass};
use agent_common::classify::{Arrival, Hook};

use crate::packets::{Frame, protocol};
use crate::world::{
    CLOSED_SET, EGRESS_SET, HZ, NEIGHBOUR, UPLINK, change_policy, families, from_pod, node,
    relabel, to_pod,
};

const SYN: u8 = 2;
const UNKNOWN: Outcome = Drop(Reason::Fragment);

/// The first fragment of a packet.
fn first(packet: &Frame) -> Frame {
    packet.clone().with_fragment(0, true)
}

/// One of its later fragments, with data from this byte on.
fn later(packet: &Frame, offset: u16) -> Frame {
    let mut frame = packet.clone().with_fragment(offset / 8, false);
    frame.payload = vec![0x5a; 16];
    frame
}

fn datagram(from: IpAddr, to: IpAddr, port: u16) -> Frame {
    Frame::udp((from, 40_000), (to, port))
}

#[test]
fn later_fragments_follow_the_first_one_that_passed() {
    for family in families() {
        let node = node();
        let sent = datagram(family.pod, family.friend, 443);
        assert_eq!(from_pod(&node, &first(&sent)), Pass(Reason::Rule));
        for offset in [1_400, 2_800, 8, 65_528] {
            let outcome = from_pod(&node, &later(&sent, offset));
            assert_eq!(outcome, Pass(Reason::Reply), "at byte {offset}");
        }
        let received = datagram(family.friend, family.pod, 80);
        assert_eq!(to_pod(&node, UPLINK, &first(&received)), Pass(Reason::Rule));
        let outcome = to_pod(&node, UPLINK, &later(&received, 1_400));
        assert_eq!(outcome, Pass(Reason::Reply));
        let reply = Frame::udp((family.pod, 80), (family.friend, 40_000)).with_identification(9);
        assert_eq!(from_pod(&node, &first(&reply)), Pass(Reason::Reply));
        let outcome = from_pod(&node, &later(&reply, 1_400));
        assert_eq!(outcome, Pass(Reason::Reply), "an answer's");
    }
}

#[test]
fn later_fragments_of_a_first_one_that_was_refused_are_dropped() {
    for family in families() {
        let node = node();
        let sent = datagram(family.pod, family.friend, 444);
        assert_eq!(from_pod(&node, &first(&sent)), Drop(Reason::IsolatedNoRule));
        assert_eq!(from_pod(&node, &later(&sent, 1_400)), UNKNOWN);
    }
}

#[test]
fn later_fragments_without_their_first_one_are_dropped() {
    for family in families() {
        let node = node();
        let sent = datagram(family.pod, family.friend, 443);
        assert_eq!(from_pod(&node, &later(&sent, 1_400)), UNKNOWN);
        assert_eq!(from_pod(&node, &first(&sent)), Pass(Reason::Rule));
        // Of another packet, peer or direction.
        let other = sent.clone().with_identification(1);
        assert_eq!(from_pod(&node, &later(&other, 1_400)), UNKNOWN);
        let elsewhere = datagram(family.pod, family.neighbour, 443);
        assert_eq!(from_pod(&node, &later(&elsewhere, 1_400)), UNKNOWN);
        let back = datagram(family.friend, family.pod, 443);
        assert_eq!(to_pod(&node, UPLINK, &later(&back, 1_400)), UNKNOWN);
    }
    let (node, [family, _]) = (node(), families());
    let sent = datagram(family.pod, family.friend, 443);
    assert_eq!(from_pod(&node, &first(&sent)), Pass(Reason::Rule));
    let mut other = later(&sent, 1_400);
    other.protocol = protocol::TCP;
    assert_eq!(
        from_pod(&node, &other),
        UNKNOWN,
        "IPv4 tells packets apart by protocol, too"
    );
}

#[test]
fn ipv6_tells_packets_apart_without_their_protocol() {
    let (node, [_, family]) = (node(), families());
    let sent = datagram(family.pod, family.friend, 443);
    assert_eq!(from_pod(&node, &first(&sent)), Pass(Reason::Rule));
    // RFC 8200 §4.5: only what the first fragment says is next counts.
    for shown in [protocol::TCP, 60, 59] {
        let mut rest = later(&sent, 1_400);
        rest.protocol = shown;
        assert_eq!(from_pod(&node, &rest), Pass(Reason::Reply), "{shown}");
    }
}

#[test]
fn fragments_that_lie_over_the_header_are_malformed() {
    for family in families() {
        let node = node();
        let segment = Frame::tcp((family.pod, 40_000), (family.friend, 443), SYN);
        assert_eq!(from_pod(&node, &first(&segment)), Pass(Reason::Rule));
        for offset in [8, 16] {
            let outcome = from_pod(&node, &later(&segment, offset));
            assert_eq!(outcome, Drop(Reason::Malformed), "at byte {offset}");
        }
        assert_eq!(from_pod(&node, &later(&segment, 24)), Pass(Reason::Reply));
        let packet = Frame::sctp((family.pod, 40_000), (family.friend, 443), 1);
        let packet = packet.with_identification(2);
        assert_eq!(from_pod(&node, &first(&packet)), Pass(Reason::Rule));
        let outcome = from_pod(&node, &later(&packet, 8));
        assert_eq!(outcome, Drop(Reason::Malformed));
    }
}

#[test]
fn fragments_that_lie_over_a_header_behind_options_are_malformed() {
    let (node, [_, family]) = (node(), families());
    // An allowed port behind destination options, which are in pieces like what follows them.
    let more_of_the_seventh = vec![0, 1, 0, 0, 0, 7];
    let packet = Frame::udp((family.pod, 40_000), (family.friend, 443))
        .with_extension(44, more_of_the_seventh)
        .with_extension(60, vec![0; 6]);
    assert_eq!(from_pod(&node, &packet), Pass(Reason::Rule));
    let plain = Frame::udp((family.pod, 40_000), (family.friend, 444)).with_identification(7);
    let outcome = from_pod(&node, &plain.clone().with_fragment(1, true));
    assert_eq!(outcome, Drop(Reason::Malformed), "it would be another port");
    assert_eq!(from_pod(&node, &later(&plain, 16)), Pass(Reason::Reply));
}

#[test]
fn a_fragment_of_a_fragment_is_malformed() {
    let (node, [_, family]) = (node(), families());
    let packet = Frame::udp((family.pod, 40_000), (family.friend, 443));
    let twice = packet
        .with_extension(44, vec![0, 1, 0, 0, 0, 7])
        .with_extension(44, vec![0, 1, 0, 0, 0, 8]);
    assert_eq!(from_pod(&node, &twice), Drop(Reason::Malformed));
}

#[test]
fn a_first_fragment_too_small_for_its_header_is_malformed() {
    for family in families() {
        let node = node();
        for (packet, least) in [
            (Frame::tcp((family.pod, 1), (family.friend, 443), SYN), 20),
            (Frame::udp((family.pod, 1), (family.friend, 443)), 8),
            (Frame::sctp((family.pod, 1), (family.friend, 443), 1), 16),
        ] {
            for length in 0..least {
                let mut tiny = first(&packet);
                tiny.payload.truncate(length);
                let outcome = from_pod(&node, &tiny);
                assert_eq!(outcome, Drop(Reason::Malformed), "{length} bytes");
            }
            let mut whole = first(&packet);
            whole.payload.truncate(least);
            assert_eq!(from_pod(&node, &whole), Pass(Reason::Rule));
        }
    }
}

#[test]
fn a_packets_rest_is_waited_for_as_long_as_a_receiver_would() {
    for family in families() {
        let node = node();
        let sent = datagram(family.pod, family.friend, 443);
        assert_eq!(from_pod(&node, &first(&sent)), Pass(Reason::Rule));
        node.now.set(node.now.get() + u64::from(30 * HZ));
        assert_eq!(from_pod(&node, &later(&sent, 1_400)), Pass(Reason::Reply));
        node.now.set(node.now.get() + 1);
        assert_eq!(from_pod(&node, &later(&sent, 1_400)), UNKNOWN);
    }
}

#[test]
fn what_a_change_forbids_has_no_later_fragments() {
    for family in families() {
        let mut node = node();
        let sent = datagram(family.pod, family.friend, 443);
        assert_eq!(from_pod(&node, &first(&sent)), Pass(Reason::Rule));
        relabel(&mut node, family.friend, 0);
        let outcome = from_pod(&node, &later(&sent, 1_400));
        assert_eq!(outcome, Drop(Reason::IsolatedNoRule));
        let denied = node.denied.borrow();
        assert!(
            denied.keys().any(|key| key.port == 443),
            "filed by its port"
        );
    }
}

#[test]
fn what_one_endpoint_learns_is_nothing_to_another() {
    for family in families() {
        let node = node();
        let sent = datagram(family.neighbour, family.pod, 81);
        let at = Arrival {
            hook: Hook::FromPod,
            ifindex: NEIGHBOUR.0,
            ingress_ifindex: NEIGHBOUR.0,
        };
        let passed = node.classify(at, &first(&sent).bytes());
        assert_eq!(passed, Pass(Reason::NotIsolated));
        let refused = to_pod(&node, NEIGHBOUR.0, &first(&sent));
        assert_eq!(refused, Drop(Reason::IsolatedNoRule));
        assert_eq!(to_pod(&node, NEIGHBOUR.0, &later(&sent, 1_400)), UNKNOWN);
    }
}

#[test]
fn a_later_fragment_of_an_echo_begins_no_flow() {
    let mut node = node();
    change_policy(&mut node, [CLOSED_SET, 0]);
    for family in families() {
        let request = Frame::echo_request(family.pod, family.stranger, 7);
        assert_eq!(from_pod(&node, &first(&request)), Pass(Reason::NotIsolated));
        node.pending.borrow_mut().clear();
        let rest = later(&request, 1_400);
        assert_eq!(from_pod(&node, &rest), Pass(Reason::NotIsolated));
        assert!(node.pending.borrow().is_empty());
    }
}

#[test]
fn fragments_whose_verdict_needs_no_ports_come_in_any_order() {
    for family in families() {
        let mut node = node();
        change_policy(&mut node, [CLOSED_SET, 0]);
        let sent = datagram(family.pod, family.stranger, 9);
        let outcome = from_pod(&node, &later(&sent, 1_400));
        assert_eq!(outcome, Pass(Reason::NotIsolated));
        let itself = datagram(family.pod, family.pod, 9);
        change_policy(&mut node, [CLOSED_SET, EGRESS_SET]);
        let outcome = from_pod(&node, &later(&itself, 1_400));
        assert_eq!(outcome, Pass(Reason::Itself));
        let received = datagram(family.node, family.pod, 9);
        // Where it came in proves nothing about an IPv6 fragment.
        let expected = if family.pod.is_ipv4() {
            Pass(Reason::Node)
        } else {
            UNKNOWN
        };
        assert_eq!(to_pod(&node, 0, &later(&received, 1_400)), expected);
        assert_eq!(
            to_pod(&node, NEIGHBOUR.0, &later(&received, 1_400)),
            UNKNOWN
        );
    }
}

#[test]
fn large_echoes_pass_both_ways() {
    let mut node = node();
    change_policy(&mut node, [CLOSED_SET, 0]);
    for family in families() {
        let request = Frame::echo_request(family.pod, family.stranger, 7);
        assert_eq!(from_pod(&node, &first(&request)), Pass(Reason::NotIsolated));
        let rest = later(&request, 1_400);
        assert_eq!(from_pod(&node, &rest), Pass(Reason::Reply));
        let reply = Frame::echo_reply(family.stranger, family.pod, 7);
        assert_eq!(to_pod(&node, UPLINK, &first(&reply)), Pass(Reason::Reply));
        assert_eq!(
            to_pod(&node, UPLINK, &later(&reply, 1_400)),
            Pass(Reason::Reply)
        );
        let other = Frame::echo_request(family.stranger, family.pod, 7).with_identification(3);
        let refused = Drop(Reason::IsolatedNoRule);
        assert_eq!(to_pod(&node, UPLINK, &first(&other)), refused);
        assert_eq!(to_pod(&node, UPLINK, &later(&other, 1_400)), UNKNOWN);
    }
}

#[test]
fn a_fragments_source_is_checked_like_any() {
    for family in families() {
        let node = node();
        let sent = datagram(family.pod, family.friend, 443);
        assert_eq!(from_pod(&node, &first(&sent)), Pass(Reason::Rule));
        let mut spoofed = later(&sent, 1_400);
        spoofed.addresses.0 = family.neighbour;
        let outcome = from_pod(&node, &spoofed);
        assert_eq!(outcome, Drop(Reason::SpoofedSource));
    }
}
