//! Where a cluster's files are, who may change it now, and how all of it goes away: found by what
//! is there, not by what was written down, so that an end at any moment leaves nothing behind.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::cgroup;
use super::process::{self, Look, wait_for};
use crate::places;

/// Every program of a cluster has this variable, whose value is the cluster's directory.
pub(super) const MARK: &str = "PICKET_CLUSTER_STATE";

/// How long processes that were killed, and their cgroups, may take to go.
const END: Duration = Duration::from_secs(30);

/// The directory of the one cluster there can be.
#[derive(Debug)]
pub(super) struct State {
    dir: PathBuf,
}

/// Only who holds it may make or end a cluster.
#[derive(Debug)]
pub(super) struct Claim {
    _lock: File,
}

impl State {
    /// There need be no cluster yet.
    pub(super) fn find() -> Result<Self> {
        let dir = places::cache()?.join("cluster/run");
        Ok(Self { dir })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file of whoever administers the cluster; it is there when the cluster is.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// kubectl's memory of the API; else it would lie about in the home directory.
    pub(super) fn kubectl_cache(&self) -> PathBuf {
        self.dir.join("kubectl-cache")
    }

    /// An error if a whole cluster is here.
    pub(super) fn is_free(&self) -> Result<()> {
        if self.dir.join("complete").is_file() {
            bail!(
                "a cluster is up: `cargo xtask cluster status` shows it, `cargo xtask cluster \
                 down` ends it"
            );
        }
        Ok(())
    }

    /// Everything is there, made of these parts.
    pub(super) fn set_complete(&self, parts: &Path) -> Result<()> {
        let complete = self.dir.join("complete");
        fs::write(&complete, parts.as_os_str().as_encoded_bytes())
            .with_context(|| format!("writing {}", complete.display()))
    }

    /// The parts that the cluster was made of; an error when there is no cluster.
    pub(super) fn parts(&self) -> Result<PathBuf> {
        let parts = fs::read_to_string(self.dir.join("complete")).ok();
        let parts = parts.context("no cluster is up: `cargo xtask cluster up` starts one")?;
        Ok(PathBuf::from(parts))
    }

    /// Claims the cluster for as long as the claim lives.
    pub(super) fn claim(&self) -> Result<Claim> {
        let path = self.dir.with_file_name("run.lock");
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        let lock = File::create(&path).with_context(|| format!("making {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Claim { _lock: lock }),
            Err(TryLockError::WouldBlock) => bail!(
                "another `cargo xtask cluster up` or `down` is at work: wait for it, or end it \
                 and run `cargo xtask cluster down`"
            ),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("locking {}", path.display()))
            }
        }
    }

    /// The first process of a node.
    pub(super) fn pid_of(&self, node: &str) -> Result<u32> {
        let pid = fs::read_to_string(self.dir.join(node).join("pid"));
        pid.ok()
            .and_then(|pid| pid.trim().parse().ok())
            .with_context(|| {
                let nodes = self.nodes().join(", ");
                format!("node {node:?}: there is none; there are: {nodes}")
            })
    }

    /// The names of nodes, control plane included.
    pub(super) fn nodes(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut nodes: Vec<String> = entries
            .filter(|entry| entry.path().join("pid").is_file())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        nodes.sort();
        nodes
    }

    /// Ends whatever there is of a cluster, whole or not; says whether there was anything.
    pub(super) fn clear(&self) -> Result<bool> {
        let mut doomed = self.processes();
        let was_there = !doomed.is_empty() || self.dir.exists() || cgroup::any_left();
        wait_for("the end of the cluster's processes", END, || {
            // A program that was just starting another may have done so.
            doomed.extend(self.processes());
            doomed.retain(|&pid| is_alive(pid));
            if doomed.is_empty() {
                return Ok(Look::There(()));
            }
            let pids: Vec<String> = doomed.iter().map(u32::to_string).collect();
            // Some may be gone by now: the next look tells.
            process::command("kill")
                .arg("-KILL")
                .args(&pids)
                .output()
                .context("starting kill")?;
            Ok(Look::Missing(format!("still there: {}", pids.join(" "))))
        })?;
        wait_for("the end of the cluster's cgroups", END, || {
            cgroup::remove_all();
            Ok(if cgroup::any_left() {
                Look::Missing("a process may still be in one".to_owned())
            } else {
                Look::There(())
            })
        })?;
        cgroup::put_back(&self.dir);
        if self.dir.exists() {
            fs::remove_dir_all(&self.dir)
                .with_context(|| format!("removing {}", self.dir.display()))?;
        }
        Ok(was_there)
    }

    /// The processes that bear the mark. Those in pods do not; they end with their node's first.
    fn processes(&self) -> Vec<u32> {
        let mark = [
            MARK.as_bytes(),
            b"=",
            self.dir.as_os_str().as_encoded_bytes(),
        ]
        .concat();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment
                .split(|&byte| byte == 0)
                .any(|variable| variable == mark)
        })
        .collect()
    }
}

/// A zombie is not: all that was in its namespace ended before it.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state comes after the program's name, which is in brackets and may hold anything.
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
    state.is_some_and(|state| !state.starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use std::process::Child;

    use super::*;

    /// A process of this test alone, gone with it.
    struct Sleeper(Child);

    impl Sleeper {
        fn marked(mark: &Path) -> Self {
            let mut sleep = process::command("sleep");
            let sleep = sleep.arg("600").env(MARK, mark);
            let sleep = sleep.stdout(std::process::Stdio::null());
            Self(sleep.stderr(std::process::Stdio::null()).spawn().unwrap())
        }

        fn is_alive(&self) -> bool {
            is_alive(self.0.id())
        }

        /// It stays a zombie: its parent does not look.
        fn kill(&mut self) {
            self.0.kill().unwrap();
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }

    fn wait_until(what: &str, is_so: impl Fn() -> bool) {
        let look = || {
            Ok(if is_so() {
                Look::There(())
            } else {
                Look::Missing(String::new())
            })
        };
        wait_for(what, Duration::from_secs(10), look).unwrap();
    }

    #[test]
    fn a_marked_process_is_found_until_it_ends_and_an_unmarked_one_is_not() {
        let dir = std::env::temp_dir().join(format!("picket-state-{}", std::process::id()));
        let state = State { dir };
        let mut marked = Sleeper::marked(state.dir());
        let other = Sleeper::marked(Path::new("/elsewhere"));
        wait_until("the mark", || !state.processes().is_empty());
        assert_eq!(state.processes(), [marked.0.id()]);
        assert!(marked.is_alive() && other.is_alive());
        marked.kill();
        wait_until("its end", || !marked.is_alive());
        assert!(state.processes().is_empty());
        assert!(other.is_alive());
    }
}
