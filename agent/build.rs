//! Builds agent-ebpf for the BPF target and leaves its objects in `OUT_DIR`, where
//! `dataplane/objects.rs` embeds them.
//!
//! The BPF compiler and linker are named here and nowhere else. Two compilers will do: Debian's
//! `rustc-web`, whose `core` for BPF comes prebuilt, or rustup's nightly with `rust-src`, which
//! builds `core` itself. Neither touches the toolchain that builds the agent.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the kernel runs: little-endian BPF (both amd64 and arm64 are little-endian).
const TARGET: &str = "bpfel-unknown-none";
/// Binaries of agent-ebpf, each one object.
const OBJECTS: [&str; 2] = ["picket-ebpf", "picket-floor"];
/// Debian's compiler (package `rustc-web`) never shares a path with rustup's.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

fn main() {
    if let Err(message) = build() {
        for line in message.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn build() -> Result<(), String> {
    let workspace = PathBuf::from(var("CARGO_MANIFEST_DIR")?).join("..");
    for watched in ["agent-ebpf", "agent-common", "Cargo.toml", "Cargo.lock"] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(watched).display()
        );
    }
    println!("cargo::rerun-if-changed=build.rs");
    for variable in ["PICKET_BPF_LINKER", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }

    let linker = linker()?;
    println!("cargo::rerun-if-changed={}", linker.display());
    let out = PathBuf::from(var("OUT_DIR")?);
    let target_dir = out.join("bpf");
    let mut cargo = Command::new(var("CARGO")?);
    // The outer build's wrappers, flags and target belong to the host: clippy-driver, coverage,
    // `+crt-static` and the like mean nothing to BPF.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_") && !text.starts_with("CARGO_NET") && text != "CARGO_HOME"
            || text.starts_with("RUSTC")
            || text.starts_with("RUSTDOC")
            || [
                "RUSTFLAGS",
                "CARGO",
                "RUSTUP_TOOLCHAIN",
                "TARGET",
                "LD_LIBRARY_PATH",
            ]
            .contains(&text.as_ref())
        {
            cargo.env_remove(&name);
        }
    }
    compiler(&mut cargo)?;
    cargo
        .args(["build", "--release", "--package", "agent-ebpf", "--bins"])
        .args(["--target", TARGET, "--locked"])
        .arg("--manifest-path")
        .arg(workspace.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &linker)
        // BTF describes the maps; the CPU level is the one Linux 5.10 has (32-bit jumps).
        .env(
            "CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS",
            "-C link-arg=--btf -C target-cpu=v3 -C debuginfo=2",
        );
    // What cargo says of the agent's own features; the programs' layouts are to be the same.
    if env::var_os("CARGO_FEATURE_NEXT_LAYOUT").is_some() {
        cargo.args(["--features", "next-layout"]);
    }
    let output = cargo
        .output()
        .map_err(|error| format!("starting {}: {error}", cargo.get_program().display()))?;
    if !output.status.success() {
        return Err(format!(
            "building the BPF programs failed ({})\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    for object in OBJECTS {
        let built = target_dir.join(TARGET).join("release").join(object);
        let place = out.join(object);
        fs::copy(&built, &place)
            .map_err(|error| format!("copying {} to OUT_DIR: {error}", built.display()))?;
    }
    Ok(())
}

/// Points cargo at whichever BPF compiler this machine has.
fn compiler(cargo: &mut Command) -> Result<(), String> {
    if let Some(libdir) = said_by(
        DEBIAN_RUSTC,
        &["--print", "target-libdir", "--target", TARGET],
    ) && Path::new(&libdir).is_dir()
    {
        // A released compiler builds for BPF only when told that this is meant.
        cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
        return Ok(());
    }
    if let Some(nightly) = said_by("rustup", &["which", "--toolchain", "nightly", "rustc"])
        && let Some(sysroot) = said_by(&nightly, &["--print", "sysroot"])
        && Path::new(&sysroot)
            .join("lib/rustlib/src/rust/library/core")
            .is_dir()
    {
        *cargo = rebased(cargo, &Path::new(&sysroot).join("bin/cargo"));
        cargo.env("RUSTC", nightly).args(["-Z", "build-std=core"]);
        return Ok(());
    }
    Err(format!(
        "no compiler for {TARGET} found: neither {DEBIAN_RUSTC} with a prebuilt core (Debian: \
         rustc-web libstd-rust-web-dev-bpf) nor rustup's nightly with rust-src\n\
         run: cargo xtask setup"
    ))
}

/// The same environment for another cargo: `-Z build-std` wants the nightly one.
fn rebased(command: &Command, program: &Path) -> Command {
    let mut other = Command::new(program);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => other.env(name, value),
            None => other.env_remove(name),
        };
    }
    other
}

/// Finds bpf-linker: where `PICKET_BPF_LINKER` says, else in `PATH`, else where
/// `cargo xtask setup` and `cargo install` leave it.
fn linker() -> Result<PathBuf, String> {
    if let Some(named) = env::var_os("PICKET_BPF_LINKER") {
        let named = PathBuf::from(named);
        return if named.is_file() {
            Ok(named)
        } else {
            Err(format!(
                "PICKET_BPF_LINKER names {}, which is not a file; unset it or run: cargo xtask setup",
                named.display()
            ))
        };
    }
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([home.join(".cache/picket/bin"), home.join(".cargo/bin")])
        .map(|directory| directory.join("bpf-linker"))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| {
            "bpf-linker not found in PATH, ~/.cache/picket/bin or ~/.cargo/bin\n\
             run: cargo xtask setup"
                .to_owned()
        })
}

/// First line of what a program prints, if it runs and succeeds.
fn said_by(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        // The outer cargo's proxies would answer for its own toolchain.
        .env_remove("RUSTUP_TOOLCHAIN")
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .next()?
            .to_owned(),
    )
}

fn var(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("{name} is not set: this is run by cargo only"))
}
