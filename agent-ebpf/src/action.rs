//! From an outcome to what tc does: the only place that knows the numbers.

use agent_common::classify::Outcome;
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};

/// The program's return value.
#[inline(always)]
pub(crate) fn of(outcome: Outcome) -> i32 {
    match outcome {
        // Not TC_ACT_OK: that would end the chain and keep others' programs from running.
        Outcome::Pass(_) => TC_ACT_UNSPEC,
        Outcome::Drop(_) | Outcome::NotMine => TC_ACT_SHOT,
    }
}
