//! `RLIMIT_MEMLOCK`, against which kernels before 5.11 account maps: the agent raises it by itself,
//! and where it may not, it says what to do.

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use tests::lab::agent::Agent;
use tests::lab::stage::Stage;

use crate::report;
use crate::traffic::CLUSTER;

/// What a login gets: 64 KiB.
const USUAL: Rlimit = Rlimit {
    current: Some(64 << 10),
    maximum: Some(64 << 10),
};

/// What is started from here on begins with the usual limit.
pub(crate) fn limit() -> Result<()> {
    setrlimit(Resource::Memlock, USUAL).context("lowering RLIMIT_MEMLOCK")
}

/// Holds when the agent raised its own limit, where it has to.
pub(crate) fn is_unlimited(agent: &Agent) -> Result<()> {
    if !accounts_maps()? {
        return Ok(());
    }
    let path = format!("/proc/{}/limits", agent.pid());
    let limits = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max locked memory"));
    let line = line.with_context(|| format!("no locked memory in {path}"))?;
    ensure!(
        line.contains("unlimited"),
        "the agent left its limit: {line}"
    );
    Ok(())
}

/// An agent that may not raise its limit: says what to do where it matters.
pub(crate) fn check() -> Result<()> {
    if !accounts_maps()? {
        return Ok(());
    }
    limit()?;
    let stage = Stage::without_agent(CLUSTER)?;
    // What is started from this thread, and only that, can no longer have it.
    remove_capability_from_bounding_set(CapabilitySet::SYS_RESOURCE)
        .context("giving CAP_SYS_RESOURCE up")?;
    let mut bound = Agent::spawn(&stage.lab.manifests(), &[])?;
    let Err(error) = bound.wait_ready() else {
        bail!("the agent runs without room for its maps");
    };
    let said = format!("{error:#}");
    for word in ["RLIMIT_MEMLOCK", "CAP_SYS_RESOURCE", "ulimit -l unlimited"] {
        ensure!(said.contains(word), "{word} is not in: {said}");
    }
    report::ok("an agent that may not raise RLIMIT_MEMLOCK says what to do");
    Ok(())
}

/// Before 5.11 maps are accounted to the limit, after that to the cgroup.
fn accounts_maps() -> Result<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .context("reading the kernel's release")?;
    let mut numbers = release.split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor) < (5, 11)),
        _ => bail!("kernel release {release}: no version in it"),
    }
}
