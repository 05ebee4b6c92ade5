//! Who the other side is, and what policy says about it.

use agent_common::classify::Outcome::{Drop, Pass};
use agent_common::maps::{
    ALLOW, Counter, PortFunction, VerdictKey, config_flags, connection_flags,
};
use agent_common::{Reason, RuleId};

use crate::packets::Frame;
use crate::world::{
    CLOSED_SET, EGRESS_RULE, EGRESS_SET, FRIEND, INGRESS_RULE, INGRESS_SET, NEIGHBOUR, POD, UPLINK,
    change_pod, change_policy, families, from_pod, node, to_pod,
};

const SYN: u8 = 2;
const ACK: u8 = 16;

#[test]
fn rules_admit_by_peer_protocol_and_port() {
    let node = node();
    for family in families() {
        for frame in [
            Frame::tcp((family.friend, 40_000), (family.pod, 80), SYN),
            Frame::udp((family.friend, 40_000), (family.pod, 80)),
            Frame::sctp((family.friend, 40_000), (family.pod, 80), 1),
        ] {
            assert_eq!(
                to_pod(&node, UPLINK, &frame),
                Pass(Reason::Rule),
                "{frame:?}"
            );
        }
        for frame in [
            Frame::tcp((family.friend, 40_000), (family.pod, 81), SYN),
            Frame::tcp((family.friend, 80), (family.pod, 40_000), SYN),
            Frame::tcp((family.stranger, 40_000), (family.pod, 80), SYN),
            Frame::echo_request(family.friend, family.pod, 80),
            Frame::new(family.friend, family.pod, 47, vec![0; 8]),
        ] {
            let outcome = to_pod(&node, UPLINK, &frame);
            assert_eq!(outcome, Drop(Reason::IsolatedNoRule), "{frame:?}");
        }
        let sent = Frame::tcp((family.pod, 40_000), (family.friend, 443), SYN);
        assert_eq!(from_pod(&node, &sent), Pass(Reason::Rule));
        let other = Frame::tcp((family.pod, 40_000), (family.friend, 80), SYN);
        assert_eq!(from_pod(&node, &other), Drop(Reason::IsolatedNoRule));
    }
}

#[test]
fn rules_without_ports_cover_every_protocol() {
    let mut node = node();
    let all = PortFunction {
        verdict: ALLOW,
        rule: INGRESS_RULE,
        ..PortFunction::default()
    };
    let key = VerdictKey {
        set: INGRESS_SET,
        class: FRIEND,
    };
    node.policy.verdicts.insert(key, all);
    for family in families() {
        for frame in [
            Frame::tcp((family.friend, 1), (family.pod, 2), SYN),
            Frame::echo_request(family.friend, family.pod, 80),
            Frame::icmp(family.friend, family.pod, 3, 4, 0),
            Frame::new(family.friend, family.pod, 47, Vec::new()),
        ] {
            assert_eq!(
                to_pod(&node, UPLINK, &frame),
                Pass(Reason::Rule),
                "{frame:?}"
            );
        }
    }
}

#[test]
fn the_nodes_own_packets_pass_whatever_policy_says() {
    let mut node = node();
    change_policy(&mut node, [CLOSED_SET, CLOSED_SET]);
    for family in families() {
        let probe = Frame::tcp((family.node, 40_000), (family.pod, 8080), SYN);
        assert_eq!(to_pod(&node, 0, &probe), Pass(Reason::Node));
        let answer = Frame::tcp((family.pod, 8080), (family.node, 40_000), SYN | ACK);
        assert_eq!(from_pod(&node, &answer), Pass(Reason::Reply));
        let forwarded = Frame::tcp((family.node, 40_001), (family.pod, 8080), SYN);
        let outcome = to_pod(&node, UPLINK, &forwarded);
        assert_eq!(
            outcome,
            Drop(Reason::IsolatedNoRule),
            "the node's address proves nothing"
        );
    }
}

#[test]
fn ipv6_fragments_prove_no_origin() {
    let node = node();
    let [v4, v6] = families();
    let frame = Frame::udp((v6.stranger, 1), (v6.pod, 9));
    for fragment in [(0, true), (0, false)] {
        let frame = frame.clone().with_fragment(fragment.0, fragment.1);
        assert_eq!(to_pod(&node, 0, &frame), Drop(Reason::IsolatedNoRule));
        let behind = Frame {
            extensions: vec![(0, vec![0; 6]), (60, vec![0; 6])],
            ..frame
        };
        assert_eq!(to_pod(&node, 0, &behind), Drop(Reason::IsolatedNoRule));
    }
    assert_eq!(to_pod(&node, 0, &frame), Pass(Reason::Node));
    let v4_fragment = Frame::udp((v4.node, 1), (v4.pod, 9)).with_fragment(0, true);
    assert_eq!(to_pod(&node, 0, &v4_fragment), Pass(Reason::Node));
}

