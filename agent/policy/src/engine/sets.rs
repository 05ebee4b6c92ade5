//! Which sets local endpoints are to have.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Engine;
use super::endpoints::Endpoint;
use crate::cluster::is_selectable;
use crate::compile::policies::Parts;
use crate::compile::policy_sets::{SetId, SetRules};
use crate::model::Direction;

/// The rules an endpoint is to have by direction; `None` where nothing isolates it.
type Wanted = (u32, [Option<SetRules>; 2]);

impl Engine {
    /// Brings the slots and sets of endpoints that something touched up to date.
    pub(super) fn choose_sets(&mut self) {
        let touched: Vec<u32> = self.touched.iter().copied().collect();
        for ifindex in &touched {
            self.begin_anew_if_moved(*ifindex);
            if let Some(endpoint) = self.endpoints.get_mut(*ifindex)
                && let Some(pod) = &endpoint.pod
                && endpoint.slot == 0
            {
                endpoint.slot = self.slots.take(pod).unwrap_or_default();
            }
        }
        let wanted: Vec<Wanted> = touched
            .into_iter()
            .filter_map(|ifindex| self.wanted_rules(ifindex))
            .collect();
        self.compiler.settle_lists(&self.cluster);
        let left = self.sets_left(&wanted);
        for (ifindex, rules) in wanted {
            let [ingress, egress] = rules;
            let chosen = [
                self.choose(ifindex, Direction::Ingress, ingress, &left),
                self.choose(ifindex, Direction::Egress, egress, &left),
            ];
            let Some(endpoint) = self.endpoints.get_mut(ifindex) else {
                continue;
            };
            let before = std::mem::replace(&mut endpoint.wanted, chosen);
            for set in before {
                if let Some(set) = self.compiler.sets.get_mut(set) {
                    set.wanted -= 1;
                }
                self.compiler.drop_set_if_unused(set);
            }
        }
    }

    /// An endpoint with other addresses takes another slot, and leaves its flows behind.
    fn begin_anew_if_moved(&mut self, ifindex: u32) {
        if !self.endpoints.get(ifindex).is_some_and(Endpoint::has_moved) {
            return;
        }
        if let Some(moved) = self.endpoints.remove(ifindex) {
            self.withdraw_later(&moved);
            self.endpoints.insert(Endpoint {
                pod: moved.pod,
                ..Endpoint::new(moved.local)
            });
        }
    }

    /// A local pod keeps its identity until its interface goes: a pod object that went, or that
    /// is completed, changes nothing. Pods of the host's network are no endpoints.
    pub(super) fn identify(&mut self, ifindex: u32) {
        let Some(endpoint) = self.endpoints.get(ifindex) else {
            return;
        };
        if let Some(pod) = self.cluster.pod(&endpoint.local.uid)
            && is_selectable(pod)
            && endpoint.pod.as_ref() != Some(pod)
        {
            self.endpoints.identify(ifindex, Arc::clone(pod));
        }
    }

    fn wanted_rules(&mut self, ifindex: u32) -> Option<Wanted> {
        let pod = self.endpoints.get(ifindex)?.pod.clone()?;
        let (policies, atoms, names, rules, ids) = self.compiler.set_parts();
        let mut parts = Parts {
            cluster: &self.cluster,
            policies,
            atoms,
            names,
            rules,
            ids,
        };
        let rules = Direction::ALL.map(|direction| parts.rules_of(&pod, direction));
        Some((ifindex, rules))
    }

    /// Sets that some published endpoint leaves. Nobody may come to them in the same plan: while
    /// peers move, a transitional class has one verdict for those who leave and another for those
    /// who come.
    fn sets_left(&self, wanted: &[Wanted]) -> BTreeSet<SetId> {
        let mut left = BTreeSet::new();
        for (ifindex, rules) in wanted {
            let published = self.endpoints.get(*ifindex).and_then(|endpoint| {
                let published = endpoint.published.as_ref()?;
                Some(published.sets())
            });
            for (set, rules) in published.into_iter().flatten().zip(rules) {
                if set != SetId::NOT_ISOLATED && self.rules_of(set) != rules.as_ref() {
                    left.insert(set);
                }
            }
        }
        left
    }

    fn rules_of(&self, set: SetId) -> Option<&SetRules> {
        self.compiler.sets.get(set).map(|set| &set.rules)
    }

    /// The set with these rules, held: the one in force if it has them, else one that endpoints
    /// may come to.
    fn choose(
        &mut self,
        ifindex: u32,
        direction: Direction,
        rules: Option<SetRules>,
        left: &BTreeSet<SetId>,
    ) -> SetId {
        let Some(rules) = rules else {
            return SetId::NOT_ISOLATED;
        };
        let of = |sets: [SetId; 2]| match direction {
            Direction::Ingress => sets[0],
            Direction::Egress => sets[1],
        };
        let endpoint = self.endpoints.get(ifindex);
        let published = endpoint.and_then(|endpoint| endpoint.published.as_ref());
        let in_force = published
            .map(|published| of(published.sets()))
            .filter(|set| self.rules_of(*set) == Some(&rules));
        let shared = self
            .compiler
            .sets
            .find(&rules)
            .filter(|set| !left.contains(set));
        let found = if self.is_compacting {
            shared.or(in_force)
        } else {
            in_force.or(shared)
        };
        let set = found.unwrap_or_else(|| self.compiler.make_set(&self.cluster, &rules));
        if let Some(set) = self.compiler.sets.get_mut(set) {
            set.wanted += 1;
        }
        set
    }
}
