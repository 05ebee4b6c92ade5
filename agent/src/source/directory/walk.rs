//! One walk through a directory: which manifest files are there, and what is odd about the rest.
//! Bounded, whatever links lead to.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, FileType, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_policy::model::Severity;

use super::progress::Progress;
use super::{reported, shared};
use crate::source::Reported;
use crate::source::documents;

/// How much there may be. More is refused, and said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Manifest files.
    pub(super) files: usize,
    /// Names that are looked at, manifests or not.
    pub(super) entries: usize,
    /// Bytes of all files together.
    pub(super) bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self::STANDARD
    }
}

impl Limits {
    pub(super) const STANDARD: Self = Self {
        // Kubernetes promises to carry 150 000 pods.
        files: 1 << 18,
        // A link to `/` must not make a walk endless.
        entries: 1 << 20,
        // 100 000 pods as kubectl writes them are 800 MiB.
        bytes: 1 << 30,
    };
}

/// Tells one directory from another.
pub(super) type Identity = (u64, u64);

/// What a walk found.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// Manifest files, with what is known of each without opening it.
    pub(super) files: BTreeMap<Arc<Path>, Metadata>,
    /// Paths that could not be looked at: nothing at or below them counts as gone.
    pub(super) blind: Vec<PathBuf>,
    /// What is wrong.
    pub(super) findings: Vec<Reported>,
    /// True when there may be manifests that were not found.
    pub(super) is_incomplete: bool,
    /// True when there was more than is looked at.
    pub(super) is_cut: bool,
    /// Directories that were walked.
    pub(super) directories: HashSet<PathBuf>,
    /// True when something has several names: what happens to one of them happens to all.
    pub(super) has_links: bool,
    visited: HashSet<Identity>,
    entries: usize,
    limits: Limits,
    progress: Progress,
}

impl Walk {
    /// Walks a directory.
    ///
    /// # Errors
    /// It cannot be looked at, or is none.
    pub(super) fn through(root: &Path, limits: Limits, progress: &Progress) -> io::Result<Self> {
        let mut walk = Self {
            limits,
            progress: progress.clone(),
            ..Self::default()
        };
        let metadata = progress.ask(root, || fs::metadata(root))?;
        let mut left = Vec::new();
        walk.directory(root, &metadata, &mut left)?;
        // Not by recursion, which costs stack and an open file for each level.
        while !walk.is_cut
            && let Some((path, metadata)) = left.pop()
        {
            if let Err(error) = walk.directory(&path, &metadata, &mut left) {
                walk.cannot_read(path, &error);
            }
        }
        if walk.is_cut {
            walk.give_up(root);
        }
        Ok(walk)
    }

    fn directory(
        &mut self,
        path: &Path,
        metadata: &Metadata,
        left: &mut Vec<(PathBuf, Metadata)>,
    ) -> io::Result<()> {
        // A link may lead back up.
        if !self.visited.insert(identity(metadata)) {
            return Ok(());
        }
        let entries = self.progress.ask(path, || fs::read_dir(path))?;
        for entry in entries {
            let entry = entry?;
            self.has_links |= entry.file_type()?.is_symlink();
            let path = entry.path();
            self.entries += 1;
            if !documents::is_hidden(&path) {
                self.entry(path, left);
            }
            self.is_cut =
                self.entries > self.limits.entries || self.files.len() > self.limits.files;
            if self.is_cut {
                return Ok(());
            }
        }
        self.directories.insert(path.to_owned());
        Ok(())
    }

    fn entry(&mut self, path: PathBuf, left: &mut Vec<(PathBuf, Metadata)>) {
        let is_manifest = documents::is_manifest(&path);
        let metadata = self.progress.ask(&path, || fs::metadata(&path));
        match metadata {
            Ok(metadata) if metadata.is_dir() => left.push((path, metadata)),
            Ok(_) if !is_manifest => {}
            Ok(metadata) if metadata.is_file() => {
                self.has_links |= metadata.nlink() > 1;
                self.files.insert(shared(&path), metadata);
            }
            Ok(metadata) => {
                let what = special(metadata.file_type());
                self.is_nothing(path, &format!("is {what}, which is never opened"));
            }
            // Gone since the directory was read, or a link that leads nowhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if is_manifest && path.is_symlink() {
                    let words = "is a link that leads nowhere; mend it or remove it";
                    self.findings
                        .push(reported(&path, Severity::Warning, words));
                }
            }
            Err(error) if is_loop(&error) => {
                if is_manifest {
                    self.is_nothing(path, "is a link that leads back to itself");
                }
            }
            Err(error) => self.cannot_read(path, &error),
        }
    }

    /// Has the name of a manifest, and is nothing that could ever hold one.
    fn is_nothing(&mut self, path: PathBuf, what: &str) {
        let words = format!(
            "{what}; put a regular file there, until then what it held before stays in force"
        );
        self.findings.push(reported(&path, Severity::Error, &words));
        self.blind.push(path);
    }

    fn cannot_read(&mut self, path: PathBuf, error: &io::Error) {
        if error.kind() != io::ErrorKind::NotFound {
            let words = format!("cannot be read: {error}; what it held before stays in force");
            self.findings.push(reported(&path, Severity::Error, &words));
            self.is_incomplete = true;
        }
        self.blind.push(path);
    }

    fn give_up(&mut self, root: &Path) {
        let words = format!(
            "holds more than {} manifests or {} names, links followed: files that are new are not \
             read, what the others hold stays in force; take out what does not belong there",
            self.limits.files, self.limits.entries
        );
        self.findings.push(reported(root, Severity::Error, &words));
        self.is_incomplete = true;
        self.blind.push(root.to_owned());
    }

    /// A file that was named itself, whatever it is called.
    pub(super) fn of_one(file: &Path, metadata: Metadata) -> Self {
        Self {
            files: BTreeMap::from([(shared(file), metadata)]),
            ..Self::default()
        }
    }
}

/// Which directory it is, whatever it is called.
pub(super) fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

fn is_loop(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ELOOP)
}

fn special(file_type: FileType) -> &'static str {
    if file_type.is_fifo() {
        "a named pipe"
    } else if file_type.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}
