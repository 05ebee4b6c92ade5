//! The command tree: what can be asked, and how every command ends. Each command is one file
//! under `cli/` with its `Args` and its `run`.
//!
//! Answers go to standard output, everything else to standard error. Exit codes: see `Outcome`.

mod agent;
mod asking;
mod can;
mod client;
mod cni;
mod completion;
mod directories;
mod doctor;
mod explain;
mod flows;
mod grid;
mod matrix;
mod offline;
mod output;
mod status;
mod uninstall;
mod version;
mod why;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use output::{ColorChoice, Terminal};

/// How a command ends when nothing went wrong; an error ends with 2.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub(crate) enum Outcome {
    /// 0: yes, clean, passed.
    Yes,
    /// 1: no, findings, failed.
    No,
    /// 2: an answer was given, but part of the input could not be used.
    Incomplete,
    /// 3: cannot tell.
    CannotTell,
}

impl Outcome {
    /// The process's exit code.
    const fn code(self) -> u8 {
        match self {
            Self::Yes => 0,
            Self::No => 1,
            Self::Incomplete => 2,
            Self::CannotTell => 3,
        }
    }
}

/// Exit code of usage and connection errors.
const EXIT_ERROR: u8 = 2;

/// NetworkPolicy for clusters whose network does not enforce it, with a reason for every verdict
#[derive(Debug, Parser)]
#[command(
    name = "picket",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "\
Endpoints are written as
  shop/api-7d4f9         a pod                      ip:10.0.0.7, 10.0.0.7  an address
  shop/deploy/api        every pod of a workload    [fd00::7]:443          IPv6 with a port
and ports as :8080 (TCP), :53/UDP or :http (a container port's name).

Exit codes: 0 yes, clean · 1 no, findings · 2 usage or connection error, or part of the
input could not be used · 3 cannot tell.

Examples:
  picket matrix -f manifests/                      who reaches whom, without any cluster
  picket can shop/deploy/web shop/deploy/api:8080  may it? by which rule, or what is missing
  picket why --to shop/deploy/api                  the latest refusals, explained
  picket flows -f                                  connections and refusals as they happen"
)]
struct Cli {
    /// Colour the output: auto (on a terminal, unless `NO_COLOR` is set), always or never
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_possible_values = true,
        display_order = 900
    )]
    color: ColorChoice,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Agent(agent::Args),
    Matrix(matrix::Args),
    Can(can::Args),
    Why(why::Args),
    #[command(visible_alias = "observe")]
    Flows(flows::Args),
    Status(status::Args),
    Doctor(doctor::Args),
    Uninstall(uninstall::Args),
    Cni(cni::Args),
    Completion(completion::Args),
    Version(version::Args),
}

/// Parses the arguments, runs the command and says how it ended.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    if cni::is_called(arguments.first()) {
        arguments.push("cni".into());
    }
    let matches = match command(arguments.first()).try_get_matches_from(&arguments) {
        Ok(matches) => matches,
        Err(error) => return said_by_clap(&error),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return said_by_clap(&error),
    };
    let terminal = Terminal::detect(cli.color);
    match dispatch(cli.command, &terminal) {
        Ok(outcome) => ExitCode::from(outcome.code()),
        // `picket matrix | head`: the reader has what it wanted.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            terminal.complain(&format!("{error:#}"));
            ExitCode::from(EXIT_ERROR)
        }
    }
}

fn dispatch(command: Command, terminal: &Terminal) -> anyhow::Result<Outcome> {
    match command {
        Command::Agent(args) => args.run(),
        Command::Matrix(args) => args.run(terminal),
        Command::Can(args) => args.run(terminal),
        Command::Why(args) => args.run(terminal),
        Command::Flows(args) => args.run(terminal),
        Command::Status(args) => args.run(terminal),
        Command::Doctor(args) => args.run(terminal),
        Command::Uninstall(args) => args.run(terminal),
        Command::Cni(cni::Args {}) => cni::run(),
        Command::Completion(args) => args.run(command_tree()),
        Command::Version(args) => args.run(),
    }
}

/// The command tree under its own name.
fn command_tree() -> clap::Command {
    Cli::command()
}

/// The command tree as it is called: installed as `kubectl-picket` it is a kubectl plugin, and its
/// help says what the user types.
fn command(program: Option<&OsString>) -> clap::Command {
    let is_plugin = program
        .map(std::path::Path::new)
        .and_then(std::path::Path::file_stem)
        .is_some_and(|name| name == "kubectl-picket" || name == "kubectl_picket");
    let tree = command_tree();
    if is_plugin {
        as_plugin(tree, "kubectl picket")
    } else {
        tree
    }
}

fn as_plugin(command: clap::Command, called: &str) -> clap::Command {
    let examples = command
        .get_after_help()
        .map(|help| help.to_string().replace("  picket ", "  kubectl picket "));
    let names: Vec<String> = command
        .get_subcommands()
        .map(|each| each.get_name().to_owned())
        .collect();
    let mut command = command.bin_name(called).display_name(called);
    if let Some(examples) = examples {
        command = command.after_help(examples);
    }
    for name in names {
        let called = format!("{called} {name}");
        command = command.mut_subcommand(name, |each| as_plugin(each, &called));
    }
    command
}

fn said_by_clap(error: &clap::Error) -> ExitCode {
    // Nothing is left to tell anyone when even this cannot be written.
    let is_written = error.print().is_ok();
    let code = if is_written {
        error.exit_code()
    } else {
        i32::from(EXIT_ERROR)
    };
    ExitCode::from(u8::try_from(code).unwrap_or(EXIT_ERROR))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_sound() {
        command_tree().debug_assert();
    }

    #[test]
    fn every_command_teaches_by_example() {
        for command in command_tree().get_subcommands() {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                help.contains(&format!("  picket {}", command.get_name())),
                "`picket {} --help` shows no example",
                command.get_name()
            );
            assert!(
                command.get_about().is_some(),
                "{} says nothing",
                command.get_name()
            );
        }
    }

    #[test]
    fn as_a_kubectl_plugin_the_help_says_what_the_user_types() {
        let mut tree = command(Some(&OsString::from("/usr/local/bin/kubectl-picket")));
        let top = tree.render_help().to_string();
        assert!(top.contains("Usage: kubectl picket"), "{top}");
        let error = tree
            .try_get_matches_from(["kubectl-picket", "can", "--help"])
            .unwrap_err();
        let help = error.to_string();
        assert!(help.contains("Usage: kubectl picket can"), "{help}");
        assert!(help.contains("  kubectl picket can "), "{help}");
        assert!(!help.contains("  picket can "), "{help}");
    }

    #[test]
    fn under_its_own_name_it_is_picket() {
        let mut tree = command(Some(&OsString::from("target/release/picket")));
        let top = tree.render_help().to_string();
        assert!(top.contains("Usage: picket"), "{top}");
        assert!(top.contains("  picket matrix -f"), "{top}");
    }

    #[test]
    fn exit_codes_are_those_of_the_interface() {
        let codes = [
            Outcome::Yes,
            Outcome::No,
            Outcome::Incomplete,
            Outcome::CannotTell,
        ]
        .map(Outcome::code);
        assert_eq!(codes, [0, 1, 2, 3]);
    }
}
