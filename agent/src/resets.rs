//! Tells both ends of a TCP connection that a change has cut, instead of the silence that would
//! leave them waiting for minutes. Only with `--on-cut reset`.
//!
//! The kernel reports the packet a connection was cut with, once. Its numbers are what the two ends
//! expect next, so they believe the resets (RFC 5961 §3.2). The node sends them: its own packets
//! pass the programs, and netfilter translates them as it did the connection's.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use agent_common::event::{FlowEvent, event_flags};
use agent_common::packet::transport::protocol;
use agent_common::packet::transport::tcp_flags::{ACK, RST, SYN};
use etherparse::PacketBuilder;
use etherparse::err::packet::BuildWriteError;
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with,
};
use tracing::warn;
use zerocopy::FromBytes as _;

use crate::reconcile::{Record, Records};

/// As many routers as anything else that the node sends.
const HOP_LIMIT: u8 = 64;

/// A reset to one end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Reset {
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
}

/// The resets that answer a record: none, unless a TCP connection was cut with its packet.
fn resets(record: &[u8]) -> Vec<Reset> {
    let Ok((event, _later)) = FlowEvent::read_from_prefix(record) else {
        return Vec::new();
    };
    if event.flags & event_flags::CUT == 0
        || event.protocol != protocol::TCP
        // Who still opens a connection learns what anybody does who is refused.
        || event.detail & (SYN | ACK) != ACK
        // A reset is never answered by one.
        || event.detail & RST != 0
    {
        return Vec::new();
    }
    let local = SocketAddr::new(event.local.into(), event.local_port);
    let peer = SocketAddr::new(event.peer.into(), event.peer_port);
    let (sender, receiver) = if event.flags & event_flags::FROM_POD == 0 {
        (peer, local)
    } else {
        (local, peer)
    };
    let to_sender = Reset {
        from: receiver,
        to: sender,
        sequence: event.acknowledgement,
    };
    let to_receiver = |sequence| Reset {
        from: sender,
        to: receiver,
        sequence,
    };
    // A keepalive probe shows the number before the one that is expected.
    let next = event.sequence.wrapping_add(1);
    vec![to_sender, to_receiver(event.sequence), to_receiver(next)]
}

impl Reset {
    /// The whole IP packet; `None` when its ends are of different families.
    fn packet(&self) -> Option<Result<Vec<u8>, BuildWriteError>> {
        let ip = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                PacketBuilder::ipv4(from.octets(), to.octets(), HOP_LIMIT)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                PacketBuilder::ipv6(from.octets(), to.octets(), HOP_LIMIT)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        };
        let tcp = ip.tcp(self.from.port(), self.to.port(), self.sequence, 0);
        let tcp = tcp.rst();
        let mut packet = Vec::with_capacity(tcp.size(0));
        Some(tcp.write(&mut packet, &[]).map(|()| packet))
    }
}

/// Sends resets.
#[derive(Debug)]
pub struct Resets {
    v4: OwnedFd,
    v6: OwnedFd,
    failed: u64,
}

