//! Network namespaces as files: which there are, and how to enter one.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};

/// `statfs` type of files that are namespaces (linux/magic.h: `NSFS_MAGIC`).
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// A network namespace.
#[derive(Debug)]
pub(crate) struct Netns {
    path: PathBuf,
    file: File,
    id: (u64, u64),
}

impl Netns {
    /// The namespace of the calling thread.
    pub(crate) fn own() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Makes an empty one. The calling thread stays where it is.
    pub(crate) fn make() -> io::Result<Self> {
        let home = Self::own()?;
        unshare(CloneFlags::CLONE_NEWNET)?;
        let made = Self::own();
        home.enter()?;
        made
    }

    /// Does something with the calling thread inside, as making a socket that stays there.
    pub(crate) fn within<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let home = Self::own()?;
        self.enter()?;
        let done = work();
        home.enter()?;
        done
    }

    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // Files are made before namespaces are mounted over them.
        let kind = rustix::fs::fstatfs(&file)?.f_type;
        if u64::try_from(kind) != Ok(NSFS_MAGIC) {
            return Err(io::Error::other("not a namespace"));
        }
        let metadata = file.metadata()?;
        Ok(Self {
            path: path.to_owned(),
            file,
            id: (metadata.dev(), metadata.ino()),
        })
    }

    /// The file it was found at.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The open file's number, for netlink.
    pub(super) fn number(&self) -> u32 {
        // An open descriptor is never negative.
        self.file.as_raw_fd().unsigned_abs()
    }

    /// Moves the calling thread into it. Sockets that are open stay where they were made.
    pub(crate) fn enter(&self) -> io::Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
    }
}

impl AsRawFd for Netns {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// The namespaces of a directory.
#[derive(Debug, Default)]
pub(super) struct Listed {
    /// Each once however many names it has, the home namespace left out.
    pub(super) namespaces: Vec<Netns>,
    /// There are files that no namespace is mounted over: it may be about to be.
    pub(super) has_unmounted: bool,
}

/// Lists a directory; one that is not there has no namespaces: the first pod makes it.
pub(super) fn list(directory: &Path, home: &Netns) -> io::Result<Listed> {
    let mut listed = Listed::default();
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(listed),
        entries => entries?,
    };
    let paths: io::Result<Vec<PathBuf>> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect();
    let mut paths = paths?;
    paths.sort();
    let mut seen = HashSet::from([home.id]);
    for path in paths {
        match Netns::open(&path) {
            Ok(netns) if seen.insert(netns.id) => listed.namespaces.push(netns),
            Ok(_) => {}
            Err(_) => listed.has_unmounted = true,
        }
    }
    Ok(listed)
}

/// What is to be seen of a directory of namespaces.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NamespaceFiles {
    /// Namespaces besides the calling thread's.
    pub namespaces: usize,
    /// There are files that no namespace is mounted over.
    pub has_unmounted: bool,
}

impl NamespaceFiles {
    /// Counts them; `None` when there is no such directory, or it cannot be read.
    pub fn count(directory: &Path) -> Option<Self> {
        let listed = directory
            .is_dir()
            .then(|| list(directory, &Netns::own().ok()?).ok())??;
        Some(Self {
            namespaces: listed.namespaces.len(),
            has_unmounted: listed.has_unmounted,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_there_is_empty_and_one_that_cannot_be_read_is_an_error() {
        let home = Netns::own().unwrap();
        let absent = std::env::temp_dir().join(format!("picket-netns-{}", std::process::id()));
        assert!(list(&absent, &home).unwrap().namespaces.is_empty());
        // No directory, so it cannot be listed, not even by root.
        let error = list(Path::new("/proc/self/status"), &home).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    }
}
