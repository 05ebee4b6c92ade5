//! Frames by hand: well-formed ones, and any way of not being so.

use std::net::IpAddr;

/// IP protocol numbers.
pub mod protocol {
    pub use agent_common::packet::transport::protocol::*;
}

/// A frame to be: an IP packet with all that may surround its payload.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Source and destination: of one family.
    pub addresses: (IpAddr, IpAddr),
    /// Protocol of the payload.
    pub protocol: u8,
    /// Transport header and data.
    pub payload: Vec<u8>,
    /// Time to live, or hop limit.
    pub hop_limit: u8,
    /// IPv4 options; cut or filled up to a multiple of four bytes, at most 40.
    pub options: Vec<u8>,
    /// IPv6 extension headers: kind and what follows its first two bytes.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// Fragment offset in units of eight bytes, and whether more follow. On IPv6 a fragment header
    /// behind the other extensions.
    pub fragment: Option<(u16, bool)>,
    /// Which packet a fragment is of.
    pub identification: u16,
    /// What the length fields say beyond the truth.
    pub lie: i16,
}

/// Bytes of the Ethernet header.
const ETHERNET_BYTES: usize = 14;

impl Frame {
    /// A packet without transport header.
    pub fn new(from: IpAddr, to: IpAddr, protocol: u8, payload: Vec<u8>) -> Self {
        Self {
            addresses: (from, to),
            protocol,
            payload,
            hop_limit: 64,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            identification: 0x1234,
            lie: 0,
        }
    }

    /// A TCP segment.
    pub fn tcp(from: (IpAddr, u16), to: (IpAddr, u16), flags: u8) -> Self {
        let mut payload = ports(from.1, to.1);
        payload.extend([
            0,
            0,
            0,
            1,
            0,
            0,
            0,
            0,
            5 << 4,
            flags,
            0xff,
            0xff,
            0,
            0,
            0,
            0,
        ]);
        Self::new(from.0, to.0, protocol::TCP, payload)
    }

    /// A UDP datagram.
    pub fn udp(from: (IpAddr, u16), to: (IpAddr, u16)) -> Self {
        let mut payload = ports(from.1, to.1);
        payload.extend([0, 12, 0, 0, b'p', b'i', b'n', b'g']);
        Self::new(from.0, to.0, protocol::UDP, payload)
    }

    /// An SCTP packet that begins with a chunk of this type.
    pub fn sctp(from: (IpAddr, u16), to: (IpAddr, u16), chunk: u8) -> Self {
        let mut payload = ports(from.1, to.1);
        payload.extend([0, 0, 0, 0, 0, 0, 0, 0, chunk, 0, 0, 4]);
        Self::new(from.0, to.0, protocol::SCTP, payload)
    }

    /// An ICMP message of the addresses' family, with an identifier and sequence number 1.
    pub fn icmp(from: IpAddr, to: IpAddr, kind: u8, code: u8, identifier: u16) -> Self {
        let [i0, i1] = identifier.to_be_bytes();
        let protocol = if from.is_ipv4() {
            protocol::ICMP
        } else {
            protocol::ICMPV6
        };
        Self::new(from, to, protocol, vec![kind, code, 0, 0, i0, i1, 0, 1])
    }

    /// An ICMP message that quotes a packet, as much of it as `quoted` bytes from its IP header on.
    pub fn icmp_error(from: IpAddr, kind: u8, code: u8, about: &Self, quoted: usize) -> Self {
        let mut message = Self::icmp(from, about.addresses.0, kind, code, 0);
        let packet = about.bytes().split_off(ETHERNET_BYTES);
        message.payload.extend(packet.iter().take(quoted));
        message
    }

    /// An ICMP error that says a packet was too big for a link.
    pub fn too_big(from: IpAddr, about: &Self) -> Self {
        let (kind, code) = if from.is_ipv4() { (3, 4) } else { (2, 0) };
        Self::icmp_error(from, kind, code, about, usize::MAX)
    }

    /// An ICMP echo request.
    pub fn echo_request(from: IpAddr, to: IpAddr, identifier: u16) -> Self {
        let kind = if from.is_ipv4() { 8 } else { 128 };
        Self::icmp(from, to, kind, 0, identifier)
    }

    /// An ICMP echo reply.
    pub fn echo_reply(from: IpAddr, to: IpAddr, identifier: u16) -> Self {
        let kind = if from.is_ipv4() { 0 } else { 129 };
        Self::icmp(from, to, kind, 0, identifier)
    }

