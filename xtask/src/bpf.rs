//! How big the kernel programs and their maps are, and what they cost the kernels that load them,
//! held against `xtask/bpf-budget.txt`.
//!
//! The verifier's patience on old kernels, the stack and locked memory are all finite; a change
//! that spends much of them shall be seen in review, as a changed line of the budget.

pub(crate) mod costs;
mod object;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::places;
use crate::setup::{self, What};
use crate::step::Step;
use crate::table;
use costs::Book;
use object::Object;

const BUDGET: &str = "xtask/bpf-budget.txt";
const LAYOUT: &str = "agent-common/layout.txt";
const OBJECT: &str = "picket-ebpf";

/// What a line of the budget allows, or what a program or map takes.
type Amounts = Vec<u64>;

/// Sizes the programs and maps, and fails when one is over its budget or has none.
pub(crate) fn run() -> Result<()> {
    setup::ensure(What::Bpf)?;
    let path = built_object()?;
    let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let object = Object::parse(&bytes).with_context(|| format!("reading {}", path.display()))?;

    let mut taken = BTreeMap::new();
    for program in object.programs()? {
        let amounts = vec![program.instructions, program.stack];
        taken.insert(format!("program {}", program.name), amounts);
    }
    let layout = read(LAYOUT)?;
    let (endpoints, node) = memory(&layout)?;
    taken.insert("maps node".to_owned(), vec![node >> 20]);
    taken.insert("maps endpoint".to_owned(), vec![endpoints >> 10]);

    let budget = lines(&read(BUDGET)?)?;
    // What is verified is another table's, and measured on the kernels themselves.
    let (_, budget) = budget
        .into_iter()
        .partition(|(name, _): &(String, Amounts)| name.starts_with("verified "));
    let mut verdict = judge(&taken, &budget);
    eprintln!("{:32} {:>12} {:>8}", "", "taken", "budget");
    for line in &verdict.shown {
        eprintln!("{line}");
    }
    let book = Book::open()?;
    let here = costs::here()?;
    if let Some((kernel, costs)) = &here {
        verdict.faults.extend(book.over_budget(kernel, costs));
    }
    eprintln!("\n{}", table::aligned(&book.rows(here)).join("\n"));
    if !verdict.faults.is_empty() {
        bail!(
            "{}\nspend less, or raise the line in {BUDGET} in the same commit and say why",
            verdict.faults.join("\n")
        );
    }
    Ok(())
}

fn read(name: &str) -> Result<String> {
    fs::read_to_string(places::root().join(name)).with_context(|| format!("reading {name}"))
}

/// The object that `agent/build.rs` made, as cargo tells.
fn built_object() -> Result<PathBuf> {
    let told = Step::cargo([
        "check",
        "--locked",
        "-p",
        "agent",
        "--message-format",
        "json",
    ]);
    let told = told.output()?;
    let directory = told
        .lines()
        .filter(|line| line.contains("\"build-script-executed\""))
        .filter(|line| line.contains("/agent#"))
        .find_map(|line| line.split_once("\"out_dir\":\"")?.1.split('"').next());
    let directory = directory.context("cargo did not tell where agent/build.rs put its objects")?;
    Ok(PathBuf::from(directory).join(OBJECT))
}

/// `program from_pod 1200 300`: kind, name, then what it may take.
fn lines(budget: &str) -> Result<BTreeMap<String, Amounts>> {
    let mut lines = BTreeMap::new();
    for line in budget.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = line.split_whitespace();
        let name = format!(
            "{} {}",
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default()
        );
        let amounts: Result<Amounts, _> = words.map(str::parse).collect();
        let amounts = amounts.with_context(|| format!("{BUDGET}: {line:?}: not a number"))?;
        lines.insert(name, amounts);
    }
    Ok(lines)
}

struct Judgement {
    shown: Vec<String>,
    faults: Vec<String>,
}

