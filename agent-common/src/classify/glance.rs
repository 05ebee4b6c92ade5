//! The short way, for the packets there are most of: an established flow, headers in their usual
//! places, and nothing changed since the flow was judged.
//!
//! It knows nothing that the long way does not: where both could answer, both give the same
//! answer, and whatever is not plain at a glance is left to the long way.

use super::{
    Arrival, Hook, Room, flow, ownership, refusals, tables::FlowEntry as _, tables::FlowTables,
};
use crate::address::Address;
use crate::conntrack::{self, State, Timeout};
use crate::maps::{FlowKey, PendingKey, config_flags};
use crate::packet::{Head as _, Packet, ethernet, transport::protocol, transport::tcp_flags};
use crate::verdict::Reason;

/// What a glance at a packet says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Glance {
    /// It belongs to an established flow that is allowed; the books are kept.
    Established,
    /// It opens a connection that was refused a moment ago; the books are kept.
    Refused(Reason),
    /// It takes the long way.
    Unsure {
        /// CONNTRACK was asked for its flow and has none.
        is_untracked: bool,
    },
}

impl Glance {
    /// Nothing was asked yet.
    const NOTHING: Self = Self::Unsure {
        is_untracked: false,
    };
}

/// Passes a packet of an established flow, or sees that it takes more than a glance.
#[inline(always)]
pub fn glance<T: FlowTables, P: Packet + ?Sized>(
    room: &mut Room,
    tables: &T,
    packet: &P,
    at: &Arrival,
) -> Glance {
    let key = &mut room.key.0;
    let Some(flags) = read(packet, at.hook, &mut key.flow) else {
        return Glance::NOTHING;
    };
    let Some((config, revision)) = tables.endpoint(at.ifindex) else {
        return Glance::NOTHING;
    };
    // The policy is in place, and the flow is of the endpoint's own address.
    if config.flags & config_flags::PROGRAMMED == 0 || !ownership::is_own(config, key.flow.local) {
        return Glance::NOTHING;
    }
    key.slot = config.slot;
    if flags & tcp_flags::SYN != 0 {
        if !room.refusals.may_have(key) {
            return Glance::NOTHING;
        }
        let length = packet.length();
        let segment = refusals::Segment { flags, length };
        return match refusals::refuse_again(room, tables, at, revision, segment) {
            Some(reason) => Glance::Refused(reason),
            None => Glance::NOTHING,
        };
    }
    let Some(entry) = tables.connection(key) else {
        return Glance::Unsure { is_untracked: true };
    };
    let connection = entry.read();
    #[expect(clippy::cast_possible_truncation, reason = "stamps are the low half")]
    let now = tables.now() as u32;
    if connection.state != State::Established.number()
        || connection.revision != revision
        || connection.peer_revision != tables.peer_revision(connection.peer_bucket)
        || !flow::comes_as_before(at, false, &connection)
    {
        return Glance::NOTHING;
    }
    if connection.last_seen != now {
        // The signals that `read` lets through leave an established flow as it is.
        let timeouts = &tables.settings().timeouts;
        let place = Timeout::of(key.flow.protocol, State::Established);
        let is_alive = timeouts
            .get(place as usize)
            .is_some_and(|lifetime| !conntrack::is_expired(&connection, *lifetime, now));
        if !is_alive {
            return Glance::NOTHING;
        }
        entry.touch(now);
    }
    #[expect(clippy::cast_possible_truncation, reason = "it is 14")]
    let bytes = packet
        .length()
        .saturating_sub(ethernet::HEADER_BYTES as u32);
    tables.passed(config.slot, at.hook.direction(), bytes);
    Glance::Established
}

/// A key whose words are stored and hashed as such.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(8))]
pub(super) struct Place(pub(super) PendingKey);

const UDP_BYTES: usize = 8;
const TCP_BYTES: usize = 20;
/// Where the transport header is, behind an IPv4 header without options.
const V4_TRANSPORT: usize = ethernet::HEADER_BYTES + 20;
/// Where it is behind an IPv6 header without extensions.
const V6_TRANSPORT: usize = ethernet::HEADER_BYTES + 40;

