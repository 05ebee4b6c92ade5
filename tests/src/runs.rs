//! How a run of the tests was asked to be, and when, by chance, things happen in it.

use std::time::Duration;

/// Whether `PICKET_THOROUGH` asks for as much as a busy node has, however long that takes.
pub fn is_thorough() -> bool {
    std::env::var_os("PICKET_THOROUGH").is_some()
}

/// The number in `PICKET_SEED`, which repeats a run; `usual` without it.
///
/// # Panics
/// When it is no number: another run would be repeated than was asked for.
#[expect(clippy::panic, reason = "it ends the test that asks, and says why")]
pub fn seed(usual: u64) -> u64 {
    std::env::var("PICKET_SEED").map_or(usual, |seed| {
        seed.parse()
            .unwrap_or_else(|error| panic!("PICKET_SEED={seed}: {error}"))
    })
}

/// Moments that look like chance (Knuth, TAOCP 3.3.4's MMIX multiplier).
#[derive(Debug)]
pub struct Moments(u64);

impl Moments {
    /// Those of the run's seed.
    pub fn of_this_run() -> Self {
        Self(seed(1))
    }

    /// The next one, in parts of 1.
    pub fn next_part(&mut self) -> f64 {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        f64::from(u32::try_from(self.0 >> 32).unwrap_or(0)) / f64::from(u32::MAX)
    }

    /// The next one, at most so late.
    pub fn next_within(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.next_part())
    }
}
