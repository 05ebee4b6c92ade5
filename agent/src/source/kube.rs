//! A Kubernetes API as a source of objects: lists, then watches, from then on as long as somebody
//! listens.
//!
//! One task a kind keeps up with the server (`follow`), one holds what that amounts to (`mirror`)
//! and tells batches: the first when a whole list of every kind is here, then whatever events are
//! waiting at a moment. Nothing waits for more to come. A list that repeats what is known, as after
//! an outage, tells the difference alone. While the server does not answer, refuses, or says what
//! cannot be understood, what was known stays, and a finding says so.

mod api;
mod backoff;
mod follow;
mod items;
mod kinds;
mod lines;
mod mirror;
mod table;
mod trimmed;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::Batch;
use super::object::Kind;
use backoff::up_to;
use follow::{Follower, News, Unheard};
use kinds::WATCHED;
use mirror::Mirror;
use table::Doubt;

pub use api::{Access, AccessError};

/// Batches under way to the reconciler; a full channel stops the reading of watches, nothing else.
const BATCHES: usize = 16;
/// News under way to the mirror. A piece may be some items of a list.
const NEWS: usize = 256;
/// News that one batch is made of at most, so that a flood of them is told as it comes.
const NEWS_AT_ONCE: usize = 4096;
/// Agents that are started at one moment do not all ask at another.
const START_WITHIN: Duration = Duration::from_millis(500);

/// Watches an API. The first batch that is complete has all there is. Dropping the stream ends the
/// watch.
///
/// # Errors
/// The way to the API cannot be tried. A server that does not answer is no error, it is waited for.
pub async fn watch(access: Access) -> Result<ReceiverStream<Batch>, AccessError> {
    let api = access.open().await?;
    let (batches, stream) = mpsc::channel(BATCHES);
    let (news, heard) = mpsc::channel(NEWS);
    let mirror = Mirror::new(api.url());
    let mut followers = JoinSet::new();
    let mut doubts = HashMap::new();
    let jitter = up_to(START_WITHIN);
    for watched in &WATCHED {
        let doubt = Arc::new(Notify::new());
        doubts.insert(watched.kind, Arc::clone(&doubt));
        let follower = Follower::new(access.clone(), api.clone(), watched, news.clone(), doubt);
        followers.spawn(async move {
            tokio::time::sleep(jitter).await;
            let Unheard = follower.run().await;
        });
    }
    tokio::spawn(async move {
        tell(mirror, heard, &batches, &doubts).await;
        // Nobody listens any more, to any of them.
        followers.shutdown().await;
    });
    Ok(ReceiverStream::new(stream))
}

/// Makes batches of news until nobody wants them.
async fn tell(
    mut mirror: Mirror,
    mut heard: mpsc::Receiver<(Kind, News)>,
    batches: &mpsc::Sender<Batch>,
    doubts: &HashMap<Kind, Arc<Notify>>,
) {
    loop {
        let first = tokio::select! {
            first = heard.recv() => first,
            () = batches.closed() => None,
        };
        let Some(first) = first else {
            return;
        };
        let noticed = Instant::now();
        let mut next = Some(first);
        let mut taken = 0;
        while let Some((kind, news)) = next {
            if mirror.hear(kind, news, Timestamp::now()) == Doubt(true)
                && let Some(doubt) = doubts.get(&kind)
            {
                doubt.notify_one();
            }
            taken += 1;
            next = (taken < NEWS_AT_ONCE)
                .then(|| heard.try_recv().ok())
                .flatten();
        }
        if let Some(batch) = mirror.take_batch(noticed)
            && batches.send(batch).await.is_err()
        {
            return;
        }
    }
}
