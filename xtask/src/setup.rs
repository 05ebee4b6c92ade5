//! What a machine needs: says what is missing, why, and how to get it; then gets it.
//!
//! Other tasks call [`ensure`] before they build; when nothing is missing it costs milliseconds.

use std::env;
use std::fs;
use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::arch::Arch;
use crate::go;
use crate::places;
use crate::step::Step;

const BPF_LINKER: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";
const INSTALL: [&str; 4] = ["install", "-y", "-qq", "--no-install-recommends"];

/// What to install for what.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Do not ask before installing.
    #[arg(long, short)]
    yes: bool,
    /// What the machine shall be able to do.
    #[arg(long, value_enum, default_value_t = What::All)]
    what: What,
}

/// An ability that takes more than stable Rust.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum What {
    /// Build the agent, whose kernel programs need a BPF compiler and linker.
    Bpf,
    /// Build and run the lab and the demo.
    Lab,
    /// Boot other kernels.
    Vm,
    /// Boot arm64 kernels. Not part of everything: only `cargo xtask test vm` with `--thorough` or
    /// an arm64 kernel wants it.
    Arm64,
    /// Build the container image for this machine's architecture.
    Image,
    /// Build it for the other one, too. Not part of everything.
    Cross,
    /// Run etcd and a Kubernetes API server: `cargo xtask test api`.
    Api,
    /// Run a whole Kubernetes cluster: `cargo xtask cluster`, `cargo xtask test e2e`.
    Cluster,
    /// Fuzz.
    Fuzz,
    /// Check format and lints.
    Lint,
    /// Everything.
    All,
}

impl What {
    fn includes(self, part: Self) -> bool {
        self == part
            || (self == Self::All && !matches!(part, Self::Arm64 | Self::Cross))
            || matches!(
                (self, part),
                (
                    Self::Lab | Self::Fuzz | Self::Image | Self::Cross | Self::Arm64,
                    Self::Bpf
                ) | (Self::Cross, Self::Image)
                    | (Self::Arm64, Self::Vm | Self::Cross)
                    | (Self::Cluster, Self::Api)
            )
    }
}

/// One thing that is missing.
struct Missing {
    what: String,
    why: &'static str,
    remedy: Remedy,
}