impl Resets {
    /// Opens the sockets they go out by.
    ///
    /// # Errors
    /// `CAP_NET_RAW` is missing, or one of the address families.
    pub fn open() -> io::Result<Self> {
        let raw = |family| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            // Protocol RAW: the packets come with their IP header (raw(7)).
            socket_with(family, SocketType::RAW, flags, Some(ipproto::RAW))
        };
        Ok(Self {
            v4: raw(AddressFamily::INET)?,
            v6: raw(AddressFamily::INET6)?,
            failed: 0,
        })
    }

    /// Answers what is cut until the agent stops.
    pub async fn run(mut self, mut records: Records) {
        while let Some(record) = records.next().await {
            match record {
                Record::Event(bytes) => self.answer(&bytes),
                Record::Lost(lost) => {
                    warn!(lost, "reports lost: what was cut with them ends in silence");
                }
            }
        }
    }

    fn answer(&mut self, record: &[u8]) {
        for reset in resets(record) {
            if let Err(error) = self.send(&reset) {
                self.failed += 1;
                // A cause that lasts is said now and then, not for each connection.
                if self.failed.is_power_of_two() {
                    let Reset { from, to, .. } = reset;
                    let failed = self.failed;
                    warn!(%from, %to, %error, failed, "a TCP reset could not be sent");
                }
            }
        }
    }

    fn send(&self, reset: &Reset) -> io::Result<()> {
        let Some(packet) = reset.packet() else {
            return Ok(());
        };
        let packet = packet.map_err(io::Error::other)?;
        let socket = if reset.to.is_ipv4() {
            &self.v4
        } else {
            &self.v6
        };
        // A port means a protocol here (raw(7)).
        let to = SocketAddr::new(reset.to.ip(), 0);
        sendto(socket, &packet, SendFlags::empty(), &to)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use agent_common::Address;
    use etherparse::{IpSlice, SlicedPacket, TransportSlice};
    use zerocopy::IntoBytes as _;

    use super::*;

    const POD: ([u8; 4], u16) = ([10, 0, 0, 1], 40_000);
    const PEER: ([u8; 4], u16) = ([10, 0, 0, 2], 8080);

    /// A segment from the pod.
    fn cut(flags: u8) -> FlowEvent {
        FlowEvent {
            local: Address::from_v4(POD.0),
            local_port: POD.1,
            peer: Address::from_v4(PEER.0),
            peer_port: PEER.1,
            protocol: protocol::TCP,
            detail: flags,
            sequence: 1_000,
            acknowledgement: 2_000,
            flags: event_flags::CUT | event_flags::FROM_POD,
            ..FlowEvent::default()
        }
    }

    /// Who is told, and with which numbers.
    fn told(event: &FlowEvent) -> Vec<(u16, u32)> {
        let all = resets(event.as_bytes());
        all.iter()
            .map(|reset| (reset.to.port(), reset.sequence))
            .collect()
    }

    #[test]
    fn each_end_is_told_with_the_number_it_expects() {
        let both = [(POD.1, 2_000), (PEER.1, 1_000), (PEER.1, 1_001)];
        assert_eq!(told(&cut(ACK)), both);
        let mut from_peer = cut(ACK);
        from_peer.flags = event_flags::CUT;
        let turned = [(PEER.1, 2_000), (POD.1, 1_000), (POD.1, 1_001)];
        assert_eq!(told(&from_peer), turned);
    }

    #[test]
    fn only_open_connections_that_are_cut_are_answered_and_no_reset_ever() {
        let uncut = FlowEvent {
            flags: event_flags::FROM_POD,
            ..cut(ACK)
        };
        let datagram = FlowEvent {
            protocol: protocol::UDP,
            ..cut(ACK)
        };
        for event in [uncut, datagram, cut(RST | ACK), cut(SYN), cut(SYN | ACK)] {
            assert_eq!(told(&event), [], "{event:?}");
        }
        assert_eq!(resets(&cut(ACK).as_bytes()[1..]), [], "too short");
    }

    #[test]
    fn packets_are_whole_in_both_families() {
        let families: [[&str; 2]; 2] =
            [["10.0.0.1:1", "10.0.0.2:2"], ["[fd00::1]:1", "[fd00::2]:2"]];
        for [from, to] in families {
            let reset = Reset {
                from: from.parse().unwrap(),
                to: to.parse().unwrap(),
                sequence: 7,
            };
            let bytes = reset.packet().unwrap().unwrap();
            let packet = SlicedPacket::from_ip(&bytes).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
                panic!("{packet:?}");
            };
            assert_eq!((tcp.source_port(), tcp.destination_port()), (1, 2));
            assert_eq!(tcp.sequence_number(), 7);
            assert!(tcp.rst() && !tcp.ack() && !tcp.syn());
            let sum = match IpSlice::from_slice(&bytes).unwrap() {
                IpSlice::Ipv4(ip) => {
                    let ip = ip.header();
                    tcp.calc_checksum_ipv4(ip.source(), ip.destination())
                }
                IpSlice::Ipv6(ip) => {
                    let ip = ip.header();
                    tcp.calc_checksum_ipv6(ip.source(), ip.destination())
                }
            };
            assert_eq!(tcp.checksum(), sum.unwrap());
        }
        let odd = Reset {
            from: "10.0.0.1:1".parse().unwrap(),
            to: "[fd00::2]:2".parse().unwrap(),
            sequence: 0,
        };
        assert!(odd.packet().is_none());
    }
}
