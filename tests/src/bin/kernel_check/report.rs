//! What `cargo xtask test vm` reads: a line a case, and notes for its table.
#![expect(clippy::print_stdout, reason = "the lines are what it is run for")]

use anyhow::Error;

/// A case that passed.
pub(crate) fn ok(case: &str) {
    println!("ok: {case}");
}

/// A part that ended at its first case that did not pass.
pub(crate) fn failed(part: &str, error: &Error) {
    println!("FAILED: {part}: {error:#}");
}

/// A fact for the table.
pub(crate) fn note(what: &str, value: &str) {
    println!("note: {what} {value}");
}
