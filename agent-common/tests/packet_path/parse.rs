//! What bytes are taken for: never more than they are, and the same as by a plain reading.

use std::net::IpAddr;

use agent_common::packet::{
    Fragmentation, Frame as Parsed, Head, Headers, Packet, ParseError, icmp::Echo, parse,
};
use proptest::prelude::*;

use crate::packets::Frame;
use crate::world::families;

/// Refuses to say more than it has, and notices whoever reads past what offsets may be.
struct Strict<'a>(&'a [u8]);

impl Packet for Strict<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        assert!(
            offset + N <= agent_common::packet::OFFSET_MASK,
            "offset {offset} is beyond what the kernel's side can reach"
        );
        self.0.load(offset)
    }

    fn head<const N: usize>(&self) -> Option<impl Head> {
        self.0.first_chunk::<N>()
    }

    fn length(&self) -> u32 {
        self.0.length()
    }
}

fn headers(frame: &Frame) -> Result<Headers, ParseError> {
    match parse(frame.bytes().as_slice())? {
        Parsed::Ip(headers) => Ok(headers),
        Parsed::Arp => panic!("{frame:?} was taken for ARP"),
    }
}

/// Source, destination, protocol, both ports, and TCP flags or ICMP type.
type Reading = (Vec<u8>, Vec<u8>, u8, u16, u16, u8);

/// A second reading of the standards: slow, on slices, with `?` for everything that is missing.
fn plain_reading(bytes: &[u8]) -> Option<Reading> {
    let frame = bytes.get(14..)?;
    let word =
        |from: &[u8], at: usize| Some(u16::from_be_bytes([*from.get(at)?, *from.get(at + 1)?]));
    let (source, destination, mut protocol, mut rest, mut is_later);
    let mut has_more = false;
    match word(bytes, 12)? {
        0x0800 => {
            let header = usize::from(frame.first()? & 15) * 4;
            let total = usize::from(word(frame, 2)?);
            if frame.first()? >> 4 != 4 || header < 20 || total < header {
                return None;
            }
            let packet = frame.get(..total)?;
            source = packet.get(12..16)?.to_vec();
            destination = packet.get(16..20)?.to_vec();
            protocol = *packet.get(9)?;
            is_later = word(packet, 6)? & 0x1fff != 0;
            has_more = word(packet, 6)? & 0x2000 != 0;
            rest = packet.get(header..)?;
        }
        0x86dd => {
            if frame.first()? >> 4 != 6 {
                return None;
            }
            let packet = frame.get(..40 + usize::from(word(frame, 4)?))?;
            source = packet.get(8..24)?.to_vec();
            destination = packet.get(24..40)?.to_vec();
            let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
            if source.starts_with(&mapped) || destination.starts_with(&mapped) {
                return None;
            }
            protocol = *packet.get(6)?;
            rest = packet.get(40..)?;
            is_later = false;
            let (mut followed, mut is_fragment) = (0, false);
            while !is_later && [0, 43, 44, 51, 60].contains(&protocol) {
                let length = match protocol {
                    44 => 8,
                    51 => usize::from(*rest.get(1)?) * 4 + 8,
                    _ => usize::from(*rest.get(1)?) * 8 + 8,
                };
                rest.get(..8)?;
                if followed == 8 || protocol == 0 && followed > 0 || protocol == 43 && rest[3] != 0
                {
                    return None;
                }
                if protocol == 44 && std::mem::replace(&mut is_fragment, true) {
                    return None;
                }
                is_later = protocol == 44 && word(rest, 2)? >> 3 != 0;
                has_more |= protocol == 44 && word(rest, 2)? & 1 != 0;
                protocol = rest[0];
                rest = rest.get(length..)?;
                followed += 1;
            }
        }
        _ => return None,
    }
    if is_later {
        return Some((source, destination, protocol, 0, 0, 0));
    }
    let is_own_icmp = (protocol == 1) == (source.len() == 4);
    let (from, to, detail) = match protocol {
        6 => {
            let header = usize::from(rest.get(12)? >> 4) * 4;
            if header < 20 || header > rest.len() {
                return None;
            }
            rest.get(..20)?;
            (word(rest, 0)?, word(rest, 2)?, rest[13])
        }
        17 => {
            rest.get(..8)?;
            (word(rest, 0)?, word(rest, 2)?, 0)
        }
        132 => {
            rest.get(..16)?;
            (word(rest, 0)?, word(rest, 2)?, rest[12])
        }
        1 | 58 => {
            rest.get(..8)?;
            let errors = if protocol == 1 {
                [3, 11, 12, 12]
            } else {
                [1, 2, 3, 4]
            };
            // Errors fit any link: none comes in pieces.
            if is_own_icmp && has_more && errors.contains(&rest[0]) {
                return None;
            }
            (0, 0, if is_own_icmp { rest[0] } else { 0 })
        }
        _ => (0, 0, 0),
    };
    Some((source, destination, protocol, from, to, detail))
}

