//! What happens while the agent runs: objects come, change and go, and each change is on real
//! packets once the agent says so.

use std::net::IpAddr;
use std::time::Duration;

use agent::dto::Status;
use agent_policy::model::Protocol;
use anyhow::Result;
use tests::lab::agent::{Agent, ask};
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::Stage;
use tests::lab::wait_until;
use tests::probe::{self, Patience, Probe, Server, Servers};

const PORT: u16 = 8080;
const DENY: &str = "{podSelector: {}, policyTypes: [Ingress]}";
const ALLOW_CLIENTS: &str = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: trusted}}, \
     podSelector: {matchLabels: {role: client}}}]}]}";

/// A server, a client that policies may trust, and somebody else.
fn cluster(team: &str, role: &str) -> String {
    format!(
        "{}---\n{}---\n{}---\n{}---\n{}",
        namespace("servers", ""),
        namespace("clients", &format!("team: {team}")),
        pod("servers/server", "", &["10.2.0.1"]),
        pod("clients/client", &format!("role: {role}"), &["10.2.0.2"]),
        pod("clients/other", "role: other", &["10.2.0.3"]),
    )
}

fn serve(stage: &Stage, pod: &str) -> Result<Servers> {
    let place = stage.lab.place(pod)?;
    let servers: Vec<Server<'_>> = place
        .addresses
        .iter()
        .flat_map(|&address| {
            [Protocol::TCP, Protocol::UDP].map(|protocol| Server {
                namespace: &place.namespace,
                address,
                protocol,
                port: PORT,
            })
        })
        .collect();
    Servers::start(&servers)
}

/// Whether TCP and UDP get through; both must agree.
fn reaches(stage: &Stage, from: &str, to: &str) -> Result<bool> {
    let (from, to) = (stage.lab.place(from)?, stage.lab.place(to)?);
    let (source, destination) = from.pair_with(to).expect("one family in common");
    let probes = [Protocol::TCP, Protocol::UDP].map(|protocol| Probe {
        namespace: &from.namespace,
        source,
        destination,
        protocol,
        port: PORT,
    });
    let outcomes = probe::run(&probes, Patience::USUAL)?;
    let reached: Vec<bool> = outcomes.iter().map(probe::Outcome::is_reached).collect();
    anyhow::ensure!(
        reached.iter().all(|each| Some(each) == reached.first()),
        "{outcomes:?}"
    );
    Ok(reached.contains(&true))
}

/// Who of the two clients reaches the server.
fn client_and_other(stage: &Stage) -> Result<(bool, bool)> {
    Ok((
        reaches(stage, "clients/client", "servers/server")?,
        reaches(stage, "clients/other", "servers/server")?,
    ))
}

#[test]
fn policies_act_when_added_changed_and_deleted() -> Result<()> {
    let mut stage = Stage::open(&cluster("trusted", "client"))?;
    let _servers = serve(&stage, "servers/server")?;
    assert_eq!(client_and_other(&stage)?, (true, true), "nothing isolates");

    stage.apply("policy.yaml", &policy("servers", "p", DENY))?;
    assert_eq!(client_and_other(&stage)?, (false, false), "added");

    stage.apply("policy.yaml", &policy("servers", "p", ALLOW_CLIENTS))?;
    assert_eq!(client_and_other(&stage)?, (true, false), "changed");

    stage.apply(
        "second.yaml",
        &policy("servers", "q", "{podSelector: {}, ingress: [{}]}"),
    )?;
    assert_eq!(
        client_and_other(&stage)?,
        (true, true),
        "a second one admits more"
    );

    stage.remove("second.yaml")?;
    assert_eq!(
        client_and_other(&stage)?,
        (true, false),
        "which ends with it"
    );

    stage.remove("policy.yaml")?;
    assert_eq!(client_and_other(&stage)?, (true, true), "deleted");
    Ok(())
}

