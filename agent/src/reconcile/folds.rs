//! Counts about to be cleared: a row of counters is used again, by another pod or another rule, and
//! what it counted for the one before is read by whoever clears it, right before.
//!
//! By then nobody counts in the row any more, so nothing is missed and nothing is told twice.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use agent_common::maps::{NAME_RULE, NAME_SLOT, NameKey, Traffic, rule_row};
use agent_policy::model::RuleId;
use agent_policy::plan::Write;
use agent_policy::tables::Tables;

use crate::dataplane::{Dataplane, DataplaneError, Dropped};

/// Folds kept at most for whoever keeps totals, who comes every few seconds and has them from then on.
const KEPT: usize = 8_192;

/// What a row, or a slot's rows, had counted when it was cleared.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fold {
    /// Folds are numbered from 1 as they happen.
    pub number: u64,
    /// Of what.
    pub counts: Counts,
}

/// The pod that has, or had, a slot.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Owner {
    /// Its UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
}

impl Owner {
    /// From `uid namespace/pod`.
    fn parse(text: &str) -> Option<Self> {
        let (uid, pod) = text.split_once(' ')?;
        let (namespace, _name) = pod.split_once('/')?;
        Some(Self {
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
        })
    }
}

/// See [`Fold`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Counts {
    /// A pod's traffic.
    Slot {
        /// The slot.
        slot: u32,
        /// Whoever had it; `None` when an earlier agent did not say.
        owner: Option<Owner>,
        /// Let through, by `Direction::index`.
        passed: [Traffic; 2],
        /// Dropped.
        dropped: Vec<Dropped>,
    },
    /// A rule's connections.
    Rule {
        /// The row of `RULE_HITS`.
        row: u32,
        /// The rule and its text; `None` when an earlier agent did not say.
        rule: Option<(RuleId, String)>,
        /// New connections.
        connections: u64,
    },
}

impl Counts {
    fn is_nothing(&self) -> bool {
        match self {
            Self::Slot {
                passed, dropped, ..
            } => passed.iter().all(|one| one.packets == 0) && dropped.is_empty(),
            Self::Rule { connections, .. } => *connections == 0,
        }
    }
}

/// What is to be cleared by a write, as read before it.
#[derive(Debug)]
pub(super) struct Candidate {
    at: usize,
    counts: Counts,
}

/// The latest folds, and whose each row is.
#[derive(Debug, Default)]
pub struct Folds {
    /// What NAMES says of slots.
    named: HashMap<u32, Owner>,
    /// Whose counts are in a slot's rows: its latest holder's.
    slots: HashMap<u32, Owner>,
    /// Whose connections are in a row of `RULE_HITS`.
    rules: HashMap<u32, (RuleId, String)>,
    latest: VecDeque<Fold>,
    number: u64,
    /// The latest that whoever keeps totals has.
    taken: AtomicU64,
}

impl Folds {
    /// Whose the rows are that an earlier agent left.
    pub(super) fn adopt(present: &Tables) -> Self {
        let mut folds = Self::default();
        for (key, text) in &present.names {
            folds.name(*key, text);
        }
        let is_open = |slot: &u32| present.slots.contains(slot);
        folds.slots = folds.named.clone();
        folds.slots.retain(|slot, _| is_open(slot));
        folds
    }

    /// The number of the latest fold; 0 before the first.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Slots, with whose counts are in their rows.
    pub fn slots(&self) -> impl Iterator<Item = (u32, &Owner)> {
        self.slots.iter().map(|(slot, owner)| (*slot, owner))
    }

    /// The rule whose connections are in a row of `RULE_HITS`.
    pub fn rule_of_row(&self, row: u32) -> Option<RuleId> {
        self.rules.get(&row).map(|(id, _)| *id)
    }

    /// Folds after a number, in the order they happened. Whoever asks has those before: they are
    /// forgotten.
    pub fn since(&self, number: u64) -> Vec<Fold> {
        self.taken.fetch_max(number, Ordering::Relaxed);
        let new = self.latest.iter().filter(|fold| fold.number > number);
        new.cloned().collect()
    }

