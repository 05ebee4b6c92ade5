//! What an ICMP error quotes: the beginning of the packet it is about (RFC 792, RFC 4443 §2.4 (c)).

use super::{Packet, icmp, ipv4, ipv6, transport, transport::protocol};
use crate::address::Address;
use icmp::Echo;

/// The tuple of the packet that an error is about, as its sender wrote it.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Quote {
    /// Source address: whom the error is for.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port, host order; 0 without ports.
    pub source_port: u16,
    /// Destination port, host order; 0 without ports.
    pub destination_port: u16,
    /// What kind of ICMP echo it is, with the identifier.
    pub echo: Option<Echo>,
    /// IP protocol number of the transport header.
    pub protocol: u8,
}

/// RFC 792 quotes this much of the transport, ports among it.
const TRANSPORT_BYTES: usize = 8;

/// Reads the quote at `at`, of the family of the error itself. `None` when it tells no ports: it is
/// too short, a later fragment, an error of its own, or has extension headers other than the one
/// that a fragment too big for a link has (RFC 8201 §4).
#[inline(never)]
pub(super) fn read<P: Packet + ?Sized>(
    packet: &P,
    at: usize,
    end: usize,
    is_v4: bool,
    quote: &mut Quote,
) -> Option<()> {
    if at > super::MAX_HEADER_BYTES {
        return None;
    }
    let transport = if is_v4 {
        read_v4(packet, at, quote)?
    } else {
        read_v6(packet, at, quote)?
    };
    if transport + TRANSPORT_BYTES > end {
        return None;
    }
    let [b0, b1, b2, b3, b4, b5, _, _] = packet.load(transport)?;
    if transport::has_ports(quote.protocol) {
        quote.source_port = u16::from_be_bytes([b0, b1]);
        quote.destination_port = u16::from_be_bytes([b2, b3]);
    } else if matches!(quote.protocol, protocol::ICMP | protocol::ICMPV6) {
        quote.echo = Some(icmp::echo(is_v4, b0, u16::from_be_bytes([b4, b5]))?);
    }
    Some(())
}

/// The header of an IPv4 packet; returns where its transport begins.
#[inline(always)]
fn read_v4<P: Packet + ?Sized>(packet: &P, at: usize, quote: &mut Quote) -> Option<usize> {
    let [version_and_length, _, _, _, _, _, f0, f1] = packet.load(at)?;
    let [_, protocol, _, _, s0, s1, s2, s3] = packet.load(at + 8)?;
    let header_bytes = ((version_and_length & 0xf) as usize) << 2;
    let is_later = u16::from_be_bytes([f0, f1]) & ipv4::FRAGMENT_OFFSET != 0;
    if version_and_length >> 4 != 4 || header_bytes < ipv4::BASE_BYTES || is_later {
        return None;
    }
    quote.source = Address::from_v4([s0, s1, s2, s3]);
    quote.destination = Address::from_v4(packet.load(at + 16)?);
    quote.protocol = protocol;
    Some(at + header_bytes)
}

/// The same of IPv6.
#[inline(always)]
fn read_v6<P: Packet + ?Sized>(packet: &P, at: usize, quote: &mut Quote) -> Option<usize> {
    let [version, _, _, _, _, _, next, _] = packet.load(at)?;
    quote.source = packet.load_address(at + 8)?;
    quote.destination = packet.load_address(at + 24)?;
    quote.protocol = next;
    if version >> 4 != 6 {
        return None;
    }
    if next != ipv6::FRAGMENT {
        return Some(at + ipv6::BASE_BYTES);
    }
    let [next, _, f0, f1] = packet.load(at + ipv6::BASE_BYTES)?;
    quote.protocol = next;
    let is_later = u16::from_be_bytes([f0, f1]) & ipv6::FRAGMENT_OFFSET != 0;
    (!is_later).then_some(at + ipv6::BASE_BYTES + 8)
}
