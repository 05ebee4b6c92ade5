//! Answers whoever still speaks on a TCP connection that a change has cut, as a closed port would,
//! instead of the silence that would leave them waiting for minutes. Only with `--on-cut reset`.
//!
//! The kernel reports a connection's first refused segments. What a segment acknowledges is the
//! number its sender expects next, so it believes the reset (RFC 9293 §3.10.7.1, RFC 5961 §3.2), and
//! nothing of the segment reaches the other end. The node sends it: its own resets pass the
//! programs, and netfilter translates them as it did the connection's. The route is the
//! receiver's: a rule that routes by the pod's address is not asked.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use agent_common::Reason;
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

/// A reset to who has sent a segment, as if from whom it was for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Reset {
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
}

impl Reset {
    /// The answer to a record: none, unless it is there to be answered.
    fn to(record: &[u8]) -> Option<Self> {
        let (event, _later) = FlowEvent::read_from_prefix(record).ok()?;
        // What is refused for want of something may be allowed a moment later.
        let is_by_policy = matches!(
            Reason::from_number(event.reason),
            Some(
                Reason::IsolatedNoRule
                    | Reason::DenyRule
                    | Reason::ServiceNone
                    | Reason::ServiceUnseen
            )
        );
        if event.flags & event_flags::TELL == 0
            || event.protocol != protocol::TCP
            || !is_by_policy
            // A reset is never answered by one, and who still opens a connection learns what
            // anybody does who is refused.
            || event.detail & (SYN | RST | ACK) != ACK
        {
            return None;
        }
        let local = SocketAddr::new(event.local.into(), event.local_port);
        let peer = SocketAddr::new(event.peer.into(), event.peer_port);
        let (from, to) = if event.flags & event_flags::FROM_POD == 0 {
            (local, peer)
        } else {
            (peer, local)
        };
        Some(Self {
            from,
            to,
            sequence: event.acknowledgement,
        })
    }

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
    /// `None` on a node without IPv6.
    v6: Option<OwnedFd>,
    failed: u64,
}

impl Resets {
    /// Opens the sockets they go out by.
    ///
    /// # Errors
    /// `CAP_NET_RAW` is missing.
    pub fn open() -> io::Result<Self> {
        let raw = |family| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            // Protocol RAW: the packets come with their IP header (raw(7)).
            socket_with(family, SocketType::RAW, flags, Some(ipproto::RAW))
        };
        let v6 = match raw(AddressFamily::INET6) {
            Ok(socket) => Some(socket),
            Err(rustix::io::Errno::AFNOSUPPORT) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            v4: raw(AddressFamily::INET)?,
            v6,
            failed: 0,
        })
    }

    /// Answers until the agent stops.
    pub async fn run(mut self, mut records: Records) {
        while let Some(record) = records.next().await {
            match record {
                Record::Event(bytes) => self.answer(&bytes),
                // Who hears nothing sends its segment again, and that is reported, too. So is what
                // cannot be sent now.
                Record::Lost(lost) => warn!(lost, "reports lost: some resets are sent later"),
            }
        }
    }

    fn answer(&mut self, record: &[u8]) {
        let Some(reset) = Reset::to(record) else {
            return;
        };
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

    fn send(&self, reset: &Reset) -> io::Result<()> {
        let socket = match reset.to {
            SocketAddr::V4(_) => Some(&self.v4),
            SocketAddr::V6(_) => self.v6.as_ref(),
        };
        let (Some(socket), Some(packet)) = (socket, reset.packet()) else {
            return Ok(());
        };
        let packet = packet.map_err(io::Error::other)?;
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
            acknowledgement: 2_000,
            reason: Reason::IsolatedNoRule.number(),
            flags: event_flags::TELL | event_flags::FROM_POD,
            ..FlowEvent::default()
        }
    }

    #[test]
    fn the_sender_is_told_with_the_number_it_expects() {
        let pod = SocketAddr::from(POD);
        let peer = SocketAddr::from(PEER);
        let answer = |event: FlowEvent| Reset::to(event.as_bytes()).unwrap();
        let to_pod = Reset {
            from: peer,
            to: pod,
            sequence: 2_000,
        };
        assert_eq!(answer(cut(ACK)), to_pod);
        let mut from_peer = cut(ACK);
        from_peer.flags = event_flags::TELL;
        let to_peer = Reset {
            from: pod,
            to: peer,
            sequence: 2_000,
        };
        assert_eq!(answer(from_peer), to_peer);
    }

    #[test]
    fn only_segments_that_policy_cut_are_answered_and_no_reset_ever() {
        let untold = FlowEvent {
            flags: event_flags::FROM_POD,
            ..cut(ACK)
        };
        let datagram = FlowEvent {
            protocol: protocol::UDP,
            ..cut(ACK)
        };
        let for_want_of_room = FlowEvent {
            reason: Reason::FailClosed.number(),
            ..cut(ACK)
        };
        let odd = [cut(0), cut(RST | ACK), cut(SYN), cut(SYN | ACK)];
        for event in odd.into_iter().chain([untold, datagram, for_want_of_room]) {
            assert_eq!(Reset::to(event.as_bytes()), None, "{event:?}");
        }
        assert_eq!(Reset::to(&cut(ACK).as_bytes()[1..]), None, "too short");
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
