//! What the programs cost each kernel that loads them: the instructions its verifier walks and the
//! memory of the maps. Measured by `kernel_check` of the tests package: in guests by
//! `cargo xtask test vm`, on this machine by `cargo xtask bpf`.
//!
//! `xtask/bpf-verified.txt` is what was measured last; a guest may exceed its line by a tenth,
//! which compilers and kernels differ by from release to release.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;

use anyhow::{Context as _, Result};

use super::{Amounts, BUDGET, read};
use crate::places;
use crate::step::{self, Step};

/// What was measured, kernel by kernel.
const TABLE: &str = "xtask/bpf-verified.txt";
const HEAD: &str = "\
# What loading the programs costs each kernel, as measured last: instructions that its verifier
# walked, by program, and KiB of the maps' memory as the kernel counts it.
# Written by `cargo xtask test vm --thorough --bless`. `cargo xtask test vm` fails when a kernel
# takes over a tenth more than its line says. Before Linux 5.16 only a log that takes further loads
# tells the count; the clock is left out there.
";
/// What a kernel may take more than its line says, in percent.
const GROWTH: u64 = 10;
/// The name of the maps' memory, in KiB, among the programs' names.
const MEMORY: &str = "memory_kib";

/// What one kernel took, by program, and its maps' memory.
pub(crate) type Costs = BTreeMap<String, u64>;

/// Takes in a note of `kernel_check`, as in `verified from_pod 1234`; false when it is another one.
pub(crate) fn take(costs: &mut Costs, note: &str) -> bool {
    let mut words = note.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some("verified"), Some(program), Some(count)) => {
            // What is no number stays out, and is missed later.
            if let Ok(count) = count.parse() {
                costs.insert(program.to_owned(), count);
            }
            true
        }
        (Some("memory"), Some(amount), Some("KiB")) => {
            if let Ok(amount) = amount.parse() {
                costs.insert(MEMORY.to_owned(), amount);
            }
            true
        }
        _ => false,
    }
}

/// The table of what was measured, and how much of the verifier's patience may be used.
#[derive(Debug)]
pub(crate) struct Book {
    measured: BTreeMap<String, Costs>,
    budget: BTreeMap<String, Amounts>,
}

impl Book {
    pub(crate) fn open() -> Result<Self> {
        Ok(Self {
            measured: parse(&read(TABLE)?)?,
            budget: super::lines(&read(BUDGET)?)?,
        })
    }

    /// What is wrong with what a kernel took: over its line of the table.
    pub(crate) fn faults(&self, kernel: &str, costs: &Costs) -> Vec<String> {
        let bless =
            format!("see what has grown, or renew {TABLE}: cargo xtask test vm {kernel} --bless");
        let Some(line) = self.measured.get(kernel) else {
            return vec![format!("{kernel} has no line; {bless}")];
        };
        let mut faults = Vec::new();
        for (name, last) in line {
            let allowed = last + last * GROWTH / 100;
            match costs.get(name) {
                None => faults.push(format!("{name}: not measured, {last} the last time")),
                Some(now) if *now > allowed => faults.push(format!(
                    "{name}: {now} {}, {last} the last time and {allowed} allowed; {bless}",
                    unit(name)
                )),
                Some(_) => {}
            }
        }
        for name in costs.keys().filter(|name| !line.contains_key(*name)) {
            faults.push(format!("{name} is not in the line of {kernel}; {bless}"));
        }
        faults.extend(self.over_budget(kernel, costs));
        faults
    }

    /// Programs that use more of a verifier's patience than any kernel's may.
    pub(crate) fn over_budget(&self, kernel: &str, costs: &Costs) -> Vec<String> {
        let mut faults = Vec::new();
        for (name, now) in costs.iter().filter(|(name, _)| *name != MEMORY) {
            let allowed = self.allowed(name);
            if allowed.is_none_or(|allowed| *now > allowed) {
                let allowed =
                    allowed.map_or("no budget".to_owned(), |most| format!("{most} allowed"));
                faults.push(format!(
                    "{name}: {kernel} verified {now} instructions, {allowed} in {BUDGET}"
                ));
            }
        }
        faults
    }

