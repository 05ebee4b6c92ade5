//! Rule ids: one for each `namespace/policy/direction/index`, kept with the pins.
//!
//! An id is a row of `RULE_HITS` and a generation. Rows are used again, the one that is free the
//! longest first; ids never are, so what still shows an old id (a connection, a refusal, an event)
//! names nobody. A rule is forgotten when no set has it and the rows that did have rested, so
//! nothing counts in its row any more either.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use agent_common::maps::{
    FIRST_RULE_ROW, IdKind, NAME_RULE, NameKey, RULE_ROWS, hit_row, rule_generation, rule_id,
    rule_row,
};
use agent_common::verdict::Reason;

use super::ids::Ids;
use crate::hash::HashMap;
use crate::model::{Direction, ObjectName, RuleId, RuleRef};
use crate::plan::Write;

/// Rule ids and who may still use one.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    by_ref: HashMap<RuleRef, RuleId>,
    by_id: HashMap<RuleId, Known>,
    unnamed: Vec<RuleId>,
    /// Rules that lost a holder: their names may go.
    loosened: BTreeSet<RuleId>,
    /// How many have a name in NAMES.
    named: usize,
    rows: FreeRows,
}

#[derive(Clone, Debug)]
struct Known {
    rule: RuleRef,
    /// Sets with this rule, rows at rest included.
    sets: usize,
    is_named: bool,
}

/// Rows of `RULE_HITS` that no rule has, each with the generation it was last used in.
#[derive(Clone, Debug)]
struct FreeRows {
    rows: VecDeque<(u32, u32)>,
    /// The generation ids are given in; 0 before the first.
    generation: u32,
}

impl FreeRows {
    /// A fresh id: with the row that is free the longest, or, when there is none, with the row in
    /// which such rules are counted together.
    fn take(&mut self, direction: Direction, ids: &mut Ids) -> RuleId {
        let Some((row, last)) = self.rows.pop_front() else {
            self.generation = ids.take(IdKind::Rule);
            let shared = hit_row(RuleId::NONE, Reason::Rule, direction);
            return rule_id(shared, self.generation);
        };
        if self.generation <= last {
            self.generation = ids.take(IdKind::Rule);
        }
        rule_id(row, self.generation)
    }

    fn give_back(&mut self, id: RuleId) {
        if rule_row(id) >= FIRST_RULE_ROW {
            self.rows.push_back((rule_row(id), rule_generation(id)));
        }
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            by_ref: HashMap::default(),
            by_id: HashMap::default(),
            unnamed: Vec::new(),
            loosened: BTreeSet::new(),
            named: 0,
            rows: FreeRows {
                rows: (FIRST_RULE_ROW..RULE_ROWS).map(|row| (row, 0)).collect(),
                generation: 0,
            },
        }
    }
}

