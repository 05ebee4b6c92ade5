//! A node, or the control plane: namespaces of its own that live as long as their first process.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::process::{self, Look, complaints, last_lines, wait_for};
use super::state::{self, State};
use crate::places;
use crate::step::Step;

/// What programs are found by on a node.
const PATH: &str = "/run/parts:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The control plane's name.
pub(super) const CONTROL_PLANE: &str = "cp";

/// How long a node's mounts may take.
const MOUNTS: Duration = Duration::from_secs(20);

/// A node that runs.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    /// Of its first process.
    pub(super) pid: u32,
    dir: PathBuf,
    /// Its programs that were started here, by name.
    programs: Vec<(String, Child)>,
}

impl Node {
    /// Starts one whose files `prepare`d say what it is. `prepare` is given the directory that
    /// becomes part of its file system: `etc/hosts` there is its `/etc/hosts`.
    pub(super) fn start(
        state: &State,
        parts: &Path,
        name: &str,
        prepare: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let dir = state.dir().join(name);
        let changed = dir.join("changed");
        fs::create_dir_all(&changed).with_context(|| format!("making {}", changed.display()))?;
        prepare(&changed)?;
        let log = dir.join("init.log");
        let init = places::root().join("xtask/src/cluster/init.sh");
        let mut command = process::command("setsid");
        command
            .args([
                "unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork",
            ])
            .args(["--kill-child", "--propagation", "private", "bash"])
            .arg(init)
            .arg(name)
            .arg(state.dir())
            .arg(parts)
            .current_dir("/");
        let mut first = spawn(&mut command, state.dir(), &log)?;
        let pid_file = dir.join("pid");
        let pid = wait_for(&format!("{name}'s mounts"), MOUNTS, || {
            if let Some(status) = first.try_wait().context("waiting for a node")? {
                bail!("{name}: its first process ended, {status}");
            }
            let pid = fs::read_to_string(&pid_file).ok();
            let pid = pid.and_then(|pid| pid.trim().parse().ok());
            Ok(pid.map_or(
                Look::Missing("they are not all there".to_owned()),
                Look::There,
            ))
        });
        let pid = pid.with_context(|| format!("starting {name}{}", last_lines(&log)))?;
        Ok(Self {
            name: name.to_owned(),
            pid,
            dir,
            programs: Vec::new(),
        })
    }

    /// A command on the node.
    pub(super) fn command(&self, program: &str) -> Command {
        command(self.pid, program)
    }

    /// Starts a program that goes on; its log is beside the node's files.
    pub(super) fn run(&mut self, state: &State, words: &[String]) -> Result<()> {
        let words: Vec<OsString> = words.iter().map(Into::into).collect();
        let name = words
            .first()
            .map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        let log = self.log(&name);
        let child = spawn(&mut enter(self.pid, &words), state.dir(), &log)?;
        self.programs.push((name, child));
        Ok(())
    }

    /// An error if one of its programs has ended, with the end of its log.
    pub(super) fn still_runs(&mut self) -> Result<()> {
        for (name, child) in &mut self.programs {
            if let Some(status) = child
                .try_wait()
                .with_context(|| format!("looking at {name}"))?
            {
                let log = log(&self.dir, name);
                bail!("{}: {name} ended, {status}{}", self.name, last_lines(&log));
            }
        }
        Ok(())
    }

    /// What its programs complained of last.
    pub(super) fn complaints(&self) -> String {
        let logs = self.programs.iter();
        logs.map(|(name, _)| complaints(&self.log(name))).collect()
    }

    /// Configures its network: lines for `ip -batch`.
    pub(super) fn ip(&self, lines: &[String]) -> Result<()> {
        let file = self.dir.join("ip");
        let mut text = File::create(&file).with_context(|| format!("making {}", file.display()))?;
        text.write_all(lines.join("\n").as_bytes())
            .with_context(|| format!("writing {}", file.display()))?;
        // The mounts are the machine's, so that namespaces are named by the machine's process ids.
        let mut ip = process::command("nsenter");
        ip.arg(format!("--net=/proc/{}/ns/net", self.pid));
        ip.args(["ip", "-batch"]).arg(&file);
        process::output(&mut ip)
            .map(drop)
            .with_context(|| format!("{}: configuring its network", self.name))
    }

    fn log(&self, program: &str) -> PathBuf {
        log(&self.dir, program)
    }
}

fn log(dir: &Path, program: &str) -> PathBuf {
    dir.join(format!("{program}.log"))
}

/// What `nsenter` is told to enter all namespaces of process `pid`.
fn namespaces(pid: u32) -> [String; 8] {
    let pid = pid.to_string();
    let all = [
        "--target", &pid, "--mount", "--net", "--pid", "--uts", "--ipc", "--",
    ];
    all.map(str::to_owned)
}

/// A command in all namespaces of process `pid`.
fn enter(pid: u32, words: &[OsString]) -> Command {
    let mut command = process::command("nsenter");
    command.args(namespaces(pid)).args(words).env("PATH", PATH);
    command
}

/// A command on the node whose first process is `pid`.
pub(super) fn command(pid: u32, program: &str) -> Command {
    enter(pid, &[program.into()])
}

/// The same for a person, at the terminal.
pub(super) fn step(pid: u32, words: &[OsString]) -> Step {
    Step::new("nsenter")
        .args(namespaces(pid))
        .args(words)
        .env("PATH", PATH)
}

/// Starts what outlives this task, and can be found again whatever becomes of the task.
pub(super) fn spawn(command: &mut Command, state: &Path, log: &Path) -> Result<Child> {
    let out = File::create(log).with_context(|| format!("making {}", log.display()))?;
    let err = out
        .try_clone()
        .with_context(|| format!("opening {}", log.display()))?;
    command
        .env(state::MARK, state)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .with_context(|| format!("starting {}", command.get_program().display()))
}
