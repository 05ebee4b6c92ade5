//! Everything a Picket developer or its CI types: one enum, one match, one file a task.
//!
//! Each command a task starts is printed on stderr with its directory. When one fails, the last
//! line printed is the command to run again.

#![expect(
    clippy::print_stderr,
    reason = "a task runner talks to the person at the terminal"
)]

mod apt;
mod arch;
mod bench;
mod bpf;
mod check;
mod cluster;
mod fuzz;
mod go;
mod helm;
mod image;
mod kind;
mod lab;
mod layout;
mod musl;
mod oci;
mod places;
mod setup;
mod step;
mod table;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Build, try, test and check Picket.
///
/// Start with `cargo xtask demo`: it installs what is missing, builds everything and shows
/// Picket at work on real packets. Before sending a change: `cargo xtask check` and
/// `cargo xtask test`.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Say what this machine lacks, why it is needed and how to get it; then install it.
    Setup(setup::Args),
    /// Show Picket at work: a node of network namespaces, real packets, policies one by one.
    Demo(lab::Passed),
    /// Measure who reaches whom under manifests, with real sockets and the real agent.
    Lab(lab::Passed),
    /// Run the tests: all of them, or one kind.
    Test(test::Args),
    /// Format, project rules, lints, documentation, map layouts, BPF budget: what CI asks.
    Check,
    /// Measure speed.
    Bench(bench::Args),
    /// Run a real Kubernetes cluster on this machine, with Picket in it.
    Cluster(cluster::Args),
    /// The same by Docker and kind, for those who have them.
    Kind(kind::Args),
    /// Throw bytes at what reads bytes, bred towards ways that none has taken.
    Fuzz(fuzz::Args),
    /// Size the BPF programs and maps, say what they cost each kernel, and hold both against their
    /// budget.
    Bpf,
    /// Build the container image, without Docker: an archive that containerd imports.
    Image(image::Args),
    /// Hold the maps' layouts against `agent-common/layout.txt`.
    Layout(layout::Args),
    /// Hold the tree against the project's own rules.
    Tidy,
}

fn main() -> ExitCode {
    let done = match Args::parse().task {
        Task::Setup(args) => setup::run(&args),
        Task::Demo(args) => lab::demo(&args),
        Task::Lab(args) => lab::lab(&args),
        Task::Test(args) => test::run(&args),
        Task::Check => check::run(),
        Task::Bench(args) => bench::run(&args),
        Task::Cluster(args) => cluster::run(&args),
        Task::Kind(args) => kind::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Bpf => bpf::run(),
        Task::Image(args) => image::run(&args),
        Task::Layout(args) => layout::run(&args),
        Task::Tidy => tidy::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            if let Some(failed) = error.downcast_ref::<step::Failed>() {
                eprintln!("to run it again:\n{}", failed.again);
            }
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Args::command().debug_assert();
    }
}
