//! Which flows are known, and for how long, whatever others do: floods take no flow from anybody
//! but their own pod, half-open ones not even from that; TCP flows of every kind of life are
//! followed; what was forgotten heals.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tests::bench::{cpus, keep_to};
use tests::lab::agent::{Agent, metric};
use tests::lab::namespace::Namespace;
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::Stage;
use tests::runs::is_thorough;

const PORT: u16 = 8080;
const HEARD_WITHIN: Duration = Duration::from_secs(2);
const CONNECTED_WITHIN: Duration = Duration::from_secs(10);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 11, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 11, 0, 2);
const FLOODED: Ipv4Addr = Ipv4Addr::new(10, 11, 0, 3);
const FLOODER: Ipv4Addr = Ipv4Addr::new(10, 11, 0, 4);

/// Everybody is isolated in both directions. Servers are called and never call.
const CALLS: &str = "{podSelector: {matchLabels: {calls: \"yes\"}}, policyTypes: [Ingress, Egress], \
     egress: [{to: [{podSelector: {matchLabels: {serves: \"yes\"}}}]}]}";
const SERVES: &str = "{podSelector: {matchLabels: {serves: \"yes\"}}, policyTypes: [Ingress, Egress], \
     ingress: [{from: [{podSelector: {matchLabels: {calls: \"yes\"}}}]}]}";

/// Flows of a flood; a million in the thorough run, a twentieth of that in every other.
fn flows() -> u32 {
    if is_thorough() { 1_000_000 } else { 50_000 }
}

/// A stage whose flows are all opened on one CPU: what another CPU has inserted last waits on a list of
/// its own, where no flood of ours comes by.
fn stage_of_one_cpu(options: &[&str]) -> Result<Stage> {
    let stage = stage(options)?;
    keep_to(cpus()?.get(..1).unwrap_or_default())?;
    Ok(stage)
}

fn stage(options: &[&str]) -> Result<Stage> {
    let cluster = [
        namespace("shop", ""),
        pod("shop/server", "serves: \"yes\"", &[SERVER]),
        pod("shop/client", "calls: \"yes\"", &[CLIENT]),
        pod("shop/flooded", "serves: \"yes\"", &[FLOODED]),
        pod("shop/flooder", "calls: \"yes\"", &[FLOODER]),
    ];
    let mut stage = Stage::without_agent(&cluster.join("---\n"))?;
    stage.agent = Some(Agent::start_with(&stage.lab.manifests(), options)?);
    stage.apply("calls.yaml", &policy("shop", "calls", CALLS))?;
    stage.apply("serves.yaml", &policy("shop", "serves", SERVES))?;
    Ok(stage)
}

/// A UDP flow, both ends in hand: nothing but the table keeps the server's words coming through.
#[derive(Debug)]
struct Talk {
    client: UdpSocket,
    server: UdpSocket,
}

impl Talk {
    fn open(stage: &Stage, from: &str, to: (&str, Ipv4Addr), port: u16) -> Result<Self> {
        let listening = SocketAddr::from((to.1, port));
        let server = bind(&stage.lab.place(to.0)?.namespace, listening)?;
        let client = bind(
            &stage.lab.place(from)?.namespace,
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        )?;
        client.connect(listening)?;
        client.send(&[0])?;
        let (_, peer) = server.recv_from(&mut [0])?;
        server.connect(peer)?;
        let talk = Self { client, server };
        ensure!(talk.server_is_heard()?, "a new flow answers");
        Ok(talk)
    }

    /// The server speaks first, which policy lets it do in no flow of its own.
    fn server_is_heard(&self) -> Result<bool> {
        self.server.send(&[1])?;
        Ok(self.client.recv(&mut [0]).is_ok())
    }
}

fn bind(namespace: &Namespace, address: SocketAddr) -> Result<UdpSocket> {
    let socket = namespace.enter(|| Ok(UdpSocket::bind(address)?))?;
    socket.set_read_timeout(Some(HEARD_WITHIN))?;
    Ok(socket)
}

/// How the flood's flows go on after their first packet.
#[derive(Clone, Copy, Debug)]
enum Flood {
    Once,
    Twice,
    Answered,
}

