//! Every test there is, from fast to slow.

mod ahead;

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::cluster::{self, Group};
use crate::fuzz;
use crate::helm;
use crate::places;
use crate::setup::{self, What};
use crate::step::{self, Step};
use crate::vm;
use ahead::Ahead;

/// How many lab tests run at once: most of their time is waiting for packets that never come.
const LAB_THREADS: &str = "4";
/// Each API server takes 300 MiB, and most of a core while it starts.
const API_THREADS: &str = "2";

/// Which tests, how thoroughly.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One kind of tests; all kinds when left out.
    #[arg(value_enum)]
    kind: Option<Kind>,
    /// Only tests whose name contains this; of vm, a kernel: 6.1, 6.1-arm64 or arm64.
    filter: Option<String>,
    /// Many more cases for each property, every kernel: minutes instead of seconds.
    #[arg(long)]
    thorough: bool,
    /// Of vm: what the programs cost each booted kernel becomes its line of
    /// `xtask/bpf-verified.txt`.
    #[arg(long)]
    bless: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Kind {
    /// Units and properties. Seconds, no root.
    Unit,
    /// Real kernel, real sockets, network namespaces as pods. Root.
    Lab,
    /// Programs, agent and real sockets on other kernels, booted in QEMU: Linux 5.10 and 6.12, or
    /// every supported one with `--thorough`.
    Vm,
    /// Hostile bytes at everything that reads bytes: a minute for each target, fifteen with
    /// `--thorough`. What was found so far is replayed by the units.
    Fuzz,
    /// The source of objects that watches a Kubernetes API, and what `deploy/` says, against a real
    /// etcd and kube-apiserver, which are built on first use (minutes), as Helm is. Root.
    Api,
    /// Picket in a real cluster (`cargo xtask cluster`): the one that is up, or one started and
    /// ended for this; three shapes of them with `--thorough`. Its parts are built on first use
    /// (minutes). Root.
    E2e,
}

/// What a run without a kind does, in this order: what Go builds for the last has time until then. A
/// cluster's other parts and image take as long again, so `e2e` is run by itself.
const ALL: &[Kind] = &[Kind::Unit, Kind::Lab, Kind::Vm, Kind::Api];

/// The task.
pub(crate) fn run(args: &Args) -> Result<()> {
    let kinds = args.kind.as_ref().map_or(ALL, std::slice::from_ref);
    setup::ensure(What::Bpf)?;
    let mut ahead = None;
    if args.kind.is_none() {
        // At once: nothing is installed while something is built beside.
        setup::ensure(What::All)?;
        ahead = ahead::start()?;
    }
    let mut times = Vec::new();
    for &kind in kinds {
        let name = format!("{kind:?}").to_lowercase();
        eprintln!("\n== test {name}");
        let started = Instant::now();
        match kind {
            Kind::Unit => unit(args)?,
            Kind::Lab => lab(args)?,
            Kind::Vm => vm::run(args.filter.as_deref(), args.thorough, args.bless)?,
            Kind::Fuzz => fuzz::all(if args.thorough { 900 } else { 60 })?,
            Kind::Api => {
                ahead.take().map_or(Ok(()), Ahead::finish)?;
                api(args)?;
            }
            Kind::E2e => cluster::test(args.filter.as_deref(), args.thorough)?,
        }
        times.push(format!("{name} {:.0} s", started.elapsed().as_secs_f32()));
    }
    eprintln!("\ntest: all passed ({})", times.join(", "));
    Ok(())
}

fn unit(args: &Args) -> Result<()> {
    let test = Step::cargo(["test", "--locked", "--workspace", "--exclude", "tests"]);
    thorough(test.args(&args.filter), args).run()
}

fn lab(args: &Args) -> Result<()> {
    setup::ensure(What::Lab)?;
    next_layout()?;
    // The tests start the real agent: it must be as new as they are.
    Step::cargo(["build", "--locked", "-p", "agent", "-p", "tests", "--bins"]).run()?;
    let test = as_root(Step::cargo(["test", "--locked", "-p", "tests"]))?
        .args(&args.filter)
        .args(["--", "--test-threads", LAB_THREADS]);
    thorough(test, args).run()
}

/// Tests that need some parts of a cluster, and Helm.
fn api(args: &Args) -> Result<()> {
    setup::ensure(What::Lab)?;
    setup::ensure(What::Api)?;
    let parts = cluster::ensure(Group::Api)?;
    Step::cargo(["build", "--locked", "-p", "agent"]).run()?;
    let helm = helm::ensure()?;
    let test = Step::cargo(["test", "--locked", "-p", "tests"])
        .args(["--features", "kubernetes"])
        .args(["--test", "kube_api", "--test", "kube_deploy"]);
    let test = as_root(test)?
        .args(&args.filter)
        .args(["--", "--nocapture", "--test-threads", API_THREADS])
        .env(cluster::VARIABLE, parts)
        .env("PICKET_HELM", helm);
    thorough(test, args).run()
}

/// The agent of the next layout version, for upgrades and downgrades, beside the usual one. Built
/// first and in the same place: it shares all dependencies, and the usual one ends up under its name.
fn next_layout() -> Result<()> {
    let agent = ["build", "--locked", "-p", "agent", "--bin", "picket"];
    Step::cargo(agent)
        .args(["--features", "next-layout"])
        .run()?;
    let built = places::target()?.join("debug/picket");
    let kept = built.with_file_name("picket-next-layout");
    // Not written in place: an earlier one may still run.
    let new = built.with_file_name("picket-next-layout.new");
    fs::copy(&built, &new).with_context(|| format!("copying {}", built.display()))?;
    fs::rename(&new, &kept).with_context(|| format!("writing {}", kept.display()))
}

/// A test whose programs run as root.
fn as_root(test: Step) -> Result<Step> {
    if step::is_root()? {
        return Ok(test);
    }
    eprintln!("these tests make network namespaces and load BPF programs: asking sudo");
    Ok(test.args([
        "--config",
        "target.'cfg(unix)'.runner=['sudo','--preserve-env']",
    ]))
}

fn thorough(test: Step, args: &Args) -> Step {
    if args.thorough {
        return test
            .env("PROPTEST_CASES", "20000")
            .env("PICKET_THOROUGH", "1");
    }
    test
}
