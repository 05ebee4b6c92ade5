//! Debian's kernels of other releases, fetched once into the cache.
//!
//! apt does the work, with lists and state of its own, so the machine's sources stay as they are.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::places;
use crate::step::Step;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const ARCHIVE: &str = "http://deb.debian.org/debian";
const SECURITY: &str = "http://deb.debian.org/debian-security";

/// Modules the check can use, in the order they are loaded, with their folders in a package.
const MODULES: &[(&str, &str)] = &[
    ("veth.ko", "drivers/net"),
    ("sch_ingress.ko", "net/sched"),
    ("cls_bpf.ko", "net/sched"),
];

/// A kernel that QEMU can boot.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) image: PathBuf,
    pub(crate) modules: Vec<PathBuf>,
}

/// The newest kernel of a line (`5.10.0-`) in a Debian release, from the cache if it is there.
pub(crate) fn fetch(line: &str, release: &str) -> Result<Kernel> {
    let kernels = places::cache()?.join("kernels");
    fs::create_dir_all(&kernels).with_context(|| format!("making {}", kernels.display()))?;
    if let Some(kernel) = cached(&kernels, line)? {
        return Ok(kernel);
    }
    let apt = own_apt(&kernels.join("apt"), release)?;
    Step::new("apt-get")
        .args(["update", "-q"])
        .env("APT_CONFIG", &apt)
        .run()?;
    for package in packages(&apt, line)? {
        match unpack(&kernels, &apt, &package) {
            Ok(()) => break,
            // A list may name versions that the mirror has dropped: the one before will do.
            Err(error) => eprintln!("warning: {package}: {error:#}"),
        }
    }
    match cached(&kernels, line)? {
        Some(kernel) => Ok(kernel),
        None => bail!("no kernel {line}* could be fetched from Debian {release}"),
    }
}

fn cached(kernels: &Path, line: &str) -> Result<Option<Kernel>> {
    let entries =
        fs::read_dir(kernels).with_context(|| format!("reading {}", kernels.display()))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(line))
        })
        .filter(|path| path.join("vmlinuz").is_file())
        .collect();
    found.sort();
    Ok(found.pop().map(|kernel| Kernel {
        image: kernel.join("vmlinuz"),
        modules: MODULES
            .iter()
            .map(|(name, _)| kernel.join(name))
            .filter(|path| path.is_file())
            .collect(),
    }))
}

/// A configuration under which apt knows `release` and nothing of this machine but its proxies
/// and mirrors.
fn own_apt(dir: &Path, release: &str) -> Result<PathBuf> {
    for part in [
        "etc/preferences.d",
        "state/lists/partial",
        "cache/archives/partial",
    ] {
        let part = dir.join(part);
        fs::create_dir_all(&part).with_context(|| format!("making {}", part.display()))?;
    }
    let (archive, security) = mirrors();
    let sources = format!(
        "deb [signed-by={KEYRING}] {archive} {release} main\n\
         deb [signed-by={KEYRING}] {security} {release}-security main\n"
    );
    let shown = dir.display();
    let config = format!(
        "Dir::Etc::sourcelist \"{shown}/sources.list\";\n\
         Dir::Etc::sourceparts \"-\";\n\
         Dir::Etc::preferencesparts \"{shown}/etc/preferences.d\";\n\
         Dir::State \"{shown}/state\";\n\
         Dir::State::status \"{shown}/state/status\";\n\
         Dir::Cache \"{shown}/cache\";\n\
         APT::Architecture \"amd64\";\n\
         Acquire::Languages \"none\";\n\
         APT::Sandbox::User \"\";\n"
    );
    let path = dir.join("apt.conf");
    for (file, text) in [
        (dir.join("sources.list"), sources.as_str()),
        (dir.join("state/status"), ""),
        (path.clone(), config.as_str()),
    ] {
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(path)
}

/// The mirrors this machine uses for Debian and its security updates; the public ones else.
fn mirrors() -> (String, String) {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    let texts: Vec<String> = files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .collect();
    let addresses = || {
        texts
            .iter()
            .flat_map(|text| text.lines())
            .filter(|line| !line.trim_start().starts_with('#'))
            .flat_map(str::split_whitespace)
            .filter(|word| word.contains("://"))
            .map(|word| word.trim_end_matches('/'))
    };
    let find = |end: &str| {
        addresses()
            .find(|address| address.ends_with(end))
            .map(str::to_owned)
    };
    (
        find("/debian").unwrap_or_else(|| ARCHIVE.to_owned()),
        find("/debian-security").unwrap_or_else(|| SECURITY.to_owned()),
    )
}

/// Candidate packages, newest first. Cloud kernels: small, and they have all that is needed.
fn packages(apt: &Path, line: &str) -> Result<Vec<String>> {
    let names = Step::new("apt-cache")
        .args(["pkgnames", &format!("linux-image-{line}")])
        .env("APT_CONFIG", apt)
        .output()?;
    let mut names: Vec<String> = names
        .lines()
        .filter(|name| name.ends_with("-cloud-amd64"))
        .map(str::to_owned)
        .collect();
    names.sort_by_key(|name| std::cmp::Reverse(build_number(name)));
    names.truncate(5);
    Ok(names)
}

/// 46 of `linux-image-5.10.0-46-cloud-amd64`.
fn build_number(package: &str) -> u32 {
    let number = package.trim_end_matches("-cloud-amd64").rsplit('-').next();
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn unpack(kernels: &Path, apt: &Path, package: &str) -> Result<()> {
    let work = kernels.join("unpacking");
    drop(fs::remove_dir_all(&work));
    fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))?;
    Step::new("apt-get")
        .args(["download", "-q", package])
        .env("APT_CONFIG", apt)
        .dir(&work)
        .run()?;
    let deb = only_file(&work)?;
    Step::new("dpkg-deb").arg("-x").arg(&deb).arg(&work).run()?;

    let version = package.trim_start_matches("linux-image-");
    let modules = work.join("lib/modules").join(version).join("kernel");
    for (name, place) in MODULES {
        let from = modules.join(place).join(name);
        if from.is_file() {
            copy(&from, &work.join(name))?;
        }
    }
    copy(
        &work.join("boot").join(format!("vmlinuz-{version}")),
        &work.join("vmlinuz"),
    )?;
    for done in ["boot", "lib", "usr"] {
        drop(fs::remove_dir_all(work.join(done)));
    }
    drop(fs::remove_file(deb));
    // Renamed last: a kernel in the cache is a whole one.
    fs::rename(&work, kernels.join(version)).context("keeping the kernel in the cache")
}

fn only_file(dir: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    let entry = entries.next().context("apt downloaded nothing")?;
    Ok(entry.context("reading what apt downloaded")?.path())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("copying {}", from.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_ordered_by_build_number_not_by_text() {
        assert_eq!(build_number("linux-image-5.10.0-46-cloud-amd64"), 46);
        assert!(build_number("linux-image-5.10.0-9-cloud-amd64") < 46);
    }
}
