//! Headers of every shape, on real interfaces. The switch itself makes sure that the kernel says and
//! counts what the host does, to the byte; what is said is claimed here.

use std::net::IpAddr;

use agent_common::Reason;
use tests::lab::frames::switch::{Fate, Lying, Switch};
use tests::packets::{Frame, protocol};

use crate::shop::{
    ARRIVES, CLIENT, CLOSED, FAMILIES, FREE, Family, MALFORMED, NO_RULE, OWN_PORT, PORT, SERVER,
    SPOOFED, TRUSTED, V4, V6, open,
};

const SYN: u8 = 2;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// The client's first segment to a port of the server's. Every call is a connection of its own.
fn syn(family: Family, port: u16) -> Frame {
    Frame::tcp((family.client, OWN_PORT), (family.server, port), SYN)
}

fn datagram(family: Family, port: u16) -> Frame {
    Frame::udp((family.client, OWN_PORT), (family.server, port))
}

/// What becomes of what the client sends the server.
fn fate(switch: &mut Switch, frame: &Frame) -> Fate {
    fate_of(switch, &frame.bytes())
}

fn fate_of(switch: &mut Switch, frame: &[u8]) -> Fate {
    switch.send(CLIENT, SERVER, frame).unwrap()
}

/// The same connection may be opened any number of times: each SYN is judged as a known flow.
fn passes(fate: Fate) -> bool {
    matches!(fate, Fate::Arrives(..))
}

#[test]
fn ports_count_behind_ipv4_options_of_every_length() {
    let mut switch = open();
    for length in 0..=40 {
        for (port, arrives) in [(PORT, true), (CLOSED, false)] {
            let mut frame = syn(V4, port);
            // They look like ports, both of them.
            frame.options = [0, 80].repeat(20);
            frame.options.truncate(length);
            let fate = fate(&mut switch, &frame);
            assert_eq!(passes(fate), arrives, "{length} bytes, port {port}: {fate}");
        }
    }
}

#[test]
fn an_ipv4_header_is_at_least_twenty_bytes_and_ends_inside_its_packet() {
    let mut switch = open();
    for words in 0..16_u8 {
        let mut frame = syn(V4, PORT).bytes();
        frame[14] = 0x40 | words;
        // Behind a header of six words and more are four bytes less of the segment.
        let expected = if words == 5 { ARRIVES } else { MALFORMED };
        assert_eq!(fate_of(&mut switch, &frame), expected, "{words} words");
        let mut long = syn(V4, PORT);
        long.payload.extend([0; 80]);
        let mut long = long.bytes();
        long[14] = 0x40 | words;
        let judged = fate_of(&mut switch, &long);
        let ports_are_elsewhere = words > 5;
        assert!(
            words == 5 || judged == MALFORMED || (ports_are_elsewhere && judged == NO_RULE),
            "{words} words: {judged}"
        );
    }
}

#[test]
fn every_version_but_the_ethertypes_is_malformed() {
    let mut switch = open();
    for family in FAMILIES {
        for version in 0..16_u8 {
            let mut frame = syn(family, PORT).bytes();
            let own = frame[14] >> 4;
            frame[14] = version << 4 | frame[14] & 0xf;
            let arrives = passes(fate_of(&mut switch, &frame));
            assert_eq!(arrives, version == own, "{version} instead of {own}");
        }
    }
}

#[test]
fn ports_count_behind_eight_extension_headers_and_a_ninth_is_malformed() {
    let mut switch = open();
    for port in [PORT, CLOSED] {
        let mut frame = syn(V6, port);
        for count in 1..=12 {
            frame = frame.with_extension(DESTINATION, vec![0; 6 + 8 * (count % 3)]);
            let expected = match (count, port) {
                (9.., _) => MALFORMED,
                (_, PORT) => {
                    assert!(passes(fate(&mut switch, &frame)), "{count} headers");
                    continue;
                }
                _ => NO_RULE,
            };
            assert_eq!(fate(&mut switch, &frame), expected, "{count} headers");
        }
    }
}

