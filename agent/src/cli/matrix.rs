//! `picket matrix`: every pair of pods and external addresses, as policy judges it.

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;

use agent_policy::matrix::{End, Matrix, Port, Question, matrix};
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
            StreamFormat::Table => grid::write(&mut out, terminal, &matrix)?,
            StreamFormat::Jsonl => write_lines(&mut out, &matrix)?,
            StreamFormat::Json => {
                write!(
                    out,
                    "{{\"apiVersion\":\"{API_VERSION}\",\"kind\":\"Matrix\",\"items\":["
                )?;
                write_objects(&mut out, &matrix, "", ",\n")?;
                writeln!(out, "]}}")?;
            }
            StreamFormat::Yaml => {
                let none = if matrix.rows.is_empty() { " []" } else { "" };
                writeln!(out, "apiVersion: {API_VERSION}\nkind: Matrix\nitems:{none}")?;
                // An object in JSON is one in YAML (YAML 1.2.2 §7.4.2).
                write_objects(&mut out, &matrix, "- ", "\n")?;
            }
        }
        out.flush()?;
        if matrix.rows.is_empty() {
            terminal.say(&nothing(&matrix, &self.filename));
        } else if self.output == StreamFormat::Table {
            terminal.say(&summary(&matrix));
        }
        Ok(manifests.outcome(Outcome::Yes))
    }
}

/// One object a line. Other programs read this form: keys and their order are fixed.
fn write_lines(out: &mut impl Write, matrix: &Matrix) -> anyhow::Result<()> {
    write_objects(out, matrix, "", "\n")
}

/// `before` stands before each object; `end` after each, and a line feed after the last.
fn write_objects(
    out: &mut impl Write,
    matrix: &Matrix,
    before: &str,
    end: &str,
) -> anyhow::Result<()> {
    // Each name is quoted once, not once a row.
    let names: Vec<String> = matrix
        .ends
        .iter()
        .map(|end| serde_json::to_string(&end.to_string()))
        .collect::<Result<_, _>>()?;
    let mut rows = matrix.rows.iter().peekable();
    while let Some(row) = rows.next() {
        let (Some(from), Some(to)) = (names.get(row.from), names.get(row.to)) else {
            continue;
        };
        write!(
            out,
            r#"{before}{{"from":{from},"to":{to},"protocol":"{}","port":{},"ingress":"{}","egress":"{}","verdict":"{}"}}"#,
            row.port.protocol,
            row.port.number,
            row.ingress,
            row.egress,
            row.verdict(),
        )?;
        let end = if rows.peek().is_some() { end } else { "\n" };
        out.write_all(end.as_bytes())?;
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
        ends(matrix),
    )
}

/// `7 pods and 1 address`.
fn ends(matrix: &Matrix) -> String {
    let is_external = |end: &&End| matches!(end, End::External(_));
    let addresses = matrix.ends.iter().filter(is_external).count();
    let pods = counted(matrix.ends.len() - addresses, "pod", "pods");
    if addresses == 0 {
        return pods;
    }
    format!("{pods} and {}", counted(addresses, "address", "addresses"))
}

/// Why there is not one row.
fn nothing(matrix: &Matrix, paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let paths = paths.join(", ");
    match matrix.ends.as_slice() {
        [] => format!("nothing to judge: {paths} states no pod with an address (status.podIPs)"),
        [only] => format!("nothing to judge: {only} is alone in {paths}"),
        _ => format!(
            "nothing to judge: among {} in {paths} no pod declares a container port; add --port, \
             for example --port TCP/8080",
            ends(matrix)
        ),
    }
}

#[cfg(test)]
mod tests {
    use agent_policy::matrix::Row;
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