#[test]
fn refusals_by_the_node_make_no_flow() {
    let node = node();
    let [v4, _] = families();
    let rejected = Frame::tcp((v4.stranger, 443), (v4.pod, 40_000), 4 | ACK);
    assert_eq!(to_pod(&node, 0, &rejected), Pass(Reason::Node));
    let unreachable = Frame::icmp(v4.node, v4.pod, 3, 3, 0);
    assert_eq!(to_pod(&node, 0, &unreachable), Pass(Reason::Node));
    let accepted = Frame::tcp((v4.node, 443), (v4.pod, 40_000), SYN | ACK);
    assert_eq!(to_pod(&node, 0, &accepted), Pass(Reason::Node));
    assert!(
        node.pending.borrow().is_empty(),
        "the pod opened those, if anyone did"
    );
    let sent = Frame::tcp((v4.pod, 40_000), (v4.stranger, 443), SYN);
    assert_eq!(from_pod(&node, &sent), Drop(Reason::IsolatedNoRule));
}

#[test]
fn a_local_pod_is_itself_behind_a_masquerade() {
    let mut node = node();
    for family in families() {
        let masqueraded = Frame::tcp((family.node, 50_000), (family.pod, 80), SYN);
        assert_eq!(to_pod(&node, NEIGHBOUR.0, &masqueraded), Pass(Reason::Rule));
        let via = |node: &crate::world::Node| {
            let pending = node.pending.borrow();
            pending.values().map(|entry| entry.get().via).max()
        };
        assert_eq!(via(&node), Some(NEIGHBOUR.0), "kept for judging it again");
        node.pending.borrow_mut().clear();
        let plain = Frame::tcp((family.neighbour, 50_001), (family.pod, 80), SYN);
        assert_eq!(to_pod(&node, NEIGHBOUR.0, &plain), Pass(Reason::Rule));
        assert_eq!(via(&node), Some(0), "it is who its address says");
        node.pending.borrow_mut().clear();
    }
    for family in families() {
        node.policy.peers.remove(&family.neighbour.into());
        let crafted = Frame::tcp((family.friend, 50_002), (family.pod, 80), SYN);
        let outcome = to_pod(&node, NEIGHBOUR.0, &crafted);
        assert_eq!(
            outcome,
            Drop(Reason::IsolatedNoRule),
            "another's address does not help"
        );
    }
}

#[test]
fn a_pod_always_reaches_itself() {
    let mut node = node();
    change_policy(&mut node, [CLOSED_SET, CLOSED_SET]);
    for family in families() {
        let hairpin = Frame::tcp((family.node, 50_000), (family.pod, 80), SYN);
        assert_eq!(to_pod(&node, POD.0, &hairpin), Pass(Reason::Itself));
        let answer = Frame::tcp((family.pod, 80), (family.node, 50_000), SYN | ACK);
        assert_eq!(from_pod(&node, &answer), Pass(Reason::Reply));
        let direct = Frame::udp((family.pod, 50_000), (family.pod, 80));
        assert_eq!(from_pod(&node, &direct), Pass(Reason::Itself));
        assert_eq!(to_pod(&node, POD.0, &direct), Pass(Reason::Itself));
        let forged = Frame::udp((family.pod, 50_001), (family.pod, 80));
        let outcome = to_pod(&node, NEIGHBOUR.0, &forged);
        assert_eq!(
            outcome,
            Drop(Reason::IsolatedNoRule),
            "its address alone does not do"
        );
        let from_outside = Frame::udp((family.pod, 50_002), (family.pod, 80));
        assert_eq!(
            to_pod(&node, UPLINK, &from_outside),
            Drop(Reason::IsolatedNoRule),
            "nor does it from outside the node"
        );
    }
}

#[test]
fn a_flow_is_open_only_to_those_who_come_in_where_it_did() {
    let node = node();
    for family in families() {
        // One tuple, as a masquerade may give it to one sender after the other.
        let shown = Frame::udp((family.node, 50_000), (family.pod, 80));
        for (first, other) in [(0, UPLINK), (0, NEIGHBOUR.0), (POD.0, UPLINK)] {
            node.pending.borrow_mut().clear();
            node.connections.borrow_mut().clear();
            assert!(matches!(to_pod(&node, first, &shown), Pass(_)));
            let answer = Frame::udp((family.pod, 80), (family.node, 50_000));
            assert_eq!(from_pod(&node, &answer), Pass(Reason::Reply));
            assert_eq!(to_pod(&node, first, &shown), Pass(Reason::Reply));
            let outcome = to_pod(&node, other, &shown);
            assert_ne!(outcome, Pass(Reason::Reply), "{first}, then {other}");
        }
    }
}

#[test]
fn what_begins_no_flow_is_no_new_connection_of_its_rule() {
    let mut node = node();
    let [v4, _] = families();
    let everything = PortFunction {
        verdict: agent_common::maps::ALLOW,
        rule: 7,
        ..PortFunction::default()
    };
    let key = VerdictKey {
        set: INGRESS_SET,
        class: 0,
    };
    node.policy.verdicts.insert(key, everything);
    let unreachable = Frame::icmp(v4.stranger, v4.pod, 3, 3, 0);
    assert_eq!(to_pod(&node, UPLINK, &unreachable), Pass(Reason::Rule));
    assert!(node.rule_hits.borrow().is_empty());
    assert!(node.take_events().is_empty());
}

