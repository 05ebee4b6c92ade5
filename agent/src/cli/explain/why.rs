//! How `why` reads: headline, both directions, isolating policies, nearest rule, what would admit it.

use std::io::{self, Write};

use super::{always_words, headline, observed_text, write_partly};
use crate::cli::output::{Cell, Column, Paint, Table, Terminal, counted};
use crate::dto::{
    Addition, DirectionWord, Explanation, Isolating, Judgement, NearRule, VerdictWord,
};

/// `why`: everything that decides, and what would change it.
pub(in crate::cli) fn write_why(
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
        Column::Name(""),
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
    if let Some(words) = always_words(judgement) {
        return words;
    }
    let direction = judgement.direction.as_label();
    match (
        judgement.verdict,
        judgement.reason.as_deref(),
        &judgement.rule,
    ) {
        (_, Some("not-isolated"), _) => {
            format!("not isolated for {direction}: no policy selects it")
        }
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
