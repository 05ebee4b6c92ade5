//! Ground of one thread's own: a network, a view of the mounts and a BPF file system that nobody
//! else has and that the kernel takes away with the thread.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// A directory that every kernel with BPF has; covered for this thread alone.
const BPF_FS: &str = "/sys/fs/bpf";
/// Where the attempt pins, on that private file system.
pub(super) const PINS: &str = "/sys/fs/bpf/picket";
/// Settings of networks; absent where the kernel, or its command line, has no IPv6.
const IPV6: &str = "/proc/sys/net/ipv6";

/// Moves the calling thread there. It cannot come back.
pub(super) fn enter() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .context("making a network and a mount namespace")?;
    let none = None::<&str>;
    // First of all: no mount may reach the node.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cutting our mounts off from the node's")?;
    mount(Some("bpf"), BPF_FS, Some("bpf"), MsFlags::empty(), none)
        .with_context(|| format!("mounting a BPF file system of our own at {BPF_FS}"))?;
    // Containers may not write to their own.
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none)
        .context("mounting a /proc of our own")
}

/// Whether there is IPv6 at all.
pub(super) fn has_ipv6() -> bool {
    Path::new(IPV6).exists()
}

/// Sets a knob of the calling thread's network.
pub(super) fn set(knob: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net").join(knob);
    fs::write(&path, value).with_context(|| format!("writing {value} to {}", path.display()))
}
