//! `cargo xtask image`: the container image, without Docker. A static `picket` for each
//! architecture and nothing else, in one archive that containerd imports.
//!
//! `deploy/Dockerfile` makes the same image where Docker is.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::arch::Arch;
use crate::musl::Program;
use crate::oci::{self, Image};
use crate::places;
use crate::setup::{self, What};
use crate::step::{self, Step};

/// What the manifests of `deploy/` call it. Nothing is published under any name yet, and no node
/// takes somebody else's image for one from `localhost`.
pub(crate) const NAME: &str = concat!("localhost/picket:", env!("CARGO_PKG_VERSION"));

/// The profile of Cargo.toml that the image is built under.
pub(crate) const PROFILE: &str = "image";

/// Where the program is in the image.
const PROGRAM: &str = "/usr/bin/picket";

/// Which architectures, and where the archive goes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
To load it on a node:
  ctr -n k8s.io images import FILE
To push it to a registry of yours:
  skopeo copy --all oci-archive:FILE docker://REGISTRY/picket:VERSION")]
pub(crate) struct Args {
    /// Architectures of the nodes, separated by commas; this machine's when left out.
    #[arg(long, value_enum, value_delimiter = ',')]
    arch: Vec<Arch>,
    /// The archive to write; target/oci/picket-ARCH.tar when left out.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// A profile of Cargo.toml to build under: `dev` is built in less time, and slower.
    #[arg(long, value_name = "NAME", default_value = PROFILE)]
    profile: String,
}

/// The task. The archive's path is all it writes on stdout.
#[expect(clippy::print_stdout, reason = "the answer, for whoever pipes it on")]
pub(crate) fn run(args: &Args) -> Result<()> {
    let out = match &args.out {
        Some(out) => Some(step::called_from()?.join(out)),
        None => None,
    };
    println!("{}", build(&args.arch, &args.profile, out)?.display());
    Ok(())
}

/// Builds the image for `archs`, this machine's if there is none, under a profile of Cargo.toml;
/// returns the archive's path.
pub(crate) fn build(archs: &[Arch], profile: &str, out: Option<PathBuf>) -> Result<PathBuf> {
    let mut archs = archs.to_vec();
    if archs.is_empty() {
        let here = Arch::here();
        archs.push(here.context("this machine is neither amd64 nor arm64: say --arch")?);
    }
    archs.sort();
    archs.dedup();
    for &arch in &archs {
        let is_foreign = Arch::here() != Some(arch);
        setup::ensure(if is_foreign { What::Cross } else { What::Image })?;
    }
    let out = match out {
        Some(out) => out,
        None => place(&archs)?,
    };
    let images: Result<Vec<Image>> = archs.iter().map(|&arch| image(arch, profile)).collect();
    let written = oci::write(&out, NAME, &images?)?;
    let labels: Vec<&str> = archs.iter().map(|arch| arch.as_label()).collect();
    eprintln!(
        "image {NAME} for {}: {} bytes, {}",
        labels.join(" and "),
        written.bytes,
        written.digest
    );
    Ok(out)
}

/// One architecture's image. Everything else the agent needs is mounted into its container.
fn image(arch: Arch, profile: &str) -> Result<Image> {
    let program = Program {
        package: "agent",
        name: "picket",
        profile,
        strip: "debuginfo",
        revision: revision(),
    };
    let program = program.build(arch)?;
    Ok(Image::new(arch.as_label())
        .file(PROGRAM, 0o755, program)
        .entrypoint([PROGRAM])
        .cmd(["agent"])
        .env("PATH", "/usr/bin"))
}

/// Where the archive is when nothing is said.
fn place(archs: &[Arch]) -> Result<PathBuf> {
    let dir = places::target()?.join("oci");
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let labels: Vec<&str> = archs.iter().map(|arch| arch.as_label()).collect();
    Ok(dir.join(format!("picket-{}.tar", labels.join("-"))))
}

/// The commit that is checked out, and whether it was changed; unknown outside a checkout.
fn revision() -> Option<String> {
    let git = Step::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]);
    let said = git.args(["--exclude", "*"]).output().ok()?;
    Some(said.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_name_the_image_that_is_built() {
        let line = format!("image: {NAME}\n");
        for manifest in [
            include_str!("../../deploy/picket.yaml"),
            include_str!("../../deploy/kustomize/base/agent.yaml"),
        ] {
            assert!(manifest.contains(&line), "{line}");
        }
    }

    #[test]
    fn the_dockerfile_makes_the_same_image() {
        let dockerfile = include_str!("../../deploy/Dockerfile");
        let (_, version) = NAME.rsplit_once(':').unwrap();
        for line in [
            format!("-t REGISTRY/picket:{version} --push .\n"),
            "RUN cargo xtask image --arch \"$TARGETARCH\"".to_owned(),
            format!("cp target/*-unknown-linux-musl/{PROFILE}/picket {PROGRAM}\n"),
            format!("COPY --from=build {PROGRAM} {PROGRAM}\n"),
            format!("ENTRYPOINT [\"{PROGRAM}\"]\nCMD [\"agent\"]\n"),
            "ENV PATH=/usr/bin\n".to_owned(),
        ] {
            assert!(dockerfile.contains(&line), "{line}");
        }
        for arch in Arch::ALL {
            let target = arch.target();
            assert!(target.ends_with("-unknown-linux-musl"), "{target}");
        }
    }

    #[test]
    fn the_archive_is_named_after_what_it_is_for() {
        let place = place(&[Arch::Amd64, Arch::Arm64]).unwrap();
        assert!(place.ends_with("oci/picket-amd64-arm64.tar"));
    }
}
