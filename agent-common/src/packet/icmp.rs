//! ICMP (RFC 792), ICMPv6 (RFC 4443), and of the latter neighbour discovery (RFC 4861 §4) and
//! multicast listener discovery (RFC 2710 §3, RFC 3810 §5).

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

/// An echo message.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Echo {
    /// A request with this identifier.
    Request(u16),
    /// A reply with this identifier.
    Reply(u16),
}

/// Reads type, code and, of an echo, the identifier. ICMP of the other family is an unknown
/// protocol without either.
#[inline(always)]
pub(super) fn read([kind, code, i0, i1]: [u8; 4], headers: &mut Headers) {
    let identifier = u16::from_be_bytes([i0, i1]);
    let (request, reply) = match (headers.protocol, headers.source.is_v4()) {
        (protocol::ICMP, true) => (ECHO_REQUEST, ECHO_REPLY),
        (protocol::ICMPV6, false) => (V6_ECHO_REQUEST, V6_ECHO_REPLY),
        _ => return,
    };
    headers.detail = kind;
    headers.code = code;
    if kind == request {
        headers.echo = Some(Echo::Request(identifier));
    } else if kind == reply {
        headers.echo = Some(Echo::Reply(identifier));
    }
}
