//! The books: counts are exact whatever is lost beside them, reports say what decided.

use std::cell::Cell;
use std::collections::HashMap;

use agent_common::classify::Outcome::{self, Drop, NotMine, Pass};
use agent_common::maps::{
    ALLOW, Counter, DeniedKey, FIRST_RULE_ROW, PortFunction, RULE_GENERATIONS, RULE_ROWS,
    VerdictKey, hit_row, rule_id, rule_row, settings_flags,
};
use agent_common::{Address, Direction, Reason, RuleId, Verdict};
use proptest::prelude::*;

use crate::packets::Frame;
use crate::world::{
    CLOSED_SET, EGRESS_SET, HZ, INGRESS_RULE, INGRESS_SET, NEIGHBOUR, Node, POD, UPLINK,
    change_pod, change_policy, families, from_pod, from_pod_bytes, node, to_pod,
};

const SYN: u8 = 2;
const ACK: u8 = 16;

fn refused(node: &Node, port: u16) -> Outcome {
    let family = families()[0];
    let frame = Frame::tcp((family.stranger, 1), (family.pod, port), SYN);
    to_pod(node, UPLINK, &frame)
}

#[test]
fn a_new_flow_is_reported_once_with_its_rule() {
    let node = node();
    let family = families()[0];
    for _ in 0..3 {
        let frame = Frame::tcp((family.friend, 40_000), (family.pod, 80), SYN);
        assert!(matches!(to_pod(&node, UPLINK, &frame), Pass(_)));
    }
    let [event] = node.take_events()[..] else {
        panic!("one flow, one event");
    };
    assert_eq!(event.rule, INGRESS_RULE);
    assert_eq!(event.reason, Reason::Rule.number());
    assert_eq!((event.slot, event.ifindex, event.via), (POD.1, POD.0, 0));
    assert_eq!(
        (event.local, event.peer),
        (family.pod.into(), family.friend.into())
    );
    assert_eq!((event.local_port, event.peer_port), (80, 40_000));
    assert_eq!((event.direction, event.protocol, event.detail), (0, 6, SYN));
    assert_eq!(
        (event.set, event.class),
        (INGRESS_SET, crate::world::FRIEND)
    );
    assert_eq!((event.length, event.packets), (40, 1));
    assert_eq!(event.time, node.now.get());
    assert_eq!(node.rule_hits.borrow()[&INGRESS_RULE].connections, 1);
}

#[test]
fn allowed_flows_are_reported_only_when_asked_for() {
    let mut node = node();
    let family = families()[0];
    node.policy.settings.flags &= !settings_flags::REPORT_ALLOWED;
    let frame = Frame::tcp((family.friend, 40_000), (family.pod, 80), SYN);
    assert_eq!(to_pod(&node, UPLINK, &frame), Pass(Reason::Rule));
    assert!(node.take_events().is_empty());
    assert_eq!(node.rule_hits.borrow()[&INGRESS_RULE].connections, 1);
}

#[test]
fn refusals_are_reported_when_new_and_again_after_the_interval() {
    let node = node();
    let interval = u64::from(node.policy.settings.report_interval);
    for _ in 0..5 {
        assert_eq!(refused(&node, 81), Drop(Reason::IsolatedNoRule));
    }
    assert_eq!(node.take_events().len(), 1, "the row was made");
    node.advance(interval - 1);
    assert_eq!(refused(&node, 81), Drop(Reason::IsolatedNoRule));
    assert!(node.take_events().is_empty());
    node.advance(1);
    assert_eq!(refused(&node, 81), Drop(Reason::IsolatedNoRule));
    assert_eq!(refused(&node, 81), Drop(Reason::IsolatedNoRule));
    let [event] = node.take_events()[..] else {
        panic!("the row was due once");
    };
    assert_eq!(event.packets, 7, "what it stands for");
    let family = families()[0];
    let key = DeniedKey {
        peer: family.stranger.into(),
        slot: POD.1,
        port: 81,
        protocol: 6,
        direction: Direction::Ingress.index(),
    };
    let row = node.denied.borrow()[&key].get();
    assert_eq!((row.packets, row.last - row.first), (8, interval));
    assert_eq!(row.reason, Reason::IsolatedNoRule.number());
}

