//! What a packet's way reads and writes beside policy: BPF maps and the node's routes in the kernel,
//! collections on the host.
//!
//! Each method is one operation on a map, or one call of a helper, without a decision of its own. A [`FlowKey`]'s `slot` also
//! chooses the inner map of CONNTRACK.

use crate::address::Address;
use crate::event::FlowEvent;
use crate::judge::PolicyTables;
use crate::maps::{Budget, Connection, Counter, Denied, DeniedKey, FlowKey, Fragment, FragmentKey};
use crate::verdict::{Direction, Reason};

/// A CONNTRACK or PENDING entry in place. Every method is plain loads or stores on the entry that
/// was found; none looks it up again.
pub trait FlowEntry {
    /// The entry as it is now. Only the fields that are used should be loaded: in the kernel an
    /// inlined, non-volatile read of the whole value.
    fn read(&self) -> Connection;
    /// Stores `last_seen`.
    fn touch(&self, now: u32);
    /// Stores `state` and `flags`.
    fn advance(&self, state: u8, flags: u16);
    /// Stores the outcome of judging the flow again: `revision`, `peer_revision`, `rule`, `reason`.
    fn stamp(&self, revision: u32, peer_revision: u32, rule: u32, reason: u8);
}

/// A DENIED row in place.
pub trait DeniedRow {
    /// Adds one packet atomically, stores `last`, `revision`, `rule` and `reason` of `latest`.
    /// Returns the number of packets so far.
    fn add(&self, latest: &Denied) -> u64;
    /// When the row was last reported.
    fn reported(&self) -> u32;
    /// Stores `reported`.
    fn set_reported(&self, now: u32);
}

/// Where the node takes what came in by a pod's interface.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Route {
    /// Nowhere: the address is its own, or it forwards nothing there.
    Nowhere,
    /// Out by an interface.
    By(u32),
    /// It does not say: through an encapsulation, for one.
    Unknown,
}

/// State of flows, counters and reports.
pub trait FlowTables: PolicyTables {
    /// An entry of CONNTRACK or PENDING.
    type Entry: FlowEntry;
    /// A row of DENIED.
    type Row: DeniedRow;

    /// 64-bit jiffies (`bpf_jiffies64`).
    fn now(&self) -> u64;
    /// Where the node takes what comes in by an interface, from one IPv6 address to another
    /// (`bpf_fib_lookup`).
    fn route(&self, ifindex: u32, source: &Address, destination: &Address) -> Route;

    /// CONNTRACK, the endpoint's own map; `None` also when the slot has no map.
    fn connection(&self, flow: &FlowKey) -> Option<Self::Entry>;
    /// Inserts into CONNTRACK, overwriting. False when there was no room or no map.
    fn insert_connection(&self, flow: &FlowKey, connection: &Connection) -> bool;
    /// PENDING.
    fn pending(&self, flow: &FlowKey) -> Option<Self::Entry>;
    /// Inserts into PENDING, overwriting. False when there was no room.
    fn insert_pending(&self, flow: &FlowKey, connection: &Connection) -> bool;
    /// Deletes from PENDING; nothing happens when it is not there.
    fn delete_pending(&self, flow: &FlowKey);

    /// FRAGMENTS.
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;
    /// Inserts into FRAGMENTS, overwriting.
    fn insert_fragment(&self, key: &FragmentKey, fragment: &Fragment);

    /// DENIED.
    fn denied(&self, key: &DeniedKey) -> Option<Self::Row>;
    /// Makes a DENIED row if there is none (`BPF_NOEXIST`). False when there is one, or no room.
    fn insert_denied(&self, key: &DeniedKey, row: &Denied) -> bool;

    /// Replaces a row of BUDGETS by what `spend` makes of it, when it makes something of it.
    /// True when it did. Two CPUs at once may lose one of two updates.
    fn spend(&self, slot: u32, spend: impl FnOnce(Budget) -> Option<Budget>) -> bool;

    /// Adds a packet to PASSED.
    fn passed(&self, slot: u32, direction: Direction, bytes: u32);
    /// Adds a packet to DROPPED, atomically.
    fn dropped(&self, slot: u32, direction: Direction, reason: Reason, bytes: u32);
    /// Adds a connection to a row of RULE_HITS.
    fn begun(&self, row: u32, now: u64);
    /// Adds one to a row of COUNTERS.
    fn count(&self, counter: Counter);
    /// Has an event written in its place in the ring buffer; every field has to be, for what lies
    /// there is older. False when there was no room.
    fn report(&self, write: impl FnOnce(&mut FlowEvent)) -> bool;
}
