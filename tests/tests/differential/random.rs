//! Random tables and random packets: mostly sound ones that meet, some of every other kind.

use std::collections::HashSet;
use std::net::IpAddr;

use agent_common::Address;
use agent_common::classify::{Arrival, Hook};
use agent_common::maps::{
    ALLOW, Config, DENY, EndpointWord, FUNCTION_LONG, PeerEntry, PortFunction, PortInterval,
    PortKey, PortVerdict, Prefix, VerdictKey, config_flags, peer_bucket,
};
use agent_policy::plan::Write;
use agent_policy::tables::Tables;
use tests::dice::Dice;
use tests::packets::Frame;

/// Interfaces with a published endpoint, and their slots; one more has none.
pub(crate) const ENDPOINTS: [(u32, u32); 3] = [(11, 1), (12, 2), (13, 3)];
/// The one more.
pub(crate) const UNKNOWN: u32 = 14;
/// Rules are numbered below this.
pub(crate) const RULES: u32 = 100;
const SETS: u32 = 6;
const CLASSES: u32 = 5;
const FUNCTIONS: u32 = 3;
const PORTS: [u16; 6] = [79, 80, 81, 443, 1023, 1024];

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Both addresses of an endpoint.
fn own(slot: u32) -> [IpAddr; 2] {
    [
        address(&format!("10.1.0.{slot}")),
        address(&format!("fd00:1::{slot}")),
    ]
}

/// Peers of one family; the last are a group and what no pod may send from.
fn peers(is_v6: bool) -> Vec<IpAddr> {
    let texts: &[&str] = if is_v6 {
        &[
            "fd00:2::1",
            "fd00:2::2",
            "fd00:3::1",
            "fd00:1::fe",
            "ff15::7",
            "fe80::1",
            "::",
        ]
    } else {
        &[
            "10.2.0.1",
            "10.2.0.2",
            "10.3.0.1",
            "10.1.0.254",
            "239.1.1.1",
            "0.0.0.0",
        ]
    };
    let pods = ENDPOINTS.map(|(_, slot)| own(slot)[usize::from(is_v6)]);
    pods.into_iter()
        .chain(texts.iter().map(|text| address(text)))
        .collect()
}

fn interval(dice: &mut Dice) -> PortInterval {
    let (first, last) = (dice.pick(&PORTS), dice.pick(&PORTS));
    PortInterval {
        protocol: dice.pick(&[6, 17, 132, 1, 58, 47]),
        verdict: dice.pick(&[ALLOW, ALLOW, DENY]),
        rank: 1,
        first: first.min(last),
        last: first.max(last),
        rule: dice.roll(RULES),
    }
}

fn function(dice: &mut Dice) -> PortFunction {
    let is_long = dice.one_in(3);
    PortFunction {
        kind: if is_long { FUNCTION_LONG } else { 0 },
        count: u8::try_from(dice.roll(4)).unwrap(),
        verdict: dice.pick(&[ALLOW, DENY, DENY]),
        rule: dice.roll(RULES),
        function: 1 + dice.roll(FUNCTIONS),
        intervals: [interval(dice), interval(dice), interval(dice)],
        ..PortFunction::default()
    }
}

