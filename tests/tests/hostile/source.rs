//! Whose address it is: a pod sends from its own, and says of no other that it is its. On a real bridge,
//! where the others would believe it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_common::Reason;
use tests::lab::frames::switch::{Fate, Switch};
use tests::packets::{Frame, protocol};

use crate::shop::{
    CLIENT, FAMILIES, FREE, Family, MALFORMED, NO_RULE, OWN_PORT, PORT, SERVER, SPOOFED, V4, V6,
    open,
};

/// Passed both programs because the link lives by it.
const LINK: Fate = Fate::Arrives(Reason::Link, Reason::Link);

const ASK: u16 = 1;
const ANSWER: u16 = 2;

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

fn v6(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The bytes of an IPv4 address.
fn v4(address: IpAddr) -> [u8; 4] {
    let address: Ipv4Addr = address.to_string().parse().unwrap();
    address.octets()
}

/// A neighbour's message about an address, with its sender's hardware address as option.
fn neighbour(kind: u8, from: IpAddr, to: IpAddr, target: IpAddr) -> Frame {
    let mut frame = Frame::icmp(from, to, kind, 0, 0).with_hop_limit(255);
    let target: Ipv6Addr = target.to_string().parse().unwrap();
    // RFC 4861 §4.3, §4.4, §4.6.1.
    frame.payload[4..8].fill(0);
    frame.payload.extend(target.octets());
    let option = if kind == ADVERTISEMENT { 2 } else { 1 };
    frame.payload.extend([option, 1, 6, 0x70, 0, 0, 0, 1]);
    frame
}

fn to_server(switch: &mut Switch, from: &str, frame: &Frame) -> Fate {
    switch.send(from, SERVER, &frame.bytes()).unwrap()
}

#[test]
fn a_pod_sends_from_no_address_but_its_own() {
    let mut switch = open();
    for family in FAMILIES {
        let others = [
            family.server,
            family.trusted,
            family.free,
            if family.client.is_ipv4() {
                IpAddr::from([0; 4])
            } else {
                v6("::")
            },
            if family.client.is_ipv4() {
                IpAddr::from([169, 254, 254, 1])
            } else {
                v6("fe80::2")
            },
            if family.client.is_ipv4() {
                IpAddr::from([255; 4])
            } else {
                v6("ff02::1")
            },
        ];
        for other in others {
            let to = (family.server, PORT);
            for frame in [
                Frame::tcp((other, OWN_PORT), to, 2),
                Frame::tcp((other, OWN_PORT), to, 16),
                Frame::udp((other, OWN_PORT), to),
                Frame::sctp((other, OWN_PORT), to, 1),
                Frame::echo_request(other, family.server, 1),
                Frame::new(other, family.server, 47, vec![0; 20]),
            ] {
                // Also of a pod that may talk to anybody.
                for pod in [CLIENT, FREE] {
                    let own = if pod == FREE {
                        family.free
                    } else {
                        family.client
                    };
                    let fate = to_server(&mut switch, pod, &frame);
                    assert_eq!(fate == SPOOFED, other != own, "{other} from {pod}: {fate}");
                }
            }
        }
    }
}

#[test]
fn a_pod_says_by_arp_only_where_its_own_address_is() {
    let mut switch = open();
    let own = v4(V4.client);
    for operation in [ASK, ANSWER] {
        // Its own, and none yet (RFC 5227 §1.1).
        for sender in [own, [0; 4]] {
            for target in [v4(V4.server), own, [10, 13, 0, 1], [0; 4]] {
                let frame = Frame::arp_of(operation, sender, target);
                assert_eq!(switch.send(CLIENT, SERVER, &frame).unwrap(), LINK);
                let mut broadcast = frame;
                broadcast[..6].fill(0xff);
                assert_eq!(switch.send(CLIENT, SERVER, &broadcast).unwrap(), LINK);
            }
        }
        // Another pod's, the gateway's, nobody's; asked, answered, announced to all.
        for sender in [
            v4(V4.server),
            v4(V4.free),
            [10, 13, 0, 1],
            [169, 254, 254, 1],
            [255; 4],
        ] {
            for target in [v4(V4.server), sender, own] {
                let frame = Frame::arp_of(operation, sender, target);
                assert_eq!(switch.send(CLIENT, SERVER, &frame).unwrap(), SPOOFED);
                assert_eq!(
                    switch.send(FREE, SERVER, &frame).unwrap() == SPOOFED,
                    sender != v4(V4.free)
                );
                let mut broadcast = frame;
                broadcast[..6].fill(0xff);
                assert_eq!(switch.send(CLIENT, SERVER, &broadcast).unwrap(), SPOOFED);
            }
        }
    }
}

#[test]
fn arp_about_other_kinds_of_addresses_is_malformed() {
    let mut switch = open();
    let sound = Frame::arp_of(ASK, v4(V4.client), v4(V4.server));
    assert_eq!(switch.send(CLIENT, SERVER, &sound).unwrap(), LINK);
    // Kinds and lengths of the addresses, and the operation.
    for place in 14..22 {
        for change in [1_u8, 4, 0x80] {
            let mut frame = sound.clone();
            frame[place] ^= change;
            let fate = switch.send(CLIENT, SERVER, &frame).unwrap();
            assert_eq!(fate, MALFORMED, "byte {place} is {:#x}", frame[place]);
        }
    }
    for operation in [0, 3, 4, 8, 9, 25, u16::MAX] {
        let frame = Frame::arp_of(operation, v4(V4.client), v4(V4.server));
        let fate = switch.send(CLIENT, SERVER, &frame).unwrap();
        assert_eq!(fate, MALFORMED, "operation {operation}");
    }
    for length in 14..sound.len() {
        let fate = switch.send(CLIENT, SERVER, &sound[..length]).unwrap();
        assert_eq!(fate, MALFORMED, "{length} bytes");
    }
    // Ethernet's padding, and more than that.
    for (length, expected) in [
        (60, LINK),
        (128, LINK),
        (129, MALFORMED),
        (1_514, MALFORMED),
    ] {
        let mut frame = sound.clone();
        frame.resize(length, 0);
        let fate = switch.send(CLIENT, SERVER, &frame).unwrap();
        assert_eq!(fate, expected, "{length} bytes");
    }
}

#[test]
fn a_pod_advertises_only_its_own_addresses() {
    let mut switch = open();
    let link_local = v6("fe80::470:ff:fe00:64");
    for from in [V6.client, link_local] {
        for to in [V6.server, v6("ff02::1"), v6("fe80::1")] {
            for target in [V6.client, link_local] {
                let frame = neighbour(ADVERTISEMENT, from, to, target);
                // A pod that speaks of one of its addresses speaks from it.
                let expected = match (from == V6.client && target != from, to) {
                    (true, _) => SPOOFED,
                    _ => LINK,
                };
                assert_eq!(
                    to_server(&mut switch, CLIENT, &frame),
                    expected,
                    "{from} {target}"
                );
            }
            for target in [
                V6.server,
                V6.free,
                v6("fd13::1"),
                v6("ff02::1"),
                v6("2001:db8::1"),
            ] {
                let frame = neighbour(ADVERTISEMENT, from, to, target);
                assert_eq!(to_server(&mut switch, CLIENT, &frame), SPOOFED, "{target}");
                // Nobody's policy makes it right.
                let frame = neighbour(ADVERTISEMENT, link_local, to, target);
                let fate = to_server(&mut switch, FREE, &frame);
                assert_eq!(fate == SPOOFED, target != V6.free, "{target}: {fate}");
            }
        }
    }
    for from in [V6.server, V6.free] {
        for target in [V6.client, V6.server] {
            let frame = neighbour(ADVERTISEMENT, from, V6.server, target);
            assert_eq!(to_server(&mut switch, CLIENT, &frame), SPOOFED);
        }
    }
}

#[test]
fn a_pod_looks_for_doubles_of_its_own_addresses_only() {
    let mut switch = open();
    let group = v6("ff02::1:ff00:2");
    for (target, expected) in [
        (V6.client, LINK),
        (v6("fe80::470:ff:fe00:64"), LINK),
        (V6.server, SPOOFED),
        (v6("fd13::1"), SPOOFED),
    ] {
        // RFC 4862 §5.4.2: from the unspecified address.
        let probe = neighbour(SOLICITATION, v6("::"), group, target);
        assert_eq!(to_server(&mut switch, CLIENT, &probe), expected, "{target}");
        // With an address of its own it asks for anybody's.
        for from in [V6.client, v6("fe80::470:ff:fe00:64")] {
            let question = neighbour(SOLICITATION, from, group, target);
            assert_eq!(to_server(&mut switch, CLIENT, &question), LINK, "{target}");
        }
    }
}

#[test]
fn neighbour_discovery_has_one_form_and_every_other_is_malformed() {
    let mut switch = open();
    let sound = |kind| {
        let target = if kind == ADVERTISEMENT {
            V6.client
        } else {
            V6.server
        };
        neighbour(kind, V6.client, V6.server, target)
    };
    // Router solicitations, solicitations, advertisements; not even from a pod without policies.
    for kind in [133, SOLICITATION, ADVERTISEMENT] {
        assert_eq!(to_server(&mut switch, CLIENT, &sound(kind)), LINK, "{kind}");
        for hop_limit in [0, 1, 64, 254] {
            let frame = sound(kind).with_hop_limit(hop_limit);
            assert_eq!(
                to_server(&mut switch, CLIENT, &frame),
                MALFORMED,
                "{hop_limit}"
            );
        }
        let mut coded = sound(kind);
        coded.payload[1] = 1;
        let mut long = sound(kind);
        long.payload.resize(128 - 54 + 1, 0);
        for frame in [
            coded,
            long,
            sound(kind).with_extension(0, vec![0; 6]),
            sound(kind).with_extension(60, vec![0; 6]),
            sound(kind).with_fragment(0, false),
            sound(kind).with_fragment(0, true),
        ] {
            assert_eq!(
                to_server(&mut switch, CLIENT, &frame),
                MALFORMED,
                "{frame:?}"
            );
            let mut free = frame;
            free.addresses.0 = V6.free;
            assert_eq!(to_server(&mut switch, FREE, &free), MALFORMED, "{free:?}");
        }
    }
    let mut short = sound(ADVERTISEMENT);
    short.payload.truncate(23);
    assert_eq!(to_server(&mut switch, CLIENT, &short), MALFORMED);
}

#[test]
fn a_pod_is_no_router() {
    let mut switch = open();
    for kind in [134, 137] {
        for from in [v6("fe80::1"), v6("fe80::470:ff:fe00:64"), V6.free] {
            for to in [v6("ff02::1"), V6.server] {
                for hop_limit in [255, 64] {
                    let mut frame = neighbour(kind, from, to, from);
                    frame.hop_limit = hop_limit;
                    let fate = to_server(&mut switch, FREE, &frame);
                    assert_eq!(fate, MALFORMED, "type {kind} from {from} to {to}");
                }
            }
        }
    }
}

#[test]
fn neighbour_discovery_goes_nowhere_but_to_the_pods_own_link() {
    let mut switch = open();
    for (to, expected) in [
        (v6("ff02::1"), LINK),
        (v6("fe80::1"), LINK),
        (V6.server, LINK),
        // Another pod's link-local address, on a bridge that floods.
        (v6("fd13::ffff"), Fate::NotMine),
        (v6("fd13:0:0:1::3"), MALFORMED),
        (v6("2001:db8::1"), MALFORMED),
        (v6("::1"), MALFORMED),
        (v6("::10.13.0.3"), MALFORMED),
    ] {
        for (kind, target) in [(SOLICITATION, to), (ADVERTISEMENT, V6.client), (133, to)] {
            let frame = neighbour(kind, V6.client, to, target);
            let fate = to_server(&mut switch, CLIENT, &frame);
            assert_eq!(fate, expected, "type {kind} to {to}");
        }
    }
}

#[test]
fn listener_discovery_passes_with_hop_limit_one_behind_its_option_and_else_by_policy() {
    let mut switch = open();
    let report = |from, kind| {
        Frame::icmp(from, v6("ff02::16"), kind, 0, 0)
            .with_hop_limit(1)
            .with_extension(0, vec![5, 2, 0, 0, 1, 0])
    };
    for kind in [130, 131, 132, 143] {
        for from in [v6("::"), v6("fe80::2"), V6.client] {
            assert_eq!(to_server(&mut switch, CLIENT, &report(from, kind)), LINK);
        }
        assert_eq!(
            to_server(&mut switch, CLIENT, &report(V6.server, kind)),
            SPOOFED
        );
        for hop_limit in [0, 2, 64, 255] {
            let routable = report(V6.client, kind).with_hop_limit(hop_limit);
            assert_eq!(to_server(&mut switch, CLIENT, &routable), NO_RULE);
        }
        let mut bare = report(V6.client, kind);
        bare.extensions.clear();
        assert_eq!(to_server(&mut switch, CLIENT, &bare), NO_RULE);
        bare.addresses.0 = v6("fe80::2");
        assert_eq!(to_server(&mut switch, CLIENT, &bare), SPOOFED);
    }
    for kind in [129, 138, 139, 144, 151, 200] {
        assert_eq!(
            to_server(&mut switch, CLIENT, &report(V6.client, kind)),
            NO_RULE,
            "{kind}"
        );
    }
}

#[test]
fn groups_and_everybody_are_judged_by_policy() {
    let mut switch = open();
    let groups: [(Family, &[&str]); 2] = [
        (V4, &["224.0.0.1", "239.1.2.3", "255.255.255.255"]),
        (V6, &["ff02::1", "ff02::fb", "ff05::1:3", "ff0e::1"]),
    ];
    for (family, groups) in groups {
        for group in groups {
            let group: IpAddr = group.parse().unwrap();
            for mac in [None, Some([0xff; 6])] {
                let mut datagram = Frame::udp((family.client, OWN_PORT), (group, PORT)).bytes();
                let mut free = Frame::udp((family.free, OWN_PORT), (group, PORT)).bytes();
                if let Some(mac) = mac {
                    datagram[..6].copy_from_slice(&mac);
                    free[..6].copy_from_slice(&mac);
                }
                assert_eq!(switch.send(CLIENT, SERVER, &datagram).unwrap(), NO_RULE);
                // The server admits the client on that port, and nobody else.
                let fate = switch.send(FREE, SERVER, &free).unwrap();
                assert_eq!(fate, Fate::DroppedTo(Reason::IsolatedNoRule), "{group}");
            }
        }
    }
}

#[test]
fn what_is_for_another_pod_is_not_delivered_to_the_wrong_one() {
    let mut switch = open();
    for family in FAMILIES {
        for other in [family.trusted, family.free] {
            for frame in [
                Frame::tcp((family.free, OWN_PORT), (other, PORT), 2),
                Frame::udp((family.free, OWN_PORT), (other, PORT)),
                Frame::new(family.free, other, protocol::ICMP, vec![8; 8]),
            ] {
                if other == family.free {
                    continue;
                }
                assert_eq!(
                    to_server(&mut switch, FREE, &frame),
                    Fate::NotMine,
                    "{other}"
                );
            }
        }
    }
}
