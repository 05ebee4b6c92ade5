//! How explanations read, word for word.

use super::*;
use crate::dto::{Addition, Condition, DirectionWord, Isolating, NearRule, Party};

fn workload(namespace: &str, workload: &str) -> Party {
    Party {
        namespace: Some(namespace.to_owned()),
        workload: Some(workload.to_owned()),
        ..Party::default()
    }
}

fn denied() -> Explanation {
    let condition = |condition: &str, holds, wants: &str, has: &str| Condition {
        condition: condition.to_owned(),
        holds,
        wants: wants.to_owned(),
        has: Some(has.to_owned()),
    };
    Explanation {
        from: workload("web", "Deployment/portal"),
        to: workload("payments", "Deployment/payments-api"),
        protocol: "TCP".to_owned(),
        port: Some(8080),
        port_name: None,
        verdict: VerdictWord::Deny,
        partly: false,
        pairs: 2,
        allowed_pairs: 0,
        judgements: vec![
            Judgement {
                direction: DirectionWord::Egress,
                verdict: VerdictWord::Allow,
                reason: Some("not-isolated".to_owned()),
                rule: None,
                note: None,
                isolated_by: Vec::new(),
                nearest: Vec::new(),
                suspects: Vec::new(),
                addition: None,
            },
            Judgement {
                direction: DirectionWord::Ingress,
                verdict: VerdictWord::Deny,
                reason: Some("isolated-no-rule".to_owned()),
                rule: None,
                note: None,
                isolated_by: vec![
                    Isolating {
                        policy: "payments/default-deny-ingress".to_owned(),
                        selects: "every pod".to_owned(),
                        rules: 0,
                    },
                    Isolating {
                        policy: "payments/allow-case-api".to_owned(),
                        selects: "app=payments-api".to_owned(),
                        rules: 1,
                    },
                ],
                nearest: vec![NearRule {
                    rule: "payments/allow-case-api/ingress/0".to_owned(),
                    failed: vec!["namespace".to_owned()],
                    conditions: vec![
                        condition("port", true, "TCP/8080", "TCP/8080"),
                        condition(
                            "namespace",
                            false,
                            "name=case-management",
                            "web has tier=edge",
                        ),
                    ],
                }],
                suspects: vec!["the namespace has another label".to_owned()],
                addition: Some(Addition {
                    policy: "payments/allow-case-api".to_owned(),
                    is_new_policy: false,
                    field: Some("spec.ingress".to_owned()),
                    yaml: "- from:\n  - podSelector: {}\n".to_owned(),
                    caution: Some("admits every pod".to_owned()),
                }),
            },
        ],
        observed: None,
    }
}

fn text(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
    let mut out = Vec::new();
    write(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn why_names_both_directions_the_isolating_policies_the_miss_and_the_fix() {
    let expected = "\
✗ DENIED   web/deploy/portal → payments/deploy/payments-api   TCP/8080

  1  leaving web/deploy/portal              allowed  not isolated for egress: no policy selects it
  2  entering payments/deploy/payments-api  DENIED   isolated for ingress, and no rule admits this

  isolated by  payments/default-deny-ingress  selects every pod, has no rules
               payments/allow-case-api        selects app=payments-api, 1 rule

  nearest rule payments/allow-case-api  ingress[0]
               ✓ port       TCP/8080
               ✗ namespace  wants name=case-management  web has tier=edge

  ! the namespace has another label

  to admit it, add to payments/allow-case-api under spec.ingress:
      - from:
        - podSelector: {}
  ! admits every pod
";
    assert_eq!(
        text(|out| write_why(out, &Terminal::PLAIN, &denied())),
        expected
    );
}

#[test]
fn can_is_three_lines() {
    let expected = "\
✗ no   web/deploy/portal → payments/deploy/payments-api   TCP/8080
        egress   yes  not isolated
        ingress  no   isolated by default-deny-ingress, allow-case-api; nearest allow-case-api[0] wants namespace name=case-management
";
    assert_eq!(
        text(|out| write_can(out, &Terminal::PLAIN, &denied())),
        expected
    );
}

#[test]
fn what_only_some_replicas_may_is_partly_and_not_yes() {
    let partly = Explanation {
        partly: true,
        allowed_pairs: 1,
        ..denied()
    };
    let text = text(|out| write_can(out, &Terminal::PLAIN, &partly));
    assert!(text.starts_with("~ partly   web/"), "{text}");
    assert!(text.contains("1 of 2 pairs of pods may"), "{text}");
    assert_eq!(outcome(partly.verdict), Outcome::No);
}

#[test]
fn refusals_that_were_seen_are_in_the_headline() {
    let observed = Observed {
        denied_packets: 37,
        first: Some("2026-11-21T13:00:00Z".to_owned()),
        last: Some("2026-11-21T13:59:12Z".to_owned()),
        ..Observed::default()
    };
    let now = "2026-11-21T14:00:00Z".parse().unwrap();
    assert_eq!(
        observed_text(&observed, now),
        "refused 37 times in 60m, last 48s ago"
    );
    assert_eq!(observed_text(&Observed::default(), now), "no refusal seen");
}
