//! A real Kubernetes cluster on this machine: its parts are built here, from their published
//! sources, and its nodes are namespaces.

mod parts;

use anyhow::Result;
use clap::Subcommand;

pub(crate) use parts::{Group, ensure};

/// What to do with the cluster.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build the programs a cluster is made of, once, and print the directory they are in.
    Parts(parts::Args),
}

/// The task.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.task {
        Task::Parts(args) => parts::run(args),
    }
}
