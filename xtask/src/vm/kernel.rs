//! The kernels that are tested: Debian's cloud kernels, fetched once into the cache. Small, and
//! they have all that is needed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::apt::Archive;
use crate::arch::Arch;
use crate::places;
use crate::step::Step;

/// A line of kernels that is tested by its newest package.
#[derive(Debug)]
pub(crate) struct Line {
    /// As in `5.10`.
    pub(crate) version: &'static str,
    pub(crate) arch: Arch,
    /// The Debian release that has it.
    release: &'static str,
    /// How its packages' versions start, as in `5.10.0-`.
    start: &'static str,
    /// CI boots it, too: the oldest kernel, and one with TCX.
    pub(crate) in_ci: bool,
}

const fn line(
    version: &'static str,
    arch: Arch,
    release: &'static str,
    start: &'static str,
) -> Line {
    Line {
        version,
        arch,
        release,
        start,
        in_ci: false,
    }
}

impl Line {
    const fn in_ci(self) -> Self {
        Self {
            in_ci: true,
            ..self
        }
    }
}

/// Every kernel that is tested.
pub(crate) const LINES: &[Line] = &[
    line("5.10", Arch::Amd64, "bullseye", "5.10.0-").in_ci(),
    line("6.1", Arch::Amd64, "bookworm", "6.1.0-"),
    line("6.12", Arch::Amd64, "trixie", "6.12.").in_ci(),
    line("6.18", Arch::Amd64, "trixie-backports", "6.18."),
    line("7.2", Arch::Amd64, "trixie-backports", "7.2."),
    line("5.10", Arch::Arm64, "bullseye", "5.10.0-"),
    line("6.1", Arch::Arm64, "bookworm", "6.1.0-"),
    line("6.12", Arch::Arm64, "trixie", "6.12."),
    line("7.2", Arch::Arm64, "trixie-backports", "7.2."),
];

/// Modules the guest loads, in this order. What a kernel does not have is built into it, or it
/// does without.
const MODULES: &[&str] = &[
    "veth",
    "sch_ingress",
    "cls_bpf",
    // SCTP's checksum and tunnels, then SCTP.
    "crc32c_generic",
    "libcrc32c",
    "udp_tunnel",
    "ip6_udp_tunnel",
    "sctp",
];

/// Versions that are tried: a release's lists go on naming what its mirrors have dropped, the more
/// so the older it is.
const CANDIDATES: usize = 20;

/// A kernel that QEMU can boot.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Its whole version, as the package has it.
    pub(crate) version: String,
    pub(crate) image: PathBuf,
    /// In the order they are loaded.
    pub(crate) modules: Vec<PathBuf>,
}

impl Line {
    /// As in `5.10-amd64`.
    pub(crate) fn name(&self) -> String {
        format!("{}-{}", self.version, self.arch.as_label())
    }

    /// Whether `filter` asks for it: `6.1` (amd64 is meant), `6.1-arm64` or `arm64`.
    pub(crate) fn is_asked_for(&self, filter: &str) -> bool {
        filter == self.name()
            || filter == self.arch.as_label()
            || (filter == self.version && self.arch == Arch::Amd64)
    }

    /// The newest kernel of the line, from the cache if one is there.
    pub(crate) fn fetch(&self) -> Result<Kernel> {
        let kernels = cache()?;
        if let Some(kernel) = self.cached(&kernels)? {
            return Ok(kernel);
        }
        let archive = Archive::open(&kernels.join("apt"), self.release, self.arch.as_label())?;
        for version in self.candidates(&archive)? {
            match unpack(&kernels, &archive, &version) {
                Ok(()) => break,
                // A list may name versions that the mirror has dropped: the one before will do.
                Err(error) => eprintln!("warning: {version}: {error:#}"),
            }
        }
        let kernel = self.cached(&kernels)?;
        kernel.with_context(|| {
            format!(
                "no kernel {} could be fetched from Debian {}",
                self.name(),
                self.release
            )
        })
    }

    /// How the names of its packages end.
    fn end(&self) -> String {
        format!("-cloud-{}", self.arch.as_label())
    }

    fn is_of_line(&self, version: &str) -> bool {
        version.starts_with(self.start) && version.ends_with(&self.end())
    }

    fn cached(&self, kernels: &Path) -> Result<Option<Kernel>> {
        let entries =
            fs::read_dir(kernels).with_context(|| format!("reading {}", kernels.display()))?;
        let newest = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|version| self.is_of_line(version))
            .filter(|version| kernels.join(version).join("modules").is_dir())
            .max_by_key(|version| numbers(version));
        let Some(version) = newest else {
            return Ok(None);
        };
        let dir = kernels.join(&version);
        Ok(Some(Kernel {
            image: dir.join("vmlinuz"),
            modules: MODULES
                .iter()
                .map(|name| dir.join("modules").join(format!("{name}.ko")))
                .filter(|path| path.is_file())
                .collect(),
            version,
        }))
    }

    /// Versions that the lists name, newest first.
    fn candidates(&self, archive: &Archive) -> Result<Vec<String>> {
        let names = archive.names(&format!("linux-image-{}", self.start))?;
        let mut versions: Vec<String> = names
            .iter()
            .filter_map(|name| name.strip_prefix("linux-image-"))
            .filter(|version| self.is_of_line(version))
            .map(str::to_owned)
            .collect();
        versions.sort_by_key(|version| std::cmp::Reverse(numbers(version)));
        versions.truncate(CANDIDATES);
        Ok(versions)
    }
}

