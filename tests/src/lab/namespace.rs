//! Network namespaces by descriptor, and the private world a lab lives in. Nothing here has a
//! name outside the lab, so the kernel takes all of it away with the lab's last process, however
//! that ends.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// The calling thread's network namespace.
const OWN_NETWORK: &str = "/proc/thread-self/ns/net";

/// A network namespace, kept alive by its descriptor.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// The namespace the calling thread is in.
    pub fn current() -> Result<Self> {
        let file = File::open(OWN_NETWORK).with_context(|| format!("opening {OWN_NETWORK}"))?;
        Ok(Self { file })
    }

    /// Makes an empty namespace. The calling thread stays where it is.
    pub fn create() -> Result<Self> {
        let home = Self::current()?;
        let _return = Return { home };
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace (needs root)")?;
        Self::current()
    }

    /// Runs `work` with the calling thread inside this namespace. Sockets made there stay there.
    pub fn enter<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let home = Self::current()?;
        setns(&self.file, CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
        let _return = Return { home };
        work()
    }

    /// Gives the namespace a name under `/run/netns`, as a CNI plugin would.
    pub fn publish(&self, name: &str) -> Result<PathBuf> {
        let path = Path::new(NETNS_DIR).join(name);
        File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        self.enter(|| {
            mount(
                Some(OWN_NETWORK),
                &path,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .with_context(|| format!("mounting {}", path.display()))
        })?;
        Ok(path)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Brings the thread home, also when the work inside panicked.
struct Return {
    home: Namespace,
}

impl Drop for Return {
    fn drop(&mut self) {
        // A thread that stays in a foreign namespace would configure the wrong one from here on.
        setns(&self.home, CloneFlags::CLONE_NEWNET).expect("the thread's own namespace is held");
    }
}

/// Where the lab's pods have their namespaces.
pub const NETNS_DIR: &str = "/run/netns";

/// Moves the calling thread, and all it starts, into a world of its own: network, mounts, and
/// private `/sys`, `/sys/fs/bpf` and `/run`.
pub fn leave_the_machine() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .context("making the lab's network and mount namespaces (needs root)")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cutting the lab's mounts off from the machine's")?;
    for (kind, target) in [("sysfs", "/sys"), ("bpf", "/sys/fs/bpf"), ("tmpfs", "/run")] {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), none)
            .with_context(|| format!("mounting the lab's own {target}"))?;
    }
    // What a CNI and an agent keep on the machine is not the lab's to touch.
    for target in ["/etc/cni", "/opt/cni", "/var/lib/cni", "/var/lib/picket"] {
        if Path::new(target).is_dir() {
            mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::empty(), none)
                .with_context(|| format!("hiding the machine's {target} from the lab"))?;
        }
    }
    fs::create_dir_all(NETNS_DIR).with_context(|| format!("creating {NETNS_DIR}"))
}

/// Sets a network sysctl of the calling thread's namespace, for example `ipv4/ip_forward`.
pub fn sysctl(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net").join(name);
    fs::write(&path, value).with_context(|| format!("writing {value} to {}", path.display()))
}