    fn allowed(&self, program: &str) -> Option<u64> {
        self.budget
            .get(&format!("verified {program}"))?
            .first()
            .copied()
    }

    /// Puts down what a kernel took, for this run and the next ones.
    pub(crate) fn renew(&mut self, kernel: &str, costs: &Costs) -> Result<()> {
        // Read again: another run may have renewed another kernel's line meanwhile.
        self.measured = parse(&read(TABLE)?)?;
        self.measured.insert(kernel.to_owned(), costs.clone());
        fs::write(places::root().join(TABLE), self.text())
            .with_context(|| format!("writing {TABLE}"))?;
        eprintln!("{TABLE}: the line of {kernel} is renewed");
        Ok(())
    }

    /// The table as its file has it.
    fn text(&self) -> String {
        let mut text = HEAD.to_owned();
        for kernel in self.kernels() {
            text.push_str(kernel);
            for (name, amount) in self.measured.get(kernel).into_iter().flatten() {
                // Writing into a string cannot fail.
                write!(text, " {name}={amount}").unwrap_or_default();
            }
            text.push('\n');
        }
        text
    }

    /// In the order of their versions, an architecture after the other.
    fn kernels(&self) -> Vec<&String> {
        let mut kernels: Vec<&String> = self.measured.keys().collect();
        kernels.sort_by_key(|kernel| {
            let version = kernel.split('-').next().unwrap_or_default();
            let numbers = version.split('.').map(|number| number.parse::<u32>().ok());
            (!kernel.ends_with("amd64"), numbers.collect::<Vec<_>>())
        });
        kernels
    }

    /// A row a kernel, this machine's last, and what is allowed under them.
    pub(crate) fn rows(&self, here: Option<(String, Costs)>) -> Vec<Vec<String>> {
        let last_time = self.kernels().into_iter();
        let last_time = last_time
            .filter_map(|kernel| Some((kernel.clone(), self.measured.get(kernel)?.clone())));
        let programs: Vec<&str> = self
            .budget
            .keys()
            .filter_map(|name| name.strip_prefix("verified "))
            .collect();
        let mut rows = vec![
            std::iter::once("VERIFIED INSTRUCTIONS")
                .chain(programs.iter().copied())
                .chain(["MAPS, KiB"])
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        ];
        let cell = |amount: Option<u64>| amount.map_or("-".to_owned(), |amount| amount.to_string());
        for (kernel, costs) in last_time.chain(here) {
            let of = |name: &&str| cell(costs.get(*name).copied());
            let amounts = programs.iter().chain([&MEMORY]).map(of);
            rows.push(std::iter::once(kernel).chain(amounts).collect());
        }
        let budget = programs.iter().map(|program| cell(self.allowed(program)));
        rows.push(std::iter::once("budget".to_owned()).chain(budget).collect());
        rows
    }
}

fn unit(name: &str) -> &'static str {
    if name == MEMORY {
        "KiB"
    } else {
        "verified instructions"
    }
}

/// What the kernel of this machine takes; `None`, and said so, without root.
pub(crate) fn here() -> Result<Option<(String, Costs)>> {
    if !step::is_root()? {
        eprintln!("not root: what this machine's own kernel takes is not measured");
        return Ok(None);
    }
    let built = places::target()?.join("debug/kernel_check");
    // As for guests and the lab, so that all is built once.
    Step::cargo(["build", "--locked", "-p", "agent", "-p", "tests"])
        .args(["--bin", "picket", "--bin", "kernel_check"])
        .run()?;
    let check = Step::new(built).arg("costs");
    let mut child = check.piped()?;
    let mut said = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout
            .read_to_string(&mut said)
            .context("reading what kernel_check says")?;
    }
    let ended = child.wait().context("waiting for kernel_check")?;
    let mut costs = Costs::new();
    for note in said.lines().filter_map(|line| line.strip_prefix("note: ")) {
        take(&mut costs, note);
    }
    if !ended.success() || costs.is_empty() {
        return Err(check.failed(&format!("kernel_check: {ended}\n{}", said.trim_end())));
    }
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("reading the kernel's release")?;
    Ok(Some((format!("{} (this machine)", release.trim()), costs)))
}