/// Sends a packet, or two, of each of many flows; each flow is a pair of ports.
fn flood(stage: &Stage, kind: Flood, count: u32) -> Result<()> {
    const PER_SOCKET: u32 = 10_000;
    let (flooder, flooded) = (
        &stage.lab.place("shop/flooder")?.namespace,
        &stage.lab.place("shop/flooded")?.namespace,
    );
    let answering = matches!(kind, Flood::Answered);
    for _ in 0..count.div_ceil(PER_SOCKET) {
        let socket = bind(flooder, SocketAddr::from((FLOODER, 0)))?;
        let answers = answering
            .then(|| bind(flooded, SocketAddr::from((FLOODED, PORT))))
            .transpose()?;
        for place in 0..PER_SOCKET.min(count) {
            if let Some(answers) = &answers {
                let socket = bind(flooder, SocketAddr::from((FLOODER, 0)))?;
                socket.send_to(&[0], (FLOODED, PORT))?;
                // What the budget refuses is not answered.
                answers.set_read_timeout(Some(Duration::from_millis(20)))?;
                if let Ok((_, peer)) = answers.recv_from(&mut [0]) {
                    // A flow that goes on: what is met once more is kept before what is not.
                    for _ in 0..2 {
                        answers.send_to(&[0], peer)?;
                        socket.send_to(&[0], (FLOODED, PORT))?;
                        answers.recv_from(&mut [0])?;
                    }
                }
                continue;
            }
            let port = u16::try_from(20_000 + place).context("a port")?;
            let times = if matches!(kind, Flood::Twice) { 2 } else { 1 };
            for _ in 0..times {
                // "Refused" here tells of the datagram before.
                drop(socket.send_to(&[0], (FLOODED, port)));
            }
        }
    }
    Ok(())
}

/// How often the kernel met something.
fn counter(kind: &str) -> Result<f64> {
    metric(&format!("picket_kernel_events_total{{kind=\"{kind}\"}}"))
}

/// One side's word is heard by the other.
fn say(from: &mut TcpStream, to: &mut TcpStream) -> Result<()> {
    to.set_read_timeout(Some(Duration::from_secs(5)))?;
    from.write_all(&[7])?;
    to.read_exact(&mut [0]).context("nothing heard")
}

#[test]
fn half_open_floods_take_no_established_flow_from_anybody() -> Result<()> {
    let stage = stage(&[])?;
    let others = Talk::open(&stage, "shop/client", ("shop/server", SERVER), PORT)?;
    let own = Talk::open(&stage, "shop/flooder", ("shop/server", SERVER), PORT + 1)?;
    let same_server = Talk::open(&stage, "shop/client", ("shop/flooded", FLOODED), PORT + 2)?;
    for kind in [Flood::Once, Flood::Twice] {
        flood(&stage, kind, flows())?;
        assert!(others.server_is_heard()?, "{kind:?}: another pod's");
        assert!(own.server_is_heard()?, "{kind:?}: the flooder's own");
        assert!(
            same_server.server_is_heard()?,
            "{kind:?}: the flooded server's"
        );
    }
    assert!(
        counter("budget_exceeded")? > 0.0,
        "what was refused is counted"
    );
    Ok(())
}

#[test]
fn connections_that_are_answered_and_never_confirmed_take_no_flow_from_anybody() -> Result<()> {
    let stage = stage_of_one_cpu(&["--map-capacity", "CONNTRACK=256"])?;
    let same_server = Talk::open(&stage, "shop/client", ("shop/flooded", FLOODED), PORT + 2)?;
    let listening = SocketAddr::from((FLOODED, PORT));
    let listener = stage
        .lab
        .place("shop/flooded")?
        .namespace
        .enter(|| Ok(TcpListener::bind(listening)?))?;
    // Of what the flooder sends, nothing but SYNs gets as far as the server's interface.
    stage.lab.nft(&format!(
        "add table ip silence\n\
         add chain ip silence forward {{ type filter hook forward priority 0; }}\n\
         add rule ip silence forward ip saddr {FLOODER} tcp flags & syn == 0 drop\n"
    ))?;
    let flooder = &stage.lab.place("shop/flooder")?.namespace;
    for _ in 0..1_000 {
        // The answer is all that it takes to be connected on this side.
        let connected =
            flooder.enter(|| Ok(TcpStream::connect_timeout(&listening, CONNECTED_WITHIN)?));
        drop(connected.context("a SYN is answered")?);
    }
    drop(listener);
    ensure!(same_server.server_is_heard()?, "the flooded server's");
    Ok(())
}

#[test]
fn answered_floods_take_flows_from_their_own_pods_only() -> Result<()> {
    let stage = stage_of_one_cpu(&["--map-capacity", "CONNTRACK=256"])?;
    let others = Talk::open(&stage, "shop/client", ("shop/server", SERVER), PORT)?;
    let own = Talk::open(&stage, "shop/flooder", ("shop/server", SERVER), PORT + 1)?;
    flood(&stage, Flood::Answered, 3_000)?;
    assert!(others.server_is_heard()?, "another pod's");
    // The flood was one: it has pushed the flooder's own idle flow out.
    assert!(!own.server_is_heard()?, "the flooder's own");
    Ok(())
}

