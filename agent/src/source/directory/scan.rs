//! One look through a directory: which files changed, went or came, and what they hold now.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::events::Pending;
use super::{shared, unreadable};
use crate::source::Reported;
use crate::source::content;
use crate::source::documents::{self, MAX_FILE_BYTES, Malformed};
use crate::source::store::Store;

/// A file that vanished is believed to be gone after this long: editors move the old one away
/// before they write the new one.
const GONE_AFTER: Duration = Duration::from_millis(40);

/// Tells a changed file from an unchanged one without reading it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Signature {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Signature {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What earlier looks saw.
#[derive(Debug)]
pub(super) struct Scanner {
    root: PathBuf,
    seen: BTreeMap<Arc<Path>, Signature>,
    missing: BTreeMap<Arc<Path>, Instant>,
    is_first: bool,
}

/// What a walk found.
#[derive(Default)]
struct Walk {
    files: BTreeMap<Arc<Path>, Metadata>,
    /// Directories that could not be read: nothing below them counts as gone.
    blind: Vec<PathBuf>,
    findings: Vec<Reported>,
    visited: HashSet<(u64, u64)>,
}

impl Scanner {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            seen: BTreeMap::new(),
            missing: BTreeMap::new(),
            is_first: true,
        }
    }

    /// When a vanished file will be believed to be gone.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.missing.values().min().map(|since| *since + GONE_AFTER)
    }

    /// Brings `store` up to date, and returns what is wrong with the directory itself.
    pub(super) fn look(
        &mut self,
        store: &mut Store,
        pending: &Pending,
        now: Instant,
    ) -> io::Result<Vec<Reported>> {
        let mut walk = Walk::default();
        walk.start(&self.root)?;
        for (path, metadata) in &walk.files {
            self.missing.remove(path);
            let signature = Signature::of(metadata);
            // A file written twice within one tick of the file system's clock looks unchanged, so
            // those that events name are read whatever they look like.
            let is_due = pending.names(path) || self.seen.get(path) != Some(&signature);
            // Read when its writer closes it: half a file may well look like a whole one.
            if !is_due || (pending.is_being_written(path, now) && !self.is_first) {
                continue;
            }
            if read_into(store, path, self.is_first, &mut walk.findings) {
                self.seen.insert(Arc::clone(path), signature);
            }
        }
        self.forget_missing(store, &walk, now);
        self.is_first = false;
        Ok(walk.findings)
    }

    fn forget_missing(&mut self, store: &mut Store, walk: &Walk, now: Instant) {
        let known: BTreeSet<Arc<Path>> = store.paths().cloned().collect();
        for path in known {
            let is_hidden_from_us = walk.blind.iter().any(|blind| path.starts_with(blind));
            if walk.files.contains_key(&path) || is_hidden_from_us {
                continue;
            }
            let since = *self.missing.entry(Arc::clone(&path)).or_insert(now);
            if now.saturating_duration_since(since) >= GONE_AFTER {
                store.remove(&path);
                self.seen.remove(&path);
                self.missing.remove(&path);
            }
        }
    }
}

impl Walk {
    fn start(&mut self, root: &Path) -> io::Result<()> {
        let metadata = fs::metadata(root)?;
        if metadata.is_dir() {
            return self.directory(root, &metadata);
        }
        self.files.insert(shared(root), metadata);
        Ok(())
    }

    fn directory(&mut self, path: &Path, metadata: &Metadata) -> io::Result<()> {
        // A link may lead back up.
        if !self.visited.insert((metadata.dev(), metadata.ino())) {
            return Ok(());
        }
        for entry in fs::read_dir(path)? {
            let path = entry?.path();
            if documents::is_hidden(&path) {
                continue;
            }
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                // Gone since the directory was read, or a link that leads nowhere.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    self.cannot_read(path, &error);
                    continue;
                }
            };
            if metadata.is_dir() {
                if let Err(error) = self.directory(&path, &metadata) {
                    self.cannot_read(path, &error);
                }
            } else if metadata.is_file() && documents::is_manifest(&path) {
                self.files.insert(shared(&path), metadata);
            }
        }
        Ok(())
    }

    fn cannot_read(&mut self, path: PathBuf, error: &io::Error) {
        if error.kind() != io::ErrorKind::NotFound {
            let consequence = "what it held before stays in force";
            self.findings.push(unreadable(&path, error, consequence));
        }
        self.blind.push(path);
    }
}

/// Reads a file into the store; false when it has to be tried again at the next look.
fn read_into(
    store: &mut Store,
    path: &Arc<Path>,
    is_first: bool,
    findings: &mut Vec<Reported>,
) -> bool {
    let bytes = match read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
        Err(error) => {
            let consequence = "what it held before stays in force";
            findings.push(unreadable(path, &error, consequence));
            return false;
        }
    };
    let read = bytes
        .map_err(|fault| (fault, None))
        .and_then(|bytes| content::read(path, &bytes).map_err(|fault| (fault, Some(bytes))));
    match read {
        Ok(content) => store.put(path, content),
        Err((fault, bytes)) => {
            // At the first look there is no last good content, yet there may well have been one
            // before a restart: what the file still says is taken, and never less isolation.
            if let (true, Some(bytes)) = (is_first && !store.holds(path), bytes) {
                store.put(path, content::salvage(path, &bytes, &fault));
            }
            store.put_malformed(path, &fault);
        }
    }
    true
}

/// The bytes of a file, unless there are too many.
fn read(path: &Path) -> io::Result<Result<Vec<u8>, Malformed>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Ok(Err(Malformed {
            line: None,
            message: format!(
                "larger than {} MiB: split it into several files",
                MAX_FILE_BYTES >> 20
            ),
        }));
    }
    Ok(Ok(bytes))
}
