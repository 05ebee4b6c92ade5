//! What a change of policy, label or address does to flows that live: what it forbids is cut at
//! the next packet from either side, what it allows never notices.

use agent_common::Reason;
use agent_common::classify::Outcome::{self, Drop, Pass};
use agent_common::conntrack::State;
use agent_common::event::event_flags;
use agent_common::maps::{Counter, connection_flags, settings_flags};

use crate::packets::Frame;
use crate::world::{
    CLOSED_SET, EGRESS_SET, FRIEND, Family, HZ, INGRESS_SET, NEIGHBOUR, Node, UPLINK,
    change_policy, families, from_pod, node, relabel, to_pod,
};

const SYN: u8 = 2;
const ACK: u8 = 16;

/// An established connection of a friend to the pod.
fn established(node: &Node, family: &Family) {
    for (is_from_pod, flags) in [(false, SYN), (true, SYN | ACK), (false, ACK)] {
        let outcome = if is_from_pod {
            says(node, family, flags)
        } else {
            hears(node, family, flags)
        };
        assert!(matches!(outcome, Pass(_)), "{outcome:?}");
    }
}

fn hears(node: &Node, family: &Family, flags: u8) -> Outcome {
    let frame = Frame::tcp((family.friend, 40_000), (family.pod, 80), flags);
    to_pod(node, UPLINK, &frame)
}

fn says(node: &Node, family: &Family, flags: u8) -> Outcome {
    let frame = Frame::tcp((family.pod, 80), (family.friend, 40_000), flags);
    from_pod(node, &frame)
}

#[test]
fn a_policy_change_cuts_at_the_next_packet_from_either_side() {
    for family in families() {
        for is_pod_first in [true, false] {
            let mut node = node();
            established(&node, &family);
            change_policy(&mut node, [CLOSED_SET, EGRESS_SET]);
            for turn in 0..4 {
                let is_pods = (turn % 2 == 0) == is_pod_first;
                let outcome = if is_pods {
                    says(&node, &family, ACK)
                } else {
                    hears(&node, &family, ACK)
                };
                assert_eq!(outcome, Drop(Reason::IsolatedNoRule), "turn {turn}");
            }
            assert_eq!(
                node.counter(Counter::Cut),
                1,
                "one flow, whatever it still sends"
            );
        }
    }
}

#[test]
fn a_forged_reset_does_not_bring_a_cut_flow_back() {
    const RST: u8 = 4;
    let mut node = node();
    let family = families()[0];
    change_policy(&mut node, [INGRESS_SET, 0]);
    established(&node, &family);
    // Out of the window, so the pod's own stack ignores it.
    assert_eq!(hears(&node, &family, RST), Pass(Reason::Reply));
    change_policy(&mut node, [CLOSED_SET, 0]);
    assert_eq!(hears(&node, &family, ACK), Drop(Reason::IsolatedNoRule));
    node.advance(u64::from(HZ) * 3600);
    assert_eq!(says(&node, &family, ACK), Drop(Reason::IsolatedNoRule));
    assert_eq!(hears(&node, &family, ACK), Drop(Reason::IsolatedNoRule));
}

#[test]
fn segments_of_a_cut_connection_are_there_to_be_answered_a_few_times() {
    for is_from_pod in [true, false] {
        let mut node = node();
        node.policy.settings.flags |= settings_flags::TELL_CUT;
        let family = families()[0];
        established(&node, &family);
        change_policy(&mut node, [CLOSED_SET, EGRESS_SET]);
        // The same peer and port were refused a moment ago: their row is reported already.
        let other = Frame::tcp((family.friend, 39_999), (family.pod, 80), SYN);
        assert_eq!(to_pod(&node, UPLINK, &other), Drop(Reason::IsolatedNoRule));
        node.take_events();
        for turn in 0..20 {
            let (outcome, sender) = if is_from_pod {
                (says(&node, &family, ACK), event_flags::FROM_POD)
            } else {
                (hears(&node, &family, ACK), 0)
            };
            assert_eq!(outcome, Drop(Reason::IsolatedNoRule));
            let events = node.take_events();
            if turn >= 7 {
                assert_eq!(events, [], "floods are not answered");
                continue;
            }
            let [event] = events.as_slice() else {
                panic!("{events:?}");
            };
            assert_eq!(event.flags, event_flags::TELL | sender);
            assert_eq!((event.detail, event.packets), (ACK, 0));
        }
        // One side's flood leaves the other its answers.
        let outcome = if is_from_pod {
            hears(&node, &family, ACK)
        } else {
            says(&node, &family, ACK)
        };
        assert_eq!(outcome, Drop(Reason::IsolatedNoRule));
        assert_eq!(node.take_events().len(), 1);
        // Allowed again, it may be cut anew.
        change_policy(&mut node, [INGRESS_SET, EGRESS_SET]);
        assert_eq!(says(&node, &family, ACK), Pass(Reason::Reply));
        change_policy(&mut node, [CLOSED_SET, EGRESS_SET]);
        assert_eq!(says(&node, &family, ACK), Drop(Reason::IsolatedNoRule));
        assert_eq!(node.take_events().len(), 1);
    }
}

