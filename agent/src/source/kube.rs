//! A Kubernetes API as a source of objects: lists, then watches, from then on as long as somebody
//! listens.
//!
//! One task a kind keeps up with the server (`follow`), one holds what that amounts to (`mirror`)
//! and tells batches: the first when a whole list of every kind is here, then whatever events are
//! waiting at a moment. Nothing waits for more to come. A list that repeats what is known, as after
//! an outage, tells the difference alone. While the server does not answer, refuses, or says what
//! cannot be understood, what was known stays, and a finding says so. What is told is kept on disk
//! before (`kept`), for whoever starts while the server is silent.

mod api;
mod backoff;
mod blocks;
mod follow;
mod items;
mod kept;
mod kinds;
mod lines;
mod mirror;
mod table;
mod taint;
mod trimmed;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_policy::model::Finding;
use jiff::Timestamp;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::Batch;
use super::object::Kind;
use api::Api;
use backoff::up_to;
use follow::{Follower, News, Unheard};
use kept::Kept;
use kinds::WATCHED;
use mirror::Mirror;
use table::{Doubt, Told};
use taint::{Keeper, Tainted};

pub use api::{Access, AccessError};
pub use kept::forget;

/// Batches under way to the reconciler; a full channel stops the reading of watches, nothing else.
const BATCHES: usize = 16;
/// News under way to the mirror. A piece may be some items of a list.
const NEWS: usize = 256;
/// News that one batch is made of at most, so that a flood of them is told as it comes.
const NEWS_AT_ONCE: usize = 4096;
/// Agents that are started at one moment do not all ask at another.
const START_WITHIN: Duration = Duration::from_millis(500);
/// A server that has refused or not answered until then, and not said what there is, is not waited
/// for any longer: what is kept counts.
const RECALL_AFTER: Duration = Duration::from_secs(10);

/// The node that an agent runs on, as far as the source has to do with it.
#[derive(Debug)]
pub struct OwnNode {
    /// Name of its object.
    pub name: String,
    /// What is on it is enforced.
    pub is_ready: watch::Receiver<bool>,
}

/// Watches an API. The first batch that is complete has all there is. What is told is kept in the
/// directory `state`. The startup taint is taken off `own_node` when that is ready. Dropping the
/// stream ends all of it.
///
/// # Errors
/// The way to the API cannot be tried. A server that does not answer is no error, it is waited for.
pub async fn watch(
    access: Access,
    state: &Path,
    own_node: Option<OwnNode>,
) -> Result<ReceiverStream<Batch>, AccessError> {
    let api = access.open().await?;
    let (batches, stream) = mpsc::channel(BATCHES);
    let kept = Kept::new(state, api.url());
    let node: Option<Arc<str>> = own_node.as_ref().map(|own| Arc::from(own.name.as_str()));
    let (tainted, taints) = Tainted::of(node.clone());
    let (fault, faults) = watch::channel(None);
    let keeper = own_node.map(|own| Keeper::new(access.clone(), api.clone(), own, taints, fault));
    tokio::spawn(async move {
        let mut beside = JoinSet::new();
        if let Some(keeper) = keeper {
            beside.spawn(keeper.run());
        }
        let (kept, known) = blocking(move || {
            let known = kept.versions();
            (kept, known)
        })
        .await;
        let watch = Watch {
            mirror: Mirror::new(api.url()),
            kept: Some(kept),
            access,
            api,
            node,
            tainted,
            faults,
            batches,
        };
        let Unheard = watch.run(&known).await;
        // Nobody listens any more, to any of them.
        beside.shutdown().await;
    });
    Ok(ReceiverStream::new(stream))
}

/// A watch of all kinds.
struct Watch {
    access: Access,
    api: Api,
    mirror: Mirror,
    /// Gone when it could not be written.
    kept: Option<Kept>,
    /// Our own.
    node: Option<Arc<str>>,
    tainted: Tainted,
    /// What is wrong with the startup taint.
    faults: watch::Receiver<Option<Finding>>,
    batches: mpsc::Sender<Batch>,
}

/// Those that keep up with the kinds; they end with the value.
struct Following {
    news: mpsc::Receiver<(Kind, News)>,
    /// Asks one of them for a list.
    doubts: HashMap<Kind, Arc<Notify>>,
    _followers: JoinSet<()>,
}

