//! Programs and interfaces that part: a program that is missing when the agent starts is put back;
//! an index that is used again, or shares its place with others, brings no other pod's policy, and
//! an interface that moves away and back is enforced again.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use agent::dto::Status;
use agent_common::maps::ENDPOINT_ROWS;
use agent_policy::model::Protocol;
use anyhow::{Context as _, Result, ensure};
use tests::lab::agent::{Agent, ask};
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::pins::pinned;
use tests::lab::stage::{Stage, endpoint};
use tests::lab::wait_until;

const PORTS: &[(Protocol, u16)] = &[(Protocol::TCP, 8080)];
const WITHIN: Duration = Duration::from_secs(15);
/// Closed pods call nobody and are called by nobody.
const POLICY: &str = "{podSelector: {matchLabels: {role: closed}}, policyTypes: [Ingress, Egress]}";

fn cluster(pods: &[(&str, &str, &str)]) -> String {
    let pods = pods.iter().map(|(name, role, address)| {
        pod(
            &format!("shop/{name}"),
            &format!("role: {role}"),
            &[address],
        )
    });
    let objects: Vec<String> = std::iter::once(namespace("shop", "")).chain(pods).collect();
    objects.join("---\n")
}

fn ip(stage: &Stage, arguments: &str) -> Result<()> {
    let output = stage
        .lab
        .node()
        .enter(|| Ok(Command::new("ip").args(arguments.split(' ')).output()?))?;
    ensure!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn a_program_that_somebody_took_off_is_put_back_at_the_next_start() -> Result<()> {
    let pods = [
        ("server", "closed", "10.12.0.1"),
        ("client", "any", "10.12.0.2"),
    ];
    for (program, from, to, direction) in [
        ("to_pod", "shop/client", "shop/server", "Ingress"),
        ("from_pod", "shop/server", "shop/client", "Egress"),
    ] {
        let mut stage = Stage::open(&cluster(&pods))?;
        let spec = POLICY.replace("Ingress, Egress", direction);
        stage.apply("policy.yaml", &policy("shop", "closed", &spec))?;
        let _servers = [
            stage.lab.serve("shop/server", PORTS)?,
            stage.lab.serve("shop/client", PORTS)?,
        ];
        ensure!(!stage.lab.reaches(from, to, PORTS)?, "{program}: closed");
        stage.agent.take().context("the agent")?.kill()?;
        let veth = stage.lab.place("shop/server")?.veth;
        let link = pinned(&format!("links/{veth}-{program}"));
        ensure!(link.exists(), "{}", link.display());
        // The pin is all that holds a link.
        std::fs::remove_file(&link)?;
        wait_until("the link to be gone", WITHIN, || {
            ensure!(
                stage.lab.reaches(from, to, PORTS)?,
                "{program} is still there"
            );
            Ok(())
        })?;
        stage.agent = Some(Agent::start(&stage.lab.manifests())?);
        stage.programmed("shop/server")?;
        ensure!(!stage.lab.reaches(from, to, PORTS)?, "{program}: mended");
    }
    Ok(())
}

#[test]
fn an_interface_index_that_is_used_again_is_another_pods() -> Result<()> {
    for agent_lives in [true, false] {
        let before = [("old", "any", "10.12.0.1"), ("client", "any", "10.12.0.2")];
        let mut stage = Stage::open(&cluster(&before))?;
        stage.apply("policy.yaml", &policy("shop", "closed", POLICY))?;
        let veth = stage.lab.place("shop/old")?.veth;
        {
            let _servers = stage.lab.serve("shop/old", PORTS)?;
            ensure!(stage.lab.reaches("shop/client", "shop/old", PORTS)?, "open");
        }
        if !agent_lives {
            stage.agent.take().context("the agent")?.kill()?;
        }
        stage.lab.remove_pod("shop/old")?;
        let address: IpAddr = "10.12.0.3".parse()?;
        stage.lab.add_pod_at("shop/new", &[address], veth)?;
        let after = [
            ("new", "closed", "10.12.0.3"),
            ("client", "any", "10.12.0.2"),
        ];
        stage.lab.write_manifest("cluster.yaml", &cluster(&after))?;
        if !agent_lives {
            stage.agent = Some(Agent::start(&stage.lab.manifests())?);
        }
        stage.programmed("shop/new")?;
        let _servers = stage.lab.serve("shop/new", PORTS)?;
        ensure!(
            !stage.lab.reaches("shop/client", "shop/new", PORTS)?,
            "closed, agent lives: {agent_lives}"
        );
        stage.remove("policy.yaml")?;
        ensure!(
            stage.lab.reaches("shop/client", "shop/new", PORTS)?,
            "it is the policy's doing"
        );
    }
    Ok(())
}

#[test]
fn an_interface_that_was_moved_away_and_back_is_enforced_again() -> Result<()> {
    let pods = [
        ("server", "closed", "10.12.0.1"),
        ("client", "any", "10.12.0.2"),
    ];
    let mut stage = Stage::open(&cluster(&pods))?;
    stage.apply("policy.yaml", &policy("shop", "closed", POLICY))?;
    let _servers = stage.lab.serve("shop/server", PORTS)?;
    ensure!(
        !stage.lab.reaches("shop/client", "shop/server", PORTS)?,
        "closed"
    );
    let veth = format!("pod{}", stage.lab.place("shop/server")?.veth);

    ip(&stage, "netns add elsewhere")?;
    ip(&stage, &format!("link set {veth} netns elsewhere"))?;
    wait_until("the endpoint to go", WITHIN, || {
        let status: Status = ask("/v1/status")?;
        ensure!(endpoint(&status, "shop/server").is_err(), "it is there");
        Ok(())
    })?;
    // The process that stands in the node's namespace is the agent.
    let agent = stage.agent.as_ref().context("the agent")?.pid();
    ip(
        &stage,
        &format!("-n elsewhere link set {veth} netns {agent}"),
    )?;
    ip(&stage, &format!("link set {veth} up"))?;
    ip(&stage, &format!("address add 169.254.254.1/32 dev {veth}"))?;
    ip(&stage, &format!("route add 10.12.0.1/32 dev {veth}"))?;
    stage.programmed("shop/server")?;
    ensure!(
        !stage.lab.reaches("shop/client", "shop/server", PORTS)?,
        "closed again"
    );
    stage.remove("policy.yaml")?;
    wait_until("the way to be open", WITHIN, || {
        ensure!(
            stage.lab.reaches("shop/client", "shop/server", PORTS)?,
            "not yet"
        );
        Ok(())
    })
}

#[test]
fn interfaces_whose_indices_collide_have_policies_of_their_own() -> Result<()> {
    // The first has the place that all of them would have.
    let pods = [
        ("first", "any", "10.12.0.11"),
        ("second", "closed", "10.12.0.12"),
        ("third", "any", "10.12.0.13"),
        ("client", "any", "10.12.0.2"),
    ];
    let mut stage = Stage::open(&cluster(&[("client", "any", "10.12.0.2")]))?;
    stage.apply("policy.yaml", &policy("shop", "closed", POLICY))?;
    for (turn, (name, _, address)) in (0..3).zip(pods) {
        let veth = 1000 + turn * ENDPOINT_ROWS;
        let name = format!("shop/{name}");
        stage.lab.add_pod_at(&name, &[address.parse()?], veth)?;
    }
    stage.lab.write_manifest("cluster.yaml", &cluster(&pods))?;
    for name in ["shop/first", "shop/second", "shop/third"] {
        stage.programmed(name)?;
    }
    let reached = |stage: &Stage, pods: [&str; 3]| -> Result<[bool; 3]> {
        let [first, second, third] = pods.map(|pod| stage.lab.reaches("shop/client", pod, PORTS));
        Ok([first?, second?, third?])
    };
    let all = ["shop/first", "shop/second", "shop/third"];
    ensure!(reached(&stage, all)? == [true, false, true]);

    stage.lab.remove_pod("shop/first")?;
    let [_, rest @ ..] = &pods;
    stage.lab.write_manifest("cluster.yaml", &cluster(rest))?;
    stage.settle()?;
    ensure!(!stage.lab.reaches("shop/client", "shop/second", PORTS)?);
    ensure!(stage.lab.reaches("shop/client", "shop/third", PORTS)?);
    Ok(())
}
