//! Local pods' interfaces, found whatever the CNI: addresses inside network namespaces and the
//! host-side interface behind each. Which pod that is, is decided by `reconcile`.
//!
//! Nothing is asked of a container runtime: every namespace under `/run/netns` is entered and read
//! by netlink, and what the runtime wrote about it is read from CNI's result cache (`cni`), or
//! handed over by the chained plugin, which runs before that is written (`handed`). Links and
//! addresses that come or go, here or in any namespace, and files that are written make it be read
//! again at once; a slow look finds what no message told.

mod cni;
mod handed;
mod netlink;
mod netns;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use crate::inotify::is_of_reading;
use cni::{Records, Results};
use netlink::{Link, Messages};
use netns::Listed;

pub use cni::{DEFAULT_CNI_RESULTS, Sandbox};
pub use handed::{HandError, Handed, Hands, MAX_WORD_BYTES};
pub(crate) use netlink::Connection;
pub use netns::NamespaceFiles;
pub(crate) use netns::Netns;

/// Sightings under way to the reconciler; a full channel stops the looking, nothing else.
const SIGHTINGS: usize = 4;
/// Messages that come within this time of each other cause one look.
const COALESCE: Duration = Duration::from_millis(2);
/// However many messages come, a look is not put off longer than this.
const COALESCE_AT_MOST: Duration = Duration::from_millis(15);
/// Without any message the namespaces are looked through this often.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// A namespace's file is there before the namespace is mounted over it, of which nothing tells: so
/// soon after a sign such files are looked at again, and so many times.
const MOUNTED_WITHIN: (Duration, u32) = (Duration::from_millis(10), 20);

/// Index of a network interface of the node.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct IfIndex(pub u32);

impl fmt::Display for IfIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The host side of a veth whose other end is in a network namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Interface {
    /// Index on the host side.
    pub ifindex: IfIndex,
    /// Name on the host side.
    pub name: String,
    /// Addresses of the other end, link-local IPv6 ones left out, sorted; none at first.
    pub addresses: Vec<IpAddr>,
    /// Name of the other end.
    pub inside: String,
    /// The network namespace's file; empty while none is seen that it leads to.
    pub netns: PathBuf,
    /// What it was made for, if the container runtime has written that down.
    pub sandbox: Option<Sandbox>,
}

/// Addresses inside a namespace that Picket cannot enforce: no veth into the node leads there.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Unreachable {
    /// The network namespace's file.
    pub netns: PathBuf,
    /// The interface inside it.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Why, for people.
    pub why: String,
}

/// Everything that is there now.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// Interfaces that lead into namespaces, by index.
    pub interfaces: BTreeMap<IfIndex, Interface>,
    /// Names of all links of the node: only what is not among them is gone, whatever can be seen
    /// of namespaces.
    pub links: BTreeMap<IfIndex, String>,
    /// Indexes that vanished since the last sighting, also when an interface has the index again.
    pub vanished: BTreeSet<IfIndex>,
    /// Addresses that no interface of the node leads to.
    pub unreachable: Vec<Unreachable>,
    /// When the first sign of the change came.
    pub noticed: Instant,
}

/// Looks for interfaces from now on, beginning with a sighting of what is there. Dropping the
/// stream ends it.
///
/// # Errors
/// The kernel gives no rtnetlink socket, or the thread cannot be started.
pub fn watch(
    netns_dir: &Path,
    cni_results: &Path,
    hands: Hands,
) -> io::Result<ReceiverStream<Sighting>> {
    let (sightings, stream) = mpsc::channel(SIGHTINGS);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // Before the thread enters any namespace: messages are those of this one.
    let messages = {
        let _context = runtime.enter();
        Messages::open()?
    };
    let files = Arc::default();
    let watch = Watch {
        home: Netns::own()?,
        directory: netns_dir.to_owned(),
        known: BTreeMap::new(),
        links: BTreeMap::new(),
        unreachable: None,
        failing: None,
        messages,
        results: Results::of(cni_results, netns_dir),
        hands,
        namespace_files: FileSigns::new(Arc::clone(&files)),
        result_files: FileSigns::new(Arc::clone(&files)),
        files,
        unmounted_looks: 0,
    };
    // A thread of its own, because entering a namespace is a deed of the thread.
    std::thread::Builder::new()
        .name("endpoints".to_owned())
        .spawn(move || runtime.block_on(watch.run(&sightings)))?;
    Ok(ReceiverStream::new(stream))
}

