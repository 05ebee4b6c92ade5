//! IPv4 (RFC 791 §3.1).

use super::{
    Extent, Fragmentation, Headers, Packet, ParseError, ethernet::HEADER_BYTES, packet_end,
};
use crate::address::Address;

/// Bytes of the header without options.
pub(super) const BASE_BYTES: usize = 20;
const VERSION_AND_LENGTH: usize = HEADER_BYTES;
const TOTAL_LENGTH: usize = HEADER_BYTES + 2;
const IDENTIFICATION: usize = HEADER_BYTES + 4;
const TTL_AND_PROTOCOL: usize = HEADER_BYTES + 8;
const SOURCE: usize = HEADER_BYTES + 12;
const DESTINATION: usize = HEADER_BYTES + 16;

/// "More fragments", of the fragment field.
const MORE_FRAGMENTS: u16 = 0x2000;
/// Offset in units of eight bytes, of the fragment field.
pub(super) const FRAGMENT_OFFSET: u16 = 0x1fff;

/// Reads the header; options are skipped.
///
/// # Errors
/// When it is not an IPv4 header, or says more than the frame holds.
#[inline(always)]
pub(super) fn parse<P: Packet + ?Sized>(
    packet: &P,
    headers: &mut Headers,
) -> Result<Extent, ParseError> {
    let truncated = ParseError::IpTruncated;
    // The destination comes last: when it is there, so is the rest.
    let destination = packet.load(DESTINATION).ok_or(truncated)?;
    let source = packet.load(SOURCE).ok_or(truncated)?;
    let [version_and_length] = packet.load(VERSION_AND_LENGTH).ok_or(truncated)?;
    if version_and_length >> 4 != 4 {
        return Err(ParseError::Version);
    }
    let header_bytes = ((version_and_length & 0xf) as usize) << 2;
    let total = u16::from_be_bytes(packet.load(TOTAL_LENGTH).ok_or(truncated)?);
    let end = packet_end(packet, total as usize, total == 0)?;
    if header_bytes < BASE_BYTES || HEADER_BYTES + header_bytes > end {
        return Err(ParseError::HeaderLength);
    }
    let [i0, i1, f0, f1] = packet.load(IDENTIFICATION).ok_or(truncated)?;
    let fragment = u16::from_be_bytes([f0, f1]);
    headers.identification = u32::from(u16::from_be_bytes([i0, i1]));
    headers.fragment_offset = fragment << 3;
    headers.fragmentation = if fragment & FRAGMENT_OFFSET != 0 {
        Fragmentation::Later
    } else if fragment & MORE_FRAGMENTS != 0 {
        Fragmentation::First
    } else {
        Fragmentation::Whole
    };
    let [hop_limit, protocol] = packet.load(TTL_AND_PROTOCOL).ok_or(truncated)?;
    headers.hop_limit = hop_limit;
    headers.protocol = protocol;
    headers.source = Address::from_v4(source);
    headers.destination = Address::from_v4(destination);
    let transport = HEADER_BYTES + header_bytes;
    headers.pieces_at = transport;
    Ok(Extent { transport, end })
}
