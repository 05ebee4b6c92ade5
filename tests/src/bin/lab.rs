//! `cargo xtask lab`: the reachability matrix of a directory of manifests, measured on real
//! packets and compared with what `picket matrix` says.

use std::io::{self, BufWriter, Write as _};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use agent::answer::PortArg;
use agent_policy::matrix::{Port, Question};
use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum};
use tests::lab::agent::Agent;
use tests::lab::measure::{self, Row, Word};
use tests::lab::{Lab, manifests};

/// Exit code where measured and judged differ.
const EXIT_DIFFERENT: u8 = 1;
/// Exit code of usage errors and of a lab that could not be laid out.
const EXIT_ERROR: u8 = 2;

/// Measure who reaches whom: manifests as network namespaces, the real agent, real packets
///
/// Every pod gets a network namespace with the addresses its manifest states, all on one node
/// whatever nodes the manifests name (so they are judged as on one, too); hostNetwork pods live in
/// the node's namespace, external endpoints beyond a router. Every pair is probed, first without
/// the agent (all of it must be reachable), then with it. Between two pods each side of a refused
/// connection is measured by itself.
///
/// Exit codes: 0 measured as judged · 1 differences (on standard error) · 2 error.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask lab", max_term_width = 100)]
struct Arguments {
    /// Directory of manifests, read with everything below it
    #[arg(short, long, value_name = "DIR")]
    filename: PathBuf,
    /// Port to probe instead of the declared ones, as TCP/80; may be given again
    #[arg(long = "port", value_name = "PROTO/PORT")]
    ports: Vec<PortArg>,
    /// Address outside the cluster to probe from and to as well; may be given again
    #[arg(long = "endpoint", value_name = "IP")]
    endpoints: Vec<IpAddr>,
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Form,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Form {
    Table,
    Jsonl,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("lab: {error:#}"));
            ExitCode::from(EXIT_ERROR)
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let directory = arguments
        .filename
        .canonicalize()
        .with_context(|| format!("reading {}", arguments.filename.display()))?;
    let manifests = manifests::read(&directory)?;
    let port = |port: &PortArg| Port {
        protocol: port.protocol,
        number: port.port,
    };
    let question = Question {
        ports: arguments.ports.iter().map(port).collect(),
        endpoints: arguments.endpoints.clone(),
    };
    let judged = measure::judged(&manifests.cluster, &question)?;
    complain(&manifests.remarks.join("\n"));
    complain(&judged.remarks.join("\n"));
    if judged.rows.is_empty() {
        complain(&format!(
            "nothing to measure: {} states no two ends with a port between them; see picket matrix",
            arguments.filename.display()
        ));
    }

    let mut lab = Lab::enter()?;
    lab.lay_out(&manifests, &arguments.endpoints)?;
    let _servers = measure::serve(&lab, &judged.rows)?;
    let faults = measure::faults(&lab, &judged.rows)?;
    if !faults.is_empty() {
        bail!("the lab itself is not sound:\n{}", faults.join("\n"));
    }
    let agent = Agent::start(&directory)?;
    let measured = measure::measure(&mut lab, &judged.rows)?;
    print(&measured, arguments.output).context("printing the matrix")?;
    drop(agent);

    let mut differences = 0_usize;
    for (judged, measured) in judged.rows.iter().zip(&measured) {
        if judged != measured {
            differences += 1;
            complain(&format!(
                "different  {judged}: {}",
                difference(judged, measured)
            ));
        }
    }
    if differences == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    complain(&format!(
        "{differences} of {} rows differ from picket matrix",
        measured.len()
    ));
    Ok(ExitCode::from(EXIT_DIFFERENT))
}

fn print(rows: &[Row], form: Form) -> Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    match form {
        Form::Jsonl => {
            for row in rows {
                serde_json::to_writer(&mut out, row)?;
                writeln!(out)?;
            }
        }
        Form::Table => {
            let longest = |text: fn(&Row) -> &str, least: usize| {
                rows.iter()
                    .map(|row| text(row).len())
                    .max()
                    .unwrap_or_default()
                    .max(least)
            };
            let from = longest(|row| &row.from, 4);
            let to = longest(|row| &row.to, 2);
            writeln!(
                out,
                "{:from$}  {:to$}  PORT        INGRESS  EGRESS  VERDICT",
                "FROM", "TO"
            )?;
            for row in rows {
                let port = format!("{}/{}", row.protocol, row.port);
                let [ingress, egress, verdict] = [row.ingress, row.egress, row.verdict].map(word);
                writeln!(
                    out,
                    "{:from$}  {:to$}  {port:10}  {ingress:7}  {egress:6}  {verdict}",
                    row.from, row.to
                )?;
            }
        }
    }
    Ok(out.flush()?)
}

const fn word(word: Word) -> &'static str {
    match word {
        Word::Allow => "allow",
        Word::Deny => "deny",
    }
}

fn difference(judged: &Row, measured: &Row) -> String {
    let columns = [
        ("ingress", judged.ingress, measured.ingress),
        ("egress", judged.egress, measured.egress),
        ("verdict", judged.verdict, measured.verdict),
    ];
    let differing: Vec<String> = columns
        .iter()
        .filter(|(_, judged, measured)| judged != measured)
        .map(|(column, judged, measured)| {
            format!(
                "{column} judged {}, measured {}",
                word(*judged),
                word(*measured)
            )
        })
        .collect();
    differing.join("; ")
}

fn complain(text: &str) {
    if !text.is_empty() {
        // Nobody is left to tell when standard error is closed.
        writeln!(io::stderr(), "{text}").unwrap_or_default();
    }
}
