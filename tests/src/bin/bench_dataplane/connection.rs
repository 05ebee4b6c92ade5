//! What a connection costs, segment by segment: at the pod that opens it, and at the one that it is
//! opened to. Beside it the floor's programs that track connections. With as much room as a pod has
//! for its connections, and more of them than that: each new one takes the place of an old one.

use agent::dataplane::objects;
use agent_common::maps::CONNTRACK_CAPACITY;
use anyhow::Result;
use aya::{Ebpf, EbpfLoader};
use tests::bench::lowest_decile;
use tests::packets::Frame;

use crate::policy::FAMILIES;
use crate::runner::{PASS, Packets, Runner, program};
use crate::{ACK, Args, FIN, SYN, drain, own_programs, prepared, removed};

/// Connections of a sample. Their segments come in turns: all of the first ones, then all of the
/// second ones.
const CONNECTIONS: u32 = 256;
const SIZE: (u32, u32) = (100, 10_000);

/// Who sends a segment, and its flags.
const SEGMENTS: [(&str, Side, u8); 9] = [
    ("SYN", Side::Client, SYN),
    ("SYN-ACK", Side::Server, SYN | ACK),
    ("ACK", Side::Client, ACK),
    ("a request", Side::Client, ACK),
    ("its answer", Side::Server, ACK),
    ("FIN", Side::Server, FIN | ACK),
    ("its ACK", Side::Client, ACK),
    ("the other FIN", Side::Client, FIN | ACK),
    ("its ACK", Side::Server, ACK),
];

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Side {
    Client,
    Server,
}

/// Prints the table.
pub(crate) fn measure(args: &Args, objects: &[(String, Vec<u8>)]) -> Result<()> {
    for family in 0..FAMILIES.len() {
        for pod in [Side::Client, Side::Server] {
            let costs = costs(args, objects, family, pod)?;
            let name = ["IPv4", "IPv6"][family];
            let pod = ["client", "server"][usize::from(pod == Side::Server)];
            println!("\n{name}, at the {pod}: the floor, Picket, each object");
            for ((segment, _, _), costs) in SEGMENTS.iter().zip(&costs) {
                print_row(segment, costs);
            }
            let mut sums = vec![0.0; 1 + objects.len()];
            for costs in &costs {
                for (sum, cost) in sums.iter_mut().zip(costs) {
                    *sum += cost;
                }
            }
            print_row("all of them", &sums);
        }
    }
    Ok(())
}

fn print_row(name: &str, costs: &[f64]) {
    print!("{name:<16}");
    for ns in costs {
        print!("{ns:>8.0}");
    }
    println!();
}

/// ns by segment, then by floor and objects; net of a bare program's.
fn costs(
    args: &Args,
    objects: &[(String, Vec<u8>)],
    family: usize,
    pod: Side,
) -> Result<Vec<Vec<f64>>> {
    let dataplane = prepared(SIZE, None)?;
    let family_name = ["v4", "v6"][family];
    let floors = ["from", "to"].map(|hook| format!("track_{hook}_{family_name}"));
    let mut loader = EbpfLoader::new();
    for map in ["FLOOR_FLOWS_V4", "FLOOR_FLOWS_V6"] {
        loader.map_max_entries(map, CONNTRACK_CAPACITY);
    }
    let floor = loader.load(objects::floor())?;
    let mut runner = Runner::new(floor, &["bare", &floors[0], &floors[1]])?;
    let mut ours: Vec<Ebpf> = Vec::new();
    for (at, (_, bytes)) in objects.iter().enumerate() {
        let mut own = own_programs(&dataplane, None, bytes)?;
        for hook in ["from_pod", "to_pod"] {
            let fd = program(&mut own, hook)?.fd()?.try_clone()?;
            runner.place(&format!("{hook} {at}"), &fd)?;
        }
        ours.push(own);
    }
    let mut events = dataplane.events()?;
    let ends = FAMILIES[family];
    let mut samples = vec![vec![Vec::new(); 1 + objects.len()]; SEGMENTS.len()];
    let mut bare = Vec::new();
    let mut first = 0;
    for round in 0..args.rounds {
        for turn in 0..=objects.len() {
            let object = (turn + round) % (1 + objects.len());
            for ((_, by, flags), samples) in SEGMENTS.into_iter().zip(&mut samples) {
                let is_to_pod = by != pod;
                let (from, to) = if is_to_pod {
                    (ends.friend, ends.pod)
                } else {
                    (ends.pod, ends.friend)
                };
                let frame = Frame::tcp((from, 0), (to, 0), flags).bytes();
                let packets = Packets {
                    frame: &frame,
                    is_to_pod,
                    first,
                    flows: 0,
                    action: PASS,
                };
                let hook = if is_to_pod { "to_pod" } else { "from_pod" };
                let name = match object {
                    0 => floors[usize::from(is_to_pod)].clone(),
                    own => format!("{hook} {}", own - 1),
                };
                samples[object].push(runner.run(&name, packets, CONNECTIONS)?);
                if object == 0 {
                    bare.push(runner.run("bare", packets, CONNECTIONS)?);
                }
            }
            first += CONNECTIONS;
            drain(&mut runner, &mut events)?;
        }
    }
    drop((ours, events));
    removed(dataplane)?;
    let bare = lowest_decile(bare);
    let net = |samples: Vec<f64>| lowest_decile(samples) - bare;
    Ok(samples
        .into_iter()
        .map(|segment| segment.into_iter().map(net).collect())
        .collect())
}
