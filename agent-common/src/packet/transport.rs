//! TCP (RFC 9293 §3.1), UDP (RFC 768) and SCTP (RFC 9260 §3): ports and what opens or ends a flow.

use super::{Extent, Fragmentation, Headers, MAX_HEADER_BYTES, Packet, ParseError, icmp};

/// IP protocol numbers (IANA).
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// TCP flags, as they are in the header's fourteenth byte.
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 2;
    /// Reset the connection.
    pub const RST: u8 = 4;
    /// The acknowledgement number is valid.
    pub const ACK: u8 = 16;
}

const TCP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
/// The common header and the first chunk's own.
const SCTP_BYTES: usize = 16;

/// Whether a protocol has ports that policies can name.
#[inline(always)]
pub const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
}

/// Bytes that a packet of this protocol has at least, for us to read; 0 when we read none.
#[inline(always)]
pub(crate) const fn header_bytes(protocol: u8) -> usize {
    match protocol {
        protocol::TCP => TCP_BYTES,
        protocol::UDP => UDP_BYTES,
        protocol::SCTP => SCTP_BYTES,
        protocol::ICMP | protocol::ICMPV6 => icmp::HEADER_BYTES,
        _ => 0,
    }
}

/// Reads the transport header into `headers`.
///
/// # Errors
/// When the packet ends inside it, or it lies about its length.
#[inline(always)]
pub(super) fn parse<P: Packet + ?Sized>(
    packet: &P,
    Extent {
        transport: offset,
        end,
    }: Extent,
    headers: &mut Headers,
) -> Result<(), ParseError> {
    if offset > MAX_HEADER_BYTES {
        return Err(ParseError::ExtensionChain);
    }
    let needed = header_bytes(headers.protocol);
    if needed == 0 {
        return Ok(());
    }
    if offset + needed > end {
        return Err(ParseError::TransportTruncated);
    }
    let truncated = ParseError::TransportTruncated;
    let [b0, b1, b2, b3, b4, b5, _, _] = packet.load(offset).ok_or(truncated)?;
    if !has_ports(headers.protocol) {
        if icmp::read([b0, b1, b4, b5], headers) {
            // The node may put it together on its way, and what it quotes was looked at nowhere.
            if !matches!(headers.fragmentation, Fragmentation::Whole) {
                return Err(ParseError::ErrorInPieces);
            }
            headers.read_quote(packet, offset + icmp::HEADER_BYTES, end);
        }
        return Ok(());
    }
    headers.source_port = u16::from_be_bytes([b0, b1]);
    headers.destination_port = u16::from_be_bytes([b2, b3]);
    if headers.protocol != protocol::UDP {
        let [a0, a1, a2, a3, kind_or_length, flags] = packet.load(offset + 8).ok_or(truncated)?;
        if headers.protocol == protocol::SCTP {
            headers.detail = kind_or_length;
        } else {
            headers.acknowledgement = u32::from_be_bytes([a0, a1, a2, a3]);
            let header_bytes = (kind_or_length >> 4 << 2) as usize;
            if header_bytes < TCP_BYTES || offset + header_bytes > end {
                return Err(ParseError::TcpHeaderLength);
            }
            headers.detail = flags;
        }
    }
    Ok(())
}
