//! Connections that are older than the agent: installing breaks none that policy allows, whoever
//! speaks next, and ends those it forbids at their next packet.
#![expect(clippy::print_stdout, reason = "the thorough run prints its figure")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::lab::agent::{Agent, metric};
use tests::lab::namespace::Namespace;
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::pair::Pair;
use tests::lab::stage::Stage;
use tests::lab::tracked::{Adopted, answered_flows};
use tests::runs::is_thorough;

const PORT: u16 = 8080;
/// How long a message may take before the connection counts as cut.
const HEARD_WITHIN: Duration = Duration::from_millis(800);
const SERVER: [&str; 2] = ["10.5.0.1", "fd05::1"];
/// The node's address that leads to the server through a translation.
const NODE_PORT: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 9)), 30080);

/// A server that admits the client and nobody else, and a client that may call the server only.
const POLICY: &str = "{podSelector: {matchLabels: {role: server}}, policyTypes: [Ingress, Egress], \
     ingress: [{from: [{podSelector: {matchLabels: {role: client}}}]}]}";
const CALLS_ONLY: &str = "{podSelector: {matchLabels: {role: client}}, policyTypes: [Ingress, Egress], \
     egress: [{to: [{podSelector: {matchLabels: {role: server}}}, {ipBlock: {cidr: 192.0.2.9/32}}]}]}";

fn cluster() -> String {
    let pod = |name: &str, number: u8| {
        let addresses = [format!("10.5.0.{number}"), format!("fd05::{number}")];
        pod(
            &format!("shop/{name}"),
            &format!("role: {name}"),
            &addresses,
        )
    };
    [
        namespace("shop", ""),
        pod("server", 1),
        pod("client", 2),
        pod("other", 3),
    ]
    .join("---\n")
}

/// A node without an agent, on which the kernel tracks connections or does not.
fn node(tracks: bool) -> Result<Stage> {
    let mut stage = Stage::without_agent(&cluster())?;
    stage.lab.add_node_address(NODE_PORT.ip())?;
    let policies = [
        policy("shop", "server", POLICY),
        policy("shop", "client", CALLS_ONLY),
    ];
    stage
        .lab
        .write_manifest("policies.yaml", &policies.join("---\n"))?;
    if tracks {
        stage.lab.track_connections()?;
        stage.lab.nft(
            "add chain inet kube before { type nat hook prerouting priority dstnat; }\n\
             add chain inet kube after { type nat hook postrouting priority srcnat; }\n\
             add rule inet kube before ip daddr 192.0.2.9 meta l4proto { tcp, udp } th dport 30080 \
                 meta mark set 1 dnat ip to 10.5.0.1:8080\n\
             add rule inet kube after meta mark 1 masquerade\n",
        )?;
    }
    Ok(stage)
}

/// Flows of before or after the agent's coming.
#[derive(Debug)]
struct Flows(Pair);

/// Who speaks.
#[derive(Clone, Copy, Debug)]
enum Side {
    Client,
    Server,
}

impl Flows {
    /// Opens them from a namespace, to the server pod's address and port by way of `through`.
    fn open(
        stage: &Stage,
        from: &Namespace,
        (address, port): (&str, u16),
        through: SocketAddr,
    ) -> Result<Self> {
        let server = &stage.lab.place("shop/server")?.namespace;
        let listening = SocketAddr::new(address.parse()?, port);
        let ends = (listening, through);
        let mut flows = Self(Pair::open(server, from, ends, HEARD_WITHIN)?);
        ensure!(flows.says(Side::Server)? == BOTH, "the new flows answer");
        Ok(flows)
    }

    /// Whether one side's words are heard by the other, over TCP and over UDP.
    fn says(&mut self, side: Side) -> Result<(bool, bool)> {
        let (here, there) = match side {
            Side::Client => (0, 1),
            Side::Server => (1, 0),
        };
        let mut heard = [0];
        if let (Some(tcp), Some(udp)) = (self.0.tcp.get_mut(here), self.0.udp.get(here)) {
            tcp.write_all(&[7])?;
            // A refusal of the datagram before shows here.
            udp.send(&[7]).or_else(|_refused| udp.send(&[7]))?;
        }
        let tcp = self.0.tcp.get_mut(there).context("an end")?;
        let tcp = tcp.read_exact(&mut heard).is_ok();
        let udp = self.0.udp.get(there).context("an end")?;
        Ok((tcp, udp.recv(&mut heard).is_ok()))
    }
}

const BOTH: (bool, bool) = (true, true);
const NONE: (bool, bool) = (false, false);

