//! The books: a refusal's counts and its row in DENIED, events and what is lost of them.

use super::{Decision, Seen, tables::DeniedRow as _, tables::FlowTables};
use crate::event::event_flags;
use crate::maps::{Counter, Denied, DeniedKey, settings_flags};
use crate::packet::transport;
use crate::verdict::Direction;

/// Counts a refused packet, always, and reports it when its DENIED row is new or has not been
/// reported for a while.
#[inline(never)]
pub(super) fn refused<T: FlowTables>(tables: &T, seen: &Seen, decision: &Decision) {
    refused_here(tables, seen, decision);
}

/// The same without a call.
#[inline(always)]
pub(super) fn refused_here<T: FlowTables>(tables: &T, seen: &Seen, decision: &Decision) {
    // Counted before the row and the event, so a lost one is still a counted drop.
    tables.dropped(
        seen.slot(),
        decision.direction,
        decision.reason,
        seen.bytes(),
    );
    let key = DeniedKey {
        peer: seen.flow.peer,
        slot: seen.slot(),
        port: refused_port(seen, decision.direction),
        protocol: seen.flow.protocol,
        direction: decision.direction.index(),
    };
    let now = seen.now32();
    let row = Denied {
        packets: 1,
        first: seen.now,
        last: seen.now,
        revision: seen.revision,
        rule: decision.rule.0,
        reported: now,
        reason: decision.reason.number(),
        reserved: [0; 3],
    };
    let known = match tables.denied(&key) {
        Some(known) => Some(known),
        None if tables.insert_denied(&key, &row) => None,
        // Another CPU was first, or the map is full.
        None => {
            if let Some(known) = tables.denied(&key) {
                Some(known)
            } else {
                tables.count(Counter::DeniedOverflow);
                return;
            }
        }
    };
    let packets = match known {
        Some(known) => {
            let packets = known.add(&row);
            if now.wrapping_sub(known.reported()) < tables.settings().report_interval {
                return;
            }
            known.set_reported(now);
            packets
        }
        None => 1,
    };
    let packets = u32::try_from(packets).unwrap_or(u32::MAX);
    event(tables, seen, decision, packets, false);
    if decision.difference.is_some() {
        event(tables, seen, decision, packets, true);
    }
}

/// Reports a flow that was allowed: as itself when asked for, and what audit would change, always.
#[inline(always)]
pub(super) fn allowed<T: FlowTables>(tables: &T, seen: &Seen, decision: &Decision) {
    if decision.is_new && tables.settings().flags & settings_flags::REPORT_ALLOWED != 0 {
        event(tables, seen, decision, 1, false);
    }
    if decision.difference.is_some() {
        event(tables, seen, decision, 1, true);
    }
}

/// Reports a segment of a connection that was cut, for its sender to be told.
#[inline(always)]
pub(super) fn tell<T: FlowTables>(tables: &T, seen: &Seen, decision: &Decision) {
    event(tables, seen, decision, 0, false);
}

/// Reports a new flow when that is asked for, without a call.
#[inline(always)]
pub(super) fn opened_here<T: FlowTables>(tables: &T, seen: &Seen, decision: &Decision) {
    if tables.settings().flags & settings_flags::REPORT_ALLOWED != 0 {
        event_here(tables, seen, decision, 1, false);
    }
}

#[inline(never)]
fn event<T: FlowTables>(
    tables: &T,
    seen: &Seen,
    decision: &Decision,
    packets: u32,
    is_difference: bool,
) {
    event_here(tables, seen, decision, packets, is_difference);
}

/// Of 0 packets it is nothing but what [`tell`] says.
#[inline(always)]
fn event_here<T: FlowTables>(
    tables: &T,
    seen: &Seen,
    decision: &Decision,
    packets: u32,
    is_difference: bool,
) {
    let (reason, rule, set, in_force) = match decision.difference.filter(|_| is_difference) {
        None => (decision.reason, decision.rule, decision.set, 0),
        Some(shadow) => (
            shadow.reason,
            shadow.rule,
            shadow.set,
            decision.reason.number(),
        ),
    };
    let (tell, acknowledgement) = if packets == 0 {
        (event_flags::TELL, seen.acknowledgement)
    } else {
        (0, 0)
    };
    // Field by field: a whole value would be made on the stack first.
    let was_reported = tables.report(|event| {
        event.time = seen.now;
        event.local = seen.local;
        event.peer = seen.flow.peer;
        event.local_port = seen.ports.0;
        event.peer_port = seen.ports.1;
        event.slot = seen.slot();
        event.ifindex = seen.at.ifindex;
        event.via = decision.via;
        event.revision = seen.revision;
        event.rule = rule.0;
        event.set = set;
        event.class = decision.class;
        event.length = seen.bytes();
        event.packets = packets;
        event.protocol = seen.flow.protocol;
        event.direction = decision.direction.index();
        event.reason = reason.number();
        event.in_force = in_force;
        event.detail = seen.detail.0;
        event.code = seen.detail.1;
        event.acknowledgement = acknowledgement;
        event.flags = seen.at.hook.as_flag() | tell;
        event.reserved = [0; 5];
    });
    if !was_reported {
        tables.count(Counter::EventsLost);
    }
}

/// The port a refusal is filed under: the one its flow was opened to, also when it is a reply
/// that was refused; of ICMP, type and code.
#[inline(always)]
fn refused_port(seen: &Seen, direction: Direction) -> u16 {
    let (detail, code) = seen.detail;
    if matches!(
        seen.flow.protocol,
        transport::protocol::ICMP | transport::protocol::ICMPV6
    ) {
        return u16::from_be_bytes([detail, code]);
    }
    match direction {
        Direction::Ingress => seen.ports.0,
        Direction::Egress => seen.ports.1,
    }
}
