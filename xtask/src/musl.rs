//! Static programs of this workspace for either architecture, whichever this machine is: what the
//! container image and arm64's guests run.
//!
//! Rust brings musl and a linker for both with it. A C compiler is asked for what dependencies
//! have in C and assembly, so for the other architecture it is a cross compiler.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::arch::Arch;
use crate::places;
use crate::step::Step;

/// A binary of this workspace, to be built static.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    pub(crate) package: &'a str,
    pub(crate) name: &'a str,
    /// Of Cargo.toml.
    pub(crate) profile: &'a str,
    /// What goes, as `-C strip` takes it.
    pub(crate) strip: &'a str,
    /// The state of the sources, if it shall know.
    pub(crate) revision: Option<String>,
}

impl Program<'_> {
    /// Builds it; returns where it is. It is linked by itself, so that no dependency is built with
    /// flags that only it needs. Nothing in it tells where it was built.
    pub(crate) fn build(&self, arch: Arch) -> Result<PathBuf> {
        let &Self {
            package,
            name,
            profile,
            strip,
            ref revision,
        } = self;
        let target = arch.target();
        let mut build = Step::cargo(["rustc", "--locked", "-p", package, "--bin", name])
            .args(["--profile", profile, "--target", target])
            .arg("--config")
            .arg(format!("target.{target}.rustflags={:?}", unplaced()?))
            .args(["--", "-C", &format!("strip={strip}")]);
        for (variable, program) in tools(arch) {
            // Whoever sets one knows better.
            if env::var_os(&variable).is_none() {
                build = build.env(&variable, program);
            }
        }
        if let Some(revision) = revision {
            build = build.env("PICKET_REVISION", revision);
        }
        build.run()?;
        // The oldest profile has a directory of another name.
        let directory = if profile == "dev" { "debug" } else { profile };
        Ok(places::target()?.join(target).join(directory).join(name))
    }
}

/// What makes rustc forget where sources were. Shown as Rust shows them, they are TOML, too.
fn unplaced() -> Result<[String; 2]> {
    let cargo = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| {
        let home = env::var_os("HOME")?;
        Some(PathBuf::from(home).join(".cargo"))
    });
    let cargo = cargo.context("HOME is not set: it says where cargo keeps its sources")?;
    Ok([(places::root(), "/picket"), (&cargo, "/cargo")]
        .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())))
}

/// The tools of a target, by the variables that name them to cargo and to build scripts.
fn tools(arch: Arch) -> [(String, &'static str); 2] {
    let target = arch.target().replace('-', "_");
    [
        (
            format!("CARGO_TARGET_{}_LINKER", target.to_uppercase()),
            "rust-lld",
        ),
        (format!("CC_{target}"), arch.c_compiler()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_named_as_cargo_and_build_scripts_look_for_them() {
        let [linker, compiler] = tools(Arch::Arm64);
        assert_eq!(linker.0, "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER");
        assert_eq!(compiler.0, "CC_aarch64_unknown_linux_musl");
    }
}
