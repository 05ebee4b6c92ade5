//! What inotify says of a directory, boiled down: which files were written, and by whom not yet
//! wholly. Events are hints for where to look, never the truth about what is there.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use agent_policy::model::Severity;
use notify::event::{AccessKind, CreateKind, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::reported;
use crate::inotify::is_of_reading;
use crate::source::Reported;

/// Events not looked at yet; more are known by their number only: everything is looked at then.
const QUEUE: usize = 4096;
/// A file whose writer does not close it is read when it was left alone for this long.
const WRITTEN_AFTER: Duration = Duration::from_millis(500);

/// What events said since the last look.
#[derive(Debug, Default)]
pub(super) struct Pending {
    named: HashSet<PathBuf>,
    being_written: HashMap<PathBuf, Instant>,
    since: Option<Instant>,
    /// Something happened that nobody has named.
    is_vague: bool,
}

impl Pending {
    /// What events named; `None` when that is not all that has happened.
    pub(super) fn named(&self) -> Option<impl Iterator<Item = &PathBuf>> {
        (!self.is_vague).then(|| self.named.iter())
    }

    /// That these were named.
    #[cfg(test)]
    pub(super) fn of(paths: &[PathBuf]) -> Self {
        Self {
            named: paths.iter().cloned().collect(),
            ..Self::default()
        }
    }

    /// That something happened, and nobody knows where.
    #[cfg(test)]
    pub(super) fn vague() -> Self {
        Self {
            is_vague: true,
            ..Self::default()
        }
    }

    /// True when an event named the file.
    pub(super) fn names(&self, path: &Path) -> bool {
        self.named.contains(path)
    }

    /// True when someone began to write the file and has not closed it yet.
    pub(super) fn is_being_written(&self, path: &Path, now: Instant) -> bool {
        self.being_written
            .get(path)
            .is_some_and(|last| now.saturating_duration_since(*last) < WRITTEN_AFTER)
    }

    /// When the first of them came.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// When a file that nobody closed will be read all the same.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.being_written
            .values()
            .min()
            .map(|last| *last + WRITTEN_AFTER)
    }

    fn take(&mut self, event: notify::Event, now: Instant) {
        match event.kind {
            EventKind::Create(CreateKind::File) | EventKind::Modify(ModifyKind::Data(_)) => {
                self.begin(&event.paths, now);
            }
            EventKind::Access(AccessKind::Close(_))
            | EventKind::Modify(ModifyKind::Name(_))
            | EventKind::Remove(_) => {
                for path in &event.paths {
                    self.being_written.remove(path);
                }
            }
            EventKind::Any
            | EventKind::Access(_)
            | EventKind::Create(_)
            | EventKind::Modify(_)
            | EventKind::Other => {}
        }
        self.since.get_or_insert(now);
        // The kernel's own queue has overflowed, for example.
        self.is_vague |= event.paths.is_empty() || event.need_rescan();
        self.named.extend(event.paths);
    }

    fn begin(&mut self, paths: &[PathBuf], now: Instant) {
        for path in paths {
            // A link is never written, only what it leads to.
            if !path.is_symlink() {
                self.being_written.insert(path.clone(), now);
            }
        }
    }
}

/// The watch on a directory.
#[derive(Debug)]
pub(super) struct Events {
    watcher: Option<RecommendedWatcher>,
    fault: Option<String>,
    sender: SyncSender<notify::Result<notify::Event>>,
    receiver: Receiver<notify::Result<notify::Event>>,
    overflowed: Arc<AtomicBool>,
    pending: Pending,
}

impl Default for Events {
    fn default() -> Self {
        let (sender, receiver) = sync_channel(QUEUE);
        Self {
            watcher: None,
            fault: None,
            sender,
            receiver,
            overflowed: Arc::default(),
            pending: Pending::default(),
        }
    }
}

impl Events {
    /// Begins to watch; what stands in the way is told by [`Events::fault`].
    pub(super) fn attach(&mut self, path: &Path) {
        match self.watcher(path) {
            Ok(watcher) => {
                self.watcher = Some(watcher);
                self.fault = None;
            }
            Err(error) => self.fault = Some(error.to_string()),
        }
    }

    fn watcher(&self, path: &Path) -> notify::Result<RecommendedWatcher> {
        let sender = self.sender.clone();
        let overflowed = Arc::clone(&self.overflowed);
        let mut watcher = notify::recommended_watcher(move |event| {
            if is_of_reading(&event) {
                return;
            }
            if let Err(TrySendError::Full(_)) = sender.try_send(event) {
                overflowed.store(true, Ordering::Relaxed);
            }
        })?;
        watcher.watch(path, RecursiveMode::Recursive)?;
        Ok(watcher)
    }

    /// Lets go of a watch that can say nothing any more.
    pub(super) fn detach(&mut self) {
        self.watcher = None;
    }

    pub(super) fn is_attached(&self) -> bool {
        self.watcher.is_some()
    }

    /// Why changes are only noticed by looking, if so.
    pub(super) fn fault(&self, path: &Path) -> Option<Reported> {
        self.fault.as_ref().map(|fault| {
            let words = format!(
                "cannot be watched: {fault}; it is looked through every second instead, more rarely \
                 where that takes long (raise fs.inotify.max_user_watches or max_user_instances if \
                 they are used up)"
            );
            reported(path, Severity::Warning, &words)
        })
    }

    /// What events said since the last look.
    pub(super) fn pending(&self) -> &Pending {
        &self.pending
    }

    /// A look was taken: what was named is no news any more.
    pub(super) fn looked(&mut self, now: Instant) {
        let Pending {
            named,
            being_written,
            since,
            is_vague,
        } = &mut self.pending;
        // Files that are being written stay named until they were read.
        named.retain(|path| {
            being_written
                .get(path)
                .is_some_and(|last| now.saturating_duration_since(*last) < WRITTEN_AFTER)
        });
        being_written.retain(|path, _| named.contains(path));
        *since = None;
        *is_vague = false;
    }

    /// Waits for an event, at most `timeout`, and gathers those that come with it.
    pub(super) fn wait(&mut self, timeout: Duration, quiet: Duration, at_most: Duration) {
        let first = match self.receiver.recv_timeout(timeout) {
            Ok(event) => event,
            // Our own sender keeps the channel open.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
        };
        let began = Instant::now();
        self.take(first);
        while began.elapsed() < at_most {
            match self.receiver.recv_timeout(quiet) {
                Ok(event) => self.take(event),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        self.pending.is_vague |= self.overflowed.swap(false, Ordering::Relaxed);
    }

    fn take(&mut self, event: notify::Result<notify::Event>) {
        match event {
            Ok(event) => self.pending.take(event, Instant::now()),
            // Whatever it is, looking is the answer.
            Err(error) => {
                tracing::debug!(%error, "inotify");
                self.pending.is_vague = true;
                self.pending.since.get_or_insert_with(Instant::now);
            }
        }
    }
}
