//! Map values that are changed in place: a flow's entry, a DENIED row.

use agent_common::classify::{DeniedRow, FlowEntry};
use agent_common::maps::{Connection, Denied};

/// Adds to a counter that other CPUs add to as well. The sum is not returned: an atomic add that
/// also fetches needs Linux 5.12, and Rust's own atomics for this target have no addition.
#[inline(always)]
pub(crate) fn add(counter: *mut u64, amount: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: one XADD on a live map value, aligned to 8 bytes by its type.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({counter} + 0) += {amount}",
            counter = in(reg) counter,
            amount = in(reg) amount,
        );
    }
    #[cfg(not(target_arch = "bpf"))]
    let _ = (counter, amount);
}

/// A CONNTRACK or PENDING entry, as the look-up found it.
pub(crate) struct Entry(pub(crate) *mut Connection);

impl FlowEntry for Entry {
    #[inline(always)]
    fn read(&self) -> Connection {
        // SAFETY: a pointer that a look-up of this very run returned; under RCU until it ends.
        unsafe { self.0.read() }
    }

    #[inline(always)]
    fn touch(&self, now: u32) {
        // SAFETY: as in `read`; racing stores of a stamp are harmless, each is a whole word.
        unsafe { (&raw mut (*self.0).last_seen).write_volatile(now) };
    }

    #[inline(always)]
    fn advance(&self, state: u8, flags: u16) {
        // SAFETY: as in `touch`.
        unsafe { (&raw mut (*self.0).state).write_volatile(state) };
        // SAFETY: as in `touch`.
        unsafe { (&raw mut (*self.0).flags).write_volatile(flags) };
    }

    #[inline(always)]
    fn stamp(&self, revision: u32, peer_revision: u32, rule: u32, reason: u8) {
        // The reasons first, the revisions that make them valid last.
        // SAFETY: as in `touch`.
        unsafe { (&raw mut (*self.0).rule).write_volatile(rule) };
        // SAFETY: as in `touch`.
        unsafe { (&raw mut (*self.0).reason).write_volatile(reason) };
        // SAFETY: as in `touch`.
        unsafe { (&raw mut (*self.0).peer_revision).write_volatile(peer_revision) };
        // SAFETY: as in `touch`.
        unsafe { (&raw mut (*self.0).revision).write_volatile(revision) };
    }
}

/// A DENIED row, as the look-up found it.
pub(crate) struct Row(pub(crate) *mut Denied);

impl DeniedRow for Row {
    #[inline(always)]
    fn add(&self, latest: &Denied) -> u64 {
        // SAFETY: a pointer that a look-up of this very run returned; under RCU until it ends.
        let packets = unsafe { &raw mut (*self.0).packets };
        add(packets, 1);
        // SAFETY: as above; racing stores of "latest" are harmless, each is a whole word.
        unsafe { (&raw mut (*self.0).last).write_volatile(latest.last) };
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).revision).write_volatile(latest.revision) };
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).rule).write_volatile(latest.rule) };
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).reason).write_volatile(latest.reason) };
        // SAFETY: as above.
        unsafe { packets.read_volatile() }
    }

    #[inline(always)]
    fn reported(&self) -> u32 {
        // SAFETY: as in `add`.
        unsafe { (&raw const (*self.0).reported).read_volatile() }
    }

    #[inline(always)]
    fn set_reported(&self, now: u32) {
        // SAFETY: as in `add`.
        unsafe { (&raw mut (*self.0).reported).write_volatile(now) };
    }
}
