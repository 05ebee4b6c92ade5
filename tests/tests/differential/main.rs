//! The host's packet path against the loaded programs: the same random packets over the same
//! random tables, and everything that comes of them compared: what happens, counts by reason,
//! rows, reports, rules in use.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "all of this is a test: whatever fails ends it"
)]

mod random;

use std::collections::BTreeMap;

use agent::dataplane::{Action, Dataplane, Options};
use agent_common::classify::Outcome;
use agent_common::event::FlowEvent;
use agent_common::judge::PolicyTables as _;
use agent_common::maps::{Counter, Settings, settings_flags};
use agent_policy::tables::Tables;
use tests::dice::Dice;
use tests::lab::namespace::{Namespace, leave_the_machine};
use tests::lab::netlink::{Netlink, VethEnd};
use tests::machine::Machine;
use tests::runs::seed;
use zerocopy::FromBytes as _;

use random::{ENDPOINTS, RULES, UNKNOWN, packet};

/// Table states, and packets through each.
const ROUNDS: u32 = 60;
const PACKETS: u32 = 2_000;

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
            format!("flow {} {flow:?}", flow.slot),
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
    let mut dice = Dice::of(seed);
    let (mut dataplane, _pods) = dataplane();
    let mut events = dataplane.events().unwrap();
    let mut machine = Machine::new(Tables::default());
    machine.policy.settings = dataplane.settings().unwrap();
    let (mut passed, mut dropped) = (0, 0);
    for round in 1..=ROUNDS {
        let writes = random::writes(&mut dice, round, &machine.policy);
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
            let (at, bytes) = packet(&mut dice, u16::try_from(round).unwrap());
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
    assert!(
        machine.fragments.borrow().len() > 100,
        "first fragments that passed"
    );
    assert!(machine.counter(Counter::Cut) > 100 && machine.counter(Counter::MidStream) > 100);
    assert_eq!(machine.policy.endpoint(UNKNOWN), None);
}
