//! A directory of manifests as a source of objects: read once ([`load`]) or watched ([`watch`]).
//!
//! Files named `*.yaml`, `*.yml` and `*.json` at any depth count, through links too; hidden ones
//! do not. A file that cannot be read as objects keeps its last good content in force and is
//! reported until mended; a file that is being written is read when its writer closes it.

mod events;
mod scan;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_policy::model::{Change, Finding, Severity};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::store::Store;
use super::{Batch, Place, Reported};
use events::Events;
use scan::Scanner;

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
    let mut scanner = Scanner::new(path);
    let mut findings = scanner.look(&mut store, &events::Pending::default(), Instant::now())?;
    let changes = store.take_changes();
    findings.extend(store.findings());
    Ok(Loaded { changes, findings })
}

/// Watches a directory. The first batch is its whole content; the stream ends only when the
/// watching thread cannot be started. Dropping the stream ends the watch.
///
/// # Errors
/// The watching thread cannot be started.
pub fn watch(path: &Path) -> io::Result<ReceiverStream<Batch>> {
    let (batches, stream) = mpsc::channel(BATCHES);
    let path = path.to_owned();
    std::thread::Builder::new()
        .name("manifests".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || Watch::new(path).run(&batches))?;
    Ok(ReceiverStream::new(stream))
}

struct Watch {
    path: PathBuf,
    store: Store,
    scanner: Scanner,
    events: Events,
    told: Option<Vec<Reported>>,
}

impl Watch {
    fn new(path: PathBuf) -> Self {
        // Events first: what changes while the first look is under way is looked at again.
        let mut events = Events::default();
        events.attach(&path);
        Self {
            store: Store::default(),
            scanner: Scanner::new(&path),
            events,
            told: None,
            path,
        }
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
            let next = [self.scanner.next_look(), self.events.pending().next_look()]
                .into_iter()
                .flatten()
                .min()
                .map_or(LOOK_AGAIN, |at| {
                    at.saturating_duration_since(now).min(LOOK_AGAIN)
                });
            self.events.wait(next, COALESCE, COALESCE_AT_MOST);
            noticed = self.events.pending().since().unwrap_or_else(Instant::now);
            if batches.is_closed() {
                return;
            }
        }
    }

    /// Looks at what may have changed; a batch when something did, and always the first time.
    fn look(&mut self, noticed: Instant) -> Option<Batch> {
        let now = Instant::now();
        let looked = self
            .scanner
            .look(&mut self.store, self.events.pending(), now);
        self.events.looked(now);
        let mut findings = match looked {
            Ok(findings) => findings,
            Err(error) => {
                // Inotify's watch went with the directory.
                self.events.detach();
                // Half-knowledge must not be the first word: see `Batch`.
                if self.told.is_none() {
                    tracing::warn!(path = %self.path.display(), %error, "manifests cannot be read; looking again every second");
                    return None;
                }
                vec![unreadable(
                    &self.path,
                    &error,
                    "what it held before stays in force",
                )]
            }
        };
        if !self.events.is_attached() {
            self.events.attach(&self.path);
        }
        findings.extend(self.events.fault(&self.path));
        findings.extend(self.store.findings());
        let changes = self.store.take_changes();
        if changes.is_empty() && self.told.as_ref() == Some(&findings) {
            return None;
        }
        self.told = Some(findings.clone());
        Some(Batch {
            changes,
            findings,
            noticed,
        })
    }
}

/// A path that should be readable and is not.
fn unreadable(path: &Path, error: &io::Error, consequence: &str) -> Reported {
    Reported {
        place: Some(Place {
            file: path.to_owned(),
            document: None,
            line: None,
        }),
        finding: Finding {
            severity: Severity::Error,
            object: "path".to_owned(),
            field: String::new(),
            message: format!("cannot be read: {error}; {consequence}"),
        },
    }
}

/// A shared path, as the store keeps them.
fn shared(path: &Path) -> Arc<Path> {
    Arc::from(path)
}

#[cfg(test)]
mod tests;
