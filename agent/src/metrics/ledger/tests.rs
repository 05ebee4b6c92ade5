//! Claims about totals: nothing is taken away, nothing grows without bound.

use agent_common::maps::{Denied, DeniedKey, rule_id};
use agent_policy::model::{ObjectName, RuleRef};

use super::*;
use crate::dto::{Endpoint, EndpointState, Party};
use crate::reading::DeniedReading;

fn endpoint(namespace: &str, workload: &str) -> Endpoint {
    Endpoint {
        namespace: namespace.to_owned(),
        pod: "pod".to_owned(),
        workload: workload.to_owned(),
        addresses: Vec::new(),
        ifindex: None,
        slot: None,
        state: EndpointState::Programmed,
        note: None,
        revision: None,
        directions: Vec::new(),
    }
}

fn slot(uid: &str, namespace: &str, passed: u64, dropped: u64) -> SlotReading {
    let traffic = |packets| Traffic {
        packets,
        bytes: 100 * packets,
    };
    SlotReading {
        uid: uid.to_owned(),
        namespace: namespace.to_owned(),
        passed: [traffic(passed), traffic(0)],
        dropped: BTreeMap::from([(
            (Direction::Ingress, Reason::IsolatedNoRule),
            traffic(dropped),
        )]),
    }
}

fn denied(last: u8, peer_workload: &str, packets: u64) -> DeniedReading {
    let party = |workload: &str| Party {
        namespace: Some("shop".to_owned()),
        workload: Some(workload.to_owned()),
        ..Party::default()
    };
    DeniedReading {
        key: (
            1,
            std::net::IpAddr::from([10, 0, 0, last]),
            53,
            17,
            Direction::Egress,
        ),
        uid: "a".to_owned(),
        local: party("Deployment/api"),
        peer: party(peer_workload),
        reason: "isolated-no-rule".to_owned(),
        packets,
        times: None,
        revision: 1,
    }
}

fn reading(slots: Vec<(u32, SlotReading)>) -> Reading {
    Reading {
        endpoints: vec![
            endpoint("shop", "Deployment/api"),
            endpoint("data", "StatefulSet/db"),
        ],
        slots: slots.into_iter().collect(),
        ..Reading::default()
    }
}

/// Everything that is in DENIED.
fn take_denied(ledger: &mut Ledger, rows: &[DeniedReading]) {
    let present: Vec<DeniedKey> = rows.iter().map(key).collect();
    ledger.take_denied(rows, &present, &HashSet::new());
}

fn key(row: &DeniedReading) -> DeniedKey {
    DeniedKey {
        peer: row.key.1.into(),
        slot: row.key.0,
        port: row.key.2,
        protocol: row.key.3,
        direction: row.key.4.index(),
    }
}

fn fold(number: u64, slot: u32, owner: Option<(&str, &str)>, packets: u64) -> Fold {
    let passed = maps::Traffic { packets, bytes: 0 };
    Fold {
        number,
        counts: Counts::Slot {
            slot,
            owner: owner.map(|(uid, namespace)| Owner {
                uid: uid.to_owned(),
                namespace: namespace.to_owned(),
            }),
            passed: [passed, maps::Traffic::default()],
            dropped: Vec::new(),
        },
    }
}

fn passed(ledger: &Ledger, namespace: &str) -> u64 {
    ledger.namespace_packets()[&(namespace.to_owned(), Direction::Ingress, Verdict::Allow)]
}

fn refused(ledger: &Ledger, namespace: &str) -> u64 {
    ledger.namespace_packets()[&(namespace.to_owned(), Direction::Ingress, Verdict::Deny)]
}

#[test]
fn a_reused_slot_takes_nothing_away() {
    let mut ledger = Ledger::default();
    ledger.take(&reading(vec![(1, slot("a", "shop", 10, 4))]), &[]);
    // Another pod, and then the same slot cleared for a pod of the same name and UID.
    ledger.take(&reading(vec![(1, slot("b", "data", 1, 1))]), &[]);
    assert_eq!((refused(&ledger, "shop"), refused(&ledger, "data")), (4, 1));
    ledger.take(&reading(vec![(1, slot("b", "data", 0, 0))]), &[]);
    assert_eq!((refused(&ledger, "shop"), refused(&ledger, "data")), (4, 1));
    let traffic = ledger.node_traffic();
    assert_eq!(
        traffic[&(Direction::Ingress, None)],
        Traffic {
            packets: 11,
            bytes: 1_100
        }
    );
    assert_eq!(
        traffic[&(Direction::Ingress, Some(Reason::IsolatedNoRule))].packets,
        5
    );
}

