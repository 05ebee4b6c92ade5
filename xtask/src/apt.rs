//! Packages of other Debian releases and architectures, downloaded and never installed.
//!
//! apt does the work, with lists and state of its own, so the machine's sources stay as they are.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::step::Step;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const ARCHIVE: &str = "http://deb.debian.org/debian";
const SECURITY: &str = "http://deb.debian.org/debian-security";

/// What a Debian release offers for one architecture.
#[derive(Debug)]
pub(crate) struct Archive {
    config: PathBuf,
    arch: &'static str,
}

impl Archive {
    /// Fetches the lists of `release`, keeping them and all else under `dir`.
    pub(crate) fn open(dir: &Path, release: &str, arch: &'static str) -> Result<Self> {
        let archive = Self {
            config: configure(&dir.join(format!("{release}-{arch}")), release, arch)?,
            arch,
        };
        archive.apt("apt-get").args(["update", "-q"]).run()?;
        Ok(archive)
    }

    fn apt(&self, program: &str) -> Step {
        Step::new(program).env("APT_CONFIG", &self.config)
    }

    /// The names of packages that start with `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = self.apt("apt-cache").args(["pkgnames", prefix]).output()?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Unpacks packages into the empty directory `into`.
    pub(crate) fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        let download = self.apt("apt-get").args(["download", "-q"]).dir(into);
        let named = packages.iter().map(|name| format!("{name}:{}", self.arch));
        download.args(named).run()?;
        for entry in fs::read_dir(into).with_context(|| format!("reading {}", into.display()))? {
            let package = entry.context("reading what apt downloaded")?.path();
            if package.extension().is_some_and(|end| end == "deb") {
                Step::new("dpkg-deb")
                    .arg("-x")
                    .arg(&package)
                    .arg(into)
                    .run()?;
                fs::remove_file(&package)
                    .with_context(|| format!("removing {}", package.display()))?;
            }
        }
        Ok(())
    }
}

/// A configuration under which apt knows `release` and nothing of this machine but its proxies
/// and mirrors.
fn configure(dir: &Path, release: &str, arch: &str) -> Result<PathBuf> {
    for part in [
        "etc/preferences.d",
        "state/lists/partial",
        "cache/archives/partial",
    ] {
        let part = dir.join(part);
        fs::create_dir_all(&part).with_context(|| format!("making {}", part.display()))?;
    }
    let shown = dir.display();
    let config = format!(
        "Dir::Etc::sourcelist \"{shown}/sources.list\";\n\
         Dir::Etc::sourceparts \"-\";\n\
         Dir::Etc::preferencesparts \"{shown}/etc/preferences.d\";\n\
         Dir::State \"{shown}/state\";\n\
         Dir::State::status \"{shown}/state/status\";\n\
         Dir::Cache \"{shown}/cache\";\n\
         APT::Architecture \"{arch}\";\n\
         APT::Architectures {{\"{arch}\";}};\n\
         Acquire::Languages \"none\";\n\
         APT::Sandbox::User \"\";\n"
    );
    let path = dir.join("apt.conf");
    for (file, text) in [
        (dir.join("sources.list"), sources(release).as_str()),
        (dir.join("state/status"), ""),
        (path.clone(), config.as_str()),
    ] {
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(path)
}

/// Where the packages of a release are.
fn sources(release: &str) -> String {
    let (archive, security) = mirrors();
    let own = format!("deb [signed-by={KEYRING}] {archive} {release} main\n");
    // Backports have no security updates of their own.
    if release.ends_with("-backports") {
        return own;
    }
    format!("{own}deb [signed-by={KEYRING}] {security} {release}-security main\n")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_comes_with_its_security_updates_and_backports_with_none() {
        assert!(sources("bullseye").contains(" bullseye-security main"));
        assert_eq!(sources("trixie-backports").lines().count(), 1);
    }
}