impl Rules {
    /// Takes over the names an earlier agent left. The rules count as held until each was
    /// [released](Self::release) once: the earlier agent's rows may have them.
    pub(crate) fn adopt<'a>(
        &mut self,
        names: impl Iterator<Item = (&'a NameKey, &'a String)>,
    ) -> Vec<RuleId> {
        let mut adopted = Vec::new();
        for (key, text) in names {
            if key.kind != NAME_RULE {
                continue;
            }
            let Some(rule) = parse(text) else { continue };
            let id = RuleId(key.id);
            self.by_ref.insert(rule.clone(), id);
            let known = Known {
                rule,
                sets: 1,
                is_named: true,
            };
            self.by_id.insert(id, known);
            adopted.push(id);
        }
        self.named = adopted.len();
        let taken: BTreeSet<u32> = adopted.iter().map(|id| rule_row(*id)).collect();
        self.rows.rows.retain(|(row, _)| !taken.contains(row));
        adopted
    }

    /// The id of a rule; a fresh one at first sight.
    pub(crate) fn intern(&mut self, rule: RuleRef, ids: &mut Ids) -> RuleId {
        if let Some(id) = self.by_ref.get(&rule) {
            return *id;
        }
        let id = self.rows.take(rule.direction, ids);
        self.by_ref.insert(rule.clone(), id);
        let known = Known {
            rule,
            sets: 0,
            is_named: false,
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

    /// Every rule there is.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (RuleId, &RuleRef)> {
        self.by_id.iter().map(|(id, known)| (*id, &known.rule))
    }

    /// Names in NAMES once every rule in use has one.
    pub(crate) fn names_wanted(&self) -> usize {
        let new = self.unnamed.iter().filter(|id| self.is_to_be_named(**id));
        self.named + new.count()
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

    /// What must be in place before the rules are used: rows that start at zero, and names.
    pub(crate) fn opened(&mut self) -> Vec<Write> {
        let mut new = std::mem::take(&mut self.unnamed);
        new.retain(|id| self.is_to_be_named(*id));
        let mut writes = Vec::new();
        let own = new.iter().filter(|id| rule_row(**id) >= FIRST_RULE_ROW);
        writes.extend(own.map(|id| Write::OpenRule(*id)));
        for id in new {
            if let Some(known) = self.by_id.get_mut(&id) {
                known.is_named = true;
                self.named += 1;
                writes.push(Write::PutName(key(id), known.rule.to_string()));
            }
        }
        writes
    }

    /// True once a plan names it.
    pub(crate) fn is_named(&self, id: RuleId) -> bool {
        self.by_id.get(&id).is_some_and(|known| known.is_named)
    }

    fn is_to_be_named(&self, id: RuleId) -> bool {
        let known = self.by_id.get(&id);
        known.is_some_and(|known| !known.is_named && known.sets > 0)
    }

    /// Names that nothing in force refers to any more. Their rows are free.
    pub(crate) fn forgotten(&mut self) -> Vec<Write> {
        let mut writes = Vec::new();
        for id in std::mem::take(&mut self.loosened) {
            let Some(known) = self.by_id.get(&id) else {
                continue;
            };
            if known.sets > 0 {
                continue;
            }
            if known.is_named {
                self.named -= 1;
                writes.push(Write::DeleteName(key(id)));
            }
            self.by_ref.remove(&known.rule);
            self.by_id.remove(&id);
            self.rows.give_back(id);
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
        let writes = rules.opened();
        let [Write::OpenRule(opened), Write::PutName(key, text)] = writes.as_slice() else {
            panic!("a row and a name expected, got {writes:?}")
        };
        assert_eq!((*opened, key.id), (id, id.0));
        let mut after = Rules::default();
        assert_eq!(after.adopt([(key, text)].into_iter()), vec![id]);
        assert_eq!(after.intern(rule(3), &mut ids), id);
        assert_eq!(after.names_wanted(), 1);
        let other = after.intern(rule(4), &mut ids);
        assert_ne!(rule_row(other), rule_row(id));
        after.release(id);
        assert_eq!(after.forgotten(), vec![Write::DeleteName(*key)]);
    }

    #[test]
    fn a_rule_is_forgotten_when_no_set_has_it_and_its_id_never_comes_back() {
        let mut ids = Ids::new([0; 8]);
        let mut rules = Rules::default();
        let mut seen = BTreeSet::new();
        for round in 0..3 * RULE_ROWS {
            let id = rules.intern(rule(round), &mut ids);
            assert!(seen.insert(id), "{id:?} twice");
            assert!(rule_row(id) >= FIRST_RULE_ROW, "rows come back");
            rules.hold(id);
            assert_eq!(rules.opened().len(), 2);
            rules.hold(id);
            rules.release(id);
            assert_eq!(rules.forgotten(), vec![], "a set has it");
            rules.release(id);
            assert_eq!(rules.forgotten(), vec![Write::DeleteName(key(id))]);
            assert_eq!(rules.get(id), None);
        }
        assert_eq!(ids.check(), Ok(()));
    }

    #[test]
    fn rules_beyond_the_rows_share_one_and_have_ids_of_their_own() {
        let mut ids = Ids::new([0; 8]);
        let mut rules = Rules::default();
        let all: BTreeSet<RuleId> = (0..RULE_ROWS)
            .map(|index| rules.intern(rule(index), &mut ids))
            .collect();
        assert_eq!(all.len(), RULE_ROWS as usize);
        let shared: Vec<&RuleId> = all
            .iter()
            .filter(|id| rule_row(**id) < FIRST_RULE_ROW)
            .collect();
        assert_eq!(shared.len(), FIRST_RULE_ROW as usize);
        for id in &all {
            rules.hold(*id);
        }
        let opened = rules.opened();
        let rows = opened
            .iter()
            .filter(|write| matches!(write, Write::OpenRule(_)));
        assert_eq!(rows.count(), (RULE_ROWS - FIRST_RULE_ROW) as usize);
    }
}