#[test]
fn a_restarted_agent_goes_on_where_the_last_one_stopped() {
    let folder = std::env::temp_dir().join(format!("picket-ledger-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("totals.json");
    let mut ledger = Ledger::default();
    ledger.take(&reading(vec![(1, slot("a", "shop", 10, 4))]), &[]);
    take_denied(&mut ledger, &[denied(1, "x", 7)]);
    ledger.save(&path).unwrap();
    let mut next = Ledger::load(&path);
    std::fs::remove_dir_all(&folder).unwrap();
    // Meanwhile the pod went, and its slot with it.
    next.take(&reading(vec![(1, slot("b", "shop", 1, 2))]), &[]);
    take_denied(&mut next, &[]);
    assert_eq!(refused(&next, "shop"), 6);
    assert_eq!(next.denied_pairs().values().sum::<u64>(), 7);
    assert_eq!(next.dns_denied()["shop"], 7);
}

#[test]
fn living_namespaces_start_at_zero_and_gone_ones_go() {
    let mut ledger = Ledger::default();
    ledger.take(&reading(Vec::new()), &[]);
    assert_eq!(ledger.namespace_packets().len(), 2 * 2 * 3);
    assert!(
        ledger
            .namespace_packets()
            .values()
            .all(|packets| *packets == 0)
    );
    ledger.take(&Reading::default(), &[]);
    assert!(ledger.namespace_packets().is_empty());
}

#[test]
fn a_storm_of_pairs_overflows_and_does_not_grow() {
    let mut ledger = Ledger::default();
    let storm = |packets: u64| {
        (0..700_u32)
            .map(|each| DeniedReading {
                key: (
                    1,
                    std::net::IpAddr::from(each.to_be_bytes()),
                    80,
                    6,
                    Direction::Egress,
                ),
                ..denied(0, &format!("Job/{each}"), packets)
            })
            .collect::<Vec<_>>()
    };
    take_denied(&mut ledger, &storm(1));
    let first = ledger.denied_pairs();
    assert_eq!(first.len(), MOST_PAIRS + 1);
    assert_eq!(first.values().sum::<u64>(), 700);
    assert_eq!(ledger.overflowed, 200);
    take_denied(&mut ledger, &storm(3));
    let second = ledger.denied_pairs();
    assert_eq!(second.values().sum::<u64>(), 2_100);
    assert!(
        first.iter().all(|(pair, packets)| second[pair] >= *packets),
        "a series went back"
    );
}

#[test]
fn a_row_whose_peer_is_renamed_is_counted_once() {
    let mut ledger = Ledger::default();
    ledger.take(&reading(Vec::new()), &[]);
    take_denied(&mut ledger, &[denied(1, "x", 5)]);
    take_denied(&mut ledger, &[denied(1, "y", 8)]);
    let pairs = ledger.denied_pairs();
    let of = |peer: &str| {
        pairs
            .iter()
            .filter(|(pair, _)| pair.peer_workload == peer)
            .map(|(_, packets)| packets)
            .sum::<u64>()
    };
    assert_eq!((of("x"), of("y")), (5, 3));
    assert_eq!(ledger.dns_denied()["shop"], 8);
}

#[test]
fn what_a_slot_counted_until_it_was_cleared_is_in_the_totals() {
    let mut ledger = Ledger::default();
    ledger.take(&reading(vec![(1, slot("a", "shop", 10, 0))]), &[]);
    // It went on to 17 before another pod got its slot, which counted 2 since.
    let next = Reading {
        folds: 1,
        ..reading(vec![(1, slot("b", "data", 2, 0))])
    };
    let cleared = ledger.take(&next, &[fold(1, 1, Some(("a", "shop")), 17)]);
    assert!(cleared.is_empty());
    assert_eq!((passed(&ledger, "shop"), passed(&ledger, "data")), (17, 2));
    assert_eq!(ledger.folded(), 1);
    // A pod that came and went between two looks.
    let next = Reading {
        folds: 2,
        ..reading(vec![(1, slot("d", "data", 1, 0))])
    };
    let folds = [
        fold(2, 1, Some(("b", "data")), 5),
        fold(3, 1, Some(("c", "shop")), 4),
    ];
    // The reading began between the two: whose the slot's counts were then is not known.
    assert_eq!(ledger.take(&next, &folds), HashSet::from([1]));
    assert_eq!((passed(&ledger, "shop"), passed(&ledger, "data")), (21, 5));
    let next = Reading {
        folds: 3,
        ..reading(vec![(1, slot("d", "data", 1, 0))])
    };
    ledger.take(&next, &[]);
    assert_eq!((passed(&ledger, "shop"), passed(&ledger, "data")), (21, 6));
}

#[test]
fn a_slot_that_an_earlier_agent_closed_is_counted_to_its_end_for_its_last_pod() {
    let mut ledger = Ledger::default();
    ledger.take(&reading(vec![(1, slot("a", "shop", 10, 0))]), &[]);
    // The agent restarts: nobody has the slot, and nobody says whose it was.
    ledger.take(&reading(Vec::new()), &[]);
    assert_eq!(passed(&ledger, "shop"), 10);
    ledger.take(&reading(Vec::new()), &[fold(1, 1, None, 12)]);
    assert_eq!(passed(&ledger, "shop"), 12);
}

#[test]
fn a_rule_whose_row_is_another_rules_now_keeps_its_count_for_its_policy() {
    let rule = |policy: &str| RuleRef {
        policy: ObjectName::new("shop", policy),
        direction: Direction::Ingress,
        index: 0,
    };
    let (old, new) = (rule_id(100, 1), rule_id(100, 2));
    let of = |hits: Vec<(agent_common::RuleId, RuleRef, u64)>, policies: &[&str]| Reading {
        rule_hits: hits,
        policies: policies
            .iter()
            .map(|name| ("shop".to_owned(), (*name).to_owned(), [true; 2]))
            .collect(),
        allowed: BTreeMap::from([((Direction::Ingress, Reason::NotIsolated), 3)]),
        folds: 1,
        ..reading(Vec::new())
    };
    let mut ledger = Ledger::default();
    ledger.take(&of(vec![(old, rule("a"), 5)], &["a"]), &[]);
    let folded = Fold {
        number: 1,
        counts: Counts::Rule {
            row: 100,
            rule: Some((old, rule("a").to_string())),
            connections: 8,
        },
    };
    let now = of(vec![(new, rule("b"), 1)], &["a", "b"]);
    ledger.take(&now, std::slice::from_ref(&folded));
    let counts = ledger.policy_connections(&now);
    let count = |policy: &str| counts[&("shop".to_owned(), policy.to_owned(), Direction::Ingress)];
    assert_eq!((count("a"), count("b")), (8, 1));
    let allowed = ledger.allowed_connections();
    assert_eq!(allowed[&(Direction::Ingress, Reason::Rule)], 9);
    assert_eq!(allowed[&(Direction::Ingress, Reason::NotIsolated)], 3);
    // The policy goes: no series of its own any more, and the node's total stays.
    ledger.take(&of(vec![(new, rule("b"), 1)], &["b"]), &[]);
    let allowed = ledger.allowed_connections();
    assert_eq!(allowed[&(Direction::Ingress, Reason::Rule)], 9);
}

#[test]
fn a_refusal_that_is_removed_keeps_its_last_count() {
    let mut ledger = Ledger::default();
    ledger.take(&reading(Vec::new()), &[]);
    let row = denied(1, "x", 5);
    take_denied(&mut ledger, std::slice::from_ref(&row));
    let last = Denied {
        packets: 6,
        ..Denied::default()
    };
    assert!(
        ledger
            .grown(vec![(key(&row), Denied { packets: 5, ..last })])
            .is_empty()
    );
    assert_eq!(ledger.grown(vec![(key(&row), last)]).len(), 1);
    ledger.forget_denied(&[(key(&row), last)]);
    assert_eq!(ledger.denied_pairs().values().sum::<u64>(), 6);
    // Refused again: a row of its own, counted on top.
    take_denied(&mut ledger, &[denied(1, "x", 2)]);
    assert_eq!(ledger.denied_pairs().values().sum::<u64>(), 8);
}

#[test]
fn refusals_of_a_slot_that_was_cleared_stay_with_the_pod_that_had_it() {
    let mut ledger = Ledger::default();
    take_denied(&mut ledger, &[denied(1, "x", 5)]);
    ledger.take(&reading(Vec::new()), &[fold(1, 1, Some(("a", "shop")), 1)]);
    // The same pod may have the slot again, by another interface.
    take_denied(&mut ledger, &[denied(1, "x", 7)]);
    assert_eq!(ledger.denied_pairs().values().sum::<u64>(), 12);
}