/// Packets that only the mid-stream rule let through.
const GUESSED: &str = r#"picket_kernel_events_total{kind="mid_stream"}"#;

/// One pair a family. Each pod has a port of the server's for itself.
fn pairs(stage: &Stage, pod: &str) -> Result<Vec<Flows>> {
    let place = stage.lab.place(pod)?;
    let port = PORT + u16::from(pod == "shop/other");
    SERVER
        .iter()
        .map(|address| {
            let direct = SocketAddr::new(address.parse()?, port);
            Flows::open(stage, &place.namespace, (address, port), direct)
        })
        .collect()
}

#[test]
fn silent_clients_of_before_the_agent_still_hear_their_server() -> Result<()> {
    let mut stage = node(true)?;
    let mut client = pairs(&stage, "shop/client")?;
    stage.agent = Some(Agent::start(&stage.lab.manifests())?);
    for pair in &mut client {
        assert_eq!(pair.says(Side::Server)?, BOTH);
        assert_eq!(pair.says(Side::Client)?, BOTH);
    }
    assert!(metric(GUESSED)? < 1.0, "known, not guessed");
    Ok(())
}

#[test]
fn what_policy_forbids_ends_with_the_agents_coming() -> Result<()> {
    let mut stage = node(true)?;
    let mut other = pairs(&stage, "shop/other")?;
    stage.agent = Some(Agent::start(&stage.lab.manifests())?);
    for pair in &mut other {
        assert_eq!(pair.says(Side::Server)?, NONE, "also its answers");
        assert_eq!(pair.says(Side::Client)?, NONE);
    }
    Ok(())
}

#[test]
fn behind_a_masquerade_each_connection_of_before_is_its_own_pods() -> Result<()> {
    for (pod, expected) in [("shop/client", BOTH), ("shop/other", NONE)] {
        let mut stage = node(true)?;
        let from = &stage.lab.place(pod)?.namespace;
        let mut pair = Flows::open(&stage, from, ("10.5.0.1", PORT), NODE_PORT)?;
        stage.agent = Some(Agent::start(&stage.lab.manifests())?);
        assert_eq!(pair.says(Side::Server)?, expected, "{pod}");
        assert_eq!(pair.says(Side::Client)?, expected, "{pod}");
    }
    Ok(())
}

#[test]
fn what_the_node_has_opened_before_goes_on_under_default_deny() -> Result<()> {
    let mut stage = node(true)?;
    let direct = SocketAddr::new("10.5.0.1".parse()?, PORT);
    let mut pair = Flows::open(&stage, stage.lab.node(), ("10.5.0.1", PORT), direct)?;
    stage.agent = Some(Agent::start(&stage.lab.manifests())?);
    assert_eq!(pair.says(Side::Server)?, BOTH);
    assert_eq!(pair.says(Side::Client)?, BOTH);
    Ok(())
}

#[test]
fn where_the_kernel_tracks_nothing_tcp_is_taken_up_in_its_middle() -> Result<()> {
    for first in [Side::Server, Side::Client] {
        let mut stage = node(false)?;
        let mut client = pairs(&stage, "shop/client")?;
        let mut other = pairs(&stage, "shop/other")?;
        stage.agent = Some(Agent::start(&stage.lab.manifests())?);
        for pair in &mut client {
            assert!(pair.says(first)?.0, "{first:?} speaks first");
            assert!(pair.says(Side::Client)?.0);
            assert!(pair.says(Side::Server)?.0);
        }
        for pair in &mut other {
            assert_eq!(pair.says(first)?, NONE);
        }
    }
    Ok(())
}

/// Connections of [`many_connections_are_adopted_in_one_go`], both families together; with
/// `PICKET_THOROUGH=1` as many as a busy node has.
fn many() -> usize {
    if is_thorough() { 100_000 } else { 2_000 }
}

#[test]
fn many_connections_are_adopted_in_one_go() -> Result<()> {
    let mut stage = node(true)?;
    let (client, server) = (
        &stage.lab.place("shop/client")?.namespace,
        &stage.lab.place("shop/server")?.namespace,
    );
    let flows = many();
    for (own, address) in ["10.5.0.2", "fd05::2"].into_iter().zip(SERVER) {
        let to = SocketAddr::new(address.parse()?, PORT);
        answered_flows(server, to, client, own.parse()?, flows / 2)?;
    }
    stage.agent = Some(Agent::start(&stage.lab.manifests())?);
    let adopted = Adopted::read()?;
    // Each is known at its client and at its server.
    assert_eq!(adopted.entries, 2 * flows, "{adopted:?}");
    println!("{flows} connections adopted in {:?}", adopted.took);
    Ok(())
}
