//! The hash map of this crate, and its set.
//!
//! Tenants choose names and labels, so a hash is keyed: with 64 bits of the operating system's
//! randomness for the process, and as many for each map. `SipHash` is keyed too and took a fifth of
//! planning.

#![expect(clippy::disallowed_types, reason = "here it gets its hasher")]

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use foldhash::SharedSeed;
use foldhash::quality::{FoldHasher, SeedableRandomState};

/// A hash map with a fast keyed hasher.
pub type HashMap<K, V> = std::collections::HashMap<K, V, Keyed>;

/// A hash set with the same.
pub type HashSet<T> = std::collections::HashSet<T, Keyed>;

/// Makes hashers that nobody outside this process can foresee.
#[derive(Clone, Debug)]
pub struct Keyed(SeedableRandomState);

/// Where foldhash looks for randomness of its own there is little without ASLR.
static PROCESS: LazyLock<SharedSeed> = LazyLock::new(|| SharedSeed::from_u64(random()));

/// The standard library's hasher is what it offers of the operating system's randomness.
fn random() -> u64 {
    RandomState::new().hash_one(0)
}

impl Default for Keyed {
    fn default() -> Self {
        Self(SeedableRandomState::with_seed(random(), &PROCESS))
    }
}

impl BuildHasher for Keyed {
    type Hasher = FoldHasher<'static>;

    fn build_hasher(&self) -> Self::Hasher {
        self.0.build_hasher()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_collides_in_one_map_does_not_in_another() {
        let maps = [(); 2].map(|()| Keyed::default());
        let bucket = |map: &Keyed, label: u32| map.hash_one(format!("label-{label}")) % 64;
        let together = |label: &u32| bucket(&maps[0], *label) == 0;
        let mut in_the_other = [0; 64];
        for label in (0..64 * 64).filter(together) {
            in_the_other[usize::try_from(bucket(&maps[1], label)).unwrap()] += 1;
        }
        let most = in_the_other.into_iter().max().unwrap();
        assert!(most < 16, "{in_the_other:?}");
        let key = "a".to_owned();
        assert_eq!(maps[0].hash_one(&key), maps[0].clone().hash_one("a"));
    }
}
