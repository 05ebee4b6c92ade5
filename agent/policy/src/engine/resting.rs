//! What packets under way may still read, until it has rested and is deleted or used again.

use std::collections::VecDeque;
use std::time::Duration;

use agent_common::maps::{PortKey, VerdictKey};

use crate::compile::Compiler;
use crate::compile::port_functions::FunctionId;
use crate::model::RuleId;
use crate::plan::Write;

/// Deletions one plan does at most, so that what is urgent does not wait behind them.
const CLEARED_PER_PLAN: usize = 8192;

/// Something that rests.
#[derive(Clone, Copy, Debug)]
pub(super) enum Resting {
    /// A row of `VERDICTS`, and the function it holds (`None`: an earlier agent's).
    Verdict(VerdictKey, Option<FunctionId>),
    /// A row of `PORTS` that an earlier agent left.
    Port(PortKey),
    /// A rule that a forgotten set had.
    Rule(RuleId),
    /// A row of `CONFIGS`.
    Config(u32),
}

/// What rests, in the order in which it will have rested.
#[derive(Clone, Debug, Default)]
pub(super) struct Rest {
    to_delete: VecDeque<(Duration, Resting)>,
    config_rows: VecDeque<(Duration, u32)>,
    verdicts: usize,
}

impl Rest {
    /// Begins a rest that ends at `until`, which is never before that of an earlier call.
    pub(super) fn begin(&mut self, until: Duration, items: Vec<Resting>) {
        for item in items {
            match item {
                Resting::Config(row) => self.config_rows.push_back((until, row)),
                Resting::Verdict(..) => {
                    self.verdicts += 1;
                    self.to_delete.push_back((until, item));
                }
                Resting::Port(_) | Resting::Rule(_) => self.to_delete.push_back((until, item)),
            }
        }
    }

    /// Rows of CONFIGS that have rested.
    pub(super) fn config_rows(&mut self, now: Duration) -> Vec<u32> {
        let mut rows = Vec::new();
        while let Some((until, row)) = self.config_rows.front()
            && *until <= now
        {
            rows.push(*row);
            self.config_rows.pop_front();
        }
        rows
    }

    /// When the next row of CONFIGS will have rested.
    pub(super) fn next_config_row(&self) -> Option<Duration> {
        self.config_rows.front().map(|(until, _)| *until)
    }

    /// When there is something to delete.
    pub(super) fn next_deletion(&self) -> Option<Duration> {
        self.to_delete.front().map(|(until, _)| *until)
    }

    /// Rows of `VERDICTS` that rest.
    pub(super) const fn verdicts(&self) -> usize {
        self.verdicts
    }

    /// The deletions that are due.
    pub(super) fn deletions(&mut self, now: Duration, compiler: &mut Compiler) -> Vec<Write> {
        let mut writes = Vec::new();
        while writes.len() < CLEARED_PER_PLAN
            && let Some((until, item)) = self.to_delete.front()
            && *until <= now
        {
            match item {
                Resting::Verdict(key, function) => {
                    self.verdicts -= 1;
                    writes.push(Write::DeleteVerdict(*key));
                    if let Some(function) = function {
                        let ports = compiler.functions.release(*function);
                        writes.extend(ports.into_iter().map(Write::DeletePort));
                    }
                }
                Resting::Port(key) => writes.push(Write::DeletePort(*key)),
                Resting::Rule(rule) => compiler.rules.release(*rule),
                Resting::Config(_) => {}
            }
            self.to_delete.pop_front();
        }
        writes.extend(compiler.rules.forgotten());
        writes
    }
}
