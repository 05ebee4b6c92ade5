//! How `can` and `why` read: headline, both directions, isolating policies, nearest rule, fix.

#[cfg(test)]
mod tests;

use std::io::{self, Write};

use super::Outcome;
use super::output::{Cell, Column, Paint, Table, Terminal, age, append, counted, grouped};
use crate::dto::{
    Addition, DenialList, DirectionWord, Explanation, Isolating, Judgement, NearRule, Observed,
    VerdictWord,
};

/// How a command ends that asked for one verdict.
pub(super) const fn outcome(verdict: VerdictWord) -> Outcome {
    match verdict {
        VerdictWord::Allow => Outcome::Yes,
        VerdictWord::Deny | VerdictWord::Audit => Outcome::No,
        VerdictWord::Unknown => Outcome::CannotTell,
    }
}

/// `payments/allow-api/ingress/0` as `allow-api[0]`.
pub(super) fn short_rule(rule: &str) -> String {
    let parts: Vec<&str> = rule.split('/').collect();
    match parts.as_slice() {
        [_, policy, _, index] => format!("{policy}[{index}]"),
        _ => rule.to_owned(),
    }
}

/// Seconds since a time of our own making; `None` when it cannot be read.
pub(super) fn seconds_since(time: &str, now: jiff::Timestamp) -> Option<u64> {
    let then: jiff::Timestamp = time.parse().ok()?;
    u64::try_from(now.as_second() - then.as_second()).ok()
}

fn port_text(explanation: &Explanation) -> String {
    match (explanation.port, &explanation.port_name) {
        (Some(port), Some(name)) => format!("{}/{port} ({name})", explanation.protocol),
        (Some(port), None) => format!("{}/{port}", explanation.protocol),
        (None, Some(name)) => format!("{} {name}", explanation.protocol),
        (None, None) => explanation.protocol.clone(),
    }
}

fn headline(terminal: &Terminal, explanation: &Explanation, word: &str) -> String {
    let verdict = if explanation.partly {
        VerdictWord::Audit
    } else {
        explanation.verdict
    };
    let sign = format!("{} {word}", terminal.glyph(verdict));
    format!(
        "{}   {} {} {}   {}",
        terminal.paint(Paint::of(verdict), &sign),
        explanation.from,
        terminal.arrow(),
        explanation.to,
        port_text(explanation),
    )
}

fn observed_text(observed: &Observed, now: jiff::Timestamp) -> String {
    if observed.denied_packets == 0 {
        return "no refusal seen".to_owned();
    }
    let times = if observed.denied_packets == 1 {
        "once".to_owned()
    } else {
        format!("{} times", grouped(observed.denied_packets))
    };
    let since = |time: &Option<String>| {
        time.as_ref()
            .and_then(|time| seconds_since(time, now))
            .map(age)
    };
    let mut text = format!("refused {times}");
    if let Some(first) = since(&observed.first) {
        append(&mut text, format_args!(" in {first}"));
    }
    if let Some(last) = since(&observed.last) {
        append(&mut text, format_args!(", last {last} ago"));
    }
    if observed.incomplete {
        text.push_str(" (or more: the table of refusals was full)");
    }
    text
}

/// `can`: one line, then one line a direction.
pub(super) fn write_can(
    out: &mut impl Write,
    terminal: &Terminal,
    explanation: &Explanation,
) -> io::Result<()> {
    let word = match (explanation.verdict, explanation.partly) {
        (_, true) => "partly",
        (VerdictWord::Allow, false) => "yes",
        (VerdictWord::Deny | VerdictWord::Audit, false) => "no",
        (VerdictWord::Unknown, false) => "cannot tell",
    };
    writeln!(out, "{}", headline(terminal, explanation, word))?;
    let mut table = Table::new(vec![
        Column::Left(""),
        Column::Left(""),
        Column::Left(""),
        Column::Left(""),
    ])
    .without_headings(true);
    for judgement in &explanation.judgements {
        let direction = match judgement.direction {
            DirectionWord::Egress => "egress",
            DirectionWord::Ingress => "ingress",
        };
        let word = if judgement.verdict == VerdictWord::Allow {
            "yes"
        } else {
            "no"
        };
        table.push(vec![
            "      ".into(),
            direction.into(),
            Cell::painted(Paint::of(judgement.verdict), word),
            can_reason(judgement).into(),
        ]);
    }
    table.write(out, terminal)?;
    write_partly(out, terminal, explanation)?;
    if let Some(observed) = &explanation.observed {
        let text = observed_text(observed, jiff::Timestamp::now());
        writeln!(
            out,
            "        {}",
            terminal.paint(Paint::Dim, &format!("observed: {text}"))
        )?;
    }
    Ok(())
}

