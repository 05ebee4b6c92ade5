//! Images that every node of the cluster has: what holds a pod's namespaces, the cluster's DNS,
//! and upstream's test server with a shell beside it. Made of the parts, once.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result};

use super::{node, process};
use crate::apt::Archive;
use crate::arch::Arch;
use crate::oci::{self, Image};

/// What holds a pod's namespaces. Ours, so it bears nobody else's name.
pub(super) const PAUSE: &str = "localhost/picket-cluster/pause:1";

/// Upstream's, of the version that is built, so they bear upstream's names: manifests that use them
/// work in any cluster.
const COREDNS: &str = "registry.k8s.io/coredns/coredns:v1.14.7";
const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";

/// What tests type into a pod's shell.
const APPLETS: &[&str] = &[
    "cat", "date", "echo", "env", "false", "grep", "head", "hostname", "id", "ifconfig", "ip",
    "kill", "ls", "mkdir", "nc", "netstat", "nslookup", "ping", "ps", "rm", "sed", "seq", "sh",
    "sleep", "tail", "timeout", "touch", "true", "wc", "wget",
];

const BUSYBOX: &str = "/bin/busybox";

/// What busybox runs on: Debian's libc, and what it looks up names with. The libc of a static one
/// can't look up any.
const LIBRARIES: &[&str] = &[
    "libc.so.6",
    "libresolv.so.2",
    "libnss_dns.so.2",
    "libnss_files.so.2",
];

/// The release whose busybox it is.
const RELEASE: &str = "bookworm";

/// What is in the images is decided in these files.
const DECIDED: [&str; 2] = [include_str!("images.rs"), include_str!("../oci.rs")];

/// An image that every node has.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Pause,
    CoreDns,
    Agnhost,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Pause, Self::CoreDns, Self::Agnhost];

    /// Its archive, and its name.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Pause => ("pause.tar", PAUSE),
            Self::CoreDns => ("coredns.tar", COREDNS),
            Self::Agnhost => ("agnhost.tar", AGNHOST),
        }
    }

    fn image(self, arch: Arch, parts: &Path, dir: &Path) -> Result<Image> {
        let image = Image::new(arch.as_label());
        Ok(match self {
            Self::Pause => image
                .file("/pause", 0o755, parts.join("pause"))
                .entrypoint(["/pause"])
                .user("65535:65535"),
            Self::CoreDns => image
                .file("/coredns", 0o755, parts.join("coredns"))
                .entrypoint(["/coredns"]),
            Self::Agnhost => agnhost(arch, parts, dir)?,
        })
    }
}

/// The archives, made of the programs in `parts` where they are not there yet.
pub(super) fn ensure(parts: &Path) -> Result<Vec<PathBuf>> {
    let dir = parts.join(format!("images-{}", oci::key(DECIDED.concat().as_bytes())));
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let arch = Arch::here().context("this machine is neither amd64 nor arm64")?;
    let mut archives = Vec::new();
    for kind in Kind::ALL {
        let (file, name) = kind.names();
        let archive = dir.join(file);
        if !archive.is_file() {
            oci::write(&archive, name, &[kind.image(arch, parts, &dir)?])?;
        }
        archives.push(archive);
    }
    Ok(archives)
}

/// Busybox is fetched into `dir` for as long as this takes.
fn agnhost(arch: Arch, parts: &Path, dir: &Path) -> Result<Image> {
    let (lists, debian) = (dir.join("lists"), dir.join("debian"));
    for old in [&lists, &debian] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("removing {}", old.display()))?;
        }
    }
    fs::create_dir_all(&debian).with_context(|| format!("making {}", debian.display()))?;
    let archive = Archive::open(&lists, RELEASE, arch.as_label())?;
    archive.unpack(&["busybox", "libc6"].map(str::to_owned), &debian)?;
    let image = userland(arch, parts, &debian)?;
    for done in [&lists, &debian] {
        fs::remove_dir_all(done).with_context(|| format!("removing {}", done.display()))?;
    }
    Ok(image)
}