prop_compose! {
    fn any_frame()(
        is_v6: bool,
        protocol in prop::sample::select(vec![1, 6, 17, 58, 132, 47, 59]),
        payload in prop::collection::vec(any::<u8>(), 0..40),
        first in prop::sample::select(vec![0_u8, 5 << 4, 6 << 4, 15 << 4, 4 << 4]),
        options in prop::collection::vec(any::<u8>(), 0..41),
        extensions in prop::collection::vec(
            (prop::sample::select(vec![0_u8, 43, 51, 60, 44]), prop::collection::vec(0_u8..2, 6..30)),
            0..10,
        ),
        // Most chains are in order.
        kept in prop::sample::select(vec![0_usize, 0, 0, 1, 1, 2, 9, 10]),
        fragment in prop::option::weighted(0.3, (0_u16..4, any::<bool>())),
        lie in prop::sample::select(vec![0_i16, 0, 0, 0, -1, 1, -20, 20, -8]),
        padding in 0_usize..8,
        cut in prop::option::weighted(0.3, 0_usize..120),
    ) -> Vec<u8> {
        let [v4, v6] = families();
        let family = if is_v6 { v6 } else { v4 };
        let mut payload = payload;
        if let Some(byte) = payload.get_mut(12) {
            *byte = first;
        }
        let mut extensions = extensions;
        extensions.truncate(kept);
        let frame = Frame {
            options,
            extensions,
            fragment,
            lie,
            ..Frame::new(family.pod, family.friend, protocol, payload)
        };
        let mut bytes = frame.bytes();
        bytes.resize(bytes.len() + padding, 0xee);
        if let Some(cut) = cut {
            bytes.truncate(cut);
        }
        bytes
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(4_000)
    ))]

    #[test]
    fn any_bytes_are_parsed_without_reading_past_them(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        ethertype in prop::sample::select(vec![[8_u8, 0], [0x86, 0xdd], [8, 6], [0, 1]]),
    ) {
        let mut bytes = bytes;
        if let Some(place) = bytes.get_mut(12..14) {
            place.copy_from_slice(&ethertype);
        }
        if let Ok(Parsed::Ip(headers)) = parse(&Strict(&bytes)) {
            prop_assert!(bytes.len() >= 34, "{headers:?}");
        }
    }

    #[test]
    fn frames_are_read_as_a_plain_reading_does(bytes in any_frame()) {
        let ours = match parse(&Strict(&bytes)) {
            Ok(Parsed::Ip(headers)) => Some((
                IpAddr::from(headers.source),
                IpAddr::from(headers.destination),
                headers.protocol,
                headers.source_port,
                headers.destination_port,
                headers.detail,
            )),
            Ok(Parsed::Arp) | Err(_) => None,
        };
        let address = |octets: Vec<u8>| -> IpAddr {
            match <[u8; 4]>::try_from(octets.as_slice()) {
                Ok(v4) => v4.into(),
                Err(_) => <[u8; 16]>::try_from(octets.as_slice()).unwrap().into(),
            }
        };
        let plain = plain_reading(&bytes)
            .map(|(from, to, a, b, c, d)| (address(from), address(to), a, b, c, d));
        prop_assert_eq!(ours, plain);
    }
}

#[test]
fn ports_are_found_behind_ipv4_options() {
    let [v4, _] = families();
    let mut frame = Frame::tcp((v4.pod, 1000), (v4.friend, 443), 2);
    for length in [0, 4, 40] {
        frame.options = vec![1; length];
        let headers = headers(&frame).unwrap();
        assert_eq!((headers.source_port, headers.destination_port), (1000, 443));
    }
}

#[test]
fn ports_are_found_behind_every_extension_header() {
    let [_, v6] = families();
    let frame = Frame::udp((v6.pod, 1000), (v6.friend, 443))
        .with_extension(0, vec![0; 6])
        .with_extension(60, vec![0; 14])
        .with_extension(43, vec![0; 6])
        .with_extension(51, vec![0; 22])
        .with_fragment(0, false);
    let headers = headers(&frame).unwrap();
    assert_eq!((headers.source_port, headers.destination_port), (1000, 443));
    assert!(headers.has_hop_by_hop && headers.has_fragment_header);
    assert_eq!(headers.fragmentation, Fragmentation::Whole, "RFC 6946");
}