#[test]
fn nobody_is_told_without_the_setting() {
    let mut node = node();
    let family = families()[0];
    established(&node, &family);
    change_policy(&mut node, [CLOSED_SET, EGRESS_SET]);
    assert_eq!(says(&node, &family, ACK), Drop(Reason::IsolatedNoRule));
    let events = node.take_events();
    assert!(
        events
            .iter()
            .all(|event| event.flags & event_flags::TELL == 0)
    );
}

#[test]
fn the_nodes_reset_ends_a_flow_that_is_still_allowed() {
    const RST: u8 = 4;
    for family in families() {
        let mut node = node();
        established(&node, &family);
        // Judged again, and allowed as before.
        change_policy(&mut node, [INGRESS_SET, CLOSED_SET]);
        let reset = Frame::tcp((family.friend, 40_000), (family.pod, 80), RST);
        assert_eq!(to_pod(&node, 0, &reset), Pass(Reason::Reply));
        let connections = node.connections.borrow();
        let entry = connections.values().next().unwrap().get();
        assert_eq!(entry.state, State::Closing.number());
    }
}

#[test]
fn the_node_may_end_what_a_change_has_cut_and_nobody_else() {
    const RST: u8 = 4;
    for family in families() {
        let mut node = node();
        established(&node, &family);
        change_policy(&mut node, [CLOSED_SET, EGRESS_SET]);
        let reset = Frame::tcp((family.friend, 40_000), (family.pod, 80), RST);
        assert_eq!(to_pod(&node, UPLINK, &reset), Drop(Reason::IsolatedNoRule));
        assert_eq!(to_pod(&node, 0, &reset), Pass(Reason::Node));
        let data = Frame::tcp((family.friend, 40_000), (family.pod, 80), ACK);
        assert_eq!(to_pod(&node, 0, &data), Drop(Reason::IsolatedNoRule));
        assert_eq!(says(&node, &family, ACK), Drop(Reason::IsolatedNoRule));
    }
}

#[test]
fn a_cut_flow_is_not_opened_anew_from_the_other_side() {
    // The pod may send anything: its own segments, judged for themselves, would be a new flow.
    let mut node = node();
    let family = families()[0];
    change_policy(&mut node, [INGRESS_SET, 0]);
    established(&node, &family);
    change_policy(&mut node, [CLOSED_SET, 0]);
    for _ in 0..3 {
        assert_eq!(says(&node, &family, ACK), Drop(Reason::IsolatedNoRule));
        assert_eq!(hears(&node, &family, ACK), Drop(Reason::IsolatedNoRule));
    }
    let own = Frame::tcp((family.pod, 80), (family.friend, 40_000), SYN);
    assert_eq!(
        from_pod(&node, &own),
        Pass(Reason::NotIsolated),
        "a SYN is a flow of its own"
    );
}

#[test]
fn refused_packets_keep_no_flow_alive() {
    let mut node = node();
    let family = families()[0];
    established(&node, &family);
    change_policy(&mut node, [CLOSED_SET, EGRESS_SET]);
    let stamp = |node: &Node| {
        node.connections
            .borrow()
            .values()
            .next()
            .unwrap()
            .get()
            .last_seen
    };
    let before = stamp(&node);
    node.advance(u64::from(HZ));
    assert_eq!(hears(&node, &family, ACK), Drop(Reason::IsolatedNoRule));
    assert_eq!(says(&node, &family, ACK), Drop(Reason::IsolatedNoRule));
    assert_eq!(stamp(&node), before);
}

#[test]
fn a_flow_that_is_allowed_again_goes_on() {
    let mut node = node();
    let family = families()[0];
    established(&node, &family);
    change_policy(&mut node, [CLOSED_SET, EGRESS_SET]);
    assert_eq!(hears(&node, &family, ACK), Drop(Reason::IsolatedNoRule));
    change_policy(&mut node, [INGRESS_SET, EGRESS_SET]);
    assert_eq!(says(&node, &family, ACK), Pass(Reason::Reply));
    let flags = node
        .connections
        .borrow()
        .values()
        .next()
        .unwrap()
        .get()
        .flags;
    assert_eq!(flags & connection_flags::CUT, 0);
    change_policy(&mut node, [CLOSED_SET, EGRESS_SET]);
    assert_eq!(says(&node, &family, ACK), Drop(Reason::IsolatedNoRule));
    assert_eq!(node.counter(Counter::Cut), 2, "cut twice");
}

#[test]
fn an_allowed_flow_never_notices_a_policy_change() {
    for family in families() {
        let mut node = node();
        established(&node, &family);
        // A reply alone would not be allowed; the flow is judged as it was opened.
        change_policy(&mut node, [INGRESS_SET, CLOSED_SET]);
        assert_eq!(says(&node, &family, ACK), Pass(Reason::Reply));
        assert_eq!(hears(&node, &family, ACK), Pass(Reason::Reply));
        change_policy(&mut node, [0, CLOSED_SET]);
        assert_eq!(says(&node, &family, ACK), Pass(Reason::Reply));
        assert_eq!(node.counter(Counter::Cut), 0);
        assert_eq!(
            node.rule_hits
                .borrow()
                .values()
                .map(|hit| hit.connections)
                .sum::<u64>(),
            1
        );
    }
}

