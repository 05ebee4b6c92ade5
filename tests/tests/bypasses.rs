//! `BYPASSES.md` says which test holds which way past a policy: each of them is there.

#![expect(clippy::unwrap_used, reason = "a test stops where its assumptions do")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Where tests are, from the workspace's root.
const PLACES: [&str; 4] = ["agent", "agent-common", "tests", "xtask"];
/// Nobody's test has a name shorter than this, and words of the text are shorter.
const SHORTEST_NAME: usize = 20;

/// Every function of every Rust file below a folder.
fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let names = text
                .lines()
                .filter_map(|line| line.trim_start().split_once("fn ")?.1.split_once('('));
            found.extend(names.map(|(name, _)| name.to_owned()));
        }
    }
}

#[test]
fn every_test_that_is_said_to_hold_a_hole_is_there() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut known = BTreeSet::new();
    for place in PLACES {
        functions(&home.parent().unwrap().join(place), &mut known);
    }
    let text = fs::read_to_string(home.join("BYPASSES.md")).unwrap();
    let named: Vec<&str> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.len() > SHORTEST_NAME && !word.contains(['/', ' ', '.']))
        .collect();
    assert!(named.len() > 50, "{named:?}");
    let missing: Vec<&&str> = named
        .iter()
        .filter(|name| !known.contains(**name))
        .collect();
    assert!(missing.is_empty(), "no such tests: {missing:#?}");
}
