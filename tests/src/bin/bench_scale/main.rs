//! What changes cost and how soon they are in force: plans of one, ten thousand and fifty thousand
//! entries, planned and written; a file's change through the whole agent; connections adopted.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the table is the answer"
)]

mod changes;
mod cluster;
mod node;
mod plans;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::{Parser, ValueEnum};
use tests::bench::{Form, Goal, verdict};
use tests::crowd::Crowd;

/// Exit code of usage errors and of what could not be measured.
const EXIT_ERROR: u8 = 2;

/// Measure what changes cost, and how soon they are in force
///
/// CPU times are those of the thread or process that does the work, the best or lowest decile of
/// several: what it takes on a machine that does nothing else. Times from a write to the maps are
/// real ones, and grow with whatever else runs.
///
/// Exit codes: 0 goals met · 1 a goal is missed · 2 error.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench scale", max_term_width = 100)]
struct Arguments {
    /// How to print it.
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Form,
    /// Once through everything, with little; no figure means anything, no goal is judged.
    #[arg(long)]
    smoke: bool,
    /// Only these, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// How long pods come and go in the cluster, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = cluster::CHURN.as_secs())]
    churn: u64,
}

/// How much of everything.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// Peers of a rule.
    entries: u32,
    /// Peers that come and go at once.
    atom: u32,
    /// Times plans are made; the best counts.
    turns: usize,
    /// Changes of one object.
    changes: usize,
    /// Connections, both families together.
    connections: usize,
    /// A cluster on an API server.
    crowd: Crowd,
    /// Changes of a label there.
    labels: usize,
    /// How long its pods come and go.
    churn: Duration,
    /// Tables are printed, too.
    is_told: bool,
    /// No figure means anything.
    is_smoke: bool,
}

impl Sizes {
    const ALL: Self = Self {
        entries: 10_000,
        atom: 50_000,
        turns: 7,
        changes: 41,
        connections: 100_000,
        crowd: Crowd {
            namespaces: 500,
            policies: 2_000,
            pods: 20_000,
            locals: 110,
        },
        labels: 400,
        churn: cluster::CHURN,
        is_told: true,
        is_smoke: false,
    };
    const SMOKE: Self = Self {
        entries: 50,
        atom: 100,
        turns: 1,
        changes: 2,
        connections: 20,
        crowd: Crowd {
            namespaces: 5,
            policies: 20,
            pods: 100,
            locals: 4,
        },
        labels: 4,
        churn: Duration::from_secs(2),
        is_told: true,
        is_smoke: true,
    };

    fn say(&self, line: &str) {
        if self.is_told {
            println!("{line}");
        }
    }
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Part {
    /// CPU of plans and their writes: one entry, 10 000, 50 000.
    Plans,
    /// CPU of one peer that comes or goes, in the whole agent.
    Peer,
    /// From a policy file's write to the maps.
    Policy,
    /// Connections that are older than the agent.
    Adoption,
    /// A large cluster on an API server.
    Cluster,
}

impl Part {
    fn measure(self) -> fn(&Sizes) -> Result<Vec<Goal>> {
        match self {
            Self::Plans => plans::measure,
            Self::Peer => changes::of_a_peer,
            Self::Policy => changes::of_a_policy,
            Self::Adoption => changes::adoption,
            Self::Cluster => cluster::measure,
        }
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench scale: {error:#}");
            ExitCode::from(EXIT_ERROR)
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut sizes = if arguments.smoke {
        Sizes::SMOKE
    } else {
        Sizes::ALL
    };
    sizes.is_told = arguments.output == Form::Table;
    if !arguments.smoke {
        sizes.churn = Duration::from_secs(arguments.churn);
    }
    let mut goals = Vec::new();
    for part in Part::value_variants() {
        if !arguments.only.is_empty() && !arguments.only.contains(part) {
            continue;
        }
        let measure = part.measure();
        // Each in a world of its own, which goes with its thread.
        let measured = std::thread::spawn(move || measure(&sizes))
            .join()
            .map_err(|_panic| anyhow!("the measurement panicked"))?;
        goals.extend(measured?);
    }
    match arguments.output {
        Form::Json => println!("{}", serde_json::to_string_pretty(&goals)?),
        Form::Table if arguments.smoke => {}
        Form::Table => {
            println!();
            for goal in &goals {
                println!("{goal}");
            }
        }
    }
    Ok(if arguments.smoke {
        ExitCode::SUCCESS
    } else {
        verdict(&goals)
    })
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
