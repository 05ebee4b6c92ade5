//! Go, which builds the parts of a cluster. Any since 1.21 will do: it fetches by itself the very
//! version that a go.mod names.

mod programs;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

pub(crate) use programs::{Module, Program, Wanted, ensure, tell_of_older};

use crate::apt::Archive;
use crate::arch::Arch;
use crate::places;
use crate::step::Step;

/// The first that fetches other versions.
const OLDEST: (u32, u32) = (1, 21);

/// Debian 12's own is older; this one is statically linked and runs on every release.
const RELEASE: &str = "bookworm-backports";
const PACKAGE: &str = "golang-1.23-go";
const PROGRAM: &str = "usr/lib/go-1.23/bin/go";

/// What [`install`] does, in words.
pub(crate) const HOW: &str = "unpack Debian's golang-1.23-go of bookworm-backports into \
    ~/.cache/picket/go, nothing else of the machine is touched (or install any Go since 1.21 from \
    https://go.dev/dl)";

/// The `go` command that will be used: the one on the PATH, the usual place, ours.
pub(crate) fn find() -> Result<Option<PathBuf>> {
    let places = [
        places::on_path("go"),
        Some(PathBuf::from("/usr/local/go/bin/go")),
        Some(home()?.join(PROGRAM)),
    ];
    Ok(places.into_iter().flatten().find(|go| is_usable(go)))
}

/// A `go` step that takes the version from its module, whatever the user's settings say, and keeps
/// what it fetches and compiles in our cache. It ends when we do.
fn step(module: &Path) -> Result<Step> {
    let Some(go) = find()? else {
        bail!("there is no Go since 1.21 here: `cargo xtask setup --what api` gets one");
    };
    Ok(Step::new("setpriv")
        .args(["--pdeathsig", "INT"])
        .arg(go)
        .dir(module)
        .env("GOTOOLCHAIN", "auto")
        // Or whoever is not root could not remove it.
        .env("GOFLAGS", "-modcacherw")
        .env("GOWORK", "off")
        .env("GO111MODULE", "on")
        .env("CGO_ENABLED", "0")
        .env("GOPATH", module_cache()?)
        .env("GOMODCACHE", module_cache()?.join("pkg/mod"))
        .env("GOCACHE", build_cache()?))
}

/// Where fetched modules are while programs are built.
fn module_cache() -> Result<PathBuf> {
    Ok(places::cache()?.join("go-path"))
}

/// Where compiled packages are meanwhile.
fn build_cache() -> Result<PathBuf> {
    Ok(places::cache()?.join("go-build"))
}

/// Gets one from Debian, into the cache.
pub(crate) fn install() -> Result<()> {
    let home = home()?;
    let packages = home.with_file_name("go-packages");
    let Some(arch) = Arch::here() else {
        bail!("no Go is known for this machine: install any since 1.21 from https://go.dev/dl");
    };
    let archive = Archive::open(&packages, RELEASE, arch.as_label())?;
    let unfinished = home.with_file_name("go.new");
    for old in [&unfinished, &home] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("removing {}", old.display()))?;
        }
    }
    fs::create_dir_all(&unfinished).with_context(|| format!("making {}", unfinished.display()))?;
    archive.unpack(&[PACKAGE.to_owned()], &unfinished)?;
    fs::rename(&unfinished, &home).with_context(|| format!("making {}", home.display()))?;
    fs::remove_dir_all(&packages).with_context(|| format!("removing {}", packages.display()))?;
    if !is_usable(&home.join(PROGRAM)) {
        bail!("{PACKAGE} of {RELEASE} holds no {PROGRAM} that runs here");
    }
    Ok(())
}

fn home() -> Result<PathBuf> {
    Ok(places::cache()?.join("go"))
}

fn is_usable(go: &Path) -> bool {
    // Elsewhere than in a module: it would fetch that module's version to tell.
    let version = Step::new(go).arg("version").dir("/");
    go.is_file()
        && version
            .output()
            .is_ok_and(|said| version_of(&said).is_some_and(|version| version >= OLDEST))
}

/// The version in `go version go1.23.5 linux/amd64`.
fn version_of(said: &str) -> Option<(u32, u32)> {
    let version = said.split_whitespace().nth(2)?.strip_prefix("go")?;
    let (major, rest) = version.split_once('.')?;
    let end = rest.find(|c: char| !c.is_ascii_digit());
    let minor = rest.get(..end.unwrap_or(rest.len()))?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_whatever_follows_it() {
        for (said, version) in [
            ("go version go1.23.5 linux/amd64\n", Some((1, 23))),
            ("go version go1.21 linux/arm64", Some((1, 21))),
            ("go version go1.27rc1 linux/amd64", Some((1, 27))),
            ("go version devel +abc", None),
            ("", None),
        ] {
            assert_eq!(version_of(said), version, "{said}");
        }
    }

    #[test]
    fn debian_12s_go_is_too_old() {
        assert!(version_of("go version go1.19.8 linux/amd64").unwrap() < OLDEST);
    }
}
