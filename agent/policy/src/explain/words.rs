//! Labels and selectors in words, and how far apart two words are.

use crate::model::Labels;
use crate::selector::{Operator, Requirement, Selector};

/// How many labels are listed before the rest is left out.
const LABELS_LISTED: usize = 4;

/// What a selector selects, or `everything` when it asks for nothing.
pub(super) fn selected(selector: &Selector, everything: &str) -> String {
    if selector.requirements.is_empty() {
        everything.to_owned()
    } else {
        selector.to_string()
    }
}

/// The labels that a selector asks about; when there is none of them, all labels.
pub(super) fn labels(labels: &Labels, selector: &Selector) -> String {
    let asked: Vec<String> = labels
        .iter()
        .filter(|(key, _)| is_asked(selector, key))
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    if !asked.is_empty() {
        return asked.join(", ");
    }
    let mut all: Vec<String> = labels
        .iter()
        .take(LABELS_LISTED)
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    if labels.len() > LABELS_LISTED {
        all.push("…".to_owned());
    }
    if all.is_empty() {
        "no labels".to_owned()
    } else {
        all.join(", ")
    }
}

fn is_asked(selector: &Selector, key: &str) -> bool {
    let mut requirements = selector.requirements.iter();
    requirements.any(|requirement| requirement.key == key)
}

/// How many letters would have to change in labels for a selector to select them; 0 when it does.
pub(super) fn edits(selector: &Selector, labels: &Labels) -> usize {
    selector
        .requirements
        .iter()
        .filter(|requirement| !requirement.selects(labels))
        .map(|requirement| requirement_edits(requirement, labels))
        .sum()
}

fn requirement_edits(requirement: &Requirement, labels: &Labels) -> usize {
    let key = requirement.key.len();
    match (&requirement.operator, labels.get(&requirement.key)) {
        (Operator::In(values), Some(value)) => nearest(values, value),
        (Operator::In(values), None) => {
            key + values.iter().map(String::len).min().unwrap_or_default()
        }
        (Operator::DoesNotExist | Operator::NotIn(_), Some(value)) => key + value.len(),
        (Operator::Exists | Operator::DoesNotExist | Operator::NotIn(_), _) => key,
    }
}

fn nearest(values: &[String], value: &str) -> usize {
    let distances = values.iter().map(|wanted| distance(wanted, value));
    distances.min().unwrap_or(usize::MAX / 2)
}

/// True when labels look as if the selector had been meant for them: of what it asks for, one
/// value is spelt a little differently and everything else holds.
pub(super) fn is_near_miss(selector: &Selector, labels: &Labels) -> bool {
    let mut failed = selector
        .requirements
        .iter()
        .filter(|requirement| !requirement.selects(labels));
    let (Some(requirement), None) = (failed.next(), failed.next()) else {
        return false;
    };
    match (&requirement.operator, labels.get(&requirement.key)) {
        (Operator::In(values), Some(value)) => values.iter().any(|wanted| {
            wanted.starts_with(value.as_str())
                || value.starts_with(wanted.as_str())
                || distance(wanted, value) <= 2
        }),
        _ => false,
    }
}

/// Edits that turn one word into the other, in characters (Levenshtein 1966).
pub fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (line, from) in (1..).zip(a.chars()) {
        let mut diagonal = line - 1;
        let mut left = line;
        if let Some(first) = row.first_mut() {
            *first = line;
        }
        for (place, to) in row.iter_mut().skip(1).zip(&b) {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = *place;
            *place = replaced.min(diagonal + 1).min(left + 1);
            left = *place;
        }
    }
    row.last().copied().unwrap_or_default()
}
