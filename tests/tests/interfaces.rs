//! Programs and interfaces that part: what is attached is verified when the agent starts and
//! mended, and an index, a name or a namespace that is used again never brings another pod's
//! policy.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use agent::dto::{EndpointState, Status};
use agent_policy::model::Protocol;
use anyhow::{Context as _, Result, ensure};
use tests::lab::agent::{Agent, ask};
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::{Stage, endpoint};
use tests::lab::wait_until;
use tests::probe::{self, Patience, Probe, Server, Servers};

const PORT: u16 = 8080;
const WITHIN: Duration = Duration::from_secs(15);
/// Whoever is a friend may be called, and nobody else.
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

fn serve(stage: &Stage, pod: &str) -> Result<Servers> {
    let place = stage.lab.place(pod)?;
    Servers::start(&[Server {
        namespace: &place.namespace,
        address: *place.addresses.first().context("an address")?,
        protocol: Protocol::TCP,
        port: PORT,
    }])
}

fn reaches(stage: &Stage, from: &str, to: &str) -> Result<bool> {
    let (from, to) = (stage.lab.place(from)?, stage.lab.place(to)?);
    let (source, destination) = from.pair_with(to).context("one family in common")?;
    let outcomes = probe::run(
        &[Probe {
            namespace: &from.namespace,
            source,
            destination,
            protocol: Protocol::TCP,
            port: PORT,
        }],
        Patience::USUAL,
    )?;
    Ok(outcomes.iter().all(probe::Outcome::is_reached))
}

/// Waits until a pod's policy is in force.
fn programmed(pod: &str) -> Result<()> {
    wait_until("the pod to be programmed", WITHIN, || {
        let status: Status = ask("/v1/status")?;
        let state = endpoint(&status, pod)?.state;
        ensure!(state == EndpointState::Programmed, "{pod} is {state:?}");
        Ok(())
    })
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
        let _servers = [serve(&stage, "shop/server")?, serve(&stage, "shop/client")?];
        ensure!(!reaches(&stage, from, to)?, "{program}: closed");
        stage.agent.take().context("the agent")?.kill()?;
        let veth = stage.lab.place("shop/server")?.veth;
        let link = format!("/sys/fs/bpf/picket/v1/links/{veth}-{program}");
        ensure!(Path::new(&link).exists(), "{link}");
        // The pin is all that holds a link.
        std::fs::remove_file(&link)?;
        wait_until("the link to be gone", WITHIN, || {
            ensure!(reaches(&stage, from, to)?, "{program} is still there");
            Ok(())
        })?;
        stage.agent = Some(Agent::start(&stage.lab.manifests())?);
        programmed("shop/server")?;
        ensure!(!reaches(&stage, from, to)?, "{program}: mended");
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
            let _servers = serve(&stage, "shop/old")?;
            ensure!(reaches(&stage, "shop/client", "shop/old")?, "open");
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
        programmed("shop/new")?;
        let _servers = serve(&stage, "shop/new")?;
        ensure!(
            !reaches(&stage, "shop/client", "shop/new")?,
            "closed, agent lives: {agent_lives}"
        );
        stage.remove("policy.yaml")?;
        ensure!(
            reaches(&stage, "shop/client", "shop/new")?,
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
    let _servers = serve(&stage, "shop/server")?;
    ensure!(!reaches(&stage, "shop/client", "shop/server")?, "closed");
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
    programmed("shop/server")?;
    ensure!(
        !reaches(&stage, "shop/client", "shop/server")?,
        "closed again"
    );
    stage.remove("policy.yaml")?;
    wait_until("the way to be open", WITHIN, || {
        ensure!(reaches(&stage, "shop/client", "shop/server")?, "not yet");
        Ok(())
    })
}
