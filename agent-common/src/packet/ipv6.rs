//! IPv6 (RFC 8200 §3) and its extension headers (§4, RFC 4302 §2.2).

use super::{
    Extent, Fragmentation, Headers, MAX_HEADER_BYTES, Packet, ParseError, ethernet::HEADER_BYTES,
    packet_end,
};

/// Bytes of the fixed header.
pub(super) const BASE_BYTES: usize = 40;
const VERSION: usize = HEADER_BYTES;
const PAYLOAD_LENGTH: usize = HEADER_BYTES + 4;
const NEXT_AND_HOP_LIMIT: usize = HEADER_BYTES + 6;
const SOURCE: usize = HEADER_BYTES + 8;
const DESTINATION: usize = HEADER_BYTES + 24;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
pub(super) const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Extension headers followed. RFC 8200 §4.1 knows six places.
pub const MAX_EXTENSIONS: usize = 8;

/// "More fragments", of the fragment header's offset field.
const MORE_FRAGMENTS: u16 = 1;
/// Offset in units of eight bytes, in place.
pub(super) const FRAGMENT_OFFSET: u16 = 0xfff8;

/// Reads the fixed header and walks the extension headers.
///
/// # Errors
/// When it is not an IPv6 header, says more than the frame holds, or the chain has no end that
/// we can reach.
#[inline(always)]
pub(super) fn parse<P: Packet + ?Sized>(
    packet: &P,
    headers: &mut Headers,
) -> Result<Extent, ParseError> {
    let truncated = ParseError::IpTruncated;
    // The destination comes last: when it is there, so is the rest.
    headers.destination = packet.load_address(DESTINATION).ok_or(truncated)?;
    headers.source = packet.load_address(SOURCE).ok_or(truncated)?;
    let [version] = packet.load(VERSION).ok_or(truncated)?;
    if version >> 4 != 6 {
        return Err(ParseError::Version);
    }
    let payload = u16::from_be_bytes(packet.load(PAYLOAD_LENGTH).ok_or(truncated)?);
    let end = packet_end(packet, BASE_BYTES + payload as usize, payload == 0)?;
    if headers.source.is_v4() || headers.destination.is_v4() {
        return Err(ParseError::MappedAddress);
    }
    let [protocol, hop_limit] = packet.load(NEXT_AND_HOP_LIMIT).ok_or(truncated)?;
    headers.protocol = protocol;
    headers.hop_limit = hop_limit;
    let transport = if is_extension(protocol) {
        headers.has_extension_header = true;
        walk(packet, end, headers)?
    } else {
        HEADER_BYTES + BASE_BYTES
    };
    Ok(Extent { transport, end })
}

/// True for the headers that stand between the fixed header and the transport's.
#[inline(always)]
const fn is_extension(kind: u8) -> bool {
    matches!(
        kind,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS
    )
}

/// Follows the extension headers up to the transport header or a later fragment's data; returns
/// where that begins. Few packets come here.
#[inline(never)]
fn walk<P: Packet + ?Sized>(
    packet: &P,
    end: usize,
    headers: &mut Headers,
) -> Result<usize, ParseError> {
    let mut offset = HEADER_BYTES + BASE_BYTES;
    // Written out, not a loop: Linux 5.10 refuses a loop whose end falls through into its head,
    // and how it is laid out is the compiler's.
    macro_rules! follow_next {
        ($($count:literal)*) => {$(
            // RFC 8200 §4.3: hop-by-hop options come first or not at all.
            if $count > 1 && headers.protocol == HOP_BY_HOP {
                return Err(ParseError::ExtensionChain);
            }
            if !follow(packet, end, headers, &mut offset)? {
                return Ok(offset);
            }
        )*};
    }
    follow_next!(1 2 3 4 5 6 7 8);
    const { assert!(MAX_EXTENSIONS == 8, "as many as are written out above") };
    if is_extension(headers.protocol) {
        return Err(ParseError::ExtensionChain);
    }
    Ok(offset)
}

/// Follows one extension header, if there is one at `offset`; true when there may be another.
#[inline(never)]
fn follow<P: Packet + ?Sized>(
    packet: &P,
    end: usize,
    headers: &mut Headers,
    offset: &mut usize,
) -> Result<bool, ParseError> {
    let kind = headers.protocol;
    if !is_extension(kind) {
        return Ok(false);
    }
    if *offset > MAX_HEADER_BYTES {
        return Err(ParseError::ExtensionChain);
    }
    if *offset + 8 > end {
        return Err(ParseError::TransportTruncated);
    }
    let Some([next, length, b2, b3, i0, i1, i2, i3]) = packet.load(*offset) else {
        return Err(ParseError::TransportTruncated);
    };
    headers.protocol = next;
    *offset += match kind {
        FRAGMENT => 8,
        // RFC 4302 §2.2: in four-byte units, minus two.
        AUTHENTICATION => (length as usize + 2) << 2,
        _ => (length as usize + 1) << 3,
    };
    if *offset > end {
        return Err(ParseError::TransportTruncated);
    }
    match kind {
        HOP_BY_HOP => headers.has_hop_by_hop = true,
        // Its third byte is the type, its fourth the segments left.
        ROUTING if b3 != 0 => return Err(ParseError::Routing),
        // One of a fragment would have to be put together twice (RFC 8200 §4.1: once at most).
        FRAGMENT if headers.has_fragment_header => return Err(ParseError::ExtensionChain),
        FRAGMENT => {
            headers.has_fragment_header = true;
            headers.pieces_at = *offset;
            headers.identification = u32::from_be_bytes([i0, i1, i2, i3]);
            let field = u16::from_be_bytes([b2, b3]);
            headers.fragment_offset = field & FRAGMENT_OFFSET;
            if field & FRAGMENT_OFFSET != 0 {
                headers.fragmentation = Fragmentation::Later;
                return Ok(false);
            }
            if field & MORE_FRAGMENTS != 0 {
                headers.fragmentation = Fragmentation::First;
            }
        }
        _ => {}
    }
    Ok(true)
}
