//! Wiring: who is started with what, and the order of shutdown. No decisions.
//!
//! Tasks and threads: the reconciler (the only writer); `manifests`, a thread, or the tasks that keep
//! up with an API; `endpoints`, a thread that watches interfaces; the readers of the kernel's records
//! and of the programs' own messages; the resets that answer a cut where `--on-cut reset` wants them;
//! the servers.

use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bytes::Bytes;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{error, info};

use crate::config::{Config, Objects, OnCut};
use crate::dataplane::{Dataplane, Diagnostics, Events, Options};
use crate::http::Starts;
use crate::plugin::{Installer, Standing};
use crate::reconcile::{Handle, Inputs, Reconciler, Tells};
use crate::resets::Resets;
use crate::{endpoints, http, memory, plugin, source, telemetry};

/// Questions waiting for the loop; whoever asks more waits.
const QUESTIONS: usize = 64;
/// Records kept for a slow reader before it loses some, and is told how many.
const RECORDS: usize = 16_384;
/// How often the programs' own messages are looked for.
const DIAGNOSTICS_PERIOD: std::time::Duration = std::time::Duration::from_secs(1);

/// Runs the agent until SIGTERM or SIGINT. Enforcement stays as it is afterwards.
///
/// # Errors
/// The agent cannot start, or its kernel side is lost.
pub fn run(config: Config) -> anyhow::Result<()> {
    memory::give_back();
    telemetry::init(config.log_format);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => info!(signal = "SIGTERM", "stopping; enforcement stays"),
                _ = interrupt.recv() => info!(signal = "SIGINT", "stopping; enforcement stays"),
            }
        };
        run_until(config, stop).await
    })
}

/// Runs the agent until `stop` is done.
///
/// # Errors
/// The agent cannot start, or its kernel side is lost.
pub async fn run_until(config: Config, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    // First the sockets: a second agent is told so before it touches anything.
    let socket = Socket::bind(&config.socket).await?;
    let metrics = match config.metrics {
        Some(address) => {
            let bound = TcpListener::bind(address).await;
            Some(bound.with_context(|| format!("--metrics {address}: binding the address"))?)
        }
        None => None,
    };

    let totals = config.socket.with_file_name("totals.json");
    let resets = match config.on_cut {
        OnCut::Silence => None,
        OnCut::Reset => {
            let opened = Resets::open();
            Some(opened.context("--on-cut reset: opening raw sockets, which takes CAP_NET_RAW")?)
        }
    };

    let mut dataplane = Dataplane::open(&Options {
        capacities: config
            .capacities
            .iter()
            .map(|(name, entries)| (name.to_owned(), entries))
            .collect(),
        method: config.attach,
        ..Options::new(&config.pins)
    })
    .context("opening the kernel side")?;
    let events = dataplane.events()?;
    let diagnostics = dataplane.diagnostics()?;

    let (ready, is_ready) = watch::channel(false);
    let objects = match &config.objects {
        Objects::Directory(directory) => source::directory::watch(directory)
            .with_context(|| format!("watching {}", directory.display()))?,
        Objects::Api(access) => {
            let node = config.node.clone();
            let own_node = node.map(|name| source::OwnNode { name, is_ready });
            let watched = source::watch_api(access.clone(), &config.state, own_node).await;
            watched.context("reading how to reach the API server")?
        }
    };
    let hands = endpoints::Hands::new(&config.netns);
    let sightings = endpoints::watch(&config.netns, &config.cni_results, hands.clone())
        .context("watching network interfaces")?;
    let (questions, asked) = mpsc::channel(QUESTIONS);
    let (records, _) = broadcast::channel(RECORDS);
    let (rounds, round) = watch::channel(());
    let handle = Handle::new(questions, records.clone(), round);
    let resets = resets.map(|resets| resets.run(handle.records()));
    let (shutdown, shut_down) = oneshot::channel();
    let inputs = Inputs {
        objects: objects.into_inner(),
        sightings: sightings.into_inner(),
        questions: asked,
        shutdown: shut_down,
    };
    info!(
        objects = %config.objects,
        netns = %config.netns.display(),
        pins = %dataplane.pins().display(),
        method = ?dataplane.method(),
        posture = config.posture.as_label(),
        taken_up = dataplane.taken_up().len(),
        "agent started"
    );
    let plugin = config.plugin.clone();
    let reconciler = Reconciler::new(config, dataplane).context("reading the maps")?;

    let mut servers = JoinSet::new();
    servers.spawn(read_records(events, records));
    servers.spawn(read_diagnostics(diagnostics));
    if let Some(resets) = resets {
        servers.spawn(resets);
    }
    let (standing, stands) = watch::channel(Standing::default());
    if let Some((places, entry)) = plugin {
        servers.spawn(plugin::keep(Installer::new(places, entry), standing));
    }
    let (listener, _socket) = socket.split();
    servers.spawn(serve(
        "API and metrics",
        http::serve(handle, Starts { hands, stands }, listener, metrics, totals),
    ));

    let tells = Tells {
        is_ready: ready,
        rounds,
    };
    let mut reconciling = tokio::spawn(reconciler.run(inputs, tells));
    let ended = tokio::select! {
        ended = &mut reconciling => ended,
        () = stop => {
            drop(shutdown);
            // The write in hand is finished: half a plan would be safe, a whole one is better.
            reconciling.await
        }
    };
    // Nobody is left to answer.
    servers.abort_all();
    ended.context("the reconciler")??;
    Ok(())
}

