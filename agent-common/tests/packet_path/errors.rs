//! ICMP errors: those about known flows pass, and nothing else does by that door.

use agent_common::Reason;
use agent_common::classify::Outcome::{self, Drop, Pass};
use proptest::prelude::*;

use crate::packets::{Frame, protocol};
use crate::world::{
    CLOSED_SET, EGRESS_SET, Family, HZ, Node, UPLINK, change_policy, families, from_pod, node,
    to_pod, to_pod_bytes,
};

const SYN: u8 = 2;
const ACK: u8 = 16;
const REFUSED: Outcome = Drop(Reason::IsolatedNoRule);
const SPOOFED: Outcome = Drop(Reason::SpoofedSource);
const RELATED: Outcome = Pass(Reason::IcmpRelated);

/// What the pod sends to a friend, in each protocol that it may use.
fn sent(family: Family) -> [Frame; 3] {
    let (from, to) = ((family.pod, 40_000), (family.friend, 443));
    [
        Frame::tcp(from, to, SYN),
        Frame::udp(from, to),
        Frame::sctp(from, to, 1),
    ]
}

/// The same of what a friend sends to the pod.
fn received(family: Family) -> [Frame; 3] {
    let (from, to) = ((family.friend, 40_000), (family.pod, 80));
    [
        Frame::tcp(from, to, SYN),
        Frame::udp(from, to),
        Frame::sctp(from, to, 1),
    ]
}

/// Types and codes of the errors a family has.
fn errors(family: Family) -> &'static [(u8, u8)] {
    if family.pod.is_ipv4() {
        &[(3, 0), (3, 1), (3, 3), (3, 4), (11, 0), (12, 0)]
    } else {
        &[(1, 0), (1, 4), (2, 0), (3, 0), (4, 1)]
    }
}

#[test]
fn any_router_may_tell_the_pod_about_what_it_has_sent() {
    for family in families() {
        let node = node();
        for frame in sent(family) {
            assert_eq!(from_pod(&node, &frame), Pass(Reason::Rule));
            for &(kind, code) in errors(family) {
                let error = Frame::icmp_error(family.stranger, kind, code, &frame, usize::MAX);
                assert_eq!(to_pod(&node, UPLINK, &error), RELATED, "{error:?}");
            }
        }
    }
}

#[test]
fn the_pod_may_tell_its_peers_about_what_they_have_sent() {
    for family in families() {
        let node = node();
        for frame in received(family) {
            assert_eq!(to_pod(&node, UPLINK, &frame), Pass(Reason::Rule));
            let error = Frame::too_big(family.pod, &frame);
            assert_eq!(from_pod(&node, &error), RELATED, "{error:?}");
        }
    }
}

#[test]
fn errors_about_echoes_pass_with_the_side_that_asked() {
    let mut node = node();
    change_policy(&mut node, [CLOSED_SET, 0]);
    for family in families() {
        let echo = Frame::echo_request(family.pod, family.stranger, 7);
        assert_eq!(from_pod(&node, &echo), Pass(Reason::NotIsolated));
        let error = Frame::too_big(family.friend, &echo);
        assert_eq!(to_pod(&node, UPLINK, &error), RELATED);
        let other = Frame::echo_request(family.pod, family.stranger, 8);
        let error = Frame::too_big(family.friend, &other);
        assert_eq!(to_pod(&node, UPLINK, &error), REFUSED);
    }
}

#[test]
fn an_error_about_no_known_flow_is_judged_by_policy() {
    for family in families() {
        let mut node = node();
        let (from, to) = ((family.pod, 40_000), (family.friend, 443));
        let error = Frame::too_big(family.stranger, &Frame::udp(from, to));
        assert_eq!(to_pod(&node, UPLINK, &error), REFUSED);
        assert_eq!(from_pod(&node, &Frame::udp(from, to)), Pass(Reason::Rule));
        for about in [
            Frame::udp((family.pod, 40_001), to),
            Frame::udp(from, (family.friend, 444)),
            Frame::udp(from, (family.stranger, 443)),
            Frame::tcp(from, to, SYN),
        ] {
            let error = Frame::too_big(family.stranger, &about);
            assert_eq!(to_pod(&node, UPLINK, &error), REFUSED, "{about:?}");
        }
        change_policy(&mut node, [0, EGRESS_SET]);
        let error = Frame::too_big(family.stranger, &Frame::udp((family.pod, 1), to));
        assert_eq!(
            to_pod(&node, UPLINK, &error),
            Pass(Reason::NotIsolated),
            "who may send it anything may send it errors"
        );
    }
}