    /// Reads what `writes` are going to clear.
    pub(super) fn before(
        &self,
        dataplane: &Dataplane,
        writes: &[Write],
    ) -> Result<Vec<Candidate>, DataplaneError> {
        let mut candidates = Vec::new();
        for (at, write) in writes.iter().enumerate() {
            let counts = match write {
                Write::OpenSlot(slot) => self.slot(dataplane, *slot)?,
                Write::OpenRule(rule) => self.rule(dataplane, rule_row(*rule))?,
                Write::ReserveIds(..)
                | Write::PutName(..)
                | Write::DeleteName(_)
                | Write::PutPort(..)
                | Write::DeletePort(_)
                | Write::PutVerdict(..)
                | Write::DeleteVerdict(_)
                | Write::PutService(..)
                | Write::DeleteService(_)
                | Write::PutPeer(..)
                | Write::DeletePeer(_)
                | Write::PutPrefix(..)
                | Write::DeletePrefix(_)
                | Write::StampPeers { .. }
                | Write::CloseSlot(_)
                | Write::PutConfig(..)
                | Write::Flip { .. }
                | Write::Unpublish { .. } => continue,
            };
            candidates.push(Candidate { at, counts });
        }
        Ok(candidates)
    }

    /// The first `done` of the writes are in force. A write that failed may have cleared, too.
    pub(super) fn after(
        &mut self,
        dataplane: &Dataplane,
        candidates: Vec<Candidate>,
        writes: &[Write],
        done: usize,
    ) {
        for Candidate { at, counts } in candidates {
            let is_cleared = at < done
                || match &counts {
                    Counts::Slot { slot, .. } => self.slot(dataplane, *slot),
                    Counts::Rule { row, .. } => self.rule(dataplane, *row),
                }
                .is_ok_and(|now| now.is_nothing());
            if is_cleared && !counts.is_nothing() {
                self.add(counts);
            }
        }
        for write in writes.iter().take(done) {
            if let Write::PutName(key, text) = write {
                self.name(*key, text);
            } else if let Write::OpenSlot(slot) = write {
                match self.named.get(slot) {
                    Some(owner) => self.slots.insert(*slot, owner.clone()),
                    None => self.slots.remove(slot),
                };
            }
        }
    }

    fn add(&mut self, counts: Counts) {
        self.number += 1;
        let taken = *self.taken.get_mut();
        while self.latest.front().is_some_and(|fold| fold.number <= taken) {
            self.latest.pop_front();
        }
        self.latest.push_back(Fold {
            number: self.number,
            counts,
        });
        if self.latest.len() > KEPT {
            self.latest.pop_front();
        }
    }

    fn name(&mut self, key: NameKey, text: &str) {
        if key.kind == NAME_SLOT {
            match Owner::parse(text) {
                Some(owner) => self.named.insert(key.id, owner),
                None => self.named.remove(&key.id),
            };
        } else if key.kind == NAME_RULE {
            let id = RuleId(key.id);
            self.rules.insert(rule_row(id), (id, text.to_owned()));
        }
    }

    fn slot(&self, dataplane: &Dataplane, slot: u32) -> Result<Counts, DataplaneError> {
        Ok(Counts::Slot {
            slot,
            owner: self.slots.get(&slot).cloned(),
            passed: dataplane.passed(slot)?,
            dropped: dataplane.dropped(slot)?,
        })
    }

    fn rule(&self, dataplane: &Dataplane, row: u32) -> Result<Counts, DataplaneError> {
        let hits = dataplane.rule_hits([row])?;
        Ok(Counts::Rule {
            row,
            rule: self.rules.get(&row).cloned(),
            connections: hits.first().map_or(0, |(_, hit)| hit.connections),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_are_kept_until_they_are_taken_and_no_longer() {
        let mut folds = Folds::default();
        let add = |folds: &mut Folds, row| {
            folds.add(Counts::Rule {
                row,
                rule: None,
                connections: 1,
            });
        };
        let numbers = |new: Vec<Fold>| new.iter().map(|fold| fold.number).collect::<Vec<_>>();
        for row in 1..=3 {
            add(&mut folds, row);
        }
        assert_eq!(numbers(folds.since(0)), [1, 2, 3]);
        assert_eq!(numbers(folds.since(0)), [1, 2, 3], "asked for again");
        assert_eq!(numbers(folds.since(2)), [3]);
        add(&mut folds, 4);
        assert_eq!(numbers(folds.since(0)), [3, 4], "who has 2 has 1");
        for row in 0..=u32::try_from(KEPT).unwrap() {
            add(&mut folds, row);
        }
        assert_eq!(folds.latest.len(), KEPT, "nobody takes them");
    }
}
