//! What a packet costs in the kernel: one of an established flow, of a new allowed one, a denied
//! one; for growing numbers of rules, peers and flows, over both families. As ratios to floor
//! programs in the same run.
//!
//! Thread CPU time of test runs, in samples of a few hundred microseconds that take turns; lowest
//! decile, minus the same run of a program that does nothing. A program of the floor's makes the
//! packets those of many flows, so no system call is between them. Hot caches but for the flows:
//! real traffic costs 1.4 to 2 times as much; the ratios hold. Events are read between the samples.
//!
//! `--object FILE`: a build of `picket-ebpf` to measure beside the one that is built in.

#![expect(clippy::print_stdout, reason = "the table is the answer")]
#![expect(
    clippy::indexing_slicing,
    clippy::needless_range_loop,
    reason = "tables of families, objects and ways, indexed by loops over them"
)]

mod connection;
mod policy;
mod runner;

use std::path::PathBuf;

use agent::dataplane::{Dataplane, Events, Options, objects};
use agent_common::conntrack::Timeout;
use agent_common::maps::{MAPS, Settings, settings_flags};
use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, RingBuf};
use aya::{Ebpf, EbpfLoader};
use clap::Parser;
use tests::bench::lowest_decile;
use tests::lab::bare;
use tests::lab::namespace::leave_the_machine;
use tests::lab::pins::pinned_below;
use tests::packets::Frame;

use policy::{FAMILIES, IFINDEX, policy};
use runner::{DROP, PASS, Packets, Runner, program};

/// Rules, peers, flows.
const SIZES: [(u32, u32, u32); 8] = [
    (1, 1_000, 1),
    (100, 1_000, 1),
    (10_000, 1_000, 1),
    (100, 1, 1),
    (100, 100_000, 1),
    (10_000, 100_000, 1),
    (100, 1_000, 1_024),
    (100, 1_000, 65_536),
];
/// The one of them that a smoke test is content with.
const SMOKE: usize = 6;
/// Runs in one sample.
const RUNS: u32 = 1_000;
/// Entries of the tables of flows, the floor's and ours: no eviction among the new ones.
const FLOWS: u32 = 262_144;
/// What is wanted, as ratios to the floor: established, new, denied.
const WANTED: [f64; 3] = [1.5, 1.45, 1.7];
/// What may be at most; what is above what is wanted is among ARCHITECTURE.md's debts.
const LIMITS: [f64; 3] = [1.8, 2.2, 2.0];
/// Established packets may not cost more than this times their least with growing policy.
const GROWTH: f64 = 1.1;
const WAYS: [&str; 3] = ["established", "new", "denied"];

/// The floor's programs.
const FLOOR: [&str; 9] = [
    "bare",
    "parse_v4",
    "parse_v6",
    "floor_v4",
    "floor_v6",
    "new_v4",
    "new_v6",
    "denied_v4",
    "denied_v6",
];

/// TCP flags.
const FIN: u8 = 1;
const SYN: u8 = 2;
const ACK: u8 = 16;

#[derive(Debug, Parser)]
struct Args {
    /// Another build of picket-ebpf, measured in the same run.
    #[arg(long)]
    object: Vec<PathBuf>,
    /// Turns each program takes.
    #[arg(long, default_value_t = 60)]
    rounds: usize,
    /// Loads of the maps that each figure is the best of.
    #[arg(long, default_value_t = 4)]
    loads: usize,
    /// Say what reading the headers alone costs, and a refusal that is judged anew.
    #[arg(long = "verbose")]
    is_verbose: bool,
    /// What each segment of a connection costs, and nothing else.
    #[arg(long = "connection")]
    is_connection: bool,
    /// Not the first so many sizes of policy.
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// Only the next so many.
    #[arg(long, default_value_t = SIZES.len())]
    sizes: usize,
    /// Once through everything, of one size; no figure means anything, none is judged.
    #[arg(long)]
    smoke: bool,
}

