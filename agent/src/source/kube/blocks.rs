//! Bytes of many documents in a few large blocks.
//!
//! A document is wanted until it is told: of ten thousand pods for a moment, at the start. Each in a
//! place of its own would leave as many holes in the heap, between what stays.

use bytes::{Bytes, BytesMut};

/// Large enough for pages of its own, which go back to the system with the last of its documents.
const BLOCK: usize = 256 << 10;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// What is left of the latest one.
    free: BytesMut,
}

impl Blocks {
    /// A copy of a document, in the block where the one before is.
    pub(super) fn keep(&mut self, document: &[u8]) -> Bytes {
        if self.free.capacity() < document.len() {
            self.free = BytesMut::with_capacity(BLOCK.max(document.len()));
        }
        self.free.extend_from_slice(document);
        self.free.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_follow_each_other_and_one_that_has_no_room_begins_a_block() {
        let mut blocks = Blocks::default();
        let first = blocks.keep(b"first");
        let second = blocks.keep(b"second");
        assert_eq!((&*first, &*second), (&b"first"[..], &b"second"[..]));
        assert_eq!(first.as_ptr_range().end, second.as_ptr_range().start);

        let large = vec![b'x'; BLOCK + 1];
        assert_eq!(blocks.keep(&large), large);
        let filling = blocks.keep(&large[..BLOCK]);
        let next = blocks.keep(b"next");
        assert_ne!(filling.as_ptr_range().end, next.as_ptr_range().start);
        assert_eq!((filling.len(), &*next), (BLOCK, &b"next"[..]));
        assert_eq!(&*first, b"first");
    }
}
