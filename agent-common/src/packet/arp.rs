//! ARP (RFC 826) for IPv4 on Ethernet: who says what address is at its own hardware address.

use super::{Head as _, Headers, Packet, ParseError, ethernet::HEADER_BYTES};
use crate::address::Address;

const KINDS: usize = HEADER_BYTES;
const SENDER: usize = HEADER_BYTES + 14;
const END: usize = HEADER_BYTES + 28;
/// Longest frame: Ethernet fills up to 60 bytes, and what is much longer carries something else.
const LONGEST_FRAME: u32 = 128;

/// Ethernet and IPv4, six and four bytes of address, and an operation, of which there are two: ask is
/// 1, answer 2.
const KIND: u64 = u64::from_be_bytes([0, 1, 8, 0, 6, 4, 0, 0]);
const OPERATIONS: u64 = 2;

/// Reads the sender's protocol address as the packet's source; `::` when it has none yet (RFC 5227
/// §1.1: a probe).
///
/// # Errors
/// When it is no ARP between IPv4 and Ethernet addresses, is too short or too long to be that, or not
/// in one piece: so few bytes always are.
#[inline(always)]
pub(super) fn parse<P: Packet + ?Sized>(
    packet: &P,
    headers: &mut Headers,
) -> Result<(), ParseError> {
    let Some(head) = packet.head::<END>() else {
        return Err(ParseError::Arp);
    };
    let operation = u64::from_be(head.long::<KINDS>()) ^ KIND;
    if operation.wrapping_sub(1) >= OPERATIONS || packet.length() > LONGEST_FRAME {
        return Err(ParseError::Arp);
    }
    let sender = head.word::<SENDER>();
    if sender != 0 {
        headers.source = Address::from_v4_word(sender);
    }
    Ok(())
}
