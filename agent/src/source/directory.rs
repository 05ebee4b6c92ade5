//! A directory of manifests as a source of objects: read once ([`load`]) or watched ([`watch`]).
//!
//! Files named `*.yaml`, `*.yml` and `*.json` at any depth count, through links too; hidden ones
//! do not. A file that cannot be read as objects keeps its last good content in force and is
//! reported until mended; a file that is being written is read when its writer closes it. Whatever
//! is there, time and memory are bounded and nothing is waited for: the limits are in `walk`,
//! `scan`, `documents` and `object`.

mod events;
mod progress;
mod read;
mod scan;
mod walk;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use agent_policy::manifest::brief;
use agent_policy::model::{Change, Finding, Severity};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::content;
use super::store::Store;
use super::{Batch, Place, Reported};
use events::Events;
use progress::Progress;
use scan::{Look, Scanner};
use walk::Identity;

/// Batches under way to the reconciler; a full channel stops the reading of files, nothing else.
const BATCHES: usize = 16;
/// Stack of the thread that parses: nesting costs stack.
const STACK_BYTES: usize = 8 << 20;
/// Events that come within this time of each other are one batch.
const COALESCE: Duration = Duration::from_millis(3);
/// However many events come, a batch is not put off longer than this.
const COALESCE_AT_MOST: Duration = Duration::from_millis(20);
/// Without any event the directory is looked through this often: events can be lost.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// And no more of the time than one part in so many goes into it, however much there is.
const LOOK_SHARE: u32 = 20;
/// Nor more than one part in so many where events ask for it: those that name files do not.
const LOOK_SHARE_OF_EVENTS: u32 = 2;
/// Findings told at a time: who mends these is told of the others next.
const MAX_FINDINGS: usize = 1000;

/// What a directory holds, read once.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Every object, as if each had just been added.
    pub changes: Vec<Change>,
    /// What is wrong with them.
    pub findings: Vec<Reported>,
}

/// Reads a directory (or a single file) of manifests once, for commands that work offline.
///
/// # Errors
/// The path cannot be read at all; whatever is wrong below it is a finding.
pub fn load(path: &Path) -> io::Result<Loaded> {
    let mut store = Store::default();
    let mut scanner = Scanner::of_any(path);
    let look = scanner.look(&mut store, &events::Pending::default(), Instant::now())?;
    Ok(loaded(path, store, look.findings))
}

/// What a file of this name and content says, when it is the only one and the first that is heard
/// of it.
pub fn load_bytes(path: &Path, bytes: &[u8]) -> Loaded {
    let mut store = Store::default();
    let shared = shared(path);
    match content::read(path, bytes) {
        Ok(content) => store.put(&shared, content),
        Err(fault) => {
            if let Some(salvaged) = content::salvage(path, bytes, &fault) {
                store.put(&shared, salvaged);
            }
            store.put_malformed(&shared, &fault);
        }
    }
    loaded(path, store, Vec::new())
}

fn loaded(path: &Path, mut store: Store, mut findings: Vec<Reported>) -> Loaded {
    let changes = store.take_changes();
    findings.extend(store.findings());
    Loaded {
        changes,
        findings: most_important(path, findings),
    }
}

/// Watches a directory. The first batch that is complete has its whole content. A file that does not
/// answer is told of, and nothing else until it does. Dropping the stream ends the watch.
///
/// # Errors
/// The watching thread cannot be started.
pub fn watch(path: &Path) -> io::Result<ReceiverStream<Batch>> {
    let (batches, stream) = mpsc::channel(BATCHES);
    let watch = Watch::new(path.to_owned());
    let (progress, told) = (watch.progress.clone(), batches.clone());
    std::thread::Builder::new()
        .name("manifests".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || watch.run(&batches))?;
    std::thread::Builder::new()
        .name("patience".to_owned())
        .spawn(move || progress.wonder(&told))?;
    Ok(ReceiverStream::new(stream))
}

/// Tells one directory from another that has its name, and perhaps its number.
#[derive(Debug, PartialEq)]
struct Root(Identity, Option<SystemTime>);

impl Root {
    fn at(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self(walk::identity(&metadata), metadata.created().ok()))
    }
}

struct Watch {
    path: PathBuf,
    store: Store,
    scanner: Scanner,
    events: Events,
    /// Which directory events are of: another may stand in its place by now.
    attached_to: Option<Root>,
    /// True once a complete list was told.
    is_complete: bool,
    told: Option<Vec<Reported>>,
    progress: Progress,
    /// When it is looked through without an event.
    look_through_at: Instant,
    /// Until when it is not looked through whatever events say.
    rests_until: Instant,
}

impl Watch {
    fn new(path: PathBuf) -> Self {
        let now = Instant::now();
        let progress = Progress::default();
        Self {
            store: Store::default(),
            scanner: Scanner::of_directory(&path).telling(progress.clone()),
            progress,
            events: Events::default(),
            attached_to: None,
            is_complete: false,
            told: None,
            look_through_at: now,
            rests_until: now,
            path,
        }
    }