#[test]
fn a_chain_of_extension_headers_without_an_end_in_reach_is_malformed() {
    let mut switch = open();
    let chain = |headers: &[(u8, usize)]| {
        headers.iter().fold(syn(V6, PORT), |frame, (kind, length)| {
            frame.with_extension(*kind, vec![0; *length])
        })
    };
    let sound: &[&[(u8, usize)]] = &[
        &[(HOP_BY_HOP, 6), (DESTINATION, 6), (ROUTING, 6)],
        &[(AUTHENTICATION, 22), (DESTINATION, 14)],
        &[(DESTINATION, 1_014)],
    ];
    for headers in sound {
        let fate = fate(&mut switch, &chain(headers));
        assert!(passes(fate), "{headers:?}: {fate}");
    }
    let endless: &[&[(u8, usize)]] = &[
        // RFC 8200 §4.3: hop-by-hop options come first or not at all.
        &[(DESTINATION, 6), (HOP_BY_HOP, 6)],
        &[(HOP_BY_HOP, 6), (HOP_BY_HOP, 6)],
        &[(DESTINATION, 1_400)],
    ];
    for headers in endless {
        assert_eq!(fate(&mut switch, &chain(headers)), MALFORMED, "{headers:?}");
    }
    let routed = syn(V6, PORT).with_extension(ROUTING, vec![0, 1, 0, 0, 0, 0]);
    assert_eq!(fate(&mut switch, &routed), MALFORMED, "not where it shows");
    // Each ends inside a header that says it is longer than the packet.
    for kind in [HOP_BY_HOP, ROUTING, AUTHENTICATION, DESTINATION] {
        for length in [3, 10, 255] {
            let mut frame = syn(V6, PORT).with_extension(kind, vec![0; 6]).bytes();
            frame[14 + 40 + 1] = length;
            let fate = fate_of(&mut switch, &frame);
            assert_eq!(fate, MALFORMED, "kind {kind}, length {length}");
        }
    }
}

#[test]
fn what_is_no_extension_header_is_judged_as_the_protocol_it_is() {
    let mut switch = open();
    // ESP (RFC 4303), no next header (RFC 8200 §4.7), and numbers nobody has.
    for kind in [50, 59, 135, 139, 140, 200, 253, 255] {
        let mut frame = syn(V6, PORT);
        frame.protocol = kind;
        assert_eq!(fate(&mut switch, &frame), NO_RULE, "{kind}");
        frame.addresses.0 = V6.trusted;
        let fate = switch.send(TRUSTED, SERVER, &frame.bytes()).unwrap();
        let expected = Fate::Arrives(Reason::NotIsolated, Reason::Rule);
        assert_eq!(fate, expected, "{kind}: a rule without ports");
    }
}

#[test]
fn a_packet_that_states_no_length_is_malformed_unless_no_field_could() {
    let mut switch = open();
    for family in FAMILIES {
        let mut frame = syn(family, PORT).bytes();
        let length = if family.client.is_ipv4() { 16 } else { 18 };
        frame[length..length + 2].fill(0);
        assert_eq!(fate_of(&mut switch, &frame), MALFORMED);
    }
    // RFC 2675: the length is in an option, and at least 65 536.
    for stated in [0_u32, 1, 28, 65_535, 65_536, u32::MAX] {
        let mut option = vec![0xc2, 4];
        option.extend(stated.to_be_bytes());
        let mut frame = syn(V6, PORT).with_extension(HOP_BY_HOP, option).bytes();
        frame[18..20].fill(0);
        assert_eq!(fate_of(&mut switch, &frame), MALFORMED, "{stated} bytes");
    }
}

#[test]
fn a_tagged_frame_is_judged_by_what_is_inside() {
    let mut switch = open();
    for family in FAMILIES {
        for kind in [[0x81, 0x00], [0x88, 0xa8]] {
            // Priority tags, VLANs, reserved ones.
            for tag in [0x0000_u16, 0xe000, 0x0001, 0x0064, 0x1fff, 0xffff] {
                for (port, arrives) in [(PORT, true), (CLOSED, false)] {
                    let frame = tagged(&syn(family, port).bytes(), kind, tag);
                    let fate = fate_of(&mut switch, &frame);
                    assert_eq!(passes(fate), arrives, "{kind:x?} {tag:#x}: {fate}");
                }
                let mut forged = syn(family, PORT);
                forged.addresses.0 = family.trusted;
                let forged = tagged(&forged.bytes(), kind, tag);
                assert_eq!(fate_of(&mut switch, &forged), SPOOFED);
            }
        }
    }
}

