//! Picket on the kernels it promises: each is booted in QEMU and checked by `kernel_check` of the
//! tests package, with the real agent and real sockets inside.
//!
//! A guest is Debian's kernel, busybox, `kernel_check` and `picket`, nothing else. KVM is not
//! asked for: a guest is up in seconds without it.

mod guest;
mod initramfs;
mod kernel;
mod userland;

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::arch::Arch;
use crate::bpf::costs::Book;
use crate::places;
use crate::setup::{self, What};
use crate::step::Failed;
use crate::table;
use guest::Findings;
use kernel::Line;
use userland::Programs;

/// Boots kernels one after the other, and says at the end what came of each. What the programs cost
/// them is held against the table of the last time, or becomes it.
pub(crate) fn run(filter: Option<&str>, thorough: bool, bless: bool) -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the virtual machine test runs on amd64 only so far; nothing was tested");
    }
    let lines = kernel::selected(filter, thorough)?;
    setup::ensure(What::Vm)?;
    if lines.iter().any(|line| line.arch == Arch::Arm64) {
        setup::ensure(What::Arm64)?;
    }
    let mut book = Book::open()?;
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    let mut bad = Vec::new();
    for arch in Arch::ALL {
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
            let mut findings = check(line, &programs)
                .with_context(|| format!("checking Linux {}", line.name()))?;
            if findings.trouble.is_none() {
                if bless {
                    book.renew(&line.name(), &findings.costs)?;
                }
                let faults = book.faults(&line.name(), &findings.costs);
                findings.trouble = (!faults.is_empty()).then(|| faults.join("; "));
            }
            if let Some(trouble) = &findings.trouble {
                bad.push(format!("{}: {trouble}", line.name()));
            }
            rows.push(row(line, &findings).to_vec());
        }
    }
    eprintln!("\n{}", table::aligned(&rows).join("\n"));
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
    "VERIFIED INSTRUCTIONS, MEMORY OF MAPS",
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
    let verified: Vec<String> = findings
        .costs
        .iter()
        .map(|(name, amount)| format!("{name} {amount}"))
        .collect();
    let loaded = if verified.is_empty() { "none" } else { "load" };
    [
        line.name(),
        loaded.to_owned(),
        or(verified.join(", "), "-"),
        or(findings.attached.join(", "), "-"),
        cases,
        format!("{:.0}", findings.took.as_secs_f32()),
    ]
}
