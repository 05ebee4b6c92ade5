//! Every committed input of every target, without a fuzzer, and some of chance. What a fuzzer finds is
//! kept here.

#![expect(clippy::unwrap_used, reason = "a test stops where its assumptions do")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tests_fuzz::TARGETS;
use tests_fuzz::dice::Dice;

fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn names(folder: &Path) -> BTreeSet<String> {
    let stem = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    files(folder).into_iter().map(stem).collect()
}

fn home() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_target_holds_for_every_input_of_its_corpus() {
    for (name, claim) in TARGETS {
        let inputs = files(&home().join("corpus").join(name));
        assert!(!inputs.is_empty(), "{name} has no corpus");
        for input in inputs {
            let bytes = fs::read(&input).unwrap();
            let held = std::panic::catch_unwind(|| claim(&bytes));
            assert!(held.is_ok(), "target {name} fails on {}", input.display());
        }
    }
}

#[test]
fn packets_and_changes_by_chance_hold_like_those_a_fuzzer_breeds() {
    let is_thorough = std::env::var_os("PICKET_THOROUGH").is_some();
    let inputs = if is_thorough { 100_000 } else { 300 };
    let mut dice = Dice::of(1);
    for _ in 0..inputs {
        let length = dice.roll(1_500);
        let bytes: Vec<u8> = (0..length).map(|_| dice.byte()).collect();
        tests_fuzz::classify::run(&bytes);
    }
}

#[test]
fn every_target_has_a_corpus_and_a_program() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&home().join("corpus")), targets);
    assert_eq!(names(&home().join("libfuzzer/src/bin")), targets);
}