#[test]
fn a_tag_inside_a_tag_and_tags_of_other_kinds_are_malformed() {
    let mut switch = open();
    for family in FAMILIES {
        let frame = syn(family, PORT).bytes();
        for outer in [[0x81, 0x00], [0x88, 0xa8]] {
            for inner in [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00], [0x92, 0x00]] {
                let frame = tagged(&tagged(&frame, inner, 7), outer, 8);
                assert_eq!(fate_of(&mut switch, &frame), MALFORMED);
            }
        }
        for kind in [[0x91, 0x00], [0x92, 0x00], [0x88, 0xe7], [0x89, 0x26]] {
            assert_eq!(fate_of(&mut switch, &tagged(&frame, kind, 7)), MALFORMED);
        }
        // Shorter than a tag and the ethertype behind it: nothing to judge, nobody to get it.
        for length in 14..20 {
            let cut = &tagged(&frame, [0x81, 0x00], 7)[..length];
            assert_eq!(fate_of(&mut switch, cut), Fate::Lost, "{length} bytes");
        }
    }
}

/// A frame with a tag in front of its ethertype.
fn tagged(frame: &[u8], kind: [u8; 2], tag: u16) -> Vec<u8> {
    let (macs, rest) = frame.split_at(12);
    [macs, &kind, &tag.to_be_bytes(), rest].concat()
}

#[test]
fn ethertypes_that_we_do_not_read_are_malformed() {
    let mut switch = open();
    let frame = syn(V4, PORT).bytes();
    // Lengths (IEEE 802.3), MPLS, PPPoE, EAPOL, LLDP, MACsec, batman, loopback, the last.
    for ethertype in [
        0_u16, 46, 1500, 0x05dc, 0x0600, 0x8847, 0x8848, 0x8863, 0x8864, 0x888e, 0x88cc, 0x88e5,
        0x4305, 0x9000, 0xffff,
    ] {
        let mut frame = frame.clone();
        frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        assert_eq!(fate_of(&mut switch, &frame), MALFORMED, "{ethertype:#x}");
    }
}

#[test]
fn a_frame_that_was_cut_anywhere_is_malformed() {
    let mut switch = open();
    for family in FAMILIES {
        for frame in [
            syn(family, PORT),
            datagram(family, PORT),
            Frame::sctp((family.client, OWN_PORT), (family.server, PORT), 1),
        ] {
            let whole = frame.bytes();
            for length in 14..whole.len() {
                let fate = fate_of(&mut switch, &whole[..length]);
                assert_eq!(fate, MALFORMED, "{length} of {} bytes", whole.len());
            }
            assert!(passes(fate_of(&mut switch, &whole)));
        }
    }
}

#[test]
fn a_packet_that_honestly_ends_inside_its_transport_header_is_malformed() {
    let mut switch = open();
    for family in FAMILIES {
        for mut frame in [
            syn(family, PORT),
            Frame::udp((family.client, OWN_PORT), (family.server, PORT)),
            Frame::sctp((family.client, OWN_PORT), (family.server, PORT), 1),
            Frame::echo_request(family.client, family.server, 1),
        ] {
            let least = match frame.protocol {
                protocol::TCP => 20,
                protocol::SCTP => 16,
                _ => 8,
            };
            let whole = frame.payload.clone();
            for length in 0..least {
                frame.payload = whole[..length].to_vec();
                let fate = fate(&mut switch, &frame);
                assert_eq!(fate, MALFORMED, "{length} of {least} bytes");
                // What lies behind a packet is none of it.
                let mut padded = frame.bytes();
                padded.extend(&whole[length..]);
                assert_eq!(fate_of(&mut switch, &padded), MALFORMED, "padded");
            }
        }
    }
}