/// `5.10-amd64 from_pod=1 to_pod=2`, a kernel a line.
fn parse(table: &str) -> Result<BTreeMap<String, Costs>> {
    let mut kernels = BTreeMap::new();
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let Some(kernel) = words.next() else { continue };
        let costs = words.map(|word| {
            let (name, amount) = word.split_once('=')?;
            Some((name.to_owned(), amount.parse().ok()?))
        });
        let costs: Option<Costs> = costs.collect();
        let costs = costs.with_context(|| {
            format!("{TABLE}: {line:?}: want KERNEL PROGRAM=NUMBER …; renew it by --bless")
        })?;
        kernels.insert(kernel.to_owned(), costs);
    }
    Ok(kernels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(pairs: &[(&str, u64)]) -> Costs {
        pairs
            .iter()
            .map(|(name, amount)| ((*name).to_owned(), *amount))
            .collect()
    }

    fn book() -> Book {
        Book {
            measured: parse("# said\n5.10-amd64 a=100 memory_kib=100\n").unwrap(),
            budget: super::super::lines("verified a 105").unwrap(),
        }
    }

    #[test]
    fn a_tenth_more_than_the_last_time_is_allowed_and_no_more() {
        let faults = |a, memory| book().faults("5.10-amd64", &costs(&[("a", a), (MEMORY, memory)]));
        assert_eq!(faults(100, 110), [""; 0]);
        assert!(faults(100, 111)[0].starts_with("memory_kib: 111 KiB, 100 the last time"));
    }

    #[test]
    fn what_any_kernel_may_verify_holds_whatever_the_last_time_was() {
        let faults = book().faults("5.10-amd64", &costs(&[("a", 106), (MEMORY, 1)]));
        assert_eq!(
            faults,
            ["a: 5.10-amd64 verified 106 instructions, 105 allowed in xtask/bpf-budget.txt"]
        );
    }

    #[test]
    fn what_was_not_measured_or_is_not_in_the_table_is_a_fault() {
        assert_eq!(
            book().faults("5.10-amd64", &costs(&[("a", 1)])),
            ["memory_kib: not measured, 100 the last time"]
        );
        assert!(
            book().faults("6.1-amd64", &costs(&[("a", 1)]))[0].starts_with("6.1-amd64 has no line")
        );
        let faults = book().faults("5.10-amd64", &costs(&[("a", 1), ("b", 1), (MEMORY, 1)]));
        assert!(faults[0].starts_with("b is not in the line"), "{faults:?}");
        assert!(faults[1].contains("no budget"), "{faults:?}");
    }

    #[test]
    fn notes_of_costs_are_told_from_others() {
        let mut taken = Costs::new();
        for note in [
            "verified a 7",
            "verified b ?",
            "memory 9 KiB",
            "attached tcx",
        ] {
            assert_eq!(take(&mut taken, note), note != "attached tcx");
        }
        assert_eq!(taken, costs(&[("a", 7), (MEMORY, 9)]));
    }

    #[test]
    fn a_line_that_is_no_line_is_refused_with_the_remedy() {
        let error = parse("5.10-amd64 a").unwrap_err().to_string();
        assert!(error.contains("--bless"), "{error}");
    }

    #[test]
    fn rows_are_in_the_order_of_versions_and_end_with_the_budget() {
        let mut book = book();
        for kernel in ["6.12-amd64", "6.1-arm64", "6.1-amd64"] {
            book.measured.insert(kernel.to_owned(), costs(&[("a", 3)]));
        }
        let names: Vec<String> = book
            .rows(None)
            .into_iter()
            .map(|row| row[0].clone())
            .collect();
        assert_eq!(
            names,
            [
                "VERIFIED INSTRUCTIONS",
                "5.10-amd64",
                "6.1-amd64",
                "6.12-amd64",
                "6.1-arm64",
                "budget"
            ]
        );
        assert_eq!(parse(&book.text()).unwrap(), book.measured);
    }
}