#[test]
fn an_allowed_tcp_flow_that_was_pushed_out_heals_from_either_side() -> Result<()> {
    for server_first in [true, false] {
        let stage = stage_of_one_cpu(&["--map-capacity", "CONNTRACK=256"])?;
        let listening = SocketAddr::from((FLOODED, PORT + 5));
        let server = &stage.lab.place("shop/flooded")?.namespace;
        let listener = server.enter(|| Ok(TcpListener::bind(listening)?))?;
        let client = &stage.lab.place("shop/flooder")?.namespace;
        let mut client =
            client.enter(|| Ok(TcpStream::connect_timeout(&listening, HEARD_WITHIN)?))?;
        let (mut server, _) = listener.accept()?;
        flood(&stage, Flood::Answered, 3_000)?;
        let guessed = counter("mid_stream")?;
        if server_first {
            say(&mut server, &mut client)?;
            say(&mut client, &mut server)?;
        } else {
            say(&mut client, &mut server)?;
            say(&mut server, &mut client)?;
        }
        ensure!(
            counter("mid_stream")? > guessed,
            "the flow had been pushed out"
        );
    }
    Ok(())
}

/// A TCP socket of a namespace, bound, its port free to be used again at once.
fn tcp_socket(namespace: &Namespace, address: SocketAddrV4) -> Result<OwnedFd> {
    namespace.enter(|| {
        let socket = rustix::net::socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        // Connecting ends by this, too: a SYN that is lost is sent again long before.
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(CONNECTED_WITHIN))?;
        rustix::net::bind(&socket, &SocketAddr::V4(address))?;
        Ok(socket)
    })
}

#[test]
fn a_port_is_used_again_at_once_however_the_connection_before_ended() -> Result<()> {
    let stage = stage(&[])?;
    let server = &stage.lab.place("shop/server")?.namespace;
    let client = &stage.lab.place("shop/client")?.namespace;
    let listening = SocketAddr::from((SERVER, PORT));
    let listener = server.enter(|| Ok(TcpListener::bind(listening)?))?;
    let own = SocketAddrV4::new(CLIENT, 40_000);
    for round in 0..6 {
        let socket = tcp_socket(client, own)?;
        rustix::net::connect(&socket, &listening).with_context(|| format!("round {round}"))?;
        let mut stream = TcpStream::from(socket);
        let (mut accepted, _) = listener.accept()?;
        stream.set_read_timeout(Some(HEARD_WITHIN))?;
        accepted.set_read_timeout(Some(HEARD_WITHIN))?;
        stream.write_all(&[1])?;
        accepted.read_exact(&mut [0])?;
        accepted.write_all(&[1])?;
        stream.read_exact(&mut [0])?;
        let reset = Some(Duration::ZERO);
        match round % 3 {
            // The server closes first, so the client's port is free at once.
            0 => {
                drop(accepted);
                ensure!(stream.read(&mut [0])? == 0, "the server's end is heard");
            }
            1 => sockopt::set_socket_linger(&stream, reset)?,
            _ => sockopt::set_socket_linger(&accepted, reset)?,
        }
    }
    Ok(())
}

#[test]
fn two_pods_that_open_to_each_other_at_once_are_connected() -> Result<()> {
    let mut stage = stage(&[])?;
    let spec = "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {}}]}], egress: [{to: [{podSelector: {}}]}]}";
    stage.apply("both.yaml", &policy("shop", "both", spec))?;
    // The first one's SYN meets no socket; without that refusal it waits, and the other's SYN
    // crosses its own (RFC 9293 §3.5).
    let rules = "add table ip cross\n\
                 add chain ip cross forward { type filter hook forward priority 0; }\n\
                 add rule ip cross forward tcp flags & rst == rst drop\n";
    stage.lab.nft(rules)?;
    let (one, other) = (
        SocketAddrV4::new(CLIENT, 41_000),
        SocketAddrV4::new(SERVER, 42_000),
    );
    let first = tcp_socket(&stage.lab.place("shop/client")?.namespace, one)?;
    let second = tcp_socket(&stage.lab.place("shop/server")?.namespace, other)?;
    rustix::io::ioctl_fionbio(first.as_fd(), true)?;
    ensure!(
        rustix::net::connect(&first, &SocketAddr::V4(other)).is_err(),
        "it waits"
    );
    rustix::net::connect(&second, &SocketAddr::V4(one)).context("opening at once")?;
    rustix::io::ioctl_fionbio(first.as_fd(), false)?;
    let (mut first, mut second) = (TcpStream::from(first), TcpStream::from(second));
    say(&mut first, &mut second)?;
    say(&mut second, &mut first)
}