#[test]
fn forged_quotes_open_no_door() {
    for family in families() {
        let node = node();
        let (pod, friend) = ((family.pod, 40_000), (family.friend, 443));
        let frame = Frame::udp(pod, friend);
        assert_eq!(from_pod(&node, &frame), Pass(Reason::Rule));
        // The pod to whom it pleases, about a flow that it has.
        let mut elsewhere = Frame::too_big(family.pod, &Frame::udp(friend, pod));
        assert_eq!(from_pod(&node, &elsewhere), RELATED, "its peer may be told");
        elsewhere.addresses.1 = family.stranger;
        assert_eq!(from_pod(&node, &elsewhere), REFUSED);
        // About what it has sent itself: whom would that be for?
        let mut own = Frame::too_big(family.pod, &frame);
        own.addresses.1 = family.friend;
        assert_eq!(from_pod(&node, &own), SPOOFED, "wrong side");
        // To the pod, about what was sent to it.
        let mut reply = Frame::too_big(family.stranger, &Frame::udp(friend, pod));
        reply.addresses.1 = family.pod;
        assert_eq!(to_pod(&node, UPLINK, &reply), REFUSED, "wrong side");
        // Another pod's flow.
        let mut other = Frame::too_big(family.stranger, &frame);
        other.addresses.1 = family.neighbour;
        assert_eq!(to_pod(&node, UPLINK, &other), Outcome::NotMine);
    }
}

#[test]
fn a_pod_tells_of_what_was_sent_to_itself_only_whatever_policy_allows() {
    for family in families() {
        let mut node = node();
        change_policy(&mut node, [0, 0]);
        // Any router may say so, and the friend would hear it.
        let about = Frame::udp((family.friend, 40_000), (family.neighbour, 443));
        assert_eq!(
            from_pod(&node, &Frame::too_big(family.pod, &about)),
            SPOOFED
        );
        let about = Frame::udp((family.friend, 40_000), (family.pod, 443));
        let error = Frame::too_big(family.pod, &about);
        assert_eq!(from_pod(&node, &error), Pass(Reason::NotIsolated));
    }
}

#[test]
fn only_errors_are_errors() {
    for family in families() {
        let node = node();
        let frame = Frame::udp((family.pod, 40_000), (family.friend, 443));
        assert_eq!(from_pod(&node, &frame), Pass(Reason::Rule));
        // Source quench, redirects, time stamps; unassigned, private and informational types.
        let kinds: &[u8] = if family.pod.is_ipv4() {
            &[1, 2, 4, 5, 9, 10, 13, 40, 255]
        } else {
            &[0, 5, 100, 127, 138, 139, 150, 255]
        };
        for &kind in kinds {
            let message = Frame::icmp_error(family.stranger, kind, 0, &frame, usize::MAX);
            assert_eq!(to_pod(&node, UPLINK, &message), REFUSED, "type {kind}");
        }
        let mut foreign = Frame::too_big(family.stranger, &frame);
        foreign.protocol = if family.pod.is_ipv4() {
            protocol::ICMPV6
        } else {
            protocol::ICMP
        };
        assert_eq!(to_pod(&node, UPLINK, &foreign), REFUSED, "other family");
    }
}

#[test]
fn a_quote_without_ports_is_about_nothing() {
    for family in families() {
        let node = node();
        let frame = Frame::udp((family.pod, 40_000), (family.friend, 443));
        assert_eq!(from_pod(&node, &frame), Pass(Reason::Rule));
        let header = if family.pod.is_ipv4() { 20 } else { 40 };
        for quoted in 0..header + 8 {
            let error = Frame::icmp_error(family.stranger, 3, 0, &frame, quoted);
            assert_eq!(to_pod(&node, UPLINK, &error), REFUSED, "{quoted} bytes");
        }
        let error = Frame::icmp_error(family.stranger, 3, 0, &frame, header + 8);
        assert_eq!(to_pod(&node, UPLINK, &error), RELATED);
        let later = frame.clone().with_fragment(2, true);
        let error = Frame::icmp_error(family.stranger, 3, 0, &later, usize::MAX);
        assert_eq!(to_pod(&node, UPLINK, &error), REFUSED);
        let first = frame.with_fragment(0, true);
        let error = Frame::icmp_error(family.stranger, 3, 0, &first, usize::MAX);
        assert_eq!(
            to_pod(&node, UPLINK, &error),
            RELATED,
            "its ports are there"
        );
    }
}

