//! What traffic between two pods of a node costs: with no program at all, with the least that
//! programs which track connections can do, with Picket, and with netfilter in its place, in one run.
//!
//! Each stands between a client and a server in network namespaces, a thread each, that take turns
//! on one CPU. What counts is the CPU time of both and of the kernel's thread that does network work
//! on that CPU; softirqs run on top of these three. Samples of some milliseconds take turns, in
//! rounds that go to and fro; lowest decile. Each set-up has new nodes, because where memory
//! happens to lie makes a difference: added is the median of what each set-up says.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the table is the answer"
)]

mod floor;
mod traffic;
mod variants;

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use serde::Serialize;
use tests::bench::{Form, Goal, cpus, lowest_decile, median, verdict};

use traffic::{Kind, Order};
use variants::{Agents, Load, Node, Variant};

/// What a MiB may cost with Picket, as a ratio to nothing.
const BULK_AT_MOST: f64 = 1.03;
/// Exit code of usage errors and of what could not be measured.
const EXIT_ERROR: u8 = 2;

/// Measure what traffic between two pods costs: nothing, Picket, and netfilter, in one run
///
/// Three kinds of traffic, client and server on one CPU: a byte there and back over one connection
/// (netperf's RR), a connection for each (CRR), bulk. Wanted is that Picket adds less to a
/// transaction than bare connection tracking does, and less than an nft set as large as its peers;
/// and at most 3 % to bulk. "no program, again" says how far apart two figures of one thing are;
/// "floor programs", what it costs at each of the two pods to look a connection up, to keep and
/// report a new one, and to count, whatever is asked of policy.
///
/// Exit codes: 0 goals met · 1 a goal is missed · 2 error.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench wire", max_term_width = 100)]
struct Arguments {
    /// Rounds of each set-up; each measures everything once.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Set-ups, each with new nodes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    setups: u32,
    /// Peers of the pods; addresses in the set.
    #[arg(long, default_value_t = 10_000)]
    peers: u32,
    /// Over IPv6.
    #[arg(long)]
    v6: bool,
    /// Where client and server run: the last CPU when left out.
    #[arg(long)]
    cpu: Option<usize>,
    /// Bytes that each side of bulk has room for; 0: as many as TCP finds good. More than the CPU's
    /// caches hold makes each MiB wait for memory: by chance, and longer than for any of these.
    #[arg(long, default_value_t = 256 << 10)]
    buffer: usize,
    /// How to print it.
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Form,
    /// Once through everything, with little; no figure means anything, no goal is judged.
    #[arg(long)]
    smoke: bool,
}

/// What one variant's traffic of one kind costs.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    kind: Kind,
    variant: Variant,
    /// CPU ns for each.
    ns: f64,
    /// Of that, more than with no program.
    added_ns: f64,
    /// The least and the most that a set-up says of that.
    added_ns_between: [f64; 2],
    /// Ratio to no program.
    ratio: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    peers: u32,
    family: &'static str,
    rows: Vec<Row>,
    /// The agent's own CPU time for each new connection, beside that.
    agent_ns_per_connection: f64,
    goals: Vec<Goal>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench wire: {error:#}");
            ExitCode::from(EXIT_ERROR)
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let allowed = cpus()?;
    let cpu = match arguments.cpu {
        Some(cpu) => cpu,
        None => *allowed.last().context("no CPU may be used")?,
    };
    ensure!(
        allowed.contains(&cpu),
        "--cpu {cpu}: not one of {allowed:?}"
    );
    let (rounds, setups, peers) = if arguments.smoke {
        (1, 1, arguments.peers.min(20))
    } else {
        (arguments.rounds, arguments.setups, arguments.peers)
    };
    let load = Load {
        peers,
        is_v6: arguments.v6,
        cpu,
        buffer: arguments.buffer,
        is_smoke: arguments.smoke,
    };
    let mut costs = Vec::new();
    let mut agents = Agents::default();
    for _ in 0..setups {
        let (cost, of) = set_up(load, rounds)?;
        costs.push(cost);
        agents.cpu_ns += of.cpu_ns;
        agents.connections += of.connections;
    }
    let rows: Vec<Row> = Kind::ALL
        .into_iter()
        .flat_map(|kind| Variant::ALL.map(|variant| row(&costs, kind, variant)))
        .collect();
    let report = Report {
        peers,
        family: if arguments.v6 { "IPv6" } else { "IPv4" },
        goals: goals(&rows),
        rows,
        agent_ns_per_connection: agents.cpu_ns / f64::from(agents.connections),
    };
    match arguments.output {
        Form::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Form::Table => print(&report, arguments.smoke),
    }
    Ok(if arguments.smoke {
        ExitCode::SUCCESS
    } else {
        verdict(&report.goals)
    })
}

