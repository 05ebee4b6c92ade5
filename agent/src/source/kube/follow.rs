//! Keeps up with one kind: a list, then a watch from where the list was, again and again. Says what
//! it hears ([`News`]) and leaves to others what that means.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::sync::{Notify, mpsc};

use super::super::object::Kind;
use super::api::{Access, Answer, Api, Failure, Status};
use super::backoff::{Backoff, up_to};
use super::items::{Items, NoList};
use super::kinds::{Id, Item, Nameless, Reader, Watched, version};
use super::lines::Lines;

/// Items of a list asked for at a time; a server that lists from memory may send all of them.
const PAGE: usize = 500;
/// A list's answer begins within this time, and goes on without longer silence.
const LIST_WITHIN: Duration = Duration::from_secs(30);
/// A watch is accepted within this time.
const WATCH_WITHIN: Duration = Duration::from_secs(15);
/// A watch that is silent for longer is not believed: servers send a bookmark every minute. The
/// connection may be dead, or the server waits for a version that it will not reach for long, since
/// its store was put back to an earlier day (kubernetes/kubernetes#107457).
const SILENCE: Duration = Duration::from_secs(100);
/// Servers are asked to end a watch after this time, and up to as much again.
const WATCH_FOR: Duration = Duration::from_mins(5);
/// A watch that ends sooner, without a word, has failed.
const SHORT_WATCH: Duration = Duration::from_secs(1);
/// Watches refused one after the other until it is asked for a list: it may be the version.
const REFUSED_WATCHES: u32 = 3;
/// A kind that the server does not have is looked for again after this time.
const LOOK_AGAIN: Duration = Duration::from_mins(1);

/// What is heard of one kind.
#[derive(Debug)]
pub(super) enum News {
    /// A list begins. One that has begun before and did not end has failed.
    ListBegins,
    /// Some of its objects.
    Listed(Vec<Item>),
    /// It is whole, and was true at this version.
    ListEnds(u64),
    /// An object came or changed.
    Put(Item),
    /// An object went; the version is that of its end.
    Gone(Id),
    /// The server does not do what it is asked for. Told each time.
    Failed(Failure),
    /// It does again.
    Works,
}

/// Whoever follows has nobody to tell any more.
#[derive(Debug)]
pub(super) struct Unheard;

/// Why a list or watch ended before its time.
enum Stopped {
    Failed(Failure),
    Unheard,
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Unheard> for Stopped {
    fn from(Unheard: Unheard) -> Self {
        Self::Unheard
    }
}

impl From<NoList> for Failure {
    fn from(problem: NoList) -> Self {
        match problem {
            // The server died in its middle.
            NoList::CutShort => Self::Unreachable(problem.to_string()),
            NoList::TooLarge | NoList::Malformed => Self::Garbled(problem.to_string()),
        }
    }
}

impl From<Nameless> for Failure {
    fn from(problem: Nameless) -> Self {
        Self::Garbled(problem.to_string())
    }
}

/// How a list is asked for: first as the server likes best.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Manner {
    /// From the server's memory, not older than what is known.
    Remembered,
    /// As it is in the store, in pages.
    Stored,
    /// The same at once: pages can expire.
    StoredWhole,
}

impl Manner {
    fn next(self) -> Self {
        match self {
            Self::Remembered => Self::Stored,
            Self::Stored => Self::StoredWhole,
            // Who knows what the server has learnt since.
            Self::StoredWhole => Self::Remembered,
        }
    }
}

/// See the module.
pub(super) struct Follower {
    access: Access,
    api: Api,
    watched: &'static Watched,
    reader: Reader,
    news: mpsc::Sender<(Kind, News)>,
    /// Asks for a list.
    doubts: Arc<Notify>,
    backoff: Backoff,
    /// Of lists that are asked for because a watch has lapsed, one after the other.
    lapses: Backoff,
    manner: Manner,
    /// Watches refused, or ended with an error, since one spoke.
    refused: u32,
    is_failing: bool,
    /// The last version that was heard of.
    latest: Option<u64>,
}

impl Follower {
    /// Lists are not asked for that are older than `latest`.
    pub(super) fn new(
        access: Access,
        api: Api,
        watched: &'static Watched,
        news: mpsc::Sender<(Kind, News)>,
        doubts: Arc<Notify>,
        latest: Option<u64>,
    ) -> Self {
        Self {
            access,
            api,
            watched,
            reader: Reader::new(watched),
            news,
            doubts,
            backoff: Backoff::default(),
            lapses: Backoff::default(),
            manner: Manner::Remembered,
            refused: 0,
            is_failing: false,
            latest,
        }
    }

    /// One that also looks for startup taints on the node of this name.
    pub(super) fn on(self, own_node: Option<Arc<str>>) -> Self {
        let reader = self.reader.on(own_node);
        Self { reader, ..self }
    }

