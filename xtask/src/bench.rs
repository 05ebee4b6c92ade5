//! Benchmarks: how long compiling policy takes, what a packet costs.

use anyhow::Result;
use clap::ValueEnum;

use crate::places;
use crate::setup::{self, What};
use crate::step::Step;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to measure.
    #[arg(value_enum)]
    what: Bench,
    /// Handed on to the benchmark.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Bench {
    /// Policy compilation per event, in clusters of up to 100 000 pods. No root.
    Compile,
    /// A packet's cost in the kernel, as ratios to floor programs. Root.
    Dataplane,
}

/// The task.
pub(crate) fn run(args: &Args) -> Result<()> {
    match args.what {
        Bench::Compile => Step::cargo(["bench", "--locked", "-p", "agent-policy"])
            .args(["--bench", "compile", "--"])
            .args(&args.rest)
            .run(),
        Bench::Dataplane => {
            setup::ensure(What::Lab)?;
            Step::cargo(["build", "--release", "--locked", "-p", "tests"])
                .args(["--bin", "bench_dataplane"])
                .run()?;
            Step::new(places::target()?.join("release/bench_dataplane"))
                .args(&args.rest)
                .with_root("loading BPF programs")?
                .run()
        }
    }
}
