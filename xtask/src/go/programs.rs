//! Programs that are built from published Go modules, once: into a directory of the cache that is
//! named by what pins them, and that nothing here removes.

use std::env;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{build_cache, module_cache, step};
use crate::oci;
use crate::places;
use crate::setup::{self, What};

/// How often a build that goes on says so.
const PROGRESS: Duration = Duration::from_secs(10);

/// A module of this tree: versions, checksums, and what of them is built.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) name: &'static str,
    /// Where it is in the workspace.
    pub(crate) source: &'static str,
    /// Files of it that say what is built, beside the package names below.
    pub(crate) pins: &'static [&'static str],
    /// What programs are told of themselves, for the linker.
    pub(crate) words: &'static [&'static str],
    pub(crate) tags: &'static str,
    pub(crate) programs: &'static [Program],
}

/// What `go build` makes of one package.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    /// What `go build` calls the file, where that is not its name.
    pub(crate) built_as: Option<&'static str>,
    pub(crate) package: &'static str,
}

impl Program {
    pub(crate) const fn new(name: &'static str, package: &'static str) -> Self {
        Self {
            name,
            built_as: None,
            package,
        }
    }
}

/// Some programs of a module.
#[derive(Debug)]
pub(crate) struct Wanted {
    module: &'static Module,
    programs: Vec<&'static Program>,
}

impl Module {
    /// The programs whose names are so.
    pub(crate) fn wanted(&'static self, is_wanted: impl Fn(&str) -> bool) -> Wanted {
        let programs = self.programs.iter();
        Wanted {
            module: self,
            programs: programs.filter(|one| is_wanted(one.name)).collect(),
        }
    }

    /// The directory of its programs. Another version, flag or machine is another directory.
    pub(crate) fn built(&self) -> Result<PathBuf> {
        let mut pins = env::consts::ARCH.as_bytes().to_vec();
        for program in self.programs {
            pins.extend(format!("\n{} {}", program.name, program.package).into_bytes());
        }
        pins.extend(self.flags().join("\n").into_bytes());
        for file in self.pins {
            let file = self.source().join(file);
            let contents =
                fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            // Comments pin nothing.
            let lines = contents.lines().filter(|line| !line.starts_with("// "));
            pins.extend(lines.flat_map(|line| ["\n", line]).flat_map(str::bytes));
        }
        let name = format!("{}-{}", self.name, oci::key(&pins));
        Ok(all_built()?.join(name))
    }

    fn source(&self) -> PathBuf {
        places::root().join(self.source)
    }

    /// The same on every machine, so that the same pins give the same programs.
    fn flags(&self) -> Vec<String> {
        let flags = ["build", "-trimpath", "-buildvcs=false", "-mod=readonly"];
        let mut flags: Vec<String> = flags.map(str::to_owned).to_vec();
        let words: Vec<String> = self
            .words
            .iter()
            .map(|word| format!(" -X {word}"))
            .collect();
        flags.extend(["-ldflags".to_owned(), format!("-s -w{}", words.concat())]);
        flags.extend(["-tags".to_owned(), self.tags.to_owned()]);
        flags
    }
}

impl Wanted {
    /// Whether nothing is wanted.
    pub(crate) fn is_empty(&self) -> bool {
        self.programs.is_empty()
    }

    /// Where the programs are, or will be.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let built = self.module.built()?;
        let programs = self.programs.iter();
        Ok(programs.map(|program| built.join(program.name)).collect())
    }

    /// Those that are not there yet.
    fn missing(&self) -> Result<Vec<&'static Program>> {
        let built = self.module.built()?;
        let programs = self.programs.iter().copied();
        Ok(programs
            .filter(|program| !built.join(program.name).is_file())
            .collect())
    }

    /// Whether all of them are there.
    pub(crate) fn is_built(&self) -> Result<bool> {
        Ok(self.missing()?.is_empty())
    }

    /// Builds what is missing of it, all in one go: what programs share is compiled once.
    fn build(&self) -> Result<()> {
        let missing = self.missing()?;
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = missing.iter().map(|program| program.name).collect();
        let names = names.join(", ");
        eprintln!("building {names} of {} (once)", self.module.source);
        let built = self.module.built()?;
        let unfinished = built.join("unfinished");
        remove(&unfinished)?;
        fs::create_dir_all(&built).with_context(|| format!("making {}", built.display()))?;
        let started = Instant::now();
        let mut progress = Progress::new();
        step(&self.module.source())?
            .args(self.module.flags())
            // With its slash: a directory, also where one program is built.
            .args(["-v", "-o", &format!("{}/", unfinished.display())])
            .args(missing.iter().map(|program| program.package))
            .watch(|line| progress.line(line))
            .with_context(|| format!("building {names}"))?;
        for program in missing {
            let new = unfinished.join(program.built_as.unwrap_or(program.name));
            let kept = built.join(program.name);
            fs::rename(&new, &kept)
                .with_context(|| format!("moving {} to {}", new.display(), kept.display()))?;
        }
        eprintln!("built {names} in {:.0} s", started.elapsed().as_secs_f32());
        remove(&unfinished)
    }
}

