//! What holds of every explanation: it says what `evaluate` says, and its addition admits.

use proptest::prelude::*;

use super::*;
use crate::model::Change;
use crate::random;

/// The cluster after somebody did what the addition says.
fn with_addition(cluster: &Cluster, addition: &Addition) -> Cluster {
    let mut cluster = cluster.clone();
    let direction = addition.direction;
    let policy = if addition.is_new_policy {
        let (policy, findings) = written::policy(&addition.yaml);
        assert_eq!(findings, [], "{}", addition.yaml);
        assert_eq!(policy.name, addition.policy);
        policy
    } else {
        let item = addition.yaml.replace('\n', "\n  ");
        let (mut read, findings) = written::policy(&format!(
            "metadata: {{name: p}}\nspec:\n  policyTypes: [Ingress, Egress]\n  {direction}:\n  {item}"
        ));
        assert_eq!(findings, [], "{}", addition.yaml);
        let mut policy = crate::model::Policy::clone(cluster.policy(&addition.policy).unwrap());
        match direction {
            Direction::Ingress => policy.ingress.append(&mut read.ingress),
            Direction::Egress => policy.egress.append(&mut read.egress),
        }
        policy
    };
    let _touched = cluster.apply(Change::Policy(Box::new(policy)));
    cluster
}

proptest! {
    #[test]
    fn the_verdict_is_that_of_evaluate(
        cluster in random::cluster(),
        packet in random::packet(),
    ) {
        let explanation = explain(&cluster, &packet);
        let decisions = evaluate(&cluster, &packet);
        prop_assert_eq!(explanation.verdict(), decisions.verdict());
        for side in explanation.sides() {
            let is_allowed = side.decision.is_allowed();
            prop_assert_eq!(side.addition.is_none(), is_allowed);
            let is_isolated = !side.isolated_by.is_empty();
            let reason = side.decision.reason;
            // A pod reaches itself and lets its node in, isolated or not.
            let is_expected = matches!(
                (reason, is_isolated),
                (Reason::Rule | Reason::IsolatedNoRule, true)
                    | (Reason::NotIsolated, false)
                    | (Reason::Itself | Reason::Node, _)
            );
            prop_assert!(is_expected, "{reason} {is_isolated}");
        }
    }

    #[test]
    fn every_condition_is_met_exactly_when_the_rule_admits(
        cluster in random::cluster(),
        packet in random::packet(),
    ) {
        for side in explain(&cluster, &packet).sides() {
            for near in &side.nearest {
                prop_assert!(near.failed() > 0, "{near:#?}");
            }
            if let Some(rule) = &side.decision.rule {
                let near = conditions_of(&cluster, &packet, rule).unwrap();
                prop_assert_eq!(near.failed(), 0, "{:#?}", near);
                prop_assert_eq!(near.edits, 0);
            }
        }
    }

    #[test]
    fn the_addition_admits_the_packet_and_takes_nothing_away(
        cluster in random::cluster(),
        packet in random::packet(),
        others in proptest::collection::vec(random::packet(), 20),
    ) {
        for side in explain(&cluster, &packet).sides() {
            let Some(addition) = &side.addition else { continue };
            let after = with_addition(&cluster, addition);
            let decisions = evaluate(&after, &packet);
            let decision = match side.direction {
                Direction::Ingress => decisions.ingress,
                Direction::Egress => decisions.egress,
            };
            prop_assert!(decision.is_allowed(), "{}", addition.yaml);
            for other in &others {
                if evaluate(&cluster, other).verdict() == Verdict::Allow {
                    prop_assert_eq!(evaluate(&after, other).verdict(), Verdict::Allow);
                }
            }
        }
    }
}
