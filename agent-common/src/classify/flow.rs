//! Which flow a packet belongs to, and what is known of it.

use super::{Arrival, Hook, Seen, ownership, tables::FlowEntry as _, tables::FlowTables};
use crate::address::Address;
use crate::conntrack::{self, Signal, State, Timeout};
use crate::maps::{
    Config, Connection, Counter, FlowKey,
    connection_flags::{ITSELF, NODE},
    flow_slot, other_local,
};
use crate::packet::{Headers, icmp::Echo, quote::Quote};
use crate::verdict::Direction;

/// `FlowKey::peer_port` of an ICMP echo the pod asked for.
pub const ECHO_BY_POD: u16 = 0;
/// `FlowKey::peer_port` of an ICMP echo the peer asked for.
pub const ECHO_BY_PEER: u16 = 1;

/// The flow's key, the same for both of its directions, at the endpoint of `config`.
///
/// Who asks is part of an echo's key: a peer that answers the pod's echoes could otherwise send
/// requests of its own under the same identifier, past policy.
#[inline(always)]
pub(super) fn key_of(headers: &Headers, hook: Hook, config: Option<&Config>) -> FlowKey {
    key(
        hook,
        (headers.source, headers.source_port),
        (headers.destination, headers.destination_port),
        headers.echo,
        headers.protocol,
        config,
    )
}

/// The key of the flow that an ICMP error is about. What it quotes went the other way than it.
#[inline(always)]
pub(super) fn key_of_quote(quote: &Quote, hook: Hook, config: &Config) -> FlowKey {
    let quoted_at = match hook {
        Hook::FromPod => Hook::ToPod,
        Hook::ToPod => Hook::FromPod,
    };
    key(
        quoted_at,
        (quote.source, quote.source_port),
        (quote.destination, quote.destination_port),
        quote.echo,
        quote.protocol,
        Some(config),
    )
}

#[inline(always)]
fn key(
    hook: Hook,
    source: (Address, u16),
    destination: (Address, u16),
    echo: Option<Echo>,
    protocol: u8,
    config: Option<&Config>,
) -> FlowKey {
    let ((local, local_port), (peer, peer_port)) = match hook {
        Hook::FromPod => (source, destination),
        Hook::ToPod => (destination, source),
    };
    let (local_port, peer_port) = match (echo, hook) {
        (None, _) => (local_port, peer_port),
        (Some(Echo::Request(identifier)), Hook::FromPod)
        | (Some(Echo::Reply(identifier)), Hook::ToPod) => (identifier, ECHO_BY_POD),
        (Some(Echo::Request(identifier)), Hook::ToPod)
        | (Some(Echo::Reply(identifier)), Hook::FromPod) => (identifier, ECHO_BY_PEER),
    };
    let is_own = config.is_some_and(|config| ownership::is_own(config, local.halves()));
    let local = if is_own { 0 } else { other_local(local) };
    let slot = config.map_or(0, |config| flow_slot(config.slot));
    let ([a, b], [c, d]) = (local_port.to_ne_bytes(), peer_port.to_ne_bytes());
    let [e, f] = slot.to_ne_bytes();
    // In words: the kernel's stack is too small for a key in parts.
    let [first, second] = peer.halves();
    let rest = u64::from_ne_bytes([a, b, c, d, protocol, local, e, f]);
    zerocopy::transmute!([first, second, rest])
}

/// A flow that is known.
pub(super) struct Known<E> {
    pub(super) entry: E,
    found: Found,
}

/// Where a flow was found.
#[derive(Clone, Copy)]
enum Found {
    /// In CONNTRACK.
    Kept,
    /// In PENDING.
    Pending,
    /// In PENDING, and CONNTRACK has an older one with the same ports.
    PendingBesideOlder,
}

/// Finds the flow in CONNTRACK, else in PENDING. Expired entries, and those that a new connection
/// with the same ports supersedes, are not found.
#[inline(always)]
pub(super) fn find<T: FlowTables>(tables: &T, seen: &Seen) -> Option<Known<T::Entry>> {
    let (flow, signal) = (&seen.flow, seen.signal);
    if matches!(signal, Signal::Untracked) {
        return None;
    }
    // Whoever opens a connection that is complete means another one.
    let kept = if seen.is_untracked || matches!(signal, Signal::Open) {
        None
    } else {
        let entry = find_in(tables, seen, signal, tables.connection(flow));
        entry.map(|entry| Known {
            entry,
            found: Found::Kept,
        })
    };
    // A new connection waits in PENDING beside the old one with the same ports until it is
    // accepted, so a forged SYN takes nothing away.
    if kept.is_some() && !matches!(signal, Signal::Accept) {
        return kept;
    }
    match find_in(tables, seen, signal, tables.pending(flow)) {
        Some(entry) => Some(Known {
            entry,
            found: if kept.is_some() {
                Found::PendingBesideOlder
            } else {
                Found::Pending
            },
        }),
        None => kept,
    }
}

