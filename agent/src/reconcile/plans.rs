//! How applying plans went: counts, timings, and when to try again what failed.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use agent_policy::plan::Plan;

/// What applying plans took and how it went, since the agent started.
#[derive(Clone, Debug, Default)]
pub struct Plans {
    /// Plans whose every write is in the maps.
    pub applied: u64,
    /// Writes carried out.
    pub writes: u64,
    /// Attempts that the kernel refused; the old state stayed, and they are tried again.
    pub failures: u64,
    /// Why the latest attempt failed, until one succeeds.
    pub failing: Option<String>,
    /// Plans refused whole because a limit would be exceeded.
    pub refusals: u64,
    /// Why the wanted state is refused, until it is not.
    pub refused: Option<String>,
    /// The latest plan.
    pub last: Option<Timing>,
    /// From a change being noticed to its last write.
    pub watch_to_map: Histogram,
    /// Compiling and planning.
    pub compile: Histogram,
    /// Writing and reading back.
    pub swap: Histogram,
    /// From a new interface being noticed to its pod's policy being in force.
    pub first_enforced: Histogram,
}

/// What one plan took.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// When it was done.
    pub at: SystemTime,
    /// Its writes.
    pub writes: usize,
    /// From the earliest change in it being noticed to its last write; `None` for a plan that only
    /// cleared away.
    pub watch_to_map: Option<Duration>,
    /// Compiling and planning.
    pub compile: Duration,
    /// Writing and reading back.
    pub swap: Duration,
}

impl Plans {
    pub(super) fn done(&mut self, timing: Timing) {
        self.applied += 1;
        self.failing = None;
        if let Some(watch_to_map) = timing.watch_to_map {
            self.watch_to_map.observe(watch_to_map);
        }
        self.compile.observe(timing.compile);
        self.swap.observe(timing.swap);
        self.last = Some(timing);
    }
}

/// Durations counted in buckets, as Prometheus wants them.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// How many durations were at most the bound of the same place in [`Histogram::BOUNDS`];
    /// not cumulative.
    pub counts: [u64; Histogram::BOUNDS.len()],
    /// How many were longer than every bound.
    pub longer: u64,
    /// Sum of all.
    pub sum: Duration,
}

impl Histogram {
    /// Upper bounds in seconds, inclusive.
    pub const BOUNDS: [f64; 12] = [
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
    ];

    pub(super) fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let place = Self::BOUNDS.iter().position(|bound| seconds <= *bound);
        match place.and_then(|place| self.counts.get_mut(place)) {
            Some(count) => *count += 1,
            None => self.longer += 1,
        }
        self.sum += duration;
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.longer
    }
}

/// How far the plan in hand is, so that one that failed goes on where it stopped.
#[derive(Debug, Default)]
pub(super) struct Progress {
    plan: Option<Arc<Plan>>,
    done: usize,
}

impl Progress {
    /// Where to begin with a plan: where it stopped, if it is the one that did.
    pub(super) fn begin(&mut self, plan: &Arc<Plan>) -> usize {
        let is_same = self
            .plan
            .as_ref()
            .is_some_and(|known| Arc::ptr_eq(known, plan));
        if !is_same {
            self.plan = Some(Arc::clone(plan));
            self.done = 0;
        }
        self.done
    }

    /// So many more of its writes are in force.
    pub(super) fn advance(&mut self, writes: usize) {
        self.done += writes;
    }

    /// It is in force as a whole.
    pub(super) fn finish(&mut self) {
        *self = Self::default();
    }
}

/// Longer and longer waits between attempts.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(30);

    /// An attempt failed.
    pub(super) fn fail(&mut self, now: Instant) {
        let wait = Self::FIRST.saturating_mul(1 << self.failures.min(10));
        self.failures += 1;
        self.until = Some(now + wait.min(Self::LONGEST));
    }

    /// An attempt begins; whether it succeeds is yet to be seen.
    pub(super) fn begin(&mut self) {
        self.until = None;
    }

    /// An attempt succeeded, or something changed that makes the next one worth while at once.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// True when it is too early for another attempt.
    pub(super) fn is_waiting(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// When the next attempt is due, if the last one failed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_plan_goes_on_where_it_stopped_and_another_begins_anew() {
        let [first, second] = [(); 2].map(|()| Arc::new(Plan::default()));
        let mut progress = Progress::default();
        assert_eq!(progress.begin(&first), 0);
        progress.advance(3);
        assert_eq!(progress.begin(&first), 3);
        progress.advance(2);
        assert_eq!(progress.begin(&first), 5);
        assert_eq!(progress.begin(&second), 0);
        progress.advance(1);
        progress.finish();
        assert_eq!(progress.begin(&second), 0);
    }

    #[test]
    fn waits_grow_to_a_limit_and_success_ends_them() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        assert!(!backoff.is_waiting(now));
        let mut waits = Vec::new();
        for _ in 0..20 {
            backoff.fail(now);
            waits.push(backoff.due().unwrap() - now);
        }
        assert_eq!(waits.first(), Some(&Backoff::FIRST));
        assert!(waits.is_sorted());
        assert_eq!(waits.last(), Some(&Backoff::LONGEST));
        assert!(backoff.is_waiting(now + Duration::from_secs(29)));
        assert!(!backoff.is_waiting(now + Backoff::LONGEST));
        backoff.reset();
        assert!(!backoff.is_waiting(now));
    }

    #[test]
    fn a_histogram_counts_each_duration_once() {
        let mut histogram = Histogram::default();
        for millis in [0, 1, 2, 99, 100, 101, 60_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        assert_eq!(histogram.count(), 7);
        assert_eq!(histogram.longer, 1);
        assert_eq!(histogram.counts, [1, 1, 1, 0, 0, 0, 0, 2, 1, 0, 0, 0]);
    }
}
