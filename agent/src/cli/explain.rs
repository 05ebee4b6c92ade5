//! How explanations read: the words that `can`, `why` and `why --to` share.

mod can;
mod denials;
#[cfg(test)]
mod tests;
mod why;

use std::io::{self, Write};

use super::Outcome;
use super::output::{Paint, Terminal, age, append, grouped};
use crate::dto::{Explanation, Judgement, Observed, VerdictWord};

pub(super) use can::write_can;
pub(super) use denials::{say_lost, write_denials};
pub(super) use why::write_why;

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

/// What holds whatever policies say; `None` where they decide.
fn always_words(judgement: &Judgement) -> Option<String> {
    match (&judgement.note, judgement.reason.as_deref()) {
        (Some(note), _) => Some(note.clone()),
        (None, Some("self")) => Some("a pod always reaches itself".to_owned()),
        (None, Some("node")) => Some("a pod always lets its own node in".to_owned()),
        (None, _) => None,
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
