//! The programs a cluster is made of, from their published Go modules: joined in one directory of
//! the cache, which is named by theirs, and there for good.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::go::{self, Module, Program, Wanted};
use crate::helm;
use crate::oci;
use crate::places;

/// What programs say of themselves, nodes of their kubelet: as in `parts/k8s/go.mod`.
const VERSION: &[&str] = &[
    "k8s.io/component-base/version.gitVersion=v1.36.3",
    "k8s.io/component-base/version.gitMajor=1",
    "k8s.io/component-base/version.gitMinor=36",
    "k8s.io/component-base/version.gitTreeState=clean",
];

/// Where tests find the parts; set by hand, it says where they were built.
pub(crate) const VARIABLE: &str = "PICKET_CLUSTER_PARTS";

/// What is enough for tests against an API server.
const API: [&str; 3] = ["etcd", "kube-apiserver", "kubectl"];

/// Which parts.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Those that tests against an API server need, or all.
    #[arg(long, value_enum, default_value_t = Group::All)]
    group: Group,
    /// Build Helm, too, which tests of the chart need.
    #[arg(long)]
    helm: bool,
}

/// Parts that are built together.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Group {
    /// etcd, kube-apiserver, kubectl.
    Api,
    /// A whole cluster's.
    All,
}

static MODULES: [Module; 4] = [
    Module {
        name: "k8s",
        source: "xtask/src/cluster/parts/k8s",
        pins: &["go.mod", "go.sum"],
        words: VERSION,
        tags: "",
        programs: &[
            Program {
                built_as: Some("server"),
                ..Program::new("etcd", "go.etcd.io/etcd/server/v3")
            },
            Program::new("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            Program::new("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
            Program::new(
                "kube-controller-manager",
                "k8s.io/kubernetes/cmd/kube-controller-manager",
            ),
            Program::new("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            Program::new("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
            Program::new("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
            Program::new("agnhost", "k8s.io/kubernetes/test/images/agnhost"),
        ],
    },
    Module {
        name: "containerd",
        source: "xtask/src/cluster/parts/containerd",
        pins: &["go.mod", "go.sum"],
        words: &[],
        // What no node of ours has, and C.
        tags: "no_btrfs no_zfs no_devmapper osusergo netgo static_build",
        programs: &[
            Program::new(
                "containerd",
                "github.com/containerd/containerd/v2/cmd/containerd",
            ),
            Program::new(
                "containerd-shim-runc-v2",
                "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            ),
            Program::new("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
        ],
    },
    Module {
        name: "coredns",
        source: "xtask/src/cluster/parts/coredns",
        pins: &["go.mod", "go.sum", "main.go"],
        words: &[],
        tags: "",
        programs: &[Program::new("coredns", ".")],
    },
    Module {
        name: "pause",
        source: "xtask/src/cluster/parts/pause",
        pins: &["go.mod", "main.go"],
        words: &[],
        tags: "",
        programs: &[Program::new("pause", ".")],
    },
];

/// The task: nothing but the directory goes to stdout.
#[expect(clippy::print_stdout, reason = "scripts take the directory from there")]
pub(crate) fn run(args: &Args) -> Result<()> {
    let also = args.helm.then(helm::wanted);
    println!("{}", ensure_with(args.group, also)?.display());
    Ok(())
}

/// Whether the parts of `group` need no building.
pub(crate) fn is_built(group: Group) -> Result<bool> {
    if env::var_os(VARIABLE).is_some() {
        return Ok(true);
    }
    for some in group.wanted() {
        if !some.is_built()? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The directory that holds the parts of `group`; builds what is missing, unless [`VARIABLE`] says
/// that they are somewhere else.
pub(crate) fn ensure(group: Group) -> Result<PathBuf> {
    ensure_with(group, None)
}

/// The same, and builds something else with it: such programs have much in common.
fn ensure_with(group: Group, also: Option<Wanted>) -> Result<PathBuf> {
    if let Some(parts) = env::var_os(VARIABLE) {
        let parts = PathBuf::from(parts);
        let missing = missing(&parts, group);
        if !missing.is_empty() {
            bail!(
                "{VARIABLE}={}: there is no {} in it; without the variable, parts are built",
                parts.display(),
                missing.join(", ")
            );
        }
        go::ensure(also.as_slice())?;
        return Ok(parts);
    }
    let parts = joined()?;
    let mut wanted = group.wanted();
    wanted.extend(also);
    let is_new = go::ensure(&wanted)?;
    join(&parts, group)?;
    if is_new {
        go::tell_of_older(std::slice::from_ref(&parts));
    }
    Ok(parts)
}

/// The directory for programs of these very modules.
fn joined() -> Result<PathBuf> {
    let mut names = Vec::new();
    for module in &MODULES {
        names.extend(module.built()?.into_os_string().into_encoded_bytes());
    }
    let name = format!("parts-{}", oci::key(&names));
    Ok(places::cache()?.join("cluster").join(name))
}

/// Links what is built into the directory. Nodes mount it: nothing in it may lead out of it.
fn join(parts: &Path, group: Group) -> Result<()> {
    fs::create_dir_all(parts).with_context(|| format!("making {}", parts.display()))?;
    for some in group.wanted() {
        for built in some.files()? {
            let part = parts.join(built.file_name().unwrap_or_default());
            match fs::hard_link(&built, &part) {
                // By an earlier run, or by another one just now.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                linked => linked.with_context(|| {
                    format!("linking {} to {}", part.display(), built.display())
                })?,
            }
        }
    }
    Ok(())
}

/// What is not in a directory of a group.
fn missing(parts: &Path, group: Group) -> Vec<&'static str> {
    let programs = MODULES.iter().flat_map(|module| module.programs);
    programs
        .map(|program| program.name)
        .filter(|name| group.includes(name) && !parts.join(name).is_file())
        .collect()
}

impl Group {
    fn includes(self, program: &str) -> bool {
        self == Self::All || API.contains(&program)
    }

    /// What is built for it.
    fn wanted(self) -> Vec<Wanted> {
        let modules = MODULES.iter();
        modules
            .map(|module| module.wanted(|program| self.includes(program)))
            .filter(|some| !some.is_empty())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_that_programs_say_is_the_one_that_is_built() {
        let pins = include_str!("parts/k8s/go.mod");
        let (_, version) = VERSION[0].rsplit_once("=v").unwrap();
        assert!(pins.contains(&format!("k8s.io/kubernetes v{version} ")));
        let [major, minor, _] = version.split('.').collect::<Vec<_>>()[..] else {
            panic!("{version}");
        };
        assert!(VERSION[1].ends_with(&format!("gitMajor={major}")));
        assert!(VERSION[2].ends_with(&format!("gitMinor={minor}")));
        let replaced = pins.lines().filter(|line| line.contains(" => ")).count();
        let alike = pins.matches(&format!(" v0{}\n", &version[1..])).count();
        assert!(alike >= replaced && replaced > 30, "{alike} of {replaced}");
    }

    #[test]
    fn an_empty_directory_lacks_everything_and_the_api_is_three_programs() {
        let nowhere = Path::new("no/such/directory");
        let all: usize = MODULES.iter().map(|module| module.programs.len()).sum();
        assert_eq!(missing(nowhere, Group::Api), API);
        assert_eq!(missing(nowhere, Group::All).len(), all);
    }

    #[test]
    fn the_api_takes_nothing_but_kubernetes_own_module() {
        let names: Vec<PathBuf> = Group::Api
            .wanted()
            .iter()
            .flat_map(|some| some.files().unwrap())
            .collect();
        let dir = MODULES[0].built().unwrap();
        assert_eq!(names, API.map(|name| dir.join(name)));
    }
}
