//! The host's packet path against the loaded programs: the same random packets over the same
//! random tables, and everything that comes of them compared: what happens, counts by reason,
//! rows, reports, rules in use.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "all of this is a test: whatever fails ends it"
)]

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use agent::dataplane::{Action, Dataplane, Options};
use agent_common::Address;
use agent_common::classify::{Arrival, Hook, Outcome};
use agent_common::event::FlowEvent;
use agent_common::judge::PolicyTables as _;
use agent_common::maps::{
    ALLOW, Config, Counter, DENY, EndpointWord, FUNCTION_LONG, PeerEntry, PortFunction,
    PortInterval, PortKey, PortVerdict, Prefix, Settings, VerdictKey, config_flags, peer_bucket,
    settings_flags,
};
use agent_policy::plan::Write;
use agent_policy::tables::Tables;
use tests::lab::namespace::{Namespace, leave_the_machine};
use tests::lab::netlink::{Netlink, VethEnd};
use tests::machine::Machine;
use tests::packets::Frame;
use tests::runs::seed;
use zerocopy::FromBytes as _;

/// Table states, and packets through each.
const ROUNDS: u32 = 60;
const PACKETS: u32 = 2_000;

/// Interfaces with a published endpoint; one more has none.
const ENDPOINTS: [(u32, u32); 3] = [(11, 1), (12, 2), (13, 3)];
const UNKNOWN: u32 = 14;
const SETS: u32 = 6;
const CLASSES: u32 = 5;
const FUNCTIONS: u32 = 3;
const RULES: u32 = 100;
const PORTS: [u16; 6] = [79, 80, 81, 443, 1023, 1024];

