//! What a guest has besides its kernel: busybox as init, the two programs, their libraries.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::initramfs::Initramfs;
use super::kernel::{self, Kernel};
use crate::apt::Archive;
use crate::arch::Arch;
use crate::musl::Program;
use crate::places;
use crate::step::Step;

/// The programs of this workspace that a guest runs, with their packages.
const PROGRAMS: [(&str, &str); 2] = [("agent", "picket"), ("tests", "kernel_check")];

/// What guests of one architecture run.
#[derive(Debug)]
pub(crate) struct Programs {
    busybox: PathBuf,
    /// By their names in the guest.
    ours: Vec<(&'static str, PathBuf)>,
    libraries: Vec<PathBuf>,
}

impl Programs {
    /// Builds them.
    pub(crate) fn build(arch: Arch) -> Result<Self> {
        match arch {
            Arch::Amd64 => Self::of_this_machine(),
            Arch::Arm64 => Self::of_arm64(),
        }
    }

    /// The programs that the lab uses, too, so that they are built once; with their libraries.
    fn of_this_machine() -> Result<Self> {
        Step::cargo(["build", "--locked", "-p", "agent", "-p", "tests"])
            .args(["--bin", "picket", "--bin", "kernel_check"])
            .run()?;
        let target = places::target()?;
        let stripped = target.join("vm/amd64");
        kernel::make_empty(&stripped)?;
        let mut programs = Self {
            busybox: PathBuf::from("/bin/busybox"),
            ours: Vec::new(),
            libraries: Vec::new(),
        };
        for (_, name) in PROGRAMS {
            let program = stripped.join(name);
            Step::new("strip")
                .arg("-o")
                .arg(&program)
                .arg(target.join("debug").join(name))
                .run()?;
            programs.libraries.extend(libraries(&program)?);
            programs.ours.push((name, program));
        }
        programs.libraries.sort();
        programs.libraries.dedup();
        Ok(programs)
    }

    /// Static programs.
    fn of_arm64() -> Result<Self> {
        let mut ours = Vec::new();
        for (package, name) in PROGRAMS {
            let program = Program {
                package,
                name,
                profile: "dev",
                strip: "symbols",
                revision: None,
            };
            ours.push((name, program.build(Arch::Arm64)?));
        }
        Ok(Self {
            busybox: busybox_arm64()?,
            ours,
            libraries: Vec::new(),
        })
    }

    /// Everything the guest has.
    pub(crate) fn userland(&self, kernel: &Kernel) -> Result<Initramfs> {
        let mut files = Initramfs::new();
        for dir in [
            "bin", "dev", "lib", "lib64", "modules", "proc", "run", "sys", "tmp",
        ] {
            files.directory(dir);
        }
        files.program("init", include_bytes!("init.sh"));
        files.copy("bin/busybox", &self.busybox)?;
        for (name, program) in &self.ours {
            files.copy(&format!("bin/{name}"), program)?;
        }
        for library in &self.libraries {
            let name = file_name(library)?;
            // The loader's own path is written in the program; the rest it looks up.
            let place = if name.starts_with("ld-linux") {
                "lib64"
            } else {
                "lib"
            };
            files.copy(&format!("{place}/{name}"), library)?;
        }
        // Their numbers keep the order in which they are loaded.
        for (number, module) in kernel.modules.iter().enumerate() {
            files.copy(
                &format!("modules/{number:02}-{}", file_name(module)?),
                module,
            )?;
        }
        Ok(files)
    }
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name();
    let name = name.with_context(|| format!("{} has no file name", path.display()))?;
    Ok(name.to_string_lossy().into_owned())
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

/// Debian's, kept with the kernels.
fn busybox_arm64() -> Result<PathBuf> {
    let kernels = kernel::cache()?;
    let kept = kernels.join("busybox-arm64");
    if kept.is_file() {
        return Ok(kept);
    }
    let archive = Archive::open(&kernels.join("apt"), "bookworm", Arch::Arm64.as_label())?;
    let work = kernels.join(format!("unpacking-{}", std::process::id()));
    kernel::make_empty(&work)?;
    archive.unpack(&["busybox-static".to_owned()], &work)?;
    let found = ["usr/bin/busybox", "bin/busybox"]
        .map(|place| work.join(place))
        .into_iter()
        .find(|place| place.is_file());
    fs::rename(found.context("no busybox in its package")?, &kept)
        .context("keeping arm64's busybox in the cache")?;
    fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))?;
    Ok(kept)
}
