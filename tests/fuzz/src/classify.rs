//! A small cluster and what happens on one of its nodes, as bytes choose: packets, changes of policy,
//! time. Its policies are compiled, and every packet goes the packet's way over the tables twice.
//!
//! Whatever the bytes are, nothing panics; what passes is what the specification allows, or of a flow
//! that was opened so, and no such flow is lost ([`Witness`]); every packet is counted once, by what
//! became of it; the short way says, and leaves behind, what the long way does.

use std::collections::HashMap;
use std::time::Duration;

use agent_common::classify::{Arrival, Hook, Outcome, Room, classify_in, look_closely};
use agent_common::conntrack::Timeout;
use agent_common::judge::PolicyTables as _;
use agent_common::maps::{Counter, Settings, Traffic, dropped_index, passed_index, settings_flags};
use agent_common::{Address, Direction, Reason, packet};
use agent_policy::engine::{Engine, LocalEndpoint, Options};
use agent_policy::model::Change;
use agent_policy::tables::Tables;

use crate::dice::Dice;
use crate::machine::Machine;
use crate::wild::cluster;
use crate::wild::frames::{Addresses, Wild};
use crate::wild::witness::Witness;

/// Pods, of which the last is on another node; beside them there is a stranger.
const PODS: usize = 4;
const LOCALS: usize = PODS - 1;
const FIRST_IFINDEX: u32 = 10;
/// Where what comes from outside enters the node.
const UPLINK: u32 = 2;
const BRIDGE: u32 = 3;
/// Ticks a second.
const HZ: u32 = 100;
/// More would be slow and no different.
const STEPS: usize = 400;

/// The claim of this target.
///
/// # Panics
/// Where it does not hold.
pub fn run(bytes: &[u8]) {
    let mut dice = Dice::of_bytes(bytes);
    let mut node = Node::new(&mut dice);
    for _ in 0..STEPS {
        if dice.is_over() {
            break;
        }
        match dice.roll(40) {
            0 => node.wait(dice.pick(&[1, 5, 11, 31, 61, 200, 500_000])),
            1 | 2 => node.change(cluster::change(&mut dice, &node.pods)),
            _ => node.exchange(&mut dice),
        }
    }
    assert_eq!(
        node.short.remains(),
        node.long.remains(),
        "the short way has left something else behind than the long way"
    );
}

/// A node, twice.
struct Node {
    engine: Engine,
    now: Duration,
    pods: Vec<Addresses>,
    wild: Wild,
    /// Who sent what to whom just now, and may once more.
    last: Option<(usize, usize, Vec<u8>)>,
    witness: Witness,
    /// Looks at packets as the programs do.
    short: Machine<Tables>,
    /// What one CPU remembers.
    room: Room,
    /// Looks closely at every packet.
    long: Machine<Tables>,
}

impl Node {
    fn new(dice: &mut Dice) -> Self {
        let own = |place: usize| {
            ["10.15.0.", "fd15::"].map(|prefix| {
                let text = format!("{prefix}{}", place + 1);
                text.parse().expect("an address")
            })
        };
        // The last one is no pod's.
        let mut parties: Vec<Addresses> = (0..=PODS).map(own).collect();
        let wild = Wild::new(parties.clone());
        let routes = routes(&parties, dice.one_in(2));
        parties.truncate(PODS);
        let is_small = dice.one_in(8);
        let fails_open = dice.one_in(8);
        let room = if is_small { 3 } else { u32::MAX };
        let settings = Settings {
            hz: HZ,
            flags: settings_flags::REPORT_ALLOWED,
            timeouts: Timeout::defaults(HZ),
            report_interval: HZ,
            budget_rate: room,
            budget_burst: room,
            ..Settings::default()
        };
        let machine = || {
            let mut machine = Machine::new(Tables::default());
            machine.routes.clone_from(&routes);
            machine.policy.settings = settings;
            if is_small {
                machine.flow_capacity = 4;
                machine.denied_capacity = 4;
                machine.event_capacity = 8;
            }
            machine
        };
        let mut node = Self {
            engine: Engine::new(Options::default()),
            now: Duration::from_secs(1),
            witness: Witness::new(settings, is_small),
            wild,
            last: None,
            short: machine(),
            long: machine(),
            room: Room::default(),
            pods: parties,
        };
        for (address, interface) in routes {
            node.witness.route(address, interface);
        }
        for change in cluster::cluster(dice, &node.pods) {
            drop(node.engine.apply(change));
        }
        for (ifindex, (place, own)) in (FIRST_IFINDEX..).zip(node.pods.iter().enumerate()) {
            if place == LOCALS {
                break;
            }
            let pod = cluster::pod(place, 0, own);
            node.witness.attach(ifindex, pod.name);
            node.engine.attach(LocalEndpoint {
                uid: pod.uid,
                ifindex,
                addresses: Vec::new(),
                attached: 0,
                fails_open,
            });
        }
        node.settle();
        node
    }

    fn change(&mut self, change: Change) {
        drop(self.engine.apply(change));
        self.settle();
    }

    /// Has the maps say what the cluster's policies do.
    fn settle(&mut self) {
        // What rested is over.
        self.now += Duration::from_secs(10);
        let plan = self.engine.plan(self.now).expect("so little fits");
        if let Some(plan) = plan {
            self.short.policy.apply_all(&plan.writes);
            self.long.policy.apply_all(&plan.writes);
            self.engine.written(self.now);
        }
    }

    fn wait(&self, seconds: u64) {
        self.short.advance(seconds * u64::from(HZ));
        self.long.advance(seconds * u64::from(HZ));
    }

