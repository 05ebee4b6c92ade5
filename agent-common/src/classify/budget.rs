//! The budget of new flows: a token bucket per endpoint, so one pod's flood is its own.

use crate::maps::{Budget, Settings};

/// The bucket after one new flow, or `None` when it is empty.
#[inline(always)]
pub(super) fn spend(budget: Budget, settings: &Settings, now: u32) -> Option<Budget> {
    let elapsed = now.wrapping_sub(budget.stamp);
    let hz = u64::from(settings.hz.max(1));
    // In a flood nearly all flows come within the same tick, and a division is dear.
    let earned = if elapsed == 0 {
        0
    } else {
        u64::from(elapsed) * u64::from(settings.budget_rate) / hz
    };
    let burst = u64::from(settings.budget_burst);
    // A row of zeros was never used; without this, whoever starts as the clock goes round waits.
    let full = if budget.stamp == 0 && budget.tokens == 0 {
        burst
    } else {
        (u64::from(budget.tokens) + earned).min(burst)
    };
    let tokens = u32::try_from(full).unwrap_or(u32::MAX).checked_sub(1)?;
    Some(Budget {
        // What is too little for a token is not forgotten.
        stamp: if earned == 0 && budget.stamp != 0 {
            budget.stamp
        } else {
            // Never 0, so that only an unused row is all zeros.
            now.wrapping_sub(u32::from(now == 0))
        },
        tokens,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        flags: 0,
        hz: 100,
        report_interval: 0,
        mid_stream_grace: 0,
        timeouts: [0; 8],
        budget_rate: 10,
        budget_burst: 3,
        mark_mask: 0,
        reserved: 0,
    };

    fn spend_at(budget: &mut Budget, now: u32) -> bool {
        match spend(*budget, &SETTINGS, now) {
            Some(left) => {
                *budget = left;
                true
            }
            None => false,
        }
    }

    #[test]
    fn burst_is_granted_at_once_and_no_more() {
        let mut budget = Budget::default();
        let granted = (0..10).filter(|_| spend_at(&mut budget, 5_000)).count();
        assert_eq!(granted, 3);
    }

    #[test]
    fn an_unused_bucket_is_full_also_as_the_clock_goes_round() {
        assert!(spend(Budget::default(), &SETTINGS, 0).is_some());
    }

    #[test]
    fn tokens_come_back_at_the_rate() {
        let mut budget = Budget {
            stamp: 1_000,
            tokens: 0,
        };
        let granted = (1_001..=2_000)
            .filter(|now| spend_at(&mut budget, *now))
            .count();
        assert_eq!(granted, 100, "1 000 ticks at 100 Hz and 10 a second");
    }

    #[test]
    fn settings_of_zeros_grant_nothing() {
        assert_eq!(spend(Budget::default(), &Settings::default(), 77), None);
    }
}