#[test]
fn a_set_without_a_default_row_takes_the_posture() {
    let mut node = node();
    let [v4, _] = families();
    for set in [INGRESS_SET, EGRESS_SET] {
        node.policy.verdicts.remove(&VerdictKey { set, class: 0 });
    }
    let frame = Frame::tcp((v4.stranger, 1), (v4.pod, 80), SYN);
    assert_eq!(to_pod(&node, UPLINK, &frame), Drop(Reason::FailClosed));
    assert_eq!(node.counter(Counter::DefaultRowMissing), 1);
    change_pod(&mut node, |config, _| {
        config.flags |= config_flags::FAIL_OPEN;
    });
    assert_eq!(to_pod(&node, UPLINK, &frame), Pass(Reason::FailOpen));
}

#[test]
fn a_deny_rule_is_named() {
    let mut node = node();
    let [v4, _] = families();
    let denied = PortFunction {
        rule: 7,
        ..PortFunction::default()
    };
    let key = VerdictKey {
        set: INGRESS_SET,
        class: FRIEND,
    };
    node.policy.verdicts.insert(key, denied);
    let frame = Frame::tcp((v4.friend, 1), (v4.pod, 80), SYN);
    assert_eq!(to_pod(&node, UPLINK, &frame), Drop(Reason::DenyRule));
    let [event] = node.take_events()[..] else {
        panic!("one refusal, one event");
    };
    assert_eq!(RuleId(event.rule), RuleId(7));
}

#[test]
fn a_segment_without_syn_is_judged_both_ways() {
    let node = node();
    for family in families() {
        // The pod's server answers a friend whose entry is gone; the pod's client hears from one.
        let answer = Frame::tcp((family.pod, 80), (family.friend, 40_000), ACK);
        assert_eq!(from_pod(&node, &answer), Pass(Reason::MidStream));
        let heard = Frame::tcp((family.friend, 443), (family.pod, 41_000), ACK);
        assert_eq!(to_pod(&node, UPLINK, &heard), Pass(Reason::MidStream));
        let next = Frame::tcp((family.pod, 41_000), (family.friend, 443), ACK);
        assert_eq!(from_pod(&node, &next), Pass(Reason::Reply));
        let own = Frame::tcp((family.friend, 42_000), (family.pod, 80), ACK);
        assert_eq!(to_pod(&node, UPLINK, &own), Pass(Reason::Rule));
        let neither = Frame::tcp((family.friend, 444), (family.pod, 41_000), ACK);
        assert_eq!(
            to_pod(&node, UPLINK, &neither),
            Drop(Reason::IsolatedNoRule)
        );
        // A datagram or a SYN has one direction only.
        let datagram = Frame::udp((family.friend, 443), (family.pod, 41_000));
        assert_eq!(
            to_pod(&node, UPLINK, &datagram),
            Drop(Reason::IsolatedNoRule)
        );
        let opening = Frame::tcp((family.friend, 443), (family.pod, 43_000), SYN);
        assert_eq!(
            to_pod(&node, UPLINK, &opening),
            Drop(Reason::IsolatedNoRule)
        );
    }
    assert_eq!(node.counter(Counter::MidStream), 6);
    for entry in node
        .connections
        .borrow()
        .values()
        .chain(node.pending.borrow().values())
    {
        assert_ne!(entry.get().flags & connection_flags::MID_STREAM, 0);
    }
    assert_eq!(node.rule_hits.borrow()[&EGRESS_RULE].connections, 2);
}

#[test]
fn the_strict_knob_ends_adoption_after_the_grace() {
    let mut node = node();
    let [v4, _] = families();
    node.policy.settings.flags |= agent_common::maps::settings_flags::STRICT_MID_STREAM;
    let now = u32::try_from(node.now.get() & u64::from(u32::MAX)).unwrap();
    change_pod(&mut node, |config, _| config.attached = now);
    let heard = |port| Frame::tcp((v4.friend, 443), (v4.pod, port), ACK);
    node.advance(node.policy.settings.mid_stream_grace.into());
    assert_eq!(to_pod(&node, UPLINK, &heard(1)), Pass(Reason::MidStream));
    node.advance(1);
    assert_eq!(
        to_pod(&node, UPLINK, &heard(2)),
        Drop(Reason::IsolatedNoRule)
    );
    let own = Frame::tcp((v4.friend, 42_000), (v4.pod, 80), ACK);
    assert_eq!(
        to_pod(&node, UPLINK, &own),
        Pass(Reason::Rule),
        "policy admits this one as it is"
    );
}

#[test]
fn a_reset_passes_where_its_flow_would_and_makes_none() {
    let node = node();
    let [v4, _] = families();
    let reset = Frame::tcp((v4.friend, 443), (v4.pod, 41_000), 4);
    assert_eq!(to_pod(&node, UPLINK, &reset), Pass(Reason::MidStream));
    assert!(node.pending.borrow().is_empty());
    assert_eq!(node.counter(Counter::MidStream), 0);
}
