//! The programs a cluster is made of: built from their published Go modules into the cache, in a
//! directory named by what pins them, and there for good.

use std::env;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::go;
use crate::oci;
use crate::places;
use crate::setup::{self, What};

/// What programs say of themselves, nodes of their kubelet: as in `parts/k8s/go.mod`.
const KUBERNETES: &str = "1.36.3";

/// Where tests find the parts; set by hand, it says where they were built.
pub(super) const VARIABLE: &str = "PICKET_CLUSTER_PARTS";

/// How often a build that goes on says so.
const PROGRESS: Duration = Duration::from_secs(10);

/// Which parts.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Those that tests against an API server need, or all.
    #[arg(long, value_enum, default_value_t = Group::All)]
    group: Group,
}

/// Parts that are built together.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Group {
    /// etcd, kube-apiserver, kubectl.
    Api,
    /// A whole cluster's.
    All,
}

/// A directory of `parts/`: versions, checksums, and what of it is built.
#[derive(Debug)]
struct Module {
    name: &'static str,
    /// Files that say what is built, beside the package names below.
    pins: &'static [&'static str],
    tags: &'static str,
    programs: &'static [Program],
}

#[derive(Debug)]
struct Program {
    name: &'static str,
    /// What `go build` calls the file, where that is not its name.
    built_as: Option<&'static str>,
    package: &'static str,
    group: Group,
}

const fn program(name: &'static str, package: &'static str, group: Group) -> Program {
    Program {
        name,
        built_as: None,
        package,
        group,
    }
}

const MODULES: &[Module] = &[
    Module {
        name: "k8s",
        pins: &["go.mod", "go.sum", "pause/main.go"],
        tags: "",
        programs: &[
            Program {
                built_as: Some("server"),
                ..program("etcd", "go.etcd.io/etcd/server/v3", Group::Api)
            },
            program(
                "kube-apiserver",
                "k8s.io/kubernetes/cmd/kube-apiserver",
                Group::Api,
            ),
            program("kubectl", "k8s.io/kubernetes/cmd/kubectl", Group::Api),
            program(
                "kube-controller-manager",
                "k8s.io/kubernetes/cmd/kube-controller-manager",
                Group::All,
            ),
            program(
                "kube-scheduler",
                "k8s.io/kubernetes/cmd/kube-scheduler",
                Group::All,
            ),
            program("kubelet", "k8s.io/kubernetes/cmd/kubelet", Group::All),
            program("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", Group::All),
            program(
                "agnhost",
                "k8s.io/kubernetes/test/images/agnhost",
                Group::All,
            ),
            program("pause", "./pause", Group::All),
        ],
    },
    Module {
        name: "containerd",
        pins: &["go.mod", "go.sum"],
        // What no node of ours has, and C.
        tags: "no_btrfs no_zfs no_devmapper osusergo netgo static_build",
        programs: &[
            program(
                "containerd",
                "github.com/containerd/containerd/v2/cmd/containerd",
                Group::All,
            ),
            program(
                "containerd-shim-runc-v2",
                "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
                Group::All,
            ),
            program(
                "ctr",
                "github.com/containerd/containerd/v2/cmd/ctr",
                Group::All,
            ),
        ],
    },
    Module {
        name: "coredns",
        pins: &["go.mod", "go.sum", "main.go"],
        tags: "",
        programs: &[program("coredns", ".", Group::All)],
    },
];

/// The task: nothing but the directory goes to stdout.
#[expect(clippy::print_stdout, reason = "scripts take the directory from there")]
pub(crate) fn run(args: &Args) -> Result<()> {
    let parts = ensure(args.group)?;
    println!("{}", parts.display());
    Ok(())
}

/// The directory that holds the parts of `group`; builds what is missing, unless [`VARIABLE`] says
/// that they are somewhere else.
pub(crate) fn ensure(group: Group) -> Result<PathBuf> {
    if let Some(parts) = env::var_os(VARIABLE) {
        let parts = PathBuf::from(parts);
        return match missing(&parts, group).first() {
            None => Ok(parts),
            Some((_, programs)) => bail!(
                "{VARIABLE}={}: there is no {} in it; without the variable, parts are built",
                parts.display(),
                names(programs).join(", ")
            ),
        };
    }
    let cache = places::cache()?.join("cluster");
    let parts = cache.join(format!("parts-{}", key()?));
    if missing(&parts, group).is_empty() {
        return Ok(parts);
    }
    setup::ensure(What::Api)?;
    fs::create_dir_all(&parts).with_context(|| format!("making {}", parts.display()))?;
    let lock = cache.join("lock");
    let lock = File::create(&lock).with_context(|| format!("making {}", lock.display()))?;
    if let Err(TryLockError::WouldBlock) = lock.try_lock() {
        eprintln!("somebody else is building parts: waiting for them");
    }
    // Whoever waits here finds everything built.
    lock.lock()
        .context("waiting for another build of the parts")?;
    let started = Instant::now();
    let go_cache = cache.join("go-build");
    for (module, programs) in missing(&parts, group) {
        build(module, &programs, &parts, &go_cache)?;
    }
    // Gigabytes, good for nothing but building the same again.
    if go_cache.exists() {
        fs::remove_dir_all(&go_cache)
            .with_context(|| format!("removing {}", go_cache.display()))?;
    }
    eprintln!("parts: built in {:.0} s", started.elapsed().as_secs_f32());
    Ok(parts)
}

