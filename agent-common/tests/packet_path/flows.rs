//! How flows live: both directions, states, lifetimes, ports used again.

use std::net::IpAddr;

use agent_common::Reason;
use agent_common::classify::Outcome::{Drop, Pass};
use agent_common::conntrack::{Signal, State, step};
use agent_common::maps::{Connection, Counter, connection_flags};
use proptest::prelude::*;

use crate::packets::Frame;
use crate::world::{
    CLOSED_SET, HZ, INGRESS_SET, Node, UPLINK, change_policy, families, from_pod, node, to_pod,
};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// The only flow there is, and whether it is still in PENDING.
fn only_flow(node: &Node) -> (Connection, bool) {
    let (pending, kept) = (node.pending.borrow(), node.connections.borrow());
    assert_eq!(pending.len() + kept.len(), 1, "one flow, in one place");
    match pending.values().next() {
        Some(entry) => (entry.get(), true),
        None => (kept.values().next().unwrap().get(), false),
    }
}

/// A TCP connection of a friend to the pod's port 80.
struct Tcp {
    friend: (IpAddr, u16),
    pod: (IpAddr, u16),
}

impl Tcp {
    fn new(family: usize) -> Self {
        let family = families()[family];
        Self {
            friend: (family.friend, 40_000),
            pod: (family.pod, 80),
        }
    }

    fn hears(&self, node: &Node, flags: u8) -> agent_common::classify::Outcome {
        to_pod(node, UPLINK, &Frame::tcp(self.friend, self.pod, flags))
    }

    fn says(&self, node: &Node, flags: u8) -> agent_common::classify::Outcome {
        from_pod(node, &Frame::tcp(self.pod, self.friend, flags))
    }

    fn establish(&self, node: &Node) {
        assert_eq!(self.hears(node, SYN), Pass(Reason::Rule));
        assert_eq!(self.says(node, SYN | ACK), Pass(Reason::Reply));
        assert_eq!(self.hears(node, ACK), Pass(Reason::Reply));
    }
}

#[test]
fn a_flow_waits_in_pending_until_both_sides_have_agreed_to_it() {
    for family in [0, 1] {
        let (node, tcp) = (node(), Tcp::new(family));
        assert_eq!(tcp.hears(&node, SYN), Pass(Reason::Rule));
        assert_eq!(tcp.hears(&node, SYN), Pass(Reason::Reply), "sent again");
        let (flow, is_pending) = only_flow(&node);
        assert_eq!((flow.state, is_pending), (State::Opening.number(), true));
        assert_eq!(tcp.says(&node, SYN | ACK), Pass(Reason::Reply));
        let (flow, is_pending) = only_flow(&node);
        assert_eq!((flow.state, is_pending), (State::Answered.number(), true));
        assert_eq!(tcp.hears(&node, SYN), Pass(Reason::Reply), "sent again");
        assert_eq!(tcp.says(&node, SYN | ACK), Pass(Reason::Reply), "too");
        assert_eq!(tcp.hears(&node, ACK), Pass(Reason::Reply));
        let (flow, is_pending) = only_flow(&node);
        let agreed = (State::Established.number(), false);
        assert_eq!((flow.state, is_pending), agreed);
    }
}

#[test]
fn replies_pass_in_every_protocol_though_policy_would_not_have_them() {
    for family in families() {
        let node = node();
        let (friend, pod) = ((family.friend, 40_000), (family.pod, 80));
        for (request, reply) in [
            (Frame::udp(friend, pod), Frame::udp(pod, friend)),
            (Frame::sctp(friend, pod, 1), Frame::sctp(pod, friend, 2)),
            (
                Frame::tcp(friend, pod, SYN),
                Frame::tcp(pod, friend, SYN | ACK),
            ),
        ] {
            assert_eq!(to_pod(&node, UPLINK, &request), Pass(Reason::Rule));
            assert_eq!(from_pod(&node, &reply), Pass(Reason::Reply));
            assert_eq!(
                to_pod(&node, UPLINK, &request),
                Pass(Reason::Reply),
                "again"
            );
        }
        let unasked = Frame::udp((family.pod, 81), (family.friend, 40_000));
        assert_eq!(from_pod(&node, &unasked), Drop(Reason::IsolatedNoRule));
    }
}

