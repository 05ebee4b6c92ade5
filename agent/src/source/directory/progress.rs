//! What the watching thread waits for: a file on a network mount may hang whoever looks at it, and
//! nobody can look at the others then. Another thread says so.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent_policy::model::Severity;
use tokio::sync::mpsc;

use super::{Batch, Reported, reported};

/// What answers no sooner is told of.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the other thread has a look.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the file system is being asked, and what was told last.
#[derive(Debug, Default)]
struct State {
    /// What is asked about; its content does not count while `since` is `None`.
    path: PathBuf,
    since: Option<Instant>,
    is_complete: bool,
    findings: Vec<Reported>,
    /// Somebody was told that there is no answer.
    is_told: bool,
}

/// Shared by those who ask the file system and those who wonder.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<Mutex<State>>);

impl Progress {
    /// Asks the file system about a path; whoever wonders is told which.
    pub(super) fn ask<T>(&self, path: &Path, question: impl FnOnce() -> T) -> T {
        self.with(|state| {
            // Many questions, one place.
            state.path.as_mut_os_string().clear();
            state.path.as_mut_os_string().push(path);
            state.since = Some(Instant::now());
        });
        let answer = question();
        self.with(|state| state.since = None);
        answer
    }

    /// What is told now; true when something else was told by the other thread.
    pub(super) fn tell(&self, findings: &[Reported], is_complete: bool) -> bool {
        self.with(|state| {
            findings.clone_into(&mut state.findings);
            state.is_complete = is_complete;
            std::mem::take(&mut state.is_told)
        })
    }

    /// Says for as long as somebody listens what there is no answer about.
    pub(super) fn wonder(&self, batches: &mpsc::Sender<Batch>) {
        while !batches.is_closed() {
            std::thread::park_timeout(LOOK_EVERY);
            self.with(|state| {
                if let Some(batch) = state.overdue(Instant::now()) {
                    // Where there is no room, there is next time.
                    state.is_told = batches.try_send(batch).is_ok();
                }
            });
        }
    }

    fn with<T>(&self, what: impl FnOnce(&mut State) -> T) -> T {
        // A panic between two assignments leaves nothing that is wrong.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        what(&mut state)
    }
}

impl State {
    /// What is to be said of a question without an answer, once.
    fn overdue(&self, now: Instant) -> Option<Batch> {
        let since = self.since?;
        if self.is_told || now.saturating_duration_since(since) < PATIENCE {
            return None;
        }
        let words = format!(
            "has not answered for {} seconds; until it does, no change of any file is noticed, and \
             what is in force stays: see whether its file system is still there",
            PATIENCE.as_secs()
        );
        let mut findings = self.findings.clone();
        findings.push(reported(&self.path, Severity::Error, &words));
        Some(Batch {
            changes: Vec::new(),
            is_complete: self.is_complete,
            findings,
            noticed: since,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_without_an_answer_is_told_once_beside_what_was_told() {
        let progress = Progress::default();
        let known = [reported(Path::new("a.yaml"), Severity::Warning, "is odd")];
        assert!(!progress.tell(&known, true), "nothing else was told");
        let (batches, mut receiver) = mpsc::channel(2);
        let look = |after: Duration| {
            progress.with(|state| {
                let batch = state.overdue(Instant::now() + after);
                state.is_told |= batch.is_some();
                if let Some(batch) = batch {
                    batches.try_send(batch).unwrap();
                }
            });
        };
        look(PATIENCE);
        progress.ask(Path::new("b.yaml"), || {
            look(Duration::ZERO);
            assert!(receiver.try_recv().is_err(), "not yet");
            look(PATIENCE);
            look(PATIENCE);
        });
        let batch = receiver.try_recv().unwrap();
        assert!(batch.is_complete && batch.changes.is_empty());
        let said: Vec<String> = batch.findings.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[1].starts_with("b.yaml: path: has not answered"));
        assert!(receiver.try_recv().is_err(), "once");
        assert!(progress.tell(&known, true), "what was told is over");
        look(PATIENCE);
        assert!(receiver.try_recv().is_err(), "nothing is asked");
    }
}
