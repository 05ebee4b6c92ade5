//! `picket uninstall`: takes the plugin out of the node's network, and programs, links and maps out
//! of the kernel.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail};

use super::Outcome;
use super::output::{Format, Terminal, counted};
use crate::config::DEFAULT_PINS;
use crate::dataplane::{Uninstalled, uninstall};
use crate::dto::{Kind as _, Removal};
use crate::endpoints::DEFAULT_CNI_RESULTS;
use crate::plugin::{self, DEFAULT_BIN_DIR, DEFAULT_CONF_DIR, Places};

/// Take every program, link and map of Picket off this node, and its CNI plugin: nothing is enforced
/// afterwards
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Stop the agent first: one that runs would install everything again.

Examples:
  picket uninstall
  picket uninstall --yes
  picket uninstall --yes --pins /sys/fs/bpf/picket")]
pub(super) struct Args {
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Directory the agent pins under
    #[arg(long, value_name = "DIR", env = "PICKET_PINS", default_value = DEFAULT_PINS)]
    pins: PathBuf,
    /// Directory of the container runtime's networks, out of which the plugin is taken
    #[arg(long, value_name = "DIR", env = "PICKET_CNI_CONF_DIR", default_value = DEFAULT_CONF_DIR)]
    cni_conf_dir: PathBuf,
    /// Directory of the container runtime's plugins
    #[arg(long, value_name = "DIR", env = "PICKET_CNI_BIN_DIR", default_value = DEFAULT_BIN_DIR)]
    cni_bin_dir: PathBuf,
    /// Directory of the container runtime's CNI results: while one names the plugin, its program
    /// stays for the pod's end
    #[arg(long, value_name = "DIR", env = "PICKET_CNI_RESULTS", default_value = DEFAULT_CNI_RESULTS)]
    cni_results: PathBuf,
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
        // First: no pod may wait for an agent that will not come back.
        let places = Places {
            conf: self.cni_conf_dir.clone(),
            bin: self.cni_bin_dir.clone(),
        };
        let unplugged = plugin::uninstall(&places, &self.cni_results)
            .context("taking the CNI plugin out of the node's network")?;
        let uninstalled = uninstall(&self.pins)
            .with_context(|| format!("removing what is pinned under {}", self.pins.display()))?;
        let mut removal = removed(&uninstalled);
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
                    self.pins.display()
                )
            } else {
                writeln!(out, "nothing is enforced on this node any more")
            }
        })?;
        Ok(Outcome::Yes)
    }

    fn is_confirmed(&self, terminal: &Terminal) -> anyhow::Result<bool> {
        if !io::stdin().is_terminal() {
            bail!("uninstall asks before it acts and there is no terminal to ask on; add --yes");
        }
        terminal.say(&format!(
            "This takes everything under {} away; policies are no longer enforced on this node.",
            self.pins.display()
        ));
        let mut stderr = io::stderr().lock();
        write!(stderr, "Go on? [y/N] ")?;
        stderr.flush()?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }
}

/// One line a thing.
fn removed(uninstalled: &Uninstalled) -> Removal {
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
    Removal {
        removed: programs.into_iter().chain(pins).collect(),
    }
}