/// By family: the floor's three ways, then each object's.
type Costs = [Vec<[f64; 3]>; 2];

fn main() -> Result<()> {
    let mut args = Args::parse();
    if args.smoke {
        (args.rounds, args.loads) = (1, 1);
        (args.skip, args.sizes) = (SMOKE, 1);
    }
    leave_the_machine()?;
    let _interface = bare::interfaces([IFINDEX])?;
    let mut objects = vec![("built in".to_owned(), objects::programs().to_vec())];
    for path in &args.object {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        objects.push((path.display().to_string(), bytes));
    }
    if args.is_connection {
        return connection::measure(&args, &objects);
    }

    println!("ns per packet, net of a bare program's (ratio to the floor)");
    println!(
        "{:>6} {:>7} {:>6} {:>9}  {:<22} {:<22} {:<22}",
        "rules", "peers", "flows", "", "established v4, v6", "new", "denied"
    );
    let mut worst = [0_f64; 3];
    let mut by_policy = [Vec::new(), Vec::new()];
    for (rules, peers, flows) in SIZES.into_iter().skip(args.skip).take(args.sizes) {
        let costs = best_of(&args, &objects, (rules, peers, flows))?;
        for object in 0..=objects.len() {
            print!("{rules:>6} {peers:>7} {flows:>6} ");
            match object {
                0 => print!("{:>9} ", "floor"),
                1 => print!("{:>9} ", "picket"),
                other => print!("{:>9} ", format!("object {}", other - 1)),
            }
            for way in 0..WAYS.len() {
                let cells = [0, 1].map(|family: usize| {
                    let [floor, ns] = [0, object].map(|of| costs[family][of][way]);
                    if object == 0 {
                        format!("{ns:.0}")
                    } else {
                        format!("{ns:.0} ({:.2}x)", ns / floor)
                    }
                });
                print!(" {:<22}", cells.join(", "));
            }
            println!();
        }
        for family in [0, 1] {
            let ratio = |way: usize| costs[family][1][way] / costs[family][0][way];
            // Of many flows each packet waits for memory, and how long is the machine's.
            if flows == 1 {
                for (way, worst) in worst.iter_mut().enumerate() {
                    *worst = worst.max(ratio(way));
                }
            }
            by_policy[family].push((flows, ratio(0)));
        }
    }
    // Goals are for one flow.
    let mut measured = by_policy.iter().flatten();
    if args.smoke || !measured.any(|(flows, _)| *flows == 1) {
        return Ok(());
    }
    judge(worst, &by_policy)
}

/// Fails when a ratio is over its limit, or grows with policy.
fn judge(worst: [f64; 3], by_policy: &[Vec<(u32, f64)>; 2]) -> Result<()> {
    let mut growth = 1_f64;
    for family in by_policy {
        let ratios = || {
            family
                .iter()
                .filter(|(flows, _)| *flows == 1)
                .map(|(_, ratio)| *ratio)
        };
        growth = growth.max(ratios().fold(0.0, f64::max) / ratios().fold(f64::INFINITY, f64::min));
    }
    println!("established: {growth:.2}x from least to most policy");
    ensure!(
        growth <= GROWTH,
        "an established packet's cost grows {growth:.2}x with policy; at most {GROWTH}x is allowed"
    );
    for (way, name) in WAYS.iter().enumerate() {
        let (worst, wanted, limit) = (worst[way], WANTED[way], LIMITS[way]);
        println!("{name}: at most {worst:.2}x the floor ({wanted}x wanted)");
        ensure!(
            worst <= limit,
            "{name}: {worst:.2}x the floor; at most {limit}x is allowed"
        );
    }
    Ok(())
}