/// Reads the flow of a TCP segment or a UDP datagram, whole and well-formed. Each part goes where it
/// stays as soon as it is known: the kernel's stack is small. Returns what [`flags`] does.
#[inline(always)]
fn read<P: Packet + ?Sized>(packet: &P, hook: Hook, key: &mut FlowKey) -> Option<u8> {
    let head = packet.head::<{ V4_TRANSPORT + UDP_BYTES }>()?;
    match u16::from_be(head.short::<12>()) {
        ethernet::IPV4 => {
            // Version 4, a header of five words; no fragment, neither first nor later.
            if head.byte::<14>() != 0x45 || u16::from_be(head.short::<20>()) & 0x3fff != 0 {
                return None;
            }
            *source_of(key, hook) = Address::from_v4_word(head.word::<26>());
            *destination_of(key, hook) = Address::from_v4_word(head.word::<30>());
            let protocol = head.byte::<23>();
            write_ports(key, hook, head.word::<V4_TRANSPORT>(), protocol);
            let end = ethernet::HEADER_BYTES + usize::from(u16::from_be(head.short::<16>()));
            flags::<V4_TRANSPORT, { V4_TRANSPORT + TCP_BYTES }, P>(packet, protocol, end)
        }
        ethernet::IPV6 => {
            let head = packet.head::<{ V6_TRANSPORT + UDP_BYTES }>()?;
            if head.byte::<14>() >> 4 != 6 {
                return None;
            }
            let source = Address::from_halves([head.long::<22>(), head.long::<30>()]);
            *source_of(key, hook) = source;
            let destination = Address::from_halves([head.long::<38>(), head.long::<46>()]);
            *destination_of(key, hook) = destination;
            let protocol = head.byte::<20>();
            write_ports(key, hook, head.word::<V6_TRANSPORT>(), protocol);
            let end = V6_TRANSPORT + usize::from(u16::from_be(head.short::<18>()));
            // An IPv4 address here is malformed.
            if source.is_v4() || destination.is_v4() {
                return None;
            }
            flags::<V6_TRANSPORT, { V6_TRANSPORT + TCP_BYTES }, P>(packet, protocol, end)
        }
        _ => None,
    }
}

/// TCP's flags, of a segment that is in mid-stream or opens a connection; nothing of a UDP datagram.
/// Both in an IP packet that says it ends at `end`.
#[inline(always)]
fn flags<const TRANSPORT: usize, const TCP_END: usize, P: Packet + ?Sized>(
    packet: &P,
    protocol: u8,
    end: usize,
) -> Option<u8> {
    use tcp_flags::{ACK, FIN, RST, SYN};
    if end > packet.length() as usize {
        return None;
    }
    match protocol {
        protocol::TCP => {
            let head = packet.head::<TCP_END>()?;
            let (length, flags) = if TRANSPORT == V4_TRANSPORT {
                (
                    head.byte::<{ V4_TRANSPORT + 12 }>(),
                    head.byte::<{ V4_TRANSPORT + 13 }>(),
                )
            } else {
                (
                    head.byte::<{ V6_TRANSPORT + 12 }>(),
                    head.byte::<{ V6_TRANSPORT + 13 }>(),
                )
            };
            let header_bytes = usize::from(length >> 4) << 2;
            if header_bytes < TCP_BYTES || TRANSPORT + header_bytes > end {
                return None;
            }
            let is_plain = flags & (SYN | FIN | RST) == 0;
            (is_plain || flags & (SYN | FIN | RST | ACK) == SYN).then_some(flags)
        }
        protocol::UDP => (TRANSPORT + UDP_BYTES <= end).then_some(0),
        _ => None,
    }
}

#[inline(always)]
fn source_of(key: &mut FlowKey, hook: Hook) -> &mut Address {
    match hook {
        Hook::FromPod => &mut key.local,
        Hook::ToPod => &mut key.peer,
    }
}

#[inline(always)]
fn destination_of(key: &mut FlowKey, hook: Hook) -> &mut Address {
    match hook {
        Hook::FromPod => &mut key.peer,
        Hook::ToPod => &mut key.local,
    }
}

/// `ports` are both, as they lie.
#[inline(always)]
fn write_ports(key: &mut FlowKey, hook: Hook, ports: u32, protocol: u8) {
    let [a, b, c, d] = ports.to_ne_bytes();
    let (source, destination) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    (key.local_port, key.peer_port) = match hook {
        Hook::FromPod => (source, destination),
        Hook::ToPod => (destination, source),
    };
    key.protocol = protocol;
}
