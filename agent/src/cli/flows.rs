//! `picket flows`: who talks to whom, and with `-f` each connection as it is judged.

use std::collections::HashMap;
use std::io::Write;

use super::Outcome;
use super::client::{Received, Socket};
use super::explain::{seconds_since, short_rule};
use super::output::{
    self, Cell, Column, Paint, StreamFormat, Table, Terminal, age, append, counted, grouped,
};
use crate::dto::{Decision, DirectionWord, EdgeList, Flow, Kind as _, Party, VerdictWord};

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
            StreamFormat::Json => output::write_json(&mut out, &document)?,
            StreamFormat::Jsonl => {
                for edge in document.body.items {
                    output::write_json_line(&mut out, &edge.into_document())?;
                }
            }
            StreamFormat::Table => {
                write_edges(
                    &mut out,
                    terminal,
                    &document.body,
                    self.no_headers,
                    jiff::Timestamp::now(),
                )?;
                terminal.say(&footer(&document.body));
            }
        }
        out.flush()?;
        Ok(Outcome::Yes)
    }

    fn follow(&self, terminal: &Terminal) -> anyhow::Result<Outcome> {
        let mut out = output::stdout();
        let mut lines = Lines::default();
        let (mut connections, mut refused, mut lost) = (0_u64, 0_u64, 0_u64);
        self.socket
            .follow("/v1/flows", &[("follow", "true".to_owned())], |received| {
                match received {
                    Received::Connected => {}
                    Received::Event { kind: "lost", data } => {
                        lost += data.trim().parse().unwrap_or(0);
                    }
                    Received::Event { data, .. } => {
                        let document: crate::dto::Document<Flow> = serde_json::from_str(data)?;
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
            })?;
        lines.end_second(&mut out, terminal)?;
        out.flush()?;
        terminal.say(&format!(
            "{}, {} refused · {}",
            counted(
                usize::try_from(connections).unwrap_or(usize::MAX),
                "connection",
                "connections"
            ),
            grouped(refused),
            losses(lost),
        ));
        Ok(Outcome::Yes)
    }
}

fn losses(lost: u64) -> String {
    match lost {
        0 => "no events lost".to_owned(),
        1 => "1 event lost".to_owned(),
        lost => format!("{} events lost", grouped(lost)),
    }
}

fn port(protocol: &str, port: Option<u16>) -> String {
    port.map_or_else(|| protocol.to_owned(), |port| format!("{protocol}/{port}"))
}

/// What decided, in one cell.
fn why(verdict: VerdictWord, decision: &Decision) -> String {
    let direction = match decision.direction {
        DirectionWord::Ingress => "ingress",
        DirectionWord::Egress => "egress",
    };
    if verdict == VerdictWord::Allow {
        return match (&decision.rule, decision.reason.as_str()) {
            (Some(rule), _) => short_rule(rule),
            (None, "not-isolated") => "not isolated".to_owned(),
            (None, reason) => reason.to_owned(),
        };
    }
    let near = match (decision.nearest.first(), decision.isolated_by.first()) {
        (Some(near), _) => format!(" (near: {})", short_rule(&near.rule)),
        (None, Some(_)) => {
            let policies: Vec<&str> = decision
                .isolated_by
                .iter()
                .map(|policy| policy.rsplit('/').next().unwrap_or(policy))
                .collect();
            format!(" ({})", policies.join(", "))
        }
        (None, None) => String::new(),
    };
    match (decision.reason.as_str(), &decision.rule) {
        ("isolated-no-rule", _) => format!("{direction}: no rule admits{near}"),
        (reason, Some(rule)) => format!("{direction}: {reason} {}", short_rule(rule)),
        (reason, None) => format!("{direction}: {reason}{near}"),
    }
}

/// The workload when it is known: edges are between workloads.
fn workload(party: &Party) -> String {
    match (&party.namespace, &party.workload) {
        (Some(_), Some(_)) => Party {
            pod: None,
            ..party.clone()
        }
        .to_string(),
        _ => party.to_string(),
    }
}

fn write_edges(
    out: &mut impl Write,
    terminal: &Terminal,
    list: &EdgeList,
    without_headings: bool,
    now: jiff::Timestamp,
) -> anyhow::Result<()> {
    let mut table = Table::new(vec![
        Column::Left("LAST"),
        Column::Left("VERDICT"),
        Column::Name("FROM"),
        Column::Name("TO"),
        Column::Left("PORT"),
        Column::Right("CONNS"),
        Column::Left("WHY"),
    ])
    .without_headings(without_headings);
    for edge in &list.items {
        table.push(vec![
            seconds_since(&edge.last_seen, now)
                .map_or_else(|| "-".to_owned(), age)
                .into(),
            Cell::painted(Paint::of(edge.verdict), edge.verdict.as_label()),
            workload(&edge.from).into(),
            workload(&edge.to).into(),
            port(&edge.protocol, edge.port).into(),
            grouped(edge.connections).into(),
            why(edge.verdict, &edge.decision).into(),
        ]);
    }
    if !table.is_empty() {
        table.write(out, terminal)?;
    }
    Ok(())
}

/// Window and losses of an answer; for no rows, why there are none.
fn footer(list: &EdgeList) -> String {
    let clock = |time: &str| {
        time.parse::<jiff::Timestamp>().map_or_else(
            |_| time.to_owned(),
            |time| time.strftime("%H:%M:%S UTC").to_string(),
        )
    };
    let window = format!(
        "{}–{}",
        clock(&list.window.from).replace(" UTC", ""),
        clock(&list.window.to)
    );
    let mut text = if list.items.is_empty() {
        format!("no such connection was seen · {window}")
    } else {
        let connections: u64 = list.items.iter().map(|edge| edge.connections).sum();
        format!(
            "{}, {} connections · {window}",
            counted(list.items.len(), "edge", "edges"),
            grouped(connections)
        )
    };
    append(&mut text, format_args!(" · {}", losses(list.events_lost)));
    if list.evicted > 0 {
        append(
            &mut text,
            format_args!(" · {} older edges forgotten", grouped(list.evicted)),
        );
    }
    if let Some(denied) = list
        .items
        .iter()
        .find(|edge| edge.verdict == VerdictWord::Deny)
    {
        let port = denied
            .port
            .map_or_else(String::new, |port| match denied.protocol.as_str() {
                "TCP" => format!(":{port}"),
                protocol => format!(":{port}/{protocol}"),
            });
        append(
            &mut text,
            format_args!(
                " · explain a row: picket why {} {}{port}",
                workload(&denied.from),
                workload(&denied.to)
            ),
        );
    }
    text
}

/// Lines of `-f`: what repeats within a second is said once with a count.
#[derive(Debug, Default)]
struct Lines {
    said: HashMap<String, u64>,
    last: Option<String>,
}

impl Lines {
    fn push(
        &mut self,
        out: &mut impl Write,
        terminal: &Terminal,
        flow: &Flow,
    ) -> anyhow::Result<()> {
        let line = format!(
            "{} {} {} {}  {}",
            flow.from,
            terminal.arrow(),
            flow.to,
            port(&flow.protocol, flow.port),
            terminal.paint(Paint::Dim, &why(flow.verdict, &flow.decision)),
        );
        let label = format!("{:<6}", flow.verdict.as_label());
        let text = format!("{} {line}", terminal.paint(Paint::of(flow.verdict), &label));
        if let Some(more) = self.said.get_mut(&text) {
            *more += 1;
            return Ok(());
        }
        let clock = flow.time.parse::<jiff::Timestamp>().map_or_else(
            |_| flow.time.clone(),
            |time| time.strftime("%H:%M:%S").to_string(),
        );
        writeln!(out, "{clock}  {text}")?;
        self.last = Some(text.clone());
        self.said.insert(text, 0);
        Ok(())
    }

    fn end_second(&mut self, out: &mut impl Write, terminal: &Terminal) -> anyhow::Result<()> {
        let mut repeated: Vec<(String, u64)> =
            self.said.drain().filter(|(_, more)| *more > 0).collect();
        repeated.sort_unstable();
        let last = self.last.take();
        for (text, more) in repeated {
            let times = terminal.paint(
                Paint::Dim,
                &format!("×{} more in the last second", grouped(more)),
            );
            if last.as_ref() == Some(&text) {
                writeln!(out, "          (same, {times})")?;
            } else {
                writeln!(out, "          {text}  {times}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dto::{Edge, NearRule, Window};

    fn pod(namespace: &str, name: &str, workload: &str) -> Party {
        Party {
            namespace: Some(namespace.to_owned()),
            pod: Some(name.to_owned()),
            workload: Some(workload.to_owned()),
            ..Party::default()
        }
    }

    fn decision(reason: &str, rule: Option<&str>, near: Option<&str>) -> Decision {
        Decision {
            direction: DirectionWord::Ingress,
            at: "destination".to_owned(),
            reason: reason.to_owned(),
            rule: rule.map(str::to_owned),
            revision: "7".to_owned(),
            node: None,
            isolated_by: Vec::new(),
            nearest: near
                .map(|rule| NearRule {
                    rule: rule.to_owned(),
                    failed: Vec::new(),
                    conditions: Vec::new(),
                })
                .into_iter()
                .collect(),
        }
    }

    fn denied_flow() -> Flow {
        Flow {
            time: "2026-11-21T14:05:12Z".to_owned(),
            from: pod("web", "portal-1", "Deployment/portal"),
            from_port: Some(40_000),
            to: pod("shop", "api-1", "Deployment/api"),
            protocol: "TCP".to_owned(),
            port: Some(8080),
            verdict: VerdictWord::Deny,
            decision: decision("isolated-no-rule", None, Some("shop/allow-api/ingress/0")),
            packets: 1,
        }
    }

    fn edges() -> EdgeList {
        let edge = |verdict, decision: Decision, connections, last_seen: &str| Edge {
            id: "F7K2".to_owned(),
            window: Window {
                from: "2026-11-21T13:05:00Z".to_owned(),
                to: "2026-11-21T14:05:14Z".to_owned(),
            },
            from: pod("web", "portal-1", "Deployment/portal"),
            to: pod("shop", "api-1", "Deployment/api"),
            protocol: "TCP".to_owned(),
            port: Some(8080),
            verdict,
            decision,
            connections,
            first_seen: last_seen.to_owned(),
            last_seen: last_seen.to_owned(),
            events_lost: 0,
        };
        EdgeList {
            items: vec![
                edge(
                    VerdictWord::Allow,
                    decision("rule", Some("shop/allow-web/ingress/0"), None),
                    4_118,
                    "2026-11-21T14:05:12Z",
                ),
                edge(
                    VerdictWord::Deny,
                    denied_flow().decision,
                    37,
                    "2026-11-21T14:04:26Z",
                ),
            ],
            window: Window {
                from: "2026-11-21T13:05:00Z".to_owned(),
                to: "2026-11-21T14:05:14Z".to_owned(),
            },
            events_lost: 0,
            evicted: 0,
        }
    }

    #[test]
    fn edges_read_as_a_table_between_workloads() {
        let mut out = Vec::new();
        let now = "2026-11-21T14:05:14Z".parse().unwrap();
        write_edges(&mut out, &Terminal::PLAIN, &edges(), false, now).unwrap();
        let expected = "\
LAST  VERDICT  FROM               TO               PORT      CONNS  WHY
2s    allow    web/deploy/portal  shop/deploy/api  TCP/8080  4,118  allow-web[0]
48s   deny     web/deploy/portal  shop/deploy/api  TCP/8080     37  ingress: no rule admits (near: allow-api[0])
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        assert_eq!(
            footer(&edges()),
            "2 edges, 4,155 connections · 13:05:00–14:05:14 UTC · no events lost \
             · explain a row: picket why web/deploy/portal shop/deploy/api:8080"
        );
    }

    #[test]
    fn no_rows_say_why_and_losses_are_in_the_footer() {
        let none = EdgeList {
            items: Vec::new(),
            events_lost: 3,
            ..edges()
        };
        assert_eq!(
            footer(&none),
            "no such connection was seen · 13:05:00–14:05:14 UTC · 3 events lost"
        );
    }

    #[test]
    fn what_repeats_within_a_second_is_one_line_with_a_count() {
        let mut out = Vec::new();
        let mut lines = Lines::default();
        for _ in 0..12 {
            lines
                .push(&mut out, &Terminal::PLAIN, &denied_flow())
                .unwrap();
        }
        lines.end_second(&mut out, &Terminal::PLAIN).unwrap();
        lines
            .push(&mut out, &Terminal::PLAIN, &denied_flow())
            .unwrap();
        let line = "14:05:12  deny   web/portal-1 → shop/api-1 TCP/8080  ingress: no rule admits (near: allow-api[0])\n";
        let expected = format!("{line}          (same, ×11 more in the last second)\n{line}");
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