#[test]
fn relabelled_pods_and_namespaces_are_other_peers_at_once() -> Result<()> {
    let mut stage = Stage::open(&cluster("trusted", "client"))?;
    let _servers = serve(&stage, "servers/server")?;
    stage.apply("policy.yaml", &policy("servers", "p", ALLOW_CLIENTS))?;
    assert_eq!(client_and_other(&stage)?, (true, false));

    stage.apply("cluster.yaml", &cluster("trusted", "former-client"))?;
    assert_eq!(client_and_other(&stage)?, (false, false), "pod relabelled");

    stage.apply("cluster.yaml", &cluster("trusted", "client"))?;
    assert_eq!(client_and_other(&stage)?, (true, false), "and back");

    stage.apply("cluster.yaml", &cluster("stranger", "client"))?;
    assert_eq!(
        client_and_other(&stage)?,
        (false, false),
        "namespace relabelled"
    );

    stage.apply("cluster.yaml", &cluster("trusted", "client"))?;
    assert_eq!(client_and_other(&stage)?, (true, false), "and back");
    Ok(())
}

#[test]
fn relabelled_pod_is_selected_by_other_policies_at_once() -> Result<()> {
    let mut stage = Stage::open(&cluster("trusted", "client"))?;
    let _servers = serve(&stage, "servers/server")?;
    let egress = "{podSelector: {matchLabels: {role: locked}}, policyTypes: [Egress]}";
    stage.apply("policy.yaml", &policy("clients", "lock", egress))?;
    assert_eq!(client_and_other(&stage)?, (true, true));

    stage.apply("cluster.yaml", &cluster("trusted", "locked"))?;
    assert_eq!(client_and_other(&stage)?, (false, true));
    Ok(())
}

#[test]
fn address_of_a_removed_pod_means_its_next_owner() -> Result<()> {
    let mut stage = Stage::open(&cluster("trusted", "client"))?;
    let servers = serve(&stage, "servers/server")?;
    stage.apply("policy.yaml", &policy("servers", "p", ALLOW_CLIENTS))?;
    assert_eq!(client_and_other(&stage)?, (true, false));
    let rest = |others: &str| {
        format!(
            "{}---\n{}---\n{}---\n{others}",
            namespace("servers", ""),
            namespace("clients", "team: trusted"),
            pod("servers/server", "", &["10.2.0.1"]),
        )
    };

    // The trusted client goes, a stranger gets its address.
    stage.lab.remove_pod("clients/client")?;
    let other = pod("clients/other", "role: other", &["10.2.0.3"]);
    stage.apply("cluster.yaml", &rest(&other))?;
    let client: IpAddr = "10.2.0.2".parse()?;
    stage.lab.add_pod("clients/stranger", &[client])?;
    let stranger = pod("clients/stranger", "role: stranger", &["10.2.0.2"]);
    stage.apply("cluster.yaml", &rest(&format!("{other}---\n{stranger}")))?;
    known(&stage, "clients/stranger")?;
    assert!(
        !reaches(&stage, "clients/stranger", "servers/server")?,
        "it is not the client"
    );

    // The server goes; its address serves somebody whom no policy selects.
    drop(servers);
    stage.lab.remove_pod("servers/server")?;
    let server: IpAddr = "10.2.0.1".parse()?;
    stage.lab.add_pod("clients/free", &[server])?;
    let pods = format!(
        "{other}---\n{stranger}---\n{}",
        pod("clients/free", "role: free", &["10.2.0.1"])
    );
    let cluster = format!("{}---\n{pods}", namespace("clients", "team: trusted"));
    stage.apply("cluster.yaml", &cluster)?;
    known(&stage, "clients/free")?;
    let _servers = serve(&stage, "clients/free")?;
    assert!(
        reaches(&stage, "clients/stranger", "clients/free")?,
        "nothing isolates it"
    );
    Ok(())
}

/// Waits until a pod that came is enforced, and until nothing of the same address is listed twice.
fn known(stage: &Stage, pod: &str) -> Result<()> {
    let address = stage
        .lab
        .place(pod)?
        .addresses
        .first()
        .map(ToString::to_string);
    wait_until(
        "the new pod to be an endpoint",
        Duration::from_secs(10),
        || {
            let status: Status = ask("/v1/status")?;
            let owners: Vec<String> = status
                .endpoints
                .iter()
                .filter(|endpoint| endpoint.addresses.first() == address.as_ref())
                .map(|endpoint| format!("{}/{}", endpoint.namespace, endpoint.pod))
                .collect();
            anyhow::ensure!(owners == [pod], "{address:?} belongs to {owners:?}");
            Ok(())
        },
    )
}