fn unpack(kernels: &Path, archive: &Archive, version: &str) -> Result<()> {
    let work = kernels.join(format!("unpacking-{}", std::process::id()));
    make_empty(&work)?;
    let unpacked = unpack_in(&work, archive, version);
    if let Err(error) = unpacked {
        drop(fs::remove_dir_all(&work));
        return Err(error);
    }
    let place = kernels.join(version);
    drop(fs::remove_dir_all(&place));
    // Renamed last: a kernel in the cache is a whole one.
    fs::rename(&work, place).context("keeping the kernel in the cache")
}

fn unpack_in(work: &Path, archive: &Archive, version: &str) -> Result<()> {
    // Newer packages are split, and linux-image is an empty one that asks for the parts.
    let mut packages = archive.names(&format!("linux-binary-{version}"))?;
    if packages.is_empty() {
        packages = vec![format!("linux-image-{version}")];
    } else {
        packages.push(format!("linux-modules-{version}"));
    }
    archive.unpack(&packages, work)?;
    let files = files_below(work)?;
    let find = |wanted: &str| {
        files.iter().find(|path| {
            let name = path.file_name().map(|name| name.to_string_lossy());
            name.is_some_and(|name| name == wanted || name.strip_suffix(".xz") == Some(wanted))
        })
    };
    let image = find(&format!("vmlinuz-{version}")).or_else(|| find("vmlinuz"));
    plain(
        image.context("no vmlinuz in the package")?,
        &work.join("vmlinuz.plain"),
    )?;
    let modules = work.join("modules");
    fs::create_dir(&modules).with_context(|| format!("making {}", modules.display()))?;
    for name in MODULES {
        let name = format!("{name}.ko");
        if let Some(module) = find(&name) {
            plain(module, &modules.join(name))?;
        }
    }
    for done in ["boot", "lib", "usr", "etc"] {
        drop(fs::remove_dir_all(work.join(done)));
    }
    fs::rename(work.join("vmlinuz.plain"), work.join("vmlinuz")).context("naming the image")
}

/// Where the kernels are.
pub(crate) fn cache() -> Result<PathBuf> {
    let kernels = places::cache()?.join("kernels");
    fs::create_dir_all(&kernels).with_context(|| format!("making {}", kernels.display()))?;
    Ok(kernels)
}

pub(crate) fn make_empty(dir: &Path) -> Result<()> {
    drop(fs::remove_dir_all(dir));
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))
}

/// Copies a file out of a package as guests take it: not packed.
fn plain(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    let unpacker = match bytes.as_slice() {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Some("xz"),
        [0x1f, 0x8b, ..] => Some("gzip"),
        _ => None,
    };
    let bytes = match unpacker {
        Some(program) => Step::new(program).arg("-dc").arg(from).bytes()?,
        None => bytes,
    };
    fs::write(to, bytes).with_context(|| format!("writing {}", to.display()))
}

/// Every regular file, whatever directory it is in.
fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut waiting = vec![dir.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
            let entry = entry.with_context(|| format!("reading {}", dir.display()))?;
            // Links are not followed: packages link into each other's absence.
            let kind = entry.file_type().context("looking at a package's file")?;
            if kind.is_dir() {
                waiting.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

/// The numbers in a version, in their order: what versions are sorted by.
fn numbers(version: &str) -> Vec<u32> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// The kernels that are asked for: one or some by `filter`, else all or CI's.
pub(crate) fn selected(filter: Option<&str>, thorough: bool) -> Result<Vec<&'static Line>> {
    let is_selected = |line: &&Line| match filter {
        Some(filter) => line.is_asked_for(filter),
        None => thorough || line.in_ci,
    };
    let lines: Vec<&Line> = LINES.iter().filter(is_selected).collect();
    if lines.is_empty() {
        let known: Vec<String> = LINES.iter().map(Line::name).collect();
        bail!(
            "no kernel {:?}; there are {} (6.1 means amd64, arm64 means every one of it)",
            filter.unwrap_or_default(),
            known.join(", ")
        );
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(filter: Option<&str>, thorough: bool) -> Vec<String> {
        let lines = selected(filter, thorough).unwrap();
        lines.iter().map(|line| line.name()).collect()
    }

    #[test]
    fn versions_are_ordered_by_number_not_by_text() {
        assert!(numbers("5.10.0-9-cloud-amd64") < numbers("5.10.0-46-cloud-amd64"));
        assert!(numbers("6.12.99+deb13-cloud-amd64") < numbers("6.12.117+deb13-cloud-amd64"));
    }

    #[test]
    fn a_version_or_an_architecture_names_kernels_and_6_1_is_not_6_12() {
        assert_eq!(names(Some("6.1"), false), ["6.1-amd64"]);
        assert_eq!(names(Some("6.1-arm64"), false), ["6.1-arm64"]);
        assert_eq!(names(Some("arm64"), false).len(), 4);
        assert!(selected(Some("6"), false).is_err());
    }

    #[test]
    fn ci_boots_the_oldest_kernel_and_one_with_tcx_and_thorough_all() {
        assert_eq!(names(None, false), ["5.10-amd64", "6.12-amd64"]);
        assert_eq!(names(None, true).len(), LINES.len());
    }
}
