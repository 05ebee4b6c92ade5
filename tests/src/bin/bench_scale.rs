//! How long changes take to be in force: from a file's write to the kernel's maps, through the
//! whole agent; and plans that move 50 000 pods at once, planned and written.

#![expect(clippy::print_stdout, reason = "the table is the answer")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use agent::dataplane::{Dataplane, Options};
use agent_common::maps::ENDPOINT_ROWS;
use agent_policy::engine::{Engine, LocalEndpoint};
use agent_policy::model::{
    Change, Labels, Namespace, NamespaceScope, ObjectName, Peer, Peers, Phase, Pod, PodUid, Policy,
    Ports, Rule,
};
use agent_policy::selector::{Operator, Requirement, Selector};
use anyhow::{Context as _, Result, anyhow, ensure};
use aya::maps::{Array, Map, MapData};
use tests::cpu::thread_time;
use tests::lab::bare;
use tests::lab::namespace::leave_the_machine;
use tests::lab::objects::{self, policy};
use tests::lab::pins::pinned;
use tests::lab::stage::Stage;

/// Changes of one policy, one after the other.
const CHANGES: usize = 41;
/// What the middle one of them may take.
const CHANGE_WITHIN: Duration = Duration::from_millis(100);
/// How long to wait for one.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pods that one rule's list names.
const PODS: u32 = 50_000;
/// What writing them may take.
const ATOM_WITHIN: Duration = Duration::from_millis(50);
/// Times it is done; the best counts, the machine does other things, too.
const TURNS: usize = 5;
const IFINDEX: u32 = 11;

fn main() -> Result<()> {
    // Each in a world of its own, which goes with its thread.
    on_a_thread(changes)?;
    on_a_thread(atom)
}

fn on_a_thread(measure: fn() -> Result<()>) -> Result<()> {
    std::thread::spawn(measure)
        .join()
        .map_err(|_panic| anyhow!("the measurement panicked"))?
}

/// From the write of a file to the word that every packet's judgement begins with.
fn changes() -> Result<()> {
    let cluster = [
        objects::namespace("shop", ""),
        objects::pod("shop/api", "", &["10.3.0.1"]),
    ];
    let mut stage = Stage::open(&cluster.join("---\n"))?;
    stage.settle()?;
    let place = stage.lab.place("shop/api")?.veth & (ENDPOINT_ROWS - 1);
    let map = MapData::from_pin(pinned("ENDPOINTS"))?;
    let words: Array<MapData, u64> = Map::Array(map).try_into()?;
    let mut took = Vec::new();
    for change in 0..CHANGES {
        let before = words.get(&place, 0)?;
        let port = 1000 + change;
        let spec = format!("{{podSelector: {{}}, ingress: [{{ports: [{{port: {port}}}]}}]}}");
        let began = Instant::now();
        stage
            .lab
            .write_manifest("policy.yaml", &policy("shop", "p", &spec))?;
        while words.get(&place, 0)? == before {
            ensure!(began.elapsed() < PATIENCE, "change {change} never came");
            std::thread::yield_now();
        }
        took.push(began.elapsed());
    }
    took.sort();
    let at = |part: usize| took.get((took.len() - 1) * part / 100).copied();
    let [median, most, all] = [at(50), at(90), at(100)].map(Option::unwrap_or_default);
    println!(
        "a policy's change, from the file's write to the maps, {CHANGES} times: median {}, 90 % within {}, all within {}",
        ms(median),
        ms(most),
        ms(all)
    );
    ensure!(
        median <= CHANGE_WITHIN,
        "the median is {}, more than {}",
        ms(median),
        ms(CHANGE_WITHIN)
    );
    Ok(())
}

/// What a plan took.
#[derive(Clone, Copy)]
struct Took {
    writes: usize,
    plan: Duration,
    maps: Duration,
    /// Of that, this thread's own time: what it takes on a machine that does nothing else.
    cpu: Duration,
}

/// A node with one pod of its own among many elsewhere.
struct Node {
    engine: Engine,
    dataplane: Dataplane,
    began: Instant,
}

impl Node {
    fn new(pins: &str) -> Result<Self> {
        let mut node = Self {
            engine: Engine::new(agent_policy::engine::Options::default()),
            dataplane: Dataplane::open(&Options::new(pins))?,
            began: Instant::now(),
        };
        let local = pod(0);
        let uid = local.uid.clone();
        node.apply(Change::Namespace(Namespace {
            name: "shop".into(),
            labels: Labels::new(),
            annotations: Labels::new(),
        }));
        node.apply(Change::Pod(Box::new(local)));
        node.engine.attach(LocalEndpoint {
            uid,
            ifindex: IFINDEX,
            addresses: Vec::new(),
            attached: 0,
            fails_open: false,
        });
        for n in 1..=PODS {
            node.apply(Change::Pod(Box::new(pod(n))));
        }
        node.settle()?;
        Ok(node)
    }

