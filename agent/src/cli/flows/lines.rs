//! How flows read: edges as a table with its footer, and the lines of `-f`.

use std::collections::HashMap;
use std::io::{self, Write};

use crate::cli::explain::{seconds_since, short_rule};
use crate::cli::output::{Cell, Column, Paint, Table, Terminal, age, append, counted, grouped};
use crate::dto::{Decision, EdgeList, Flow, Party, VerdictWord};

pub(super) fn losses(lost: u64) -> String {
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
    let direction = decision.direction.as_label();
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

pub(super) fn write_edges(
    out: &mut impl Write,
    terminal: &Terminal,
    list: &EdgeList,
    without_headings: bool,
    now: jiff::Timestamp,
) -> io::Result<()> {
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
pub(super) fn footer(list: &EdgeList) -> String {
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
pub(super) struct Lines {
    said: HashMap<String, u64>,
    last: Option<String>,
}

impl Lines {
    pub(super) fn push(
        &mut self,
        out: &mut impl Write,
        terminal: &Terminal,
        flow: &Flow,
    ) -> io::Result<()> {
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

    pub(super) fn end_second(
        &mut self,
        out: &mut impl Write,
        terminal: &Terminal,
    ) -> io::Result<()> {
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
