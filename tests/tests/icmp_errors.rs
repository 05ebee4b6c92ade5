//! ICMP errors under default deny, on real paths: a narrow link beyond the node, a packet whose time
//! is over, a port where nobody listens. They reach whom they are for, whatever policy says of ICMP.

#![expect(
    clippy::unwrap_used,
    reason = "all of this is a test: whatever fails ends it"
)]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{Ipv4RecvErr, Ipv6RecvErr};
use rustix::net::{AddressFamily, SocketType, sockopt};
use tests::lab::namespace::Namespace;
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::Stage;
use tests::lab::wait_until;

const PORT: u16 = 8080;
/// Bytes that the link beyond the router takes; IPv6 wants at least 1 280.
const NARROW: u32 = 1_300;
/// Larger than that, and not larger than the pod's own link takes.
const LARGE: usize = 1_400;
/// More than a TCP window is at first.
const MUCH: usize = 300_000;
/// How long anything here may take. TCP would find a narrow path by itself, after minutes.
const WITHIN: Duration = Duration::from_secs(10);
/// Nothing comes for so long: nothing will.
const SILENCE: Duration = Duration::from_millis(600);

const POD: &str = "shop/client";
const OUTSIDE: [&str; 2] = ["198.51.100.7", "2001:db8:1::7"];
const ROUTER: [&str; 2] = ["203.0.113.1", "2001:db8:ffff::1"];

fn parsed(texts: [&str; 2]) -> [IpAddr; 2] {
    texts.map(|text| text.parse().expect("an address"))
}

/// A pod that may only connect to port 8080 outside, and be connected to from there on the same
/// port; a narrow link is on the way.
fn stage() -> Stage {
    let cluster = [
        namespace("shop", ""),
        pod(POD, "app: client", &["10.3.0.2", "fd00:3::2"]),
        pod("shop/other", "app: other", &["10.3.0.3", "fd00:3::3"]),
    ]
    .join("---\n");
    let mut stage = Stage::without_agent(&cluster).unwrap();
    for address in parsed(OUTSIDE) {
        stage.lab.add_external(address).unwrap();
    }
    stage.lab.narrow_outside(NARROW, parsed(ROUTER)).unwrap();
    stage.agent = Some(tests::lab::agent::Agent::start(&stage.lab.manifests()).unwrap());
    let ports = "ports: [{port: 8080}, {port: 8080, protocol: UDP}]";
    let outside = OUTSIDE
        .map(|address| {
            let bits = if address.contains(':') { 128 } else { 32 };
            format!("{{ipBlock: {{cidr: \"{address}/{bits}\"}}}}")
        })
        .join(", ");
    let spec = format!(
        "{{podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Ingress, Egress],
          ingress: [{{from: [{outside}], {ports}}}], egress: [{{to: [{outside}], {ports}}}]}}"
    );
    stage
        .apply("policy.yaml", &policy("shop", "narrow", &spec))
        .unwrap();
    stage
}

/// The pod's and the outside's ends of one family.
struct Ends<'a> {
    pod: (&'a Namespace, IpAddr),
    outside: (&'a Namespace, IpAddr),
}

fn ends(stage: &Stage) -> [Ends<'_>; 2] {
    OUTSIDE.map(|name| {
        let (pod, outside) = (
            stage.lab.place(POD).unwrap(),
            stage.lab.place(name).unwrap(),
        );
        let to = *outside.addresses.first().unwrap();
        Ends {
            pod: (&pod.namespace, pod.address(to.is_ipv4()).unwrap()),
            outside: (&outside.namespace, to),
        }
    })
}

/// A connection that comes from an address of the caller's.
fn connect(from: IpAddr, to: SocketAddr) -> Result<TcpStream> {
    let family = if from.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &SocketAddr::new(from, 0))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(WITHIN))?;
    rustix::net::connect(&socket, &to)?;
    Ok(TcpStream::from(socket))
}

/// Sends much over a connection from one to the other, from whichever side is to speak.
fn carries_much(
    (client, from): (&Namespace, IpAddr),
    (server, address): (&Namespace, IpAddr),
    is_from_client: bool,
) -> Result<()> {
    let to = SocketAddr::new(address, PORT);
    let listener = server.enter(|| Ok(TcpListener::bind(to)?))?;
    let near = client.enter(|| connect(from, to))?;
    let (far, _) = listener.accept()?;
    let (mut from, mut into) = if is_from_client {
        (near, far)
    } else {
        (far, near)
    };
    into.set_read_timeout(Some(WITHIN))?;
    from.set_write_timeout(Some(WITHIN))?;
    let writer = std::thread::spawn(move || from.write_all(&vec![7; MUCH]));
    let mut got = vec![0; MUCH];
    into.read_exact(&mut got).context("what was sent")?;
    writer.join().expect("the writer does not panic")?;
    Ok(())
}