/// A state of the policy maps, as the writes that lead to it from `present`.
pub(crate) fn writes(dice: &mut Dice, round: u32, present: &Tables) -> Vec<Write> {
    let mut writes = Vec::new();
    for key in present.ports.keys() {
        writes.push(Write::DeletePort(*key));
    }
    let mut ports = HashSet::new();
    for _ in 0..12 {
        let kept = dice.roll(17);
        let port = dice.pick(&PORTS) & u16::MAX.checked_shl(16 - kept).unwrap_or(0);
        let key = PortKey {
            length: 40 + kept,
            function_be: (1 + dice.roll(FUNCTIONS)).to_be_bytes(),
            protocol: dice.pick(&[6, 17, 132]),
            port_be: port.to_be_bytes(),
            reserved: 0,
        };
        let verdict = PortVerdict {
            verdict: dice.pick(&[ALLOW, DENY]),
            rule: dice.roll(RULES),
            ..PortVerdict::default()
        };
        // A plan writes each row once.
        if ports.insert(key) {
            writes.push(Write::PutPort(key, verdict));
        }
    }
    for key in present.verdicts.keys() {
        writes.push(Write::DeleteVerdict(*key));
    }
    for set in 1..=SETS {
        for class in 0..=CLASSES {
            // Most classes have a row; now and then even the default row is missing.
            if dice.one_in(if class == 0 { 20 } else { 3 }) {
                continue;
            }
            writes.push(Write::PutVerdict(VerdictKey { set, class }, function(dice)));
        }
    }
    for (prefix, _) in present.prefix_rows() {
        writes.push(Write::DeletePrefix(prefix));
    }
    let mut prefixes = HashSet::new();
    for peer in [peers(false), peers(true)].concat() {
        let address = Address::from(peer);
        let entry = PeerEntry {
            class: dice.roll(CLASSES + 1),
            flags: 0,
        };
        if dice.one_in(2) {
            writes.push(Write::PutPeer(peer, entry));
        } else if present.peers.contains_key(&address) {
            writes.push(Write::DeletePeer(peer));
        }
        if dice.one_in(3) {
            let length = if peer.is_ipv4() {
                96 + dice.roll(33)
            } else {
                1 + dice.roll(128)
            };
            let bits = u128::from_be_bytes(address.0) & (u128::MAX << (128 - length));
            let address = Address(bits.to_be_bytes());
            if prefixes.insert((address, length)) {
                writes.push(Write::PutPrefix(Prefix { address, length }, entry));
            }
        }
        if dice.one_in(3) {
            let bucket = peer_bucket(Address::from(peer));
            writes.push(Write::StampPeers {
                bucket,
                revision: round,
            });
        }
    }
    for (ifindex, slot) in ENDPOINTS {
        if round == 1 {
            writes.push(Write::OpenSlot(slot));
        } else if dice.one_in(3) {
            continue;
        }
        let row = round * 4 + slot;
        writes.push(Write::PutConfig(row, Box::new(config(dice, ifindex, slot))));
        let word = EndpointWord {
            config_row: row,
            revision: round,
        };
        writes.push(Write::Flip { ifindex, word });
    }
    writes
}

fn config(dice: &mut Dice, ifindex: u32, slot: u32) -> Config {
    let sets = [dice.roll(SETS + 1), dice.roll(SETS + 1)];
    let mut audit_sets = sets;
    if dice.one_in(3) {
        audit_sets = [dice.roll(SETS + 1), dice.roll(SETS + 1)];
    }
    let mut flags = 0;
    if slot != 3 || dice.one_in(2) {
        flags |= config_flags::PROGRAMMED;
    }
    if dice.one_in(3) {
        flags |= config_flags::FAIL_OPEN;
    }
    if dice.one_in(12) {
        flags |= config_flags::ANY_SOURCE;
    }
    let source = Prefix {
        address: Address::from_v4([10, 2, 0, 0]),
        length: 112 + dice.roll(17),
    };
    Config {
        ifindex,
        slot,
        addresses: own(slot).map(Address::from),
        sets,
        audit_sets,
        flags,
        sources: [source; 4],
        source_count: if dice.one_in(4) { 1 + dice.roll(4) } else { 0 },
        ..Config::default()
    }
}