    fn apply(&mut self, change: Change) {
        // What it touches, the plan knows.
        drop(self.engine.apply(change));
    }

    /// Plans and carries out.
    fn settle(&mut self) -> Result<Took> {
        let began = Instant::now();
        let plan = self.engine.plan(self.began.elapsed())?;
        let planned = Instant::now();
        let writes = plan.map(|plan| plan.writes.clone()).unwrap_or_default();
        let (copied, busy) = (Instant::now(), thread_time());
        self.dataplane.apply(&writes)?;
        let (maps, cpu) = (copied.elapsed(), thread_time().saturating_sub(busy));
        self.engine.written(self.began.elapsed());
        Ok(Took {
            writes: writes.len(),
            plan: planned.duration_since(began),
            maps,
            cpu,
        })
    }
}

fn atom() -> Result<()> {
    leave_the_machine()?;
    let _interface = bare::interfaces([IFINDEX])?;
    let mut rows: Vec<(&str, Vec<Took>)> = [
        "a rule comes that names all of them",
        "the rule goes, and what it left is cleared away",
        "they go while a rule names them",
    ]
    .map(|what| (what, Vec::new()))
    .into();
    for turn in 0..TURNS {
        let pins = format!("/sys/fs/bpf/scale-{turn}");
        let mut node = Node::new(&pins)?;
        let mut steps = Vec::new();
        node.apply(naming_all());
        steps.push(node.settle()?);
        node.apply(Change::PolicyGone(ObjectName::new("shop", "p")));
        node.settle()?;
        node.engine.compact();
        steps.push(node.settle()?);
        node.apply(naming_all());
        node.settle()?;
        for n in 1..=PODS {
            node.apply(Change::PodGone(pod(n).uid));
        }
        steps.push(node.settle()?);
        for (row, step) in rows.iter_mut().zip(steps) {
            row.1.push(step);
        }
        drop(node);
        agent::dataplane::uninstall(std::path::Path::new(&pins))?;
    }
    println!("\n{PODS} pods at once, best of {TURNS}");
    println!(
        "{:<50} {:>8} {:>10} {:>10} {:>10}",
        "", "writes", "planning", "writing", "(CPU)"
    );
    let mut worst = Duration::ZERO;
    for (what, took) in rows {
        let best = took
            .into_iter()
            .min_by_key(|took| took.cpu)
            .context("at least one turn")?;
        let [plan, maps, cpu] = [best.plan, best.maps, best.cpu].map(ms);
        println!(
            "{what:<50} {:>8} {plan:>10} {maps:>10} {cpu:>10}",
            best.writes
        );
        ensure!(
            best.writes >= PODS as usize,
            "{what}: only {} writes, so nothing was measured",
            best.writes
        );
        worst = worst.max(best.cpu);
    }
    let word = if worst <= ATOM_WITHIN {
        "met"
    } else {
        "missed"
    };
    println!("the goal for writing, {} of CPU: {word}", ms(ATOM_WITHIN));
    Ok(())
}

fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

fn pod(n: u32) -> Pod {
    let role = if n == 0 { "server" } else { "client" };
    Pod {
        uid: PodUid(format!("uid-{n}").into()),
        name: ObjectName::new("shop", format!("pod-{n}")),
        labels: [("role".to_owned(), role.to_owned())].into(),
        addresses: vec![IpAddr::V4(Ipv4Addr::from(
            u32::from(Ipv4Addr::new(10, 0, 0, 1)) + n,
        ))],
        ports: Vec::new(),
        host_network: false,
        phase: Phase::Live,
        created: 0,
        node: String::new(),
        workload: String::new(),
        annotations: Labels::new(),
    }
}

fn with_role(role: &str) -> Selector {
    Selector::new(vec![Requirement {
        key: "role".to_owned(),
        operator: Operator::In(vec![role.to_owned()]),
    }])
}

fn naming_all() -> Change {
    Change::Policy(Box::new(Policy {
        name: ObjectName::new("shop", "p"),
        pods: with_role("server"),
        isolates_ingress: true,
        isolates_egress: false,
        ingress: vec![Rule {
            peers: Peers::Any(vec![Peer::Pods {
                namespaces: NamespaceScope::Own,
                pods: with_role("client"),
            }]),
            ports: Ports::All,
        }],
        egress: Vec::new(),
        annotations: Labels::new(),
    }))
}
