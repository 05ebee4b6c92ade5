//! The short way, for the packets there are most of: an established flow, to its end, headers in
//! their usual places, and nothing changed since the flow was judged.
//!
//! It knows nothing that the long way does not: where both could answer, both give the same
//! answer, and whatever is not plain at a glance is left to the long way.

use super::{
    Arrival, Hook, Room, Segment, flow, ownership, tables::FlowEntry as _, tables::FlowTables,
};
use crate::address::Address;
use crate::conntrack::{self, Signal, State, Timeout};
use crate::maps::{Config, FlowKey, config_flags};
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
    if !is_complete(connection.state)
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
    // A new tick, or an end: else the packet leaves the entry as it is.
    if connection.last_seen != now || flags & tcp_flags::FIN != 0 {
        let timeouts = &tables.settings().timeouts;
        let state = State::from_number(connection.state);
        let place = Timeout::of(key.protocol, state);
        let is_alive = timeouts
            .get(place as usize)
            .is_some_and(|lifetime| !conntrack::is_expired(connection.last_seen, *lifetime, now));
        if !is_alive {
            return Glance::NOTHING;
        }
        if flags & tcp_flags::FIN != 0 {
            let is_from_originator = connection.originator == at.hook.direction().index();
            let flags = connection.flags;
            let (state, flags) = conntrack::step(state, flags, Signal::Finish, is_from_originator);
            entry.advance(state.number(), flags);
        }
        entry.touch(now);
    }
    #[expect(clippy::cast_possible_truncation, reason = "it is 14")]
    // More than that was read.
    let bytes = packet.length() - ethernet::HEADER_BYTES as u32;
    tables.passed(config.slot, at.hook.direction(), bytes);
    Glance::Established
}

/// True of a flow that both sides have agreed to, also once it has ended.
#[inline(always)]
const fn is_complete(state: u8) -> bool {
    state == State::Established.number() || state == State::Closing.number()
}

/// A flow's key while it is read, and the pod's side of it, in whole words: the kernel hashes and
/// compares words, and a load of one waits for stores of its parts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KeyWords {
    local: [u64; 2],
    key: [u64; 3],
}

impl KeyWords {
    #[inline(always)]
    pub(super) const fn key(&self) -> &FlowKey {
        zerocopy::transmute_ref!(&self.key)
    }

    /// The pod's side.
    #[inline(always)]
    pub(super) const fn local(&self) -> Address {
        Address::from_halves(self.local)
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
        let (local, [a, b]) = match hook {
            Hook::FromPod => (source, destination),
            Hook::ToPod => (destination, source),
        };
        // The source's port is the high half, and fields come the low one first.
        let ports = u32::from_be(ports);
        let ports = match hook {
            Hook::FromPod => ports.rotate_left(16),
            Hook::ToPod => ports,
        };
        self.local = local;
        self.key = [a, b, u64::from(ports) | u64::from(protocol) << 32];
    }

    /// Writes the endpoint's slot.
    #[inline(always)]
    fn write_slot(&mut self, slot: u32) {
        self.key[2] |= u64::from(slot) << SLOT_SHIFT;
    }

    /// True for a flow of an endpoint's own address and slot, whose policy is in place.
    #[inline(always)]
    pub(super) fn is_of(&self, config: &Config) -> bool {
        let [.., rest] = self.key;
        config.flags & config_flags::PROGRAMMED != 0
            && ownership::is_own(config, self.local)
            && rest >> SLOT_SHIFT == u64::from(config.slot)
    }
}

/// Where the slot is in the key's last word: behind ports, protocol and the local side, which is 0.
const SLOT_SHIFT: u32 = 48;

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

/// TCP's flags, of a segment that opens a connection, is in mid-stream or ends it; nothing of a UDP datagram.
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
            let goes_on = flags & (SYN | RST) == 0;
            (goes_on || flags & (SYN | FIN | RST | ACK) == SYN).then_some(flags)
        }
        protocol::UDP => (TRANSPORT + UDP_BYTES <= end).then_some(0),
        _ => None,
    }
}
