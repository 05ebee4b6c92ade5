//! Claims about totals: nothing is taken away, nothing grows without bound.

use super::*;
use crate::dto::{Endpoint, EndpointState};

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

fn reading(slots: Vec<(u32, SlotReading)>, denied: Vec<DeniedReading>) -> Reading {
    Reading {
        endpoints: vec![
            endpoint("shop", "Deployment/api"),
            endpoint("data", "StatefulSet/db"),
        ],
        slots: slots.into_iter().collect(),
        denied,
        ..Reading::default()
    }
}

fn refused(ledger: &Ledger, namespace: &str) -> u64 {
    ledger.namespace_packets()[&(namespace.to_owned(), Direction::Ingress, Verdict::Deny)]
}

#[test]
fn a_reused_slot_takes_nothing_away() {
    let mut ledger = Ledger::default();
    ledger.take(&reading(vec![(1, slot("a", "shop", 10, 4))], Vec::new()));
    // Another pod, and then the same slot cleared for a pod of the same name and UID.
    ledger.take(&reading(vec![(1, slot("b", "data", 1, 1))], Vec::new()));
    assert_eq!((refused(&ledger, "shop"), refused(&ledger, "data")), (4, 1));
    ledger.take(&reading(vec![(1, slot("b", "data", 0, 0))], Vec::new()));
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
    ledger.take(&reading(
        vec![(1, slot("a", "shop", 10, 4))],
        vec![denied(1, "x", 7)],
    ));
    ledger.save(&path).unwrap();
    let mut next = Ledger::load(&path);
    std::fs::remove_dir_all(&folder).unwrap();
    // Meanwhile the pod went, and its slot with it.
    next.take(&reading(vec![(1, slot("b", "shop", 1, 2))], Vec::new()));
    assert_eq!(refused(&next, "shop"), 6);
    assert_eq!(next.denied_pairs().values().sum::<u64>(), 7);
    assert_eq!(next.dns_denied()["shop"], 7);
}

#[test]
fn living_namespaces_start_at_zero_and_gone_ones_go() {
    let mut ledger = Ledger::default();
    ledger.take(&reading(Vec::new(), Vec::new()));
    assert_eq!(ledger.namespace_packets().len(), 2 * 2 * 3);
    assert!(
        ledger
            .namespace_packets()
            .values()
            .all(|packets| *packets == 0)
    );
    ledger.take(&Reading::default());
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
    ledger.take(&reading(Vec::new(), storm(1)));
    let first = ledger.denied_pairs();
    assert_eq!(first.len(), MOST_PAIRS + 1);
    assert_eq!(first.values().sum::<u64>(), 700);
    assert_eq!(ledger.overflowed, 200);
    ledger.take(&reading(Vec::new(), storm(3)));
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
    ledger.take(&reading(Vec::new(), vec![denied(1, "x", 5)]));
    ledger.take(&reading(Vec::new(), vec![denied(1, "y", 8)]));
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
