//! What policy refused a moment ago, so that who insists is refused for less than who is new.
//!
//! Only TCP's first segments, which no state of an allowed flow can let pass: whatever CONNTRACK
//! and PENDING hold, they are judged. A row says no for as long as nothing it followed from has
//! changed, and never for long.

use super::{Decision, Seen, ownership, tables::FlowTables};
use crate::conntrack::Signal;
use crate::maps::{FlowKey, peer_bucket};
use crate::packet::transport::protocol;
use crate::verdict::{Direction, Reason, RuleId};

/// Rows, direct-mapped. One CPU's.
const ROWS: usize = 64;
/// How long a refusal is remembered, in parts of a second: shorter than anybody's second attempt.
const PARTS_OF_A_SECOND: u32 = 10;

/// What was refused to whom, and what that followed from.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(super) struct Refusal {
    key: FlowKey,
    ingress_ifindex: u32,
    revision: u32,
    peer_revision: u32,
    /// When it was judged, in jiffies (low 32 bits).
    judged: u32,
    rule: u32,
    set: u32,
    class: u32,
    /// One more than `Direction::index` of the packet; 0 in a row that was never used.
    direction: u32,
}

/// The memory of refusals.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusals([Refusal; ROWS]);

impl Refusals {
    /// Nothing was refused.
    pub(super) const NONE: Self = Self(
        [Refusal {
            key: FlowKey {
                peer: crate::address::Address::UNSPECIFIED,
                local_port: 0,
                peer_port: 0,
                protocol: 0,
                local: 0,
                slot: 0,
            },
            ingress_ifindex: 0,
            revision: 0,
            peer_revision: 0,
            judged: 0,
            rule: 0,
            set: 0,
            class: 0,
            direction: 0,
        }; ROWS],
    );
}

impl Refusals {
    /// False when a connection is not among what was refused: nearly always, when it is new.
    #[inline(always)]
    pub(super) fn may_have(&self, key: &FlowKey) -> bool {
        let ports = (key.local_port, key.peer_port);
        self.0.get(place(key)).is_some_and(|row| {
            row.direction != 0 && (row.key.local_port, row.key.peer_port) == ports
        })
    }

    /// Writes down that policy refused a connection, if that is all there is to it.
    #[inline(always)]
    pub(super) fn remember(&mut self, seen: &Seen, decision: &Decision) {
        if is_plain(seen, decision) {
            self.write(seen, decision);
        }
    }

    #[inline(never)]
    fn write(&mut self, seen: &Seen, decision: &Decision) {
        let Some(row) = self.0.get_mut(place(&seen.flow)) else {
            return;
        };
        row.key = seen.flow;
        row.ingress_ifindex = seen.at.ingress_ifindex;
        row.revision = seen.revision;
        row.peer_revision = seen.question.peer_revision();
        row.judged = seen.now32();
        row.rule = decision.rule.0;
        row.set = decision.set;
        row.class = decision.class;
        row.direction = number_of(seen.direction);
    }
}

/// True for the first segment of a TCP connection that is not known, with whom it shows, refused by
/// policy that nothing audits.
#[inline(always)]
fn is_plain(seen: &Seen, decision: &Decision) -> bool {
    seen.flow.protocol == protocol::TCP
        && matches!(seen.signal, Signal::Open)
        && matches!(decision.reason, Reason::IsolatedNoRule | Reason::DenyRule)
        && decision.via == 0
        && !decision.is_known
        && !decision.is_audited
        && !seen.has_fragment_header
}

/// Refuses a connection once more, if it was refused a moment ago and still would be: what `seen` and
/// `decision` then say of it is to be put in the books.
#[inline(always)]
pub(super) fn refuse_again<T: FlowTables>(
    refusals: &Refusals,
    tables: &T,
    seen: &Seen,
    decision: &mut Decision,
) -> bool {
    let key = &seen.flow;
    let Some(row) = refusals.0.get(place(key)) else {
        return false;
    };
    let age = u64::from(seen.now32().wrapping_sub(row.judged));
    if row.direction != number_of(seen.direction)
        || row.revision != seen.revision
        || row.ingress_ifindex != seen.at.ingress_ifindex
        || !is_same(&row.key, key)
        || row.peer_revision != tables.peer_revision(peer_bucket(key.peer))
        || age * u64::from(PARTS_OF_A_SECOND) > u64::from(tables.settings().hz)
    {
        return false;
    }
    decision.rule = RuleId(row.rule);
    decision.set = row.set;
    decision.class = row.class;
    // As `judge` says it.
    decision.reason = if row.rule == 0 {
        Reason::IsolatedNoRule
    } else {
        Reason::DenyRule
    };
    true
}

#[inline(always)]
fn number_of(direction: Direction) -> u32 {
    u32::from(direction.index()) + 1
}

#[inline(always)]
fn place(key: &FlowKey) -> usize {
    let ports = key.local_port ^ key.peer_port;
    usize::from(peer_bucket(key.peer) ^ ports) % ROWS
}

#[inline(always)]
fn is_same(one: &FlowKey, other: &FlowKey) -> bool {
    ownership::is_same(one.peer, other.peer)
        && (one.local_port, one.peer_port) == (other.local_port, other.peer_port)
        && (one.protocol, one.local, one.slot) == (other.protocol, other.local, other.slot)
}