/// What one set-up says: ns by kind and variant, as in `Kind::ALL` and `Variant::ALL`.
type Costs = Vec<Vec<f64>>;

fn set_up(load: Load, rounds: u32) -> Result<(Costs, Agents)> {
    let mut nodes = Variant::ALL
        .into_iter()
        .map(|variant| Node::start(variant, load))
        .collect::<Result<Vec<_>>>()?;
    let mut samples = vec![vec![Vec::new(); nodes.len()]; Kind::ALL.len()];
    for round in 0..rounds as usize {
        for (kind, samples) in Kind::ALL.into_iter().zip(&mut samples) {
            let mut turns: Vec<_> = nodes.iter_mut().zip(samples).collect();
            // Whoever comes after whom changes from round to round.
            let places = turns.len();
            turns.rotate_left(round / 2 % places);
            if round % 2 == 1 {
                turns.reverse();
            }
            for (node, samples) in turns {
                let amount = if load.is_smoke { 2 } else { kind.a_sample() };
                samples.push(node.sample(Order { kind, amount })?);
            }
        }
    }
    let mut agents = Agents::default();
    for (node, variant) in nodes.iter_mut().zip(Variant::ALL) {
        let of = node.end()?;
        if variant == Variant::Picket {
            agents = of;
        }
    }
    let costs = samples
        .into_iter()
        .map(|kind| kind.into_iter().map(lowest_decile).collect())
        .collect();
    Ok((costs, agents))
}

fn row(costs: &[Costs], kind: Kind, variant: Variant) -> Row {
    let cost = |costs: &Costs, of: Variant| {
        let kind = Kind::ALL.iter().position(|known| *known == kind);
        let of = Variant::ALL.iter().position(|known| *known == of);
        let found = kind.zip(of).and_then(|(kind, of)| costs.get(kind)?.get(of));
        found.copied().unwrap_or(f64::NAN)
    };
    let added: Vec<f64> = costs
        .iter()
        .map(|costs| cost(costs, variant) - cost(costs, Variant::Nothing))
        .collect();
    let ns = median(costs.iter().map(|costs| cost(costs, variant)).collect());
    let ratios = costs
        .iter()
        .map(|costs| cost(costs, variant) / cost(costs, Variant::Nothing));
    Row {
        kind,
        variant,
        ns,
        ratio: median(ratios.collect()),
        added_ns_between: [
            added.iter().copied().fold(f64::INFINITY, f64::min),
            added.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        ],
        added_ns: median(added),
    }
}

fn goals(rows: &[Row]) -> Vec<Goal> {
    let of = |kind: Kind, variant: Variant, figure: fn(&Row) -> f64| {
        let row = rows
            .iter()
            .find(|row| (row.kind, row.variant) == (kind, variant));
        row.map_or(f64::NAN, figure)
    };
    let mut goals = Vec::new();
    for kind in [Kind::Request, Kind::Connection] {
        for other in [Variant::Conntrack, Variant::Set] {
            goals.push(Goal {
                what: format!("added to a {}, as much as {}", kind.unit(), other.name()),
                figure: of(kind, Variant::Picket, |row| row.added_ns),
                at_most: of(kind, other, |row| row.added_ns),
                unit: "ns",
            });
        }
    }
    goals.push(Goal {
        what: format!("a {} to no program's", Kind::Bulk.unit()),
        figure: of(Kind::Bulk, Variant::Picket, |row| row.ratio),
        at_most: BULK_AT_MOST,
        unit: "",
    });
    goals
}

fn print(report: &Report, is_smoke: bool) {
    println!(
        "CPU ns between two pods of a node, {}, {} peers; added to no program (least and most of a set-up)",
        report.family, report.peers
    );
    for kind in Kind::ALL {
        println!(
            "\n{:<26} {:>10} {:>8} {:>19} {:>7}",
            kind.unit(),
            "ns",
            "added",
            "",
            "ratio"
        );
        for row in report.rows.iter().filter(|row| row.kind == kind) {
            let [least, most] = row.added_ns_between;
            println!(
                "{:<26} {:>10.0} {:>8.0} {:>19} {:>6.3}x",
                row.variant.name(),
                row.ns,
                row.added_ns,
                format!("({least:.0} to {most:.0})"),
                row.ratio
            );
        }
    }
    println!(
        "\nthe agent's own CPU, beside that: {:.0} ns for each new connection",
        report.agent_ns_per_connection
    );
    if is_smoke {
        return;
    }
    println!();
    for goal in &report.goals {
        println!("{goal}");
    }
}
