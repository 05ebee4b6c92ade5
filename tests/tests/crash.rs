//! An agent that dies after any single write of any plan, over real maps and real packets: what
//! is in the maps then judges each packet as before the plan or as after it, and the next agent
//! makes it whole. `PICKET_SEED` repeats a run, `PICKET_THOROUGH` makes it long.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "all of this is a test: whatever fails ends it"
)]

// The worlds, and the node with its engine, of the engine's own properties.
#[expect(dead_code, reason = "not all of it is asked for here")]
#[path = "../../agent/policy/tests/properties/node.rs"]
mod node;
#[path = "../../agent/policy/tests/properties/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use agent::dataplane::{Action, Dataplane, Options};
use agent_common::Address;
use agent_common::classify::{Arrival, Hook, Outcome};
use agent_common::conntrack::Timeout;
use agent_common::maps::Settings;
use agent_policy::engine;
use agent_policy::plan::Write;
use agent_policy::tables::Tables;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use tests::lab::bare;
use tests::lab::namespace::leave_the_machine;
use tests::machine::Machine;
use tests::packets::Frame;
use tests::runs::{is_thorough, seed};

use node::Node;
use world::Event;

const PINS: &str = "/sys/fs/bpf/crash";
/// No pod's: what comes from here comes from elsewhere.
const UPLINK: u32 = 1;
/// The originator's port of connections that live as long as the test.
const LASTING: u16 = 40_000;
/// Where rules draw their edges, and beside them; the engine's own properties ask for every port.
const PROBED: [(u8, u16); 4] = [(6, 80), (6, 443), (17, 53), (1, 0)];
const SYN: u8 = 2;
/// Longer than anything rests.
const RESTED: Duration = Duration::from_secs(3);

/// One packet at one hook.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Probe {
    ifindex: u32,
    is_from_pod: bool,
    local: IpAddr,
    peer: IpAddr,
    protocol: u8,
    port: u16,
}

impl Probe {
    fn at(&self) -> Arrival {
        let (hook, ingress_ifindex) = if self.is_from_pod {
            (Hook::FromPod, self.ifindex)
        } else {
            (Hook::ToPod, UPLINK)
        };
        Arrival {
            hook,
            ifindex: self.ifindex,
            ingress_ifindex,
        }
    }

    /// The first packet of a flow as its originator sends it; sent again, it is of the same flow.
    fn frame(&self, originators_port: u16) -> Vec<u8> {
        let (from, to) = if self.is_from_pod {
            (self.local, self.peer)
        } else {
            (self.peer, self.local)
        };
        let ends = ((from, originators_port), (to, self.port));
        let frame = match self.protocol {
            6 => Frame::tcp(ends.0, ends.1, SYN),
            17 => Frame::udp(ends.0, ends.1),
            _ => Frame::echo_request(from, to, originators_port),
        };
        frame.bytes()
    }
}

/// Every packet between an address that an endpoint has in one of the states and one that rules
/// may tell apart.
fn probes(states: [&Tables; 2]) -> Vec<Probe> {
    let mut locals = BTreeSet::new();
    for tables in states {
        for (ifindex, word) in &tables.endpoints {
            let addresses = tables.configs[&word.config_row].addresses;
            let known = addresses
                .into_iter()
                .filter(|own| *own != Address::UNSPECIFIED);
            locals.extend(known.map(|own| (*ifindex, IpAddr::from(own))));
        }
    }
    let mut probes = Vec::new();
    for (ifindex, local) in locals {
        let peers = world::addresses();
        for peer in peers
            .into_iter()
            .filter(|peer| peer.is_ipv4() == local.is_ipv4())
        {
            for (protocol, port) in PROBED {
                probes.extend([true, false].map(|is_from_pod| Probe {
                    ifindex,
                    is_from_pod,
                    local,
                    peer,
                    protocol,
                    port,
                }));
            }
        }
    }
    probes
}

/// What the host says of a first packet.
fn judged(tables: &Tables, settings: Settings, probes: &[Probe]) -> Vec<bool> {
    let mut machine = Machine::new(tables.clone());
    machine.policy.settings = settings;
    let passes = |probe: &Probe| {
        let outcome = machine.classify(probe.at(), &probe.frame(LASTING));
        matches!(outcome, Outcome::Pass(_))
    };
    probes.iter().map(passes).collect()
}

