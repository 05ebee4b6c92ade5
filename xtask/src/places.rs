//! Where things are: the workspace, cargo's target directory, the cache outside the tree.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The workspace's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
}

/// Cargo's target directory: where this very program was built.
pub(crate) fn target() -> Result<PathBuf> {
    let program = env::current_exe().context("finding the xtask program")?;
    let target = program.parent().and_then(Path::parent);
    Ok(target
        .context("xtask is not in a target directory")?
        .to_path_buf())
}

/// `~/.cache/picket`: tools and kernels that outlive a checkout. `agent/build.rs` looks for
/// bpf-linker in its `bin`.
pub(crate) fn cache() -> Result<PathBuf> {
    let home = env::var_os("HOME").context("HOME is not set: it says where the cache is")?;
    Ok(Path::new(&home).join(".cache/picket"))
}

/// The first `name` that can be found on the PATH.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}