    /// Sees to it that events are of the directory that has the name now. Before each look: what
    /// changes while it is under way is looked at again.
    fn follow(&mut self) {
        let root = self.progress.ask(&self.path, || Root::at(&self.path));
        if root != self.attached_to {
            // Inotify's watch went with the directory that it was on.
            self.events.detach();
            self.scanner.forget_names();
        }
        if root.is_some() && !self.events.is_attached() {
            self.events.attach(&self.path);
        }
        self.attached_to = root;
    }

    fn run(mut self, batches: &mpsc::Sender<Batch>) {
        let mut noticed = Instant::now();
        loop {
            if let Some(batch) = self.look(noticed)
                && batches.blocking_send(batch).is_err()
            {
                return;
            }
            let now = Instant::now();
            let next = [
                self.scanner.next_look(now),
                self.events.pending().next_look(),
            ]
            .into_iter()
            .flatten()
            .fold(self.look_through_at, Instant::min);
            let next = next.saturating_duration_since(now);
            self.events.wait(next, COALESCE, COALESCE_AT_MOST);
            noticed = self.events.pending().since().unwrap_or_else(Instant::now);
            if batches.is_closed() {
                return;
            }
        }
    }

    /// Looks at what may have changed; a batch when something did, and always the first time.
    fn look(&mut self, noticed: Instant) -> Option<Batch> {
        self.follow();
        let looked = match self.look_at_named() {
            Some(look) => Ok(look),
            None => self.look_through(),
        };
        let mut findings = match looked {
            Ok(look) => {
                self.is_complete |= look.is_complete;
                look.findings
            }
            Err(error) => vec![self.without_directory(&error)],
        };
        // Half-knowledge must not be the first word: see `Batch`.
        let changes = if self.is_complete {
            self.store.take_changes()
        } else {
            Vec::new()
        };
        // Taking them is what finds objects that stand twice.
        findings.extend(self.events.fault(&self.path));
        findings.extend(self.store.findings());
        let findings = most_important(&self.path, findings);
        let was_told_else = self.progress.tell(&findings, self.is_complete);
        if changes.is_empty() && !was_told_else && self.told.as_ref() == Some(&findings) {
            return None;
        }
        self.told = Some(findings.clone());
        Some(Batch {
            changes,
            findings,
            is_complete: self.is_complete,
            noticed,
        })
    }

    /// Looks at the files that events have named, where and while that is enough.
    fn look_at_named(&mut self) -> Option<Look> {
        let now = Instant::now();
        if now >= self.look_through_at || !self.events.is_attached() {
            return None;
        }
        let pending = self.events.pending();
        let look = self.scanner.look_at_named(&mut self.store, pending, now)?;
        self.events.looked(now);
        Some(look)
    }

    /// Looks at all there is.
    fn look_through(&mut self) -> io::Result<Look> {
        // Somebody may change something all the time.
        while let Some(left) = self.rests_until.checked_duration_since(Instant::now()) {
            self.events.wait(left, COALESCE, COALESCE_AT_MOST);
        }
        let now = Instant::now();
        let pending = self.events.pending();
        let looked = self.scanner.look(&mut self.store, pending, now);
        self.events.looked(now);
        let end = Instant::now();
        self.look_through_at = end + LOOK_AGAIN.max(LOOK_SHARE * (end - now));
        self.rests_until = end + (LOOK_SHARE_OF_EVENTS - 1) * (end - now);
        looked
    }

    fn without_directory(&self, error: &io::Error) -> Reported {
        let consequence = if self.is_complete {
            "what it held before stays in force"
        } else {
            "nothing is put in force before it can be, and what is in force stays"
        };
        let words = format!("cannot be read: {error}; {consequence}");
        reported(&self.path, Severity::Error, &words)
    }
}

/// Errors before warnings, and not more than a person can mend.
fn most_important(path: &Path, findings: Vec<Reported>) -> Vec<Reported> {
    if findings.len() <= MAX_FINDINGS {
        return findings;
    }
    let left_out = findings.len() - MAX_FINDINGS;
    let (mut most, warnings): (Vec<_>, Vec<_>) = findings
        .into_iter()
        .partition(|reported| reported.finding.severity == Severity::Error);
    most.extend(warnings);
    let severity = most
        .get(MAX_FINDINGS)
        .map_or(Severity::Warning, |first| first.finding.severity);
    most.truncate(MAX_FINDINGS);
    let words = format!("has {left_out} more faults; mend those that are said and these are, too");
    most.push(reported(path, severity, &words));
    most
}

/// What is wrong with a path.
fn reported(path: &Path, severity: Severity, words: &str) -> Reported {
    Reported {
        place: Some(Place {
            file: path.to_owned(),
            document: None,
            line: None,
        }),
        finding: Finding {
            severity,
            object: "path".to_owned(),
            field: String::new(),
            message: brief(words),
        },
    }
}

/// A shared path, as the store keeps them.
fn shared(path: &Path) -> Arc<Path> {
    Arc::from(path)
}

#[cfg(test)]
mod tests;
