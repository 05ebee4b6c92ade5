//! Flows with both ends in hand: a TCP connection and an answered UDP flow side by side, and a
//! socket for ICMP echo.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketType, ipproto};

use super::namespace::{Namespace, sysctl};

/// How long opening a connection may take.
const OPENED_WITHIN: Duration = Duration::from_secs(3);

/// Both ends of a TCP connection and of a UDP flow whose first datagram has arrived; the client's
/// come first.
#[derive(Debug)]
pub struct Pair {
    /// Of the connection.
    pub tcp: [TcpStream; 2],
    /// Of the datagrams' flow, connected.
    pub udp: [UdpSocket; 2],
}

impl Pair {
    /// Opens both to `listening` in the server's namespace, by way of `through` from the client's.
    /// Reading gives up after `heard_within`.
    pub fn open(
        server: &Namespace,
        client: &Namespace,
        (listening, through): (SocketAddr, SocketAddr),
        heard_within: Duration,
    ) -> Result<Self> {
        let (listener, udp_server) =
            server.enter(|| Ok((TcpListener::bind(listening)?, UdpSocket::bind(listening)?)))?;
        let (tcp_client, udp_client) = client.enter(|| {
            let udp = UdpSocket::bind((any(through), 0))?;
            udp.connect(through)?;
            Ok((TcpStream::connect_timeout(&through, OPENED_WITHIN)?, udp))
        })?;
        let (tcp_server, _) = listener.accept()?;
        udp_client.send(&[0])?;
        udp_server.set_read_timeout(Some(heard_within))?;
        let first = udp_server.recv_from(&mut [0]);
        let (_, peer) = first.context("the first datagram")?;
        udp_server.connect(peer)?;
        let pair = Self {
            tcp: [tcp_client, tcp_server],
            udp: [udp_client, udp_server],
        };
        for stream in &pair.tcp {
            stream.set_read_timeout(Some(heard_within))?;
            stream.set_nodelay(true)?;
        }
        for socket in &pair.udp {
            socket.set_read_timeout(Some(heard_within))?;
        }
        Ok(pair)
    }
}

/// Any address of the family of `other`.
fn any(other: SocketAddr) -> IpAddr {
    match other {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A socket of `client` that sends ICMP echo requests to an address and hears their answers
/// (`IPPROTO_ICMP` with `SOCK_DGRAM`, icmp(7)).
pub fn echo(client: &Namespace, to: Ipv4Addr, heard_within: Duration) -> Result<OwnedFd> {
    client.enter(|| {
        sysctl("ipv4/ping_group_range", "0 0")?;
        let kind = SocketType::DGRAM;
        let echo = rustix::net::socket(AddressFamily::INET, kind, Some(ipproto::ICMP))?;
        rustix::net::connect(&echo, &SocketAddr::from((to, 0)))?;
        set_socket_timeout(&echo, Timeout::Recv, Some(heard_within))?;
        Ok(echo)
    })
}
