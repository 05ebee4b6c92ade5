//! A memory cgroup of one process: what it takes, kernel memory and maps included, and what it may.
//! The machine's hierarchy, of the new kind or the old, is mounted into the lab.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount, umount};

/// Where the hierarchy is mounted; `/run` is the lab's own.
const ROOT: &str = "/run/lab/cgroup";

/// Removed when it is dropped, which its process has to be first.
#[derive(Debug)]
pub struct MemoryCgroup {
    directory: PathBuf,
    is_old: bool,
}

impl MemoryCgroup {
    /// An empty one.
    pub fn make() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = Path::new(ROOT);
        let is_old = mount_memory(root)?;
        let directory = root.join(format!("picket-lab-{}-{number}", std::process::id()));
        fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        Ok(Self { directory, is_old })
    }

    /// Takes a process in; what it takes from now on counts.
    pub fn take(&self, pid: u32) -> Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// The kernel ends what takes more.
    pub fn limit(&self, bytes: u64) -> Result<()> {
        self.write(
            self.named("memory.limit_in_bytes", "memory.max"),
            &bytes.to_string(),
        )
    }

    /// Bytes that its processes take, with what the kernel keeps for them.
    pub fn bytes(&self) -> Result<u64> {
        let file = self
            .directory
            .join(self.named("memory.usage_in_bytes", "memory.current"));
        let text =
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        text.trim()
            .parse()
            .with_context(|| format!("{} says {text:?}", file.display()))
    }

    /// How many of its processes the kernel has ended because they took more than they may.
    pub fn kills(&self) -> Result<u64> {
        let file = self
            .directory
            .join(self.named("memory.oom_control", "memory.events"));
        let text =
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        let kills = kills.and_then(|number| number.parse().ok());
        kills.with_context(|| format!("{} says {text:?}", file.display()))
    }

    fn named<'a>(&self, old: &'a str, new: &'a str) -> &'a str {
        if self.is_old { old } else { new }
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let file = self.directory.join(file);
        fs::write(&file, text).with_context(|| format!("writing {text} to {}", file.display()))
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.directory));
    }
}

/// Mounts the hierarchy that memory belongs to; true when it is one of the old kind.
fn mount_memory(root: &Path) -> Result<bool> {
    fs::create_dir_all(root).with_context(|| format!("making {}", root.display()))?;
    let mount = |kind: &str, options: Option<&str>| {
        mount(Some(kind), root, Some(kind), MsFlags::empty(), options)
            .with_context(|| format!("mounting a {kind} hierarchy on {}", root.display()))
    };
    if root.join("cgroup.subtree_control").exists() {
        return Ok(false);
    }
    if root.join("memory.limit_in_bytes").exists() {
        return Ok(true);
    }
    mount("cgroup2", None)?;
    let handed_on = fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default();
    if handed_on.split_whitespace().any(|each| each == "memory") {
        return Ok(false);
    }
    umount(root).with_context(|| format!("unmounting {}", root.display()))?;
    mount("cgroup", Some("memory"))?;
    Ok(true)
}
