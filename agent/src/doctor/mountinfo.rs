//! What is mounted where, and whether what is mounted elsewhere later comes here: mountinfo of
//! proc(5).

use std::fs;
use std::path::{Path, PathBuf};

/// A mount.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Mount {
    /// Where it is.
    pub(super) at: PathBuf,
    /// Type of its file system.
    pub(super) kind: String,
    /// Mounts that are made below it in another mount namespace appear here, too.
    pub(super) receives: bool,
    /// It cannot be written to.
    pub(super) is_read_only: bool,
}

/// Every mount that this process sees; none when they cannot be read.
pub(super) fn read() -> Vec<Mount> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(parse).collect()
}

/// The mount that a path is on: the last of those that lead deepest towards it.
pub(super) fn mount_of<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let above = mounts.iter().filter(|mount| path.starts_with(&mount.at));
    above.max_by_key(|mount| mount.at.components().count())
}

/// `36 35 98:0 /root /mnt ro,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse(line: &str) -> Option<Mount> {
    let (mount, system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(4);
    let at = fields.next()?;
    let options = fields.next()?;
    let mut propagation = fields;
    let mut system = system.split(' ');
    let kind = system.next()?;
    let of_the_system = system.nth(1).unwrap_or_default();
    let is_read_only = |options: &str| options.split(',').any(|option| option == "ro");
    Some(Mount {
        at: PathBuf::from(unescaped(at)),
        kind: kind.to_owned(),
        receives: propagation.any(|tag| tag.starts_with("shared:") || tag.starts_with("master:")),
        is_read_only: is_read_only(options) || is_read_only(of_the_system),
    })
}

/// Blanks and backslashes are written as octal numbers.
fn unescaped(path: &str) -> String {
    let blanks = path.replace("\\040", " ").replace("\\011", "\t");
    blanks.replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTAINER: &str = "\
1507 1391 0:269 / / ro,relatime - overlay overlay rw,lowerdir=/var/lib
1510 1507 0:29 / /sys/fs/bpf rw,nosuid,nodev,noexec,relatime - bpf bpf rw,mode=700
1511 1507 0:26 /netns /run/netns ro,nosuid,nodev master:13 - tmpfs tmpfs rw,size=1639112k
1512 1511 0:4 net:[4026532461] /run/netns/cni-1 ro shared:7 - nsfs nsfs rw
1513 1507 8:1 /x /with\\040blank rw - ext4 /dev/sda1 ro
";

    #[test]
    fn a_containers_mounts_are_told_apart() {
        let mounts: Vec<Mount> = CONTAINER.lines().filter_map(parse).collect();
        assert_eq!(mounts.len(), 5);
        let of = |path: &str| mount_of(&mounts, Path::new(path)).unwrap();
        assert_eq!(of("/sys/fs/bpf/picket").kind, "bpf");
        assert!(!of("/sys/fs/bpf").is_read_only);
        assert!(of("/run/netns").receives && of("/run/netns").is_read_only);
        assert!(!of("/run").receives && of("/run").is_read_only, "that is /");
        assert!(of("/with blank/y").is_read_only, "its file system is");
        assert_eq!(mount_of(&[], Path::new("/")), None);
    }
}
