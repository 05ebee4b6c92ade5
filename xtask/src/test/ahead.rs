//! What later tests need takes minutes of Go to build, once, and earlier tests mostly wait: so it is
//! built beside them, at low priority.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Child;

use anyhow::{Context as _, Result};

use crate::cluster::{self, Group};
use crate::helm;
use crate::places;
use crate::step::Step;

/// How much of the log explains a failure.
const LAST_LINES: usize = 20;

/// A build that goes on. It ends with this process at the latest.
#[derive(Debug)]
pub(super) struct Ahead {
    step: Step,
    child: Child,
    log: PathBuf,
}

/// Starts it, if anything is missing.
pub(super) fn start() -> Result<Option<Ahead>> {
    if cluster::is_built(Group::Api)? && helm::is_built()? {
        return Ok(None);
    }
    let log = places::target()?.join("cluster-parts.log");
    let file = File::create(&log).with_context(|| format!("making {}", log.display()))?;
    let xtask = std::env::current_exe().context("finding the xtask program")?;
    let step = Step::new("setpriv")
        .args(["--pdeathsig", "TERM", "nice", "-n", "15"])
        .arg(xtask)
        .args(["cluster", "parts", "--group", "api", "--helm"]);
    eprintln!("built beside the first tests: {}", log.display());
    let child = step.logged(file)?;
    Ok(Some(Ahead { step, child, log }))
}

impl Ahead {
    /// Waits for its end.
    pub(super) fn finish(mut self) -> Result<()> {
        eprintln!("waiting for what is built: {}", self.log.display());
        let status = self.child.wait().context("waiting for the build")?;
        if status.success() {
            return Ok(());
        }
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.get(lines.len().saturating_sub(LAST_LINES)..);
        eprintln!("{}", last.unwrap_or_default().join("\n"));
        Err(self
            .step
            .failed(&format!("{}: {status}", self.log.display())))
    }
}