fn userland(arch: Arch, parts: &Path, debian: &Path) -> Result<Image> {
    let read = |path: &str| {
        let path = debian.join(path);
        fs::read(&path).with_context(|| format!("reading {}", path.display()))
    };
    let (libraries, loader) = match arch {
        Arch::Amd64 => ("lib/x86_64-linux-gnu", "lib64/ld-linux-x86-64.so.2"),
        Arch::Arm64 => ("lib/aarch64-linux-gnu", "lib/ld-linux-aarch64.so.1"),
    };
    let mut image = Image::new(arch.as_label())
        .file("/agnhost", 0o755, parts.join("agnhost"))
        .symlink("/agnhost-2", "/agnhost")
        .text(BUSYBOX, 0o755, read("bin/busybox")?)
        .text(
            "/etc/passwd",
            0o644,
            "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
        )
        .text("/etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n")
        .text("/etc/nsswitch.conf", 0o644, "hosts: files dns\n")
        .directory("/tmp", 0o1777)
        .directory("/uploads", 0o777)
        .entrypoint(["/agnhost"])
        .cmd(["pause"])
        .env("PATH", "/bin:/");
    for library in LIBRARIES {
        let path = format!("{libraries}/{library}");
        let contents = read(&path)?;
        image = image.text(&path, 0o644, contents);
    }
    // A link in the package; its name is what programs ask for.
    let name = loader.rsplit('/').next().unwrap_or(loader);
    image = image.text(loader, 0o755, read(&format!("{libraries}/{name}"))?);
    for applet in APPLETS {
        image = image.symlink(&format!("/bin/{applet}"), BUSYBOX);
    }
    Ok(image)
}

/// Loads archives on nodes, which are named by their first process, all at once.
pub(super) fn load(nodes: &[(String, u32)], archives: &[PathBuf]) -> Result<()> {
    let import = |name: &str, pid: u32| -> Result<()> {
        for archive in archives {
            let mut ctr = node::command(pid, "ctr");
            ctr.args(["--namespace", "k8s.io", "images", "import"])
                .arg(archive);
            process::output(&mut ctr)
                .with_context(|| format!("{name}: loading {}", archive.display()))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let imports: Vec<_> = nodes
            .iter()
            .map(|(name, pid)| scope.spawn(move || import(name, *pid)))
            .collect();
        for import in imports {
            match import.join() {
                Ok(outcome) => outcome?,
                Err(panicked) => std::panic::resume_unwind(panicked),
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clusters_dns_runs_the_image_that_nodes_have() {
        assert!(include_str!("dns.yaml").contains(&format!("image: {COREDNS}\n")));
        let pins = include_str!("parts/coredns/go.mod");
        let (_, version) = COREDNS.rsplit_once(':').unwrap();
        assert!(pins.contains(&format!("github.com/coredns/coredns {version}\n")));
    }

    #[test]
    fn tests_and_help_name_the_test_server_that_nodes_have() {
        for text in [
            include_str!("../cluster.rs"),
            include_str!("../../../tests/tests/cluster/namespace.rs"),
        ] {
            assert!(text.contains(AGNHOST), "{AGNHOST}");
        }
    }

    #[test]
    fn every_plugin_that_the_clusters_dns_is_told_to_use_is_built_and_no_other() {
        let file = include_str!("dns.yaml");
        let (_, server) = file.split_once(".:53 {\n").unwrap();
        let (server, _) = server.split_once("\n    }\n").unwrap();
        let told = server.lines().filter_map(|line| {
            let line = line.strip_prefix("        ")?;
            (!line.starts_with(' ') && line != "}").then(|| line.split(' ').next().unwrap())
        });
        let mut told: Vec<&str> = told.collect();
        told.sort_unstable();
        let built = include_str!("parts/coredns/main.go").lines();
        let built = built.filter_map(|line| line.strip_suffix('"')?.split_once("/plugin/"));
        let built: Vec<&str> = built.map(|(_, name)| name).collect();
        assert_eq!(built, told);
    }
}
