//! Plans into the maps: writing, timing, trying again what the kernel refused.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use agent_policy::plan::{Plan, Summary};
use tracing::{debug, error, info, warn};

use super::Timing;
use super::run::{Reconciler, Stage, chain};

/// Plans written in one go; more follow at once, but events come first.
const PLANS_AT_ONCE: usize = 8;

impl Reconciler {
    /// Brings the maps to what is wanted, as far as the kernel takes it.
    pub(super) fn write(&mut self) {
        for _ in 0..PLANS_AT_ONCE {
            let began = Instant::now();
            if self.writing.is_waiting(began) {
                return;
            }
            self.writing.begin();
            match self.engine.plan(self.clock.elapsed()) {
                Ok(None) => {
                    self.plans.refused = None;
                    self.be_ready();
                    self.noticed = None;
                    break;
                }
                Ok(Some(plan)) => {
                    if !plan.is_clearing {
                        self.plans.refused = None;
                    }
                    let compile = began.elapsed();
                    if !self.carry_out(&plan, compile) {
                        return;
                    }
                }
                Err(refused) => {
                    self.plans.refusals += 1;
                    let refused = refused.to_string();
                    if self.plans.refused.as_ref() != Some(&refused) {
                        error!(reason = refused, "plan refused, the state in force stays");
                    }
                    self.plans.refused = Some(refused);
                    self.writing.fail(Instant::now());
                    return;
                }
            }
        }
        self.mark_published();
    }

    /// The first plan is in force.
    fn be_ready(&mut self) {
        if self.stage == Stage::Settled {
            self.stage = Stage::Enforcing;
            info!(
                endpoints = self.endpoints.len(),
                policies = self.engine.cluster().policies().count(),
                took_ms = millis(self.clock.elapsed()),
                "ready: what is known is enforced"
            );
        }
    }

    fn carry_out(&mut self, plan: &Arc<Plan>, compile: Duration) -> bool {
        let from = self.progress.begin(plan);
        let began = Instant::now();
        let writes = plan.writes.get(from..).unwrap_or_default();
        // What cannot be read is not waited for: policy goes before statistics.
        let candidates = self.folds.before(&self.dataplane, writes);
        let candidates = candidates.unwrap_or_else(|error| {
            warn!(
                error = chain(&error),
                "counts that are cleared now are lost"
            );
            Vec::new()
        });
        let result = self.dataplane.apply(writes);
        let done = result.as_ref().map_or_else(|error| error.at, |done| *done);
        self.folds.after(&self.dataplane, candidates, writes, done);
        match result {
            Ok(writes) => {
                self.plans.writes += writes as u64;
                self.progress.finish();
                self.writing.reset();
                self.engine.written(self.clock.elapsed());
                let noticed = self.noticed.take();
                let timing = Timing {
                    at: SystemTime::now(),
                    writes: plan.writes.len(),
                    watch_to_map: noticed.map(|at| at.elapsed()),
                    compile,
                    swap: began.elapsed(),
                };
                self.plans.done(timing);
                tell(&plan.summary, &timing);
                true
            }
            Err(error) => {
                self.progress.advance(error.at);
                self.plans.writes += error.at as u64;
                self.writing.fail(Instant::now());
                self.fail_writing(chain(&error));
                false
            }
        }
    }

    pub(super) fn fail_writing(&mut self, error: String) {
        self.plans.failures += 1;
        if self.plans.failing.as_ref() != Some(&error) {
            error!(
                error,
                "the kernel refused a write; the old state stays, tried again"
            );
        }
        self.plans.failing = Some(error);
    }
}

/// One line a plan; those that only clear away are not news.
fn tell(summary: &Summary, timing: &Timing) {
    let Some(watch_to_map) = timing.watch_to_map else {
        debug!(writes = timing.writes, "rows cleared away");
        return;
    };
    info!(
        writes = timing.writes,
        published = summary.endpoints_published,
        flipped = summary.endpoints_flipped,
        revised = summary.endpoints_revised,
        withdrawn = summary.endpoints_withdrawn,
        peers_moved = summary.peers_moved,
        prefixes_moved = summary.prefixes_moved,
        compile_ms = millis(timing.compile),
        swap_ms = millis(timing.swap),
        took_ms = millis(watch_to_map),
        "plan applied"
    );
}

/// For people: two decimals.
pub(super) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e5).round() / 1e2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logged_milliseconds_have_two_decimals() {
        let said = |nanos| millis(Duration::from_nanos(nanos)).to_string();
        assert_eq!(said(86_218), "0.09");
        assert_eq!(said(1_234_567), "1.23");
        assert_eq!(said(20_123_456_789), "20123.46");
    }
}
