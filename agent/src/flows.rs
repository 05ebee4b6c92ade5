//! What the kernel reports, for people: records are decoded, joined with names, folded into edges
//! and handed to whoever follows. One task owns all of it; others ask by message.

mod aggregate;
pub mod decode;
pub mod join;

use std::collections::VecDeque;
use std::sync::Arc;

use agent_common::maps::Counter;
use bytes::Bytes;
use futures::FutureExt as _;
use tokio::sync::{broadcast, mpsc, oneshot};

use self::aggregate::Edges;
use self::decode::Observation;
use crate::dto::{EdgeList, Flow, FlowList};
use crate::reconcile::{Handle, Record, View};

/// Latest flows that are kept for those who come later.
const RECENT: usize = 1_024;
/// Records joined in one reading of the loop's state.
const BATCH: usize = 256;
/// Flows a slow follower may lag behind before it loses some.
const BACKLOG: usize = 4_096;

/// What a follower gets.
#[derive(Clone, Debug)]
pub enum Live {
    /// A flow.
    Flow(Arc<Flow>),
    /// This many were lost before this place.
    Lost(u64),
}

#[derive(Debug)]
enum Request {
    Edges(oneshot::Sender<EdgeList>),
    Recent(oneshot::Sender<FlowList>),
}

/// A way to ask for flows. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Flows {
    requests: mpsc::Sender<Request>,
    live: broadcast::Sender<Live>,
}

/// The task is over: the agent stops.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the agent is shutting down")]
pub struct Stopped;

impl Flows {
    /// Every edge since the agent started.
    ///
    /// # Errors
    /// The agent stops.
    pub async fn edges(&self) -> Result<EdgeList, Stopped> {
        self.ask(Request::Edges).await
    }

    /// The latest flows.
    ///
    /// # Errors
    /// The agent stops.
    pub async fn recent(&self) -> Result<FlowList, Stopped> {
        self.ask(Request::Recent).await
    }

    /// Flows from now on.
    pub fn follow(&self) -> broadcast::Receiver<Live> {
        self.live.subscribe()
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.requests
            .send(request(answer))
            .await
            .map_err(|_closed| Stopped)?;
        answered.await.map_err(|_closed| Stopped)
    }
}

/// The task and the way to ask it. The future ends when the agent stops.
pub fn start(handle: Handle) -> (Flows, impl Future<Output = ()> + Send) {
    let (requests, asked) = mpsc::channel(16);
    let (live, _) = broadcast::channel(BACKLOG);
    let flows = Flows {
        requests,
        live: live.clone(),
    };
    let task = Task {
        handle,
        asked,
        live,
        edges: Edges::new(jiff::Timestamp::now()),
        recent: VecDeque::with_capacity(RECENT),
        lost: 0,
    };
    (flows, task.run())
}

struct Task {
    handle: Handle,
    asked: mpsc::Receiver<Request>,
    live: broadcast::Sender<Live>,
    edges: Edges,
    recent: VecDeque<Arc<Flow>>,
    /// Records this process lost; the kernel's own losses are in its counter.
    lost: u64,
}

impl Task {
    async fn run(mut self) {
        let mut records = self.handle.records();
        loop {
            tokio::select! {
                record = records.next() => {
                    let Some(record) = record else { return };
                    let mut batch = Vec::new();
                    self.take(record, &mut batch);
                    // What is waiting already comes along in the same reading.
                    while batch.len() < BATCH {
                        match records.next().now_or_never() {
                            Some(Some(record)) => self.take(record, &mut batch),
                            Some(None) | None => break,
                        }
                    }
                    if self.add(batch).await.is_err() {
                        return;
                    }
                }
                Some(request) = self.asked.recv() => self.answer(request).await,
            }
        }
    }

    fn take(&mut self, record: Record, batch: &mut Vec<Observation>) {
        let decoded = |bytes: &Bytes| decode::decode(bytes);
        let lost = match record {
            Record::Event(bytes) => match decoded(&bytes) {
                // It is for who sends resets; its packet is reported by another record.
                Some(Observation { packets: 0, .. }) => return,
                Some(observation) => {
                    batch.push(observation);
                    return;
                }
                None => 1,
            },
            Record::Lost(lost) => lost,
        };
        self.lost += lost;
        // Nobody follows: nobody has to be told.
        drop(self.live.send(Live::Lost(lost)));
    }

    async fn add(&mut self, batch: Vec<Observation>) -> Result<(), crate::reconcile::Stopped> {
        if batch.is_empty() {
            return Ok(());
        }
        let now = jiff::Timestamp::now();
        let flows: Vec<Flow> = self
            .handle
            .ask(move |view| {
                batch
                    .iter()
                    .filter_map(|observation| join::join(view, observation, now))
                    .collect()
            })
            .await?;
        for flow in flows {
            let flow = Arc::new(flow);
            self.edges.add(&flow, now);
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(Arc::clone(&flow));
            drop(self.live.send(Live::Flow(flow)));
        }
        Ok(())
    }

    async fn answer(&self, request: Request) {
        let kernel = self.handle.ask(events_lost).await.unwrap_or_default();
        let lost = self.lost + kernel;
        match request {
            Request::Edges(answer) => {
                drop(answer.send(self.edges.list(jiff::Timestamp::now(), lost)));
            }
            Request::Recent(answer) => {
                let items = self.recent.iter().map(|flow| Flow::clone(flow)).collect();
                drop(answer.send(FlowList {
                    items,
                    events_lost: lost,
                }));
            }
        }
    }
}

/// Events the kernel could not hand over.
fn events_lost(view: &View<'_>) -> u64 {
    // A counter that cannot be read is said by status.
    let counters = view.dataplane.counters().unwrap_or_default();
    let lost = counters
        .iter()
        .find(|(counter, _)| *counter == Counter::EventsLost);
    lost.map_or(0, |(_, count)| *count)
}
