//! `picket flows`: who talks to whom, and with `-f` each connection as it is judged.

mod lines;
#[cfg(test)]
mod tests;

use std::io::Write as _;

use super::Outcome;
use super::client::{Received, Socket};
use super::output::{self, StreamFormat, Terminal, counted, grouped};
use crate::dto::{Document, EdgeList, Flow, Kind as _, Party, VerdictWord};
use lines::{Lines, footer, losses, write_edges};

/// Who talks to whom; with -f each connection and refusal as it happens
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without -f, one line for each pair of workloads, port and decision since the agent started.
With -f, one line for each connection, never one for each packet. Losses are in the last line.

Examples:
  picket flows
  picket flows -f
  picket flows -f -n shop --verdict deny
  picket flows -f -o jsonl | jq -c 'select(.verdict == \"deny\") | .decision.nearest[0]'")]
pub(super) struct Args {
    /// Follow: print connections as they are judged, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Only connections from or to this namespace
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// Only these verdicts
    #[arg(long, value_name = "VERDICT", value_delimiter = ',', value_parser = ["allow", "deny", "audit"])]
    verdict: Vec<String>,
    /// Leave the headings out
    #[arg(long)]
    no_headers: bool,
    #[command(flatten)]
    socket: Socket,
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: StreamFormat,
}

impl Args {
    pub(super) fn run(&self, terminal: &Terminal) -> anyhow::Result<Outcome> {
        if self.follow {
            self.follow(terminal)
        } else {
            self.list(terminal)
        }
    }

    fn is_wanted(&self, from: &Party, to: &Party, verdict: VerdictWord) -> bool {
        let is_in = |party: &Party| self.namespace.is_none() || party.namespace == self.namespace;
        (is_in(from) || is_in(to))
            && (self.verdict.is_empty()
                || self.verdict.iter().any(|word| word == verdict.as_label()))
    }

    fn list(&self, terminal: &Terminal) -> anyhow::Result<Outcome> {
        let mut document = self.socket.get::<EdgeList>("/v1/edges", &[])?;
        document
            .body
            .items
            .retain(|edge| self.is_wanted(&edge.from, &edge.to, edge.verdict));
        let mut out = output::stdout();
        match self.output {
            StreamFormat::Table => {
                let now = jiff::Timestamp::now();
                write_edges(&mut out, terminal, &document.body, self.no_headers, now)?;
            }
            StreamFormat::Json => output::write_json(&mut out, &document)?,
            StreamFormat::Yaml => output::write_yaml(&mut out, &document)?,
            StreamFormat::Jsonl => {
                for edge in &document.body.items {
                    output::write_json_line(&mut out, &edge.clone().into_document())?;
                }
            }
        }
        out.flush()?;
        if self.output == StreamFormat::Table {
            terminal.say(&footer(&document.body));
        }
        Ok(Outcome::Yes)
    }

    fn follow(&self, terminal: &Terminal) -> anyhow::Result<Outcome> {
        let mut out = output::stdout();
        let mut lines = Lines::default();
        let mut is_connected = false;
        let (mut connections, mut refused, mut lost) = (0_u64, 0_u64, 0_u64);
        let ended = self
            .socket
            .follow("/v1/flows", &[("follow", "true".to_owned())], |received| {
                match received {
                    Received::Connected => is_connected = true,
                    Received::Event { kind: "lost", data } => {
                        lost += data.trim().parse().unwrap_or(0);
                    }
                    Received::Event { data, .. } => {
                        let document: Document<Flow> = serde_json::from_str(data)?;
                        let flow = &document.body;
                        if !self.is_wanted(&flow.from, &flow.to, flow.verdict) {
                            return Ok(());
                        }
                        if flow.verdict == VerdictWord::Deny {
                            refused += 1;
                        } else {
                            connections += 1;
                        }
                        match self.output {
                            StreamFormat::Table => lines.push(&mut out, terminal, flow)?,
                            StreamFormat::Yaml => {
                                out.write_all(b"---\n")?;
                                output::write_yaml(&mut out, &document)?;
                            }
                            StreamFormat::Json | StreamFormat::Jsonl => {
                                output::write_json_line(&mut out, &document)?;
                            }
                        }
                        out.flush()?;
                    }
                    Received::Second => {
                        lines.end_second(&mut out, terminal)?;
                        out.flush()?;
                    }
                }
                Ok(())
            });
        if !is_connected {
            return ended.map(|()| Outcome::Yes);
        }
        lines.end_second(&mut out, terminal)?;
        out.flush()?;
        terminal.say(&format!(
            "{}, {} refused · {}",
            counted(connections, "connection", "connections"),
            grouped(refused),
            losses(lost),
        ));
        ended.map(|()| Outcome::Yes)
    }
}