    /// Runs until nobody listens.
    pub(super) async fn run(mut self) -> Unheard {
        let mut is_listed = false;
        loop {
            let stopped = if is_listed {
                self.watch().await
            } else {
                let listed = self.list().await;
                self.reader.end_list();
                listed.map(|()| is_listed = true)
            };
            let failure = match stopped {
                Ok(()) => continue,
                Err(Stopped::Unheard) => return Unheard,
                Err(Stopped::Failed(failure)) => failure,
            };
            let pause = match &failure {
                // Nothing is wrong with the server: it forgets what is old.
                Failure::Expired if is_listed => {
                    is_listed = false;
                    tokio::time::sleep(self.lapses.after_failure()).await;
                    continue;
                }
                Failure::Absent => {
                    is_listed = false;
                    if self.watched.may_be_absent {
                        LOOK_AGAIN + up_to(LOOK_AGAIN / 10)
                    } else {
                        self.backoff.after_failure()
                    }
                }
                // It may not know the version, say since its store was put back to an earlier day.
                Failure::Expired
                | Failure::Refused {
                    code: 400 | 504, ..
                } if !is_listed => {
                    self.manner = self.manner.next();
                    self.backoff.after_failure()
                }
                Failure::Refused { code, pause, .. } => {
                    self.refused += u32::from(matches!(code, 400 | 500 | 504));
                    is_listed &= self.refused < REFUSED_WATCHES;
                    self.backoff.after_failure().max(pause.unwrap_or_default())
                }
                Failure::Forbidden { is_unknown, .. } => {
                    if *is_unknown {
                        self.renew_credentials().await;
                    }
                    self.backoff.after_failure()
                }
                // What is garbled once may have been understood wrongly before: from the start.
                Failure::Garbled(_) => {
                    is_listed = false;
                    self.backoff.after_failure()
                }
                // Perhaps because its certificate is another authority's now.
                Failure::Unreachable(_) => {
                    self.renew_credentials().await;
                    self.backoff.after_failure()
                }
                Failure::Expired => self.backoff.after_failure(),
            };
            self.is_failing = true;
            if self.tell(News::Failed(failure)).await.is_err() {
                return Unheard;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.news.closed() => return Unheard,
            }
        }
    }

    async fn tell(&self, news: News) -> Result<(), Unheard> {
        let sent = self.news.send((self.watched.kind, news)).await;
        sent.map_err(|_closed| Unheard)
    }

    async fn tell_of_success(&mut self) -> Result<(), Unheard> {
        if std::mem::take(&mut self.is_failing) {
            self.tell(News::Works).await?;
        }
        Ok(())
    }

    /// Files that say who we are may have been replaced.
    async fn renew_credentials(&mut self) {
        match self.access.open().await {
            Ok(api) => self.api = api,
            Err(error) => tracing::debug!(%error, "credentials cannot be read anew"),
        }
    }

    async fn list(&mut self) -> Result<(), Stopped> {
        self.tell(News::ListBegins).await?;
        let mut first: Option<u64> = None;
        let mut page = self.first_page();
        let version = loop {
            let answer = self.api.get(&page, LIST_WITHIN).await?;
            let envelope = self.read_page(answer).await?;
            // Later pages are of the first one's version.
            let version = *first.get_or_insert(
                version(&envelope.metadata.resource_version).map_err(Failure::from)?,
            );
            match envelope.metadata.next {
                Some(token) if !token.is_empty() => {
                    let token = escaped(&token);
                    page = format!("{}?limit={PAGE}&continue={token}", self.watched.path);
                }
                Some(_) | None => break version,
            }
        };
        self.tell(News::ListEnds(version)).await?;
        self.latest = Some(version);
        self.refused = 0;
        self.manner = Manner::Remembered;
        self.backoff.reset();
        self.tell_of_success().await?;
        Ok(())
    }

    fn first_page(&self) -> String {
        let path = self.watched.path;
        match (self.manner, self.latest) {
            (Manner::Remembered, None) => format!("{path}?limit={PAGE}&resourceVersion=0"),
            (Manner::Remembered, Some(latest)) => format!(
                "{path}?limit={PAGE}&resourceVersion={latest}&resourceVersionMatch=NotOlderThan"
            ),
            (Manner::Stored, _) => format!("{path}?limit={PAGE}"),
            (Manner::StoredWhole, _) => path.to_owned(),
        }
    }

    async fn read_page(&mut self, mut answer: Answer) -> Result<Envelope, Stopped> {
        let mut items = Items::default();
        while let Some(bytes) = answer.next(LIST_WITHIN).await? {
            let mut found = Vec::new();
            items.feed(&bytes, |item| {
                found.push(self.reader.read_listed(item)?);
                Ok::<(), Failure>(())
            })?;
            if !found.is_empty() {
                self.tell(News::Listed(found)).await?;
            }
        }
        let envelope = items.finish().map_err(Failure::from)?;
        let envelope: Envelope = serde_json::from_slice(&envelope)
            .map_err(|error| Failure::Garbled(format!("the list: {error}")))?;
        if envelope.kind != self.watched.list {
            let problem = format!("a {:?} instead of a {}", envelope.kind, self.watched.list);
            return Err(Failure::Garbled(problem).into());
        }
        Ok(envelope)
    }

