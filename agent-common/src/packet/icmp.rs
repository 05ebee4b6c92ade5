//! ICMP (RFC 792), ICMPv6 (RFC 4443), and of the latter neighbour discovery (RFC 4861 §4) and
//! multicast listener discovery (RFC 2710 §3, RFC 3810 §5). What errors quote is `quote`'s.

use super::{Headers, transport::protocol};

/// Bytes every ICMP message has at least.
pub(super) const HEADER_BYTES: usize = 8;

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const V6_ECHO_REQUEST: u8 = 128;
const V6_ECHO_REPLY: u8 = 129;

/// Types of ICMPv6 that keep a link alive.
pub mod v6 {
    /// Multicast listener query.
    pub const LISTENER_QUERY: u8 = 130;
    /// Multicast listener report.
    pub const LISTENER_REPORT: u8 = 131;
    /// Multicast listener done.
    pub const LISTENER_DONE: u8 = 132;
    /// Router solicitation.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbour solicitation.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// Redirect.
    pub const REDIRECT: u8 = 137;
    /// Version 2 multicast listener report.
    pub const LISTENER_REPORT_V2: u8 = 143;
}

/// Messages about a packet that did not arrive.
mod error {
    pub(super) const UNREACHABLE: u8 = 3;
    pub(super) const TIME_EXCEEDED: u8 = 11;
    pub(super) const PARAMETER_PROBLEM: u8 = 12;
    /// RFC 4443 §2.1: of ICMPv6, destination unreachable, packet too big, time exceeded and
    /// parameter problem; what else there is below 128 has no meaning yet.
    pub(super) const V6: core::ops::RangeInclusive<u8> = 1..=4;
}

/// An echo message.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Echo {
    /// A request with this identifier.
    Request(u16),
    /// A reply with this identifier.
    Reply(u16),
}

/// Reads type, code and, of an echo, the identifier. ICMP of the other family is an unknown
/// protocol without either. True for an error, which quotes the packet it is about.
#[inline(always)]
pub(super) fn read([kind, code, i0, i1]: [u8; 4], headers: &mut Headers) -> bool {
    let is_v4 = headers.source.is_v4();
    if is_v4 != (headers.protocol == protocol::ICMP) {
        return false;
    }
    headers.detail = kind;
    headers.code = code;
    headers.echo = echo(is_v4, kind, u16::from_be_bytes([i0, i1]));
    if is_v4 {
        matches!(
            kind,
            error::UNREACHABLE | error::TIME_EXCEEDED | error::PARAMETER_PROBLEM
        )
    } else {
        error::V6.contains(&kind)
    }
}

/// The echo that a message of this type is, if it is one.
#[inline(always)]
pub(crate) const fn echo(is_v4: bool, kind: u8, identifier: u16) -> Option<Echo> {
    let (request, reply) = if is_v4 {
        (ECHO_REQUEST, ECHO_REPLY)
    } else {
        (V6_ECHO_REQUEST, V6_ECHO_REPLY)
    };
    if kind == request {
        Some(Echo::Request(identifier))
    } else if kind == reply {
        Some(Echo::Reply(identifier))
    } else {
        None
    }
}