#[test]
fn padding_is_no_part_of_a_quote() {
    for family in families() {
        let node = node();
        let frame = Frame::udp((family.pod, 40_000), (family.friend, 443));
        assert_eq!(from_pod(&node, &frame), Pass(Reason::Rule));
        let header = if family.pod.is_ipv4() { 20 } else { 40 };
        let error = Frame::icmp_error(family.stranger, 3, 0, &frame, header);
        let mut bytes = error.bytes();
        bytes.extend(&frame.payload);
        assert_eq!(to_pod_bytes(&node, UPLINK, &bytes), REFUSED);
    }
}

#[test]
fn a_quote_of_another_version_is_about_nothing() {
    for family in families() {
        let node = node();
        let frame = Frame::udp((family.pod, 40_000), (family.friend, 443));
        assert_eq!(from_pod(&node, &frame), Pass(Reason::Rule));
        let mut error = Frame::too_big(family.stranger, &frame);
        let version = error.payload.get_mut(8).unwrap();
        *version ^= 0x20;
        assert_eq!(to_pod(&node, UPLINK, &error), REFUSED);
    }
}

#[test]
fn a_quoted_header_shorter_than_one_can_be_is_about_nothing() {
    let mut node = node();
    change_policy(&mut node, [CLOSED_SET, 0]);
    let [family, _] = families();
    // Read four bytes too early, ports would be the destination: 10.2 and 0.9.
    let frame = Frame::udp((family.pod, 10 << 8 | 2), (family.friend, 9));
    assert_eq!(from_pod(&node, &frame), Pass(Reason::NotIsolated));
    let mut error = Frame::too_big(family.stranger, &frame);
    assert_eq!(to_pod(&node, UPLINK, &error), RELATED);
    *error.payload.get_mut(8).unwrap() = 0x44;
    assert_eq!(to_pod(&node, UPLINK, &error), REFUSED);
}

#[test]
fn an_error_about_no_flow_is_judged_by_who_sends_it_and_begins_none() {
    for family in families() {
        let mut node = node();
        // It quotes what would answer a connection that the pod's rules admit.
        let about = Frame::udp((family.pod, 80), (family.friend, 40_000));
        let error = Frame::too_big(family.stranger, &about);
        assert_eq!(to_pod(&node, UPLINK, &error), REFUSED);
        change_policy(&mut node, [0, 0]);
        assert_eq!(to_pod(&node, UPLINK, &error), Pass(Reason::NotIsolated));
        assert!(node.pending.borrow().is_empty());
    }
}

#[test]
fn an_error_comes_from_elsewhere_than_its_flow() {
    for family in families() {
        let node = node();
        let probe = Frame::tcp((family.node, 40_000), (family.pod, 8080), SYN);
        assert_eq!(to_pod(&node, 0, &probe), Pass(Reason::Node));
        let answer = Frame::tcp((family.pod, 8080), (family.node, 40_000), SYN | ACK);
        assert_eq!(from_pod(&node, &answer), Pass(Reason::Reply));
        let error = Frame::too_big(family.stranger, &answer);
        assert_eq!(to_pod(&node, UPLINK, &error), RELATED);
    }
}

#[test]
fn a_quote_with_ipv4_options_is_read_behind_them() {
    let node = node();
    let [family, _] = families();
    let frame = Frame {
        options: vec![1; 40],
        ..Frame::udp((family.pod, 40_000), (family.friend, 443))
    };
    assert_eq!(from_pod(&node, &frame), Pass(Reason::Rule));
    let error = Frame::too_big(family.stranger, &frame);
    assert_eq!(to_pod(&node, UPLINK, &error), RELATED);
}

