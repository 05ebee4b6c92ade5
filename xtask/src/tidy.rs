//! The project's own rules, those that no other tool keeps.
//!
//! Each rule returns what it finds, most of them in one file of the tree; nothing is fixed here.

mod locks;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::places;
use crate::step::Step;

/// Longest Rust file, tests included.
const FILE_LINES: usize = 600;

/// Most lines of code agent-ebpf may have: it is a shell, logic belongs to agent-common.
const EBPF_LINES: usize = 710;

/// Not part of the shell: programs that benchmarks compare with.
const EBPF_FLOOR: &str = "agent-ebpf/src/floor.rs";

/// A name that only some folder may use, and who owns what it stands for.
struct Border {
    name: &'static str,
    inside: &'static str,
    only: &'static [&'static str],
    why: &'static str,
}

const BORDERS: &[Border] = &[
    Border {
        name: "aya::",
        inside: "agent/src/",
        only: &["agent/src/dataplane"],
        why: "the dataplane alone talks to the kernel's BPF",
    },
    Border {
        name: "kube::",
        inside: "agent/src/",
        only: &["agent/src/source"],
        why: "sources alone talk to the API server",
    },
    Border {
        name: "println!",
        inside: "agent/src/",
        only: &["agent/src/cli", "agent/src/main.rs"],
        why: "the command line alone prints; everything else returns or logs",
    },
    Border {
        name: "std::fs",
        inside: "agent/policy/src/",
        only: &[],
        why: "the policy engine does no I/O",
    },
];

/// Words that the glossary of ARCHITECTURE.md replaces: (not this, but that).
const WORDS: &[(&str, &str)] = &[
    ("whitelist", "allow"),
    ("blacklist", "deny"),
    ("dry-run", "audit"),
    ("dry run", "audit"),
    ("fail mode", "posture"),
    ("shadow mode", "audit"),
];

/// Names of modules that say nothing about what is in them.
const EMPTY_NAMES: &[&str] = &[
    "util", "utils", "helper", "helpers", "common", "misc", "manager", "handler", "data", "info",
];

/// Where a path of somebody's machine begins.
const MACHINE_PATHS: &[&str] = &["/home/", "/root/", "/Users/"];

struct File {
    /// From the workspace's root.
    name: String,
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        has_extension(&self.name, "rs")
    }

    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .map(|(at, line)| (at + 1, line))
    }

    fn fault(&self, line: usize, what: impl AsRef<str>) -> String {
        format!("{}:{line}: {}", self.name, what.as_ref())
    }
}

/// The task.
pub(crate) fn run() -> Result<()> {
    let files = tracked()?;
    let rules: &[fn(&File) -> Vec<String>] = &[
        head,
        length,
        borders,
        module_name,
        words,
        machine_paths,
        links,
    ];
    let mut faults: Vec<String> = files
        .iter()
        .flat_map(|file| rules.iter().flat_map(|rule| rule(file)))
        .collect();
    faults.extend(ebpf_is_thin(&files));
    faults.extend(locks::follow(&files));
    if faults.is_empty() {
        eprintln!("tidy: {} files keep the rules", files.len());
        return Ok(());
    }
    bail!("{}\ntidy: {} faults", faults.join("\n"), faults.len())
}

/// Every text file of the tree, as git sees it: new ones too, ignored ones not.
fn tracked() -> Result<Vec<File>> {
    let list = Step::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("listing the tree: is this a git checkout?")?;
    let mut files = Vec::new();
    for name in list.lines() {
        let path = places::root().join(name);
        // Deleted but not committed yet, or not text: none of our rules' business.
        if let Ok(bytes) = fs::read(&path)
            && let Ok(text) = String::from_utf8(bytes)
        {
            files.push(File {
                name: name.to_owned(),
                text,
            });
        }
    }
    Ok(files)
}

fn head(file: &File) -> Vec<String> {
    if !file.is_rust() || file.text.starts_with("//! ") {
        return Vec::new();
    }
    vec![file.fault(1, "begin with `//!` and the one job of this file")]
}

fn length(file: &File) -> Vec<String> {
    let lines = file.text.lines().count();
    if !file.is_rust() || lines <= FILE_LINES {
        return Vec::new();
    }
    vec![file.fault(
        lines,
        format!("{lines} lines, {FILE_LINES} at most: split by job"),
    )]
}

fn borders(file: &File) -> Vec<String> {
    let mut faults = Vec::new();
    if !file.is_rust() {
        return faults;
    }
    for border in BORDERS
        .iter()
        .filter(|border| file.name.starts_with(border.inside))
    {
        if border.only.iter().any(|place| file.name.starts_with(place)) {
            continue;
        }
        for (at, line) in file.lines() {
            if uses(line, border.name) {
                let Border { name, why, .. } = border;
                faults.push(file.fault(at, format!("`{name}` does not belong here: {why}")));
            }
        }
    }
    faults
}

/// Whether code on this line uses `name` as a word of its own; comments do not count.
fn uses(line: &str, name: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.match_indices(name).any(|(at, _)| {
        let before = code.get(..at).and_then(|before| before.chars().next_back());
        !before.is_some_and(|char| char.is_alphanumeric() || char == '_')
    })
}

fn module_name(file: &File) -> Vec<String> {
    let stem = Path::new(&file.name)
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy();
    if file.is_rust() && EMPTY_NAMES.contains(&stem.as_ref()) {
        return vec![file.fault(1, format!("`{stem}` says nothing: name what is in it"))];
    }
    Vec::new()
}

