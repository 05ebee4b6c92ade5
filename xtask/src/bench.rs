//! Benchmarks: how long compiling policy takes, what a packet costs, alone and in real traffic, how
//! soon a change is in force.

use anyhow::Result;
use clap::ValueEnum;

use crate::cluster::{self, Group};
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
    /// 50 000 at once; adopting 100 000 connections; a cluster of 20 000 pods on a real API server:
    /// start, changes, memory. Root.
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
        Bench::Dataplane => as_root(on_the_kernel("bench_dataplane", &[], &args.rest)?),
        // This and scale start the real agent, which lies beside them.
        Bench::Scale => scale(&args.rest),
        Bench::Wire => as_root(on_the_kernel("bench_wire", &["picket"], &args.rest)?),
    }
}

/// Its last part needs an API server, unless only others are asked for.
fn scale(rest: &[String]) -> Result<()> {
    let mut step = on_the_kernel("bench_scale", &["picket"], rest)?;
    let is_only = rest.iter().any(|option| option.starts_with("--only"));
    if !is_only || rest.iter().any(|option| option.contains("cluster")) {
        setup::ensure(What::Api)?;
        step = step.env(cluster::VARIABLE, cluster::ensure(Group::Api)?);
    }
    as_root(step)
}

/// Builds a benchmark that needs a kernel, and other programs; how to run it.
fn on_the_kernel(bench: &str, others: &[&str], rest: &[String]) -> Result<Step> {
    setup::ensure(What::Lab)?;
    let programs = others.iter().chain([&bench]);
    Step::cargo(["build", "--release", "--locked"])
        .args(["-p", "agent", "-p", "tests"])
        .args(programs.flat_map(|program| ["--bin", program]))
        .run()?;
    Ok(Step::new(places::target()?.join("release").join(bench)).args(rest))
}

fn as_root(step: Step) -> Result<()> {
    step.with_root("loading BPF programs")?.run()
}
