//! The real agent as a process of the lab, and its API. It dies with the thread that started it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;

use super::wait_until;

/// The agent's API; `/run` is the lab's own.
const SOCKET: &str = "/run/picket/agent.sock";
/// Where the agent's log lines go; shown when something fails.
const LOG: &str = "/run/lab/agent.log";
/// Where it keeps what an API server said.
pub const STATE: &str = "/run/lab/state";
/// How long an agent may take to enforce everything it finds at its start, on a node full of pods.
const READY_WITHIN: Duration = Duration::from_mins(2);
/// How long an agent may take to stop.
const STOPPED_WITHIN: Duration = Duration::from_secs(30);
/// How long one answer of the API may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The `picket` binary: `PICKET_BIN`, or the one built beside this program.
pub fn picket() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("PICKET_BIN") {
        return Ok(named.into());
    }
    let own = std::env::current_exe().context("finding this program")?;
    own.ancestors()
        .skip(1)
        .take(2) // target/debug/lab, or target/debug/deps/test-0123
        .map(|directory| directory.join("picket"))
        .find(|candidate| candidate.is_file())
        .with_context(|| {
            format!(
                "no picket beside {}; build it first: cargo build -p agent",
                own.display()
            )
        })
}

/// The agent of the next layout version, which is built to try upgrades with and never shipped.
pub fn picket_of_next_layout() -> Result<PathBuf> {
    let picket = picket()?.with_file_name("picket-next-layout");
    if !picket.is_file() {
        bail!(
            "no {}; build it first: cargo xtask test lab upgrade",
            picket.display()
        );
    }
    Ok(picket)
}

/// Runs a `picket` command inside the lab.
pub fn run_picket(arguments: &[&str]) -> Result<Output> {
    Command::new(picket()?)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running picket {}", arguments.join(" ")))
}

/// A running agent; killed when dropped, which leaves its enforcement in place.
#[derive(Debug)]
pub struct Agent {
    child: Child,
}

impl Agent {
    /// Starts an agent on a directory and waits until it enforces what it finds there.
    pub fn start(manifests: &Path) -> Result<Self> {
        Self::start_with(manifests, &[])
    }

    /// The same with further options.
    pub fn start_with(manifests: &Path, options: &[&str]) -> Result<Self> {
        let options: Vec<OsString> = options.iter().map(Into::into).collect();
        let mut agent = Self::spawn(manifests, &options)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts an agent on an API server and waits until it enforces what it finds there.
    pub fn start_on_api(kubeconfig: &Path) -> Result<Self> {
        let mut agent = Self::spawn_on_api(kubeconfig)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts an agent on an API server and does not wait.
    pub fn spawn_on_api(kubeconfig: &Path) -> Result<Self> {
        let state = ["--state", STATE].map(OsString::from);
        Self::spawn_on(&picket()?, ("--kubeconfig", kubeconfig), &state)
    }

    /// Starts an agent with further options and does not wait.
    pub fn spawn(manifests: &Path, options: &[OsString]) -> Result<Self> {
        Self::spawn_program(&picket()?, manifests, options)
    }

    /// Starts a certain build of the agent and does not wait.
    pub fn spawn_program(program: &Path, manifests: &Path, options: &[OsString]) -> Result<Self> {
        Self::spawn_on(program, ("--manifests", manifests), options)
    }

    fn spawn_on(program: &Path, objects: (&str, &Path), options: &[OsString]) -> Result<Self> {
        // A socket left by a killed agent must not pass for the new one's.
        if Path::new(SOCKET).exists() {
            fs::remove_file(SOCKET).with_context(|| format!("removing {SOCKET}"))?;
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(LOG)
            .with_context(|| format!("opening {LOG}"))?;
        let mut command = Command::new(program);
        command
            .arg("agent")
            .arg(objects.0)
            .arg(objects.1)
            .args(options)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("the log twice")?)
            .stderr(log);
        // SAFETY: between fork and exec, prctl is one system call and touches no memory.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let child = command.spawn().context("starting the agent")?;
        Ok(Self { child })
    }

    /// Waits until `/readyz` says that everything found at the start is enforced.
    pub fn wait_ready(&mut self) -> Result<()> {
        let ready = wait_until("the agent to be ready", READY_WITHIN, || {
            if let Some(status) = self
                .child
                .try_wait()
                .context("asking for the agent's end")?
            {
                return Ok(Err(anyhow!("the agent has ended: {status}")));
            }
            get("/readyz").map(|_| Ok(()))
        });
        ready
            .and_then(|ready| ready)
            .with_context(|| format!("the agent said:\n{}", log()))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it as the out-of-memory killer would.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("killing the agent")?;
        self.child
            .wait()
            .context("waiting for the killed agent")
            .map(drop)
    }

    /// Waits until it ends by itself, or something else ends it.
    pub fn wait_end(mut self) -> Result<ExitStatus> {
        wait_until("the agent to end", READY_WITHIN, || {
            let ended = self.child.try_wait();
            ended
                .context("asking for the agent's end")?
                .context("the agent still runs")
        })
    }

    /// Asks it to stop, as the kubelet does.
    pub fn stop(mut self) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGTERM).context("stopping the agent")?;
        wait_until("the agent to stop", STOPPED_WITHIN, || {
            let ended = self
                .child
                .try_wait()
                .context("asking for the agent's end")?;
            ended.context("the agent still runs")
        })
        .map(drop)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended by itself; nothing else can go wrong with a child of ours.
        self.child.kill().unwrap_or_default();
        drop(self.child.wait());
    }
}

/// The agent's log lines so far.
pub fn log() -> String {
    fs::read_to_string(LOG).unwrap_or_default()
}

/// Asks the API and reads the answer as JSON.
pub fn ask<T: DeserializeOwned>(path: &str) -> Result<T> {
    let body = get(path)?;
    serde_json::from_slice(&body).with_context(|| {
        format!(
            "reading the answer to {path}: {}",
            String::from_utf8_lossy(&body)
        )
    })
}

/// The value of a series (`name{label="value"}`), as `/metrics` says it now.
pub fn metric(series: &str) -> Result<f64> {
    let text = String::from_utf8(get("/metrics")?).context("reading the metrics")?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
        .with_context(|| format!("{series} is missing in\n{text}"))?;
    value
        .parse()
        .with_context(|| format!("{series} is {value:?}"))
}

/// Asks the API; an error when it does not answer 200.
pub fn get(path: &str) -> Result<Vec<u8>> {
    let (status, body) = request(path)?;
    if status != 200 {
        bail!(
            "{path}: {status}: {}",
            String::from_utf8_lossy(&body).trim()
        );
    }
    Ok(body)
}

/// Asks the API: the answer's status and body.
pub fn request(path: &str) -> Result<(u16, Vec<u8>)> {
    let mut stream =
        UnixStream::connect(SOCKET).with_context(|| format!("connecting to {SOCKET}"))?;
    stream
        .set_read_timeout(Some(ANSWER_WITHIN))
        .context("setting a deadline")?;
    // HTTP/1.0: the answer ends with the connection and is never chunked.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: picket\r\n\r\n").context("asking the agent")?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .with_context(|| format!("reading the answer to {path}"))?;
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .with_context(|| format!("the answer to {path} has no end of headers"))?;
    let body = answer.split_off(end + 4);
    let head = String::from_utf8_lossy(&answer);
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.with_context(|| format!("the answer to {path} begins with {head}"))?;
    Ok((status, body))
}
