//! Reads the kernel's connection table by netlink (`NFNL_SUBSYS_CTNETLINK`).

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink's messages and attributes are the kernel's, and grow with it"
)]

use std::io;

use agent_common::conntrack::State;
use agent_common::packet::transport::protocol;
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Status,
};
use netlink_packet_netfilter::{NetfilterMessageInner, NetfilterProtoFamily};

use super::{Tracked, Tuple};
use crate::netfilter::dump;

/// `enum tcp_conntrack` of `linux/netfilter/nf_conntrack_tcp.h`: both sides have opened.
const TCP_SYN_RECV: u8 = 2;
const TCP_ESTABLISHED: u8 = 3;
const TCP_FIN_WAIT: u8 = 4;
const TCP_CLOSE_WAIT: u8 = 5;
const TCP_LAST_ACK: u8 = 6;
/// `IP_CT_TCP_FLAG_BE_LIBERAL`: set where the kernel met a connection in its middle, so who opened
/// it is a guess (`tcp_new` of `net/netfilter/nf_conntrack_proto_tcp.c`).
const TCP_BE_LIBERAL: u8 = 0x08;

/// Every TCP, UDP and SCTP connection of this network namespace that both sides may still use and
/// whose originator is certain. Nothing while no rule of the node makes the kernel track any.
///
/// # Errors
/// The kernel does not list them: it has no connection tracking, or we may not ask.
pub fn list() -> io::Result<Vec<Tracked>> {
    let mut found = Vec::new();
    for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
        let everything = ConntrackMessage::Get(Vec::new());
        dump(family, everything, None, |message| {
            if let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message {
                found.extend(tracked(&attributes));
            }
        })?;
    }
    Ok(found)
}

/// A connection worth adopting, from its attributes.
fn tracked(attributes: &[ConntrackAttribute]) -> Option<Tracked> {
    let mut original = None;
    let mut reply = None;
    let mut status = Status::empty();
    let mut tcp = None;
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(parts) => original = tuple(parts),
            ConntrackAttribute::CtaTupleReply(parts) => reply = tuple(parts),
            ConntrackAttribute::CtaStatus(bits) => status = *bits,
            ConntrackAttribute::CtaProtoInfo(infos) => tcp = tcp.or(of_tcp(infos)),
            _ => {}
        }
    }
    let ((protocol, original), (_, reply)) = (original?, reply?);
    let is_answered = status.contains(Status::SeenReply);
    let state = match protocol {
        protocol::TCP => {
            let (state, is_guess) = tcp?;
            if is_guess {
                return None;
            }
            match state {
                TCP_SYN_RECV => State::Answered,
                TCP_ESTABLISHED | TCP_FIN_WAIT | TCP_CLOSE_WAIT | TCP_LAST_ACK => {
                    State::Established
                }
                // Its first packet is judged as any other.
                _ => return None,
            }
        }
        protocol::UDP | protocol::SCTP if is_answered => State::Established,
        protocol::UDP => State::Opening,
        _ => return None,
    };
    Some(Tracked {
        protocol,
        original,
        reply,
        state,
    })
}

/// The state of a TCP connection, and whether its direction is a guess.
fn of_tcp(infos: &[ProtoInfo]) -> Option<(u8, bool)> {
    let mut state = None;
    let mut is_guess = false;
    for info in infos {
        let ProtoInfo::TCP(parts) = info else {
            continue;
        };
        for part in parts {
            match part {
                ProtoInfoTCP::State(number) => state = Some(*number),
                ProtoInfoTCP::OriginalFlags(flags) => {
                    is_guess |= flags.flags & TCP_BE_LIBERAL != 0;
                }
                _ => {}
            }
        }
    }
    Some((state?, is_guess))
}

fn tuple(parts: &[netlink_packet_netfilter::conntrack::Tuple]) -> Option<(u8, Tuple)> {
    use netlink_packet_netfilter::conntrack::Tuple as Part;

    let (mut source, mut destination) = (None, None);
    let (mut protocol, mut source_port, mut destination_port) = (None, None, None);
    for part in parts {
        match part {
            Part::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(address) => source = Some(*address),
                        IPTuple::DestinationAddress(address) => destination = Some(*address),
                        _ => {}
                    }
                }
            }
            Part::Proto(fields) => {
                for field in fields {
                    match field {
                        ProtoTuple::Protocol(number) => protocol = Some(u8::from(*number)),
                        ProtoTuple::SourcePort(port) => source_port = Some(*port),
                        ProtoTuple::DestinationPort(port) => destination_port = Some(*port),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let tuple = Tuple {
        source: source?,
        destination: destination?,
        source_port: source_port?,
        destination_port: destination_port?,
    };
    Some((protocol?, tuple))
}
