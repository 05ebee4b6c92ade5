//! How `can` reads: one line, then one line a direction.

use std::io::{self, Write};

use super::{always_words, headline, observed_text, short_rule, write_partly};
use crate::cli::output::{Cell, Column, Paint, Table, Terminal, append};
use crate::dto::{Explanation, Judgement, NearRule, VerdictWord};

/// `can`: one line, then one line a direction.
pub(in crate::cli) fn write_can(
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
        let word = if judgement.verdict == VerdictWord::Allow {
            "yes"
        } else {
            "no"
        };
        table.push(vec![
            "      ".into(),
            judgement.direction.as_label().into(),
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
    if let Some(words) = always_words(judgement) {
        return words;
    }
    match (judgement.verdict, judgement.reason.as_deref()) {
        (VerdictWord::Allow, reason) => match (&judgement.rule, reason) {
            (Some(rule), _) => short_rule(rule),
            (None, Some("not-isolated")) => "not isolated".to_owned(),
            (None, reason) => reason.unwrap_or_default().to_owned(),
        },
        (VerdictWord::Deny | VerdictWord::Audit | VerdictWord::Unknown, reason) => {
            if judgement.isolated_by.is_empty() {
                return reason.unwrap_or_default().to_owned();
            }
            isolation(judgement)
        }
    }
}

fn isolation(judgement: &Judgement) -> String {
    let isolating: Vec<&str> = judgement
        .isolated_by
        .iter()
        .map(|each| each.policy.rsplit('/').next().unwrap_or(&each.policy))
        .collect();
    let mut text = format!("isolated by {}", isolating.join(", "));
    if let Some(near) = judgement.nearest.first() {
        append(
            &mut text,
            format_args!("; nearest {} {}", short_rule(&near.rule), wants(near)),
        );
    } else if judgement.isolated_by.iter().all(|each| each.rules == 0) {
        let verb = if isolating.len() == 1 {
            "admits"
        } else {
            "admit"
        };
        append(&mut text, format_args!(", which {verb} nothing"));
    }
    text
}

/// `wants pod app=api and port TCP/80`.
fn wants(near: &NearRule) -> String {
    let wants: Vec<String> = near
        .conditions
        .iter()
        .filter(|condition| !condition.holds)
        .map(
            |condition| match (condition.condition.as_str(), &condition.wants) {
                // What these want says by itself what it is about.
                ("except" | "readable" | "direction" | "named port", wants) => wants.clone(),
                ("selects", wants) => format!("an endpoint with {wants}"),
                (word, wants) => format!("{word} {wants}"),
            },
        )
        .collect();
    format!("wants {}", wants.join(" and "))
}
