//! Policies of local endpoints, with their lists as atoms, and the rules an endpoint gets by them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::atoms::{AtomContent, AtomId, Atoms};
use super::ids::Ids;
use super::policy_sets::{Named, RulePorts, SetRule, SetRules};
use super::port_names::PortNames;
use super::rules::Rules;
use crate::cluster::Cluster;
use crate::hash::HashMap;
use crate::model::{Direction, ObjectName, Peers, Pod, Policy, RuleRef};

/// Policies that select a local endpoint, or did when they were last looked at.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policies {
    by_name: HashMap<ObjectName, Compiled>,
    /// Those that may have changed since.
    stale: BTreeMap<ObjectName, Compiled>,
}

/// The atoms of a policy's rules by direction; `None` for everyone.
#[derive(Clone, Debug)]
struct Compiled {
    atoms: [Vec<Option<AtomId>>; 2],
}

impl Compiled {
    fn atom(&self, direction: Direction, index: usize) -> Option<AtomId> {
        let list = match direction {
            Direction::Ingress => &self.atoms[0],
            Direction::Egress => &self.atoms[1],
        };
        *list.get(index)?
    }

    fn forget_mentions(&self, atoms: &mut Atoms) {
        for atom in self.atoms.iter().flatten().flatten() {
            atoms.forget_mention(*atom);
        }
    }
}

impl Policies {
    /// The policy may no longer be what it was.
    pub(crate) fn doubt(&mut self, name: &ObjectName) {
        if let Some((name, compiled)) = self.by_name.remove_entry(name) {
            self.stale.insert(name, compiled);
        }
    }

    /// All that have one of these atoms may no longer be what they were.
    pub(crate) fn doubt_those_with(&mut self, atoms: &BTreeSet<AtomId>) {
        let has = |compiled: &Compiled| {
            let mut all = compiled.atoms.iter().flatten().flatten();
            all.any(|atom| atoms.contains(atom))
        };
        let those = self.by_name.extract_if(|_, compiled| has(compiled));
        self.stale.extend(those);
    }

    /// Forgets what policies were that have changed and select nobody here any more.
    pub(crate) fn forget_stale(&mut self, atoms: &mut Atoms) {
        for compiled in std::mem::take(&mut self.stale).into_values() {
            compiled.forget_mentions(atoms);
        }
    }

    fn atom(
        &mut self,
        policy: &Policy,
        direction: Direction,
        index: usize,
        atoms: &mut Atoms,
    ) -> Option<AtomId> {
        if let Some(compiled) = self.by_name.get(&policy.name) {
            return compiled.atom(direction, index);
        }
        let before = self.stale.remove(&policy.name);
        let compiled = Compiled {
            atoms: Direction::ALL.map(|direction| {
                let rules = policy.rules(direction).iter().enumerate();
                rules
                    .map(|(index, rule)| {
                        let Peers::Any(peers) = &rule.peers else {
                            return None;
                        };
                        let before = before.as_ref();
                        let before = before.and_then(|before| before.atom(direction, index));
                        Some(atoms.mention(AtomContent::of(policy, peers), before))
                    })
                    .collect()
            }),
        };
        // After the new mentions: what both have stays.
        if let Some(before) = before {
            before.forget_mentions(atoms);
        }
        let found = compiled.atom(direction, index);
        self.by_name.insert(policy.name.clone(), compiled);
        found
    }
}

/// What sets are built from.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) policies: &'a mut Policies,
    pub(crate) atoms: &'a mut Atoms,
    pub(crate) names: &'a mut PortNames,
    pub(crate) rules: &'a mut Rules,
    pub(crate) ids: &'a mut Ids,
}

impl Parts<'_> {
    /// The rules that judge a pod in a direction, in precedence order; `None` when nothing
    /// isolates it.
    pub(crate) fn rules_of(&mut self, pod: &Pod, direction: Direction) -> Option<SetRules> {
        let policies = self.cluster.policies_selecting(pod, direction);
        if policies.is_empty() {
            return None;
        }
        let mut list = Vec::new();
        for policy in policies {
            for (place, rule) in policy.rules(direction).iter().enumerate() {
                let ports = RulePorts::of(&rule.ports, |protocol, name| match direction {
                    // The destination is the endpoint itself.
                    Direction::Ingress => Named::Here(
                        pod.ports
                            .iter()
                            .filter(|port| port.protocol == protocol && port.name == name)
                            .map(|port| port.port)
                            .collect(),
                    ),
                    Direction::Egress => Named::AtPeer(self.names.intern(protocol, name)),
                });
                let is_nobody = matches!(&rule.peers, Peers::Any(peers) if peers.is_empty());
                if ports.is_nothing() || is_nobody {
                    continue;
                }
                let atom = match &rule.peers {
                    Peers::All => None,
                    Peers::Any(_) => {
                        let atom = self.policies.atom(policy, direction, place, self.atoms);
                        // A list always has an atom; without one it must not become everyone.
                        let Some(atom) = atom else { continue };
                        Some(atom)
                    }
                };
                let rule = RuleRef {
                    policy: policy.name.clone(),
                    direction,
                    index: u32::try_from(place).unwrap_or(u32::MAX),
                };
                list.push(SetRule {
                    rule: self.rules.intern(rule, self.ids),
                    atom,
                    ports: Arc::new(ports),
                });
            }
        }
        Some(list.into())
    }
}