#[test]
fn a_packet_longer_than_its_frame_is_malformed_and_a_shorter_one_is_read_to_its_end() {
    let mut switch = open();
    for family in FAMILIES {
        for lie in [1, 2, 8, 1_000, i16::MAX] {
            let mut frame = syn(family, PORT);
            frame.lie = lie;
            assert_eq!(fate(&mut switch, &frame), MALFORMED, "{lie} bytes more");
        }
        let mut frame = syn(family, PORT);
        frame.payload.extend([0; 12]);
        for lie in -32..=0 {
            frame.lie = lie;
            let fate = fate(&mut switch, &frame);
            // The segment's header is whole.
            assert_eq!(passes(fate), lie >= -12, "{lie} bytes: {fate}");
        }
    }
}

#[test]
fn a_udp_length_says_nothing_about_whom_a_datagram_is_for() {
    let mut switch = open();
    for family in FAMILIES {
        for stated in [0_u16, 1, 7, 8, 11, 13, 1_500, u16::MAX] {
            for (port, arrives) in [(PORT, true), (CLOSED, false)] {
                let mut frame = datagram(family, port);
                frame.payload[4..6].copy_from_slice(&stated.to_be_bytes());
                let fate = fate(&mut switch, &frame);
                assert_eq!(passes(fate), arrives, "{stated} bytes: {fate}");
            }
        }
    }
}

#[test]
fn a_tcp_header_ends_inside_its_segment_or_is_malformed() {
    let mut switch = open();
    for family in FAMILIES {
        for words in 0..16_u8 {
            let mut frame = syn(family, PORT);
            frame.payload.extend([1; 12]);
            frame.payload[12] = words << 4;
            let fate = fate(&mut switch, &frame);
            // Of twenty bytes and twelve more.
            let is_sound = (5..=8).contains(&words);
            assert_eq!(passes(fate), is_sound, "{words} words: {fate}");
            assert!(is_sound || fate == MALFORMED, "{words} words: {fate}");
        }
    }
}

#[test]
fn port_zero_is_a_port_like_any_other() {
    let mut switch = open();
    for family in FAMILIES {
        for to in [0, PORT] {
            let (client, server) = ((family.client, 0), (family.server, to));
            for frame in [
                Frame::tcp(client, server, SYN),
                Frame::udp(client, server),
                Frame::sctp(client, server, 1),
            ] {
                let expected = if to == PORT { ARRIVES } else { NO_RULE };
                assert_eq!(fate(&mut switch, &frame), expected, "to port {to}");
                let mut trusted = frame;
                trusted.addresses.0 = family.trusted;
                let fate = switch.send(TRUSTED, SERVER, &trusted.bytes()).unwrap();
                assert!(passes(fate), "by a rule without ports: {fate}");
            }
        }
    }
}

#[test]
fn a_land_packet_reaches_nobody_but_its_sender() {
    let mut switch = open();
    for family in FAMILIES {
        // To the server's own address from the server's own, sent by another pod.
        let forged = Frame::tcp((family.server, PORT), (family.server, PORT), SYN);
        assert_eq!(fate(&mut switch, &forged), SPOOFED);
        // A pod may talk to itself; what is for it is not for whom it is sent to.
        let own = Frame::tcp((family.client, PORT), (family.client, PORT), SYN);
        assert_eq!(fate(&mut switch, &own), Fate::NotMine);
    }
}

#[test]
fn an_ipv4_mapped_address_in_an_ipv6_header_is_malformed() {
    let mut switch = open();
    let mapped = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    for (from, to) in [
        (V4.client, V4.server),
        (V4.client, V6.server),
        (V6.client, V4.server),
    ] {
        let mut frame = syn(V6, PORT).bytes();
        frame[22..38].copy_from_slice(&mapped(from));
        frame[38..54].copy_from_slice(&mapped(to));
        assert_eq!(fate_of(&mut switch, &frame), MALFORMED, "{from} to {to}");
    }
    // Other embeddings are addresses of their own (RFC 4291 §2.5.5.1, RFC 6052, RFC 3056).
    for to in ["::10.13.0.3", "64:ff9b::10.13.0.3", "2002:a0d:3::"] {
        let mut frame = syn(V6, PORT);
        frame.addresses.1 = to.parse().unwrap();
        assert_eq!(fate(&mut switch, &frame), NO_RULE, "{to}");
    }
}

