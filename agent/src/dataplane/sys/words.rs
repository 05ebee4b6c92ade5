//! Arrays mapped into this process: words that both sides read and write whole.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// An array map's values, mapped into this process: words are stored and loaded atomically, so a
/// program that loads a word once sees all of the old or all of the new one.
#[derive(Debug)]
pub(crate) struct MappedWords {
    base: ptr::NonNull<u8>,
    words: usize,
}

// SAFETY: the mapping is shared memory reached only through atomics; it belongs to the value and
// is unmapped once, in `drop`.
unsafe impl Send for MappedWords {}
// SAFETY: as above: every access is atomic.
unsafe impl Sync for MappedWords {}

impl MappedWords {
    /// Maps an array of `words` values of up to 8 bytes; the kernel spaces them 8 bytes apart.
    pub(crate) fn map(array: BorrowedFd<'_>, words: u32) -> io::Result<Self> {
        let words = words as usize;
        // SAFETY: a fresh shared mapping at an address of the kernel's choice; the kernel refuses
        // lengths beyond the array.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                words * size_of::<u64>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                array.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        ptr::NonNull::new(base.cast())
            .map(|base| Self { base, words })
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    fn place(&self, index: u32) -> Option<ptr::NonNull<u64>> {
        let index = index as usize;
        // SAFETY: `index` is inside the mapping, which is page-aligned and 8 bytes a word.
        (index < self.words).then(|| unsafe { self.base.cast::<u64>().add(index) })
    }

    /// The 8-byte word at `index`.
    pub(crate) fn load(&self, index: u32) -> Option<u64> {
        self.place(index).map(|place| {
            // SAFETY: aligned, inside the mapping, only ever accessed atomically.
            unsafe { AtomicU64::from_ptr(place.as_ptr()) }.load(Ordering::Acquire)
        })
    }

    /// Publishes the 8-byte word at `index`; false when there is no such place.
    pub(crate) fn store(&self, index: u32, word: u64) -> bool {
        self.place(index).is_some_and(|place| {
            // SAFETY: aligned, inside the mapping, only ever accessed atomically.
            unsafe { AtomicU64::from_ptr(place.as_ptr()) }.store(word, Ordering::Release);
            true
        })
    }

    /// The 4-byte value at `index`.
    pub(crate) fn load_u32(&self, index: u32) -> Option<u32> {
        self.place(index).map(|place| {
            // SAFETY: aligned, inside the mapping, only ever accessed atomically.
            unsafe { AtomicU32::from_ptr(place.cast().as_ptr()) }.load(Ordering::Acquire)
        })
    }

    /// Publishes the 4-byte value at `index`; false when there is no such place.
    pub(crate) fn store_u32(&self, index: u32, value: u32) -> bool {
        self.place(index).is_some_and(|place| {
            // SAFETY: aligned, inside the mapping, only ever accessed atomically.
            unsafe { AtomicU32::from_ptr(place.cast().as_ptr()) }.store(value, Ordering::Release);
            true
        })
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `map` made; nothing borrows from it.
        let unmapped =
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.words * size_of::<u64>()) };
        debug_assert_eq!(unmapped, 0, "munmap of a mapping we made");
    }
}
