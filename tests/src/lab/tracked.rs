//! Connections that the kernel tracks before an agent comes, and what the agent says of adopting
//! them.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Lab;
use super::agent::log;
use super::namespace::Namespace;

/// How long a datagram may take.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

impl Lab {
    /// Has the node track connections from now on, as any rule that asks for their state does.
    pub fn track_connections(&self) -> Result<()> {
        self.nft(
            "add table inet kube\n\
             add chain inet kube forward { type filter hook forward priority 0; }\n\
             add rule inet kube forward ct state new counter\n",
        )
    }
}

/// Opens so many UDP flows from an address of the client's, one a port, and answers each.
pub fn answered_flows(
    server: &Namespace,
    to: SocketAddr,
    client: &Namespace,
    from: IpAddr,
    count: usize,
) -> Result<()> {
    let listening = server.enter(|| Ok(UdpSocket::bind(to)?))?;
    listening.set_read_timeout(Some(HEARD_WITHIN))?;
    client.enter(|| {
        for port in (1024..=u16::MAX).take(count) {
            let socket = UdpSocket::bind((from, port))?;
            socket.send_to(&[1], to)?;
            let (_, peer) = listening.recv_from(&mut [0]).context("a datagram")?;
            listening.send_to(&[2], peer)?;
        }
        Ok(())
    })
}

/// What the agent's log says it adopted when it came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Adopted {
    /// Entries written: a connection between two pods is one at each.
    pub entries: usize,
    /// How long that took.
    pub took: Duration,
}

impl Adopted {
    /// Reads the log of the agent that runs, or ran last.
    pub fn read() -> Result<Self> {
        let log = log();
        let mut lines = log.lines();
        let line = lines
            .find(|line| line.contains("connections older than the attachment adopted"))
            .with_context(|| format!("nothing adopted, the agent said:\n{log}"))?;
        let number = |name: &str| -> Result<usize> {
            let (_, rest) = line
                .split_once(name)
                .with_context(|| format!("no {name} in {line}"))?;
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            Ok(digits.parse()?)
        };
        Ok(Self {
            entries: number("adopted=")?,
            took: Duration::from_millis(number("took_ms=")?.try_into()?),
        })
    }
}