/// What is not there yet of a group, by module.
fn missing(parts: &Path, group: Group) -> Vec<(&'static Module, Vec<&'static Program>)> {
    let modules = MODULES.iter().map(|module| {
        let programs = module.programs.iter();
        let missing = programs
            .filter(|program| group == Group::All || program.group == group)
            .filter(|program| !parts.join(program.name).is_file());
        (module, missing.collect::<Vec<_>>())
    });
    modules.filter(|(_, missing)| !missing.is_empty()).collect()
}

/// All of a module's in one go: what they share is compiled once.
fn build(
    module: &Module,
    programs: &[&'static Program],
    parts: &Path,
    go_cache: &Path,
) -> Result<()> {
    let names = names(programs).join(", ");
    eprintln!(
        "building {names} of {} (once; minutes)",
        module.dir().display()
    );
    let unfinished = parts.join("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)
            .with_context(|| format!("removing {}", unfinished.display()))?;
    }
    // With its slash: a directory, also where one program is built.
    let output = format!("{}/", unfinished.display());
    let mut progress = Progress::new();
    go::step(&module.dir())?
        .env("GOCACHE", go_cache)
        .args(module.flags())
        .args(["-v", "-o", output.as_str()])
        .args(programs.iter().map(|program| program.package))
        .watch(|line| progress.line(line))
        .with_context(|| format!("building {names}"))?;
    for program in programs {
        let built = unfinished.join(program.built_as.unwrap_or(program.name));
        let kept = parts.join(program.name);
        fs::rename(&built, &kept)
            .with_context(|| format!("moving {} to {}", built.display(), kept.display()))?;
    }
    fs::remove_dir(&unfinished).with_context(|| format!("removing {}", unfinished.display()))
}

fn names(programs: &[&'static Program]) -> Vec<&'static str> {
    programs.iter().map(|program| program.name).collect()
}

impl Module {
    fn dir(&self) -> PathBuf {
        places::root()
            .join("xtask/src/cluster/parts")
            .join(self.name)
    }

    /// The same on every machine, so that the same pins give the same programs.
    fn flags(&self) -> Vec<String> {
        let version = "k8s.io/component-base/version";
        let minor = KUBERNETES.split('.').nth(1).unwrap_or_default();
        let mut words = vec![
            "-s -w".to_owned(),
            format!("-X {version}.gitVersion=v{KUBERNETES}"),
            format!("-X {version}.gitMajor=1"),
            format!("-X {version}.gitMinor={minor}"),
            format!("-X {version}.gitTreeState=clean"),
        ];
        if self.name != "k8s" {
            words.truncate(1);
        }
        let flags = ["build", "-trimpath", "-buildvcs=false", "-mod=readonly"];
        let mut flags: Vec<String> = flags.map(str::to_owned).to_vec();
        flags.extend(["-ldflags".to_owned(), words.join(" ")]);
        flags.extend(["-tags".to_owned(), self.tags.to_owned()]);
        flags
    }
}

/// Names the directory: another version, flag or machine is another one.
fn key() -> Result<String> {
    let mut pins = env::consts::ARCH.as_bytes().to_vec();
    for module in MODULES {
        for program in module.programs {
            pins.extend(format!("\n{} {}", program.name, program.package).into_bytes());
        }
        pins.extend(module.flags().join("\n").into_bytes());
        for file in module.pins {
            let file = module.dir().join(file);
            let contents =
                fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
            pins.extend(contents);
        }
    }
    match oci::hex(&pins).get(..12) {
        Some(key) => Ok(key.to_owned()),
        None => bail!("a digest is shorter than twelve digits"),
    }
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
            eprintln!("{line}");
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

    #[test]
    fn the_version_that_programs_say_is_the_one_that_is_built() {
        let k8s = MODULES.iter().find(|module| module.name == "k8s").unwrap();
        let pins = fs::read_to_string(k8s.dir().join("go.mod")).unwrap();
        assert!(pins.contains(&format!("k8s.io/kubernetes v{KUBERNETES} ")));
        let replaced = pins.lines().filter(|line| line.contains(" => ")).count();
        let alike = pins.matches(&format!(" v0{}\n", &KUBERNETES[1..])).count();
        assert!(alike >= replaced && replaced > 30, "{alike} of {replaced}");
    }

    #[test]
    fn an_empty_directory_lacks_everything_and_the_api_is_three_programs() {
        let nowhere = Path::new("no/such/directory");
        let count = |group| -> usize {
            let missing = missing(nowhere, group);
            missing.iter().map(|(_, programs)| programs.len()).sum()
        };
        let all: usize = MODULES.iter().map(|module| module.programs.len()).sum();
        assert_eq!(count(Group::Api), 3);
        assert_eq!(count(Group::All), all);
    }

    #[test]
    fn progress_is_told_from_complaints() {
        assert!(is_package("k8s.io/kubernetes/pkg/apis/core"));
        assert!(!is_package("go: downloading go1.26.8 (linux/amd64)"));
        assert!(!is_package("main.go:3:1: expected declaration"));
        assert!(!is_package(""));
    }
}
