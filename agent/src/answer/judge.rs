//! One packet's judgements, in the words that leave the process.

use agent_policy::cluster::Cluster;
use agent_policy::evaluate::{self, Decisions, Packet};
use agent_policy::explain::{self, Addition, NearRule, Party, Side};
use agent_policy::model::{Direction, Policy};

use super::words;
use crate::dto;

/// Leaving the source, then entering the destination.
pub(super) fn judgements(
    cluster: &Cluster,
    packet: &Packet,
    decisions: Decisions,
) -> Vec<dto::Judgement> {
    explain::explain_decisions(cluster, packet, decisions)
        .sides()
        .into_iter()
        .map(judgement)
        .collect()
}

/// What policy says on one side only, of a packet that the kernel saw: egress at the source,
/// ingress at the destination. The kernel knows its node's own traffic by origin, so what shows the
/// node's address here was only forwarded.
pub fn judgement_of(cluster: &Cluster, packet: &Packet, direction: Direction) -> dto::Judgement {
    let decisions = evaluate::by_policy(cluster, packet);
    let explained = explain::explain_decisions(cluster, packet, decisions);
    judgement(match direction {
        Direction::Ingress => &explained.ingress,
        Direction::Egress => &explained.egress,
    })
}

fn judgement(side: &Side) -> dto::Judgement {
    dto::Judgement {
        direction: side.direction.into(),
        verdict: side.decision.verdict().into(),
        reason: Some(side.decision.reason.as_label().to_owned()),
        rule: side.decision.rule.as_ref().map(ToString::to_string),
        note: match &side.endpoint {
            Party::Pod(_) => behind(side),
            Party::Node { .. } => Some("a node's address: no policy applies to it".to_owned()),
            Party::World(_) => Some("no pod: no policy applies to it".to_owned()),
        },
        isolated_by: side
            .isolated_by
            .iter()
            .map(|each| dto::Isolating {
                policy: each.policy.to_string(),
                selects: each.selects(),
                rules: each.rules,
            })
            .collect(),
        nearest: side.nearest.iter().map(near_rule).collect(),
        suspects: side.suspects.iter().map(ToString::to_string).collect(),
        addition: side.addition.as_ref().map(addition),
    }
}

/// Backends that are named.
const NAMED: usize = 3;

/// Which of the pods behind a Service decided that nothing goes there; nothing of what goes to its
/// address itself. What goes there, a rule lets go to all of them.
fn behind(side: &Side) -> Option<String> {
    let refused = side.behind.iter().filter(|behind| !behind.is_allowed);
    let refused: Vec<String> = refused.map(ToString::to_string).collect();
    if refused.is_empty() || side.decision.is_allowed() {
        return None;
    }
    let named = refused.get(..NAMED).unwrap_or(&refused).join(", ");
    let more = if refused.len() > NAMED { ", …" } else { "" };
    let (refused, all) = (refused.len(), side.behind.len());
    Some(format!(
        "a Service: {refused} of {all} behind it not allowed: {named}{more}"
    ))
}

fn near_rule(near: &NearRule) -> dto::NearRule {
    let conditions: Vec<dto::Condition> = near
        .conditions
        .iter()
        .map(|each| dto::Condition {
            condition: each.kind.as_label().to_owned(),
            holds: each.is_met,
            wants: each.wants.clone(),
            has: match (each.subject.as_str(), each.has.as_str()) {
                (_, "") => None,
                ("", has) => Some(has.to_owned()),
                (subject, has) => Some(format!("{subject} has {has}")),
            },
        })
        .collect();
    dto::NearRule {
        rule: near.rule.to_string(),
        failed: conditions
            .iter()
            .filter(|each| !each.holds)
            .map(|each| each.condition.clone())
            .collect(),
        conditions,
    }
}

fn addition(addition: &Addition) -> dto::Addition {
    dto::Addition {
        policy: addition.policy.to_string(),
        is_new_policy: addition.is_new_policy,
        field: (!addition.is_new_policy).then(|| format!("spec.{}", addition.direction)),
        yaml: addition.yaml.clone(),
        caution: addition.caution.map(str::to_owned),
    }
}

/// A policy as one that isolates.
pub(super) fn isolating(policy: &Policy, direction: Direction) -> dto::Isolating {
    dto::Isolating {
        policy: policy.name.to_string(),
        selects: words::pods(&policy.pods),
        rules: policy.rules(direction).len(),
    }
}