fn words(file: &File) -> Vec<String> {
    // This file has to name them.
    if file.name == "xtask/src/tidy.rs" || !(file.is_rust() || has_extension(&file.name, "md")) {
        return Vec::new();
    }
    let mut faults = Vec::new();
    for (at, line) in file.lines() {
        let line = line.to_lowercase();
        for (word, instead) in WORDS {
            if line.contains(word) {
                faults.push(file.fault(at, format!("say \"{instead}\", not \"{word}\"")));
            }
        }
    }
    faults
}

fn machine_paths(file: &File) -> Vec<String> {
    if file.name == "xtask/src/tidy.rs" {
        return Vec::new();
    }
    let mut faults = Vec::new();
    for (at, line) in file.lines() {
        for path in MACHINE_PATHS {
            let found = line.match_indices(path).any(|(at, _)| {
                let before = line.get(..at).and_then(|before| before.chars().next_back());
                // Not the middle of a longer path or of an address.
                !before.is_some_and(|char| char.is_alphanumeric() || "_.-~}".contains(char))
            });
            if found {
                faults.push(file.fault(at, format!("{path}…: a path of one machine")));
            }
        }
    }
    faults
}

/// Links of a document to files of the tree lead somewhere.
fn links(file: &File) -> Vec<String> {
    if !has_extension(&file.name, "md") {
        return Vec::new();
    }
    let folder = Path::new(&file.name).parent().unwrap_or(Path::new(""));
    let mut faults = Vec::new();
    for (at, line) in file.lines() {
        for target in line
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let path = target.split('#').next().unwrap_or_default();
            if path.is_empty() || target.contains("://") {
                continue;
            }
            if !places::root().join(folder).join(path).exists() {
                faults.push(file.fault(at, format!("the link to {path} leads nowhere")));
            }
        }
    }
    faults
}

fn ebpf_is_thin(files: &[File]) -> Option<String> {
    let lines: usize = files
        .iter()
        .filter(|file| file.is_rust() && file.name.starts_with("agent-ebpf/"))
        .filter(|file| file.name != EBPF_FLOOR)
        .map(|file| file.text.lines().filter(|line| is_code(line)).count())
        .sum();
    (lines > EBPF_LINES).then(|| {
        format!("agent-ebpf: {lines} lines of code, {EBPF_LINES} at most: it only carries out")
    })
}

fn is_code(line: &str) -> bool {
    let line = line.trim_start();
    !line.is_empty() && !line.starts_with("//")
}

fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|found| found == extension)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> File {
        File {
            name: name.to_owned(),
            text: text.to_owned(),
        }
    }

    #[track_caller]
    fn check(rule: fn(&File) -> Vec<String>, name: &str, text: &str, faults: usize) {
        assert_eq!(rule(&file(name, text)).len(), faults, "{name}: {text}");
    }

    #[test]
    fn a_rust_file_begins_with_its_job() {
        check(head, "a.rs", "//! Job.\n", 0);
        check(head, "a.rs", "use std;\n", 1);
        check(head, "a.md", "# Title\n", 0);
    }

    #[test]
    fn names_stay_inside_their_borders() {
        check(borders, "agent/src/flows.rs", "use aya::maps::Map;", 1);
        check(
            borders,
            "agent/src/dataplane/load.rs",
            "use aya::maps::Map;",
            0,
        );
        check(
            borders,
            "agent/src/flows.rs",
            "// aya::maps is the dataplane's",
            0,
        );
        check(borders, "agent/src/flows.rs", "eprintln!(\"x\")", 0);
        check(borders, "agent/src/flows.rs", "println!(\"x\")", 1);
        check(borders, "tests/src/lab.rs", "use aya::maps::Map;", 0);
    }

    #[test]
    fn empty_module_names_are_refused() {
        check(module_name, "agent/src/utils.rs", "", 1);
        check(module_name, "agent/src/endpoints.rs", "", 0);
    }

    #[test]
    fn paths_of_one_machine_are_refused_and_longer_paths_are_not() {
        check(
            machine_paths,
            "a.sh",
            &format!("cd {}me", MACHINE_PATHS[0]),
            1,
        );
        check(machine_paths, "a.sh", "cat /var/lib/home/x", 0);
    }

    #[test]
    fn a_word_outside_the_glossary_is_refused() {
        check(words, "a.md", "A Whitelist.", 1);
        check(words, "a.sh", "whitelist", 0);
    }

    #[test]
    fn a_link_must_lead_somewhere() {
        check(
            links,
            "README.md",
            "[x](Cargo.toml) [y](https://example.org) [z](#part)",
            0,
        );
        check(links, "README.md", "[x](no/such.md)", 1);
        check(links, "xtask/README.md", "[x](Cargo.toml#a)", 0);
    }

    #[test]
    fn a_file_over_the_limit_is_refused() {
        check(length, "a.rs", &"x\n".repeat(FILE_LINES), 0);
        check(length, "a.rs", &"x\n".repeat(FILE_LINES + 1), 1);
    }

    #[test]
    fn a_thick_kernel_crate_is_refused_and_its_comments_do_not_count() {
        let named = |name: &str, line: &str| file(name, &line.repeat(EBPF_LINES + 1));
        assert!(ebpf_is_thin(&[named("agent-ebpf/src/main.rs", "x\n")]).is_some());
        assert!(ebpf_is_thin(&[named("agent-ebpf/src/main.rs", "    // x\n")]).is_none());
        assert!(ebpf_is_thin(&[named(EBPF_FLOOR, "x\n")]).is_none());
    }
}
