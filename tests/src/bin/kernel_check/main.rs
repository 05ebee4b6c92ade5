//! What Picket asks of a kernel, checked in one go: the kernel side step by step, then the real
//! agent between real sockets, programs held by clsact and, where the kernel has it, by TCX. One
//! line a case; the exit code says whether all of them held. Run as root, in a guest or on the
//! machine itself; `picket` has to be beside it. Programs are loaded as seldom as possible: in an
//! emulated machine the verifier takes longer than all the rest. `kernel_check costs` only says
//! what loading costs.

mod costs;
mod discovery;
mod memory;
mod programs;
mod report;
mod sctp;
mod traffic;

use std::process::ExitCode;
use std::thread;

use anyhow::{Result, anyhow};

fn main() -> ExitCode {
    let mut whole = true;
    if std::env::args().nth(1).as_deref() == Some("costs") {
        part("costs", &mut whole, costs::check);
    } else {
        if let Some(best) = part("the kernel side", &mut whole, programs::check) {
            part("traffic", &mut whole, move || traffic::check(best));
        }
        part("RLIMIT_MEMLOCK", &mut whole, memory::check);
    }
    if whole {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs a part in a thread of its own: a lab belongs to its thread and goes with it.
fn part<T: Send + 'static>(
    name: &str,
    whole: &mut bool,
    check: impl FnOnce() -> Result<T> + Send + 'static,
) -> Option<T> {
    let ended = thread::spawn(check).join();
    match ended.unwrap_or_else(|_panic| Err(anyhow!("panicked"))) {
        Ok(value) => Some(value),
        Err(error) => {
            report::failed(name, &error);
            *whole = false;
            None
        }
    }
}