/// False for a packet under the tuple of a flow to the pod that did not come in where that flow
/// does: a masquerade may give one sender's port to another, and what the node or the pod itself
/// may do is nobody else's. Not asked in `find`: Linux 5.10 loses track of an entry that is given
/// up after it was read.
#[inline(always)]
pub(super) fn comes_as_before(
    at: &Arrival,
    has_fragment_header: bool,
    connection: &Connection,
) -> bool {
    if !matches!(at.hook, Hook::ToPod) || connection.originator != Direction::Ingress.index() {
        return true;
    }
    let ingress_ifindex = at.ingress_ifindex;
    if connection.flags & NODE != 0 {
        ingress_ifindex == 0 && !has_fragment_header
    } else if connection.flags & ITSELF != 0 {
        ingress_ifindex == at.ifindex
    } else {
        connection.via == 0 || connection.via == ingress_ifindex
    }
}

#[inline(always)]
fn find_in<T: FlowTables>(
    tables: &T,
    seen: &Seen,
    signal: Signal,
    entry: Option<T::Entry>,
) -> Option<T::Entry> {
    let entry = entry?;
    let connection = entry.read();
    let state = State::from_number(connection.state);
    let place = Timeout::of(seen.flow.protocol, state) as usize;
    let lifetime = *tables.settings().timeouts.get(place)?;
    if conntrack::is_expired(connection.last_seen, lifetime, seen.now32()) {
        return None;
    }
    // RFC 9293 §3.10.7.4: a SYN on a known tuple is a connection of its own, unless it repeats
    // the one that is being opened.
    let is_repeated = matches!(state, State::Opening | State::Answered)
        && connection.originator == seen.direction.index();
    if matches!(signal, Signal::Open) && !is_repeated {
        return None;
    }
    Some(entry)
}

/// Writes down that the packet belongs to the flow. It leaves PENDING once both sides have agreed to
/// it: half-open connections take no place from complete ones. One that replaces another leaves as
/// soon as it is accepted: until then the tuple's packets are the other's.
#[inline(always)]
pub(super) fn advance<T: FlowTables>(tables: &T, seen: &Seen, known: &Known<T::Entry>) {
    let signal = seen.signal;
    let before = known.entry.read();
    let is_from_originator = before.originator == seen.direction.index();
    let (state, flags) = conntrack::step(
        State::from_number(before.state),
        before.flags,
        signal,
        is_from_originator,
    );
    let now = seen.now32();
    let leaves_pending = match known.found {
        Found::Kept => false,
        Found::Pending => {
            matches!(state, State::Established)
                && (!is_from_originator || before.state == State::Answered.number())
        }
        Found::PendingBesideOlder => !is_from_originator,
    };
    if leaves_pending && promote(tables, seen, &known.entry, state, flags) {
        return;
    }
    if state.number() != before.state || flags != before.flags {
        known.entry.advance(state.number(), flags);
    }
    if before.last_seen != now {
        known.entry.touch(now);
    }
}

/// Moves a flow from PENDING to CONNTRACK. False when there was no room: it stays where it is.
#[inline(never)]
fn promote<T: FlowTables>(
    tables: &T,
    seen: &Seen,
    entry: &T::Entry,
    state: State,
    flags: u16,
) -> bool {
    let promoted = Connection {
        state: state.number(),
        flags,
        last_seen: seen.now32(),
        ..entry.read()
    };
    if tables.insert_connection(&seen.flow, &promoted) {
        tables.delete_pending(&seen.flow);
        return true;
    }
    tables.count(Counter::ConnectionRefused);
    false
}

/// The port that policy judges: the one the flow was opened to.
#[inline(always)]
pub(super) const fn judged_port(flow: &FlowKey, originator: Direction) -> u16 {
    if !crate::packet::transport::has_ports(flow.protocol) {
        return 0;
    }
    match originator {
        Direction::Ingress => flow.local_port,
        Direction::Egress => flow.peer_port,
    }
}