/// A node whose maps are the kernel's; the node's own tables say what should be in them.
struct Crashing {
    node: Node,
    dataplane: Option<Dataplane>,
    /// Gives each flow that is asked for once a port of its own.
    round: u16,
}

impl Crashing {
    fn new() -> Self {
        Self {
            node: Node::new(engine::Options::default()),
            dataplane: Some(open()),
            round: 0,
        }
    }

    fn dataplane(&mut self) -> &mut Dataplane {
        self.dataplane.as_mut().unwrap()
    }

    fn write(&mut self, write: &Write) {
        self.node.tables.apply(write);
        let done = self.dataplane().apply(std::slice::from_ref(write));
        assert_eq!(done.unwrap(), 1);
    }

    /// Carries writes out one by one, looking at real packets after each, of flows that were there
    /// before and of new ones; `new` is where the whole plan leads. Flows that were there before may
    /// be as old as what was `settled`: a dead agent's plan is not their end.
    fn watch(
        &mut self,
        writes: &[Write],
        [settled, old, new]: [&Tables; 3],
    ) -> Result<(), TestCaseError> {
        let settings = self.dataplane().settings().unwrap();
        let probes = probes([old, new]);
        let [long_before, before, after] =
            [settled, old, new].map(|tables| judged(tables, settings, &probes));
        let is_left = |place: usize, port| before[place] || (port == LASTING && long_before[place]);
        self.ask(
            &probes,
            |place, port| vec![before[place], is_left(place, port)],
            || "before the plan".to_owned(),
        )?;
        // Another slot is another endpoint: nothing is published while the one goes and the other
        // comes.
        let slot = |tables: &Tables, probe: &Probe| {
            let word = tables.endpoints.get(&probe.ifindex)?;
            Some(tables.configs[&word.config_row].slot)
        };
        let between: Vec<bool> = probes
            .iter()
            .zip(&before)
            .map(|(probe, before)| *before && slot(old, probe) == slot(new, probe))
            .collect();
        for (place, write) in writes.iter().enumerate() {
            self.write(write);
            let when = || format!("after write {place} of {writes:#?}");
            let wanted = |place: usize, port| {
                let left = is_left(place, port);
                vec![before[place], after[place], between[place], left]
            };
            self.ask(&probes, wanted, when)?;
        }
        Ok(())
    }

    /// Each packet meets one of its verdicts, which are a probe's with a port of its originator.
    fn ask(
        &mut self,
        probes: &[Probe],
        wanted: impl Fn(usize, u16) -> Vec<bool>,
        when: impl Fn() -> String,
    ) -> Result<(), TestCaseError> {
        self.round = self.round.wrapping_add(1) % 20_000;
        let once = LASTING + 1 + self.round;
        for (place, probe) in probes.iter().enumerate() {
            for originators_port in [LASTING, once] {
                let at = probe.at();
                let frame = probe.frame(originators_port);
                let action = self
                    .dataplane()
                    .test_run(at.hook, &frame, at.ifindex, at.ingress_ifindex)
                    .unwrap();
                let passes = action == Action::Pass;
                let wanted = wanted(place, originators_port);
                prop_assert!(
                    wanted.contains(&passes),
                    "{probe:?} passes: {passes}, was and will be: {wanted:?}, from port \
                     {originators_port}, {}",
                    when()
                );
            }
        }
        Ok(())
    }

    /// What happens is planned and carried out. With a `cut` the agent dies there, and the next one
    /// takes over.
    fn happen(&mut self, events: &[Event], cut: Option<Index>) -> Result<(), TestCaseError> {
        let old = self.node.tables.clone();
        self.node.happen(events);
        let Some(plan) = self.node.engine.plan(self.node.now).unwrap() else {
            return Ok(());
        };
        let mut whole = old.clone();
        whole.apply_all(&plan.writes);
        let Some(cut) = cut else {
            self.watch(&plan.writes, [&old, &old, &whole])?;
            return self.be_settled(&old);
        };
        // Also before the first write, and after the last.
        let cut = cut.index(plan.writes.len() + 1);
        self.watch(&plan.writes[..cut], [&old, &old, &whole])?;

        self.dataplane = None;
        self.dataplane = Some(open());
        let left = self.dataplane().present().unwrap();
        self.node.tables.settings = left.settings;
        prop_assert_eq!(
            &left,
            &self.node.tables,
            "what the dead agent wrote is there"
        );
        self.node = self.node.restarted();
        let settled = old;
        let old = self.node.tables.clone();
        let plan = self.node.engine.plan(self.node.now).unwrap();
        let writes = plan.map(|plan| plan.writes.clone()).unwrap_or_default();
        let mut repaired = old.clone();
        repaired.apply_all(&writes);
        self.watch(&writes, [&settled, &old, &repaired])?;
        self.be_settled(&old)?;
        self.keep_nothing()?;
        self.be_settled(&repaired)
    }

