//! The effective policy of a pod: what isolates it, and every rule that admits something.

use std::collections::BTreeMap;

use agent_policy::cluster::Cluster;
use agent_policy::evaluate;
use agent_policy::model::{Direction, Pod, RuleRef};

use super::judge;
use super::words;
use crate::dto::{EffectiveDirection, EffectivePolicy, EffectiveRule};

/// Both directions of a pod; `hits` are new connections by rule, where they are known.
pub fn effective(cluster: &Cluster, pod: &Pod, hits: &BTreeMap<String, u64>) -> EffectivePolicy {
    let directions = [Direction::Ingress, Direction::Egress].map(|direction| {
        let isolating = evaluate::isolating(cluster, pod, direction);
        let rules = isolating.iter().flat_map(|policy| {
            (0..)
                .zip(policy.rules(direction))
                .map(move |(index, rule)| {
                    let name = RuleRef {
                        policy: policy.name.clone(),
                        direction,
                        index,
                    }
                    .to_string();
                    EffectiveRule {
                        connections: hits.get(&name).copied(),
                        rule: name,
                        peers: words::peers(&rule.peers),
                        ports: words::ports(&rule.ports),
                    }
                })
        });
        EffectiveDirection {
            direction: direction.into(),
            rules: rules.collect(),
            isolated_by: isolating
                .iter()
                .map(|policy| judge::isolating(policy, direction))
                .collect(),
        }
    });
    EffectivePolicy {
        endpoint: pod.name.to_string(),
        directions: directions.into(),
    }
}
