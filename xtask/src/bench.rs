//! Benchmarks: how long compiling policy takes, what a packet costs, alone and in real traffic, how
//! soon a change is in force.

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
    /// Handed on to the benchmark; `-- --help` says what it takes.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Bench {
    /// Policy compilation per event, in clusters of up to 100 000 pods. No root.
    Compile,
    /// A packet's cost in the kernel, as ratios to floor programs. Root.
    Dataplane,
    /// What changes cost and how soon they are in force: one peer's, one policy's, 10 000 and
    /// 50 000 at once; adopting 100 000 connections. Root.
    Scale,
    /// CPU of traffic between two pods: with no program, Picket, netfilter. Root.
    Wire,
}

/// The task.
pub(crate) fn run(args: &Args) -> Result<()> {
    match args.what {
        Bench::Compile => Step::cargo(["bench", "--locked", "-p", "agent-policy"])
            .args(["--bench", "compile", "--"])
            .args(&args.rest)
            .run(),
        Bench::Dataplane => on_the_kernel("bench_dataplane", &[], &args.rest),
        // These start the real agent, which lies beside them.
        Bench::Scale => on_the_kernel("bench_scale", &["picket"], &args.rest),
        Bench::Wire => on_the_kernel("bench_wire", &["picket"], &args.rest),
    }
}

/// Builds and runs a benchmark that needs a kernel, and other programs.
fn on_the_kernel(bench: &str, others: &[&str], rest: &[String]) -> Result<()> {
    setup::ensure(What::Lab)?;
    let programs = others.iter().chain([&bench]);
    Step::cargo(["build", "--release", "--locked"])
        .args(["-p", "agent", "-p", "tests"])
        .args(programs.flat_map(|program| ["--bin", program]))
        .run()?;
    Step::new(places::target()?.join("release").join(bench))
        .args(rest)
        .with_root("loading BPF programs")?
        .run()
}
