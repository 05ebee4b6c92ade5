//! Helm, which renders the chart in tests: built from its published Go module.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::go::{self, Module, Program, Wanted};

const PACKAGE: &str = "helm.sh/helm/v3/cmd/helm";

static MODULE: Module = Module {
    name: "helm",
    source: "xtask/src/helm",
    pins: &["go.mod", "go.sum"],
    words: &[],
    tags: "",
    programs: &[Program::new("helm", PACKAGE)],
};

/// What [`ensure`] builds.
pub(crate) fn wanted() -> Wanted {
    MODULE.wanted(|_| true)
}

/// Whether it is there.
pub(crate) fn is_built() -> Result<bool> {
    wanted().is_built()
}

/// Where it is; built when it is not there.
pub(crate) fn ensure() -> Result<PathBuf> {
    let wanted = wanted();
    let helm = wanted.files()?.pop().context("no program of Helm's")?;
    go::ensure(&[wanted])?;
    Ok(helm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_what_is_pinned() {
        let module = PACKAGE.strip_suffix("/cmd/helm").unwrap();
        let pins = [include_str!("helm/go.mod"), include_str!("helm/go.sum")];
        assert!(pins.iter().all(|pin| pin.contains(&format!("{module} v"))));
    }
}
