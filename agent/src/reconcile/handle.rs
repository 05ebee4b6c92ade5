//! What everyone else holds of the loop: a way to ask, and the kernel's records as they come.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::timeout;

use super::{Question, View};

/// Whoever waits for something asks this often at least.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// The loop has ended.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the agent is shutting down")]
pub struct Stopped;

/// A way to ask the loop. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    questions: mpsc::Sender<Question>,
    records: broadcast::Sender<Bytes>,
    rounds: watch::Receiver<()>,
}

impl Handle {
    pub(crate) fn new(
        questions: mpsc::Sender<Question>,
        records: broadcast::Sender<Bytes>,
        rounds: watch::Receiver<()>,
    ) -> Self {
        Self {
            questions,
            records,
            rounds,
        }
    }

    /// Runs a reading of the state on the loop, between two plans, and returns what it found.
    /// The reading must be short: no plan is applied meanwhile.
    ///
    /// # Errors
    /// The loop has ended.
    pub async fn ask<R: Send + 'static>(
        &self,
        read: impl FnOnce(&View<'_>) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        let (answer, answered) = oneshot::channel();
        let question = Question(Box::new(move |view| {
            // Whoever asked may have gone; then the answer is of no use to anyone.
            drop(answer.send(read(view)));
        }));
        self.questions
            .send(question)
            .await
            .map_err(|_closed| Stopped)?;
        answered.await.map_err(|_closed| Stopped)
    }

    /// Asks again after each round of the loop, and now and then, until there is an answer.
    ///
    /// # Errors
    /// The loop has ended.
    pub async fn ask_until<R: Send + 'static>(
        &self,
        read: impl Fn(&View<'_>) -> Option<R> + Clone + Send + 'static,
    ) -> Result<R, Stopped> {
        let mut rounds = self.rounds.clone();
        loop {
            rounds.mark_unchanged();
            if let Some(answer) = self.ask(read.clone()).await? {
                return Ok(answer);
            }
            if let Ok(Err(_closed)) = timeout(ASK_AGAIN, rounds.changed()).await {
                return Err(Stopped);
            }
        }
    }

    /// The kernel's flow events from now on, each a `agent_common::event::FlowEvent` in bytes.
    pub fn records(&self) -> Records {
        Records(self.records.subscribe())
    }
}

/// A reader of the kernel's records.
#[derive(Debug)]
pub struct Records(broadcast::Receiver<Bytes>);

/// One thing a reader of records learns.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Record {
    /// A record of the ring buffer.
    Event(Bytes),
    /// This many records were lost because the reader was too slow.
    Lost(u64),
}

impl Records {
    /// The next record; `None` when the agent stops.
    pub async fn next(&mut self) -> Option<Record> {
        match self.0.recv().await {
            Ok(bytes) => Some(Record::Event(bytes)),
            Err(broadcast::error::RecvError::Lagged(lost)) => Some(Record::Lost(lost)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