impl Watch {
    /// Runs until nobody wants batches. An agent before this one knew of the versions `known`.
    async fn run(mut self, known: &BTreeMap<Kind, u64>) -> Unheard {
        let mut following = self.follow(known);
        let recall = tokio::time::sleep(RECALL_AFTER);
        tokio::pin!(recall);
        let mut may_recall = true;
        loop {
            let first = tokio::select! {
                Some(first) = following.news.recv() => Some(first),
                Ok(()) = self.faults.changed() => None,
                () = self.batches.closed() => return Unheard,
                () = &mut recall, if may_recall && self.mirror.is_in_need() => {
                    may_recall = false;
                    if let Some(mirror) = self.recall().await {
                        self.mirror = mirror;
                        // What they were in the middle of must not be mixed with it.
                        following = self.follow(&self.mirror.versions());
                        if self.tell(Instant::now()).await.is_err() {
                            return Unheard;
                        }
                    }
                    continue;
                }
                else => return Unheard,
            };
            let noticed = Instant::now();
            self.hear(first, &mut following);
            if self.tell(noticed).await.is_err() {
                return Unheard;
            }
        }
    }

    /// Lists are not asked for that are older than what is `known`.
    fn follow(&self, known: &BTreeMap<Kind, u64>) -> Following {
        let (news, heard) = mpsc::channel(NEWS);
        let mut followers = JoinSet::new();
        let mut doubts = HashMap::new();
        let jitter = up_to(START_WITHIN);
        for watched in &WATCHED {
            let doubt = Arc::new(Notify::new());
            doubts.insert(watched.kind, Arc::clone(&doubt));
            let latest = known.get(&watched.kind).copied();
            let (access, api) = (self.access.clone(), self.api.clone());
            let follower = Follower::new(access, api, watched, news.clone(), doubt, latest)
                .on(self.node.clone());
            followers.spawn(async move {
                tokio::time::sleep(jitter).await;
                let Unheard = follower.run().await;
            });
        }
        Following {
            news: heard,
            doubts,
            _followers: followers,
        }
    }

    /// Takes in what there is to hear at this moment.
    fn hear(&mut self, first: Option<(Kind, News)>, following: &mut Following) {
        let mut next = first;
        let mut taken = 0;
        while let Some((kind, news)) = next {
            self.tainted.hear(kind, &news);
            if self.mirror.hear(kind, news, Timestamp::now()) == Doubt(true)
                && let Some(doubt) = following.doubts.get(&kind)
            {
                doubt.notify_one();
            }
            taken += 1;
            next = (taken < NEWS_AT_ONCE)
                .then(|| following.news.try_recv().ok())
                .flatten();
        }
    }

    /// Says what is new: first to the disk, then to whoever listens.
    async fn tell(&mut self, noticed: Instant) -> Result<(), Unheard> {
        let fault = self.faults.borrow_and_update().clone();
        self.mirror.hear_of_taint(fault);
        while let Some((batch, told)) = self.mirror.take_batch(noticed) {
            if batch.is_complete {
                self.keep(told).await;
            }
            self.batches
                .send(batch)
                .await
                .map_err(|_unwanted| Unheard)?;
        }
        Ok(())
    }

    async fn keep(&mut self, told: Vec<Told>) {
        let Some(kept) = self.kept.take() else {
            return;
        };
        let file = kept.path().to_owned();
        let versions = self.mirror.versions();
        let until = self.mirror.known_until(Timestamp::now());
        let kept = blocking(move || kept.keep(&told, &versions, until)).await;
        match kept {
            Ok(kept) => self.kept = Some(kept),
            Err(error) => self.mirror.cannot_keep(&file, &error),
        }
    }

    /// A mirror that knows what is kept, if anything is.
    async fn recall(&mut self) -> Option<Mirror> {
        let kept = self.kept.take()?;
        let (kept, recalled) = blocking(move || {
            let recalled = kept.recall();
            (kept, recalled)
        })
        .await;
        let file = kept.path().to_owned();
        self.kept = Some(kept);
        match recalled {
            Ok(recalled) => {
                let recalled = recalled?;
                tracing::warn!(
                    server = self.api.url(),
                    until = %recalled.until,
                    file = %file.display(),
                    "the API server has said nothing yet: what is kept on disk counts"
                );
                Some(Mirror::recalling(self.api.url(), recalled, &file))
            }
            Err(error) => {
                tracing::error!(%error, "what is kept on disk cannot be used; the server is waited for");
                None
            }
        }
    }
}

/// Runs what waits for a disk where nothing else has to wait for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and with it whoever waits here.
            Err(_cancelled) => std::future::pending().await,
        },
    }
}
