//! What CI asks before tests, quickest first.

use std::time::Instant;

use anyhow::Result;

use crate::setup::{self, What};
use crate::step::Step;
use crate::{bpf, layout, tidy};

type Part = (&'static str, fn() -> Result<()>);

const PARTS: &[Part] = &[
    ("format", || Step::cargo(["fmt", "--all", "--check"]).run()),
    ("project rules", tidy::run),
    ("lockfile", lockfile),
    ("lints", || {
        Step::cargo(["clippy", "--workspace", "--all-targets", "--locked"])
            .args(["--features", "tests/kubernetes", "--", "-D", "warnings"])
            .run()
    }),
    ("documentation", || {
        Step::cargo(["doc", "--workspace", "--no-deps", "--locked"])
            .env("RUSTDOCFLAGS", "-D warnings")
            .run()
    }),
    ("map layouts", || layout::run(&layout::Args::default())),
    ("BPF budget", bpf::run),
];

/// The task.
pub(crate) fn run() -> Result<()> {
    setup::ensure(What::Lint)?;
    setup::ensure(What::Bpf)?;
    for (name, part) in PARTS {
        eprintln!("\n== {name}");
        let started = Instant::now();
        part()?;
        eprintln!(
            "== {name}: clean ({:.1} s)",
            started.elapsed().as_secs_f32()
        );
    }
    eprintln!("\ncheck: all clean");
    Ok(())
}

/// A Cargo.toml changed without its lockfile would build differently elsewhere.
fn lockfile() -> Result<()> {
    Step::cargo(["metadata", "--locked", "--format-version", "1"])
        .output()
        .map(drop)
}
