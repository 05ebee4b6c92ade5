//! Which pod is behind an interface, by the word of the container runtime: a pod is enforced before
//! its object states an address, and an address alone makes nobody that pod.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use agent::dto::{EndpointState, Status};
use agent_policy::model::Protocol;
use anyhow::{Context as _, Result, ensure};
use tests::lab::agent::{Agent, ask};
use tests::lab::namespace::NETNS_DIR;
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::{Stage, endpoint};
use tests::lab::wait_until;

/// The lab's own `/run` is empty: nothing of this is there before the first result.
const RESULTS: &str = "/run/cni/results";
const PORTS: &[(Protocol, u16)] = &[(Protocol::TCP, 8080)];
const WITHIN: Duration = Duration::from_secs(15);
/// Servers hear from clients and from nobody else; clients may not speak to each other.
const POLICIES: [(&str, &str); 2] = [
    (
        "servers",
        "{podSelector: {matchLabels: {role: server}}, policyTypes: [Ingress], \
         ingress: [{from: [{podSelector: {matchLabels: {role: client}}}]}]}",
    ),
    (
        "clients",
        "{podSelector: {matchLabels: {role: client}}, policyTypes: [Egress], \
         egress: [{to: [{podSelector: {matchLabels: {role: server}}}]}]}",
    ),
];

fn stage() -> Result<Stage> {
    let mut objects = vec![
        namespace("shop", ""),
        pod("shop/server", "role: server", &["10.14.0.1"]),
        pod("shop/other", "role: other", &["10.14.0.2"]),
    ];
    objects.extend(POLICIES.map(|(name, spec)| policy("shop", name, spec)));
    let mut stage = Stage::without_agent(&objects.join("---\n"))?;
    let manifests = stage.lab.manifests();
    stage.agent = Some(Agent::start_with(&manifests, &["--cni-results", RESULTS])?);
    Ok(stage)
}

/// A pod's object as the API has it before the kubelet has told its address.
fn unaddressed(name: &str, uid: &str, labels: &str) -> String {
    pod::<IpAddr>(name, labels, &[]).replacen(
        "metadata: {",
        &format!("metadata: {{uid: {uid}, "),
        1,
    )
}

/// The runtime writes down whose the namespace is that the lab makes for a pod.
fn record(name: &str, uid: &str, address: &str) -> Result<()> {
    let (namespace, pod) = name.split_once('/').context("namespace/name")?;
    let netns = Path::new(NETNS_DIR).join(name.replace('/', "_"));
    let result = serde_json::json!({
        "kind": "cniCacheV1",
        "containerId": uid,
        "ifName": "eth0",
        "networkName": "lab",
        "netns": netns,
        "cniArgs": [
            ["IgnoreUnknown", "1"],
            ["K8S_POD_NAMESPACE", namespace],
            ["K8S_POD_NAME", pod],
            ["K8S_POD_UID", uid],
        ],
        "result": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": netns}],
            "ips": [{"interface": 0, "address": format!("{address}/32")}],
        },
    });
    fs::create_dir_all(RESULTS).context("making the directory of results")?;
    let file = Path::new(RESULTS).join(format!("lab-{uid}-eth0"));
    fs::write(&file, result.to_string()).with_context(|| format!("writing {}", file.display()))
}

#[test]
fn a_pod_is_enforced_and_known_to_its_peers_before_its_object_states_an_address() -> Result<()> {
    let mut stage = stage()?;
    let address: IpAddr = "10.14.0.3".parse()?;
    let object = unaddressed("shop/client", "u-client", "role: client");
    stage.apply("client.yaml", &object)?;
    stage.lab.add_pod("shop/client", &[address])?;
    let _servers = [
        stage.lab.serve("shop/server", PORTS)?,
        stage.lab.serve("shop/other", PORTS)?,
    ];
    ensure!(
        !stage.lab.reaches("shop/client", "shop/server", PORTS)?,
        "whose it is, nobody has said yet"
    );
    record("shop/client", "u-client", "10.14.0.3")?;
    stage.programmed("shop/client")?;
    let reaches = |from: &str, to: &str| stage.lab.reaches(from, to, PORTS);
    ensure!(
        reaches("shop/client", "shop/server")?,
        "both sides allow it"
    );
    ensure!(!reaches("shop/client", "shop/other")?, "its own policy");
    ensure!(!reaches("shop/other", "shop/server")?, "the peer's policy");

    // What the API says later changes nothing; what it says when the runtime has forgotten the pod,
    // does not, either: the interface is there.
    let stated = object.replace("podIPs: []", "podIPs: [{ip: 10.14.0.3}]");
    ensure!(stated != object, "the object has a status");
    stage.apply("client.yaml", &stated)?;
    fs::remove_dir_all(RESULTS)?;
    stage.settle()?;
    ensure!(stage.lab.reaches("shop/client", "shop/server", PORTS)?);
    ensure!(!stage.lab.reaches("shop/client", "shop/other", PORTS)?);
    Ok(())
}

#[test]
fn an_address_that_another_pods_object_still_states_does_not_open_a_new_pods_interface()
-> Result<()> {
    let mut stage = stage()?;
    let address: IpAddr = "10.14.0.3".parse()?;
    // Nothing selects it, so whoever is taken for it may speak to everyone.
    let old = pod("shop/old", "role: any", &[address]);
    stage.apply("old.yaml", &old)?;
    let new = unaddressed("shop/client", "u-client", "role: client");
    record("shop/client", "u-client", "10.14.0.3")?;
    stage.lab.add_pod("shop/client", &[address])?;
    let _server = stage.lab.serve("shop/other", PORTS)?;
    wait_until("the interface to be seen", WITHIN, || {
        let status: Status = ask("/v1/status")?;
        ensure!(
            status
                .unclaimed
                .iter()
                .any(|each| each.addresses.contains(&address.to_string()))
        );
        Ok(())
    })?;
    ensure!(
        !stage.lab.reaches("shop/client", "shop/other", PORTS)?,
        "taken for the old one"
    );
    stage.apply("new.yaml", &new)?;
    stage.programmed("shop/client")?;
    let status: Status = ask("/v1/status")?;
    ensure!(endpoint(&status, "shop/client")?.state == EndpointState::Programmed);
    ensure!(
        endpoint(&status, "shop/old").is_err(),
        "it has no interface"
    );
    ensure!(
        !stage.lab.reaches("shop/client", "shop/other", PORTS)?,
        "its own policy"
    );
    Ok(())
}