struct Watch {
    home: Netns,
    directory: PathBuf,
    known: BTreeMap<IfIndex, Interface>,
    /// As last told.
    links: BTreeMap<IfIndex, String>,
    /// Why the last look failed, so that it is said once.
    failing: Option<String>,
    /// As last told; `None` before the first sighting.
    unreachable: Option<Vec<Unreachable>>,
    messages: Messages,
    results: Results,
    hands: Hands,
    namespace_files: FileSigns,
    result_files: FileSigns,
    /// Something happened to files of either.
    files: Arc<Notify>,
    /// How often the same unmounted files will be looked at again soon.
    unmounted_looks: u32,
}

impl Watch {
    async fn run(mut self, sightings: &mpsc::Sender<Sighting>) {
        let mut noticed = Instant::now();
        loop {
            let began = Instant::now();
            self.namespace_files.attach(&self.directory);
            self.result_files.attach(self.results.directory());
            match self.look(noticed).await {
                Ok(Some(sighting)) => {
                    self.failing = None;
                    if sightings.send(sighting).await.is_err() {
                        return;
                    }
                }
                Ok(None) => self.failing = None,
                Err(error) => self.fail(&error),
            }
            // At most half of the time is spent looking, however fast things come and go.
            tokio::time::sleep(began.elapsed()).await;
            tokio::select! {
                () = sightings.closed() => return,
                sign = timeout(self.look_again(), self.sign()) => {
                    noticed = Instant::now();
                    if sign.is_ok() {
                        self.gather().await;
                        self.unmounted_looks = MOUNTED_WITHIN.1;
                    }
                }
            }
        }
    }

    fn fail(&mut self, error: &io::Error) {
        let error = error.to_string();
        if self.failing.as_ref() != Some(&error) {
            tracing::warn!(
                error,
                netns = %self.directory.display(),
                "interfaces cannot be listed; endpoints stay as they are"
            );
        }
        self.failing = Some(error);
    }

    /// How long to wait for a sign before the next look.
    fn look_again(&self) -> Duration {
        if self.unmounted_looks > 0 {
            MOUNTED_WITHIN.0
        } else {
            LOOK_AGAIN
        }
    }

    /// Waits for a sign that something may have changed.
    async fn sign(&mut self) {
        tokio::select! {
            () = self.messages.next() => {}
            () = self.files.notified() => {}
            () = self.hands.news() => {}
        }
    }

    /// Waits until no more signs come.
    async fn gather(&mut self) {
        let began = Instant::now();
        while began.elapsed() < COALESCE_AT_MOST && timeout(COALESCE, self.sign()).await.is_ok() {}
    }

    /// One look; a sighting when it differs from the last.
    async fn look(&mut self, noticed: Instant) -> io::Result<Option<Sighting>> {
        let host = netlink::links().await?;
        let listed = netns::list(&self.directory, &self.home)?;
        let mut seen = self.look_inside(listed, &host).await;
        self.home.enter()?;
        // Only now: a look that fails leaves them to the next.
        let vanished = self.messages.take_vanished();

        // The namespace's file may go before the pod does, and a namespace may be unreadable for a
        // moment: an interface that was ours is, until it goes.
        let mut interfaces = std::mem::take(&mut self.known);
        interfaces.retain(|ifindex, interface| {
            let is_here = host.get(&ifindex.0).map(|link| &link.name) == Some(&interface.name);
            is_here && !vanished.contains(ifindex)
        });
        let before = interfaces.clone();
        for (ifindex, mut interface) in std::mem::take(&mut seen.interfaces) {
            // The runtime forgets a pod before its interface goes.
            if let Some(known) = interfaces.remove(&ifindex) {
                interface.sandbox = interface.sandbox.or(known.sandbox);
            }
            interfaces.insert(ifindex, interface);
        }
        seen.unreachable
            .sort_by(|a, b| (&a.netns, &a.interface).cmp(&(&b.netns, &b.interface)));

        let links = host.into_iter();
        let links: BTreeMap<IfIndex, String> = links
            .map(|(index, link)| (IfIndex(index), link.name))
            .collect();

        let is_news = self.unreachable.as_ref() != Some(&seen.unreachable)
            || before != interfaces
            || self.links != links
            || !vanished.is_empty();
        self.known = interfaces;
        self.links = links;
        if !is_news {
            return Ok(None);
        }
        self.unreachable = Some(seen.unreachable.clone());
        Ok(Some(Sighting {
            interfaces: self.known.clone(),
            links: self.links.clone(),
            vanished,
            unreachable: seen.unreachable,
            noticed,
        }))
    }

