//! Wiring: who is started with what, and the order of shutdown. No decisions.
//!
//! Tasks and threads: the reconciler (the only writer), `manifests` and `endpoints` (threads that
//! watch the world), the reader of the kernel's records, the servers.

use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bytes::Bytes;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{error, info};

use crate::config::{Config, Objects};
use crate::dataplane::{Dataplane, Diagnostics, Events, Options};
use crate::reconcile::{Handle, Inputs, Reconciler};
use crate::{endpoints, http, source, telemetry};

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

    let mut dataplane = Dataplane::open(&Options {
        capacities: config
            .capacities
            .iter()
            .map(|(name, entries)| (name.to_owned(), entries))
            .collect(),
        ..Options::new(&config.pins)
    })
    .context("opening the kernel side")?;
    let events = dataplane.events()?;
    let diagnostics = dataplane.diagnostics()?;

    let Objects::Directory(directory) = &config.objects;
    let objects = source::directory::watch(directory)
        .with_context(|| format!("watching {}", directory.display()))?;
    let sightings = endpoints::watch(&config.netns).context("watching network interfaces")?;
    let (questions, asked) = mpsc::channel(QUESTIONS);
    let (records, _) = broadcast::channel(RECORDS);
    let handle = Handle::new(questions, records.clone());
    let (shutdown, shut_down) = oneshot::channel();
    let inputs = Inputs {
        objects: objects.into_inner(),
        sightings: sightings.into_inner(),
        questions: asked,
        shutdown: shut_down,
    };
    info!(
        manifests = %directory.display(),
        netns = %config.netns.display(),
        pins = %dataplane.pins().display(),
        method = ?dataplane.method(),
        posture = config.posture.as_label(),
        taken_up = dataplane.taken_up().len(),
        "agent started"
    );
    let reconciler = Reconciler::new(config, dataplane).context("reading the maps")?;

    let mut servers = JoinSet::new();
    servers.spawn(read_records(events, records));
    servers.spawn(read_diagnostics(diagnostics));
    let (listener, _socket) = socket.split();
    servers.spawn(serve(
        "API and metrics",
        http::serve(handle, listener, metrics, totals),
    ));

    let mut reconciling = tokio::spawn(reconciler.run(inputs));
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
    async fn bind(path: &Path) -> anyhow::Result<Self> {
        let describe = || format!("--socket {}", path.display());
        if UnixStream::connect(path).await.is_ok() {
            anyhow::bail!("{}: another agent answers there; stop it first", describe());
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(describe)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(describe);
            }
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path).with_context(describe)?;
        let file = SocketFile(path.to_owned());
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .with_context(describe)?;
        Ok(Self { listener, file })
    }

    fn split(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}
