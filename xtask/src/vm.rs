//! The kernel programs on the oldest kernel they promise: one boot of Linux 5.10 in QEMU.
//!
//! The guest is Debian's kernel, busybox and `kernel_check` of the tests package, nothing else.
//! KVM is not asked for: the guest is up in seconds without it.

mod initramfs;
mod kernel;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::places;
use crate::setup::{self, What};
use crate::step::Step;
use initramfs::Initramfs;

/// Longest life of a guest, in seconds, as `timeout` takes it.
const LIMIT_S: &str = "120";

/// The guest's last words; the exit code of the check stands between them.
const EXIT: (&str, &str) = ("@@exit ", "@@");

/// Boots Linux 5.10 and runs `kernel_check` in it.
pub(crate) fn run() -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the virtual machine test knows amd64 only so far; nothing was tested");
    }
    setup::ensure(What::Vm)?;
    let kernel = kernel::fetch("5.10.0-", "bullseye")?;
    Step::cargo(["build", "--locked", "-p", "tests", "--bin", "kernel_check"]).run()?;

    let guest = places::target()?.join("vm");
    fs::create_dir_all(&guest).with_context(|| format!("making {}", guest.display()))?;
    let program = guest.join("kernel_check");
    Step::new("strip")
        .arg("-o")
        .arg(&program)
        .arg(places::target()?.join("debug/kernel_check"))
        .run()?;
    let image = guest.join("initramfs.cpio");
    let contents = userland(&program, &kernel)?.finish();
    fs::write(&image, contents).with_context(|| format!("writing {}", image.display()))?;
    boot(&kernel.image, &image)
}

/// Everything the guest has: busybox as init, the program, its libraries, three modules.
fn userland(program: &Path, kernel: &kernel::Kernel) -> Result<Initramfs> {
    let mut files = Initramfs::new();
    for dir in [
        "bin", "dev", "lib", "lib64", "modules", "proc", "run", "sys", "tmp",
    ] {
        files.directory(dir);
    }
    files.program("init", include_bytes!("vm/init.sh"));
    files.copy("bin/busybox", Path::new("/bin/busybox"))?;
    files.copy("bin/kernel_check", program)?;
    for library in libraries(program)? {
        let name = library
            .file_name()
            .context("a library without a name")?
            .to_string_lossy();
        // The loader's own path is written in the program; the rest it looks up.
        let place = if name.starts_with("ld-linux") {
            "lib64"
        } else {
            "lib"
        };
        files.copy(&format!("{place}/{name}"), &library)?;
    }
    for module in &kernel.modules {
        let name = module
            .file_name()
            .context("a module without a name")?
            .to_string_lossy();
        files.copy(&format!("modules/{name}"), module)?;
    }
    Ok(files)
}

/// The shared libraries a program starts with, its loader included.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let list = Step::new("ldd").arg(program).output()?;
    Ok(list
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}

fn boot(kernel: &Path, image: &Path) -> Result<()> {
    let qemu = Step::new("timeout")
        .args(["-k", "5", LIMIT_S, "qemu-system-x86_64"])
        .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"])
        .args([
            "-smp",
            "1",
            "-m",
            "1G",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-serial", "stdio", "-append"])
        .arg(
            "console=ttyS0 quiet loglevel=1 panic=-1 no_timer_check clocksource=hpet \
             tsc=unstable mitigations=off nokaslr",
        )
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(image);
    let mut child = qemu.piped()?;
    let screen = child.stdout.take().context("the guest has no screen")?;
    let mut code = None;
    for line in BufReader::new(screen).split(b'\n') {
        let line = line.context("reading the guest's screen")?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        code = exit_code(line).or(code);
        if code.is_none() {
            eprintln!("5.10| {line}");
        }
    }
    let ended = child.wait().context("waiting for QEMU")?;
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(qemu.failed(&format!("Linux 5.10: kernel_check ended with {code}"))),
        None => Err(qemu.failed(&format!(
            "Linux 5.10: the guest died, or took over {LIMIT_S} s, before kernel_check ended ({ended})"
        ))),
    }
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
        assert!(include_str!("vm/init.sh").contains("echo \"@@exit $code@@\""));
    }
}