    /// A packet from somebody to somebody, at every hook on its way.
    fn exchange(&mut self, dice: &mut Dice) {
        let repeated = self.last.take().filter(|_| dice.one_in(6));
        let (from, to, frame) = repeated.unwrap_or_else(|| {
            let from = dice.roll(PODS + 1);
            let to = (from + 1 + dice.roll(PODS)) % (PODS + 1);
            (from, to, self.wild.frame(dice, from, to))
        });
        let entered = ifindex(from).unwrap_or(UPLINK);
        let has_left = ifindex(from).is_none_or(|ifindex| {
            let at = Arrival {
                hook: Hook::FromPod,
                ifindex,
                ingress_ifindex: ifindex,
            };
            matches!(self.meet(&at, &frame), Outcome::Pass(_))
        });
        // Or from the node itself, or as a masquerade or a bridge would have it.
        let ingress_ifindex = match dice.roll(12) {
            1 => 0,
            2 => FIRST_IFINDEX + dice.roll(4_u32),
            _ => entered,
        };
        // What was dropped may all the same have a like that was not.
        if let Some(ifindex) = ifindex(to)
            && (has_left || dice.one_in(8))
        {
            let at = Arrival {
                hook: Hook::ToPod,
                ifindex,
                ingress_ifindex,
            };
            let _outcome = self.meet(&at, &frame);
        }
        self.last = Some((from, to, frame));
        self.short.advance(1);
        self.long.advance(1);
    }

    /// A packet at a hook.
    fn meet(&mut self, at: &Arrival, frame: &[u8]) -> Outcome {
        let before = Books::of(&self.short);
        let outcome = classify_in(&mut self.room, &self.short, frame, at);
        let closely = look_closely(&mut Room::default(), &self.long, frame, at, false);
        assert_eq!(
            outcome, closely,
            "at a glance, closely: {at:?} {frame:02x?}"
        );
        let slot = self.short.policy.endpoint(at.ifindex);
        let slot = slot.map_or(0, |(config, _)| config.slot);
        before.check(&Books::of(&self.short), (at, slot, frame), outcome);
        let cluster = self.engine.cluster();
        let now = self.short.now.get();
        let seen = self.witness.see(cluster, (at, frame), outcome, now);
        assert!(
            seen.is_ok(),
            "{outcome:?}, but {seen:?}: {at:?} {frame:02x?} {:?} {:#?}",
            packet::parse(frame),
            cluster.policies().collect::<Vec<_>>()
        );
        outcome
    }
}

/// Where the node takes what comes in for these: each pod of its own is behind its own interface, or
/// all of them are on a bridge.
fn routes(parties: &[Addresses], is_routed: bool) -> HashMap<Address, u32> {
    let way = |(place, own): (usize, &Addresses)| {
        let interface = match ifindex(place) {
            Some(own) if is_routed => own,
            Some(_) => BRIDGE,
            None => UPLINK,
        };
        own.map(|address| (address.into(), interface))
    };
    parties.iter().enumerate().flat_map(way).collect()
}

/// What was counted of packets.
struct Books {
    passed: HashMap<u32, Traffic>,
    dropped: HashMap<u32, Traffic>,
    not_mine: u64,
}

impl Books {
    fn of(machine: &Machine<Tables>) -> Self {
        Self {
            passed: machine.passed.borrow().clone(),
            dropped: machine.dropped.borrow().clone(),
            not_mine: machine.counter(Counter::NotMine),
        }
    }

    /// One packet was counted since, by what became of it.
    fn check(&self, after: &Self, (at, slot, frame): (&Arrival, u32, &[u8]), outcome: Outcome) {
        let bytes = (frame.len() as u64).saturating_sub(14);
        let one = Traffic { packets: 1, bytes };
        let passed = added(&self.passed, &after.passed);
        let dropped = added(&self.dropped, &after.dropped);
        let not_mine = after.not_mine - self.not_mine;
        let row = |reason: Reason| {
            // A refusal is counted in the direction that was judged, which is the flow's.
            Direction::ALL.map(|direction| {
                let row = dropped_index(slot, direction.index(), reason.number());
                vec![(row, one)]
            })
        };
        let is_right = match outcome {
            Outcome::Pass(_) => {
                let row = passed_index(slot, at.hook.direction().index());
                passed == [(row, one)] && dropped.is_empty() && not_mine == 0
            }
            Outcome::Drop(reason) => {
                passed.is_empty() && row(reason).contains(&dropped) && not_mine == 0
            }
            Outcome::NotMine => passed.is_empty() && dropped.is_empty() && not_mine == 1,
        };
        assert!(
            is_right,
            "{outcome:?} is counted as passed {passed:?}, dropped {dropped:?}, not mine \
             {not_mine}: {at:?} {frame:02x?}"
        );
    }
}

fn added(before: &HashMap<u32, Traffic>, after: &HashMap<u32, Traffic>) -> Vec<(u32, Traffic)> {
    let added = |(row, now): (&u32, &Traffic)| {
        let then = before.get(row).copied().unwrap_or_default();
        let added = Traffic {
            packets: now.packets - then.packets,
            bytes: now.bytes - then.bytes,
        };
        (added != Traffic::default()).then_some((*row, added))
    };
    after.iter().filter_map(added).collect()
}

/// The interface of a local pod.
fn ifindex(party: usize) -> Option<u32> {
    let local = u32::try_from(party).ok().filter(|_| party < LOCALS);
    local.map(|place| FIRST_IFINDEX + place)
}
