//! What the programs say in the agent's log: only of things that cannot happen, so one function
//! out of the packet's way is all there is.

use aya_ebpf::programs::TcContext;

use crate::skb;

/// A policy set without a default row: the endpoint falls back to its posture.
///
/// Not `#[cold]`: that would put it in a section of its own, and the loader finds functions by
/// their place in one.
#[inline(never)]
pub(crate) fn default_row_missing(context: &TcContext) {
    aya_log_ebpf::error!(
        context,
        "a policy set has no default row: interface {} takes its posture",
        skb::ifindex(context)
    );
}
