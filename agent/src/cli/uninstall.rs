//! `picket uninstall`: takes the plugin out of the node's network, programs, links and maps out of the
//! kernel, and off the disk what an API server said.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Context as _, bail};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Outcome;
use super::client::runtime;
use super::directories::Directories;
use super::output::{Format, Terminal, counted};
use crate::dataplane::{Uninstalled, uninstall};
use crate::dto::{Kind as _, Removal};
use crate::plugin::{self, Places};
use crate::source;

/// Take every program, link and map of Picket off this node, and its CNI plugin: nothing is enforced
/// afterwards
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Stop the agent first: one that runs would install everything again. While one of the runtime's CNI
results names the plugin, its program stays, for that pod's end.

Examples:
  picket uninstall
  picket uninstall --yes
  picket uninstall --yes --pins /sys/fs/bpf/picket
  picket uninstall --yes --wait                     in a pod, which would be started again else")]
pub(super) struct Args {
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// When done, stay until told to end by SIGTERM or Ctrl-C
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    directories: Directories,
    /// How to print what was removed
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

impl Args {
    pub(super) fn run(&self, terminal: &Terminal) -> anyhow::Result<Outcome> {
        if !self.yes && !self.is_confirmed(terminal)? {
            terminal.say("nothing was removed");
            return Ok(Outcome::No);
        }
        // Before anything is said: who reads it may tell us to end.
        let end = self.wait.then(End::listen).transpose()?;
        // First: no pod may wait for an agent that will not come back.
        let places = Places {
            conf: self.directories.cni_conf_dir.clone(),
            bin: self.directories.cni_bin_dir.clone(),
        };
        let unplugged = plugin::uninstall(&places, &self.directories.cni_results)
            .context("taking the CNI plugin out of the node's network")?;
        let uninstalled = uninstall(&self.directories.pins).with_context(|| {
            format!(
                "removing what is pinned under {}",
                self.directories.pins.display()
            )
        })?;
        let forgotten = source::forget_api(&self.directories.state).with_context(|| {
            format!(
                "removing what is kept in {}",
                self.directories.state.display()
            )
        })?;
        let mut removal = removed(&uninstalled, forgotten);
        removal.removed.splice(0..0, unplugged.removed);
        if let Some(kept) = unplugged.kept {
            terminal.say(&kept);
        }
        let document = removal.into_document();
        let lines = &document.body.removed;
        self.output.print(&document, |out| {
            for line in lines {
                writeln!(out, "removed {line}")?;
            }
            if lines.is_empty() {
                writeln!(
                    out,
                    "nothing of Picket is pinned under {}",
                    self.directories.pins.display()
                )
            } else {
                writeln!(out, "nothing is enforced on this node any more")
            }
        })?;
        if let Some(end) = end {
            end.wait();
        }
        Ok(Outcome::Yes)
    }

    fn is_confirmed(&self, terminal: &Terminal) -> anyhow::Result<bool> {
        if !io::stdin().is_terminal() {
            bail!("uninstall asks before it acts and there is no terminal to ask on; add --yes");
        }
        terminal.say(&format!(
            "This takes everything under {} away; policies are no longer enforced on this node.",
            self.directories.pins.display()
        ));
        let mut stderr = io::stderr().lock();
        write!(stderr, "Go on? [y/N] ")?;
        stderr.flush()?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }
}

/// What tells the process to end. A container's first process has to listen, or is not told.
struct End {
    runtime: Runtime,
    terminate: Signal,
    interrupt: Signal,
}

impl End {
    fn listen() -> anyhow::Result<Self> {
        let runtime = runtime()?;
        let (terminate, interrupt) = {
            let _entered = runtime.enter();
            (
                signal(SignalKind::terminate()).context("listening for SIGTERM")?,
                signal(SignalKind::interrupt()).context("listening for SIGINT")?,
            )
        };
        Ok(Self {
            runtime,
            terminate,
            interrupt,
        })
    }

    fn wait(mut self) {
        self.runtime.block_on(async {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
        });
    }
}

/// One line a thing.
fn removed(uninstalled: &Uninstalled, forgotten: bool) -> Removal {
    let counted = |number: usize, one, many| (number > 0).then(|| counted(number, one, many));
    let programs = counted(
        uninstalled.interfaces,
        "interface's programs",
        "interfaces' programs",
    );
    let pins = counted(
        uninstalled.versions,
        "directory of pinned maps and links",
        "directories of pinned maps and links",
    );
    let kept = forgotten.then(|| "what was kept of the API server's objects".to_owned());
    Removal {
        removed: programs.into_iter().chain(pins).chain(kept).collect(),
    }
}