fn can_reason(judgement: &Judgement) -> String {
    if let Some(note) = &judgement.note {
        return note.clone();
    }
    match judgement.verdict {
        VerdictWord::Allow => match &judgement.rule {
            Some(rule) => short_rule(rule),
            None => reason_words(judgement),
        },
        VerdictWord::Deny | VerdictWord::Audit | VerdictWord::Unknown => {
            let isolating: Vec<&str> = judgement
                .isolated_by
                .iter()
                .map(|each| each.policy.rsplit('/').next().unwrap_or(&each.policy))
                .collect();
            let mut text = if isolating.is_empty() {
                reason_words(judgement)
            } else {
                format!("isolated by {}", isolating.join(", "))
            };
            if let Some(near) = judgement.nearest.first() {
                append(
                    &mut text,
                    format_args!("; nearest {}", short_rule(&near.rule)),
                );
                let wants: Vec<String> = near
                    .conditions
                    .iter()
                    .filter(|condition| !condition.holds)
                    .map(|condition| format!("{} {}", condition.condition, condition.wants))
                    .collect();
                if !wants.is_empty() {
                    append(&mut text, format_args!(" wants {}", wants.join(" and ")));
                }
            } else if judgement.isolated_by.iter().all(|each| each.rules == 0)
                && !isolating.is_empty()
            {
                text.push_str(", which admit nothing");
            }
            text
        }
    }
}

fn reason_words(judgement: &Judgement) -> String {
    match judgement.reason.as_deref() {
        Some("not-isolated") => "not isolated".to_owned(),
        Some("self") => "a pod always reaches itself".to_owned(),
        Some("node") => "a pod always lets its own node in".to_owned(),
        Some(reason) => reason.to_owned(),
        None => String::new(),
    }
}

fn write_partly(
    out: &mut impl Write,
    terminal: &Terminal,
    explanation: &Explanation,
) -> io::Result<()> {
    if !explanation.partly {
        return Ok(());
    }
    let text = format!(
        "{} of {} pairs of pods may; above is one that may not",
        grouped(explanation.allowed_pairs as u64),
        grouped(explanation.pairs as u64),
    );
    writeln!(out, "        {}", terminal.paint(Paint::Dim, &text))
}

