//! First packets of flows, made by hand, and their recognition where they arrive.

use std::net::IpAddr;

use agent_policy::model::Protocol;

use super::sctp;

/// A flow's first packet, in five numbers.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Flow {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
}

/// Length of an IPv4 header without options.
const V4_HEADER: u16 = 20;
/// Initial hop limit.
const HOPS: u8 = 64;

/// The whole IP packet that opens a flow: a SYN, a datagram, an INIT.
pub fn first_packet(flow: &Flow) -> Vec<u8> {
    let payload = match flow.protocol {
        Protocol::TCP => checked(flow, syn(flow), 16),
        Protocol::UDP => checked(flow, datagram(flow, b"picket"), 6),
        _ => sctp::init(flow.source_port, flow.destination_port, 1),
    };
    let length = u16::try_from(payload.len()).expect("first packets are short");
    let mut packet = match (flow.source, flow.destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(length.to_be_bytes());
            header.extend([flow.protocol.0, HOPS]);
            header.extend(source.octets());
            header.extend(destination.octets());
            header
        }
        (source, destination) => {
            // Checksum and identification are filled in by the kernel's raw socket.
            let mut header = vec![0x45, 0];
            header.extend((V4_HEADER + length).to_be_bytes());
            header.extend([0, 0, 0x40, 0, HOPS, flow.protocol.0, 0, 0]);
            header.extend(octets(source));
            header.extend(octets(destination));
            header
        }
    };
    packet.extend(payload);
    packet
}

/// The flow an IP packet belongs to; `None` for what [`first_packet`] does not make.
pub fn flow_of(packet: &[u8]) -> Option<Flow> {
    let (source, destination, protocol, payload) = match packet.first()? >> 4 {
        4 => {
            let address = |at: usize| {
                let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
                Some(IpAddr::from(octets))
            };
            let payload = sctp::without_ip_header(packet)?;
            (address(12)?, address(16)?, *packet.get(9)?, payload)
        }
        6 => {
            let address = |at: usize| {
                let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
                Some(IpAddr::from(octets))
            };
            (
                address(8)?,
                address(24)?,
                *packet.get(6)?,
                packet.get(40..)?,
            )
        }
        _ => return None,
    };
    let protocol = Protocol(protocol);
    let port = |at: usize| {
        Some(u16::from_be_bytes(
            payload.get(at..at + 2)?.try_into().ok()?,
        ))
    };
    if !protocol.has_ports() {
        return None;
    }
    Some(Flow {
        source,
        destination,
        protocol,
        source_port: port(0)?,
        destination_port: port(2)?,
    })
}

fn ports(flow: &Flow) -> Vec<u8> {
    [
        flow.source_port.to_be_bytes(),
        flow.destination_port.to_be_bytes(),
    ]
    .concat()
}

fn syn(flow: &Flow) -> Vec<u8> {
    let mut segment = ports(flow);
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0]); // sequence and acknowledgement numbers
    segment.extend([5 << 4, 2, 0xff, 0xff, 0, 0, 0, 0]); // length, SYN, window, checksum, urgent
    segment
}

fn datagram(flow: &Flow, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + content.len()).expect("first packets are short");
    let mut datagram = ports(flow);
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(content);
    datagram
}

/// Puts the checksum over the pseudo-header in its place (RFC 9293 §3.1, RFC 768, RFC 8200 §8.1).
fn checked(flow: &Flow, mut payload: Vec<u8>, place: usize) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("first packets are short");
    let mut summed = octets(flow.source);
    summed.extend(octets(flow.destination));
    summed.extend([0, flow.protocol.0]);
    summed.extend(length.to_be_bytes());
    summed.extend(&payload);
    let mut sum: u32 = summed
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
            [high] => u32::from(*high) << 8,
            _ => 0,
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = u16::try_from(sum).map_or(0, |sum| !sum).to_be_bytes();
    for (byte, check) in payload.iter_mut().skip(place).zip(sum) {
        *byte = check;
    }
    payload
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_packet_is_recognised_where_it_arrives() {
        for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
                let flow = Flow {
                    source: source.parse().unwrap(),
                    destination: destination.parse().unwrap(),
                    protocol,
                    source_port: 61_000,
                    destination_port: 8080,
                };
                assert_eq!(flow_of(&first_packet(&flow)), Some(flow));
            }
        }
    }
}