/// A packet at a hook: mostly sound, mostly of flows that others of the run belong to. Its fragments
/// are the round's own: they are not waited for as long as a run may take.
pub(crate) fn packet(dice: &mut Dice, round: u16) -> (Arrival, Vec<u8>) {
    let (ifindex, slot) = if dice.one_in(40) {
        (UNKNOWN, 0)
    } else {
        dice.pick(&[ENDPOINTS[0], ENDPOINTS[0], ENDPOINTS[1], ENDPOINTS[2]])
    };
    let hook = dice.pick(&[Hook::FromPod, Hook::ToPod]);
    let ingress_ifindex = match hook {
        Hook::FromPod => ifindex,
        Hook::ToPod => dice.pick(&[0, 2, 2, 2, 11, 12, 13]),
    };
    let at = Arrival {
        hook,
        ifindex,
        ingress_ifindex,
    };
    if dice.one_in(100) {
        return (at, Frame::arp());
    }
    let is_v6 = dice.one_in(2);
    let others = peers(is_v6);
    let local = if slot == 0 || dice.one_in(20) {
        dice.pick(&others)
    } else {
        own(slot)[usize::from(is_v6)]
    };
    let peer = dice.pick(&others);
    let (local_port, peer_port) = dice.pick(&[
        (80, 40_000),
        (81, 40_000),
        (40_000, 443),
        (40_000, 80),
        (79, 1024),
        (1023, 1024),
    ]);
    let (from, to) = match hook {
        Hook::FromPod => ((local, local_port), (peer, peer_port)),
        Hook::ToPod => ((peer, peer_port), (local, local_port)),
    };
    let mut frame = match dice.roll(12) {
        0..=4 => Frame::tcp(from, to, dice.pick(&[2, 2, 0x12, 16, 16, 24, 17, 4, 20, 6])),
        5..=7 => Frame::udp(from, to),
        8 => Frame::sctp(from, to, dice.pick(&[1, 1, 2, 10, 11, 0, 3, 6, 7, 8, 14])),
        9 => {
            let identifier = dice.pick(&[1, 2]);
            if dice.one_in(2) {
                Frame::echo_request(from.0, to.0, identifier)
            } else {
                Frame::echo_reply(from.0, to.0, identifier)
            }
        }
        10 if dice.one_in(2) => error(dice, from, to),
        10 => {
            let kind = dice.pick(&[3, 11, 13, 130, 131, 133, 134, 135, 136, 137, 143, 1, 2]);
            Frame::icmp(from.0, to.0, kind, dice.pick(&[0, 0, 0, 4]), 0)
        }
        _ => Frame::new(
            from.0,
            to.0,
            dice.pick(&[1, 58, 47, 50, 59, 6]),
            vec![0; 24],
        ),
    };
    frame.hop_limit = dice.pick(&[64, 64, 255, 1]);
    if dice.one_in(8) {
        let length = dice.roll(41);
        frame.options = (0..length).map(|_| 1).collect();
        for _ in 0..dice.roll(3) {
            let kind = dice.pick(&[0, 60, 43, 51]);
            let body = vec![0; usize::try_from(6 + 8 * dice.roll(3)).unwrap()];
            frame = frame.with_extension(kind, body);
        }
    }
    if dice.one_in(10) {
        frame = frame
            .with_fragment(dice.pick(&[0, 0, 1, 2, 3, 100]), dice.one_in(2))
            .with_identification(round << 1 | dice.pick(&[0, 1]));
    }
    if dice.one_in(40) {
        frame.lie = dice.pick(&[-1, 1, -21, 8]);
    }
    let mut bytes = frame.bytes();
    // The kernel does not run shorter packets than this.
    let least = if is_v6 { 54 } else { 34 };
    match dice.roll(60) {
        0 | 1 => bytes.truncate(least + usize::try_from(dice.roll(40)).unwrap()),
        2 => bytes.resize(bytes.len() + 7, 0xee),
        3 => {
            let place = usize::try_from(dice.roll(u32::try_from(bytes.len()).unwrap())).unwrap();
            bytes[place] = dice.byte();
        }
        _ => {}
    }
    (at, bytes)
}

/// An ICMP error, mostly about what `to` may have sent to `from`.
fn error(dice: &mut Dice, from: (IpAddr, u16), to: (IpAddr, u16)) -> Frame {
    let about = match dice.roll(4) {
        0 | 1 => Frame::tcp(to, from, dice.pick(&[2, 16])),
        2 => Frame::udp(to, from),
        _ => Frame::echo_request(to.0, from.0, dice.pick(&[1, 2])),
    };
    let kind = dice.pick(&[1, 2, 3, 3, 4, 5, 11, 12]);
    let quoted = dice.pick(&[20, 28, 48, 64, 64, 64, 64]);
    let mut error = Frame::icmp_error(from.0, kind, 0, &about, quoted);
    if dice.one_in(8) {
        error.addresses.1 = dice.pick(&peers(from.0.is_ipv6()));
    }
    error
}
