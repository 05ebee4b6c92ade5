//! The cluster's processes, which are this machine's too: found by their environment, stopped, killed,
//! and their network namespaces entered.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
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

/// A node's kubelet.
pub(crate) fn kubelet_of(node: &str) -> Result<Process> {
    let named = format!("--hostname-override={node}");
    let mut found = running("kubelet")?;
    found.retain(|process| {
        let words = process.words("cmdline").unwrap_or_default();
        words.contains(&named)
    });
    match found[..] {
        [one] => Ok(one),
        _ => bail!("{} kubelets were told {named}", found.len()),
    }
}

/// The agents, one a node. Others of this machine are somebody else's: a lab's, say.
pub(crate) fn agents() -> Result<Vec<Process>> {
    let mut agents = Vec::new();
    for kubelet in running("kubelet")? {
        let namespace = kubelet.network()?;
        let mut all = running("picket")?;
        all.retain(|process| process.network().ok().as_ref() == Some(&namespace));
        agents.append(&mut all);
    }
    Ok(agents)
}

/// The cluster's API server. One that runs where these tests do is another test's.
pub(crate) fn api_server() -> Result<Process> {
    let here = fs::read_link("/proc/self/ns/net").context("looking at this network namespace")?;
    let mut found = running("kube-apiserver")?;
    found.retain(|process| process.network().is_ok_and(|namespace| namespace != here));
    match found[..] {
        [one] => Ok(one),
        _ => bail!("{} API servers run in namespaces of their own", found.len()),
    }
}

/// The process that holds a pod's network namespace for its containers.
pub(crate) fn sandbox_of(container: Process) -> Result<Process> {
    container.beside("pause")
}

impl Process {
    pub(crate) fn file(self, name: &str) -> PathBuf {
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

    /// Its arguments (`cmdline`) or its environment (`environ`); an error when it has ended.
    pub(crate) fn words(self, what: &str) -> Result<Vec<String>> {
        let path = self.file(what);
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let words = bytes
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty());
        let words: Vec<String> = words
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        ensure!(!words.is_empty(), "{}: it has ended", path.display());
        Ok(words)
    }

    /// What the kernel calls its network namespace.
    fn network(self) -> Result<PathBuf> {
        let file = self.file("ns/net");
        fs::read_link(&file).with_context(|| format!("reading {}", file.display()))
    }

    /// The only process of a program in the same network namespace.
    pub(crate) fn beside(self, program: &str) -> Result<Self> {
        let namespace = self.network()?;
        let mut found = running(program)?;
        found.retain(|process| process.network().ok().as_ref() == Some(&namespace));
        match found[..] {
            [one] => Ok(one),
            _ => bail!(
                "{} of {program} are in {}",
                found.len(),
                namespace.display()
            ),
        }
    }

    /// Its number.
    pub(crate) fn id(self) -> String {
        self.0.to_string()
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