#[test]
fn unanswered_flows_meet_changes_too() {
    let mut node = node();
    let family = families()[0];
    assert_eq!(hears(&node, &family, SYN), Pass(Reason::Rule));
    change_policy(&mut node, [CLOSED_SET, 0]);
    assert_eq!(hears(&node, &family, SYN), Drop(Reason::IsolatedNoRule));
    assert_eq!(
        says(&node, &family, SYN | ACK),
        Drop(Reason::IsolatedNoRule)
    );
    change_policy(&mut node, [INGRESS_SET, CLOSED_SET]);
    assert_eq!(says(&node, &family, SYN | ACK), Pass(Reason::Reply));
    assert_eq!(hears(&node, &family, ACK), Pass(Reason::Reply));
    let kept = node.connections.borrow().values().next().unwrap().get();
    assert_eq!(
        kept.revision, 3,
        "what moves out of PENDING carries the newest stamp"
    );
}

#[test]
fn a_peer_that_changes_class_is_cut_or_kept_by_what_it_is_now() {
    for family in families() {
        for is_pod_first in [true, false] {
            let mut node = node();
            established(&node, &family);
            relabel(&mut node, family.friend, FRIEND);
            assert_eq!(
                says(&node, &family, ACK),
                Pass(Reason::Reply),
                "still a friend"
            );
            relabel(&mut node, family.friend, 99);
            let outcome = if is_pod_first {
                says(&node, &family, ACK)
            } else {
                hears(&node, &family, ACK)
            };
            assert_eq!(outcome, Drop(Reason::IsolatedNoRule));
            assert_eq!(says(&node, &family, ACK), Drop(Reason::IsolatedNoRule));
        }
    }
}

#[test]
fn a_peer_behind_a_masquerade_is_followed_by_who_it_is() {
    for family in families() {
        let mut node = node();
        let request = Frame::udp((family.node, 50_000), (family.pod, 80));
        let answer = Frame::udp((family.pod, 80), (family.node, 50_000));
        assert_eq!(to_pod(&node, NEIGHBOUR.0, &request), Pass(Reason::Rule));
        assert_eq!(from_pod(&node, &answer), Pass(Reason::Reply));
        change_policy(&mut node, [INGRESS_SET, CLOSED_SET]);
        assert_eq!(
            from_pod(&node, &answer),
            Pass(Reason::Reply),
            "the neighbour is a friend"
        );
        relabel(&mut node, family.neighbour, 99);
        assert_eq!(from_pod(&node, &answer), Drop(Reason::IsolatedNoRule));
        assert_eq!(
            to_pod(&node, NEIGHBOUR.0, &request),
            Drop(Reason::IsolatedNoRule)
        );
    }
}

#[test]
fn flows_of_the_node_and_of_the_pod_to_itself_are_not_judged_again() {
    let mut node = node();
    let family = families()[0];
    for ingress_ifindex in [0, crate::world::POD.0] {
        let port = 50_000 + u16::try_from(ingress_ifindex).unwrap();
        let request = Frame::tcp((family.node, port), (family.pod, 8080), SYN);
        assert!(matches!(to_pod(&node, ingress_ifindex, &request), Pass(_)));
        change_policy(&mut node, [CLOSED_SET, CLOSED_SET]);
        let answer = Frame::tcp((family.pod, 8080), (family.node, port), SYN | ACK);
        assert_eq!(from_pod(&node, &answer), Pass(Reason::Reply));
        let segment = Frame::tcp((family.node, port), (family.pod, 8080), ACK);
        assert_eq!(
            to_pod(&node, ingress_ifindex, &segment),
            Pass(Reason::Reply)
        );
    }
}

#[test]
fn the_nodes_reply_in_a_flow_that_was_cut_does_not_reopen_it() {
    let mut node = node();
    let family = families()[0];
    change_policy(&mut node, [INGRESS_SET, 0]);
    let sent = Frame::tcp((family.pod, 40_000), (family.node, 443), SYN);
    assert_eq!(from_pod(&node, &sent), Pass(Reason::NotIsolated));
    let accepted = Frame::tcp((family.node, 443), (family.pod, 40_000), SYN | ACK);
    assert_eq!(to_pod(&node, 0, &accepted), Pass(Reason::Reply));
    change_policy(&mut node, [INGRESS_SET, CLOSED_SET]);
    let segment = Frame::tcp((family.node, 443), (family.pod, 40_000), ACK);
    assert_eq!(to_pod(&node, 0, &segment), Drop(Reason::IsolatedNoRule));
    let next = Frame::tcp((family.pod, 40_000), (family.node, 443), ACK);
    assert_eq!(from_pod(&node, &next), Drop(Reason::IsolatedNoRule));
}
