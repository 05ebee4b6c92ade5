//! `picket cni`: the chained CNI plugin, between the runtime's environment and standard streams.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use anyhow::Context as _;

use super::Outcome;
use super::client::runtime;
use crate::plugin::{Call, MAX_INPUT_BYTES, NAME};

/// Be the CNI plugin that lets a pod start when its policy is in force
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Container runtimes call it as the last plugin of a network, by the name picket-cni: the command is
in CNI_COMMAND, the network's configuration comes in on standard input. Its keys:

  socket        of the agent: /run/picket/agent.sock when left out
  waitMillis    how long a pod's start is held up: 5000 at most, and when left out
  onTimeout     what becomes of a pod whose policy is not in force then: \"start\", with the agent's
                posture until it is; or \"fail\", and the kubelet tries again

Examples:
  picket cni < conf.json
  CNI_COMMAND=VERSION picket cni < conf.json")]
pub(super) struct Args {}

/// True when the program is called as a plugin is: by its file's name alone.
pub(super) fn is_called(program: Option<&OsString>) -> bool {
    let name = program.map(Path::new).and_then(Path::file_name);
    name.is_some_and(|name| name == NAME)
}

/// Answers the runtime.
pub(super) fn run() -> anyhow::Result<Outcome> {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let call = Call {
        command: variable("CNI_COMMAND"),
        container: variable("CNI_CONTAINERID"),
        netns: variable("CNI_NETNS"),
        interface: variable("CNI_IFNAME"),
        arguments: variable("CNI_ARGS"),
    };
    let mut input = Vec::new();
    io::stdin()
        .take(MAX_INPUT_BYTES)
        .read_to_end(&mut input)
        .context("reading the network's configuration")?;
    let (answer, outcome) = match runtime()?.block_on(call.run(&input)) {
        Ok(answer) => (answer, Outcome::Yes),
        Err(refusal) => (Some(serde_json::to_string(&refusal)?), Outcome::No),
    };
    if let Some(answer) = answer {
        writeln!(io::stdout(), "{answer}").context("answering the runtime")?;
    }
    Ok(outcome)
}