/// Costs for one size of policy: the least of several loads, because where maps happen to lie makes
/// up to a sixth of difference. Each family has maps of its own, as the floor's families have: what
/// is in them already makes a new flow dearer.
fn best_of(args: &Args, objects: &[(String, Vec<u8>)], size: (u32, u32, u32)) -> Result<Costs> {
    let mut best: Costs = Default::default();
    for (family, best) in best.iter_mut().enumerate() {
        *best = series(args, objects, size, family)?;
        for _ in 1..args.loads {
            let other = series(args, objects, size, family)?;
            for (best, other) in best.iter_mut().flatten().zip(other.iter().flatten()) {
                *best = best.min(*other);
            }
        }
    }
    Ok(best)
}

/// Costs for one size of policy and one family.
fn series(
    args: &Args,
    objects: &[(String, Vec<u8>)],
    (rules, peers, flows): (u32, u32, u32),
    family: usize,
) -> Result<Vec<[f64; 3]>> {
    let dataplane = prepared((rules, peers), Some(FLOWS))?;
    let mut runner = Runner::new(Ebpf::load(objects::floor())?, &FLOOR)?;
    let mut ours = Vec::new();
    for (at, (name, bytes)) in objects.iter().enumerate() {
        let mut own = own_programs(&dataplane, Some(FLOWS), bytes)
            .with_context(|| format!("loading {name}"))?;
        for hook in ["from_pod", "to_pod"] {
            let fd = program(&mut own, hook)?.fd()?.try_clone()?;
            runner.place(&format!("{hook} {at}"), &fd)?;
        }
        ours.push(own);
    }
    open_flows(&mut runner, flows, family)?;

    let mut events = dataplane.events()?;
    let (mut bare, mut parse, mut anew) = (Vec::new(), Vec::new(), Vec::new());
    let mut samples: Vec<[Vec<f64>; 3]> = vec![Default::default(); 1 + objects.len()];
    let to = FAMILIES[family];
    let refused = Frame::udp((to.pod, 0), (to.stranger, 0)).bytes();
    // Past the flows that are established.
    let mut fresh = 1 << 16;
    for round in 0..args.rounds {
        let mut turns: Vec<(usize, usize)> = (0..=objects.len())
            .flat_map(|object| (0..WAYS.len()).map(move |way| (object, way)))
            .collect();
        if round % 2 == 1 {
            turns.reverse();
        }
        for (object, way) in turns {
            let (peer, flags) = [(to.friend, ACK), (to.friend, SYN), (to.stranger, SYN)][way];
            let frame = Frame::tcp((to.pod, 0), (peer, 0), flags).bytes();
            let packets = Packets {
                frame: &frame,
                is_to_pod: false,
                first: fresh,
                flows: [flows, 0, 1][way],
                action: [PASS, PASS, DROP][way],
            };
            let name = match object {
                0 => format!("{}_v{}", ["floor", "new", "denied"][way], [4, 6][family]),
                other => format!("from_pod {}", other - 1),
            };
            if way == 0 && flows > 1 {
                // Once through all of them: otherwise each finds in the caches what the program
                // before it left there, and the one that ended the last round and begins this one,
                // its own.
                runner.run(&name, packets, flows)?;
            }
            let ns = runner.run(&name, packets, RUNS)?;
            samples[object][way].push(ns);
            if way == 1 {
                fresh += RUNS;
            }
            if (object, way) == (0, 0) {
                bare.push(runner.run("bare", packets, RUNS)?);
            }
            if (object, way) == (0, 0) && args.is_verbose {
                let name = ["parse_v4", "parse_v6"][family];
                parse.push(runner.run(name, packets, RUNS)?);
                // Refusals of TCP are remembered for a moment, those of UDP never.
                let packets = Packets {
                    frame: &refused,
                    flows: 1,
                    action: DROP,
                    ..packets
                };
                anew.push(runner.run("from_pod 0", packets, RUNS)?);
            }
            drain(&mut runner, &mut events)?;
        }
    }
    drop((ours, events));
    removed(dataplane)?;
    let bare = lowest_decile(bare);
    let net = |samples| lowest_decile(samples) - bare;
    if args.is_verbose {
        let (parse, anew) = (net(parse), net(anew));
        let family = ["IPv4", "IPv6"][family];
        println!("{family}: parsing alone {parse:.0}, denied, judged anew {anew:.0}");
    }
    Ok(samples.into_iter().map(|ways| ways.map(net)).collect())
}

