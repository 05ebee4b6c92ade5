//! A real Kubernetes cluster on this machine: its parts are built here, from their published
//! sources, and its nodes are namespaces.

mod certs;
mod cgroup;
mod config;
mod e2e;
mod images;
mod kubectl;
mod network;
mod node;
mod parts;
mod picket;
mod process;
mod state;
mod steps;
mod up;
mod workloads;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Subcommand;

pub(crate) use e2e::{test, tests};
pub(crate) use parts::{Group, VARIABLE, ensure, is_built};
pub(crate) use picket::{AGENTS, MANIFESTS};

use crate::step::{self, Step};
use kubectl::Kubectl;
use state::State;

/// What to do with the cluster.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A cluster is etcd, kube-apiserver, kube-controller-manager, kube-scheduler and, on each node,
containerd, runc, kubelet and kube-proxy: the real ones. A node is a set of namespaces, so pods on
two nodes really reach each other over a network. Nothing of it can be reached from elsewhere, and
nothing of the machine is changed that `down` does not put back.

  cargo xtask cluster up --cni bridge --proxy iptables --family 4
  cargo xtask cluster kubectl run web --image registry.k8s.io/e2e-test-images/agnhost:2.63.0 \\
      -- netexec --http-port=8080
  cargo xtask cluster kubectl expose pod web --port 80 --target-port 8080
  cargo xtask cluster kubectl exec web -- wget -qO- http://web/hostname
  cargo xtask cluster exec n1 -- ip route
  cargo xtask cluster down

The first `up` builds the parts: ten minutes on two cores, 5 GB of disk while it builds, 700 MB
after. A cluster takes 700 MB of disk and half a GB of memory. Every node has four images: agnhost,
which is upstream's test server with a shell beside it, CoreDNS, the pods' pause, and Picket's, which
is absent with `--bare`. No other can be had.")]
pub(crate) struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Start a cluster with Picket in it: nodes, DNS, deploy/picket.yaml. Root.
    Up(up::Args),
    /// Build Picket anew, load it on all nodes and replace the agents. Root.
    Load(picket::Args),
    /// End the cluster, whole or not, and remove every trace of it. Root.
    Down,
    /// Show nodes, pods, and where the logs are.
    Status,
    /// Run a command on a node: n1, n2, … or cp, which is the control plane. Root.
    Exec(Exec),
    /// kubectl, as the cluster's administrator.
    Kubectl(Passed),
    /// Build the programs a cluster is made of, once, and print the directory they are in.
    Parts(parts::Args),
}

#[derive(Debug, clap::Args)]
struct Exec {
    /// n1, n2, … or cp.
    node: String,
    /// The command and its arguments, after `--`.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
struct Passed {
    /// Handed on to kubectl.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// The task.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.task {
        Task::Up(args) => up::run(args),
        Task::Load(args) => picket::load(args),
        Task::Down => down(),
        Task::Status => status(),
        Task::Exec(args) => exec(args),
        Task::Kubectl(passed) => kubectl(passed),
        Task::Parts(args) => parts::run(args),
    }
}

fn down() -> Result<()> {
    if !step::is_root()? {
        return picket::again_as_root(None);
    }
    let started = Instant::now();
    let state = State::find()?;
    let _claim = state.claim()?;
    if state.clear()? {
        eprintln!("down after {:.1} s", started.elapsed().as_secs_f32());
    } else {
        eprintln!("no cluster was up");
    }
    Ok(())
}

fn status() -> Result<()> {
    let state = State::find()?;
    let kubectl = Kubectl::new(&state, &state.parts()?);
    let nodes = kubectl.output(["get", "nodes", "-o", "wide"])?;
    let pods = kubectl.output(["get", "pods", "-A", "-o", "wide"])?;
    io::stdout()
        .write_all(format!("{nodes}\n{pods}").as_bytes())
        .context("writing the answer")?;
    eprintln!("logs: {}/*/*.log", state.dir().display());
    eprintln!("export KUBECONFIG={}", state.kubeconfig().display());
    Ok(())
}

fn exec(args: &Exec) -> Result<()> {
    let state = State::find()?;
    state.parts()?;
    let pid = state.pid_of(&args.node)?;
    node::step(pid, &args.command)
        .with_root("entering a node")?
        .replace_quietly()
}

fn kubectl(passed: &Passed) -> Result<()> {
    let state = State::find()?;
    Step::new(state.parts()?.join("kubectl"))
        .args(&passed.args)
        .env("KUBECONFIG", state.kubeconfig())
        .env(kubectl::CACHE, state.kubectl_cache())
        .dir(step::called_from()?)
        .replace_quietly()
}
