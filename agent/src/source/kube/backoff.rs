//! How long to wait before asking an API server again, so that a thousand agents that lost it at
//! one moment do not all come back at another.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

/// After the first failure.
const SHORTEST: Duration = Duration::from_millis(200);
/// However often it failed.
const LONGEST: Duration = Duration::from_secs(20);

/// Waits that grow with each failure in a row.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: SHORTEST }
    }
}

impl Backoff {
    /// What to wait after another failure: between half and all of a span that doubles.
    pub(super) fn after_failure(&mut self) -> Duration {
        let span = self.next;
        self.next = (span * 2).min(LONGEST);
        span / 2 + up_to(span / 2)
    }

    /// It works again.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// A time by chance, less than this.
pub(super) fn up_to(span: Duration) -> Duration {
    // Keyed anew each time, which is all the chance that is needed.
    let chance = RandomState::new().build_hasher().finish();
    let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(chance.checked_rem(nanos).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_begin_small_again() {
        let mut backoff = Backoff::default();
        let mut span = SHORTEST;
        for _ in 0..20 {
            let wait = backoff.after_failure();
            assert!(wait >= span / 2 && wait <= span, "{wait:?} of {span:?}");
            span = (span * 2).min(LONGEST);
        }
        assert_eq!(span, LONGEST);
        backoff.reset();
        assert!(backoff.after_failure() <= SHORTEST);
    }

    #[test]
    fn chance_stays_within_its_span() {
        assert_eq!(up_to(Duration::ZERO), Duration::ZERO);
        let span = Duration::from_millis(500);
        let waits: Vec<Duration> = (0..100).map(|_| up_to(span)).collect();
        assert!(waits.iter().all(|wait| *wait < span));
        assert!(waits.iter().any(|wait| *wait != waits[0]));
    }
}
