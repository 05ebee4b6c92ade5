//! What the agent's container may do: with the two capabilities of `deploy/` it enforces, and
//! without one of them it says what it lacks. Kernels before 6.6, where programs are held by
//! clsact, are stood for by an option.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::time::Duration;

use agent::dto::{EndpointState, Status};
use agent_policy::model::Protocol;
use anyhow::{Result, ensure};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use tests::lab::agent::{Agent, ask, log};
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::Stage;
use tests::lab::wait_until;

const WITHIN: Duration = Duration::from_secs(30);
const PORTS: &[(Protocol, u16)] = &[(Protocol::TCP, 8080)];

/// A server that hears from its friend alone; no agent runs yet.
fn stage() -> Result<Stage> {
    let pod = |name: &str, number| {
        let address = Ipv4Addr::new(10, 18, 0, number);
        pod(
            &format!("shop/{name}"),
            &format!("role: {name}"),
            &[address],
        )
    };
    let cluster = [
        namespace("shop", ""),
        pod("server", 1),
        pod("friend", 2),
        pod("stranger", 3),
        policy(
            "shop",
            "server",
            "{podSelector: {matchLabels: {role: server}}, \
              ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]}",
        ),
    ];
    Stage::without_agent(&cluster.join("---\n"))
}

/// An agent that may have no other capabilities than these.
fn agent_with(stage: &Stage, kept: CapabilitySet, options: &[&str]) -> Result<Agent> {
    let manifests = stage.lab.manifests();
    let options: Vec<OsString> = options.iter().map(OsString::from).collect();
    // What a thread may not have, nothing can have that it starts. The agent ends with it.
    for capability in CapabilitySet::all().difference(kept).iter() {
        // Those that this kernel does not know are nobody's.
        let _unknown = remove_capability_from_bounding_set(capability);
    }
    Agent::spawn(&manifests, &options)
}

fn enforces(stage: &Stage) -> Result<()> {
    let _server = stage.lab.serve("shop/server", PORTS)?;
    let reaches = |from| stage.lab.reaches(from, "shop/server", PORTS);
    let reach = [reaches("shop/friend")?, reaches("shop/stranger")?];
    ensure!(reach == [true, false], "[friend, stranger]: {reach:?}");
    Ok(())
}

const BOTH: CapabilitySet = CapabilitySet::SYS_ADMIN.union(CapabilitySet::NET_ADMIN);
const CLSACT: &[&str] = &["--attach", "clsact"];

#[test]
fn two_capabilities_are_enough() -> Result<()> {
    let stage = stage()?;
    agent_with(&stage, BOTH, &[])?.wait_ready()?;
    enforces(&stage)
}

#[test]
fn two_capabilities_are_enough_where_clsact_holds_programs() -> Result<()> {
    let stage = stage()?;
    agent_with(&stage, BOTH, CLSACT)?.wait_ready()?;
    enforces(&stage)
}

#[test]
fn without_the_capability_for_bpf_it_ends_and_says_so() -> Result<()> {
    let stage = stage()?;
    let agent = agent_with(&stage, CapabilitySet::NET_ADMIN, &[])?;
    let ended = agent.wait_end()?;
    ensure!(!ended.success(), "{ended}");
    ensure!(log().contains("CAP_SYS_ADMIN"), "{}", log());
    Ok(())
}

#[test]
fn without_the_capability_for_interfaces_clsact_holds_nothing_and_that_is_said() -> Result<()> {
    let stage = stage()?;
    let _agent = agent_with(&stage, CapabilitySet::SYS_ADMIN, CLSACT)?;
    wait_until("all pods to have failed", WITHIN, || {
        let status: Status = ask("/v1/status")?;
        ensure!(!status.endpoints.is_empty(), "{:?}", status.endpoints);
        for endpoint in &status.endpoints {
            ensure!(endpoint.state == EndpointState::Failed, "{endpoint:?}");
            let error = endpoint.note.as_deref().unwrap_or_default();
            ensure!(error.contains("CAP_NET_ADMIN"), "{error}");
        }
        Ok(())
    })
}