#[test]
fn denied_packets_make_no_flow() {
    let node = node();
    let family = families()[0];
    let frame = Frame::tcp((family.stranger, 1), (family.pod, 80), SYN);
    assert_eq!(to_pod(&node, UPLINK, &frame), Drop(Reason::IsolatedNoRule));
    let answer = Frame::tcp((family.pod, 80), (family.stranger, 1), SYN | ACK);
    assert_eq!(from_pod(&node, &answer), Drop(Reason::IsolatedNoRule));
    assert!(node.pending.borrow().is_empty() && node.connections.borrow().is_empty());
}

#[test]
fn a_refused_connection_stays_out_of_conntrack() {
    let (node, tcp) = (node(), Tcp::new(0));
    assert_eq!(tcp.hears(&node, SYN), Pass(Reason::Rule));
    assert_eq!(tcp.says(&node, RST | ACK), Pass(Reason::Reply));
    let (flow, is_pending) = only_flow(&node);
    assert_eq!((flow.state, is_pending), (State::Closing.number(), true));
    assert_eq!(
        tcp.hears(&node, SYN),
        Pass(Reason::Rule),
        "the next try is judged"
    );
}

#[test]
fn a_connection_closes_when_both_sides_have_finished_or_one_resets() {
    let (ours, tcp) = (node(), Tcp::new(0));
    tcp.establish(&ours);
    assert_eq!(tcp.hears(&ours, FIN | ACK), Pass(Reason::Reply));
    assert_eq!(
        tcp.hears(&ours, FIN | ACK),
        Pass(Reason::Reply),
        "the same side again"
    );
    assert_eq!(
        only_flow(&ours).0.state,
        State::Established.number(),
        "half closed"
    );
    assert_eq!(tcp.says(&ours, FIN | ACK), Pass(Reason::Reply));
    assert_eq!(only_flow(&ours).0.state, State::Closing.number());
    let ours = node();
    tcp.establish(&ours);
    assert_eq!(tcp.says(&ours, RST), Pass(Reason::Reply));
    assert_eq!(only_flow(&ours).0.state, State::Closing.number());
}

#[test]
fn silence_ends_a_flow_after_its_lifetime_and_not_before() {
    let family = families()[1];
    let (friend, pod) = ((family.friend, 40_000), (family.pod, 80));
    let day = 24 * 60 * 60;
    let udp = [Frame::udp(friend, pod), Frame::udp(pod, friend)];
    let tcp = |flags| Frame::tcp(friend, pod, flags);
    let cases: [(&str, u64, Vec<Frame>, Frame); 6] = [
        (
            "SYN",
            60,
            vec![tcp(SYN)],
            Frame::tcp(pod, friend, SYN | ACK),
        ),
        ("UDP", 30, vec![udp[0].clone()], udp[1].clone()),
        ("answered UDP", 180, udp.to_vec(), udp[1].clone()),
        (
            "TCP",
            5 * day,
            vec![tcp(SYN), Frame::tcp(pod, friend, SYN | ACK), tcp(ACK)],
            Frame::tcp(pod, friend, ACK),
        ),
        (
            "closed TCP",
            10,
            vec![tcp(SYN), Frame::tcp(pod, friend, SYN | ACK), tcp(RST)],
            Frame::tcp(pod, friend, ACK),
        ),
        (
            "SCTP",
            5 * day,
            vec![
                Frame::sctp(friend, pod, 1),
                Frame::sctp(pod, friend, 2),
                Frame::sctp(friend, pod, 10),
            ],
            Frame::sctp(pod, friend, 0),
        ),
    ];
    for (name, seconds, opening, reply) in cases {
        for (beyond, is_known) in [(0, true), (1, false)] {
            let mut node = node();
            for frame in &opening {
                let is_sent = frame.addresses.0 == family.pod;
                let outcome = if is_sent {
                    from_pod(&node, frame)
                } else {
                    to_pod(&node, UPLINK, frame)
                };
                assert!(matches!(outcome, Pass(_)), "{name}: {outcome:?}");
            }
            // A miss must show, so nothing may allow the reply by itself.
            node.policy
                .verdicts
                .remove(&agent_common::maps::VerdictKey {
                    set: INGRESS_SET,
                    class: crate::world::FRIEND,
                });
            node.advance(seconds * u64::from(HZ) + beyond);
            let outcome = from_pod(&node, &reply);
            let expected = if is_known {
                Pass(Reason::Reply)
            } else {
                Drop(Reason::IsolatedNoRule)
            };
            assert_eq!(
                outcome, expected,
                "{name} after {seconds} s and {beyond} ticks"
            );
        }
    }
}

