//! One boot: QEMU, what the guest says on its screen, and what that comes to.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::kernel::{Kernel, Line};
use crate::arch::Arch;
use crate::bpf::costs::{self, Costs};
use crate::step::Step;

/// Longest life of a guest, in seconds, as `timeout` takes it.
const LIMIT_S: &str = "1200";

/// The guest's last words; the exit code of the check stands between them.
const EXIT: (&str, &str) = ("@@exit ", "@@");

/// What came of a boot.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// What loading the programs cost.
    pub(crate) costs: Costs,
    /// How programs were held.
    pub(crate) attached: Vec<String>,
    /// Cases that passed.
    pub(crate) passed: usize,
    /// What did not.
    pub(crate) trouble: Option<String>,
    /// From power on to off.
    pub(crate) took: Duration,
}

impl Findings {
    /// Takes in a line of the screen.
    fn read(&mut self, line: &str) {
        if line.starts_with("ok: ") {
            self.passed += 1;
        } else if let Some(failed) = line.strip_prefix("FAILED: ") {
            self.trouble.get_or_insert_with(|| failed.to_owned());
        } else if let Some(note) = line.strip_prefix("note: ")
            && !costs::take(&mut self.costs, note)
            && let Some(method) = note.strip_prefix("attached ")
        {
            self.attached.push(method.to_owned());
        }
    }

    /// Takes in how it ended: a guest that did not say that all is well is not well.
    fn end(&mut self, code: Option<u32>, how: &str) {
        let trouble = match code {
            Some(0) => return,
            Some(code) => format!("kernel_check ended with {code}"),
            None => format!(
                "the guest died, or took over {LIMIT_S} s, before kernel_check ended ({how})"
            ),
        };
        self.trouble.get_or_insert(trouble);
    }
}

/// Boots a kernel into `initramfs` and watches until it powers off.
pub(crate) fn boot(line: &Line, kernel: &Kernel, initramfs: &Path) -> Result<Findings> {
    let (machine, console) = match line.arch {
        Arch::Amd64 => (
            ["qemu-system-x86_64", "-M", "q35", "-cpu", "max"],
            "console=ttyS0 no_timer_check clocksource=hpet tsc=unstable",
        ),
        Arch::Arm64 => (
            [
                "qemu-system-aarch64",
                "-M",
                "virt,gic-version=3",
                "-cpu",
                "cortex-a57",
            ],
            "console=ttyAMA0",
        ),
    };
    let qemu = Step::new("timeout")
        .args(["-k", "5", LIMIT_S, "nice"])
        .args(machine)
        .args([
            "-accel",
            "tcg,thread=multi,tb-size=256",
            "-smp",
            "1",
            "-m",
            "1G",
        ])
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-serial", "stdio", "-append"])
        .arg(format!(
            "{console} quiet loglevel=1 panic=-1 mitigations=off nokaslr"
        ))
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs);
    let started = Instant::now();
    let mut child = qemu.piped()?;
    let screen = child.stdout.take().context("the guest has no screen")?;
    let name = line.name();
    let mut findings = Findings::default();
    let mut code = None;
    for line in BufReader::new(screen).split(b'\n') {
        let line = line.context("reading the guest's screen")?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        code = exit_code(line).or(code);
        if code.is_none() {
            findings.read(line);
            eprintln!("{name} {:4.0} s| {line}", started.elapsed().as_secs_f32());
        }
    }
    let ended = child.wait().context("waiting for QEMU")?;
    findings.end(code, &ended.to_string());
    findings.took = started.elapsed();
    Ok(findings)
}

fn exit_code(line: &str) -> Option<u32> {
    let (_, rest) = line.split_once(EXIT.0)?;
    rest.split_once(EXIT.1)?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_guests_last_words_are_an_exit_code() {
        assert_eq!(exit_code("@@exit 3@@"), Some(3));
        assert_eq!(exit_code("@@exit "), None);
        assert_eq!(exit_code("exit 3"), None);
    }

    #[test]
    fn the_guest_says_how_the_check_ended() {
        assert!(include_str!("init.sh").contains("echo \"@@exit $code@@\""));
    }

    #[test]
    fn cases_and_notes_are_read_from_the_screen() {
        let mut findings = Findings::default();
        for line in [
            "note: verified from_pod 1234",
            "note: attached tcx",
            "ok: one",
            "FAILED: core: why",
        ] {
            findings.read(line);
        }
        findings.end(Some(1), "");
        assert_eq!(findings.costs.get("from_pod"), Some(&1234));
        assert_eq!(findings.attached, ["tcx"]);
        assert_eq!(findings.passed, 1);
        assert_eq!(findings.trouble.as_deref(), Some("core: why"));
    }

    #[test]
    fn a_guest_that_does_not_say_that_all_is_well_is_not_well() {
        for code in [None, Some(1)] {
            let mut findings = Findings::default();
            findings.end(code, "exit status: 124");
            assert!(findings.trouble.is_some(), "{code:?}");
        }
    }
}