    /// Watches until the server ends it, and whoever calls this watches again.
    async fn watch(&mut self) -> Result<(), Stopped> {
        let began = Instant::now();
        let within = WATCH_FOR + up_to(WATCH_FOR);
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={}",
            self.watched.path,
            self.latest.unwrap_or_default(),
            within.as_secs()
        );
        let mut answer = self.api.get(&path, WATCH_WITHIN).await?;
        self.tell_of_success().await?;
        let mut lines = Lines::default();
        let mut has_spoken = false;
        let doubts = Arc::clone(&self.doubts);
        loop {
            let next = tokio::select! {
                next = tokio::time::timeout(SILENCE, answer.next(2 * SILENCE)) => next,
                () = doubts.notified() => return Err(Failure::Expired.into()),
                () = self.news.closed() => return Err(Stopped::Unheard),
            };
            let bytes = match next {
                Ok(Ok(Some(bytes))) => bytes,
                // It died, or ended it: the next request will tell.
                Ok(Ok(None) | Err(_)) if has_spoken || began.elapsed() > SHORT_WATCH => {
                    return Ok(());
                }
                Ok(Ok(None)) => {
                    return Err(Failure::Unreachable("watches end at once".to_owned()).into());
                }
                Ok(Err(failure)) => return Err(failure.into()),
                Err(_silent) => return Err(Failure::Expired.into()),
            };
            lines.push(&bytes);
            while let Some(line) = lines.next().map_err(Failure::from)? {
                let (latest, news) = self.read_event(&line)?;
                if news.is_none() && Some(latest) < self.latest {
                    // A bookmark of an earlier day.
                    return Err(Failure::Expired.into());
                }
                self.latest = self.latest.max(Some(latest));
                if let Some(news) = news {
                    self.tell(news).await?;
                }
                has_spoken = true;
                self.refused = 0;
                self.backoff.reset();
                self.lapses.reset();
            }
        }
    }

    /// What an event says, and its version.
    fn read_event(&mut self, line: &[u8]) -> Result<(u64, Option<News>), Failure> {
        let garbled =
            |error: serde_json::Error| Failure::Garbled(format!("an event of the watch: {error}"));
        let event: Event<'_> = serde_json::from_slice(line).map_err(garbled)?;
        let object = event.object.get().as_bytes();
        match &*event.happened {
            "ADDED" | "MODIFIED" => {
                let item = self.reader.read(object)?;
                Ok((item.id.version, Some(News::Put(item))))
            }
            "DELETED" => {
                let id = self.reader.identify(object)?;
                Ok((id.version, Some(News::Gone(id))))
            }
            "BOOKMARK" => {
                let bookmark: Bookmark = serde_json::from_slice(object).map_err(garbled)?;
                Ok((version(&bookmark.metadata.resource_version)?, None))
            }
            "ERROR" => {
                let status: Status = serde_json::from_slice(object).map_err(garbled)?;
                Err(status.into())
            }
            other => Err(Failure::Garbled(format!(
                "an event of the watch is {other:?}, which is no kind of event"
            ))),
        }
    }
}

/// A list without its items.
#[derive(Debug, Deserialize)]
struct Envelope {
    kind: String,
    metadata: ListMeta,
    /// There, and nothing in it: else items were somewhere that nobody looked.
    #[serde(rename = "items", deserialize_with = "taken_out")]
    _items: Option<[(); 0]>,
}

// A field that is read by a function may not be missing.
fn taken_out<'de, D: Deserializer<'de>>(items: D) -> Result<Option<[(); 0]>, D::Error> {
    Option::deserialize(items)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    next: Option<String>,
}

/// A line of a watch.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type", borrow)]
    happened: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: BookmarkMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkMeta {
    resource_version: String,
}

/// A value of a query.
fn escaped(text: &str) -> String {
    let of = |byte: u8| match byte {
        byte if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) => {
            char::from(byte).to_string()
        }
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_whose_items_nobody_has_looked_at_is_none() {
        let read = |text: &str| serde_json::from_str::<Envelope>(text);
        let metadata = r#""kind":"PodList","metadata":{"resourceVersion":"1"}"#;
        assert!(read(&format!(r#"{{{metadata},"items":[]}}"#)).is_ok());
        assert!(read(&format!(r#"{{{metadata},"items":null}}"#)).is_ok());
        assert!(read(&format!(r#"{{{metadata},"items":[{{}}]}}"#)).is_err());
        assert!(read(&format!("{{{metadata}}}")).is_err());
        assert!(read(r#"{"kind":"PodList","items":[]}"#).is_err());
    }

    #[test]
    fn a_query_keeps_its_value_whatever_is_in_it() {
        assert_eq!(escaped("aZ0-_.~"), "aZ0-_.~");
        assert_eq!(escaped("a+/=&ü"), "a%2B%2F%3D%26%C3%BC");
    }
}