/// `why`: everything that decides, and what would change it.
pub(super) fn write_why(
    out: &mut impl Write,
    terminal: &Terminal,
    explanation: &Explanation,
) -> io::Result<()> {
    let word = match (explanation.verdict, explanation.partly) {
        (_, true) => "PARTLY",
        (VerdictWord::Allow, false) => "ALLOWED",
        (VerdictWord::Deny, false) => "DENIED",
        (VerdictWord::Audit, false) => "AUDIT",
        (VerdictWord::Unknown, false) => "CANNOT TELL",
    };
    let mut line = headline(terminal, explanation, word);
    if let Some(observed) = &explanation.observed {
        line.push_str("      ");
        line.push_str(&observed_text(observed, jiff::Timestamp::now()));
    }
    writeln!(out, "{line}")?;
    write_partly(out, terminal, explanation)?;
    writeln!(out)?;
    let mut table = Table::new(vec![
        Column::Left(""),
        Column::Left(""),
        Column::Left(""),
        Column::Left(""),
    ])
    .without_headings(true);
    for (place, judgement) in (1..).zip(&explanation.judgements) {
        let (verb, party) = match judgement.direction {
            DirectionWord::Egress => ("leaving", &explanation.from),
            DirectionWord::Ingress => ("entering", &explanation.to),
        };
        let word = if judgement.verdict == VerdictWord::Allow {
            "allowed"
        } else {
            "DENIED"
        };
        table.push(vec![
            format!("  {place}").into(),
            format!("{verb} {party}").into(),
            Cell::painted(Paint::of(judgement.verdict), word),
            sentence(judgement).into(),
        ]);
    }
    table.write(out, terminal)?;
    for judgement in &explanation.judgements {
        if judgement.verdict == VerdictWord::Allow {
            continue;
        }
        write_isolating(out, terminal, &judgement.isolated_by)?;
        if let Some(near) = judgement.nearest.first() {
            write_near(out, terminal, near)?;
        }
        for suspect in &judgement.suspects {
            let line = format!("! {suspect}");
            writeln!(out, "\n  {}", terminal.paint(Paint::Audit, &line))?;
        }
        if let Some(addition) = &judgement.addition {
            write_addition(out, terminal, addition)?;
        }
    }
    if let Some(observed) = &explanation.observed
        && let Some(revision) = &observed.revision
    {
        let node = observed
            .node
            .as_ref()
            .map_or_else(String::new, |node| format!(" on {node}"));
        let line = format!("  decided in the kernel{node} under revision {revision}");
        writeln!(out, "\n{}", terminal.paint(Paint::Dim, &line))?;
    }
    Ok(())
}

fn sentence(judgement: &Judgement) -> String {
    if let Some(note) = &judgement.note {
        return note.clone();
    }
    let direction = match judgement.direction {
        DirectionWord::Egress => "egress",
        DirectionWord::Ingress => "ingress",
    };
    match (
        judgement.verdict,
        judgement.reason.as_deref(),
        &judgement.rule,
    ) {
        (_, Some("not-isolated"), _) => {
            format!("not isolated for {direction}: no policy selects it")
        }
        (_, Some("self"), _) => "a pod always reaches itself".to_owned(),
        (_, Some("node"), _) => "a pod always lets its own node in".to_owned(),
        (VerdictWord::Allow, _, Some(rule)) => format!("admitted by {rule}"),
        (_, Some("isolated-no-rule"), _) => {
            format!("isolated for {direction}, and no rule admits this")
        }
        (_, Some(reason), Some(rule)) => format!("{reason} {rule}"),
        (_, Some(reason), None) => reason.to_owned(),
        (_, None, _) => String::new(),
    }
}

fn write_isolating(
    out: &mut impl Write,
    terminal: &Terminal,
    isolating: &[Isolating],
) -> io::Result<()> {
    if isolating.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let mut table = Table::new(vec![Column::Left(""), Column::Left(""), Column::Left("")])
        .without_headings(true);
    for (place, each) in isolating.iter().enumerate() {
        let label = if place == 0 {
            "  isolated by"
        } else {
            "             "
        };
        let rules = match each.rules {
            0 => "has no rules".to_owned(),
            rules => counted(rules, "rule", "rules"),
        };
        table.push(vec![
            Cell::painted(Paint::Dim, label),
            each.policy.as_str().into(),
            format!("selects {}, {rules}", each.selects).into(),
        ]);
    }
    table.write(out, terminal)
}

fn write_addition(
    out: &mut impl Write,
    terminal: &Terminal,
    addition: &Addition,
) -> io::Result<()> {
    match &addition.field {
        Some(field) => writeln!(
            out,
            "\n  to admit it, add to {} under {field}:",
            addition.policy
        )?,
        None => writeln!(out, "\n  to admit it, apply:")?,
    }
    for line in addition.yaml.lines() {
        writeln!(out, "      {line}")?;
    }
    if let Some(caution) = &addition.caution {
        writeln!(
            out,
            "  {}",
            terminal.paint(Paint::Audit, &format!("! {caution}"))
        )?;
    }
    Ok(())
}