#[test]
fn refused_replies_of_a_cut_flow_are_filed_under_the_flow() {
    let mut node = node();
    let family = families()[0];
    let request = Frame::udp((family.friend, 40_000), (family.pod, 80));
    let answer = Frame::udp((family.pod, 80), (family.friend, 40_000));
    assert_eq!(to_pod(&node, UPLINK, &request), Pass(Reason::Rule));
    change_policy(&mut node, [CLOSED_SET, EGRESS_SET]);
    assert_eq!(from_pod(&node, &answer), Drop(Reason::IsolatedNoRule));
    assert_eq!(
        to_pod(&node, UPLINK, &request),
        Drop(Reason::IsolatedNoRule)
    );
    let denied = node.denied.borrow();
    assert_eq!(denied.len(), 1);
    let (key, row) = denied.iter().next().unwrap();
    assert_eq!((key.port, key.direction), (80, Direction::Ingress.index()));
    assert_eq!(row.get().packets, 2);
    let dropped = node.dropped_of(POD.1, Direction::Ingress, Reason::IsolatedNoRule);
    assert_eq!(dropped.packets, 2);
}

#[test]
fn icmp_is_filed_by_type_and_code() {
    let node = node();
    let family = families()[1];
    let frame = Frame::icmp(family.stranger, family.pod, 1, 4, 0);
    assert_eq!(to_pod(&node, UPLINK, &frame), Drop(Reason::IsolatedNoRule));
    let denied = node.denied.borrow();
    assert_eq!(denied.keys().next().unwrap().port, 0x0104);
}

#[test]
fn lost_reports_and_rows_are_counted_and_counts_stay_exact() {
    let mut node = node();
    node.event_capacity = 2;
    node.denied_capacity = 3;
    for port in 1000..1010 {
        assert_eq!(refused(&node, port), Drop(Reason::IsolatedNoRule));
    }
    assert_eq!(
        node.counter(Counter::EventsLost),
        1,
        "three rows, room for two events"
    );
    assert_eq!(node.counter(Counter::DeniedOverflow), 7);
    let dropped = node.dropped_of(POD.1, Direction::Ingress, Reason::IsolatedNoRule);
    assert_eq!((dropped.packets, dropped.bytes), (10, 400));
    let family = families()[0];
    let frame = Frame::tcp((family.friend, 40_000), (family.pod, 80), SYN);
    assert_eq!(to_pod(&node, UPLINK, &frame), Pass(Reason::Rule));
    assert_eq!(node.counter(Counter::EventsLost), 2);
}

#[test]
fn a_rule_without_a_row_is_counted_with_its_kind_and_as_lost() {
    let mut node = node();
    let family = families()[0];
    let shared = hit_row(RuleId::NONE, Reason::Rule, Direction::Ingress);
    let everything = PortFunction {
        verdict: ALLOW,
        rule: rule_id(shared, 3).0,
        ..PortFunction::default()
    };
    let key = VerdictKey {
        set: INGRESS_SET,
        class: 0,
    };
    node.policy.verdicts.insert(key, everything);
    let frame = Frame::tcp((family.stranger, 1), (family.pod, 81), SYN);
    assert_eq!(to_pod(&node, UPLINK, &frame), Pass(Reason::Rule));
    assert_eq!(node.rule_hits.borrow()[&shared].connections, 1);
    assert_eq!(node.counter(Counter::RuleHitLost), 1);
}

#[test]
fn what_no_rule_decided_is_counted_by_its_reason() {
    let mut node = node();
    let family = families()[0];
    change_policy(&mut node, [0, EGRESS_SET]);
    let heard = |port| Frame::tcp((family.stranger, port), (family.pod, 81), SYN);
    for port in [1, 1, 2] {
        assert!(matches!(to_pod(&node, UPLINK, &heard(port)), Pass(_)));
    }
    assert_eq!(to_pod(&node, 0, &heard(3)), Pass(Reason::Node));
    let itself = Frame::tcp((family.pod, 1), (family.pod, 81), SYN);
    assert_eq!(from_pod(&node, &itself), Pass(Reason::Itself));
    let counted = |reason, direction| {
        let row = hit_row(RuleId::NONE, reason, direction);
        let rows = node.rule_hits.borrow();
        rows.get(&row).map_or(0, |row| row.connections)
    };
    assert_eq!(counted(Reason::NotIsolated, Direction::Ingress), 2);
    assert_eq!(counted(Reason::Node, Direction::Ingress), 1);
    assert_eq!(counted(Reason::Itself, Direction::Egress), 1);
    assert_eq!(node.counter(Counter::RuleHitLost), 0);
}

