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

const PORTS: &[(Protocol, u16)] = &[(Protocol::TCP, 8080), (Protocol::UDP, 8080)];
const DENY: &str = "{podSelector: {}, policyTypes: [Ingress]}";
const ALLOW_CLIENTS: &str = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: trusted}}, \
     podSelector: {matchLabels: {role: client}}}]}]}";

/// A pod's address of each family.
fn addresses(number: u8) -> [IpAddr; 2] {
    [
        IpAddr::from([10, 2, 0, number]),
        IpAddr::from([0xfd02, 0, 0, 0, 0, 0, 0, number.into()]),
    ]
}

/// A server, a client that policies may trust, and somebody else.
fn cluster(team: &str, role: &str) -> String {
    format!(
        "{}---\n{}---\n{}---\n{}---\n{}",
        namespace("servers", ""),
        namespace("clients", &format!("team: {team}")),
        pod("servers/server", "", &addresses(1)),
        pod("clients/client", &format!("role: {role}"), &addresses(2)),
        pod("clients/other", "role: other", &addresses(3)),
    )
}

/// Who of the two clients reaches the server.
fn client_and_other(stage: &Stage) -> Result<(bool, bool)> {
    Ok((
        stage
            .lab
            .reaches("clients/client", "servers/server", PORTS)?,
        stage
            .lab
            .reaches("clients/other", "servers/server", PORTS)?,
    ))
}

#[test]
fn policies_act_when_added_changed_and_deleted() -> Result<()> {
    let mut stage = Stage::open(&cluster("trusted", "client"))?;
    let _servers = stage.lab.serve("servers/server", PORTS)?;
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
    let _servers = stage.lab.serve("servers/server", PORTS)?;
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
    let _servers = stage.lab.serve("servers/server", PORTS)?;
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
    let servers = stage.lab.serve("servers/server", PORTS)?;
    stage.apply("policy.yaml", &policy("servers", "p", ALLOW_CLIENTS))?;
    assert_eq!(client_and_other(&stage)?, (true, false));
    let rest = |others: &str| {
        format!(
            "{}---\n{}---\n{}---\n{others}",
            namespace("servers", ""),
            namespace("clients", "team: trusted"),
            pod("servers/server", "", &addresses(1)),
        )
    };

    // The trusted client goes, a stranger gets its address.
    stage.lab.remove_pod("clients/client")?;
    let other = pod("clients/other", "role: other", &addresses(3));
    stage.apply("cluster.yaml", &rest(&other))?;
    stage.lab.add_pod("clients/stranger", &addresses(2))?;
    let stranger = pod("clients/stranger", "role: stranger", &addresses(2));
    stage.apply("cluster.yaml", &rest(&format!("{other}---\n{stranger}")))?;
    known(&stage, "clients/stranger")?;
    assert!(
        !stage
            .lab
            .reaches("clients/stranger", "servers/server", PORTS)?,
        "it is not the client"
    );

    // The server goes; its address serves somebody whom no policy selects.
    drop(servers);
    stage.lab.remove_pod("servers/server")?;
    stage.lab.add_pod("clients/free", &addresses(1))?;
    let pods = format!(
        "{other}---\n{stranger}---\n{}",
        pod("clients/free", "role: free", &addresses(1))
    );
    let cluster = format!("{}---\n{pods}", namespace("clients", "team: trusted"));
    stage.apply("cluster.yaml", &cluster)?;
    known(&stage, "clients/free")?;
    let _servers = stage.lab.serve("clients/free", PORTS)?;
    assert!(
        stage
            .lab
            .reaches("clients/stranger", "clients/free", PORTS)?,
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
    let _servers = stage.lab.serve("servers/server", PORTS)?;
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
    stage.lab.add_pod("clients/old", &addresses(8))?;
    let options = ["--posture", posture];
    stage.agent = Some(Agent::start_with(&stage.lab.manifests(), &options)?);
    let _servers = stage.lab.serve("servers/server", PORTS)?;
    let _old = stage.lab.serve("clients/old", PORTS)?;
    stage.settle()?;
    assert!(
        stage.lab.reaches("clients/old", "servers/server", PORTS)?,
        "as ever"
    );
    assert!(
        stage.lab.reaches("servers/server", "clients/old", PORTS)?,
        "as ever"
    );

    stage.lab.add_pod("clients/early", &addresses(9))?;
    wait_until(
        "the interface to be noticed",
        Duration::from_secs(10),
        || {
            let unclaimed = ask::<Status>("/v1/status")?.unclaimed;
            let early = unclaimed
                .iter()
                .find(|each| each.addresses == addresses(9).map(|each| each.to_string()));
            anyhow::ensure!(early.is_some_and(|each| each.enclosed), "{unclaimed:?}");
            Ok(())
        },
    )?;
    let _early = stage.lab.serve("clients/early", PORTS)?;
    let before = (
        stage
            .lab
            .reaches("servers/server", "clients/early", PORTS)?,
        stage
            .lab
            .reaches("clients/early", "servers/server", PORTS)?,
    );

    stage.apply("early.yaml", &pod("clients/early", "", &addresses(9)))?;
    known(&stage, "clients/early")?;
    assert!(
        stage
            .lab
            .reaches("clients/early", "servers/server", PORTS)?,
        "known"
    );
    assert!(
        stage
            .lab
            .reaches("servers/server", "clients/early", PORTS)?,
        "known"
    );
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
    stage.lab.add_pod("clients/early", &addresses(9))?;
    let _servers = stage.lab.serve("servers/server", PORTS)?;
    stage.apply("policy.yaml", &policy("servers", "p", ALLOW_CLIENTS))?;

    let early = pod("clients/early", "", &addresses(9));
    stage.apply("early.yaml", &early)?;
    known(&stage, "clients/early")?;
    assert!(
        !stage
            .lab
            .reaches("clients/early", "servers/server", PORTS)?,
        "no client"
    );
    stage.apply(
        "early.yaml",
        &pod("clients/early", "role: client", &addresses(9)),
    )?;
    assert!(
        stage
            .lab
            .reaches("clients/early", "servers/server", PORTS)?,
        "a client now"
    );
    Ok(())
}
