//! How flows read, word for word.

use super::lines::*;
use crate::cli::output::Terminal;
use crate::dto::{
    Decision, DirectionWord, Edge, EdgeList, Flow, NearRule, Party, VerdictWord, Window,
};

fn pod(namespace: &str, name: &str, workload: &str) -> Party {
    Party {
        namespace: Some(namespace.to_owned()),
        pod: Some(name.to_owned()),
        workload: Some(workload.to_owned()),
        ..Party::default()
    }
}

fn decision(reason: &str, rule: Option<&str>, near: Option<&str>) -> Decision {
    Decision {
        direction: DirectionWord::Ingress,
        at: "destination".to_owned(),
        reason: reason.to_owned(),
        rule: rule.map(str::to_owned),
        revision: "7".to_owned(),
        node: None,
        isolated_by: Vec::new(),
        nearest: near
            .map(|rule| NearRule {
                rule: rule.to_owned(),
                failed: Vec::new(),
                conditions: Vec::new(),
            })
            .into_iter()
            .collect(),
    }
}

fn denied_flow() -> Flow {
    Flow {
        time: "2026-11-21T14:05:12Z".to_owned(),
        from: pod("web", "portal-1", "Deployment/portal"),
        from_port: Some(40_000),
        to: pod("shop", "api-1", "Deployment/api"),
        protocol: "TCP".to_owned(),
        port: Some(8080),
        verdict: VerdictWord::Deny,
        decision: decision("isolated-no-rule", None, Some("shop/allow-api/ingress/0")),
        packets: 1,
    }
}

fn edges() -> EdgeList {
    let edge = |verdict, decision: Decision, connections, last_seen: &str| Edge {
        id: "F7K2".to_owned(),
        window: Window {
            from: "2026-11-21T13:05:00Z".to_owned(),
            to: "2026-11-21T14:05:14Z".to_owned(),
        },
        from: pod("web", "portal-1", "Deployment/portal"),
        to: pod("shop", "api-1", "Deployment/api"),
        protocol: "TCP".to_owned(),
        port: Some(8080),
        verdict,
        decision,
        connections,
        first_seen: last_seen.to_owned(),
        last_seen: last_seen.to_owned(),
        events_lost: 0,
    };
    EdgeList {
        items: vec![
            edge(
                VerdictWord::Allow,
                decision("rule", Some("shop/allow-web/ingress/0"), None),
                4_118,
                "2026-11-21T14:05:12Z",
            ),
            edge(
                VerdictWord::Deny,
                denied_flow().decision,
                37,
                "2026-11-21T14:04:26Z",
            ),
        ],
        window: Window {
            from: "2026-11-21T13:05:00Z".to_owned(),
            to: "2026-11-21T14:05:14Z".to_owned(),
        },
        events_lost: 0,
        evicted: 0,
    }
}

#[test]
fn edges_read_as_a_table_between_workloads() {
    let mut out = Vec::new();
    let now = "2026-11-21T14:05:14Z".parse().unwrap();
    write_edges(&mut out, &Terminal::PLAIN, &edges(), false, now).unwrap();
    let expected = "\
LAST  VERDICT  FROM               TO               PORT      CONNS  WHY
2s    allow    web/deploy/portal  shop/deploy/api  TCP/8080  4,118  allow-web[0]
48s   deny     web/deploy/portal  shop/deploy/api  TCP/8080     37  ingress: no rule admits (near: allow-api[0])
";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
    assert_eq!(
        footer(&edges()),
        "2 edges, 4,155 connections · 13:05:00–14:05:14 UTC · no events lost \
         · explain a row: picket why web/deploy/portal shop/deploy/api:8080"
    );
}

#[test]
fn no_rows_say_why_and_losses_are_in_the_footer() {
    let none = EdgeList {
        items: Vec::new(),
        events_lost: 3,
        ..edges()
    };
    assert_eq!(
        footer(&none),
        "no such connection was seen · 13:05:00–14:05:14 UTC · 3 events lost"
    );
}

#[test]
fn what_repeats_within_a_second_is_one_line_with_a_count() {
    let mut out = Vec::new();
    let mut lines = Lines::default();
    for _ in 0..12 {
        lines
            .push(&mut out, &Terminal::PLAIN, &denied_flow())
            .unwrap();
    }
    lines.end_second(&mut out, &Terminal::PLAIN).unwrap();
    lines
        .push(&mut out, &Terminal::PLAIN, &denied_flow())
        .unwrap();
    let line = "14:05:12  deny   web/portal-1 → shop/api-1 TCP/8080  ingress: no rule admits (near: allow-api[0])\n";
    let expected = format!("{line}          (same, ×11 more in the last second)\n{line}");
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}
