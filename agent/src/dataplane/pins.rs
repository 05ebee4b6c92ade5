//! The pin directory: where it may be, whose it is, what is in it.
//!
//! Everything is under `<pins>/v<LAYOUT_VERSION>/`: each map by its name, each TCX link as
//! `links/<ifindex>-<program>`, and an empty directory `clsact/<ifindex>` for each qdisc we made.
//!
//! **Invariant:** these names, those of the programs and of the map `ENDPOINTS`, and that both
//! programs read that map, are the same in every layout version: it is how an agent finds what
//! another version's has in force. The lock is on `<pins>` itself, so versions exclude each other.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use agent_common::maps::LAYOUT_VERSION;
use rustix::fs::{FlockOperation, flock, fstatfs};

use super::error::DataplaneError;

/// `f_type` of a BPF file system (linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// One layout version's directory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Version {
    number: u32,
    directory: PathBuf,
}

impl Version {
    fn of(root: &Path, number: u32) -> Self {
        Self {
            number,
            directory: root.join(format!("v{number}")),
        }
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Where its maps are.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where TCX links are.
    pub(crate) fn links(&self) -> PathBuf {
        self.directory.join("links")
    }

    /// Where qdiscs that we made are remembered.
    pub(crate) fn clsact(&self) -> PathBuf {
        self.directory.join("clsact")
    }
}

/// The pin directory, held by this process alone until dropped.
#[derive(Debug)]
pub(crate) struct Pins {
    root: PathBuf,
    /// The lock is on the directory itself, so it holds wherever that is mounted.
    held: File,
}

impl Pins {
    /// Makes the directories where they are missing and takes hold of them.
    pub(crate) fn hold(root: &Path) -> Result<Self, DataplaneError> {
        let parent = root.parent().unwrap_or(root);
        if !is_bpf_fs(parent) && !is_bpf_fs(root) {
            return Err(DataplaneError::NoBpfFs {
                path: root.to_owned(),
            });
        }
        fs::create_dir_all(root).map_err(|source| file("making pin directory", root, source))?;
        let pins = Self::hold_existing(root)?;
        let own = pins.own();
        for directory in [own.directory.clone(), own.links(), own.clsact()] {
            fs::create_dir_all(&directory)
                .map_err(|source| file("making pin directory", &directory, source))?;
        }
        Ok(pins)
    }

    /// Takes hold of a pin directory that exists.
    pub(crate) fn hold_existing(root: &Path) -> Result<Self, DataplaneError> {
        let held = File::open(root).map_err(|source| file("opening", root, source))?;
        flock(held.as_fd(), FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            if error == rustix::io::Errno::WOULDBLOCK {
                DataplaneError::Held {
                    path: root.to_owned(),
                }
            } else {
                file("locking", root, error.into())
            }
        })?;
        Ok(Self {
            root: root.to_owned(),
            held,
        })
    }

    /// The directory as it was given.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// This version's part of it.
    pub(crate) fn own(&self) -> Version {
        Version::of(&self.root, LAYOUT_VERSION)
    }

    /// Every version's part that there is, this one's included.
    pub(crate) fn versions(&self) -> Result<Vec<Version>, DataplaneError> {
        versions(&self.root)
    }

    /// The other versions' parts.
    pub(crate) fn others(&self) -> Result<Vec<Version>, DataplaneError> {
        let mut others = self.versions()?;
        others.retain(|version| version.number != LAYOUT_VERSION);
        Ok(others)
    }
}

impl Drop for Pins {
    /// Lets go at once. Closing alone would not: a child that is just being started shares the
    /// open directory until it executes its program.
    fn drop(&mut self) {
        if let Err(error) = flock(self.held.as_fd(), FlockOperation::Unlock) {
            tracing::debug!(%error, "unlocking the pin directory; closing it does that, too");
        }
    }
}

/// True when `path` exists and is on a BPF file system.
pub(crate) fn is_bpf_fs(path: &Path) -> bool {
    File::open(path)
        .ok()
        .and_then(|directory| fstatfs(directory).ok())
        .is_some_and(|stat| stat.f_type == BPF_FS_MAGIC)
}

/// Names in a directory; none when there is no directory.
pub(crate) fn names(directory: &Path) -> Result<Vec<String>, DataplaneError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(file("listing", directory, source)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| file("listing", directory, source))?;
        names.extend(entry.file_name().to_str().map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Versions of ours under a pin directory, this one and others.
pub(crate) fn versions(root: &Path) -> Result<Vec<Version>, DataplaneError> {
    let numbers = names(root)?.into_iter().filter_map(|name| {
        let number = name.strip_prefix('v')?.parse().ok()?;
        // `v01` is nobody's.
        (name == format!("v{number}")).then_some(number)
    });
    Ok(numbers.map(|number| Version::of(root, number)).collect())
}

/// How many interfaces have links or qdiscs of ours pinned, of any version; 0 where that is not seen.
pub(crate) fn pinned_interfaces(root: &Path) -> usize {
    let versions = versions(root).unwrap_or_default();
    let directories = versions
        .iter()
        .flat_map(|version| [version.links(), version.clsact()]);
    let pins = directories.flat_map(|directory| names(&directory).unwrap_or_default());
    let interfaces: BTreeSet<u32> = pins.filter_map(|pin| ifindex_of(&pin)).collect();
    interfaces.len()
}

/// Moves a pin, or the mark of a qdisc, to its place in another version's part; one that is gone
/// already is no error.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), DataplaneError> {
    gone_is_fine(fs::rename(from, to), "moving", from)
}

/// Removes a file; one that is gone already is no error.
pub(crate) fn remove_file(path: &Path) -> Result<(), DataplaneError> {
    gone_is_fine(fs::remove_file(path), "removing", path)
}

/// Removes an empty directory; one that is gone already is no error.
pub(crate) fn remove_directory(path: &Path) -> Result<(), DataplaneError> {
    gone_is_fine(fs::remove_dir(path), "removing directory", path)
}

/// Removes everything in a version's directory that is a plain pin, then the directory.
pub(crate) fn remove_version(directory: &Path) -> Result<(), DataplaneError> {
    for name in names(directory)? {
        let path = directory.join(&name);
        if path.is_dir() {
            for inner in names(&path)? {
                let inner = path.join(inner);
                if inner.is_dir() {
                    remove_directory(&inner)?;
                } else {
                    remove_file(&inner)?;
                }
            }
            remove_directory(&path)?;
        } else {
            remove_file(&path)?;
        }
    }
    remove_directory(directory)
}

/// The interface index in a name such as `7-from_pod` or `7`.
pub(crate) fn ifindex_of(name: &str) -> Option<u32> {
    name.split('-').next()?.parse().ok()
}

fn gone_is_fine(
    result: io::Result<()>,
    action: &'static str,
    path: &Path,
) -> Result<(), DataplaneError> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(file(action, path, source)),
    }
}

pub(crate) fn file(action: &'static str, path: &Path, source: io::Error) -> DataplaneError {
    DataplaneError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_links_and_qdiscs_carry_their_interface() {
        assert_eq!(ifindex_of("7-from_pod"), Some(7));
        assert_eq!(ifindex_of("12"), Some(12));
        assert_eq!(ifindex_of("from_pod"), None);
    }

    #[test]
    fn a_directory_elsewhere_is_refused_with_the_remedy() {
        let error = Pins::hold(Path::new("/tmp/picket-no-bpf-fs")).unwrap_err();
        assert!(matches!(error, DataplaneError::NoBpfFs { .. }));
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
        assert!(!Path::new("/tmp/picket-no-bpf-fs").exists());
    }
}
