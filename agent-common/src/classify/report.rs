//! The books: a refusal's counts and its row in DENIED, events and what is lost of them.

use super::{Decision, Hook, Seen, audit::Difference, tables::DeniedRow as _, tables::FlowTables};
use crate::event::FlowEvent;
use crate::maps::{Counter, Denied, DeniedKey, settings_flags};
use crate::packet::{icmp, transport};
use crate::verdict::Direction;

/// Counts a refused packet, always, and reports it when its DENIED row is new or has not been
/// reported for a while.
#[inline(always)]
pub(super) fn refused<T: FlowTables>(tables: &T, seen: &Seen<'_>, decision: &Decision) {
    // Counted before the row and the event, so a lost one is still a counted drop.
    tables.dropped(seen.slot, decision.direction, decision.reason, seen.bytes());
    let key = DeniedKey {
        peer: seen.peer(),
        slot: seen.slot,
        port: refused_port(seen, decision.direction),
        protocol: seen.headers.protocol,
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
    event(tables, seen, decision, None, packets);
    if decision.difference.is_some() {
        event(tables, seen, decision, decision.difference, packets);
    }
}

/// Reports a flow that was allowed: as itself when asked for, and what audit would change, always.
#[inline(always)]
pub(super) fn allowed<T: FlowTables>(tables: &T, seen: &Seen<'_>, decision: &Decision) {
    if decision.is_new && tables.settings().flags & settings_flags::REPORT_ALLOWED != 0 {
        event(tables, seen, decision, None, 1);
    }
    if decision.difference.is_some() {
        event(tables, seen, decision, decision.difference, 1);
    }
}

#[inline(always)]
fn event<T: FlowTables>(
    tables: &T,
    seen: &Seen<'_>,
    decision: &Decision,
    difference: Option<Difference>,
    packets: u32,
) {
    let headers = &seen.headers;
    let (local, local_port, peer_port) = match seen.at.hook {
        Hook::FromPod => (
            headers.source,
            headers.source_port,
            headers.destination_port,
        ),
        Hook::ToPod => (
            headers.destination,
            headers.destination_port,
            headers.source_port,
        ),
    };
    let (reason, rule, set, in_force) = match difference {
        None => (decision.reason, decision.rule, decision.set, 0),
        Some(shadow) => (
            shadow.reason,
            shadow.rule,
            shadow.set,
            decision.reason.number(),
        ),
    };
    let was_reported = tables.report(&FlowEvent {
        time: seen.now,
        local,
        peer: seen.peer(),
        local_port,
        peer_port,
        slot: seen.slot,
        ifindex: seen.at.ifindex,
        via: decision.via,
        revision: seen.revision,
        rule: rule.0,
        set,
        class: decision.class,
        length: seen.bytes(),
        packets,
        protocol: headers.protocol,
        direction: decision.direction.index(),
        reason: reason.number(),
        in_force,
        detail: headers.detail,
        code: headers.code,
        reserved: [0; 2],
    });
    if !was_reported {
        tables.count(Counter::EventsLost);
    }
}

/// The port a refusal is filed under: the one its flow was opened to, also when it is a reply
/// that was refused; of ICMP, type and code.
#[inline(always)]
fn refused_port(seen: &Seen<'_>, direction: Direction) -> u16 {
    let headers = &seen.headers;
    if matches!(
        headers.protocol,
        transport::protocol::ICMP | transport::protocol::ICMPV6
    ) {
        return icmp::type_and_code(headers);
    }
    if direction.index() == seen.direction.index() {
        headers.destination_port
    } else {
        headers.source_port
    }
}
