//! `cargo xtask kind`: Picket in a cluster of kind's, for those who have Docker and kind. The first
//! way is `cargo xtask cluster`, which needs neither.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;

use crate::cluster::{self, AGENTS, MANIFESTS};
use crate::image;
use crate::places;
use crate::setup::{self, What};
use crate::step::Step;

/// What the cluster is called: kind's containers bear the name.
const NAME: &str = "picket";

/// A control plane and two nodes. kind's own CNI stays: Picket runs beside any.
const CONFIG: &str = "\
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
networking:
  disableDefaultCNI: false
nodes:
  - role: control-plane
  - role: worker
  - role: worker
";

/// Programs that this takes: what each is for, and where it comes from.
const NEEDED: [(&str, &str, &str); 3] = [
    (
        "docker",
        "runs the nodes, as containers",
        "https://docs.docker.com/engine/install",
    ),
    (
        "kind",
        "makes the cluster",
        "https://kind.sigs.k8s.io/docs/user/quick-start/#installation",
    ),
    (
        "kubectl",
        "talks to it",
        "https://kubernetes.io/docs/tasks/tools",
    ),
];

/// Tests that enter nodes, stop their kubelets or change their files, as those of `cargo xtask cluster`
/// are; or that a CNI which enforces policy would disturb.
const OF_OUR_NODES: [&str; 5] = [
    "boot::",
    "cni_plugin::",
    "dns::",
    "node::the_pods_own_node",
    "workloads::a_name_and_an_address",
];

/// What to do with the cluster.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
This takes docker, kind and kubectl, which are not installed by `cargo xtask setup`. Without them,
`cargo xtask cluster` does the same on namespaces of this machine.

The CNI of kind 0.24 and newer, kindnet, enforces NetworkPolicy, too: what is refused there may be
refused by either, and `test` shows that both together are right. `picket flows` says what Picket did.")]
pub(crate) struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Task {
    /// Start a cluster of three nodes with Picket in it.
    Up,
    /// Build Picket anew, load it on all nodes and replace the agents.
    Load,
    /// Run the tests of `cargo xtask test e2e` on it, but for those that change nodes.
    Test,
    /// End it.
    Down,
}

/// The task.
pub(crate) fn run(args: &Args) -> Result<()> {
    is_possible()?;
    match args.task {
        Task::Up => up(),
        Task::Load => {
            load()?;
            // The image's name is the same: nothing else tells that it is another one.
            kubectl()?.args(["rollout", "restart"]).args(AGENTS).run()?;
            are_ready()
        }
        Task::Test => test(),
        Task::Down => kind(["delete", "cluster"])?.run(),
    }
}

/// An error that says what is missing, for what, and where to get it.
fn is_possible() -> Result<()> {
    let missing: Vec<String> = NEEDED
        .iter()
        .filter(|(program, ..)| places::on_path(program).is_none())
        .map(|(program, why, from)| format!("\n  {program}, which {why}: {from}"))
        .collect();
    if !missing.is_empty() {
        bail!(
            "this machine lacks:{}\nwithout them: `cargo xtask cluster up`",
            missing.concat()
        );
    }
    if !Step::new("docker").arg("info").succeeds() {
        bail!("docker is here, but its engine does not answer: start it, or see `docker info`");
    }
    Ok(())
}

fn up() -> Result<()> {
    let config = places::target()?.join("kind.yaml");
    fs::write(&config, CONFIG).with_context(|| format!("writing {}", config.display()))?;
    kind(["create", "cluster"])?
        .arg("--config")
        .arg(config)
        .run()?;
    load()?;
    kubectl()?.args(["apply", "-f", MANIFESTS]).run()?;
    are_ready()?;
    eprintln!("\nexport KUBECONFIG={}", kubeconfig()?.display());
    Ok(())
}

fn load() -> Result<()> {
    let image = image::build(&[], image::PROFILE, None)?;
    Step::new("kind")
        .args(["load", "image-archive", "--name", NAME])
        .arg(image)
        .run()
}

fn are_ready() -> Result<()> {
    let status = kubectl()?.args(["rollout", "status", "--timeout=2m"]);
    status.args(AGENTS).run()
}

fn test() -> Result<()> {
    setup::ensure(What::Bpf)?;
    let skipped = OF_OUR_NODES.iter().flat_map(|name| ["--skip", *name]);
    let tests = cluster::tests(None).args(skipped);
    tests.env("KUBECONFIG", kubeconfig()?).run()
}

/// kind of our cluster, whose administrator's file is nobody's own.
fn kind<const N: usize>(words: [&str; N]) -> Result<Step> {
    Ok(Step::new("kind")
        .args(words)
        .args(["--name", NAME, "--kubeconfig"])
        .arg(kubeconfig()?))
}

fn kubectl() -> Result<Step> {
    Ok(Step::new("kubectl").arg("--kubeconfig").arg(kubeconfig()?))
}

fn kubeconfig() -> Result<PathBuf> {
    Ok(places::target()?.join("kind.kubeconfig"))
}
