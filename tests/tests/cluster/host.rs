//! The cluster's processes, which are this machine's too: found by their environment, stopped, killed,
//! and their network namespaces entered.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process of the cluster.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Process(Pid);

/// All processes of a program, by the name of its file.
pub(crate) fn running(program: &str) -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("listing processes")? {
        let name = entry?.file_name();
        let Ok(pid) = name.to_string_lossy().parse() else {
            continue;
        };
        // It may have ended.
        let Ok(words) = fs::read(format!("/proc/{pid}/cmdline")) else {
            continue;
        };
        let first = words.split(|byte| *byte == 0).next().unwrap_or_default();
        if first.rsplit(|byte| *byte == b'/').next() == Some(program.as_bytes()) {
            found.push(Process(Pid::from_raw(pid)));
        }
    }
    Ok(found)
}

/// The only one of them that was started with this variable, as `NAME=value`.
pub(crate) fn one_with(program: &str, variable: &str) -> Result<Process> {
    let mut found = running(program)?;
    found.retain(|process| process.has(variable));
    match found[..] {
        [one] => Ok(one),
        _ => bail!("{} processes of {program} have {variable}", found.len()),
    }
}

/// The process that holds a pod's network namespace for its containers.
pub(crate) fn sandbox_of(container: Process) -> Result<Process> {
    let namespace = fs::read_link(container.file("ns/net"))?;
    let mut found = running("pause")?;
    found.retain(|process| fs::read_link(process.file("ns/net")).ok().as_ref() == Some(&namespace));
    match found[..] {
        [one] => Ok(one),
        _ => bail!("{} processes hold {}", found.len(), namespace.display()),
    }
}

impl Process {
    fn file(self, name: &str) -> PathBuf {
        format!("/proc/{}/{name}", self.0).into()
    }

    /// A file as it is where the process runs.
    pub(crate) fn path(self, file: &str) -> PathBuf {
        format!("/proc/{}/root{file}", self.0).into()
    }

    fn has(self, variable: &str) -> bool {
        let environment = fs::read(self.file("environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|each| each == variable.as_bytes())
    }

    /// Whether this is one of its arguments.
    pub(crate) fn was_told(self, argument: &str) -> bool {
        let words = fs::read(self.file("cmdline")).unwrap_or_default();
        words
            .split(|byte| *byte == 0)
            .any(|word| word == argument.as_bytes())
    }

    pub(crate) fn signal(self, signal: Signal) -> Result<()> {
        kill(self.0, signal).with_context(|| format!("sending {signal} to {}", self.0))
    }

    /// Runs `work` on a thread of its own in the process's network namespace.
    pub(crate) fn inside<T: Send + 'static>(
        self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<thread::JoinHandle<Result<T>>> {
        let namespace = self.file("ns/net");
        let file =
            File::open(&namespace).with_context(|| format!("opening {}", namespace.display()))?;
        Ok(thread::spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
            work()
        }))
    }

    /// Its address on the way to another.
    pub(crate) fn address_towards(self, peer: SocketAddr) -> Result<SocketAddr> {
        let asked = self.inside(move || {
            let any = if peer.is_ipv4() {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let socket = std::net::UdpSocket::bind(any)?;
            socket.connect(peer)?;
            Ok(socket.local_addr()?)
        })?;
        join(asked)
    }
}

/// What a thread has come to.
pub(crate) fn join<T>(thread: thread::JoinHandle<Result<T>>) -> Result<T> {
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
