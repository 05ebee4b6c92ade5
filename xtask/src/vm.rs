//! Picket on the kernels it promises: each is booted in QEMU and checked by `kernel_check` of the
//! tests package, with the real agent and real sockets inside.
//!
//! A guest is Debian's kernel, busybox, `kernel_check` and `picket`, nothing else. KVM is not
//! asked for: a guest is up in seconds without it.

mod apt;
mod guest;
mod initramfs;
mod kernel;
mod userland;

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::places;
use crate::setup::{self, What};
use crate::step::Failed;
use guest::Findings;
use kernel::{Arch, Line};
use userland::Programs;

/// Boots kernels one after the other, and says at the end what came of each.
pub(crate) fn run(filter: Option<&str>, thorough: bool) -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the virtual machine test runs on amd64 only so far; nothing was tested");
    }
    let lines = kernel::selected(filter, thorough)?;
    setup::ensure(What::Vm)?;
    if lines.iter().any(|line| line.arch == Arch::Arm64) {
        setup::ensure(What::Arm64)?;
    }
    let mut table = vec![HEAD.map(str::to_owned)];
    let mut bad = Vec::new();
    for arch in [Arch::Amd64, Arch::Arm64] {
        let lines: Vec<&Line> = lines
            .iter()
            .copied()
            .filter(|line| line.arch == arch)
            .collect();
        if lines.is_empty() {
            continue;
        }
        let programs = Programs::build(arch)?;
        for line in lines {
            let findings = check(line, &programs)
                .with_context(|| format!("checking Linux {}", line.name()))?;
            if let Some(trouble) = &findings.trouble {
                bad.push(format!("{}: {trouble}", line.name()));
            }
            table.push(row(line, &findings));
        }
    }
    eprintln!("\n{}", aligned(&table).join("\n"));
    if bad.is_empty() {
        return Ok(());
    }
    let again: Vec<String> = bad
        .iter()
        .filter_map(|one| Some(format!("cargo xtask test vm {}", one.split_once(':')?.0)))
        .collect();
    Err(Failed {
        how: bad.join("\n"),
        again: again.join(" && "),
    }
    .into())
}

fn check(line: &Line, programs: &Programs) -> Result<Findings> {
    let kernel = line.fetch()?;
    let guest = places::target()?.join("vm");
    fs::create_dir_all(&guest).with_context(|| format!("making {}", guest.display()))?;
    let image = guest.join(format!("{}.cpio", line.name()));
    let contents = programs.userland(&kernel)?.finish();
    fs::write(&image, contents).with_context(|| format!("writing {}", image.display()))?;
    eprintln!("-- {}: Linux {}", line.name(), kernel.version);
    let findings = guest::boot(line, &kernel, &image);
    // A hundred megabytes a kernel; made again in a second.
    fs::remove_file(&image).with_context(|| format!("removing {}", image.display()))?;
    findings
}

const HEAD: [&str; 6] = [
    "KERNEL",
    "PROGRAMS",
    "VERIFIED INSTRUCTIONS",
    "ATTACHED BY",
    "CASES",
    "SECONDS",
];

fn row(line: &Line, findings: &Findings) -> [String; 6] {
    let or = |text: String, none: &str| {
        if text.is_empty() {
            none.to_owned()
        } else {
            text
        }
    };
    let cases = match &findings.trouble {
        None => format!("{} passed", findings.passed),
        Some(_) => format!("{} passed, then FAILED", findings.passed),
    };
    let loaded = if findings.verified.is_empty() {
        "none"
    } else {
        "load"
    };
    [
        line.name(),
        loaded.to_owned(),
        or(findings.verified.join(", "), "-"),
        or(findings.attached.join(", "), "-"),
        cases,
        format!("{:.0}", findings.took.as_secs_f32()),
    ]
}

/// Columns as wide as their widest cell.
fn aligned<const N: usize>(table: &[[String; N]]) -> Vec<String> {
    let widths: Vec<usize> = (0..N)
        .map(|column| {
            let cells = table.iter().filter_map(|row| row.get(column));
            cells.map(String::len).max().unwrap_or_default()
        })
        .collect();
    table
        .iter()
        .map(|row| {
            let cells = row.iter().zip(&widths);
            let cells: Vec<String> = cells
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tables_columns_are_as_wide_as_their_widest_cell() {
        let table = [["a", "bb"], ["ccc", "d"]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&table), ["a    bb", "ccc  d"]);
    }
}
