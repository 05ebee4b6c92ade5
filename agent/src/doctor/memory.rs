//! Room for the maps: the memory limit of this process's control group.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Check, Finding};

/// What programs and maps take while they are loaded, and room for the pods of a usual node.
const ENOUGH: u64 = 256 << 20;
const GROUPS: &str = "/sys/fs/cgroup";

/// What was read of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Memory {
    /// Least limit of the group and those it is in, in bytes.
    Limited(u64),
    /// None of them has one.
    Unlimited,
    /// The groups cannot be seen.
    Unseen,
}

impl Memory {
    pub(super) fn read() -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let Some((tree, file, group)) = group(&own) else {
            return Self::Unseen;
        };
        let tree = Path::new(GROUPS).join(tree);
        let path = tree.join(group);
        let groups: Vec<PathBuf> = path
            .ancestors()
            .take_while(|at| at.starts_with(&tree))
            .map(Path::to_owned)
            .collect();
        let limits: Vec<String> = groups
            .iter()
            .filter_map(|group| fs::read_to_string(group.join(file)).ok())
            .collect();
        Self::of(tree.exists(), &limits)
    }

    /// Limits as the files have them: bytes, or `max`; version 1 writes a number beyond all memory.
    fn of(is_seen: bool, limits: &[String]) -> Self {
        if !is_seen {
            return Self::Unseen;
        }
        let bytes = limits
            .iter()
            .filter_map(|limit| limit.trim().parse::<u64>().ok());
        match bytes.min() {
            Some(least) if least < 1 << 50 => Self::Limited(least),
            Some(_) | None => Self::Unlimited,
        }
    }

    pub(super) fn judge(&self) -> Finding {
        match self {
            Self::Limited(bytes) if *bytes < ENOUGH => Finding::warning(
                Check::Memory,
                format!(
                    "the control group allows {} MiB: maps count, too, and some 115 MiB are taken \
                     before the first pod",
                    bytes >> 20
                ),
                "give the agent no memory limit: one that strikes keeps policy from being written",
            ),
            Self::Limited(bytes) => Finding::ok(
                Check::Memory,
                format!("the control group allows {} MiB", bytes >> 20),
            ),
            Self::Unlimited => Finding::ok(Check::Memory, "no limit of the control group"),
            Self::Unseen => Finding::unknown(
                Check::Memory,
                format!("no control group of this process is below {GROUPS}"),
                "nothing, unless the agent has a memory limit: then mount the control groups",
            ),
        }
    }
}

/// Of `/proc/self/cgroup`: the tree below [`GROUPS`], the limit's file, and the group in that tree.
fn group(own: &str) -> Option<(&'static str, &'static str, &str)> {
    let mut unified = None;
    for line in own.lines() {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let path = path.trim_start_matches('/');
        if controllers.split(',').any(|one| one == "memory") {
            return Some(("memory", "memory.limit_in_bytes", path));
        }
        if controllers.is_empty() {
            unified = Some(("", "memory.max", path));
        }
    }
    unified
}

#[cfg(test)]
mod tests {
    use super::super::Judgement;
    use super::*;

    #[test]
    fn the_group_is_found_in_either_version() {
        assert_eq!(
            group("0::/kubepods.slice/pod1\n"),
            Some(("", "memory.max", "kubepods.slice/pod1"))
        );
        assert_eq!(
            group("5:cpu,cpuacct:/a\n3:memory:/kubepods/pod1\n0::/\n"),
            Some(("memory", "memory.limit_in_bytes", "kubepods/pod1"))
        );
        assert_eq!(group("5:cpu:/a\n"), None);
    }

    #[test]
    fn the_least_limit_counts_and_a_small_one_is_a_warning() {
        let of = |limits: &[&str]| {
            let limits: Vec<String> = limits.iter().map(|limit| (*limit).to_owned()).collect();
            Memory::of(true, &limits)
        };
        assert_eq!(of(&["max\n", "134217728\n"]), Memory::Limited(128 << 20));
        assert_eq!(of(&["max\n", "9223372036854771712\n"]), Memory::Unlimited);
        assert_eq!(of(&[]), Memory::Unlimited);
        assert_eq!(Memory::of(false, &[]), Memory::Unseen);
        let small = Memory::Limited(128 << 20).judge();
        assert!(
            matches!(small.judgement, Judgement::Warning(_)),
            "{small:?}"
        );
        assert_eq!(Memory::Limited(1 << 30).judge().judgement, Judgement::Ok);
    }
}
