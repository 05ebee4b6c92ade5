//! One look through a directory: which files changed, went or came, and what they hold now. Looking at
//! some of them only is `named`'s.
//!
//! A file that cannot be read keeps what it held. Where nobody knows what it held, at the first
//! look, the look is not complete: nothing may be concluded from it.

mod named;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_policy::model::Severity;

use super::events::Pending;
use super::progress::Progress;
use super::read::{self, Contents};
use super::reported;
use super::walk::{Limits, Walk};
use crate::signature::Signature;
use crate::source::Reported;
use crate::source::content;
use crate::source::documents::{MAX_FILE_BYTES, Malformed};
use crate::source::store::Store;

/// A file that vanished is believed to be gone after this long: editors move the old one away
/// before they write the new one.
const GONE_AFTER: Duration = Duration::from_millis(40);
/// A file that changed while it was read is read again this much later.
const READ_AGAIN: Duration = Duration::from_millis(100);
/// Somebody who writes to a file for longer than this is told of.
const RESTLESS_AFTER: Duration = Duration::from_secs(2);

/// What earlier looks saw.
#[derive(Debug)]
pub(super) struct Scanner {
    root: PathBuf,
    seen: BTreeMap<Arc<Path>, Signature>,
    missing: BTreeMap<Arc<Path>, Instant>,
    /// Files that changed while they were read, and since when.
    restless: BTreeMap<Arc<Path>, Instant>,
    /// Files of which not even an earlier content is known, and why.
    unknown: BTreeMap<Arc<Path>, String>,
    /// No look was complete yet.
    is_first: bool,
    /// What the latest look through all of it found, where events tell the rest.
    plain: Option<Plain>,
    /// Whatever the root is, it was named to be read.
    may_be_file: bool,
    limits: Limits,
    progress: Progress,
}

use named::Plain;

/// What a look saw beside the files' content.
#[derive(Debug)]
pub(super) struct Look {
    /// What is wrong with the directory itself.
    pub(super) findings: Vec<Reported>,
    /// True once the content of every file is known, or was known at some time.
    pub(super) is_complete: bool,
}

impl Scanner {
    /// Looks through a directory, or at a file, a pipe even, that was named itself.
    pub(super) fn of_any(root: &Path) -> Self {
        Self {
            may_be_file: true,
            ..Self::of_directory(root)
        }
    }

