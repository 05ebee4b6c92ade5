//! IEEE 802.3 Ethernet II: the ethertype.

use super::{Packet, ParseError};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 14;
/// Offset of the ethertype.
const ETHERTYPE: usize = 12;

/// IPv4 (RFC 894).
pub const IPV4: u16 = 0x0800;
/// ARP (RFC 826).
pub const ARP: u16 = 0x0806;
/// IPv6 (RFC 2464).
pub const IPV6: u16 = 0x86dd;

/// The ethertype.
///
/// # Errors
/// When the frame ends before it.
#[inline(always)]
pub(super) fn ethertype<P: Packet + ?Sized>(packet: &P) -> Result<u16, ParseError> {
    match packet.load(ETHERTYPE) {
        Some(bytes) => Ok(u16::from_be_bytes(bytes)),
        None => Err(ParseError::EthernetTruncated),
    }
}