#[test]
fn fragments_say_which_they_are_in_both_families() {
    for family in families() {
        let frame = Frame::udp((family.pod, 1), (family.friend, 2));
        let kind = |offset, more| headers(&frame.clone().with_fragment(offset, more)).unwrap();
        assert_eq!(kind(0, true).fragmentation, Fragmentation::First);
        assert_eq!(kind(0, true).destination_port, 2);
        for more in [true, false] {
            assert_eq!(kind(3, more).fragmentation, Fragmentation::Later);
            assert_eq!(kind(3, more).destination_port, 0, "that would be data");
        }
    }
}

#[test]
fn a_chain_longer_than_we_follow_is_malformed() {
    let [_, v6] = families();
    let mut frame = Frame::udp((v6.pod, 1), (v6.friend, 2));
    for _ in 0..9 {
        frame = frame.with_extension(60, vec![0; 6]);
    }
    assert_eq!(headers(&frame), Err(ParseError::ExtensionChain));
    frame.extensions.pop();
    assert_eq!(
        headers(&frame).map(|headers| headers.destination_port),
        Ok(2)
    );
    let long = Frame::udp((v6.pod, 1), (v6.friend, 2)).with_extension(60, vec![0; 1400]);
    assert_eq!(headers(&long), Err(ParseError::ExtensionChain));
}

#[test]
fn what_does_not_add_up_is_malformed() {
    let [v4, v6] = families();
    let v4_frame = Frame::tcp((v4.pod, 1), (v4.friend, 2), 2);
    let v6_frame = Frame::tcp((v6.pod, 1), (v6.friend, 2), 2);
    let lying = |mut frame: Frame, lie| {
        frame.lie = lie;
        headers(&frame)
    };
    assert_eq!(lying(v4_frame.clone(), 1), Err(ParseError::TotalLength));
    assert_eq!(lying(v6_frame.clone(), 1), Err(ParseError::TotalLength));
    assert_eq!(
        lying(v4_frame.clone(), -1),
        Err(ParseError::TransportTruncated)
    );
    assert_eq!(
        lying(v6_frame.clone(), -1),
        Err(ParseError::TransportTruncated)
    );
    assert_eq!(lying(v4_frame.clone(), -21), Err(ParseError::HeaderLength));
    for mapped in ["::ffff:10.1.0.2", "::ffff:0.0.0.0"] {
        let mut frame = v6_frame.bytes();
        let octets: std::net::Ipv6Addr = mapped.parse().unwrap();
        frame[22..38].copy_from_slice(&octets.octets());
        assert_eq!(parse(frame.as_slice()), Err(ParseError::MappedAddress));
    }
    let mut short_tcp = v4_frame.clone();
    short_tcp.payload[12] = 4 << 4;
    assert_eq!(headers(&short_tcp), Err(ParseError::TcpHeaderLength));
    let mut wrong_version = v4_frame.bytes();
    wrong_version[14] = 0x65;
    assert_eq!(parse(wrong_version.as_slice()), Err(ParseError::Version));
    let routed = v6_frame.with_extension(43, vec![0, 1, 0, 0, 0, 0]);
    assert_eq!(headers(&routed), Err(ParseError::Routing));
    assert_eq!(
        parse([0; 13].as_slice()),
        Err(ParseError::EthernetTruncated)
    );
    assert_eq!(parse([0; 60].as_slice()), Err(ParseError::Ethertype));
}

#[test]
fn ports_in_the_padding_behind_a_packet_are_not_its_ports() {
    let [v4, _] = families();
    let mut bytes = Frame::new(v4.pod, v4.friend, 17, Vec::new()).bytes();
    bytes.extend([0, 1, 0, 80, 0, 8, 0, 0]);
    assert_eq!(parse(bytes.as_slice()), Err(ParseError::TransportTruncated));
}

#[test]
fn segments_too_big_to_say_their_length_are_taken_as_long_as_they_are() {
    for family in families() {
        let mut frame = Frame::tcp((family.pod, 1), (family.friend, 80), 16);
        frame.payload.resize(70_000, 0);
        let mut bytes = frame.bytes();
        let length = if family.pod.is_ipv4() { 16..18 } else { 18..20 };
        bytes[length].fill(0);
        let Ok(Parsed::Ip(headers)) = parse(bytes.as_slice()) else {
            panic!("BIG TCP is TCP");
        };
        assert_eq!(headers.destination_port, 80);
    }
}

#[test]
fn echo_is_known_by_its_family() {
    for family in families() {
        let request = headers(&Frame::echo_request(family.pod, family.friend, 7)).unwrap();
        assert_eq!(request.echo, Some(Echo::Request(7)));
        let reply = headers(&Frame::echo_reply(family.pod, family.friend, 7)).unwrap();
        assert_eq!(reply.echo, Some(Echo::Reply(7)));
        let mut foreign = Frame::echo_request(family.pod, family.friend, 7);
        foreign.protocol = if family.pod.is_ipv4() { 58 } else { 1 };
        assert_eq!(headers(&foreign).unwrap().echo, None, "of the other family");
    }
}
