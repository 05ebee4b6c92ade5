//! Policies of local endpoints, with their lists as atoms, and the rules an endpoint gets by them.

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
}

/// The atoms of a policy's rules by direction; `None` for everyone.
#[derive(Clone, Debug)]
struct Compiled {
    atoms: [Vec<Option<AtomId>>; 2],
}

impl Policies {
    /// The policy is no longer what it was.
    pub(crate) fn forget(&mut self, name: &ObjectName, atoms: &mut Atoms) {
        if let Some(compiled) = self.by_name.remove(name) {
            for atom in compiled.atoms.iter().flatten().flatten() {
                atoms.forget_mention(*atom);
            }
        }
    }

    fn atom(
        &mut self,
        policy: &Policy,
        direction: Direction,
        index: usize,
        atoms: &mut Atoms,
    ) -> Option<AtomId> {
        if !self.by_name.contains_key(&policy.name) {
            let compiled = Direction::ALL.map(|direction| {
                let rules = policy.rules(direction).iter();
                rules
                    .map(|rule| match &rule.peers {
                        Peers::All => None,
                        Peers::Any(peers) => Some(atoms.mention(AtomContent::of(policy, peers))),
                    })
                    .collect()
            });
            self.by_name
                .insert(policy.name.clone(), Compiled { atoms: compiled });
        }
        let compiled = self.by_name.get(&policy.name)?;
        let list = match direction {
            Direction::Ingress => &compiled.atoms[0],
            Direction::Egress => &compiled.atoms[1],
        };
        *list.get(index)?
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
