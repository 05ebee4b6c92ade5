//! The system's clock: whether something keeps it right.

use std::io;

use super::{Check, Finding};

/// `STA_UNSYNC` of linux/timex.h: nothing has set the clock right for long.
const UNSYNCHRONIZED: i32 = 0x40;

/// What the kernel says of its clock (`status` of adjtimex(2)); nothing when it does not.
pub(super) fn read() -> Option<i32> {
    // SAFETY: a structure of integers, for which zero is a value; with `modes` 0 it only asks.
    let mut clock: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live structure of the kernel's own layout.
    let state = unsafe { libc::adjtimex(&raw mut clock) };
    if state < 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "the kernel says nothing of its clock");
        return None;
    }
    Some(clock.status)
}

pub(super) fn judge(status: Option<i32>) -> Finding {
    match status {
        None => Finding::unknown(
            Check::Clock,
            "the kernel does not say whether it is right",
            "let adjtimex pass the container's seccomp profile",
        ),
        Some(status) if status & UNSYNCHRONIZED != 0 => Finding::warning(
            Check::Clock,
            "nothing keeps it right: times that Picket tells may be wrong",
            "run chrony, or systemd-timesyncd",
        ),
        Some(_) => Finding::ok(Check::Clock, "synchronized"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Judgement;
    use super::*;

    #[test]
    fn a_clock_that_nothing_keeps_right_is_a_warning() {
        const STA_PLL: i32 = 1;
        assert_eq!(judge(Some(STA_PLL)).judgement, Judgement::Ok);
        let lost = judge(Some(STA_PLL | UNSYNCHRONIZED)).judgement;
        assert!(matches!(lost, Judgement::Warning(_)), "{lost:?}");
        assert!(matches!(judge(None).judgement, Judgement::Unknown(_)));
    }

    #[test]
    fn this_kernel_says_how_its_clock_is() {
        assert!(read().is_some());
    }
}
