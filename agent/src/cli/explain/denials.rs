//! How `why --to` reads: one line a refusal, then the latest one explained.

use std::io::{self, Write};

use super::{seconds_since, short_rule, write_why};
use crate::cli::output::{Column, Table, Terminal, age, counted, grouped};
use crate::dto::{Denial, DenialList, VerdictWord};

/// `why --to X`: one line a refusal, then the latest one explained.
pub(in crate::cli) fn write_denials(
    out: &mut impl Write,
    terminal: &Terminal,
    who: &str,
    list: &DenialList,
) -> io::Result<()> {
    if list.items.is_empty() {
        return writeln!(out, "no refusal of connections to or from {who} was seen");
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
        table.push(vec![
            last.map_or_else(|| "-".to_owned(), age).into(),
            denial.from.to_string().into(),
            denial.to.to_string().into(),
            port.into(),
            grouped(denial.observed.denied_packets).into(),
            why(denial).into(),
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
    Ok(())
}

fn why(denial: &Denial) -> String {
    let direction = denial.direction.as_label();
    let explanation = denial.explanation.as_ref();
    if explanation.is_some_and(|explanation| explanation.verdict == VerdictWord::Allow) {
        return format!(
            "{direction}: was {}, allowed by the policies as they are now",
            denial.reason
        );
    }
    let near = explanation
        .and_then(|explanation| {
            let mut judgements = explanation.judgements.iter();
            judgements.find_map(|judgement| judgement.nearest.first())
        })
        .map_or_else(String::new, |near| {
            format!(" (near: {})", short_rule(&near.rule))
        });
    match denial.reason.as_str() {
        "isolated-no-rule" => format!("{direction}: no rule admits{near}"),
        reason => format!("{direction}: {reason}{near}"),
    }
}

/// Says on standard error that the list is not whole.
pub(in crate::cli) fn say_lost(terminal: &Terminal, lost: u64) {
    if lost > 0 {
        terminal.say(&format!(
            "{} found no room in the table and are missing here",
            counted(lost, "refusal", "refusals")
        ));
    }
}
