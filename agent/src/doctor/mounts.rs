//! Directories of the node that the agent needs: there, of the right kind, writable, and showing
//! what comes later.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::mountinfo::{self, Mount, mount_of};
use super::{Check, Finding, Places};
use crate::dataplane::is_bpf_fs;
use crate::endpoints::NamespaceFiles;

/// What was read of a directory.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Directory {
    is_there: bool,
    is_writable: bool,
}

impl Directory {
    /// Of one that is not there yet: whether it could be made.
    fn read(path: &Path, mounts: &[Mount]) -> Self {
        let there = path.ancestors().find(|ancestor| ancestor.exists());
        let may_write = |at: &Path| {
            let is_read_only = mount_of(mounts, at).is_some_and(|mount| mount.is_read_only);
            access(at, Access::WRITE_OK).is_ok() && !is_read_only
        };
        Self {
            is_there: path.is_dir(),
            is_writable: there.is_some_and(may_write),
        }
    }
}

pub(super) fn examine(places: &Places) -> Vec<Finding> {
    let mounts = mountinfo::read();
    let pins = &places.pins;
    let above = pins.parent().unwrap_or(pins);
    let own = [
        ("state", &places.state),
        ("socket", &directory_of(&places.socket)),
    ]
    .map(|(what, path)| (what, path.clone(), Directory::read(path, &mounts)));
    let results = fs::read_dir(&places.cni_results).map(Iterator::count).ok();
    vec![
        bpffs(
            above,
            is_bpf_fs(above) || is_bpf_fs(pins),
            Directory::read(pins, &mounts),
        ),
        netns(
            &places.netns,
            mount_of(&mounts, &places.netns).is_some_and(|mount| mount.receives),
            NamespaceFiles::count(&places.netns),
        ),
        results_of(&places.cni_results, results),
        directories(&own),
    ]
}

fn directory_of(file: &Path) -> PathBuf {
    file.parent().unwrap_or(file).to_owned()
}

fn bpffs(above: &Path, is_bpf: bool, pins: Directory) -> Finding {
    let place = above.display();
    if !is_bpf {
        return Finding::problem(
            Check::Bpffs,
            format!("{place} is on no BPF file system: nothing can be pinned there"),
            format!(
                "mount -t bpf bpf {place}, and in /etc/fstab; in a container mount the node's \
                 {place}, as deploy/picket.yaml does"
            ),
        );
    }
    if !pins.is_writable {
        return Finding::problem(
            Check::Bpffs,
            format!("{place} is a BPF file system that may not be written to"),
            "run as root, and mount it without readOnly; a container's AppArmor profile has to let \
             it write there (deploy/README.md)",
        );
    }
    Finding::ok(Check::Bpffs, format!("{place}, writable"))
}

fn netns(path: &Path, receives: bool, files: Option<NamespaceFiles>) -> Finding {
    let place = path.display();
    let Some(files) = files else {
        return Finding::ok(
            Check::Netns,
            format!("{place} is not there: the first pod makes it"),
        );
    };
    let seen = match files.namespaces {
        1 => "1 network namespace".to_owned(),
        many => format!("{many} network namespaces"),
    };
    let remedy = "mount it with mountPropagation: HostToContainer, as deploy/picket.yaml does";
    if !receives && files.has_unmounted {
        return Finding::problem(
            Check::Netns,
            format!(
                "{place} has files of namespaces that do not show here: those pods are not seen"
            ),
            remedy,
        );
    }
    if !receives {
        return Finding::warning(
            Check::Netns,
            format!("{place}, {seen}; in a container, those of later pods would not show"),
            format!("on the node itself nothing; in a container {remedy}"),
        );
    }
    Finding::ok(Check::Netns, format!("{place}, {seen}"))
}

fn results_of(path: &Path, files: Option<usize>) -> Finding {
    let place = path.display();
    match files {
        Some(files) => Finding::ok(Check::Results, format!("{place}, {files} files")),
        None => Finding::warning(
            Check::Results,
            format!("{place} is not there: only a pod's status tells whose an interface is"),
            "nothing before the first pod; later mount it from the node, or, where the container \
             runtime keeps no results of CNI, use --cni-plugin install",
        ),
    }
}

fn directories(own: &[(&str, PathBuf, Directory)]) -> Finding {
    let locked: Vec<String> = own
        .iter()
        .filter(|(_, _, found)| !found.is_writable)
        .map(|(what, path, _)| format!("{} ({what})", path.display()))
        .collect();
    if locked.is_empty() {
        let all: Vec<String> = own
            .iter()
            .map(|(what, path, found)| {
                let later = if found.is_there {
                    ""
                } else {
                    ", made when an agent starts"
                };
                format!("{} ({what}{later})", path.display())
            })
            .collect();
        return Finding::ok(Check::Directories, all.join(", "));
    }
    Finding::problem(
        Check::Directories,
        format!("no writing to {}", locked.join(", ")),
        "run as root; in a container mount these from the node, without readOnly",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Judgement;
    use super::*;

    const WRITABLE: Directory = Directory {
        is_there: true,
        is_writable: true,
    };

    #[test]
    fn pins_want_a_bpf_file_system_that_can_be_written_to() {
        let place = Path::new("/sys/fs/bpf");
        assert_eq!(bpffs(place, true, WRITABLE).judgement, Judgement::Ok);
        let none = bpffs(place, false, WRITABLE);
        let Judgement::Problem(remedy) = none.judgement else {
            panic!("{none:?}");
        };
        assert!(
            remedy.starts_with("mount -t bpf bpf /sys/fs/bpf"),
            "{remedy}"
        );
        let locked = bpffs(place, true, Directory::default());
        assert!(
            matches!(locked.judgement, Judgement::Problem(_)),
            "{locked:?}"
        );
    }

    #[test]
    fn namespaces_that_do_not_show_are_a_problem_and_a_mount_that_would_hide_them_a_warning() {
        let place = Path::new("/run/netns");
        let files = |has_unmounted| {
            Some(NamespaceFiles {
                namespaces: 2,
                has_unmounted,
            })
        };
        assert_eq!(netns(place, false, None).judgement, Judgement::Ok);
        // One that is about to be mounted is no fault.
        assert_eq!(netns(place, true, files(true)).judgement, Judgement::Ok);
        let hiding = netns(place, false, files(false));
        assert!(
            matches!(hiding.judgement, Judgement::Warning(_)),
            "{hiding:?}"
        );
        let hidden = netns(place, false, files(true));
        assert!(
            matches!(hidden.judgement, Judgement::Problem(_)),
            "{hidden:?}"
        );
    }

    #[test]
    fn missing_results_are_a_warning() {
        let place = Path::new("/var/lib/cni/results");
        assert_eq!(results_of(place, Some(0)).judgement, Judgement::Ok);
        let none = results_of(place, None);
        assert!(matches!(none.judgement, Judgement::Warning(_)), "{none:?}");
    }

    #[test]
    fn a_directory_that_cannot_be_written_to_is_named() {
        let locked = (
            "state",
            PathBuf::from("/var/lib/picket"),
            Directory::default(),
        );
        let fine = ("socket", PathBuf::from("/run/picket"), WRITABLE);
        let finding = directories(&[locked, fine.clone()]);
        assert_eq!(finding.found, "no writing to /var/lib/picket (state)");
        assert!(matches!(finding.judgement, Judgement::Problem(_)));
        assert_eq!(directories(&[fine]).judgement, Judgement::Ok);
    }
}