#[test]
fn rows_of_reasons_and_rules_are_apart() {
    let mut rows = HashMap::new();
    for reason in Reason::ALL {
        if reason.verdict() != Verdict::Allow {
            continue;
        }
        for direction in Direction::ALL {
            let row = hit_row(RuleId::NONE, *reason, direction);
            assert!(row < FIRST_RULE_ROW);
            assert_eq!(rows.insert(row, (reason, direction)), None, "{row}");
        }
    }
    for row in [FIRST_RULE_ROW, RULE_ROWS - 1] {
        for generation in [0, 1, RULE_GENERATIONS - 1] {
            assert_eq!(rule_row(rule_id(row, generation)), row);
        }
    }
    assert_ne!(rule_id(100, 1), rule_id(100, 2));
}

#[test]
fn what_audited_policies_would_do_is_reported_and_changes_nothing() {
    let mut node = node();
    let family = families()[0];
    let open = |port| Frame::tcp((family.friend, port), (family.pod, 80), SYN);
    change_pod(&mut node, |config, _| {
        config.audit_sets = [CLOSED_SET, EGRESS_SET];
    });
    assert_eq!(to_pod(&node, UPLINK, &open(1)), Pass(Reason::Rule));
    let [allowed, audited] = node.take_events()[..] else {
        panic!("the flow, and what would become of it");
    };
    assert_eq!(
        (allowed.reason, allowed.in_force),
        (Reason::Rule.number(), 0)
    );
    assert_eq!(audited.reason, Reason::WouldDeny.number());
    assert_eq!(audited.in_force, Reason::Rule.number());
    assert_eq!((audited.rule, audited.set), (0, CLOSED_SET));
    change_pod(&mut node, |config, _| {
        config.sets = [CLOSED_SET, EGRESS_SET];
        config.audit_sets = [INGRESS_SET, EGRESS_SET];
    });
    assert_eq!(
        to_pod(&node, UPLINK, &open(2)),
        Drop(Reason::IsolatedNoRule)
    );
    let [denied, audited] = node.take_events()[..] else {
        panic!("the refusal, and what would become of it");
    };
    assert_eq!(denied.reason, Reason::IsolatedNoRule.number());
    assert_eq!(audited.reason, Reason::WouldAllow.number());
    assert_eq!(audited.rule, INGRESS_RULE);
    let hits = node.rule_hits.borrow()[&INGRESS_RULE].connections;
    assert_eq!(hits, 1, "a rule that would decide decides nothing");
}

#[test]
fn a_live_flow_meets_the_audited_policies_when_they_change() {
    let mut node = node();
    let family = families()[0];
    let frame = Frame::udp((family.friend, 40_000), (family.pod, 80));
    assert_eq!(to_pod(&node, UPLINK, &frame), Pass(Reason::Rule));
    drop(node.take_events());
    change_pod(&mut node, |config, revision| {
        config.audit_sets = [CLOSED_SET, EGRESS_SET];
        *revision += 1;
    });
    for _ in 0..3 {
        assert_eq!(to_pod(&node, UPLINK, &frame), Pass(Reason::Reply));
    }
    let [event] = node.take_events()[..] else {
        panic!("once, not for each packet");
    };
    assert_eq!(event.reason, Reason::WouldDeny.number());
}

#[test]
fn the_audit_asks_nothing_where_its_set_is_the_one_in_force() {
    let mut node = node();
    // A row that is missing would be noticed.
    change_pod(&mut node, |config, _| config.audit_sets = [77, EGRESS_SET]);
    let key = |set| VerdictKey { set, class: 0 };
    let family = families()[0];
    let sent = Frame::tcp((family.pod, 1), (family.friend, 443), SYN);
    assert_eq!(from_pod(&node, &sent), Pass(Reason::Rule));
    assert_eq!(node.counter(Counter::DefaultRowMissing), 0);
    assert!(!node.policy.verdicts.contains_key(&key(77)));
    let heard = Frame::tcp((family.friend, 1), (family.pod, 80), SYN);
    assert_eq!(to_pod(&node, UPLINK, &heard), Pass(Reason::Rule));
    assert_eq!(node.counter(Counter::DefaultRowMissing), 1);
}

