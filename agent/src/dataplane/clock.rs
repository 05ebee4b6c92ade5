//! The kernel's tick: how long one is, and when a stamp in jiffies was.
//!
//! `CONFIG_HZ` is not what `sysconf(_SC_CLK_TCK)` says (that is always 100), and the kernel's
//! configuration is not readable everywhere. So it is measured: the `clock` program is test-run
//! until the tick changes, and again some ticks later; the rate is the nearest one that a kernel
//! can be built with.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use super::error::DataplaneError;

/// Rates that kernels are built with (kernel/Kconfig.hz, and MIPS and Alpha for completeness).
const RATES: [u32; 9] = [24, 48, 100, 128, 250, 256, 300, 1000, 1024];
/// How long one measurement may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// A measurement spans at least this.
const SPAN: Duration = Duration::from_millis(50);
/// A tick's edge is known this well, or it is not used: whoever measures may be off the processor
/// for milliseconds. Less than a hundredth of [`SPAN`], and rates differ by more.
const EDGE: Duration = Duration::from_micros(400);

/// The kernel's tick at a moment of the wall clock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tick {
    /// Ticks a second.
    pub hz: u32,
    /// The tick, in 64-bit jiffies.
    pub jiffies: u64,
    /// The wall clock at that tick.
    pub at: SystemTime,
}

impl Tick {
    /// When another tick was (or will be) by the wall clock. `None` beyond what a clock can show.
    pub fn wall(&self, jiffies: u64) -> Option<SystemTime> {
        if jiffies >= self.jiffies {
            self.at.checked_add(self.length(jiffies - self.jiffies))
        } else {
            self.at.checked_sub(self.length(self.jiffies - jiffies))
        }
    }

    /// The tick at a moment of the wall clock; moments before the kernel's first tick are 0.
    pub fn jiffies_at(&self, wall: SystemTime) -> u64 {
        match wall.duration_since(self.at) {
            Ok(after) => self.jiffies.saturating_add(self.count(after)),
            Err(before) => self.jiffies.saturating_sub(self.count(before.duration())),
        }
    }

    /// How many ticks a length of time is.
    pub fn count(&self, length: Duration) -> u64 {
        let ticks = length.as_nanos() * u128::from(self.hz) / 1_000_000_000;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    fn length(self, jiffies: u64) -> Duration {
        let hz = u64::from(self.hz.max(1));
        let rest = (jiffies % hz) * 1_000_000_000 / hz;
        Duration::from_secs(jiffies / hz) + Duration::from_nanos(rest)
    }
}

/// Measures the rate of `jiffies`, which reads the kernel's counter.
pub(crate) fn measure(mut jiffies: impl FnMut() -> io::Result<u64>) -> Result<u32, DataplaneError> {
    let mut seen = Vec::new();
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let (start, first) = next_tick(&mut jiffies)?;
        let (end, last) = loop {
            let (now, tick) = next_tick(&mut jiffies)?;
            if now.duration_since(start) >= SPAN {
                break (now, tick);
            }
        };
        let ticks = u32::try_from(last - first).unwrap_or(u32::MAX);
        let rate = f64::from(ticks) / end.duration_since(start).as_secs_f64();
        if let Some(hz) = nearest(rate) {
            return Ok(hz);
        }
        seen.push(format!("{rate:.1}"));
    }
    Err(DataplaneError::Clock(format!(
        "no rate that a kernel can have in {PATIENCE:?}: saw {} ticks a second",
        seen.join(", ")
    )))
}

/// Waits until the tick is seen to change, so that both ends of a measurement are at the edge of a
/// tick.
fn next_tick(
    jiffies: &mut impl FnMut() -> io::Result<u64>,
) -> Result<(Instant, u64), DataplaneError> {
    let mut read = || jiffies().map_err(|error| DataplaneError::Clock(error.to_string()));
    let mut before = read()?;
    let began = Instant::now();
    let (mut looked, mut stands_still) = (began, true);
    while began.elapsed() < PATIENCE {
        let tick = read()?;
        let now = Instant::now();
        if tick != before {
            if now.duration_since(looked) <= EDGE {
                return Ok((now, tick));
            }
            stands_still = false;
            before = tick;
        }
        looked = now;
    }
    Err(DataplaneError::Clock(if stands_still {
        "it stands still".to_owned()
    } else {
        format!("this machine is too busy to see a tick change within {EDGE:?}")
    }))
}

/// The rate a kernel can have that is within a hundredth of what was measured.
fn nearest(rate: f64) -> Option<u32> {
    RATES
        .into_iter()
        .find(|hz| (rate / f64::from(*hz) - 1.0).abs() < 0.01)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_told_apart_and_nonsense_is_none() {
        assert_eq!(nearest(100.4), Some(100));
        assert_eq!(nearest(249.0), Some(250));
        assert_eq!(nearest(257.0), Some(256));
        assert_eq!(nearest(1001.0), Some(1000));
        assert_eq!(nearest(1022.0), Some(1024));
        assert_eq!(nearest(180.0), None);
    }

    #[test]
    fn a_simulated_clock_of_each_usual_rate_is_measured() {
        for hz in [100_u32, 250, 300, 1000] {
            let began = Instant::now();
            let simulated = || {
                let ticks = began.elapsed().as_nanos() * u128::from(hz) / 1_000_000_000;
                Ok(u64::try_from(ticks).unwrap())
            };
            assert_eq!(measure(simulated).unwrap(), hz);
        }
    }

    #[test]
    fn an_edge_that_was_missed_is_not_measured_from() {
        // Off the processor for 10 ms across the first edges, as on a busy machine.
        let (began, mut reads) = (Instant::now(), 0);
        let simulated = || {
            reads += 1;
            let until = Instant::now() + Duration::from_millis(if reads < 4 { 10 } else { 0 });
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            Ok(u64::try_from(began.elapsed().as_millis() / 4).unwrap())
        };
        assert_eq!(measure(simulated).unwrap(), 250);
    }

    #[test]
    fn a_clock_that_fails_is_an_error() {
        assert!(measure(|| Err(io::ErrorKind::PermissionDenied.into())).is_err());
    }

    #[test]
    fn ticks_and_wall_clock_convert_both_ways() {
        let tick = Tick {
            hz: 250,
            jiffies: 1_000_000,
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000),
        };
        let earlier = SystemTime::UNIX_EPOCH + Duration::from_secs(996);
        assert_eq!(tick.wall(999_000), Some(earlier));
        assert_eq!(tick.jiffies_at(earlier), 999_000);
        assert_eq!(tick.wall(1_000_250), Some(tick.at + Duration::from_secs(1)));
        assert_eq!(tick.jiffies_at(tick.at + Duration::from_secs(1)), 1_000_250);
        assert_eq!(tick.jiffies_at(SystemTime::UNIX_EPOCH), 750_000);
    }
}
