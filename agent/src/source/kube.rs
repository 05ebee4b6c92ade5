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
mod taint;
mod trimmed;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_policy::model::Finding;
use jiff::Timestamp;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::Batch;
use super::object::Kind;
use backoff::up_to;
use follow::{Follower, News, Unheard};
use kinds::WATCHED;
use mirror::Mirror;
use table::Doubt;
use taint::{Keeper, Tainted};

pub use api::{Access, AccessError};

/// Batches under way to the reconciler; a full channel stops the reading of watches, nothing else.
const BATCHES: usize = 16;
/// News under way to the mirror. A piece may be some items of a list.
const NEWS: usize = 256;
/// News that one batch is made of at most, so that a flood of them is told as it comes.
const NEWS_AT_ONCE: usize = 4096;
/// Agents that are started at one moment do not all ask at another.
const START_WITHIN: Duration = Duration::from_millis(500);

/// The node that an agent runs on, as far as the source has to do with it.
#[derive(Debug)]
pub struct OwnNode {
    /// Name of its object.
    pub name: String,
    /// What is on it is enforced.
    pub is_ready: watch::Receiver<bool>,
}

/// Watches an API. The first batch that is complete has all there is. The startup taint is taken off
/// `own_node` when that is ready. Dropping the stream ends all of it.
///
/// # Errors
/// The way to the API cannot be tried. A server that does not answer is no error, it is waited for.
pub async fn watch(
    access: Access,
    own_node: Option<OwnNode>,
) -> Result<ReceiverStream<Batch>, AccessError> {
    let api = access.open().await?;
    let (batches, stream) = mpsc::channel(BATCHES);
    let (news, heard) = mpsc::channel(NEWS);
    let mirror = Mirror::new(api.url());
    let mut followers = JoinSet::new();
    let mut doubts = HashMap::new();
    let (fault, faults) = watch::channel(None);
    let node: Option<Arc<str>> = own_node.as_ref().map(|own| Arc::from(own.name.as_str()));
    let (tainted, taints) = Tainted::of(node.clone());
    if let Some(own) = own_node {
        let keeper = Keeper::new(access.clone(), api.clone(), own, taints, fault);
        followers.spawn(keeper.run());
    }
    let jitter = up_to(START_WITHIN);
    for watched in &WATCHED {
        let doubt = Arc::new(Notify::new());
        doubts.insert(watched.kind, Arc::clone(&doubt));
        let (access, api) = (access.clone(), api.clone());
        let follower = Follower::new(access, api, watched, news.clone(), doubt).on(node.clone());
        followers.spawn(async move {
            tokio::time::sleep(jitter).await;
            let Unheard = follower.run().await;
        });
    }
    tokio::spawn(async move {
        tell(mirror, heard, tainted, faults, &batches, &doubts).await;
        // Nobody listens any more, to any of them.
        followers.shutdown().await;
    });
    Ok(ReceiverStream::new(stream))
}

/// Makes batches of news until nobody wants them.
async fn tell(
    mut mirror: Mirror,
    mut heard: mpsc::Receiver<(Kind, News)>,
    tainted: Tainted,
    mut faults: watch::Receiver<Option<Finding>>,
    batches: &mpsc::Sender<Batch>,
    doubts: &HashMap<Kind, Arc<Notify>>,
) {
    loop {
        let mut next = tokio::select! {
            Some(first) = heard.recv() => Some(first),
            Ok(()) = faults.changed() => None,
            () = batches.closed() => return,
            else => return,
        };
        let noticed = Instant::now();
        mirror.hear_of_taint(faults.borrow_and_update().clone());
        let mut taken = 0;
        while let Some((kind, news)) = next {
            tainted.hear(kind, &news);
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