/// xorshift64*: a run is known by its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        u32::try_from(high).unwrap() % below
    }

    fn one_in(&mut self, chances: u32) -> bool {
        self.roll(chances) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let len = u32::try_from(from.len()).unwrap();
        from[usize::try_from(self.roll(len)).unwrap()]
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.roll(256)).unwrap()
    }
}

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
fn random_writes(dice: &mut Dice, round: u32, present: &Tables) -> Vec<Write> {
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

/// A packet at a hook: mostly sound, mostly of flows that others of the run belong to.
fn packet(dice: &mut Dice) -> (Arrival, Vec<u8>) {
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
    if dice.one_in(15) {
        frame = frame.with_fragment(dice.pick(&[0, 0, 1, 100]), dice.one_in(2));
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

/// A dataplane in a world of its own, with the interfaces that packets are to come to.
fn dataplane() -> (Dataplane, Namespace) {
    leave_the_machine().unwrap();
    let pods = Namespace::create().unwrap();
    let mut netlink = Netlink::open().unwrap();
    for index in ENDPOINTS
        .map(|(ifindex, _)| ifindex)
        .into_iter()
        .chain([UNKNOWN])
    {
        let [name, peer] = ["h", "p"].map(|side| format!("{side}{index}"));
        let here = VethEnd {
            name: &name,
            index,
            mac: [2, 0, 0, 0, 0, 1],
        };
        let there = VethEnd {
            name: &peer,
            index: index + 100,
            mac: [2, 0, 0, 0, 0, 2],
        };
        netlink
            .add_veth(here, there, std::os::fd::AsFd::as_fd(&pods))
            .unwrap();
    }
    let mut options = Options::new("/sys/fs/bpf/differential");
    // Nothing is to be forgotten or to expire: the kernel's memory is not what is compared.
    for map in ["CONNTRACK", "PENDING", "DENIED"] {
        options.capacities.push((map.to_owned(), 131_072));
    }
    let mut dataplane = Dataplane::open(&options).unwrap();
    dataplane
        .put_settings(&Settings {
            flags: settings_flags::REPORT_ALLOWED,
            report_interval: u32::MAX,
            timeouts: [u32::MAX / 2; 8],
            budget_rate: 1_000_000,
            budget_burst: 1_000_000,
            ..Settings::default()
        })
        .unwrap();
    (dataplane, pods)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Everything that was counted and remembered, by name.
fn books_of_the_host(machine: &Machine<Tables>) -> BTreeMap<String, String> {
    let mut books = BTreeMap::new();
    for slot in 0..=3 {
        for direction in agent_common::Direction::ALL {
            let passed = machine.passed_of(slot, direction);
            books.insert(format!("passed {slot} {direction}"), format!("{passed:?}"));
            for reason in agent_common::Reason::ALL {
                let dropped = machine.dropped_of(slot, direction, *reason);
                if dropped.packets > 0 && reason.verdict() == agent_common::Verdict::Deny {
                    let name = format!("dropped {slot} {direction} {reason}");
                    books.insert(name, format!("{dropped:?}"));
                }
            }
        }
    }
    for counter in Counter::ALL {
        books.insert(
            format!("{counter:?}"),
            machine.counter(*counter).to_string(),
        );
    }
    for (rule, hit) in machine.rule_hits.borrow().iter() {
        books.insert(format!("rule {rule}"), hit.connections.to_string());
    }
    for (key, row) in machine.denied.borrow().iter() {
        let row = row.get();
        let said = (row.packets, row.revision, row.rule, row.reason);
        books.insert(format!("{key:?}"), format!("{said:?}"));
    }
    for (flow, entry) in machine.connections.borrow().iter() {
        let connection = entry.get();
        books.insert(
            format!("flow {} {:?}", flow.slot, flow.flow),
            format!(
                "{:?}",
                (connection.state, connection.flags, connection.revision)
            ),
        );
    }
    books
}

/// The same, of the kernel.
fn books_of_the_kernel(dataplane: &Dataplane) -> BTreeMap<String, String> {
    let mut books = BTreeMap::new();
    for slot in 0..=3 {
        let passed = dataplane.passed(slot).unwrap();
        for (direction, passed) in agent_common::Direction::ALL.iter().zip(passed) {
            books.insert(format!("passed {slot} {direction}"), format!("{passed:?}"));
        }
        for dropped in dataplane.dropped(slot).unwrap() {
            let name = format!("dropped {slot} {} {}", dropped.direction, dropped.reason);
            books.insert(name, format!("{:?}", dropped.traffic));
        }
        if slot > 0 {
            for (flow, connection) in dataplane.connections(slot).unwrap() {
                books.insert(
                    format!("flow {slot} {flow:?}"),
                    format!(
                        "{:?}",
                        (connection.state, connection.flags, connection.revision)
                    ),
                );
            }
        }
    }
    for (counter, count) in dataplane.counters().unwrap() {
        books.insert(format!("{counter:?}"), count.to_string());
    }
    for (rule, hit) in dataplane.rule_hits(0..RULES).unwrap() {
        books.insert(format!("rule {rule}"), hit.connections.to_string());
    }
    for (key, row) in dataplane.denied().unwrap() {
        let said = (row.packets, row.revision, row.rule, row.reason);
        books.insert(format!("{key:?}"), format!("{said:?}"));
    }
    books
}

fn differences(
    host: &BTreeMap<String, String>,
    kernel: &BTreeMap<String, String>,
) -> Vec<(String, Option<String>, Option<String>)> {
    let names: std::collections::BTreeSet<_> = host.keys().chain(kernel.keys()).collect();
    names
        .into_iter()
        .map(|name| {
            (
                name.clone(),
                host.get(name).cloned(),
                kernel.get(name).cloned(),
            )
        })
        .filter(|(_, host, kernel)| host != kernel)
        .collect()
}

#[test]
fn kernel_and_host_agree_on_random_packets_and_tables() {
    let seed = seed(0x9e37_79b9_7f4a_7c15);
    let mut dice = Dice(seed);
    let (mut dataplane, _pods) = dataplane();
    let mut events = dataplane.events().unwrap();
    let mut machine = Machine::new(Tables::default());
    machine.policy.settings = dataplane.settings().unwrap();
    let (mut passed, mut dropped) = (0, 0);
    for round in 1..=ROUNDS {
        let writes = random_writes(&mut dice, round, &machine.policy);
        for write in &writes {
            machine.policy.apply(write);
        }
        dataplane.apply(&writes).unwrap();
        // These writes are no plan: rows change under a set that is in force, and no revision
        // tells. What the kernel remembers of refusals is over after a tenth of a second.
        let written = dataplane.tick().unwrap().jiffies;
        while dataplane.tick().unwrap().jiffies - written <= u64::from(dataplane.hz() / 10) {
            std::thread::yield_now();
        }
        machine.now.set(dataplane.tick().unwrap().jiffies);
        for turn in 0..PACKETS {
            let (at, bytes) = packet(&mut dice);
            let host = machine.classify(at, &bytes);
            let kernel = dataplane
                .test_run(at.hook, &bytes, at.ifindex, at.ingress_ifindex)
                .unwrap();
            let expected = match host {
                Outcome::Pass(_) => Action::Pass,
                Outcome::Drop(_) | Outcome::NotMine => Action::Drop,
            };
            assert_eq!(
                kernel,
                expected,
                "seed {seed} round {round} packet {turn}: host {host:?}, {at:?}, {}",
                hex(&bytes)
            );
            match kernel {
                Action::Pass => passed += 1,
                Action::Drop | Action::Other(_) => dropped += 1,
            }
        }
        let mut reported = Vec::new();
        loop {
            let batch = events.take();
            if batch.is_empty() {
                break;
            }
            for record in batch {
                let event = FlowEvent::read_from_bytes(&record).unwrap();
                reported.push(FlowEvent { time: 0, ..event });
            }
        }
        let mut expected = machine.take_events();
        for event in &mut expected {
            event.time = 0;
        }
        for (host, kernel) in expected.iter().zip(&reported) {
            assert_eq!(host, kernel, "seed {seed} round {round}");
        }
        assert_eq!(expected.len(), reported.len(), "seed {seed} round {round}");
        let differences = differences(
            &books_of_the_host(&machine),
            &books_of_the_kernel(&dataplane),
        );
        assert!(
            differences.is_empty(),
            "seed {seed} round {round}: (what, host, kernel) {differences:#?}"
        );
    }
    assert!(
        passed > 20_000 && dropped > 20_000,
        "{passed} passed, {dropped} dropped"
    );
    assert!(machine.counter(Counter::Cut) > 100 && machine.counter(Counter::MidStream) > 100);
    assert_eq!(machine.policy.endpoint(UNKNOWN), None);
}