#[test]
fn malformed_file_keeps_its_last_good_content_in_force_and_is_reported() -> Result<()> {
    let mut stage = Stage::open(&cluster("trusted", "client"))?;
    let _servers = serve(&stage, "servers/server")?;
    stage.apply("policy.yaml", &policy("servers", "p", ALLOW_CLIENTS))?;

    stage
        .lab
        .write_manifest("policy.yaml", "kind: NetworkPolicy\n  spec: [unclosed")?;
    stage.settle()?;
    assert_eq!(
        client_and_other(&stage)?,
        (true, false),
        "the last good content"
    );
    let findings = ask::<Status>("/v1/status")?.findings;
    assert!(
        findings
            .iter()
            .any(|finding| finding.message.contains("policy.yaml")),
        "reported: {findings:?}"
    );

    stage.apply("policy.yaml", &policy("servers", "p", DENY))?;
    assert_eq!(client_and_other(&stage)?, (false, false), "mended");
    assert_eq!(
        ask::<Status>("/v1/status")?.findings,
        [],
        "and no longer reported"
    );
    Ok(())
}

/// Who nobody knows yet, as a server and as a client, with an agent that has this posture.
fn stranger_under(posture: &str) -> Result<(bool, bool)> {
    let mut stage = Stage::without_agent(&cluster("trusted", "client"))?;
    // Here before the agent: installing closes nothing.
    stage.lab.add_pod("clients/old", &["10.2.0.8".parse()?])?;
    let manifests = stage.lab.manifests();
    let mut agent = Agent::spawn(&manifests, &["--posture".into(), posture.into()])?;
    agent.wait_ready()?;
    stage.agent = Some(agent);
    let _servers = serve(&stage, "servers/server")?;
    let _old = serve(&stage, "clients/old")?;
    stage.settle()?;
    assert!(reaches(&stage, "clients/old", "servers/server")?, "as ever");
    assert!(reaches(&stage, "servers/server", "clients/old")?, "as ever");

    stage.lab.add_pod("clients/early", &["10.2.0.9".parse()?])?;
    wait_until(
        "the interface to be noticed",
        Duration::from_secs(10),
        || {
            let unclaimed = ask::<Status>("/v1/status")?.unclaimed;
            let early = unclaimed.iter().find(|each| each.addresses == ["10.2.0.9"]);
            anyhow::ensure!(early.is_some_and(|each| each.enclosed), "{unclaimed:?}");
            Ok(())
        },
    )?;
    let _early = serve(&stage, "clients/early")?;
    let before = (
        reaches(&stage, "servers/server", "clients/early")?,
        reaches(&stage, "clients/early", "servers/server")?,
    );

    stage.apply("early.yaml", &pod("clients/early", "", &["10.2.0.9"]))?;
    known(&stage, "clients/early")?;
    assert!(reaches(&stage, "clients/early", "servers/server")?, "known");
    assert!(reaches(&stage, "servers/server", "clients/early")?, "known");
    Ok(before)
}

#[test]
fn pod_that_comes_is_closed_until_its_object_is_known() -> Result<()> {
    assert_eq!(stranger_under("closed")?, (false, false));
    Ok(())
}

#[test]
fn pod_that_comes_under_the_open_posture_is_open_until_its_object_is_known() -> Result<()> {
    assert_eq!(stranger_under("open")?, (true, true));
    Ok(())
}

#[test]
fn pod_that_comes_while_the_agent_runs_is_enforced_once_its_object_is_known() -> Result<()> {
    let mut stage = Stage::open(&cluster("trusted", "client"))?;
    stage.lab.add_pod("clients/early", &["10.2.0.9".parse()?])?;
    let _servers = serve(&stage, "servers/server")?;
    stage.apply("policy.yaml", &policy("servers", "p", ALLOW_CLIENTS))?;

    let early = pod("clients/early", "", &["10.2.0.9"]);
    stage.apply("early.yaml", &early)?;
    known(&stage, "clients/early")?;
    assert!(
        !reaches(&stage, "clients/early", "servers/server")?,
        "no client"
    );
    stage.apply(
        "early.yaml",
        &pod("clients/early", "role: client", &["10.2.0.9"]),
    )?;
    assert!(
        reaches(&stage, "clients/early", "servers/server")?,
        "a client now"
    );
    Ok(())
}