enum Remedy {
    /// A Debian package.
    Apt(&'static str),
    /// A tool built from crates.io into the cache; wants its packages first.
    BpfLinker,
    /// The Go command, from Debian, into the cache.
    Go,
    /// A component of the Rust toolchain.
    Component(&'static str),
    /// A target of the Rust toolchain.
    Target(&'static str),
}

impl Remedy {
    /// What gets it: packages are installed all at once, Go is unpacked, both elsewhere.
    fn step(&self) -> Result<Option<Step>> {
        Ok(Some(match self {
            Self::Apt(_) | Self::Go => return Ok(None),
            Self::BpfLinker => Step::cargo(["install", "bpf-linker", "--locked", "--version"])
                .args([BPF_LINKER, "--no-default-features", "--features", "llvm-22"])
                .arg("--root")
                .arg(places::cache()?)
                .env("LLVM_PREFIX", LLVM),
            Self::Component(name) => Step::new("rustup").args(["component", "add", name]),
            Self::Target(name) => Step::new("rustup").args(["target", "add", name]),
        }))
    }

    /// What else gets it, said when the step failed.
    fn other_way(&self) -> Option<String> {
        let Self::Target(name) = self else {
            return None;
        };
        Some(format!(
            "without rustup, or where it does not answer: unpack the archive rust-std of the very \
             version that `rustc --version` says, for {name}, from \
             https://forge.rust-lang.org/infra/other-installation-methods.html, and in it run: \
             ./install.sh --prefix=\"$(rustc --print sysroot)\""
        ))
    }
}

/// The task: report, ask, install.
pub(crate) fn run(args: &Args) -> Result<()> {
    let missing = missing(args.what)?;
    if missing.is_empty() {
        eprintln!("nothing is missing");
        return Ok(());
    }
    report(&missing)?;
    if !args.yes && io::stdin().is_terminal() && !agreed()? {
        bail!("nothing was installed");
    }
    install(&missing)
}

/// Installs what is missing for `what`, without asking: the caller's task can't go on without.
pub(crate) fn ensure(what: What) -> Result<()> {
    let missing = missing(what)?;
    if missing.is_empty() {
        return Ok(());
    }
    report(&missing)?;
    install(&missing)
}

/// Packages that are needed whatever else is here: for what, which, why.
const PACKAGES: &[(What, &str, &str)] = &[
    (
        What::Lab,
        "iproute2",
        "shows and cleans up the lab's interfaces by hand",
    ),
    (
        What::Lab,
        "nftables",
        "makes the lab's node track and translate connections",
    ),
    (What::Vm, "qemu-system-x86", "boots other kernels"),
    (What::Vm, "busybox-static", "is all the guest's userland"),
    (
        What::Vm,
        "binutils",
        "strip makes what the guest loads small",
    ),
    (
        What::Vm,
        "xz-utils",
        "newer kernels' modules are packed with it",
    ),
    (What::Arm64, "qemu-system-arm", "boots arm64 kernels"),
    (What::Api, "openssl", "makes a cluster's certificates"),
    (
        What::Api,
        "ca-certificates",
        "Go trusts the servers of its modules by them",
    ),
    (What::Cluster, "runc", "starts containers"),
    (
        What::Cluster,
        "containernetworking-plugins",
        "gives pods interfaces and addresses",
    ),
    (
        What::Cluster,
        "iptables",
        "kube-proxy and the port mapping plugin use it",
    ),
    (What::Cluster, "nftables", "kube-proxy uses it"),
    (
        What::Cluster,
        "conntrack",
        "kube-proxy clears stale connections with it",
    ),
    (
        What::Cluster,
        "socat",
        "makes the API server reachable from this machine",
    ),
    (
        What::Cluster,
        "iproute2",
        "joins the nodes by a network of their own",
    ),
];

fn missing(what: What) -> Result<Vec<Missing>> {
    let mut missing = Vec::new();
    let mut package = |name, why| {
        if !has_package(name) {
            missing.push(Missing {
                what: format!("the Debian package {name}"),
                why,
                remedy: Remedy::Apt(name),
            });
        }
    };
    if what.includes(What::Bpf) {
        if !has_nightly_source() {
            package("rustc-web", "compiles the kernel programs: a Rust with BPF");
            package("libstd-rust-web-dev-bpf", "Rust's core library for BPF");
        }
        if has_bpf_linker()? {
            package("libllvm22", "bpf-linker runs on it");
        } else {
            for name in [
                "llvm-22-dev",
                "zlib1g-dev",
                "libzstd-dev",
                "libpolly-22-dev",
                "g++",
            ] {
                package(name, "bpf-linker is built against it");
            }
        }
    }
    for (part, name, why) in PACKAGES {
        if what.includes(*part) {
            package(name, why);
        }
    }
    if what.includes(What::Cross) {
        for arch in others() {
            let (compiler, library) = cross_packages(arch);
            package(compiler, "compiles what dependencies have in C");
            package(library, "the headers that such C includes");
        }
    }
    if what.includes(What::Fuzz) && places::on_path("c++").is_none() {
        package("g++", "compiles libFuzzer");
    }
    if what.includes(What::Bpf) && !has_bpf_linker()? {
        missing.push(Missing {
            what: format!("bpf-linker {BPF_LINKER} (a few minutes to build, once)"),
            why: "links the kernel programs",
            remedy: Remedy::BpfLinker,
        });
    }
    for arch in Arch::ALL {
        let part = if Arch::here() == Some(arch) {
            What::Image
        } else {
            What::Cross
        };
        let target = arch.target();
        if what.includes(part) && !has_target(target)? {
            missing.push(Missing {
                what: format!("Rust's standard library for {target}"),
                why: "builds static programs: the image's, and those of arm64 guests",
                remedy: Remedy::Target(target),
            });
        }
    }
    if what.includes(What::Api) && go::find()?.is_none() {
        missing.push(Missing {
            what: "Go 1.21 or newer".to_owned(),
            why: "builds the parts of a cluster from their published sources",
            remedy: Remedy::Go,
        });
    }
    if what.includes(What::Lint) {
        for (tool, component) in [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")] {
            if !Step::new(tool).arg("--version").succeeds() {
                missing.push(Missing {
                    what: format!("the toolchain's {component}"),
                    why: "`cargo xtask check` runs it",
                    remedy: Remedy::Component(component),
                });
            }
        }
    }
    Ok(missing)
}

/// Architectures that are not this machine's.
fn others() -> impl Iterator<Item = Arch> {
    Arch::ALL
        .into_iter()
        .filter(|arch| Arch::here() != Some(*arch))
}

/// Debian's cross compiler for an architecture, and its C library.
const fn cross_packages(arch: Arch) -> (&'static str, &'static str) {
    match arch {
        Arch::Amd64 => ("gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"),
        Arch::Arm64 => ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"),
    }
}

fn report(missing: &[Missing]) -> Result<()> {
    eprintln!("this machine lacks:");
    for item in missing {
        eprintln!("  {}: {}", item.what, item.why);
    }
    eprintln!("to get it:");
    let packages = packages(missing);
    if !packages.is_empty() {
        eprintln!("  {}", Step::new("apt-get").args(INSTALL).args(packages));
    }
    for item in missing {
        if let Remedy::Go = item.remedy {
            eprintln!("  {}", go::HOW);
        }
        if let Some(step) = item.remedy.step()? {
            eprintln!("  {step}");
        }
    }
    Ok(())
}

fn agreed() -> Result<bool> {
    eprintln!("install it? [Y/n]");
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .context("reading the answer")?;
    Ok(matches!(answer.trim(), "" | "y" | "Y" | "yes"))
}

fn install(missing: &[Missing]) -> Result<()> {
    let packages = packages(missing);
    if !packages.is_empty() {
        install_packages(&packages)?;
    }
    for item in missing {
        if let Remedy::Go = item.remedy {
            go::install()?;
        }
        let Some(step) = item.remedy.step()? else {
            continue;
        };
        let gotten = step.run();
        match item.remedy.other_way() {
            Some(other_way) => gotten.context(other_way)?,
            None => gotten?,
        }
    }
    eprintln!("nothing is missing any more");
    Ok(())
}

fn packages(missing: &[Missing]) -> Vec<&'static str> {
    let packages = missing.iter().filter_map(|item| match item.remedy {
        Remedy::Apt(name) => Some(name),
        Remedy::BpfLinker | Remedy::Go | Remedy::Component(_) | Remedy::Target(_) => None,
    });
    packages.collect()
}

fn install_packages(packages: &[&str]) -> Result<()> {
    if places::on_path("apt-get").is_none() {
        bail!(
            "packages can only be installed with apt-get (Debian), which is not here: install \
             {} by hand; without Debian's BPF compiler a nightly Rust serves: \
             rustup toolchain install nightly --component rust-src",
            packages.join(", ")
        );
    }
    let apt = || {
        Step::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .silent()
    };
    // A third party's source that does not answer must not stop us: the install will tell.
    if let Err(error) = apt().args(["update", "-qq"]).with_root("apt-get")?.run() {
        eprintln!("warning: {error:#}; going on with the package lists that are here");
    }
    apt()
        .args(INSTALL)
        .args(packages)
        .with_root("apt-get")?
        .run()
}

/// Whether dpkg knows the package as unpacked here. Reads a file name, so it costs nothing.
fn has_package(name: &str) -> bool {
    let info = Path::new("/var/lib/dpkg/info");
    let arch = Arch::here().map_or(env::consts::ARCH, Arch::as_label);
    info.join(format!("{name}.list")).exists() || info.join(format!("{name}:{arch}.list")).exists()
}

/// Whether a nightly toolchain can build `core` for BPF by itself.
fn has_nightly_source() -> bool {
    let home = env::var_os("RUSTUP_HOME").map(Into::into).or_else(|| {
        let home = env::var_os("HOME")?;
        Some(Path::new(&home).join(".rustup"))
    });
    let Some(toolchains) = home.and_then(|home| fs::read_dir(home.join("toolchains")).ok()) else {
        return false;
    };
    // build.rs asks for `nightly`, not for one of a certain day.
    let nightly = format!("nightly-{}", env::consts::ARCH);
    toolchains
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&nightly))
        .any(|entry| {
            entry
                .path()
                .join("lib/rustlib/src/rust/library/core")
                .is_dir()
        })
}