#[test]
fn traffic_keeps_a_flow_alive_and_its_stamp_is_written_when_it_changes() {
    let node = node();
    let family = families()[0];
    let (friend, pod) = ((family.friend, 40_000), (family.pod, 80));
    assert_eq!(
        to_pod(&node, UPLINK, &Frame::udp(friend, pod)),
        Pass(Reason::Rule)
    );
    for _ in 0..50 {
        node.advance(u64::from(100 * HZ));
        let outcome = to_pod(&node, UPLINK, &Frame::udp(friend, pod));
        assert_eq!(
            outcome,
            Pass(Reason::Rule),
            "100 s of silence is too long unanswered"
        );
    }
    assert_eq!(
        from_pod(&node, &Frame::udp(pod, friend)),
        Pass(Reason::Reply)
    );
    for _ in 0..50 {
        node.advance(u64::from(100 * HZ));
        assert_eq!(
            to_pod(&node, UPLINK, &Frame::udp(friend, pod)),
            Pass(Reason::Reply)
        );
    }
}

#[test]
fn stamps_survive_the_clock_going_round_and_cpus_that_disagree_by_a_tick() {
    let node = node();
    let family = families()[0];
    let (friend, pod) = ((family.friend, 40_000), (family.pod, 80));
    node.now.set((5 << 32) - 3);
    assert_eq!(
        to_pod(&node, UPLINK, &Frame::udp(friend, pod)),
        Pass(Reason::Rule)
    );
    node.advance(10);
    assert_eq!(
        from_pod(&node, &Frame::udp(pod, friend)),
        Pass(Reason::Reply)
    );
    node.now.set(node.now.get() - 2);
    assert_eq!(
        to_pod(&node, UPLINK, &Frame::udp(friend, pod)),
        Pass(Reason::Reply)
    );
}

#[test]
fn a_syn_on_a_known_tuple_is_judged_as_a_new_connection() {
    let (mut node, tcp) = (node(), Tcp::new(0));
    tcp.establish(&node);
    // From the other side policy does not allow it, and the old connection is none of its concern.
    assert_eq!(tcp.says(&node, SYN), Drop(Reason::IsolatedNoRule));
    assert_eq!(tcp.hears(&node, ACK), Pass(Reason::Reply));
    // The same ports again, from the same side: a connection of its own.
    assert_eq!(tcp.hears(&node, SYN), Pass(Reason::Rule));
    assert_eq!(
        tcp.hears(&node, ACK),
        Pass(Reason::Reply),
        "a forged SYN ends nothing"
    );
    assert_eq!(tcp.says(&node, SYN | ACK), Pass(Reason::Reply));
    let (flow, is_pending) = only_flow(&node);
    assert_eq!((flow.state, is_pending), (State::Answered.number(), false));
    assert_eq!(tcp.hears(&node, ACK), Pass(Reason::Reply));
    change_policy(&mut node, [CLOSED_SET, CLOSED_SET]);
    assert_eq!(tcp.hears(&node, SYN), Drop(Reason::IsolatedNoRule));
}

#[test]
fn a_connection_replaces_the_one_before_it_with_the_first_answer() {
    // The old one has ended: its entry must not be what the new one lives on.
    let (node, tcp) = (node(), Tcp::new(0));
    tcp.establish(&node);
    assert_eq!(tcp.hears(&node, FIN | ACK), Pass(Reason::Reply));
    assert_eq!(tcp.says(&node, FIN | ACK), Pass(Reason::Reply));
    assert_eq!(only_flow(&node).0.state, State::Closing.number());
    assert_eq!(tcp.hears(&node, SYN), Pass(Reason::Rule));
    assert_eq!(tcp.says(&node, SYN | ACK), Pass(Reason::Reply));
    let (flow, is_pending) = only_flow(&node);
    assert_eq!((flow.state, is_pending), (State::Answered.number(), false));
    assert_eq!(tcp.hears(&node, ACK), Pass(Reason::Reply));
    node.now.set(node.now.get() + 60 * u64::from(HZ));
    assert_eq!(tcp.says(&node, ACK), Pass(Reason::Reply), "a minute later");
}