fn judge(taken: &BTreeMap<String, Amounts>, budget: &BTreeMap<String, Amounts>) -> Judgement {
    let mut judgement = Judgement {
        shown: Vec::new(),
        faults: Vec::new(),
    };
    for (name, amounts) in taken {
        let units: &[&str] = match name.as_str() {
            "maps node" => &["MiB when full"],
            "maps endpoint" => &["KiB an endpoint"],
            _ => &["instructions", "bytes of stack"],
        };
        let allowed = budget.get(name).map_or(&[][..], Vec::as_slice);
        for (at, (amount, unit)) in amounts.iter().zip(units).enumerate() {
            let Some(limit) = allowed.get(at) else {
                judgement
                    .faults
                    .push(format!("{name}: {amount} {unit}: no budget in {BUDGET}"));
                continue;
            };
            judgement
                .shown
                .push(format!("{name:32} {amount:>12} {limit:>8} {unit}"));
            if amount > limit {
                judgement
                    .faults
                    .push(format!("{name}: {amount} {unit}, {limit} allowed"));
            }
        }
    }
    for name in budget.keys().filter(|name| !taken.contains_key(*name)) {
        judgement.faults.push(format!(
            "{name}: has a budget in {BUDGET}, but is not built"
        ));
    }
    judgement
}

/// Bytes of keys and values when every map is full: per endpoint, and for the node. One CPU's
/// share of per-CPU maps; the kernel's own bookkeeping comes on top.
fn memory(layout: &str) -> Result<(u64, u64)> {
    let mut sum = (0, 0);
    for line in layout.lines().filter(|line| line.starts_with("map ")) {
        let field = |name: &str| -> Result<&str> {
            let mut words = line.split_whitespace();
            words
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
                .with_context(|| format!("{LAYOUT}: {line:?}: {name} is missing"))
        };
        let number = |name: &str| -> Result<u64> {
            field(name)?
                .parse()
                .with_context(|| format!("{LAYOUT}: {line:?}: {name}"))
        };
        let value = number("value_bytes")?.next_multiple_of(8);
        let row = match field("kind")? {
            "Array" | "MappedArray" | "PerCpuArray" => value,
            "RingBuffer" => 1,
            _ => number("key_bytes")?.next_multiple_of(8) + value,
        };
        let capacity = number("capacity")?;
        if field("kind")? == "ArrayOfLruHash" {
            // The outer array's pointers are the node's, the inner map is the endpoint's.
            sum.0 += row * number("inner_capacity")?;
            sum.1 += 8 * capacity;
        } else {
            sum.1 += row * capacity;
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(&str, &[u64])]) -> BTreeMap<String, Amounts> {
        rows.iter()
            .map(|&(name, amounts)| (name.to_owned(), amounts.to_vec()))
            .collect()
    }

    #[test]
    fn what_is_over_its_budget_or_has_none_is_a_fault() {
        let budget = table(&[("program a", &[10, 10]), ("program gone", &[1, 1])]);
        let taken = table(&[("program a", &[10, 11]), ("program new", &[1, 1])]);
        assert_eq!(
            judge(&taken, &budget).faults,
            [
                "program a: 11 bytes of stack, 10 allowed",
                "program new: 1 instructions: no budget in xtask/bpf-budget.txt",
                "program new: 1 bytes of stack: no budget in xtask/bpf-budget.txt",
                "program gone: has a budget in xtask/bpf-budget.txt, but is not built",
            ]
        );
    }

    #[test]
    fn budget_lines_are_kind_name_and_amounts() {
        let budget = lines("# said\n\nprogram a 1 2\nmaps node 3\n").unwrap();
        assert_eq!(
            budget,
            table(&[("program a", &[1, 2]), ("maps node", &[3])])
        );
        assert!(lines("program a much").is_err());
    }

    #[test]
    fn memory_is_rows_times_capacity_and_inner_maps_are_the_endpoints() {
        let layout = "\
map A kind=Array key=u32 key_bytes=4 value=X value_bytes=12 capacity=10
map B kind=Hash key=Y key_bytes=4 value=X value_bytes=12 capacity=10
map C kind=ArrayOfLruHash key=Y key_bytes=8 value=X value_bytes=8 capacity=10 inner_capacity=3
map D kind=RingBuffer key=() key_bytes=0 value=() value_bytes=0 capacity=64
";
        assert_eq!(memory(layout).unwrap(), (48, 160 + 240 + 80 + 64));
    }
}
