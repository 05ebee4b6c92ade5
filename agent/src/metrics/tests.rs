//! Claims about the text: each metric once, with help, within its budget.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::*;
use crate::dto::{Endpoint, EndpointDirection, Party, Traffic};
use crate::reading::{DeniedReading, SlotReading};

/// A node of 50 pods in 15 namespaces under 30 policies, with a storm of refusals.
fn synthetic_node() -> Reading {
    let namespace = |number: usize| format!("ns-{}", number % 15);
    let endpoint = |number: usize| Endpoint {
        namespace: namespace(number),
        pod: format!("pod-{number}"),
        workload: format!("Deployment/app-{number}"),
        addresses: Vec::new(),
        ifindex: None,
        slot: None,
        state: EndpointState::Programmed,
        note: None,
        revision: None,
        directions: [DirectionWord::Ingress, DirectionWord::Egress]
            .map(|direction| EndpointDirection {
                direction,
                isolated: number.is_multiple_of(2),
                set: None,
                isolated_by: Vec::new(),
                passed: Traffic::default(),
                dropped: BTreeMap::new(),
            })
            .into(),
    };
    let slot = |number: usize| SlotReading {
        uid: format!("uid-{number}"),
        namespace: namespace(number),
        passed: [Traffic {
            packets: 10,
            bytes: 1_000,
        }; 2],
        dropped: BTreeMap::from([(
            (Direction::Ingress, Reason::IsolatedNoRule),
            Traffic {
                packets: 2,
                bytes: 120,
            },
        )]),
    };
    Reading {
        endpoints: (0..50).map(endpoint).collect(),
        policies: (0..30)
            .map(|number| (namespace(number), format!("policy-{number}"), [true; 2]))
            .collect(),
        slots: (0..50)
            .map(|number| (u32::try_from(number).unwrap() + 1, slot(number)))
            .collect(),
        allowed: BTreeMap::from([((Direction::Ingress, Reason::NotIsolated), 17)]),
        counters: vec![(Counter::EventsLost, 3)],
        maps: vec![crate::dto::MapFill {
            name: "verdicts".to_owned(),
            entries: Some(9),
            capacity: 100,
        }],
        ..Reading::default()
    }
}

/// The storm.
fn storm() -> Vec<DeniedReading> {
    let party = |number: usize, name: &str| Party {
        namespace: Some(format!("ns-{}", number % 15)),
        workload: Some(format!("{name}-{number}")),
        ..Party::default()
    };
    (0..5_000_u32)
        .map(|number| {
            let place = number as usize;
            DeniedReading {
                key: (
                    number % 50 + 1,
                    IpAddr::from(number.to_be_bytes()),
                    80,
                    6,
                    Direction::Ingress,
                ),
                uid: format!("uid-{}", number % 50),
                local: party(place % 50, "Deployment/app"),
                peer: party(place, "Job/storm"),
                reason: "isolated-no-rule".to_owned(),
                packets: 1,
                times: None,
                revision: 1,
            }
        })
        .collect()
}

fn text(reading: &Reading) -> String {
    let mut ledger = Ledger::default();
    let cleared = ledger.take(reading, &[]);
    ledger.take_denied(&storm(), &[], &cleared);
    ledger.forget_series(reading);
    encode(reading.clone(), ledger)
}

fn samples(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.starts_with('#')).collect()
}

#[test]
fn each_metric_is_described_once_with_help_and_named_as_prometheus_wants() {
    let text = text(&synthetic_node());
    let described: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# HELP "))
        .map(|line| line.split_once(' ').expect("a name and its help").0)
        .collect();
    let distinct: BTreeSet<&&str> = described.iter().collect();
    assert_eq!(distinct.len(), described.len(), "{described:?}");
    for name in described {
        assert!(
            name.starts_with("picket_") && !name.ends_with("_total"),
            "{name}"
        );
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn the_counts_of_the_maps_are_what_is_said() {
    let text = text(&synthetic_node());
    for line in [
        r#"picket_verdicts_total{direction="ingress",verdict="deny",reason="isolated-no-rule"} 100"#,
        r#"picket_verdicts_total{direction="egress",verdict="deny",reason="malformed"} 0"#,
        r#"picket_verdicts_total{direction="ingress",verdict="allow",reason="not-isolated"} 17"#,
        r#"picket_verdicts_total{direction="egress",verdict="allow",reason="node"} 0"#,
        r#"picket_verdict_bytes_total{direction="ingress",verdict="allow"} 50000"#,
        r#"picket_verdict_bytes_total{direction="ingress",verdict="deny"} 6000"#,
        r#"picket_namespace_verdicts_total{namespace="ns-14",direction="ingress",verdict="deny"} 6"#,
        r#"picket_namespace_verdicts_total{namespace="ns-14",direction="egress",verdict="audit"} 0"#,
        r#"picket_endpoints{state="programmed"} 50.0"#,
        r#"picket_events_lost_total{stage="ringbuf"} 3"#,
        r#"picket_bpf_map_entries{map="verdicts"} 9.0"#,
        r#"picket_bpf_map_capacity{map="verdicts"} 100.0"#,
        r"picket_pod_first_enforced_seconds_count 0",
        r#"picket_policy_apply_duration_seconds_bucket{le="+Inf",stage="swap"} 0"#,
    ] {
        assert!(
            text.lines().any(|each| each == line),
            "{line} is missing in\n{text}"
        );
    }
}

#[test]
fn a_node_in_a_storm_of_refusals_stays_within_its_budget() {
    let text = text(&synthetic_node());
    let all = samples(&text).len();
    let pairs = samples(&text)
        .into_iter()
        .filter(|line| line.starts_with("picket_denied_connections_total"))
        .count();
    assert_eq!(pairs, ledger::MOST_PAIRS + 1, "the storm overflows");
    assert!(text.contains("__overflow__"), "{text}");
    // 180 fixed ones, 15 namespaces with 15 each, 30 policies with 4 each, and the pairs.
    assert!(
        all - pairs <= 180 + 15 * 15 + 30 * 4,
        "{} series without the pairs",
        all - pairs
    );
}

#[test]
fn a_hostile_name_cannot_break_the_text() {
    let mut reading = synthetic_node();
    reading.policies = vec![(
        "ns-1".to_owned(),
        "a\"} 1\npicket_forged 1".to_owned(),
        [true; 2],
    )];
    let text = text(&reading);
    assert!(
        !text.lines().any(|line| line.starts_with("picket_forged")),
        "{text}"
    );
}