#[test]
fn sctp_init_on_a_known_tuple_is_judged_as_a_new_association() {
    let node = node();
    let family = families()[0];
    let (friend, pod) = ((family.friend, 40_000), (family.pod, 80));
    for (chunk, is_from_pod) in [(1, false), (2, true), (10, false)] {
        let outcome = if is_from_pod {
            from_pod(&node, &Frame::sctp(pod, friend, chunk))
        } else {
            to_pod(&node, UPLINK, &Frame::sctp(friend, pod, chunk))
        };
        assert!(matches!(outcome, Pass(_)));
    }
    assert_eq!(
        from_pod(&node, &Frame::sctp(pod, friend, 0)),
        Pass(Reason::Reply)
    );
    assert_eq!(
        from_pod(&node, &Frame::sctp(pod, friend, 1)),
        Drop(Reason::IsolatedNoRule)
    );
}

#[test]
fn an_echo_is_answered_and_its_identifier_opens_nothing_else() {
    for family in families() {
        let mut node = node();
        // The pod may send anything, nobody may send to it.
        change_policy(&mut node, [CLOSED_SET, 0]);
        let (pod, peer) = (family.pod, family.stranger);
        let reply = Frame::echo_reply(peer, pod, 7);
        assert_eq!(
            to_pod(&node, UPLINK, &reply),
            Drop(Reason::IsolatedNoRule),
            "unasked"
        );
        let request = Frame::echo_request(pod, peer, 7);
        assert_eq!(from_pod(&node, &request), Pass(Reason::NotIsolated));
        assert_eq!(to_pod(&node, UPLINK, &reply), Pass(Reason::Reply));
        assert_eq!(from_pod(&node, &request), Pass(Reason::Reply));
        let other = Frame::echo_reply(peer, pod, 8);
        assert_eq!(to_pod(&node, UPLINK, &other), Drop(Reason::IsolatedNoRule));
        let own = Frame::echo_request(peer, pod, 7);
        let outcome = to_pod(&node, UPLINK, &own);
        assert_eq!(
            outcome,
            Drop(Reason::IsolatedNoRule),
            "a request is no reply"
        );
    }
}

#[test]
fn other_icmp_is_judged_each_time_and_not_tracked() {
    let mut node = node();
    let family = families()[0];
    change_policy(&mut node, [CLOSED_SET, 0]);
    let timestamp = Frame::icmp(family.pod, family.friend, 13, 0, 7);
    assert_eq!(from_pod(&node, &timestamp), Pass(Reason::NotIsolated));
    assert!(node.pending.borrow().is_empty());
    let answer = Frame::icmp(family.friend, family.pod, 14, 0, 7);
    assert_eq!(to_pod(&node, UPLINK, &answer), Drop(Reason::IsolatedNoRule));
}

#[test]
fn a_flow_that_cannot_be_kept_takes_the_posture_and_is_counted() {
    let mut node = node();
    let tcp = Tcp::new(0);
    node.flow_capacity = 0;
    assert_eq!(tcp.hears(&node, SYN), Drop(Reason::FailClosed));
    assert_eq!(node.counter(Counter::ConnectionRefused), 1);
    crate::world::change_pod(&mut node, |config, _| {
        config.flags |= agent_common::maps::config_flags::FAIL_OPEN;
    });
    assert_eq!(tcp.hears(&node, SYN), Pass(Reason::FailOpen));
}

#[test]
fn what_only_one_side_has_spoken_on_stays_in_pending() {
    for segments in [[SYN, SYN], [ACK, ACK]] {
        let (node, tcp) = (node(), Tcp::new(0));
        for flags in segments {
            assert!(matches!(tcp.hears(&node, flags), Pass(_)));
        }
        assert!(only_flow(&node).1, "however often");
        let flags = if segments[0] == SYN { SYN | ACK } else { ACK };
        assert_eq!(tcp.says(&node, flags), Pass(Reason::Reply));
        assert_eq!(tcp.hears(&node, ACK), Pass(Reason::Reply));
        assert!(!only_flow(&node).1, "now both have");
    }
}

