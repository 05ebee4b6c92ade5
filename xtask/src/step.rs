//! One command that a task starts: printed before it runs, repeatable after it failed.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::places;

/// A command to start, in the workspace's root unless said otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    program: OsString,
    args: Vec<OsString>,
    envs: Vec<(String, OsString)>,
    dir: PathBuf,
    silent: bool,
}

/// A command ended badly.
#[derive(Debug)]
pub(crate) struct Failed {
    /// What ended, and how.
    pub(crate) how: String,
    /// What to paste into a shell to run it again.
    pub(crate) again: String,
}

impl Display for Failed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.how)
    }
}

impl std::error::Error for Failed {}

impl Step {
    pub(crate) fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            envs: Vec::new(),
            dir: places::root().to_path_buf(),
            silent: false,
        }
    }

    /// The cargo that started this task.
    pub(crate) fn cargo<const N: usize>(args: [&str; N]) -> Self {
        Self::new("cargo").args(args)
    }

    pub(crate) fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(crate) fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.envs.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = dir.into();
        self
    }

    /// Its stdout is of no interest; errors are still seen.
    pub(crate) fn silent(mut self) -> Self {
        self.silent = true;
        self
    }

    /// The same command as root: itself if we are root, else through sudo.
    pub(crate) fn with_root(mut self, why: &str) -> Result<Self> {
        if is_root()? {
            return Ok(self);
        }
        if places::on_path("sudo").is_none() {
            bail!("{why} needs root, and there is no sudo here: run the same command as root");
        }
        eprintln!("{why} needs root: asking sudo");
        let mut args: Vec<OsString> = vec!["--preserve-env".into(), "env".into()];
        args.extend(
            self.envs
                .drain(..)
                .map(|(name, value)| assignment(&name, &value)),
        );
        args.push(self.program);
        args.append(&mut self.args);
        self.program = "sudo".into();
        self.args = args;
        Ok(self)
    }

    /// Runs it; its output is seen.
    pub(crate) fn run(self) -> Result<()> {
        self.announce();
        let mut command = self.command();
        if self.silent {
            command.stdout(Stdio::null());
        }
        let status = command
            .status()
            .with_context(|| format!("starting {}", self.program.display()))?;
        self.outcome(status)
    }

    /// Runs it; `line` sees each line of its stderr.
    pub(crate) fn watch(self, mut line: impl FnMut(&str)) -> Result<()> {
        self.announce();
        let mut child = self
            .command()
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        if let Some(stderr) = child.stderr.take() {
            for text in BufReader::new(stderr).lines() {
                line(&text.with_context(|| format!("reading {}", self.program.display()))?);
            }
        }
        let status = child
            .wait()
            .with_context(|| format!("waiting for {}", self.program.display()))?;
        self.outcome(status)
    }

    /// Runs it; what it writes on stdout is returned.
    pub(crate) fn output(self) -> Result<String> {
        let program = self.program.clone();
        String::from_utf8(self.bytes()?)
            .with_context(|| format!("reading the output of {}", program.display()))
    }

    /// Runs it; what it writes on stdout is returned, text or not.
    pub(crate) fn bytes(self) -> Result<Vec<u8>> {
        let output = self
            .command()
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("starting {}", self.program.display()))?;
        self.outcome(output.status)?;
        Ok(output.stdout)
    }

    /// Whether it runs and succeeds, in silence.
    pub(crate) fn succeeds(self) -> bool {
        let silent = self
            .command()
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        silent.is_ok_and(|status| status.success())
    }

    /// Becomes the command, so that its exit code and Ctrl-C are its own. Returns on failure only.
    pub(crate) fn replace(self) -> Result<()> {
        self.announce();
        self.replace_quietly()
    }

    /// The same, where whoever typed it knows what it is.
    pub(crate) fn replace_quietly(self) -> Result<()> {
        let error = self.command().exec();
        Err(error).with_context(|| format!("starting {}", self.program.display()))
    }

    /// Starts it with its stdout piped to the caller.
    pub(crate) fn piped(&self) -> Result<Child> {
        self.announce();
        self.command()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))
    }

    /// Starts it with all it says written to `log`.
    pub(crate) fn logged(&self, log: File) -> Result<Child> {
        self.announce();
        let too = log.try_clone().context("opening a log twice")?;
        self.command()
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(too)
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))
    }

    /// The error that says how the command ended and how to run it again.
    pub(crate) fn failed(&self, how: &str) -> anyhow::Error {
        Failed {
            how: how.to_owned(),
            again: format!("cd {} && {self}", quote(self.dir.as_os_str())),
        }
        .into()
    }

    fn outcome(&self, status: ExitStatus) -> Result<()> {
        if status.success() {
            return Ok(());
        }
        Err(self.failed(&format!("{}: {status}", self.program.display())))
    }

    fn announce(&self) {
        eprintln!("+ {self}    # in {}", self.dir.display());
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .envs(self.envs.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.dir);
        command
    }
}

/// As a shell would take it.
impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.envs {
            write!(f, "{name}={} ", quote(value))?;
        }
        f.write_str(&quote(&self.program))?;
        for arg in &self.args {
            write!(f, " {}", quote(arg))?;
        }
        Ok(())
    }
}

fn assignment(name: &str, value: &OsStr) -> OsString {
    let mut text = OsString::from(name);
    text.push("=");
    text.push(value);
    text
}

fn quote(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Whether this process may do everything.
pub(crate) fn is_root() -> Result<bool> {
    let own = std::fs::metadata("/proc/self").context("reading /proc/self: is /proc mounted?")?;
    Ok(own.uid() == 0)
}

/// The directory the task was called from; paths on its command line are seen from here.
pub(crate) fn called_from() -> Result<PathBuf> {
    env::current_dir().context("finding the current directory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_shown_as_a_shell_takes_it() {
        let step = Step::new("cargo")
            .env("RUSTDOCFLAGS", "-D warnings")
            .args(["doc", "it's", ""]);
        assert_eq!(
            step.to_string(),
            r"RUSTDOCFLAGS='-D warnings' cargo doc 'it'\''s' ''"
        );
    }

    #[test]
    fn a_failed_step_says_how_to_run_it_again() {
        let error = Step::new("false").dir("/").run().unwrap_err();
        let failed = error.downcast_ref::<Failed>().unwrap();
        assert_eq!(failed.again, "cd / && false");
    }

    #[test]
    fn whoever_watches_sees_each_line_and_how_it_ended() {
        let mut seen = Vec::new();
        let step = Step::new("sh").args(["-c", "echo one >&2; echo two >&2; exit 3"]);
        let error = step.watch(|line| seen.push(line.to_owned())).unwrap_err();
        assert_eq!(seen, ["one", "two"]);
        assert!(error.to_string().contains('3'), "{error}");
    }

    #[test]
    fn output_is_what_the_command_wrote() {
        assert_eq!(Step::new("echo").arg("yes").output().unwrap(), "yes\n");
    }
}
