//! One packet's judgements, in the words that leave the process.

use agent_policy::cluster::Cluster;
use agent_policy::evaluate::{self, Packet};
use agent_policy::model::{Direction, Policy};

use super::resolve::End;
use crate::dto::{Isolating, Judgement};

/// Leaving the source, then entering the destination.
pub(super) fn judgements(
    cluster: &Cluster,
    from: &End,
    to: &End,
    packet: &Packet,
) -> Vec<Judgement> {
    let decisions = evaluate::evaluate(cluster, packet);
    [
        (Direction::Egress, from, decisions.egress),
        (Direction::Ingress, to, decisions.ingress),
    ]
    .into_iter()
    .map(|(direction, end, decision)| {
        let isolated_by = match end {
            End::Pod(pod) => evaluate::isolating(cluster, pod, direction)
                .into_iter()
                .map(|policy| isolating(policy, direction))
                .collect(),
            End::Address(_) => Vec::new(),
        };
        Judgement {
            direction: direction.into(),
            verdict: decision.verdict().into(),
            reason: Some(decision.reason.as_label().to_owned()),
            rule: decision.rule.as_ref().map(ToString::to_string),
            note: note(end),
            isolated_by,
            nearest: Vec::new(),
        }
    })
    .collect()
}

/// What is said of an end that has no policy.
fn note(end: &End) -> Option<String> {
    match end {
        End::Pod(pod) if pod.host_network => {
            Some("shares its node's network: no policy applies to it".to_owned())
        }
        End::Pod(_) => None,
        End::Address(_) => Some("no pod: no policy applies to it".to_owned()),
    }
}

fn isolating(policy: &Policy, direction: Direction) -> Isolating {
    Isolating {
        policy: policy.name.to_string(),
        selects: "its pods".to_owned(),
        rules: policy.rules(direction).len(),
    }
}