#[test]
fn an_error_in_pieces_is_malformed_to_the_pod_and_from_it() {
    for family in families() {
        let node = node();
        let frame = Frame::udp((family.pod, 40_000), (family.friend, 443));
        assert_eq!(from_pod(&node, &frame), Pass(Reason::Rule));
        let error = Frame::too_big(family.stranger, &frame).with_fragment(0, true);
        assert_eq!(to_pod(&node, UPLINK, &error), Drop(Reason::Malformed));
        let about = Frame::udp((family.friend, 443), (family.pod, 40_000));
        let error = Frame::too_big(family.pod, &about);
        assert_eq!(from_pod(&node, &error), RELATED);
        let error = error.with_fragment(0, true);
        assert_eq!(from_pod(&node, &error), Drop(Reason::Malformed));
    }
}

#[test]
fn an_error_neither_begins_a_flow_nor_keeps_one_alive() {
    for family in families() {
        let node = node();
        let frame = Frame::udp((family.pod, 40_000), (family.friend, 443));
        assert_eq!(from_pod(&node, &frame), Pass(Reason::Rule));
        let before: Vec<_> = node.pending.borrow().keys().copied().collect();
        node.now.set(node.now.get() + u64::from(20 * HZ));
        let error = Frame::too_big(family.stranger, &frame);
        assert_eq!(to_pod(&node, UPLINK, &error), RELATED);
        let after: Vec<_> = node.pending.borrow().keys().copied().collect();
        assert_eq!(before, after);
        assert!(node.connections.borrow().is_empty());
        node.now.set(node.now.get() + u64::from(20 * HZ));
        assert_eq!(to_pod(&node, UPLINK, &error), REFUSED, "the flow is over");
    }
}

#[test]
fn an_error_about_a_flow_that_policy_forbids_now_is_dropped_with_it() {
    for family in families() {
        let mut node = node();
        let frame = Frame::tcp((family.pod, 40_000), (family.friend, 443), SYN);
        assert_eq!(from_pod(&node, &frame), Pass(Reason::Rule));
        let reply = Frame::tcp((family.friend, 443), (family.pod, 40_000), SYN | ACK);
        assert_eq!(to_pod(&node, UPLINK, &reply), Pass(Reason::Reply));
        change_policy(&mut node, [CLOSED_SET, CLOSED_SET]);
        let error = Frame::too_big(family.stranger, &frame);
        assert_eq!(to_pod(&node, UPLINK, &error), REFUSED);
    }
}

#[test]
fn the_nodes_own_errors_pass_about_anything() {
    for family in families() {
        let node = node();
        let frame = Frame::udp((family.pod, 40_000), (family.stranger, 9));
        let error = Frame::too_big(family.node, &frame);
        assert_eq!(to_pod(&node, 0, &error), Pass(Reason::Node));
    }
}

/// Whatever an error quotes, it passes under default deny only when it quotes a flow of its own
/// endpoint, from the side that sent it.
fn passes_only_with_its_flow(node: &Node, family: Family, error: &Frame, about: &Frame) {
    let is_the_flow = about.addresses == (family.pod, family.friend)
        && about.protocol == protocol::UDP
        && about.payload.get(..4) == Some(&[0x9c, 0x40, 0x01, 0xbb]);
    let expected = if is_the_flow { RELATED } else { REFUSED };
    assert_eq!(to_pod(node, UPLINK, error), expected, "{about:?}");
}

proptest! {
    #[test]
    fn no_quote_but_its_own_flow_lets_an_error_pass(
        is_v4 in any::<bool>(),
        places in (0_usize..5, 0_usize..5),
        ports in (
            proptest::sample::select(vec![40_000_u16, 443, 0]),
            proptest::sample::select(vec![443_u16, 40_000, 0]),
        ),
        is_udp in any::<bool>(),
    ) {
        let family = families()[usize::from(!is_v4)];
        let all = [family.pod, family.friend, family.stranger, family.neighbour, family.node];
        let node = node();
        let frame = Frame::udp((family.pod, 40_000), (family.friend, 443));
        prop_assert_eq!(from_pod(&node, &frame), Pass(Reason::Rule));
        let (from, to) = ((all[places.0], ports.0), (all[places.1], ports.1));
        let about = if is_udp { Frame::udp(from, to) } else { Frame::tcp(from, to, SYN) };
        let mut error = Frame::too_big(family.stranger, &about);
        error.addresses.1 = family.pod;
        passes_only_with_its_flow(&node, family, &error, &about);
    }
}
