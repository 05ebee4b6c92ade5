//! Helm, which renders the chart in tests: built from its published Go module into the cache, in a
//! directory named by what pins it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::go;
use crate::oci;
use crate::places;
use crate::setup::{self, What};

const PACKAGE: &str = "helm.sh/helm/v3/cmd/helm";

/// What is built, exactly.
const PINS: [&str; 2] = [include_str!("helm/go.mod"), include_str!("helm/go.sum")];

/// Where it is; built when it is not there.
pub(crate) fn ensure() -> Result<PathBuf> {
    let pins = oci::hex(PINS.concat().as_bytes());
    let cache = places::cache()?;
    let dir = cache.join(format!("helm-{}", pins.get(..12).unwrap_or(&pins)));
    let program = dir.join("helm");
    if program.is_file() {
        return Ok(program);
    }
    setup::ensure(What::Api)?;
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let unfinished = dir.join(format!("unfinished-{}", std::process::id()));
    let go_cache = dir.join("go-build");
    eprintln!("building helm (once; minutes)");
    go::step(&places::root().join("xtask/src/helm"))?
        .env("GOCACHE", &go_cache)
        .args(["build", "-trimpath", "-buildvcs=false", "-mod=readonly"])
        .args(["-ldflags", "-s -w", "-o"])
        .arg(&unfinished)
        .arg(PACKAGE)
        .run()?;
    fs::rename(&unfinished, &program).with_context(|| format!("making {}", program.display()))?;
    // Good for nothing but building the same again.
    fs::remove_dir_all(&go_cache).with_context(|| format!("removing {}", go_cache.display()))?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_what_is_pinned() {
        let module = PACKAGE.strip_suffix("/cmd/helm").unwrap();
        assert!(PINS.iter().all(|pin| pin.contains(&format!("{module} v"))));
    }
}
