//! What threads and processes have cost, for benchmarks: CPU time, which other load leaves alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::time::{ClockId, clock_gettime};

/// CPU time of the calling thread so far.
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

/// CPU time of a process's living threads so far, as of their last turns.
///
/// # Errors
/// There is no such process, or its kernel does not count (`CONFIG_SCHED_INFO`).
pub fn process_time(pid: u32) -> Result<Duration> {
    let threads = PathBuf::from(format!("/proc/{pid}/task"));
    let mut sum = Duration::ZERO;
    for thread in fs::read_dir(&threads).with_context(|| format!("no process {pid}"))? {
        let thread = thread.context("listing threads")?;
        // One that has ended meanwhile is no longer among those that are asked for.
        sum += scheduled(&thread.path()).unwrap_or_default();
    }
    // None at all is what a kernel says that does not count.
    ensure!(
        !sum.is_zero(),
        "process {pid}: no thread's schedstat says its CPU time; run this on a kernel that counts it \
         (CONFIG_SCHED_INFO)"
    );
    Ok(sum)
}

/// What was measured. A smoke run, whose figures mean nothing, goes on without what this machine
/// does not show, and says so.
///
/// # Errors
/// It could not be measured, and this is no smoke run.
#[expect(clippy::print_stderr, reason = "only benchmarks measure")]
pub fn needed<T: Default>(measured: Result<T>, is_smoke: bool) -> Result<T> {
    match measured {
        Err(error) if is_smoke => {
            eprintln!("left out of this smoke run: {error:#}");
            Ok(T::default())
        }
        other => other,
    }
}

/// The kernel's own thread that takes over a CPU's network work where a thread must not be kept
/// from running: part of what traffic costs.
#[derive(Debug)]
pub struct SoftirqThread(PathBuf);

impl SoftirqThread {
    /// The one of a CPU.
    ///
    /// # Errors
    /// Processes cannot be listed, kernel threads are not among them (a PID namespace), or the
    /// kernel does not count their CPU time.
    pub fn of(cpu: usize) -> Result<Self> {
        let name = format!("ksoftirqd/{cpu}");
        for process in fs::read_dir("/proc").context("listing processes")? {
            let path = process.context("listing processes")?.path();
            // What is no process has no such file.
            if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name) {
                let thread = Self(path);
                thread.time()?;
                return Ok(thread);
            }
        }
        anyhow::bail!("no process {name}; run this where the kernel's own threads are to be seen")
    }

    /// CPU time so far.
    ///
    /// # Errors
    /// The kernel does not count it.
    pub fn time(&self) -> Result<Duration> {
        scheduled(&self.0)
    }
}

fn scheduled(task: &Path) -> Result<Duration> {
    let path = task.join("schedstat");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let first = text.split(' ').next().and_then(|word| word.parse().ok());
    first
        .map(Duration::from_nanos)
        .with_context(|| format!("{}: {text:?} is no CPU time", path.display()))
}
