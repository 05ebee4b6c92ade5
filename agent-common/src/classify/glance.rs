//! The short way, for the packets there are most of: an established flow, headers in their usual
//! places, and nothing changed since the flow was judged.
//!
//! It knows nothing that the long way does not: where both could answer, both give the same
//! answer, and whatever is not plain at a glance is left to the long way.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    Arrival, Hook, Room, Segment, flow, ownership, tables::FlowEntry as _, tables::FlowTables,
};
use crate::address::Address;
use crate::conntrack::{self, State, Timeout};
use crate::maps::{Config, PendingKey, config_flags};
use crate::packet::{Head as _, Packet, ethernet, transport::protocol, transport::tcp_flags};

/// What a glance at a packet says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Glance {
    /// It belongs to an established flow that is allowed; the books are kept.
    Established,
    /// It opens a connection: [`super::open`] may do.
    Opens(Segment),
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
    let words = &mut room.key;
    let Some(flags) = read(packet, at.hook, words) else {
        return Glance::NOTHING;
    };
    let Some((config, revision)) = tables.endpoint(at.ifindex) else {
        return Glance::NOTHING;
    };
    words.write_slot(config.slot);
    if !words.is_of(config) {
        return Glance::NOTHING;
    }
    let key = words.key();
    if flags & tcp_flags::SYN != 0 {
        let length = packet.length();
        return Glance::Opens(Segment { flags, length });
    }
    let Some(entry) = tables.connection(key) else {
        return Glance::Unsure { is_untracked: true };
    };
    let connection = entry.read();
    if connection.state != State::Established.number()
        || connection.revision != revision
        || !flow::comes_as_before(at, false, &connection)
    {
        return Glance::NOTHING;
    }
    // Read where it is used, so that no call has to keep it.
    let peer_revision = tables.peer_revision(connection.peer_bucket);
    if entry.read().peer_revision != peer_revision {
        return Glance::NOTHING;
    }
    #[expect(clippy::cast_possible_truncation, reason = "stamps are the low half")]
    let now = tables.now() as u32;
    let connection = entry.read();
    if connection.last_seen != now {
        // The signals that `read` lets through leave an established flow as it is.
        let timeouts = &tables.settings().timeouts;
        let place = Timeout::of(key.flow.protocol, State::Established);
        let is_alive = timeouts
            .get(place as usize)
            .is_some_and(|lifetime| !conntrack::is_expired(connection.last_seen, *lifetime, now));
        if !is_alive {
            return Glance::NOTHING;
        }
        entry.touch(now);
    }
    #[expect(clippy::cast_possible_truncation, reason = "it is 14")]
    // More than that was read.
    let bytes = packet.length() - ethernet::HEADER_BYTES as u32;
    tables.passed(config.slot, at.hook.direction(), bytes);
    Glance::Established
}

/// A flow's key while it is read, in whole words: the kernel hashes and compares words, and a load of
/// one waits for stores of its parts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KeyWords([u64; 6]);

/// What its words are.
#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C)]
struct Padded {
    key: PendingKey,
    rest: u32,
}

impl KeyWords {
    #[inline(always)]
    pub(super) const fn key(&self) -> &PendingKey {
        let padded: &Padded = zerocopy::transmute_ref!(&self.0);
        &padded.key
    }

    /// Writes what the packet's header says of its two ends; `ports` are both, as they lie.
    #[inline(always)]
    fn write(
        &mut self,
        hook: Hook,
        (source, destination): ([u64; 2], [u64; 2]),
        ports: u32,
        protocol: u8,
    ) {
        let (local, peer) = match hook {
            Hook::FromPod => (source, destination),
            Hook::ToPod => (destination, source),
        };
        [self.0[0], self.0[1]] = local;
        [self.0[2], self.0[3]] = peer;
        // The source's port is the high half, and fields come the low one first.
        let ports = u32::from_be(ports);
        let ports = match hook {
            Hook::FromPod => ports.rotate_left(16),
            Hook::ToPod => ports,
        };
        self.0[4] = u64::from(ports) | u64::from(protocol) << 32;
    }

    /// Writes the endpoint's slot.
    #[inline(always)]
    fn write_slot(&mut self, slot: u32) {
        self.0[5] = u64::from(slot);
    }

    /// True for a flow of an endpoint's own address and slot, whose policy is in place.
    #[inline(always)]
    pub(super) fn is_of(&self, config: &Config) -> bool {
        let [a, b, _, _, _, slot] = self.0;
        config.flags & config_flags::PROGRAMMED != 0
            && ownership::is_own(config, [a, b])
            && slot == u64::from(config.slot)
    }
}

const UDP_BYTES: usize = 8;
const TCP_BYTES: usize = 20;
/// Where the transport header is, behind an IPv4 header without options.
const V4_TRANSPORT: usize = ethernet::HEADER_BYTES + 20;
/// Where it is behind an IPv6 header without extensions.
const V6_TRANSPORT: usize = ethernet::HEADER_BYTES + 40;

/// Reads the flow of a TCP segment or a UDP datagram, whole and well-formed. Each part goes where it
/// stays as soon as it is known: the kernel's stack is small. Returns what [`flags`] does.
#[inline(always)]
fn read<P: Packet + ?Sized>(packet: &P, hook: Hook, words: &mut KeyWords) -> Option<u8> {
    let head = packet.head::<{ V4_TRANSPORT + UDP_BYTES }>()?;
    match u16::from_be(head.short::<12>()) {
        ethernet::IPV4 => {
            // Version 4, a header of five words; no fragment, neither first nor later.
            if head.byte::<14>() != 0x45 || u16::from_be(head.short::<20>()) & 0x3fff != 0 {
                return None;
            }
            let source = Address::from_v4_word(head.word::<26>());
            let destination = Address::from_v4_word(head.word::<30>());
            let protocol = head.byte::<23>();
            let addresses = (source.halves(), destination.halves());
            words.write(hook, addresses, head.word::<V4_TRANSPORT>(), protocol);
            let end = ethernet::HEADER_BYTES + usize::from(u16::from_be(head.short::<16>()));
            flags::<V4_TRANSPORT, { V4_TRANSPORT + TCP_BYTES }, P>(packet, protocol, end)
        }
        ethernet::IPV6 => {
            let head = packet.head::<{ V6_TRANSPORT + UDP_BYTES }>()?;
            if head.byte::<14>() >> 4 != 6 {
                return None;
            }
            let source = Address::from_halves([head.long::<22>(), head.long::<30>()]);
            let destination = Address::from_halves([head.long::<38>(), head.long::<46>()]);
            let protocol = head.byte::<20>();
            let addresses = (source.halves(), destination.halves());
            words.write(hook, addresses, head.word::<V6_TRANSPORT>(), protocol);
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
