//! A look at those files alone that events name, so that a change among very many files costs what
//! it is. Only where names tell everything; where they do not, all is looked through, as it is now
//! and then in any case.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::super::shared;
use super::{GONE_AFTER, Look, Pending, Scanner, Signature, Store, Walk};
use crate::source::documents;

/// A directory where nothing has two names and nothing is wrong: whatever changes in it is named by
/// its own name.
#[derive(Debug)]
pub(super) struct Plain {
    directories: HashSet<PathBuf>,
    /// Of all files together.
    bytes: u64,
}

/// What is there under a name.
enum Named {
    /// Nothing that counts.
    Nothing,
    /// A manifest, as it may have become.
    File(Metadata),
    /// No file any more.
    Gone,
}

impl Plain {
    /// What a walk found, if it is that.
    pub(super) fn of(walk: &mut Walk, bytes: u64) -> Option<Self> {
        let is_sound = walk.findings.is_empty() && walk.blind.is_empty();
        let is_whole = !walk.is_incomplete && !walk.is_cut;
        (is_sound && is_whole && !walk.has_links).then(|| Self {
            directories: std::mem::take(&mut walk.directories),
            bytes,
        })
    }

    /// What a name stands for now; `None` when that cannot be told from the name alone.
    fn what_is(&self, root: &Path, path: &Path) -> Option<Named> {
        let mut parts = path.strip_prefix(root).ok()?.iter();
        // Nothing leads there but links.
        if parts.any(|part| documents::is_hidden(Path::new(part))) {
            return Some(Named::Nothing);
        }
        if !self.directories.contains(path.parent()?) {
            return None;
        }
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return (!self.directories.contains(path)).then_some(Named::Gone);
            }
            Err(_) => return None,
        };
        if !metadata.is_file() || metadata.nlink() > 1 {
            return None;
        }
        Some(if documents::is_manifest(path) {
            Named::File(metadata)
        } else {
            Named::Nothing
        })
    }
}

impl Scanner {
    /// Brings `store` up to date with what events have named and with what is waited for. `None` when
    /// that is not all there is to do: then everything has to be looked through.
    pub(crate) fn look_at_named(
        &mut self,
        store: &mut Store,
        pending: &Pending,
        now: Instant,
    ) -> Option<Look> {
        let mut plain = self.plain.take()?;
        let paths: BTreeSet<Arc<Path>> = pending
            .named()?
            .map(|path| shared(path))
            .chain(self.missing.keys().cloned())
            .collect();
        // Nothing is found out about the directory itself.
        let mut walk = Walk::default();
        for path in paths {
            let what = || plain.what_is(&self.root, &path);
            match self.progress.ask(&path, what)? {
                Named::Nothing => {}
                Named::File(metadata) => {
                    self.missing.remove(&path);
                    let before = self.size_of(&path);
                    let bytes = plain.bytes.saturating_sub(before) + metadata.len();
                    if !self.has_room(store, &path, bytes) {
                        return None;
                    }
                    let is_due = pending.names(&path)
                        || self.seen.get(&path) != Some(&Signature::of(&metadata));
                    if is_due && !pending.is_being_written(&path, now) {
                        self.read(store, &path, now, &mut walk);
                        plain.bytes = plain.bytes.saturating_sub(before) + self.size_of(&path);
                    }
                }
                Named::Gone => {
                    let before = self.size_of(&path);
                    self.forget_if_gone(store, &path, now);
                    plain.bytes = plain.bytes.saturating_sub(before) + self.size_of(&path);
                }
            }
        }
        if !walk.findings.is_empty() || walk.is_incomplete || !self.restless.is_empty() {
            return None;
        }
        self.plain = Some(plain);
        Some(Look {
            findings: Vec::new(),
            is_complete: true,
        })
    }

    /// Bytes of a file as it was last read.
    fn size_of(&self, path: &Path) -> u64 {
        self.seen.get(path).map_or(0, Signature::size)
    }

    /// True for a file that is known, and while there is room for one more.
    fn has_room(&self, store: &Store, path: &Path, bytes: u64) -> bool {
        let is_known = self.seen.contains_key(path) || store.holds(path);
        is_known || (bytes <= self.limits.bytes && self.seen.len() < self.limits.files)
    }

    /// Forgets a file that has been away for long enough.
    fn forget_if_gone(&mut self, store: &mut Store, path: &Arc<Path>, now: Instant) {
        if !store.holds(path) {
            self.missing.remove(path);
            return;
        }
        let since = *self.missing.entry(Arc::clone(path)).or_insert(now);
        if now.saturating_duration_since(since) >= GONE_AFTER {
            self.forget(store, path);
        }
    }
}