    /// An ARP request of somebody who has no address yet.
    pub fn arp() -> Vec<u8> {
        Self::arp_of(1, [0; 4], [0; 4])
    }

    /// An ARP packet: 1 asks, 2 answers; whose protocol addresses it shows.
    pub fn arp_of(operation: u16, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let mut bytes = ethernet(0x0806);
        bytes.extend([0, 1, 8, 0, 6, 4]);
        bytes.extend(operation.to_be_bytes());
        bytes.extend([2, 0, 0, 0, 0, 2]);
        bytes.extend(sender);
        bytes.extend([0; 6]);
        bytes.extend(target);
        bytes
    }

    /// With this hop limit.
    #[must_use]
    pub fn with_hop_limit(mut self, hop_limit: u8) -> Self {
        self.hop_limit = hop_limit;
        self
    }

    /// With one more IPv6 extension header.
    #[must_use]
    pub fn with_extension(mut self, kind: u8, body: Vec<u8>) -> Self {
        self.extensions.push((kind, body));
        self
    }

    /// As a fragment.
    #[must_use]
    pub fn with_fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = Some((offset, more));
        self
    }

    /// Of this packet, when it is a fragment.
    #[must_use]
    pub fn with_identification(mut self, identification: u16) -> Self {
        self.identification = identification;
        self
    }

    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        match self.addresses {
            (IpAddr::V4(from), IpAddr::V4(to)) => self.v4(from.octets(), to.octets()),
            (from, to) => self.v6(octets(from), octets(to)),
        }
    }

    fn v4(&self, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
        let mut options = self.options.clone();
        options.truncate(40);
        options.resize(options.len().next_multiple_of(4), 0);
        let header = 20 + options.len();
        let (offset, more) = self.fragment.unwrap_or((0, false));
        let fragment = offset & 0x1fff | if more { 0x2000 } else { 0 };
        let mut bytes = ethernet(0x0800);
        bytes.extend([0x40 | (header / 4).to_le_bytes()[0], 0]);
        bytes.extend(self.length(header + self.payload.len()));
        bytes.extend(self.identification.to_be_bytes());
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([self.hop_limit, self.protocol, 0, 0]);
        bytes.extend(from);
        bytes.extend(to);
        bytes.extend(options);
        bytes.extend(&self.payload);
        bytes
    }

    fn v6(&self, from: [u8; 16], to: [u8; 16]) -> Vec<u8> {
        let mut extensions = self.extensions.clone();
        if let Some((offset, more)) = self.fragment {
            let mut body = (offset << 3 | u16::from(more)).to_be_bytes().to_vec();
            body.extend(u32::from(self.identification).to_be_bytes());
            extensions.push((44, body));
        }
        let mut chain = Vec::new();
        for (place, (kind, body)) in extensions.iter().enumerate() {
            let next = extensions
                .get(place + 1)
                .map_or(self.protocol, |next| next.0);
            let mut header = vec![next, 0];
            header.extend(body);
            // Authentication headers count in fours, minus two; the others in eights, minus one.
            let (unit, less) = if *kind == 51 { (4, 2) } else { (8, 1) };
            header.resize(header.len().next_multiple_of(8).max(8), 0);
            let stated = (header.len() / unit - less).to_le_bytes();
            if let (Some(length), [stated, ..]) = (header.get_mut(1), stated)
                && *kind != 44
            {
                *length = stated;
            }
            chain.extend(header);
        }
        let mut bytes = ethernet(0x86dd);
        bytes.extend([0x60, 0, 0, 0]);
        bytes.extend(self.length(chain.len() + self.payload.len()));
        let first = extensions.first().map_or(self.protocol, |first| first.0);
        bytes.extend([first, self.hop_limit]);
        bytes.extend(from);
        bytes.extend(to);
        bytes.extend(chain);
        bytes.extend(&self.payload);
        bytes
    }

    fn length(&self, truth: usize) -> [u8; 2] {
        u16::try_from(truth)
            .unwrap_or(u16::MAX)
            .wrapping_add_signed(self.lie)
            .to_be_bytes()
    }
}

fn ethernet(ethertype: u16) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    bytes.extend(ethertype.to_be_bytes());
    bytes
}

fn ports(from: u16, to: u16) -> Vec<u8> {
    [from.to_be_bytes(), to.to_be_bytes()].concat()
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