fn write_near(out: &mut impl Write, terminal: &Terminal, near: &NearRule) -> io::Result<()> {
    let parts: Vec<&str> = near.rule.split('/').collect();
    let name = match parts.as_slice() {
        [namespace, policy, direction, index] => {
            format!("{namespace}/{policy}  {direction}[{index}]")
        }
        _ => near.rule.clone(),
    };
    writeln!(
        out,
        "\n  {} {name}",
        terminal.paint(Paint::Dim, "nearest rule")
    )?;
    let mut table = Table::new(vec![
        Column::Left(""),
        Column::Left(""),
        Column::Left(""),
        Column::Left(""),
    ])
    .without_headings(true);
    for condition in &near.conditions {
        let verdict = if condition.holds {
            VerdictWord::Allow
        } else {
            VerdictWord::Deny
        };
        let wants = if condition.holds {
            condition.wants.clone()
        } else {
            format!("wants {}", condition.wants)
        };
        let has = condition.has.as_ref().filter(|_| !condition.holds);
        table.push(vec![
            "             ".into(),
            Cell::painted(
                Paint::of(verdict),
                format!("{} {}", terminal.glyph(verdict), condition.condition),
            ),
            wants.into(),
            has.map(String::as_str).unwrap_or_default().into(),
        ]);
    }
    table.write(out, terminal)
}

/// `why --to X`: one line a refusal, then the latest one explained.
pub(super) fn write_denials(
    out: &mut impl Write,
    terminal: &Terminal,
    who: &str,
    list: &DenialList,
) -> io::Result<()> {
    if list.items.is_empty() {
        writeln!(out, "no refusal of connections to or from {who} was seen")?;
        return write_lost(terminal, list.lost);
    }
    let now = jiff::Timestamp::now();
    let mut table = Table::new(vec![
        Column::Left("LAST"),
        Column::Name("FROM"),
        Column::Name("TO"),
        Column::Left("PORT"),
        Column::Right("PACKETS"),
        Column::Left("WHY"),
    ]);
    for denial in &list.items {
        let last = denial
            .observed
            .last
            .as_ref()
            .and_then(|last| seconds_since(last, now));
        let port = denial.port.map_or_else(
            || denial.protocol.clone(),
            |port| format!("{}/{port}", denial.protocol),
        );
        let direction = Direction(denial.direction);
        let near = denial.explanation.as_ref().and_then(|explanation| {
            explanation
                .judgements
                .iter()
                .find_map(|judgement| judgement.nearest.first())
        });
        let near = near.map_or_else(String::new, |near| {
            format!(" (near: {})", short_rule(&near.rule))
        });
        let is_allowed_now = denial
            .explanation
            .as_ref()
            .is_some_and(|explanation| explanation.verdict == VerdictWord::Allow);
        let why = match (is_allowed_now, denial.reason.as_str()) {
            (true, _) => format!(
                "{direction}: was {}, allowed by the policies as they are now",
                denial.reason
            ),
            (false, "isolated-no-rule") => format!("{direction}: no rule admits{near}"),
            (false, reason) => format!("{direction}: {reason}{near}"),
        };
        table.push(vec![
            last.map_or_else(|| "-".to_owned(), age).into(),
            denial.from.to_string().into(),
            denial.to.to_string().into(),
            port.into(),
            grouped(denial.observed.denied_packets).into(),
            why.into(),
        ]);
    }
    table.write(out, terminal)?;
    let latest_refused = list
        .items
        .iter()
        .filter_map(|denial| denial.explanation.as_ref());
    if let Some(explanation) = latest_refused
        .into_iter()
        .find(|each| each.verdict == VerdictWord::Deny)
    {
        writeln!(out)?;
        write_why(out, terminal, explanation)?;
    }
    write_lost(terminal, list.lost)
}

struct Direction(DirectionWord);

impl std::fmt::Display for Direction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            DirectionWord::Ingress => "ingress",
            DirectionWord::Egress => "egress",
        })
    }
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the last line of functions that write"
)]
fn write_lost(terminal: &Terminal, lost: u64) -> io::Result<()> {
    if lost > 0 {
        terminal.say(&format!(
            "{} refusals found no room in the table and are missing here",
            grouped(lost)
        ));
    }
    Ok(())
}
