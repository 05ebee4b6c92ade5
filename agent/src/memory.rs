//! What the process keeps of the memory it frees: next to nothing.
//!
//! Left alone, glibc gives every thread a heap of its own, and once a large block was freed keeps
//! blocks of that size in these heaps, too. What is free in one heap is of no use to the others and
//! goes back late or never. The agent's work wanders over a dozen threads and takes some MiB for a
//! moment now and then, for a plan, a reading, an answer: two thirds of its memory were free.

/// Blocks from this size on are pages of their own, which go back when they are freed.
#[cfg(target_env = "gnu")]
const OWN_PAGES: libc::c_int = 128 << 10;

/// From now on, what any thread frees is of use to all of them or goes back to the system. To be
/// called before there are threads: heaps that are there stay.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, OWN_PAGES)] {
        // SAFETY: mallopt takes two numbers, and no other thread runs that could allocate.
        let _set_or_unknown = unsafe { libc::mallopt(parameter, value) };
    }
}