    /// What nobody wants any more is gone once it has rested, the dead agent's leavings too.
    fn keep_nothing(&mut self) -> Result<(), TestCaseError> {
        self.node.engine.compact();
        for _ in 0..4 {
            let plan = self.node.engine.plan(self.node.now).unwrap();
            let writes = plan.map(|plan| plan.writes.clone()).unwrap_or_default();
            for write in &writes {
                self.write(write);
            }
            self.node.engine.written(self.node.now);
            self.node.now += RESTED;
        }
        let left = self.dataplane().present().unwrap();
        prop_assert_eq!(&left, &self.node.tables, "what was cleared away is gone");
        // A node that comes later does not know pods that are gone already.
        if self.node.knows_every_pod() {
            let fresh = self.node.fresh()?;
            prop_assert_eq!(
                node::sizes(&left),
                node::sizes(&fresh.tables),
                "something is left"
            );
        }
        Ok(())
    }

    /// The plan is carried out: what was opened before it and is forbidden now is cut.
    fn be_settled(&mut self, old: &Tables) -> Result<(), TestCaseError> {
        self.node.engine.written(self.node.now);
        self.node.check_against_specification()?;
        let settings = self.dataplane().settings().unwrap();
        let new = self.node.tables.clone();
        let probes = probes([old, &new]);
        let wanted = judged(&new, settings, &probes);
        let when = || "in the end".to_owned();
        self.ask(&probes, |place, _port| vec![wanted[place]], when)
    }
}

fn open() -> Dataplane {
    let mut options = Options::new(PINS);
    // Nothing is to be forgotten: the kernel's memory is not what is asked for.
    for map in ["PENDING", "DENIED"] {
        options.capacities.push((map.to_owned(), 524_288));
    }
    let mut dataplane = Dataplane::open(&options).unwrap();
    let settings = Settings {
        timeouts: Timeout::defaults(dataplane.hz()).map(|_| u32::MAX / 2),
        report_interval: u32::MAX,
        budget_rate: u32::MAX,
        budget_burst: u32::MAX,
        ..Settings::default()
    };
    dataplane.put_settings(&settings).unwrap();
    dataplane
}

#[test]
fn an_agent_that_dies_after_any_write_leaves_old_or_new_and_the_next_one_repairs() {
    let seed = seed(1);
    let worlds = if is_thorough() { 100 } else { 5 };
    leave_the_machine().unwrap();
    let _interfaces = bare::interfaces((0..world::LOCAL).map(node::ifindex)).unwrap();
    let mut runner = TestRunner::new(Config {
        rng_seed: RngSeed::Fixed(seed),
        ..Config::default()
    });
    let together = proptest::collection::vec(world::event(), 3..9);
    let cut = proptest::option::of(any::<Index>());
    let changes = proptest::collection::vec((together, cut), 2..5);
    let story = (world::history(1), changes);
    for world in 0..worlds {
        let (history, changes) = story.new_tree(&mut runner).unwrap().current();
        let mut crashing = Crashing::new();
        crashing.node.happen(&history[0]);
        if let Some(plan) = crashing.node.engine.plan(crashing.node.now).unwrap() {
            for write in &plan.writes {
                crashing.write(write);
            }
            crashing.node.engine.written(crashing.node.now);
        }
        for (events, cut) in changes {
            if let Err(error) = crashing.happen(&events, cut) {
                panic!("PICKET_SEED={seed}, world {world}: {error}\n{events:#?}");
            }
        }
        drop(crashing);
        agent::dataplane::uninstall(std::path::Path::new(PINS)).unwrap();
    }
}
