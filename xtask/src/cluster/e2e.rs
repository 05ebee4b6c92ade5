//! `cargo xtask test e2e`: tests on the cluster that is up, or on clusters of several shapes that are
//! started and ended for them.

use anyhow::{Context as _, Result};

use super::kubectl;
use super::parts;
use super::picket;
use super::state::State;
use crate::setup::{self, What};
use crate::step::Step;

/// The shape that CI tests.
const SHAPE: &[&str] = &["--cni=ptp", "--proxy=nftables", "--family=dual"];

/// Other shapes, which the thorough test takes in, too.
const OTHERS: &[&[&str]] = &[
    &["--cni=bridge", "--proxy=iptables", "--family=4"],
    &["--cni=bridge", "--proxy=nftables", "--family=6"],
];

/// Runs the tests whose names contain `filter`.
pub(crate) fn test(filter: Option<&str>, thorough: bool) -> Result<()> {
    let state = State::find()?;
    if state.is_free().is_err() {
        eprintln!("on the cluster that is up: `cargo xtask cluster load` replaces Picket in it");
        return run(&state, filter);
    }
    let others: &[&[&str]] = if thorough { OTHERS } else { &[] };
    for shape in [SHAPE].iter().chain(others) {
        eprintln!("-- {}", shape.join(" "));
        let outcome = cluster("up", shape)
            .and_then(|()| run(&state, filter))
            .and_then(|()| picket::uninstall(&state));
        // Whatever came of it; and what it was is more than how it ended.
        let ended = cluster("down", &[]);
        outcome.with_context(|| format!("with {}", shape.join(" ")))?;
        ended?;
    }
    Ok(())
}

/// A process of its own: it may have to become root's.
fn cluster(task: &str, options: &[&str]) -> Result<()> {
    let xtask = std::env::current_exe().context("finding the xtask program")?;
    Step::new(xtask)
        .args(["cluster", task])
        .args(options)
        .silent()
        .run()
}

/// The tests, which the environment tells of a cluster.
pub(crate) fn tests(filter: Option<&str>) -> Step {
    Step::cargo(["test", "--locked", "-p", "tests"])
        .args(["--features", "kubernetes", "--test", "cluster"])
        .args(filter)
        .args(["--", "--nocapture"])
}

fn run(state: &State, filter: Option<&str>) -> Result<()> {
    setup::ensure(What::Bpf)?;
    tests(filter)
        .env("KUBECONFIG", state.kubeconfig())
        .env(kubectl::CACHE, state.kubectl_cache())
        .env(parts::VARIABLE, state.parts()?)
        .run()
}
