//! What benchmarks have in common: figures and the goals they are held to.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::Serialize;

/// Exit code when a goal is missed.
const EXIT_MISSED: u8 = 1;

/// How figures are printed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum Form {
    /// For people.
    #[default]
    Table,
    /// One JSON object.
    Json,
}

/// A figure that may be so large at most.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Goal {
    /// What was measured.
    pub what: String,
    /// The figure.
    pub figure: f64,
    /// What it may be.
    pub at_most: f64,
    /// Of both; empty for ratios.
    pub unit: &'static str,
}

impl Goal {
    /// False also for a figure that is none.
    pub fn is_met(&self) -> bool {
        self.figure <= self.at_most
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            what,
            figure,
            at_most,
            unit,
        } = self;
        let word = if self.is_met() { "met" } else { "MISSED" };
        let space = if unit.is_empty() { "" } else { " " };
        let digits = if *at_most < 10.0 { 3 } else { 1 };
        write!(
            f,
            "{word:<6}  {what}: {figure:.digits$}{space}{unit}, at most {at_most:.digits$}{space}{unit}"
        )
    }
}

/// Success when every goal is met.
pub fn verdict(goals: &[Goal]) -> ExitCode {
    if goals.iter().all(Goal::is_met) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_MISSED)
    }
}

/// The middle one of some samples; not a number when there are none.
pub fn median(samples: Vec<f64>) -> f64 {
    percentile(samples, 50)
}

/// The sample that a tenth of all are below: what a thing costs while nothing else disturbs it.
pub fn lowest_decile(samples: Vec<f64>) -> f64 {
    percentile(samples, 10)
}

/// The sample that so many of a hundred are below.
pub fn percentile(mut samples: Vec<f64>, part: usize) -> f64 {
    samples.sort_by(f64::total_cmp);
    let at = samples.len() * part / 100;
    samples.get(at).copied().unwrap_or(f64::NAN)
}

/// CPUs that this process may use.
///
/// # Errors
/// The kernel does not say.
pub fn cpus() -> Result<Vec<usize>> {
    let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))
        .context("asking for the CPUs that may be used")?;
    Ok((0..nix::sched::CpuSet::count())
        .filter(|cpu| allowed.is_set(*cpu).unwrap_or_default())
        .collect())
}

/// Keeps the calling thread, and what it starts from now on, to some CPUs.
///
/// # Errors
/// None of them may be used.
pub fn keep_to(cpus: &[usize]) -> Result<()> {
    let mut set = nix::sched::CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)
            .with_context(|| format!("CPU {cpu}: no such CPU"))?;
    }
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
        .with_context(|| format!("keeping to CPUs {cpus:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goal(figure: f64) -> Goal {
        Goal {
            what: "a change".to_owned(),
            figure,
            at_most: 2.0,
            unit: "ms",
        }
    }

    #[test]
    fn a_goal_says_figure_limit_and_whether_it_is_met() {
        assert_eq!(
            goal(1.25).to_string(),
            "met     a change: 1.250 ms, at most 2.000 ms"
        );
        assert_eq!(
            goal(2.5).to_string(),
            "MISSED  a change: 2.500 ms, at most 2.000 ms"
        );
    }

    #[test]
    fn one_missed_goal_is_a_failure_and_no_figure_is_a_missed_one() {
        assert_eq!(verdict(&[goal(1.0), goal(2.0)]), ExitCode::SUCCESS);
        let missed = ExitCode::from(EXIT_MISSED);
        assert_eq!(verdict(&[goal(1.0), goal(2.1)]), missed);
        assert_eq!(verdict(&[goal(f64::NAN)]), missed);
    }

    #[test]
    fn the_lowest_decile_is_below_nine_tenths_of_the_samples() {
        let samples: Vec<f64> = (0..20).rev().map(f64::from).collect();
        assert!((lowest_decile(samples.clone()) - 2.0).abs() < f64::EPSILON);
        assert!((median(samples) - 10.0).abs() < f64::EPSILON);
        assert!(median(Vec::new()).is_nan());
    }
}
