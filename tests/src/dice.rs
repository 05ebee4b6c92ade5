//! Choices that can be repeated: by numbers from a seed, or by bytes that a fuzzer breeds.

/// What chooses.
#[derive(Debug)]
pub struct Dice(Source);

#[derive(Debug)]
enum Source {
    /// The last number.
    Numbers(u64),
    /// What is left, the next byte last.
    Bytes(Vec<u8>),
}

impl Dice {
    /// Chance by numbers (Marsaglia's xorshift, with Vigna's multiplier): a run is known by its seed,
    /// which is not 0.
    pub fn of(seed: u64) -> Self {
        Self(Source::Numbers(seed))
    }

    /// Chance by bytes: as few of them as a choice needs, so that one that changes is another choice
    /// and no more. Behind the last one every choice is the first.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(Source::Bytes(bytes.iter().rev().copied().collect()))
    }

    /// True when its bytes are used up; numbers never are.
    pub fn is_over(&self) -> bool {
        match &self.0 {
            Source::Numbers(_) => false,
            Source::Bytes(left) => left.is_empty(),
        }
    }

    /// A number below this one.
    pub fn roll<N: Default + TryFrom<u64> + TryInto<u64>>(&mut self, below: N) -> N {
        let below = below.try_into().unwrap_or(u64::MAX).max(1);
        let rolled = match &mut self.0 {
            Source::Numbers(state) => {
                *state ^= *state >> 12;
                *state ^= *state << 25;
                *state ^= *state >> 27;
                state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
            }
            Source::Bytes(left) => {
                let mut rolled = 0;
                let mut reach = 1;
                while reach < below {
                    rolled = rolled << 8 | left.pop().map_or(0, u64::from);
                    reach = reach.saturating_mul(256);
                }
                rolled
            }
        };
        N::try_from(rolled % below).unwrap_or_default()
    }

    /// True once in so many times. Of bytes that are used up, never.
    pub fn one_in(&mut self, chances: u32) -> bool {
        self.roll(chances) == chances.saturating_sub(1)
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
