//! `RULE_HITS` in the ledger: connections by rule, also of rules whose row is another's by now.

use std::collections::{BTreeMap, HashSet};

use agent_common::maps::rule_row;
use agent_common::{Direction, Reason, RuleId};
use serde::{Deserialize, Serialize};

use super::Ledger;
use crate::reading::Reading;

/// A rule with what it has decided.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Rule {
    namespace: String,
    policy: String,
    direction: u8,
    connections: u64,
}

impl Rule {
    /// From `namespace/policy/direction/index`.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let (namespace, policy, word) = (parts.next()?, parts.next()?, parts.next()?);
        let direction = Direction::ALL
            .into_iter()
            .find(|direction| direction.as_label() == word)?;
        Some(Self {
            namespace: namespace.to_owned(),
            policy: policy.to_owned(),
            direction: direction.index(),
            connections: 0,
        })
    }
}

impl Ledger {
    /// Takes in the counts of rules, but of rows that were cleared meanwhile.
    pub(super) fn take_rules(&mut self, reading: &Reading, cleared: &HashSet<u32>) {
        for (id, rule, connections) in &reading.rule_hits {
            if cleared.contains(&rule_row(*id)) {
                continue;
            }
            let known = self.rules.entry(id.0).or_insert_with(|| Rule {
                namespace: rule.policy.namespace.to_string(),
                policy: rule.policy.name.to_string(),
                direction: rule.direction.index(),
                connections: 0,
            });
            known.connections = known.connections.max(*connections);
        }
        for ((direction, reason), connections) in &reading.allowed {
            let key = (direction.index(), reason.number());
            self.allowed.insert(key, *connections);
        }
    }

    /// A rule's row was cleared; this is what it had.
    pub(super) fn fold_rule(
        &mut self,
        row: u32,
        rule: Option<&(RuleId, String)>,
        connections: u64,
    ) {
        // Whoever had the row is in the ledger when it was ever looked at.
        let known: Vec<u32> = self
            .rules
            .keys()
            .copied()
            .filter(|id| rule_row(RuleId(*id)) == row)
            .collect();
        let latest = known.iter().copied().max();
        for id in known {
            let Some(mut known) = self.rules.remove(&id) else {
                continue;
            };
            if Some(id) == latest {
                known.connections = known.connections.max(connections);
            }
            self.close_rule(known);
        }
        if latest.is_none()
            && let Some(mut known) = rule.and_then(|(_, text)| Rule::parse(text))
        {
            known.connections = connections;
            self.close_rule(known);
        }
    }

    fn close_rule(&mut self, rule: Rule) {
        let key = (rule.namespace, rule.policy, rule.direction);
        *self.closed_rules.entry(key).or_default() += rule.connections;
    }

    /// What policies have decided that are gone goes to nobody's account, which keeps the node's
    /// total and is no series.
    pub(super) fn forget_policies(&mut self, reading: &Reading) {
        let living: HashSet<(&str, &str)> = reading
            .policies
            .iter()
            .map(|(namespace, name, _)| (namespace.as_str(), name.as_str()))
            .collect();
        let closed = std::mem::take(&mut self.closed_rules);
        for ((namespace, policy, direction), connections) in closed {
            let key = if living.contains(&(namespace.as_str(), policy.as_str())) {
                (namespace, policy, direction)
            } else {
                (String::new(), String::new(), direction)
            };
            *self.closed_rules.entry(key).or_default() += connections;
        }
    }

    fn connections(&self) -> impl Iterator<Item = (&str, &str, Direction, u64)> {
        let living = self.rules.values().map(|rule| {
            let key = (rule.namespace.as_str(), rule.policy.as_str());
            (key.0, key.1, rule.direction, rule.connections)
        });
        let closed =
            self.closed_rules
                .iter()
                .map(|((namespace, policy, direction), connections)| {
                    (
                        namespace.as_str(),
                        policy.as_str(),
                        *direction,
                        *connections,
                    )
                });
        living
            .chain(closed)
            .map(|(namespace, policy, direction, connections)| {
                (
                    namespace,
                    policy,
                    Direction::from_index(direction),
                    connections,
                )
            })
    }

    /// New connections by direction and why they were allowed, of the node.
    pub(crate) fn allowed_connections(&self) -> BTreeMap<(Direction, Reason), u64> {
        let by_reason = self
            .allowed
            .iter()
            .filter_map(|((direction, reason), count)| {
                let reason = Reason::from_number(*reason)?;
                Some(((Direction::from_index(*direction), reason), *count))
            });
        let mut total: BTreeMap<_, _> = by_reason.collect();
        for (_, _, direction, connections) in self.connections() {
            *total.entry((direction, Reason::Rule)).or_default() += connections;
        }
        total
    }

    /// New connections by policy and direction, of policies there are; zeros included.
    pub(crate) fn policy_connections(
        &self,
        reading: &Reading,
    ) -> BTreeMap<(String, String, Direction), u64> {
        let mut total = BTreeMap::new();
        for (namespace, name, isolates) in &reading.policies {
            for (direction, isolates) in Direction::ALL.into_iter().zip(isolates) {
                if *isolates && self.living_namespaces.contains(namespace) {
                    total.insert((namespace.clone(), name.clone(), direction), 0);
                }
            }
        }
        for (namespace, policy, direction, connections) in self.connections() {
            let key = (namespace.to_owned(), policy.to_owned(), direction);
            if let Some(sum) = total.get_mut(&key) {
                *sum += connections;
            }
        }
        total
    }
}
