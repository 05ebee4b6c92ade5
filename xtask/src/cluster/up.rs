//! `cargo xtask cluster up`: what has to be there before, and what is said after. Whatever fails,
//! nothing is left.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::config::{Cni, Proxy, Shape};
use super::images;
use super::kubectl::Kubectl;
use super::network::Family;
use super::parts::{self, Group};
use super::picket;
use super::state::State;
use super::steps::Cluster;
use crate::setup::{self, What};
use crate::step;

/// What the cluster is like.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many nodes, besides the control plane.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=20))]
    nodes: u8,
    /// How pods get their interfaces.
    #[arg(long, value_enum, default_value_t = Cni::Ptp)]
    cni: Cni,
    /// How kube-proxy serves Services.
    #[arg(long, value_enum, default_value_t = Proxy::Nftables)]
    proxy: Proxy,
    /// Which addresses nodes, pods and Services have.
    #[arg(long, value_enum, default_value_t = Family::Dual)]
    family: Family,
    /// A cluster without Picket: nothing of deploy/ is applied.
    #[arg(long)]
    bare: bool,
    /// An image archive to load instead of building one.
    #[arg(long, value_name = "FILE", conflicts_with = "bare")]
    image: Option<PathBuf>,
}

/// The task.
pub(crate) fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    let state = State::find()?;
    state.is_free()?;
    setup::ensure(What::Cluster)?;
    let parts = parts::ensure(Group::All)?;
    let mut archives = images::ensure(&parts)?;
    let image = if args.bare {
        None
    } else {
        Some(picket::archive(args.image.as_deref())?)
    };
    if !step::is_root()? {
        return picket::again_as_root(image.as_deref().filter(|_| args.image.is_none()));
    }
    let claim = state.claim()?;
    state.is_free()?;
    if state.clear()? {
        eprintln!("removed what an earlier cluster left that did not come up");
    }
    archives.extend(image.clone());
    let shape = Shape {
        nodes: args.nodes.into(),
        cni: args.cni,
        proxy: args.proxy,
        family: args.family,
    };
    let cluster = Cluster::new(shape, &state, &parts, &archives);
    if let Err(error) = cluster.bring_up() {
        eprintln!("the cluster did not come up: taking down what there is of it");
        // The first error is the one to tell.
        if let Err(error) = state.clear() {
            eprintln!("error: {error:#}");
        }
        return Err(error);
    }
    drop(claim);
    // Whoever wants to know why Picket does not run looks at the cluster.
    let installed = match image {
        Some(_) => picket::install(&Kubectl::new(&state, &parts)),
        None => Ok(()),
    };
    eprintln!("up after {:.1} s", started.elapsed().as_secs_f32());
    teach(&state);
    installed.context("the cluster is up, but not Picket in it")
}

/// How to use it. The one line on stdout is for a shell's `eval`.
#[expect(clippy::print_stdout, reason = "a shell takes the line from there")]
fn teach(state: &State) {
    eprintln!(
        "
cargo xtask cluster kubectl get pods -A     kubectl, as the cluster's administrator
cargo xtask cluster exec n1 -- ip route     a command on a node, as root
cargo xtask cluster status                  nodes, pods, logs
cargo xtask cluster load                    a Picket that you have changed, in place of the old
cargo xtask cluster down                    ends it; nothing stays

In this shell, for a kubectl of your own and everything else that reads it:"
    );
    println!("export KUBECONFIG={}", state.kubeconfig().display());
}
