//! Which rows of DENIED are to go, so that there is room for the next refusal.

use std::time::Duration;

use agent_common::maps::DeniedKey;

use crate::dataplane::Tick;
use crate::reading::Denial;

/// Rows to remove.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Surplus {
    /// Their keys, each with when it was last refused, in jiffies.
    pub(super) rows: Vec<(DeniedKey, u64)>,
    /// They go even if they are refused again meanwhile.
    pub(super) is_urgent: bool,
}

/// The tick so long ago.
pub(super) fn before(tick: &Tick, span: Duration) -> u64 {
    let ticks = span.as_millis() * u128::from(tick.hz) / 1_000;
    let ticks = u64::try_from(ticks).unwrap_or(u64::MAX);
    tick.jiffies.saturating_sub(ticks)
}

/// Rows that were last refused before `oldest`; and where the others fill more than three quarters
/// of the map, the oldest of them until half of it is free.
pub(super) fn surplus(rows: &[Denial], oldest: u64, capacity: usize) -> Vec<Surplus> {
    let mut all: Vec<(DeniedKey, u64)> = rows.iter().map(|(key, row)| (*key, row.last)).collect();
    all.sort_unstable_by_key(|(_, last)| *last);
    let mut young = all.split_off(all.partition_point(|(_, last)| *last < oldest));
    let mut surplus = Vec::new();
    if !all.is_empty() {
        surplus.push(Surplus {
            rows: all,
            is_urgent: false,
        });
    }
    if young.len() * 4 > capacity * 3 {
        young.truncate(young.len() - capacity / 2);
        surplus.push(Surplus {
            rows: young,
            is_urgent: true,
        });
    }
    surplus
}

#[cfg(test)]
mod tests {
    use agent_common::maps::Denied;

    use super::*;

    fn rows(lasts: std::ops::Range<u16>) -> Vec<Denial> {
        let row = |last: u16| {
            let key = DeniedKey {
                port: last,
                ..DeniedKey::default()
            };
            let row = Denied {
                last: last.into(),
                ..Denied::default()
            };
            (key, row)
        };
        lasts.rev().map(row).collect()
    }

    fn ports(surplus: &Surplus) -> Vec<u16> {
        surplus.rows.iter().map(|(key, _)| key.port).collect()
    }

    #[test]
    fn rows_that_are_too_old_go_and_younger_ones_stay() {
        let found = surplus(&rows(5..20), 8, 100);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (ports(&found[0]), found[0].is_urgent),
            (vec![5, 6, 7], false)
        );
        assert_eq!(surplus(&rows(8..20), 8, 100), []);
    }

    #[test]
    fn a_map_that_fills_up_loses_its_oldest_rows_until_half_of_it_is_free() {
        assert_eq!(surplus(&rows(0..75), 0, 100), []);
        let found = surplus(&rows(0..76), 0, 100);
        assert_eq!(found.len(), 1);
        assert!(found[0].is_urgent);
        assert_eq!(ports(&found[0]), (0..26).collect::<Vec<u16>>());
    }

    #[test]
    fn a_span_longer_than_the_machine_runs_forgets_nothing() {
        let tick = Tick {
            hz: 250,
            jiffies: 1_000,
            at: std::time::SystemTime::UNIX_EPOCH,
        };
        assert_eq!(before(&tick, Duration::from_secs(2)), 500);
        assert_eq!(before(&tick, Duration::from_hours(24)), 0);
    }
}
