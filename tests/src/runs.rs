//! How a run of the tests was asked to be, and chance that can be repeated.

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

/// Chance by numbers (Marsaglia's xorshift, with Vigna's multiplier): a run is known by its seed,
/// which is not 0.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Those of a seed.
    pub fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below this one.
    pub fn roll<N: Default + TryFrom<u64> + TryInto<u64>>(&mut self, below: N) -> N {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        let below = below.try_into().unwrap_or(u64::MAX);
        N::try_from(high % below).unwrap_or_default()
    }

    /// True once in so many times.
    pub fn one_in(&mut self, chances: u32) -> bool {
        self.roll(chances) == 0
    }

    /// One of several, of which there is at least one.
    #[expect(clippy::indexing_slicing, reason = "a place below the length is there")]
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len())]
    }

    /// Any byte.
    pub fn byte(&mut self) -> u8 {
        self.roll(256_u32).to_le_bytes()[0]
    }
}