prop_compose! {
    fn any_traffic()(
        is_from_pod: bool,
        is_v6: bool,
        ingress_ifindex in prop::sample::select(vec![0, UPLINK, NEIGHBOUR.0, POD.0]),
        protocol in 0..4,
        peer in 0..5_usize,
        ports in prop::sample::select(vec![(40_000, 80), (40_000, 81), (443, 40_000), (1, 443)]),
        flags in prop::sample::select(vec![SYN, SYN | ACK, ACK, 4, 17]),
        forged in prop::bool::weighted(0.1),
        fragment in prop::option::weighted(0.1, (0_u16..2, any::<bool>())),
        cut in prop::option::weighted(0.1, 0_usize..60),
        ticks in prop::sample::select(vec![0, 0, 0, 1, 60 * HZ]),
        change in prop::sample::select(vec![0, 0, 0, 0, 0, 1, 2, 3]),
    ) -> (bool, u32, Vec<u8>, u32, i32) {
        let family = families()[usize::from(is_v6)];
        let peers = [family.friend, family.stranger, family.node, family.neighbour, family.group];
        let pod = if forged { family.neighbour } else { family.pod };
        let (mut from, mut to) = ((peers[peer], ports.0), (pod, ports.1));
        if is_from_pod {
            (from, to) = (to, from);
        }
        let mut frame = match protocol {
            0 => Frame::tcp(from, to, flags),
            1 => Frame::udp(from, to),
            2 => Frame::sctp(from, to, flags),
            _ => Frame::echo_request(from.0, to.0, ports.0),
        };
        frame.fragment = fragment;
        let mut bytes = frame.bytes();
        if let Some(cut) = cut {
            bytes.truncate(cut);
        }
        (is_from_pod, ingress_ifindex, bytes, ticks, change)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_packet_is_counted_exactly_once_by_what_became_of_it(
        traffic in prop::collection::vec(any_traffic(), 1..60),
        event_capacity in 0..20_usize,
        denied_capacity in 0..10_usize,
    ) {
        let mut node = node();
        node.event_capacity = event_capacity;
        node.denied_capacity = denied_capacity;
        let mut passed = [0, 0];
        let (mut dropped, mut not_mine) = (HashMap::<Reason, u64>::new(), 0);
        let recorded = Cell::new(0);
        for (is_from_pod, ingress_ifindex, bytes, ticks, change) in traffic {
            node.advance(ticks.into());
            match change {
                1 => change_policy(&mut node, [CLOSED_SET, EGRESS_SET]),
                2 => change_policy(&mut node, [INGRESS_SET, 0]),
                3 => change_policy(&mut node, [0, CLOSED_SET]),
                _ => {}
            }
            let overflow = node.counter(Counter::DeniedOverflow);
            let outcome = if is_from_pod {
                from_pod_bytes(&node, &bytes)
            } else {
                crate::world::to_pod_bytes(&node, ingress_ifindex, &bytes)
            };
            match outcome {
                Pass(_) => passed[usize::from(is_from_pod)] += 1,
                Drop(reason) => {
                    *dropped.entry(reason).or_default() += 1;
                    if node.counter(Counter::DeniedOverflow) == overflow {
                        recorded.set(recorded.get() + 1);
                    }
                }
                NotMine => not_mine += 1,
            }
        }
        for direction in Direction::ALL {
            let counted = node.passed_of(POD.1, direction).packets;
            prop_assert_eq!(counted, passed[usize::from(direction.index())]);
        }
        for reason in Reason::ALL {
            if reason.verdict() != Verdict::Deny {
                continue;
            }
            let counted: u64 = Direction::ALL
                .iter()
                .map(|direction| node.dropped_of(POD.1, *direction, *reason).packets)
                .sum();
            prop_assert_eq!(counted, dropped.get(reason).copied().unwrap_or(0), "{}", reason);
        }
        prop_assert_eq!(node.counter(Counter::NotMine), not_mine);
        let rows: u64 = node.denied.borrow().values().map(|row| row.get().packets).sum();
        prop_assert_eq!(rows, recorded.get(), "refused packets with a row");
        prop_assert!(node.denied.borrow().keys().all(|key| key.peer != Address::default()
            || key.protocol == 0));
    }
}
