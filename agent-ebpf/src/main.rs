//! Picket's tc programs: a thin shell that runs `agent_common::classify` on a pod's packets. What
//! deserves a test lives there, not here; this crate only turns traits into map look-ups, and an
//! [`Outcome`] into what tc understands.
//!
//! Everything must load on Linux 5.10: no helper and no instruction that is newer.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![cfg_attr(
    not(target_arch = "bpf"),
    expect(
        dead_code,
        reason = "on the host this crate is only linted: the kernel calls it"
    )
)]
#![expect(
    missing_docs,
    unreachable_pub,
    clippy::needless_pass_by_value,
    reason = "the programs' generated entry points are public, without docs, and own the context"
)]
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "to find a map value's field and to access it is one operation"
)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "halves of words, and sizes far below 4 GiB"
)]

mod action;
mod diagnostics;
mod entry;
mod fib;
mod maps;
#[cfg(target_arch = "bpf")]
mod object;
mod skb;
mod tables;
mod words;

use agent_common::Reason;
use agent_common::classify::{Arrival, Glance, Hook, Outcome, Segment, glance, look_closely, open};
use aya_ebpf::helpers::bpf_jiffies64;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use skb::Skb;
use tables::KernelTables;

/// What a pod sends: egress policy, on tc ingress of its host-side interface.
#[classifier]
pub fn from_pod(context: TcContext) -> i32 {
    run::<true>(&context)
}

/// What reaches a pod: ingress policy, on tc egress of its host-side interface.
#[classifier]
pub fn to_pod(context: TcContext) -> i32 {
    run::<false>(&context)
}

/// Never attached: user space test-runs it to learn the kernel's tick. The mark chooses the half.
#[classifier]
pub fn clock(context: TcContext) -> i32 {
    // SAFETY: a helper without arguments.
    let jiffies = unsafe { bpf_jiffies64() };
    let half = if skb::mark(&context) == 0 {
        jiffies
    } else {
        jiffies >> 32
    };
    (half as u32).cast_signed()
}

#[inline(always)]
fn run<const IS_FROM_POD: bool>(context: &TcContext) -> i32 {
    let at = arrival::<IS_FROM_POD>(context);
    let tables = KernelTables { context };
    let Some(room) = tables::room() else {
        // A per-CPU array always has its first row.
        return action::of(Outcome::Drop(Reason::FailClosed));
    };
    let is_untracked = match glance(room, &tables, &Skb::new(context), &at) {
        Glance::Established => return action::of(Outcome::Pass(Reason::Reply)),
        Glance::Opens(Segment { flags, length }) => {
            let action = begin::<IS_FROM_POD>(context, flags, length);
            if action != TAKES_THE_LONG_WAY {
                return action;
            }
            false
        }
        Glance::Unsure { is_untracked } => is_untracked,
    };
    look::<IS_FROM_POD>(context, is_untracked)
}

/// What `begin` says where no action was decided on; no action of tc's.
const TAKES_THE_LONG_WAY: i32 = i32::MIN;

/// A new connection. Not inlined, like the long way, so that the short way has few things to save.
#[inline(never)]
fn begin<const IS_FROM_POD: bool>(context: &TcContext, flags: u8, length: u32) -> i32 {
    let at = arrival::<IS_FROM_POD>(context);
    let tables = KernelTables { context };
    let segment = Segment { flags, length };
    match tables::room().and_then(|room| open(room, &tables, &at, segment)) {
        Some(outcome) => action::of(outcome),
        None => TAKES_THE_LONG_WAY,
    }
}

/// The long way.
#[inline(never)]
fn look<const IS_FROM_POD: bool>(context: &TcContext, is_untracked: bool) -> i32 {
    let at = arrival::<IS_FROM_POD>(context);
    let tables = KernelTables { context };
    let Some(room) = tables::room() else {
        // A per-CPU array always has its first row.
        return action::of(Outcome::Drop(Reason::FailClosed));
    };
    let packet = Skb::new(context);
    action::of(look_closely(room, &tables, &packet, &at, is_untracked))
}

#[inline(always)]
fn arrival<const IS_FROM_POD: bool>(context: &TcContext) -> Arrival {
    Arrival {
        hook: if IS_FROM_POD {
            Hook::FromPod
        } else {
            Hook::ToPod
        },
        ifindex: skb::ifindex(context),
        ingress_ifindex: skb::ingress_ifindex(context),
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