/// Builds what is missing of these; says whether anything was.
pub(crate) fn ensure(wanted: &[Wanted]) -> Result<bool> {
    if are_built(wanted)? {
        return Ok(false);
    }
    setup::ensure(What::Api)?;
    let _lock = lock()?;
    // Whoever had to wait for the lock may find everything built.
    if are_built(wanted)? {
        return Ok(true);
    }
    for some in wanted {
        some.build()?;
    }
    // Gigabytes, good for nothing but building the same again.
    remove(&build_cache()?)?;
    remove(&module_cache()?)?;
    let built: Result<Vec<PathBuf>> = wanted.iter().map(|some| some.module.built()).collect();
    tell_of_older(&built?);
    Ok(true)
}

fn are_built(wanted: &[Wanted]) -> Result<bool> {
    for some in wanted {
        if !some.is_built()? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Only who holds it builds: all builds share caches, which are removed after each.
fn lock() -> Result<File> {
    let all = all_built()?;
    fs::create_dir_all(&all).with_context(|| format!("making {}", all.display()))?;
    let path = all.join("lock");
    let lock = File::create(&path).with_context(|| format!("making {}", path.display()))?;
    if let Err(TryLockError::WouldBlock) = lock.try_lock() {
        eprintln!("somebody else is building such programs: waiting for them");
    }
    lock.lock()
        .with_context(|| format!("locking {}", path.display()))?;
    Ok(lock)
}

/// Says which directories are of other versions than these, `NAME-KEY` all of them.
pub(crate) fn tell_of_older(current: &[PathBuf]) {
    let older: Vec<String> = current
        .iter()
        .flat_map(|current| older(current))
        .map(|dir| format!("\n  {}", dir.display()))
        .collect();
    if !older.is_empty() {
        eprintln!(
            "of other versions, of use to other checkouts at most; they can be removed:{}",
            older.concat()
        );
    }
}

fn older(current: &Path) -> Vec<PathBuf> {
    let name_of = |dir: &Path| {
        let name = dir.file_name()?.to_str()?;
        Some(name.rsplit_once('-')?.0.to_owned())
    };
    let siblings = current.parent().and_then(|all| fs::read_dir(all).ok());
    let siblings = siblings.into_iter().flatten().flatten();
    siblings
        .map(|entry| entry.path())
        .filter(|dir| dir.is_dir() && dir != current && name_of(dir) == name_of(current))
        .collect()
}

fn all_built() -> Result<PathBuf> {
    Ok(places::cache()?.join("programs"))
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    Ok(())
}

/// Counts the packages that `go build -v` names; whatever else it says is shown.
#[derive(Debug)]
struct Progress {
    packages: usize,
    started: Instant,
    said: Instant,
}

impl Progress {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            packages: 0,
            started: now,
            said: now,
        }
    }

    fn line(&mut self, line: &str) {
        if !is_package(line) {
            // One for each module.
            if !line.starts_with("go: downloading ") {
                eprintln!("{line}");
            }
            return;
        }
        self.packages += 1;
        if self.said.elapsed() >= PROGRESS {
            self.said = Instant::now();
            let seconds = self.started.elapsed().as_secs();
            eprintln!(
                "  {} packages compiled, {seconds} s; now {line}",
                self.packages
            );
        }
    }
}

/// A line that is one word is the path of a package.
fn is_package(line: &str) -> bool {
    !line.is_empty() && !line.contains(|c: char| c.is_whitespace() || c == ':')
}

#[cfg(test)]
mod tests {
    use super::*;

    static OTHER: [Program; 1] = [Program::new("pause", "./other")];

    const MODULE: Module = Module {
        name: "pause",
        source: "xtask/src/cluster/parts/pause",
        pins: &["go.mod", "main.go"],
        words: &[],
        tags: "",
        programs: &[Program::new("pause", ".")],
    };

    #[test]
    fn what_decides_what_is_built_names_its_directory() {
        let built = |module: &Module| module.built().unwrap();
        let same = built(&MODULE);
        assert_eq!(built(&MODULE), same);
        assert!(same.to_string_lossy().contains("/programs/pause-"));
        for other in [
            Module {
                pins: &["main.go"],
                ..MODULE
            },
            Module {
                words: &["main.version=2"],
                ..MODULE
            },
            Module {
                tags: "static",
                ..MODULE
            },
            Module {
                programs: &OTHER,
                ..MODULE
            },
        ] {
            assert_ne!(built(&other), same, "{other:?}");
        }
    }

    #[test]
    fn only_directories_of_the_same_name_and_another_key_are_older() {
        let all = env::temp_dir().join(format!("picket-older-{}", std::process::id()));
        for name in ["k8s-1", "k8s-2", "coredns-1"] {
            fs::create_dir_all(all.join(name)).unwrap();
        }
        let found = older(&all.join("k8s-2"));
        fs::remove_dir_all(&all).unwrap();
        assert_eq!(found, [all.join("k8s-1")]);
    }

    #[test]
    fn progress_is_told_from_complaints() {
        assert!(is_package("k8s.io/kubernetes/pkg/apis/core"));
        assert!(!is_package("go: downloading go1.26.8 (linux/amd64)"));
        assert!(!is_package("main.go:3:1: expected declaration"));
        assert!(!is_package(""));
    }
}
