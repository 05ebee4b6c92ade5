//! Fuzzing: random bytes, bred towards ways through the code that no earlier bytes took, at every
//! target of `tests/fuzz` or at one.
//!
//! No nightly and no cargo-fuzz: libFuzzer needs a count of which ways were taken, and that much a
//! released compiler can add. Our code is safe Rust, so no sanitizer is asked for: what is looked
//! for panics, hangs or takes too much memory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::places;
use crate::setup::{self, What};
use crate::step::Step;

/// Where the programs are, from the workspace's root.
const PROGRAMS: &str = "tests/fuzz/libfuzzer";
/// Committed inputs, a folder for each target.
const CORPUS: &str = "tests/fuzz/corpus";
/// What cargo-fuzz tells the compiler, too: count branches, tell comparisons.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// One input may take this long: a hang is a find.
const INPUT_SECONDS: u32 = 20;
/// One input may take this much: exhaustion is a find.
const MEMORY_MIB: u32 = 2048;

/// What to fuzz, and for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One target; all of them when left out. `classify`: packets under policies that change;
    /// `manifests`: files; `parse`: frames.
    target: Option<String>,
    /// How long, for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Handed on to libFuzzer; `-- -help=1` says what it takes. A file's name runs that input alone.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// The task.
pub(crate) fn run(args: &Args) -> Result<()> {
    let targets = selected(args.target.as_deref())?;
    each(&targets, args.seconds, &args.rest)
}

/// Every target, for the tests.
pub(crate) fn all(seconds: u32) -> Result<()> {
    each(&selected(None)?, seconds, &[])
}

fn each(targets: &[String], seconds: u32, rest: &[String]) -> Result<()> {
    setup::ensure(What::Fuzz)?;
    let home = places::target()?.join("fuzz");
    let programs = build(&home)?;
    for target in targets {
        fuzz(&home, &programs, target, seconds, rest)?;
    }
    Ok(())
}

fn selected(name: Option<&str>) -> Result<Vec<String>> {
    let targets = targets()?;
    match name {
        None => Ok(targets),
        Some(name) if targets.iter().any(|target| target == name) => Ok(vec![name.to_owned()]),
        Some(name) => bail!("{name:?}: no such target; there are {}", targets.join(", ")),
    }
}

/// The programs there are, by their files.
fn targets() -> Result<Vec<String>> {
    let folder = places::root().join(PROGRAMS).join("src/bin");
    let listing = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut targets = Vec::new();
    for entry in listing {
        let path = entry.context("reading the targets' names")?.path();
        if let Some(stem) = path.file_stem() {
            targets.push(stem.to_string_lossy().into_owned());
        }
    }
    targets.sort();
    Ok(targets)
}

fn build(home: &Path) -> Result<PathBuf> {
    let host = host()?;
    Step::cargo(["build", "--release", "--locked", "--bins"])
        .args(["--manifest-path", &format!("{PROGRAMS}/Cargo.toml")])
        // With a target named, what runs while building is not instrumented.
        .args(["--target", &host])
        .env("CARGO_TARGET_DIR", home)
        .env("RUSTFLAGS", FLAGS)
        .run()?;
    Ok(home.join(host).join("release"))
}

fn host() -> Result<String> {
    let said = Step::new("rustc").arg("-vV").output()?;
    said.lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("`rustc -vV` names no host")
}

fn fuzz(home: &Path, programs: &Path, target: &str, seconds: u32, rest: &[String]) -> Result<()> {
    let found = home.join("found").join(target);
    let grown = home.join("corpus").join(target);
    for folder in [&found, &grown] {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let step = Step::new(programs.join(target))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .args(["-print_final_stats=1", "-verbosity=1"])
        .args(rest);
    // Inputs of its own, in place of the corpora.
    let is_replay = rest.iter().any(|word| !word.starts_with('-'));
    let step = if is_replay {
        step
    } else {
        // New inputs go into the first folder, which outlives the run and is not committed.
        step.arg(grown)
            .arg(places::root().join(CORPUS).join(target))
    };
    step.run().with_context(|| {
        format!(
            "target {target} failed; the input is the newest in {}: mend it, and keep the input \
             as {CORPUS}/{target}/<what it is>",
            found.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_found_and_unknown_ones_refused_with_their_names() {
        assert!(selected(Some("manifests")).is_ok());
        let error = selected(Some("nothing")).unwrap_err().to_string();
        assert!(error.contains("manifests"), "{error}");
    }
}