    /// Enters every namespace in turn. The thread ends up in the last one.
    async fn look_inside(&mut self, listed: Listed, host: &BTreeMap<u32, Link>) -> Seen {
        let mut seen = Seen {
            records: self.results.read(),
            ..Seen::default()
        };
        let is_there = |netns: &OsStr| {
            let mut listed = listed.namespaces.iter();
            listed.any(|each| each.path().file_name() == Some(netns))
        };
        for handed in self.hands.of(is_there) {
            seen.records.add(handed);
        }
        self.unmounted_looks = if listed.has_unmounted {
            self.unmounted_looks.saturating_sub(1)
        } else {
            0
        };
        for netns in listed.namespaces {
            match netlink::inside(&netns, &self.home).await {
                Ok(links) => {
                    for link in links {
                        seen.add(&netns, link, host);
                    }
                }
                // It went, or is of a kind that cannot be entered; the next look tells.
                Err(error) => {
                    tracing::debug!(netns = %netns.path().display(), %error, "cannot be read");
                }
            }
        }
        seen
    }
}

/// What one look found.
#[derive(Default)]
struct Seen {
    records: Records,
    interfaces: BTreeMap<IfIndex, Interface>,
    unreachable: Vec<Unreachable>,
}

impl Seen {
    fn add(&mut self, netns: &Netns, link: netlink::Inside, host: &BTreeMap<u32, Link>) {
        let unreachable = |why: String| Unreachable {
            netns: netns.path().to_owned(),
            interface: link.link.name.clone(),
            addresses: link.addresses.clone(),
            why,
        };
        let has_addresses = !link.addresses.is_empty();
        if link.link.kind != "veth" {
            let kind = match &*link.link.kind {
                "" => "physical",
                kind => kind,
            };
            let why = format!("a {kind} interface; only veth pairs are enforced");
            if has_addresses {
                self.unreachable.push(unreachable(why));
            }
            return;
        }
        let peer = link.peer.filter(|_| link.leads_home);
        match peer.and_then(|index| Some((index, host.get(&index)?))) {
            Some((index, outside)) => {
                let ifindex = IfIndex(index);
                let inside = link.link.name;
                let sandbox = self.records.of(netns.path(), &inside, &outside.name);
                let sandbox = sandbox.cloned();
                self.interfaces.insert(
                    ifindex,
                    Interface {
                        ifindex,
                        name: outside.name.clone(),
                        addresses: link.addresses,
                        inside,
                        netns: netns.path().to_owned(),
                        sandbox,
                    },
                );
            }
            None if has_addresses => self.unreachable.push(unreachable(
                "a veth whose other end is not in the node's namespace".to_owned(),
            )),
            None => {}
        }
    }
}

/// Signs from a directory that may not be there yet.
struct FileSigns {
    watcher: Option<notify::RecommendedWatcher>,
    /// Device and inode of what is watched.
    watched: Option<(u64, u64)>,
    changed: Arc<Notify>,
}

impl FileSigns {
    fn new(changed: Arc<Notify>) -> Self {
        Self {
            watcher: None,
            watched: None,
            changed,
        }
    }

    /// Watches the directory; until it is there, what it will be in. Without a watch, links tell.
    fn attach(&mut self, directory: &Path) {
        use std::os::unix::fs::MetadataExt as _;

        let nearest = directory
            .ancestors()
            .find_map(|each| Some((each, each.metadata().ok()?)));
        let Some((nearest, metadata)) = nearest else {
            return;
        };
        let inode = Some((metadata.dev(), metadata.ino()));
        if self.watcher.is_some() && self.watched == inode {
            return;
        }
        self.watched = inode;
        self.watcher = None;
        let changed = Arc::clone(&self.changed);
        let watcher = notify::recommended_watcher(move |event| {
            if !is_of_reading(&event) {
                changed.notify_one();
            }
        });
        let watching = watcher.and_then(|mut watcher| {
            watcher.watch(nearest, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        match watching {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => {
                tracing::debug!(directory = %nearest.display(), %error, "cannot be watched");
            }
        }
    }
}