#[test]
fn headers_that_are_not_linear_are_read_all_the_same() {
    let mut switch = open();
    let long = |mut frame: Frame| {
        frame.payload.extend([0; 5_000]);
        frame.bytes()
    };
    for family in FAMILIES {
        let mut frames = Vec::new();
        for port in [PORT, CLOSED] {
            frames.push(long(syn(family, port)));
            frames.push(long(datagram(family, port)));
            let to = (family.server, port);
            frames.push(long(Frame::sctp((family.client, OWN_PORT), to, 1)));
            let mut shaped = syn(family, port);
            shaped.options = vec![1; 40];
            shaped = shaped.with_extension(HOP_BY_HOP, vec![0; 6]);
            frames.push(long(shaped.with_extension(DESTINATION, vec![0; 1_000])));
        }
        frames.push(long(Frame::echo_request(family.client, family.server, 1)));
        frames.push(long(syn(family, PORT).with_hop_limit(1)));
        frames.push(tagged(&long(syn(family, PORT)), [0x81, 0x00], 7));
        let linear = switch
            .send_all(CLIENT, SERVER, &frames, Lying::Linear)
            .unwrap();
        let paged = switch
            .send_all(CLIENT, SERVER, &frames, Lying::Paged)
            .unwrap();
        for (linear, paged) in linear.iter().zip(&paged) {
            assert_eq!(passes(*linear), passes(*paged), "{linear}, then {paged}");
        }
        let arrived = paged.iter().filter(|fate| passes(**fate)).count();
        assert_eq!(arrived, 6, "{paged:?}");
    }
}

#[test]
fn a_packet_in_a_packet_is_judged_as_the_outer_one() {
    let mut switch = open();
    for outer in FAMILIES {
        for inner in FAMILIES {
            // What is inside would pass by itself.
            let packet = syn(inner, PORT).bytes().split_off(14);
            let own = if inner.client.is_ipv4() { 4 } else { 41 };
            let ethertype: [u8; 2] = if inner.client.is_ipv4() {
                [0x08, 0x00]
            } else {
                [0x86, 0xdd]
            };
            let gre = [&[0, 0], ethertype.as_slice(), &packet].concat();
            let vxlan = [
                &[8, 0, 0, 0, 0, 0, 1, 0],
                syn(inner, PORT).bytes().as_slice(),
            ]
            .concat();
            for (protocol, content) in [(own, packet), (47, gre)] {
                let frame = Frame::new(outer.client, outer.server, protocol, content.clone());
                assert_eq!(fate(&mut switch, &frame), NO_RULE, "protocol {protocol}");
                let frame = Frame::new(outer.trusted, outer.server, protocol, content);
                let fate = switch.send(TRUSTED, SERVER, &frame.bytes()).unwrap();
                assert!(passes(fate), "a rule without ports: {fate}");
            }
            for (port, expected) in [(4_789, NO_RULE), (PORT, ARRIVES)] {
                let mut frame = datagram(outer, port);
                frame.payload.truncate(8);
                frame.payload.extend(&vxlan);
                let fate = fate(&mut switch, &frame);
                assert_eq!(passes(fate), passes(expected), "to port {port}: {fate}");
            }
        }
    }
}

#[test]
fn pods_that_nobody_isolates_exchange_whatever_is_well_formed() {
    let mut switch = open();
    for family in FAMILIES {
        for protocol in 0..=255 {
            let is_extension = [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION];
            if family.client.is_ipv6() && is_extension.contains(&protocol) {
                continue;
            }
            let mut content = vec![0x50; 64];
            // An echo request of neither family.
            content[0] = 200;
            let frame = Frame::new(family.free, family.trusted, protocol, content);
            let fate = switch.send(FREE, TRUSTED, &frame.bytes()).unwrap();
            let expected = Fate::Arrives(Reason::NotIsolated, Reason::NotIsolated);
            assert_eq!(fate, expected, "protocol {protocol}");
        }
    }
}
