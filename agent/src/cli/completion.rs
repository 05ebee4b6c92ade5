//! `picket completion`: the shell's own completion script.

use std::io::Write as _;

use clap_complete::Shell;

use super::{Outcome, output};

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  picket completion bash > /etc/bash_completion.d/picket
  picket completion zsh > \"${fpath[1]}/_picket\"
  picket completion fish > ~/.config/fish/completions/picket.fish
  picket completion powershell >> $PROFILE")]
pub(super) struct Args {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl Args {
    pub(super) fn run(&self, mut tree: clap::Command) -> anyhow::Result<Outcome> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut tree, "picket", &mut script);
        let mut out = output::stdout();
        out.write_all(&script)?;
        out.flush()?;
        Ok(Outcome::Yes)
    }
}
