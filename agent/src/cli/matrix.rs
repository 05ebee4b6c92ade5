//! `picket matrix`: every pair of pods and external addresses, as policy judges it.

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;

use agent_policy::matrix::{Matrix, Port, Question, matrix};
use agent_policy::model::Verdict;

use super::offline::Manifests;
use super::output::{self, StreamFormat, Terminal, counted, grouped};
use super::{Outcome, grid};
use crate::answer::PortArg;
use crate::dto::API_VERSION;

/// Who reaches whom: every pair of pods, judged offline from manifests
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Judges every ordered pair of distinct pods and external addresses on the destination's declared
container ports, or on exactly the ports given. An external destination needs --port.

Exit codes: 0 · 2 when part of the manifests could not be used (the rest is judged and printed).

Examples:
  picket matrix -f manifests/
  picket matrix -f manifests/ --port TCP/8080 --port UDP/53
  picket matrix -f manifests/ --endpoint 203.0.113.7 --port TCP/443
  picket matrix -f manifests/ -o jsonl | jq -r 'select(.verdict == \"allow\") | \"\\(.from) \\(.to)\"'")]
pub(super) struct Args {
    /// Directory (or file) of manifests, read with everything below it
    #[arg(short, long, value_name = "DIR", required = true)]
    filename: Vec<PathBuf>,
    /// Port to judge instead of the declared ones, as TCP/80; may be given again
    #[arg(long = "port", value_name = "PROTO/PORT")]
    ports: Vec<PortArg>,
    /// Address outside the cluster to judge as well; may be given again
    #[arg(long = "endpoint", value_name = "IP")]
    endpoints: Vec<IpAddr>,
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: StreamFormat,
}

impl Args {
    pub(super) fn run(&self, terminal: &Terminal) -> anyhow::Result<Outcome> {
        let manifests = Manifests::load(&self.filename, terminal)?;
        let question = Question {
            ports: self
                .ports
                .iter()
                .map(|port| Port {
                    protocol: port.protocol,
                    number: port.port,
                })
                .collect(),
            endpoints: self.endpoints.clone(),
        };
        let matrix = matrix(&manifests.cluster, &question);
        for finding in &matrix.findings {
            terminal.say(&format!("note: {finding}"));
        }
        if self.ports.is_empty() && !self.endpoints.is_empty() {
            terminal.say("note: add --port, for example --port TCP/443, to judge what leads out");
        }
        let mut out = output::stdout();
        match self.output {
            StreamFormat::Table => {
                grid::write(&mut out, terminal, &matrix)?;
                terminal.say(&summary(&matrix));
            }
            StreamFormat::Jsonl => write_lines(&mut out, &matrix)?,
            StreamFormat::Json => {
                write!(
                    out,
                    "{{\"apiVersion\":\"{API_VERSION}\",\"kind\":\"Matrix\",\"items\":["
                )?;
                write_objects(&mut out, &matrix, ",\n")?;
                writeln!(out, "]}}")?;
            }
        }
        out.flush()?;
        Ok(manifests.outcome(Outcome::Yes))
    }
}

/// One object a line. Other programs read this form: keys and their order are fixed.
fn write_lines(out: &mut impl Write, matrix: &Matrix) -> anyhow::Result<()> {
    write_objects(out, matrix, "\n")?;
    if !matrix.rows.is_empty() {
        out.write_all(b"\n")?;
    }
    Ok(())
}

fn write_objects(out: &mut impl Write, matrix: &Matrix, between: &str) -> anyhow::Result<()> {
    // Each name is quoted once, not once a row.
    let names: Vec<String> = matrix
        .ends
        .iter()
        .map(|end| serde_json::to_string(&end.to_string()))
        .collect::<Result<_, _>>()?;
    for (place, row) in matrix.rows.iter().enumerate() {
        if place > 0 {
            out.write_all(between.as_bytes())?;
        }
        let (Some(from), Some(to)) = (names.get(row.from), names.get(row.to)) else {
            continue;
        };
        write!(
            out,
            r#"{{"from":{from},"to":{to},"protocol":"{}","port":{},"ingress":"{}","egress":"{}","verdict":"{}"}}"#,
            row.port.protocol,
            row.port.number,
            row.ingress,
            row.egress,
            row.verdict(),
        )?;
    }
    Ok(())
}

fn summary(matrix: &Matrix) -> String {
    let allowed = matrix
        .rows
        .iter()
        .filter(|row| row.verdict() == Verdict::Allow)
        .count();
    format!(
        "{} of {} allowed, among {}",
        grouped(allowed as u64),
        counted(matrix.rows.len(), "connection", "connections"),
        counted(matrix.ends.len(), "end", "ends"),
    )
}

#[cfg(test)]
mod tests {
    use agent_policy::matrix::{End, Row};
    use agent_policy::model::Protocol;

    use super::*;

    #[test]
    fn lines_have_exactly_the_fixed_keys_in_their_order() {
        let end = |last| End::External(IpAddr::from([10, 0, 0, last]));
        let matrix = Matrix {
            ends: vec![end(1), end(2)],
            rows: vec![Row {
                from: 0,
                to: 1,
                from_address: IpAddr::from([10, 0, 0, 1]),
                to_address: IpAddr::from([10, 0, 0, 2]),
                port: Port {
                    protocol: Protocol::UDP,
                    number: 53,
                },
                ingress: Verdict::Deny,
                egress: Verdict::Allow,
            }],
            findings: Vec::new(),
        };
        let mut out = Vec::new();
        write_lines(&mut out, &matrix).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"from\":\"10.0.0.1\",\"to\":\"10.0.0.2\",\"protocol\":\"UDP\",\"port\":53,\
             \"ingress\":\"deny\",\"egress\":\"allow\",\"verdict\":\"deny\"}\n"
        );
    }
}