fn has_bpf_linker() -> Result<bool> {
    Ok(
        places::cache()?.join("bin/bpf-linker").is_file()
            || places::on_path("bpf-linker").is_some(),
    )
}

/// Whether the toolchain that builds this workspace has a target's standard library.
fn has_target(target: &str) -> Result<bool> {
    let dir = Step::new("rustc")
        .args(["--print", "target-libdir", "--target", target])
        .output()?;
    Ok(Path::new(dir.trim()).is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lab_needs_what_building_the_agent_needs() {
        assert!(What::Lab.includes(What::Bpf));
        assert!(!What::Bpf.includes(What::Lab));
        assert!(What::All.includes(What::Vm));
    }

    #[test]
    fn everything_is_what_checks_and_tests_need() {
        assert!(!What::All.includes(What::Arm64) && !What::All.includes(What::Cross));
        for part in [What::Lab, What::Api, What::Cluster, What::Image, What::Lint] {
            assert!(What::All.includes(part), "{part:?}");
        }
        assert!(What::Arm64.includes(What::Vm) && What::Arm64.includes(What::Bpf));
        assert!(What::Arm64.includes(What::Cross) && What::Cross.includes(What::Image));
    }

    #[test]
    fn a_target_can_be_had_without_rustup() {
        let other_way = Remedy::Target(Arch::Arm64.target()).other_way().unwrap();
        assert!(
            other_way.contains(Arch::Arm64.target()) && other_way.contains("install.sh --prefix")
        );
        assert!(Remedy::Component("clippy").other_way().is_none());
    }

    #[test]
    fn a_package_that_does_not_exist_is_not_here() {
        assert!(!has_package("picket-no-such-package"));
    }
}
