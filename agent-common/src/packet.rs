//! From bytes to headers: what a packet claims to be, checked against how long it is.

/// Bytes of one packet from its Ethernet header on: an skb in the kernel, a slice on the host.
///
/// Offsets are constant, or a constant plus a value bounded to at most [`MAX_HEADER_BYTES`] by a
/// comparison or a mask right before the call, so the kernel's `load` may add them to `data` once
/// it has masked them again with [`OFFSET_MASK`].
pub trait Packet {
    /// The `N` bytes at `offset`, or `None` when the packet ends before them. Where the bytes are
    /// (linear or paged) makes no difference.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Length of the whole packet in bytes, Ethernet header included.
    fn length(&self) -> u32;
}

/// No header is looked for past this many bytes: RFC 7112 §5 wants the whole header chain in the
/// first fragment, and RFC 8200 §5 lets every link carry 1 280 bytes.
pub const MAX_HEADER_BYTES: usize = 1280;

/// Every offset given to [`Packet::load`] fits this mask.
pub const OFFSET_MASK: usize = 0x7ff;

impl Packet for [u8] {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }

    fn length(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }
}