    /// Looks through a directory, and at nothing that takes its place.
    pub(super) fn of_directory(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            seen: BTreeMap::new(),
            missing: BTreeMap::new(),
            restless: BTreeMap::new(),
            unknown: BTreeMap::new(),
            is_first: true,
            plain: None,
            may_be_file: false,
            limits: Limits::STANDARD,
            progress: Progress::default(),
        }
    }

    /// The same, telling what it asks the file system.
    pub(super) fn telling(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }

    /// The same with other limits.
    #[cfg(test)]
    pub(super) fn with(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// A file looks as it did when it was read.
    #[cfg(test)]
    pub(super) fn believe_unchanged(&mut self, path: &Path) {
        let metadata = fs::metadata(path).unwrap();
        self.seen.insert(Arc::from(path), Signature::of(&metadata));
    }

    /// When something will be due although no event tells of it.
    pub(super) fn next_look(&self, now: Instant) -> Option<Instant> {
        let gone = self.missing.values().min().map(|since| *since + GONE_AFTER);
        let again = (!self.restless.is_empty()).then(|| now + READ_AGAIN);
        [gone, again].into_iter().flatten().min()
    }

    /// Brings `store` up to date.
    ///
    /// # Errors
    /// The directory itself cannot be looked at.
    pub(super) fn look(
        &mut self,
        store: &mut Store,
        pending: &Pending,
        now: Instant,
    ) -> io::Result<Look> {
        self.plain = None;
        let mut walk = self.walk()?;
        let mut bytes = 0;
        let files: Vec<_> = walk
            .files
            .iter()
            .map(|(path, metadata)| (Arc::clone(path), Signature::of(metadata), metadata.len()))
            .collect();
        for (path, signature, size) in files {
            self.missing.remove(&path);
            bytes += size;
            let is_known = self.seen.contains_key(&path) || store.holds(&path);
            if !is_known && (walk.is_cut || bytes > self.limits.bytes) {
                self.refuse(&path, &mut walk);
                continue;
            }
            // A file written twice within one tick of the file system's clock looks unchanged, so
            // those that events name are read whatever they look like.
            let is_due = pending.names(&path) || self.seen.get(&path) != Some(&signature);
            // Read when its writer closes it: half a file may well look like a whole one.
            if is_due && (self.is_first || !pending.is_being_written(&path, now)) {
                self.read(store, &path, now, &mut walk);
            }
        }
        self.forget_missing(store, &walk, now);
        for (path, problem) in &self.unknown {
            let words = format!("{problem}; {}", self.without_content());
            walk.findings.push(reported(path, Severity::Error, &words));
        }
        let is_complete = !walk.is_incomplete && self.unknown.is_empty();
        self.is_first &= !is_complete;
        if is_complete && self.restless.is_empty() {
            self.plain = Plain::of(&mut walk, bytes);
        }
        Ok(Look {
            findings: walk.findings,
            is_complete,
        })
    }

    fn walk(&self) -> io::Result<Walk> {
        if self.may_be_file {
            let metadata = fs::metadata(&self.root)?;
            if !metadata.is_dir() {
                return Ok(Walk::of_one(&self.root, metadata));
            }
        }
        Walk::through(&self.root, self.limits, &self.progress)
    }

    /// What follows where a file's content is not known.
    fn without_content(&self) -> &'static str {
        if self.is_first {
            "what it says is not known, so nothing is put in force before it is mended, and what \
             is in force stays"
        } else {
            "nothing in it is in force"
        }
    }

    fn read(&mut self, store: &mut Store, path: &Arc<Path>, now: Instant, walk: &mut Walk) {
        let is_named = self.may_be_file && **path == *self.root;
        let contents = self.progress.ask(path, || {
            if is_named {
                read::named(path)
            } else {
                read::regular(path)
            }
        });
        match contents {
            Ok(Contents::Whole(bytes, signature)) => {
                self.seen.insert(Arc::clone(path), signature);
                self.restless.remove(path);
                self.unknown.remove(path);
                self.take(store, path, &bytes);
            }
            Ok(Contents::TooLarge(signature)) => {
                self.seen.insert(Arc::clone(path), signature);
                self.restless.remove(path);
                let message = format!(
                    "larger than {} MiB: split it into several files",
                    MAX_FILE_BYTES >> 20
                );
                if self.is_first && !store.holds(path) {
                    self.unknown.insert(Arc::clone(path), message);
                } else {
                    store.put_malformed(path, &fault(message));
                }
            }
            Ok(Contents::Changing) => {
                let since = *self.restless.entry(Arc::clone(path)).or_insert(now);
                self.seen.remove(path);
                walk.is_incomplete |= !store.holds(path);
                if now.saturating_duration_since(since) >= RESTLESS_AFTER {
                    let problem = "changes whenever it is read: let its writer finish";
                    self.report(store, path, problem, walk);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                self.seen.remove(path);
                walk.is_incomplete |= !store.holds(path);
                self.report(store, path, &format!("cannot be read: {error}"), walk);
            }
        }
    }

    /// Says what is wrong with a file that will be tried again at the next look.
    fn report(&self, store: &Store, path: &Path, problem: &str, walk: &mut Walk) {
        let consequence = if store.holds(path) {
            "what it held before stays in force"
        } else {
            self.without_content()
        };
        let words = format!("{problem}; {consequence}");
        walk.findings.push(reported(path, Severity::Error, &words));
    }

    /// A new file where there is no room for any.
    fn refuse(&self, path: &Path, walk: &mut Walk) {
        walk.is_incomplete = true;
        if walk.is_cut {
            // Said once, of the directory.
            return;
        }
        let words = format!(
            "all files together are larger than {} MiB: move some away; {}",
            self.limits.bytes >> 20,
            self.without_content()
        );
        walk.findings.push(reported(path, Severity::Error, &words));
    }

    /// Takes in what a file holds.
    fn take(&mut self, store: &mut Store, path: &Arc<Path>, bytes: &[u8]) {
        let is_first_word = self.is_first && !store.holds(path);
        let fault = match content::read(path, bytes) {
            Ok(mut content) => {
                if !is_first_word {
                    content.forget_stand_ins();
                }
                store.put(path, content);
                return;
            }
            Err(fault) => fault,
        };
        // At the first look there is no last good content, yet there may well have been one
        // before a restart: what the file still says is taken, and never less isolation.
        if is_first_word {
            let Some(salvaged) = content::salvage(path, bytes, &fault) else {
                self.unknown.insert(Arc::clone(path), at_line(&fault));
                return;
            };
            store.put(path, salvaged);
        }
        store.put_malformed(path, &fault);
    }

    fn forget_missing(&mut self, store: &mut Store, walk: &Walk, now: Instant) {
        self.restless
            .retain(|path, _| walk.files.contains_key(path));
        let known: BTreeSet<Arc<Path>> = store
            .paths()
            .chain(self.unknown.keys())
            .filter(|path| !walk.files.contains_key(*path))
            .filter(|path| !walk.blind.iter().any(|blind| path.starts_with(blind)))
            .cloned()
            .collect();
        for path in known {
            let since = *self.missing.entry(Arc::clone(&path)).or_insert(now);
            if now.saturating_duration_since(since) >= GONE_AFTER {
                self.forget(store, &path);
            }
        }
    }

    fn forget(&mut self, store: &mut Store, path: &Path) {
        store.remove(path);
        self.seen.remove(path);
        self.missing.remove(path);
        self.unknown.remove(path);
    }

    /// Not looked at one by one before everything was looked through again.
    pub(super) fn forget_names(&mut self) {
        self.plain = None;
    }
}

fn fault(message: String) -> Malformed {
    Malformed {
        line: None,
        message,
    }
}

fn at_line(fault: &Malformed) -> String {
    match fault.line {
        Some(line) => format!("line {line}: {}", fault.message),
        None => fault.message.clone(),
    }
}
