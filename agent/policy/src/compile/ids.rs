//! Ids that are never restarted and never used twice: sets, classes, functions, generations of
//! rules, revisions.

use agent_common::maps::{ID_ROWS, IdKind, RULE_GENERATIONS};

use crate::plan::{Refused, Write};

const KINDS: [IdKind; 5] = [
    IdKind::Set,
    IdKind::Class,
    IdKind::Function,
    IdKind::Rule,
    IdKind::Revision,
];

/// How many ids are reserved at once, so that few plans have to write IDS. What was reserved and
/// not used is lost with a restart, and there are few generations of rules: one by one.
const fn block(kind: IdKind) -> u64 {
    match kind {
        IdKind::Rule => 1,
        IdKind::Set | IdKind::Class | IdKind::Function | IdKind::Revision => 4096,
    }
}

/// The counters behind IDS.
#[derive(Clone, Debug)]
pub(crate) struct Ids {
    next: [u64; ID_ROWS as usize],
    reserved: [u64; ID_ROWS as usize],
}

impl Ids {
    /// Continues after everything IDS says is taken. Id 0 means "none" in every kind.
    pub(crate) fn new(reserved: [u64; ID_ROWS as usize]) -> Self {
        Self {
            next: reserved.map(|next| next.max(1)),
            reserved,
        }
    }

    /// A fresh id. Once 32 bits are used up it repeats the last one, and [`Self::check`] fails.
    pub(crate) fn take(&mut self, kind: IdKind) -> u32 {
        let Some(next) = self.next.get_mut(kind as usize) else {
            return u32::MAX;
        };
        let id = u32::try_from(*next).unwrap_or(u32::MAX);
        *next += 1;
        id
    }

    /// Fails when a kind is used up.
    pub(crate) fn check(&self) -> Result<(), Refused> {
        let last = |kind: IdKind| match kind {
            IdKind::Rule => RULE_GENERATIONS - 1,
            IdKind::Set | IdKind::Class | IdKind::Function | IdKind::Revision => u32::MAX,
        };
        let used_up = |kind: &IdKind| self.next(*kind) > u64::from(last(*kind));
        match KINDS.into_iter().find(used_up) {
            Some(kind) => Err(Refused::IdsExhausted { kind }),
            None => Ok(()),
        }
    }

    /// The writes that must come before any id taken so far is used.
    pub(crate) fn reservations(&mut self) -> Vec<Write> {
        let mut writes = Vec::new();
        for kind in KINDS {
            let next = self.next(kind);
            if let Some(reserved) = self.reserved.get_mut(kind as usize)
                && next > *reserved.max(&mut 1)
            {
                *reserved = next.next_multiple_of(block(kind));
                writes.push(Write::ReserveIds(kind, *reserved));
            }
        }
        writes
    }

    fn next(&self, kind: IdKind) -> u64 {
        self.next.get(kind as usize).copied().unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_reserved_in_blocks_before_use_and_continue_after_a_restart() {
        let mut ids = Ids::new([0; ID_ROWS as usize]);
        assert_eq!(ids.reservations(), vec![]);
        assert_eq!(ids.take(IdKind::Set), 1);
        assert_eq!(
            ids.reservations(),
            vec![Write::ReserveIds(IdKind::Set, 4096)]
        );
        assert_eq!(ids.take(IdKind::Set), 2);
        assert_eq!(ids.reservations(), vec![]);
        let mut after = Ids::new(ids.reserved);
        assert_eq!(after.take(IdKind::Set), 4096);
        assert_eq!(
            after.reservations(),
            vec![Write::ReserveIds(IdKind::Set, 8192)]
        );
    }

    #[test]
    fn a_kind_that_is_used_up_is_refused() {
        for (kind, last) in [
            (IdKind::Set, u32::MAX),
            (IdKind::Rule, RULE_GENERATIONS - 1),
        ] {
            let mut taken = [0; ID_ROWS as usize];
            taken[kind as usize] = u64::from(last);
            let mut ids = Ids::new(taken);
            assert_eq!(ids.check(), Ok(()));
            assert_eq!(ids.take(kind), last);
            assert_eq!(ids.check(), Err(Refused::IdsExhausted { kind }));
        }
    }
}