#[test]
fn tcp_finds_a_narrow_path_under_default_deny() {
    let stage = stage();
    for Ends { pod, outside } in ends(&stage) {
        carries_much(pod, outside, true)
            .unwrap_or_else(|error| panic!("the pod to {}: {error:#}", outside.1));
        carries_much(outside, pod, false)
            .unwrap_or_else(|error| panic!("the pod as server of {}: {error:#}", outside.1));
    }
}

/// What a connected socket takes the path's MTU to be.
fn path_mtu(socket: &UdpSocket, is_v4: bool) -> Result<u32> {
    Ok(if is_v4 {
        sockopt::ip_mtu(socket)?
    } else {
        sockopt::ipv6_mtu(socket)?
    })
}

/// A socket of the pod's that does not have its datagrams cut to pieces.
fn connected(ends: &Ends<'_>, port: u16) -> Result<UdpSocket> {
    ends.pod.0.enter(|| {
        let socket = UdpSocket::bind((ends.pod.1, 0))?;
        if ends.pod.1.is_ipv4() {
            sockopt::set_ip_mtu_discover(&socket, sockopt::Ipv4PathMtuDiscovery::DO)?;
        } else {
            sockopt::set_ipv6_mtu_discover(&socket, sockopt::Ipv6PathMtuDiscovery::DO)?;
        }
        socket.connect((ends.outside.1, port))?;
        Ok(socket)
    })
}

#[test]
fn udp_finds_a_narrow_path_under_default_deny() {
    let stage = stage();
    for ends in ends(&stage) {
        let is_v4 = ends.pod.1.is_ipv4();
        let socket = connected(&ends, PORT).unwrap();
        assert_eq!(path_mtu(&socket, is_v4).unwrap(), 1_500);
        socket.send(&[1; LARGE]).unwrap();
        wait_until("the path's MTU to be known", WITHIN, || {
            let mtu = path_mtu(&socket, is_v4)?;
            ensure!(mtu == NARROW, "it is taken for {mtu}");
            Ok(())
        })
        .unwrap();
    }
}

/// The error that a connected socket is told of; an error of its own when there is none in time.
fn told(socket: &UdpSocket, within: Duration) -> Result<ErrorKind> {
    socket.set_read_timeout(Some(within))?;
    match socket.recv(&mut [0; 8]) {
        Ok(length) => anyhow::bail!("{length} bytes came instead of an error"),
        Err(error) => Ok(error.kind()),
    }
}

#[test]
fn a_pod_hears_that_nobody_listens_and_says_so_itself() {
    let stage = stage();
    for ends in ends(&stage) {
        let socket = connected(&ends, PORT).unwrap();
        socket.send(&[1]).unwrap();
        let kind = told(&socket, WITHIN).unwrap();
        assert_eq!(kind, ErrorKind::ConnectionRefused, "to {}", ends.outside.1);
        // The pod's own error is egress, which it may not begin.
        let client = ends
            .outside
            .0
            .enter(|| {
                let socket = UdpSocket::bind((ends.outside.1, 0))?;
                socket.connect((ends.pod.1, PORT))?;
                socket.send(&[1])?;
                Ok(socket)
            })
            .unwrap();
        let kind = told(&client, WITHIN).unwrap();
        assert_eq!(
            kind,
            ErrorKind::ConnectionRefused,
            "from {}",
            ends.outside.1
        );
    }
}

#[test]
fn traceroute_sees_the_router_on_the_way_to_where_the_pod_may_go_only() {
    let stage = stage();
    for ends in ends(&stage) {
        let is_v4 = ends.pod.1.is_ipv4();
        for (port, expected) in [(PORT, true), (PORT + 1, false)] {
            let socket = connected(&ends, port).unwrap();
            // The node is the first hop, the router the second.
            if is_v4 {
                sockopt::set_ip_ttl(&socket, 2).unwrap();
                setsockopt(&socket, Ipv4RecvErr, &true).unwrap();
            } else {
                sockopt::set_ipv6_unicast_hops(&socket, Some(2)).unwrap();
                setsockopt(&socket, Ipv6RecvErr, &true).unwrap();
            }
            socket.send(&[1]).unwrap();
            let within = if expected { WITHIN } else { SILENCE };
            let kind = told(&socket, within).unwrap();
            let is_told = kind == ErrorKind::HostUnreachable;
            assert_eq!(is_told, expected, "port {port}, {}: {kind}", ends.outside.1);
        }
    }
}
