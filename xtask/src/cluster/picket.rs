//! Picket in the cluster: its image on every node, its manifests applied as they are; and a new
//! version of it in the place of the old.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::images;
use super::kubectl::Kubectl;
use super::node::{self, CONTROL_PLANE};
use super::state::State;
use super::workloads;
use crate::image;
use crate::places;
use crate::step::{self, Step};

/// What is applied.
pub(crate) const MANIFESTS: &str = "deploy/picket.yaml";

/// What is applied to take it out of every node again.
const UNINSTALL: &str = "deploy/kustomize/overlays/uninstall";

/// Where a node's programs and maps are pinned.
const PINS: &str = "/sys/fs/bpf/picket";

/// What these manifests call the agents, and where they put them.
pub(crate) const AGENTS: [&str; 3] = ["daemonset/picket", "--namespace", "picket-system"];

/// Which version.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// An image archive to load instead of building one.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
}

/// `cargo xtask cluster load`.
pub(super) fn load(args: &Args) -> Result<()> {
    let started = Instant::now();
    let state = State::find()?;
    let kubectl = Kubectl::new(&state, &state.parts()?);
    let archive = archive(args.image.as_deref())?;
    if !step::is_root()? {
        return again_as_root(args.image.is_none().then_some(archive.as_path()));
    }
    images::load(&nodes(&state)?, &[archive])?;
    if kubectl.output(["get"].iter().chain(&AGENTS)).is_ok() {
        // The image's name is the same: nothing else tells that it is another one.
        kubectl.output(["rollout", "restart"].iter().chain(&AGENTS))?;
    }
    install(&kubectl)?;
    eprintln!("loaded after {:.1} s", started.elapsed().as_secs_f32());
    Ok(())
}

/// The nodes that pods come to, each with its first process.
fn nodes(state: &State) -> Result<Vec<(String, u32)>> {
    let names = state.nodes().into_iter();
    names
        .filter(|name| name != CONTROL_PLANE)
        .map(|name| Ok((name.clone(), state.pid_of(&name)?)))
        .collect()
}

/// Uninstalls as `deploy/README.md` says: the rollout ends, and nothing is left in any node's kernel.
pub(super) fn uninstall(state: &State) -> Result<()> {
    let kubectl = Kubectl::new(state, &state.parts()?);
    let overlay = places::root().join(UNINSTALL);
    kubectl.output([OsStr::new("apply"), "-k".as_ref(), overlay.as_ref()])?;
    let rollout = ["rollout", "status", "--timeout=2m"];
    kubectl.output(rollout.iter().chain(&AGENTS))?;
    for (node, pid) in nodes(state)? {
        let gone = ["test", "!", "-e", PINS].map(OsString::from);
        let gone = node::step(pid, &gone).with_root("looking at a node")?;
        if !gone.succeeds() {
            bail!("{node}: Picket was uninstalled, and {PINS} is still there");
        }
    }
    eprintln!("uninstalled by {UNINSTALL}: nothing is left on any node");
    Ok(())
}

/// The archive of Picket's image: this one, or one that is built.
pub(super) fn archive(image: Option<&Path>) -> Result<PathBuf> {
    let Some(image) = image else {
        return image::build(&[], image::PROFILE, None);
    };
    let archive = step::called_from()?.join(image);
    if !archive.is_file() {
        bail!("--image {}: there is no such file", archive.display());
    }
    Ok(archive)
}

/// Applies the manifests as they are, and waits for the agents.
pub(super) fn install(kubectl: &Kubectl) -> Result<()> {
    let manifests = places::root().join(MANIFESTS);
    let text = fs::read_to_string(&manifests)
        .with_context(|| format!("reading {}", manifests.display()))?;
    workloads::apply(kubectl, MANIFESTS, &text)
}

/// The very command again, as root: what can be built without was built, such as this image.
pub(super) fn again_as_root(built: Option<&Path>) -> Result<()> {
    let program = std::env::current_exe().context("finding the xtask program")?;
    let mut words: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some(image) = built {
        words.extend(["--image".into(), image.into()]);
    }
    Step::new(program)
        .args(words)
        .dir(step::called_from()?)
        .with_root("entering and making namespaces")?
        .replace()
}
