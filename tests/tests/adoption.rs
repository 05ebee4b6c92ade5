//! Connections that are older than the agent: installing breaks none that policy allows, whoever
//! speaks next, and ends those it forbids at their next packet.
#![expect(clippy::print_stdout, reason = "the thorough run prints its figure")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::lab::agent::{Agent, log, metric};
use tests::lab::namespace::Namespace;
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::Stage;

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
        stage.lab.nft(
            "add table inet kube\n\
             add chain inet kube forward { type filter hook forward priority 0; }\n\
             add rule inet kube forward ct state new counter\n\
             add chain inet kube before { type nat hook prerouting priority dstnat; }\n\
             add chain inet kube after { type nat hook postrouting priority srcnat; }\n\
             add rule inet kube before ip daddr 192.0.2.9 meta l4proto { tcp, udp } th dport 30080 \
                 meta mark set 1 dnat ip to 10.5.0.1:8080\n\
             add rule inet kube after meta mark 1 masquerade\n",
        )?;
    }
    Ok(stage)
}

/// Both ends of a TCP connection and a UDP flow.
#[derive(Debug)]
struct Pair {
    tcp: [TcpStream; 2],
    udp: [UdpSocket; 2],
}

/// Who speaks.
#[derive(Clone, Copy, Debug)]
enum Side {
    Client,
    Server,
}

impl Pair {
    /// Opens both from a namespace, to the server pod's address and port by way of `through`.
    fn open(
        stage: &Stage,
        from: &Namespace,
        server: (&str, u16),
        through: SocketAddr,
    ) -> Result<Self> {
        let (address, port) = server;
        let listening = SocketAddr::new(address.parse()?, port);
        let server = &stage.lab.place("shop/server")?.namespace;
        let (listener, udp_server) =
            server.enter(|| Ok((TcpListener::bind(listening)?, UdpSocket::bind(listening)?)))?;
        let (tcp_client, udp_client) = from.enter(|| {
            let any: SocketAddr = if through.is_ipv4() {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            }
            .parse()?;
            let udp = UdpSocket::bind(any)?;
            udp.connect(through)?;
            Ok((
                TcpStream::connect_timeout(&through, Duration::from_secs(3))?,
                udp,
            ))
        })?;
        let (tcp_server, _) = listener.accept()?;
        udp_client.send(&[0])?;
        udp_server.set_read_timeout(Some(HEARD_WITHIN))?;
        let (_, peer) = udp_server
            .recv_from(&mut [0])
            .context("the first datagram")?;
        udp_server.connect(peer)?;
        let pair = Self {
            tcp: [tcp_client, tcp_server],
            udp: [udp_client, udp_server],
        };
        for stream in &pair.tcp {
            stream.set_read_timeout(Some(HEARD_WITHIN))?;
            stream.set_nodelay(true)?;
        }
        for socket in &pair.udp {
            socket.set_read_timeout(Some(HEARD_WITHIN))?;
        }
        let mut pair = pair;
        ensure!(pair.says(Side::Server)? == BOTH, "the new flows answer");
        Ok(pair)
    }

    /// Whether one side's words are heard by the other, over TCP and over UDP.
    fn says(&mut self, side: Side) -> Result<(bool, bool)> {
        let (here, there) = match side {
            Side::Client => (0, 1),
            Side::Server => (1, 0),
        };
        let mut heard = [0];
        if let (Some(tcp), Some(udp)) = (self.tcp.get_mut(here), self.udp.get(here)) {
            tcp.write_all(&[7])?;
            // A refusal of the datagram before shows here.
            udp.send(&[7]).or_else(|_refused| udp.send(&[7]))?;
        }
        let tcp = self.tcp.get_mut(there).context("an end")?;
        let tcp = tcp.read_exact(&mut heard).is_ok();
        let udp = self.udp.get(there).context("an end")?;
        Ok((tcp, udp.recv(&mut heard).is_ok()))
    }
}

const BOTH: (bool, bool) = (true, true);
const NONE: (bool, bool) = (false, false);

/// Packets that only the mid-stream rule let through.
const GUESSED: &str = r#"picket_kernel_events_total{kind="mid_stream"}"#;

/// One pair a family. Each pod has a port of the server's for itself.
fn pairs(stage: &Stage, pod: &str) -> Result<Vec<Pair>> {
    let place = stage.lab.place(pod)?;
    let port = PORT + u16::from(pod == "shop/other");
    SERVER
        .iter()
        .map(|address| {
            let direct = SocketAddr::new(address.parse()?, port);
            Pair::open(stage, &place.namespace, (address, port), direct)
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
        let mut pair = Pair::open(&stage, from, ("10.5.0.1", PORT), NODE_PORT)?;
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
    let mut pair = Pair::open(&stage, stage.lab.node(), ("10.5.0.1", PORT), direct)?;
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
    if std::env::var_os("PICKET_THOROUGH").is_some() {
        100_000
    } else {
        2_000
    }
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
        let listening = server.enter(|| Ok(UdpSocket::bind((address, PORT))?))?;
        listening.set_read_timeout(Some(HEARD_WITHIN))?;
        client.enter(|| {
            for port in (1024..=u16::MAX).take(flows / 2) {
                let socket = UdpSocket::bind((own, port))?;
                socket.send_to(&[1], (address, PORT))?;
                let (_, peer) = listening.recv_from(&mut [0]).context("a datagram")?;
                listening.send_to(&[2], peer)?;
            }
            Ok(())
        })?;
    }
    stage.agent = Some(Agent::start(&stage.lab.manifests())?);
    let log = log();
    let line = log
        .lines()
        .find(|line| line.contains("connections older than the attachment adopted"))
        .with_context(|| format!("nothing adopted, the agent said:\n{log}"))?;
    let number = |name: &str| -> Result<usize> {
        let (_, rest) = line.split_once(name).context("its number")?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Ok(digits.parse()?)
    };
    // Each is known at its client and at its server.
    assert_eq!(number("adopted=")?, 2 * flows, "{line}");
    println!("{flows} connections adopted in {} ms", number("took_ms=")?);
    Ok(())
}
