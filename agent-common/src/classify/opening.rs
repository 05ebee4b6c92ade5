//! A connection's first segment as the short way has read it: the way most of them go, in one piece.
//!
//! Calls are what a new flow costs most for. Like [`super::glance`] it knows nothing that the long
//! way does not, and leaves to it whatever is not plain.

use super::{Arrival, Outcome, Room, Segment, refusals, report, settle, steps, tables::FlowTables};
use crate::conntrack::Signal;

/// Judges the connection whose key is in the room. `None` when it has to take the long way: nothing
/// was counted or written to a map then.
#[inline(always)]
pub fn open<T: FlowTables>(
    room: &mut Room,
    tables: &T,
    at: &Arrival,
    segment: Segment,
) -> Option<Outcome> {
    let Room {
        key,
        seen,
        decision,
        refusals,
        headers: _,
    } = room;
    // Asked again, because the endpoint may have been published anew since.
    let (config, revision) = tables.endpoint(at.ifindex)?;
    if !key.is_of(config) {
        return None;
    }
    seen.read_first_segment(at, key, segment, revision, tables.now());
    decision.begin(seen.direction);
    if refusals.may_have(&seen.flow) && refusals::refuse_again(refusals, tables, seen, decision) {
        report::refused_here(tables, seen, decision);
        return Some(Outcome::Drop(decision.reason));
    }
    // Audited policies are to be asked, too; it is being opened already, or was; policy has no say.
    if config.sets != config.audit_sets
        || tables.pending(&seen.flow).is_some()
        || steps::exemption(seen, config).is_some()
    {
        return None;
    }
    steps::put_question(tables, seen);
    steps::ask_in_force(tables, seen, config, decision);
    if steps::is_allowed(decision.reason)
        && steps::keep(tables, seen, Signal::Open, config, 0, decision)
    {
        report::opened_here(tables, seen, decision);
    }
    Some(settle(tables, seen, decision, refusals))
}