/// The dataplane with a policy of so many rules and peers, and room for other numbers of flows
/// than usual.
fn prepared((rules, peers): (u32, u32), flows: Option<u32>) -> Result<Dataplane> {
    let mut options = Options::new(pins());
    for map in ["PENDING", "CONNTRACK"] {
        let capacity = flows.map(|flows| (map.to_owned(), flows));
        options.capacities.extend(capacity);
    }
    let mut dataplane = Dataplane::open(&options)?;
    dataplane.put_settings(&Settings {
        flags: settings_flags::REPORT_ALLOWED,
        hz: dataplane.hz(),
        report_interval: dataplane.hz(),
        timeouts: Timeout::defaults(dataplane.hz()),
        budget_rate: 1 << 31,
        budget_burst: 1 << 31,
        ..Settings::default()
    })?;
    dataplane.apply(&policy(rules, peers))?;
    Ok(dataplane)
}

/// Takes it away.
fn removed(dataplane: Dataplane) -> Result<()> {
    drop(dataplane);
    agent::dataplane::uninstall(&pins())?;
    Ok(())
}

fn pins() -> PathBuf {
    format!("/sys/fs/bpf/bench-{}", std::process::id()).into()
}

/// Takes what was reported: a reader that looks by the clock comes late, and never in between.
fn drain(runner: &mut Runner, events: &mut Events) -> Result<()> {
    while !events.take().is_empty() {}
    drain_floor(runner)
}

fn drain_floor(runner: &mut Runner) -> Result<()> {
    let map = runner.floor().map_mut("FLOOR_EVENTS");
    let mut events = RingBuf::try_from(map.context("no map FLOOR_EVENTS")?)?;
    while events.next().is_some() {}
    Ok(())
}

/// Makes the flows known, to the floor as to us, and the stranger to the floor.
fn open_flows(runner: &mut Runner, flows: u32, family: usize) -> Result<()> {
    let mut refused: HashMap<_, [u8; 16], u64> = HashMap::try_from(
        runner
            .floor()
            .map_mut("FLOOR_REFUSED")
            .context("no map FLOOR_REFUSED")?,
    )?;
    let to = FAMILIES[family];
    let mut key = [0; 16];
    match to.stranger {
        std::net::IpAddr::V4(v4) => key[..4].copy_from_slice(&v4.octets()),
        std::net::IpAddr::V6(v6) => key.copy_from_slice(&v6.octets()),
    }
    refused.insert(key, 1, 0)?;
    let (pod, friend) = ((to.pod, 0), (to.friend, 0));
    for (program, is_to_pod, frame) in [
        (
            ["new_v4", "new_v6"][family],
            false,
            Frame::tcp(pod, friend, SYN),
        ),
        ("from_pod 0", false, Frame::tcp(pod, friend, SYN)),
        ("to_pod 0", true, Frame::tcp(friend, pod, SYN | ACK)),
        ("from_pod 0", false, Frame::tcp(pod, friend, ACK)),
    ] {
        let packets = Packets {
            frame: &frame.bytes(),
            is_to_pod,
            first: 0,
            flows,
            action: PASS,
        };
        runner.run(program, packets, flows)?;
        drain_floor(runner)?;
    }
    Ok(())
}

/// An object over the dataplane's pinned maps, of which PENDING may have another size than usual, to
/// be run repeatedly.
fn own_programs(dataplane: &Dataplane, pending: Option<u32>, object: &[u8]) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    for spec in MAPS {
        loader.map_pin_path(spec.name, pinned_below(dataplane.pins(), spec.name));
    }
    if let Some(capacity) = pending {
        loader.map_max_entries("PENDING", capacity);
    }
    let mut ours = loader.load(object)?;
    for name in ["from_pod", "to_pod"] {
        program(&mut ours, name)?.load()?;
    }
    Ok(ours)
}