/// A server that ends is loud, but enforcement goes on without it.
async fn serve(what: &'static str, server: impl Future<Output = io::Result<()>>) {
    if let Err(error) = server.await {
        error!(what, %error, "server ended; start the agent again to have it back");
    }
}

/// Hands the kernel's records to whoever listens.
async fn read_records(mut events: Events, records: broadcast::Sender<Bytes>) {
    loop {
        for record in events.next().await {
            // Nobody listens: nothing is lost that anyone wanted, counters are in the maps.
            drop(records.send(record));
        }
    }
}

async fn read_diagnostics(diagnostics: Option<Diagnostics>) {
    let Some(mut diagnostics) = diagnostics else {
        return;
    };
    let mut timer = tokio::time::interval(DIAGNOSTICS_PERIOD);
    loop {
        timer.tick().await;
        diagnostics.forward();
    }
}

/// The API's socket; its file goes with it.
struct Socket {
    listener: UnixListener,
    file: SocketFile,
}

struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Gone already, when someone cleaned up around us.
        drop(std::fs::remove_file(&self.0));
    }
}

impl Socket {
    /// Binds the path, for root alone. A file that nobody answers at is left from a dead agent.
    ///
    /// A socket is born with the modes the umask leaves, so it is bound where nobody else can
    /// look, and moved to its place when its own modes say so.
    async fn bind(path: &Path) -> anyhow::Result<Self> {
        let describe = || format!("--socket {}", path.display());
        if UnixStream::connect(path).await.is_ok() {
            anyhow::bail!("{}: another agent answers there; stop it first", describe());
        }
        let nest = Nest::make(path.parent().unwrap_or(Path::new("/"))).with_context(describe)?;
        let born = nest.0.join("s");
        let listener = UnixListener::bind(&born).with_context(describe)?;
        std::fs::set_permissions(&born, std::fs::Permissions::from_mode(0o600))
            .with_context(describe)?;
        std::fs::rename(&born, path).with_context(describe)?;
        let file = SocketFile(path.to_owned());
        Ok(Self { listener, file })
    }

    fn split(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

/// A directory that only root may enter; it goes with the value.
struct Nest(PathBuf);

impl Nest {
    fn make(parent: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(parent)?;
        let nest = Self(parent.join(format!(".{}", std::process::id())));
        // Left from an agent that was killed and had our number.
        nest.clear();
        std::fs::DirBuilder::new().mode(0o700).create(&nest.0)?;
        Ok(nest)
    }

    fn clear(&self) {
        // Nothing there is what is wanted.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

impl Drop for Nest {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{ModifyKind, RenameMode};
    use notify::{EventKind, RecursiveMode, Watcher as _};

    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_from_its_first_moment() {
        let folder = std::env::temp_dir().join(format!("picket-socket-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("agent.sock");
        // A dead agent's.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (tell, told) = std::sync::mpsc::channel();
        let mut watcher = notify::recommended_watcher(tell).unwrap();
        watcher.watch(&folder, RecursiveMode::NonRecursive).unwrap();
        let socket = Socket::bind(&path).await.unwrap();
        let first = loop {
            let event = told
                .recv_timeout(std::time::Duration::from_secs(10))
                .unwrap()
                .unwrap();
            if event.paths.contains(&path) {
                break event.kind;
            }
        };
        let moved_in = EventKind::Modify(ModifyKind::Name(RenameMode::To));
        assert_eq!(first, moved_in, "it was not there before it was private");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(UnixStream::connect(&path).await.is_ok());
        drop(socket);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "all gone");
        std::fs::remove_dir(&folder).unwrap();
    }
}
