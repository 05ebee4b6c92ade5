//! The lab and the demo: builds what users run, then becomes the program that shows it.

use std::ffi::OsString;

use anyhow::Result;

use crate::places;
use crate::setup::{self, What};
use crate::step::{self, Step};

/// Arguments that are handed on; `--help` is answered by the program itself.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Passed {
    /// Handed on to the program; `--help` shows what it takes.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// `cargo xtask demo`.
pub(crate) fn demo(passed: &Passed) -> Result<()> {
    build("demo", &[])?;
    start("demo", passed)
}

/// `cargo xtask lab`: nothing but the answer goes to stdout, and little else is said.
pub(crate) fn lab(passed: &Passed) -> Result<()> {
    build("lab", &["--quiet"])?;
    start("lab", passed)
}

fn build(program: &str, how: &[&str]) -> Result<()> {
    setup::ensure(What::Lab)?;
    // As tests build them: a release build takes a newcomer three times as long, and packets meet the
    // same programs, which are always optimized.
    Step::cargo(["build", "--locked", "-p", "agent", "-p", "tests"])
        .args(["--bin", "picket", "--bin", program])
        .args(how)
        .run()
}

fn start(program: &str, passed: &Passed) -> Result<()> {
    Step::new(places::target()?.join("debug").join(program))
        .args(&passed.args)
        .dir(step::called_from()?)
        .with_root("making network namespaces and loading BPF programs")?
        .replace()
}
