//! Rule ids: one for each `namespace/policy/direction/index`, kept with the pins.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use agent_common::maps::{IdKind, NAME_RULE, NameKey};

use super::ids::Ids;
use crate::model::{Direction, ObjectName, RuleId, RuleRef};
use crate::plan::Write;

/// Rule ids and who may still hold one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    by_ref: HashMap<RuleRef, RuleId>,
    by_id: HashMap<RuleId, Known>,
    unnamed: Vec<RuleId>,
    /// Rules that lost a holder: their names may go.
    loosened: BTreeSet<RuleId>,
    /// Slots an earlier agent left: their connections may hold any rule it left.
    adopted_slots: BTreeSet<u32>,
}

#[derive(Clone, Debug)]
struct Known {
    rule: RuleRef,
    /// Sets with this rule, rows at rest included.
    sets: usize,
    /// Open slots whose connections may carry this rule.
    slots: BTreeSet<u32>,
    is_named: bool,
    is_adopted: bool,
}

impl Rules {
    /// Takes over the names an earlier agent left.
    pub(crate) fn adopt<'a>(
        &mut self,
        names: impl Iterator<Item = (&'a NameKey, &'a String)>,
        slots: &BTreeSet<u32>,
    ) {
        self.adopted_slots.clone_from(slots);
        for (key, text) in names {
            if key.kind != NAME_RULE {
                continue;
            }
            let Some(rule) = parse(text) else { continue };
            let id = RuleId(key.id);
            self.by_ref.insert(rule.clone(), id);
            let known = Known {
                rule,
                sets: 0,
                slots: BTreeSet::new(),
                is_named: true,
                is_adopted: true,
            };
            self.by_id.insert(id, known);
            self.loosened.insert(id);
        }
    }

    /// The id of a rule; a fresh one at first sight.
    pub(crate) fn intern(&mut self, rule: RuleRef, ids: &mut Ids) -> RuleId {
        if let Some(id) = self.by_ref.get(&rule) {
            return *id;
        }
        let id = RuleId(ids.take(IdKind::Rule));
        self.by_ref.insert(rule.clone(), id);
        let known = Known {
            rule,
            sets: 0,
            slots: BTreeSet::new(),
            is_named: false,
            is_adopted: false,
        };
        self.by_id.insert(id, known);
        self.unnamed.push(id);
        self.loosened.insert(id);
        id
    }

    /// What a rule id means.
    pub(crate) fn get(&self, id: RuleId) -> Option<&RuleRef> {
        self.by_id.get(&id).map(|known| &known.rule)
    }

    /// A set with this rule was made.
    pub(crate) fn hold(&mut self, id: RuleId) {
        if let Some(known) = self.by_id.get_mut(&id) {
            known.sets += 1;
        }
    }

    /// A set with this rule is gone, its rows too.
    pub(crate) fn release(&mut self, id: RuleId) {
        if let Some(known) = self.by_id.get_mut(&id) {
            known.sets = known.sets.saturating_sub(1);
            self.loosened.insert(id);
        }
    }

    /// Connections in this slot may carry the rule from now on.
    pub(crate) fn used_by_slot(&mut self, id: RuleId, slot: u32) {
        if let Some(known) = self.by_id.get_mut(&id) {
            known.slots.insert(slot);
        }
    }

    /// The slot's connections are gone.
    pub(crate) fn slot_closed(&mut self, slot: u32) {
        self.adopted_slots.remove(&slot);
        for (id, known) in &mut self.by_id {
            if known.slots.remove(&slot) || (known.is_adopted && self.adopted_slots.is_empty()) {
                self.loosened.insert(*id);
            }
        }
    }

    /// The names that must be in place before the rules are used.
    pub(crate) fn names(&mut self) -> Vec<Write> {
        let mut writes = Vec::new();
        for id in std::mem::take(&mut self.unnamed) {
            if let Some(known) = self.by_id.get_mut(&id)
                && !known.is_named
                && known.sets > 0
            {
                known.is_named = true;
                writes.push(Write::PutName(key(id), known.rule.to_string()));
            }
        }
        writes
    }

    /// Names that nothing can refer to any more; the ids are forgotten and never used again.
    pub(crate) fn forgotten(&mut self) -> Vec<Write> {
        let mut writes = Vec::new();
        for id in std::mem::take(&mut self.loosened) {
            let Some(known) = self.by_id.get(&id) else {
                continue;
            };
            let is_held = known.sets > 0
                || !known.slots.is_empty()
                || (known.is_adopted && !self.adopted_slots.is_empty());
            if is_held {
                continue;
            }
            if known.is_named {
                writes.push(Write::DeleteName(key(id)));
            }
            self.by_ref.remove(&known.rule);
            self.by_id.remove(&id);
        }
        writes
    }
}

const fn key(id: RuleId) -> NameKey {
    NameKey {
        kind: NAME_RULE,
        id: id.0,
    }
}

fn parse(text: &str) -> Option<RuleRef> {
    let mut parts = text.split('/');
    let namespace = parts.next()?;
    let name = parts.next()?;
    let word = parts.next()?;
    let direction = Direction::ALL
        .into_iter()
        .find(|direction| direction.as_label() == word)?;
    let index = parts.next()?.parse().ok()?;
    parts.next().is_none().then(|| RuleRef {
        policy: ObjectName::new(Arc::from(namespace), Arc::from(name)),
        direction,
        index,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(index: u32) -> RuleRef {
        RuleRef {
            policy: ObjectName::new("payments", "allow-api"),
            direction: Direction::Egress,
            index,
        }
    }

    #[test]
    fn a_rule_keeps_its_id_over_a_restart() {
        let mut ids = Ids::new([0; 8]);
        let mut rules = Rules::default();
        let id = rules.intern(rule(3), &mut ids);
        rules.hold(id);
        let names = rules.names();
        let [Write::PutName(key, text)] = names.as_slice() else {
            panic!("one name expected, got {names:?}")
        };
        let mut after = Rules::default();
        after.adopt([(key, text)].into_iter(), &BTreeSet::new());
        assert_eq!(after.intern(rule(3), &mut ids), id);
        assert_ne!(after.intern(rule(4), &mut ids), id);
    }

    #[test]
    fn a_name_goes_when_neither_set_nor_slot_can_refer_to_it() {
        let mut ids = Ids::new([0; 8]);
        let mut rules = Rules::default();
        let id = rules.intern(rule(0), &mut ids);
        rules.hold(id);
        assert_eq!(rules.names().len(), 1);
        rules.used_by_slot(id, 5);
        rules.release(id);
        assert_eq!(rules.forgotten(), vec![], "a connection may hold it");
        rules.slot_closed(5);
        assert_eq!(rules.forgotten(), vec![Write::DeleteName(key(id))]);
        assert_eq!(rules.get(id), None);
    }
}
