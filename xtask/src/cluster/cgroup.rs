//! The cgroups that nodes' pods are in: made where kubelet wants to find them, removed with all
//! that is in them, in the old kind of hierarchies as in the new.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

const ROOT: &str = "/sys/fs/cgroup";

/// How the names of ours begin.
const PREFIX: &str = "picket-cluster-";

/// What kubelet limits pods by.
const CONTROLLERS: &[&str] = &["cpu", "cpuset", "hugetlb", "memory", "pids"];

/// What the machine's root cgroup did not hand on before: as a file of the state directory.
const HANDED_ON: &str = "cgroup-controllers";

/// Makes a node's in every hierarchy; its path in each, as kubelet takes it.
pub(super) fn make(node: &str, state: &Path) -> Result<String> {
    let name = format!("{PREFIX}{node}");
    hand_on_controllers(state)?;
    for hierarchy in hierarchies() {
        let dir = hierarchy.join(&name);
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        // A new cpuset of the old kind has no CPU, and nothing can run in it.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let (Ok(all), true) = (
                fs::read(hierarchy.join(file)),
                is_old(&hierarchy) && dir.join(file).exists(),
            ) {
                fs::write(dir.join(file), all)
                    .with_context(|| format!("writing {file} of {}", dir.display()))?;
            }
        }
    }
    Ok(format!("/{name}"))
}

/// Whether a node's is left in some hierarchy.
pub(super) fn any_left() -> bool {
    hierarchies()
        .iter()
        .any(|hierarchy| !ours(hierarchy).is_empty())
}

/// Removes all nodes'; those with a process in them stay.
pub(super) fn remove_all() {
    for hierarchy in hierarchies() {
        for dir in ours(&hierarchy) {
            remove(&dir);
        }
    }
}

/// Takes back from the machine's cgroups what they were handed for ours. What somebody else uses by
/// now stays.
pub(super) fn put_back(state: &Path) {
    let added = fs::read_to_string(state.join(HANDED_ON)).unwrap_or_default();
    for name in added.split_whitespace() {
        drop(fs::write(control(), format!("-{name}")));
    }
}

/// Where there is one hierarchy, its root must let its children have the controllers. Written down
/// first: what this changes of the machine is put back.
fn hand_on_controllers(state: &Path) -> Result<()> {
    if is_old(Path::new(ROOT)) {
        return Ok(());
    }
    let read = |file: &str| {
        let path = Path::new(ROOT).join(file);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let (there, handed_on) = (read("cgroup.controllers")?, read("cgroup.subtree_control")?);
    let lacking = lacking(&there, &handed_on);
    if lacking.is_empty() {
        return Ok(());
    }
    let file = state.join(HANDED_ON);
    fs::write(&file, lacking.join(" ")).with_context(|| format!("writing {}", file.display()))?;
    for name in lacking {
        fs::write(control(), format!("+{name}")).with_context(|| {
            format!(
                "writing +{name} to {}: where processes are in the root cgroup itself, as in most \
                 containers, nodes cannot have cgroups",
                control().display()
            )
        })?;
    }
    Ok(())
}

/// What kubelet limits pods by, of what is `there`, as far as it is not `handed_on`.
fn lacking<'a>(there: &'a str, handed_on: &str) -> Vec<&'a str> {
    let handed_on: Vec<&str> = handed_on.split_whitespace().collect();
    there
        .split_whitespace()
        .filter(|name| CONTROLLERS.contains(name) && !handed_on.contains(name))
        .collect()
}

fn control() -> PathBuf {
    Path::new(ROOT).join("cgroup.subtree_control")
}

/// The only hierarchy of the new kind; else those of the old, each its own directory.
fn hierarchies() -> Vec<PathBuf> {
    if !is_old(Path::new(ROOT)) {
        return vec![PathBuf::from(ROOT)];
    }
    let entries = fs::read_dir(ROOT).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path()).collect()
}

fn is_old(hierarchy: &Path) -> bool {
    !hierarchy.join("cgroup.controllers").exists()
}

fn ours(hierarchy: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(hierarchy).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .map(|entry| entry.path())
        .collect()
}

/// Its children first: their files go with them.
fn remove(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    // Whether it worked is seen by looking again.
    drop(fs::remove_dir(dir));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_controllers_that_are_there_and_not_handed_on_are_lacking() {
        assert_eq!(
            lacking("cpuset cpu io memory pids\n", "cpu memory\n"),
            ["cpuset", "pids"]
        );
        assert!(lacking("cpu\n", "cpu pids\n").is_empty());
    }
}