#[test]
fn an_adopted_flow_stays_in_pending_until_its_originator_speaks() {
    // Only the pod may have opened it; its peer speaks, as often as it likes.
    let node = node();
    let family = &families()[0];
    let (pod, friend) = ((family.pod, 40_000), (family.friend, 443));
    let heard = Frame::tcp(friend, pod, ACK);
    assert_eq!(to_pod(&node, UPLINK, &heard), Pass(Reason::MidStream));
    assert_eq!(to_pod(&node, UPLINK, &heard), Pass(Reason::Reply));
    assert!(only_flow(&node).1);
    let said = Frame::tcp(pod, friend, ACK);
    assert_eq!(from_pod(&node, &said), Pass(Reason::Reply));
    let (flow, is_pending) = only_flow(&node);
    let agreed = (State::Established.number(), false);
    assert_eq!((flow.state, is_pending), agreed);
}

#[test]
fn a_connection_goes_on_though_conntrack_has_no_room() {
    let mut node = node();
    let tcp = Tcp::new(0);
    assert_eq!(tcp.hears(&node, SYN), Pass(Reason::Rule));
    node.flow_capacity = 0;
    assert_eq!(tcp.says(&node, SYN | ACK), Pass(Reason::Reply));
    assert_eq!(tcp.hears(&node, ACK), Pass(Reason::Reply));
    assert_eq!(node.counter(Counter::ConnectionRefused), 1);
    assert_eq!(tcp.says(&node, ACK), Pass(Reason::Reply));
    assert_eq!(node.counter(Counter::ConnectionRefused), 2, "tried again");
    node.flow_capacity = 1;
    assert_eq!(tcp.says(&node, ACK), Pass(Reason::Reply));
    assert!(!only_flow(&node).1, "room at last");
}

#[test]
fn new_flows_beyond_the_budget_are_refused_and_the_node_is_not() {
    let mut node = node();
    let family = families()[0];
    node.policy.settings.budget_burst = 3;
    node.policy.settings.budget_rate = 1;
    let open = |port| Frame::tcp((family.friend, port), (family.pod, 80), SYN);
    for port in 1..=3 {
        assert_eq!(to_pod(&node, UPLINK, &open(port)), Pass(Reason::Rule));
    }
    assert_eq!(to_pod(&node, UPLINK, &open(4)), Drop(Reason::FailClosed));
    assert_eq!(node.counter(Counter::BudgetExceeded), 1);
    assert_eq!(
        to_pod(&node, UPLINK, &open(1)),
        Pass(Reason::Reply),
        "known flows cost nothing"
    );
    let probe = Frame::tcp((family.node, 1), (family.pod, 80), SYN);
    assert_eq!(to_pod(&node, 0, &probe), Pass(Reason::Node));
    node.advance(u64::from(HZ));
    assert_eq!(to_pod(&node, UPLINK, &open(4)), Pass(Reason::Rule));
}

proptest! {
    #[test]
    fn a_flow_never_comes_back_from_closing_nor_forgets_a_finish(
        packets in prop::collection::vec((0_usize..9, any::<bool>()), 0..20)
    ) {
        let signals = [
            Signal::Untracked, Signal::Datagram, Signal::Ask, Signal::Answer, Signal::Open,
            Signal::Accept, Signal::Segment, Signal::Finish, Signal::Reset,
        ];
        let (mut state, mut flags) = (State::Opening, 0_u16);
        let mut heard_reply = false;
        for (signal, is_from_originator) in packets {
            let signal = signals[signal];
            let (next, next_flags) = step(state, flags, signal, is_from_originator);
            heard_reply |= !is_from_originator;
            prop_assert_eq!(flags & next_flags, flags);
            prop_assert!(state != State::Closing || next == State::Closing);
            prop_assert!(heard_reply || matches!(next, State::Opening | State::Closing));
            let both = connection_flags::FIN_ORIGINAL | connection_flags::FIN_REPLY;
            let is_over = next_flags & both == both || signal == Signal::Reset;
            prop_assert!(!is_over || next == State::Closing);
            (state, flags) = (next, next_flags);
        }
    }
}
