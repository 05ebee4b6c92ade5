//! Policies that change many times a second under traffic: what every one of them allows never
//! notices, and what is forbidden stays out from the moment the change is reported applied.
#![expect(clippy::print_stdout, reason = "the run prints what it carried")]

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent::dto::{DirectionWord, EdgeList, Party, Status, VerdictWord};
use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};
use tests::lab::agent::ask;
use tests::lab::namespace::Namespace;
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::{Stage, endpoint};
use tests::lab::wait_until;
use tests::runs::is_thorough;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

const SERVER: &str = "10.6.0.1:8080";
/// Where the forbidden sender's datagrams would arrive.
const SINK: &str = "10.6.0.1:9090";
/// Longest wait for an echo. Far above what a retransmission takes on a busy machine, far below
/// what a connection needs to recover from being cut for good.
const ECHO_WITHIN: Duration = Duration::from_secs(15);
/// Between two words on one stream.
const PACE: Duration = Duration::from_secs(1);
/// New connections a second.
const NEW_PER_S: u64 = 200;

/// Streams that are open all the time.
const STREAMS: usize = 1000;

/// How long it goes on: a minute in every run.
fn length() -> Duration {
    if is_thorough() {
        Duration::from_mins(10)
    } else {
        Duration::from_mins(1)
    }
}

/// Allows the client in two ways, by turns; the other one every second time.
fn server_policy(round: u64) -> String {
    let client = if round.is_multiple_of(2) {
        "{podSelector: {matchLabels: {role: client}}}"
    } else {
        "{namespaceSelector: {}, podSelector: {matchExpressions: [{key: role, operator: In, values: [client, nobody]}]}}"
    };
    let other = if is_open(round) {
        ", {podSelector: {matchLabels: {role: other}}}"
    } else {
        ""
    };
    let spec = format!(
        "{{podSelector: {{matchLabels: {{role: server}}}}, ingress: [{{from: [{client}{other}]}}]}}"
    );
    policy("shop", "server", &spec)
}

/// Whether a round's policy admits the other one.
const fn is_open(round: u64) -> bool {
    round % 4 < 2
}

fn cluster() -> String {
    let pod = |name: &str, number: u8| {
        let address = format!("10.6.0.{number}");
        pod(
            &format!("shop/{name}"),
            &format!("role: {name}"),
            &[address],
        )
    };
    [
        namespace("shop", ""),
        pod("server", 1),
        pod("client", 2),
        pod("other", 3),
    ]
    .join("---\n")
}

/// What the traffic's threads share.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Nobody calls any more.
    is_deserted: AtomicBool,
    echoes: AtomicU64,
    opened: AtomicU64,
    /// The server listens.
    is_serving: AtomicBool,
    /// The streams are.
    are_open: AtomicBool,
    /// Datagrams sent while nothing forbade them, and those that arrived.
    offered: AtomicU64,
    arrived: AtomicU64,
    forbidden: AtomicU64,
    /// True while the applied policy forbids the other one; held for reading by a sender, so a
    /// datagram's stamp is what was in force when it left.
    is_forbidden: RwLock<bool>,
    faults: Mutex<Vec<String>>,
}

impl Shared {
    fn runs(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn fault(&self, fault: String) {
        self.faults.lock().expect("no panic holds it").push(fault);
    }
}

/// Starts a thread inside a namespace, for all of its life.
fn inside(
    namespace: &Namespace,
    shared: &Arc<Shared>,
    work: impl FnOnce(&Arc<Shared>) -> Result<()> + Send + 'static,
) -> Result<JoinHandle<()>> {
    let file = std::os::fd::AsFd::as_fd(namespace).try_clone_to_owned()?;
    let shared = Arc::clone(shared);
    Ok(std::thread::spawn(move || {
        let done = setns(file, CloneFlags::CLONE_NEWNET)
            .context("entering a namespace")
            .and_then(|()| work(&shared));
        if let Err(error) = done {
            shared.fault(format!("{error:#}"));
        }
    }))
}

/// Echoes, and counts what the forbidden sender gets through.
fn serve(shared: &Arc<Shared>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let sink = UdpSocket::bind(SINK)?;
    sink.set_nonblocking(true)?;
    runtime.block_on(async {
        let listener = TcpListener::bind(SERVER).await?;
        shared.is_serving.store(true, Ordering::Relaxed);
        let sink = tokio::net::UdpSocket::from_std(sink)?;
        let counting = Arc::clone(shared);
        tokio::spawn(async move {
            let mut stamp = [0];
            while sink.recv(&mut stamp).await.is_ok() {
                let count = if stamp == [1] {
                    &counting.forbidden
                } else {
                    &counting.arrived
                };
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        while !shared.is_deserted.load(Ordering::Relaxed) {
            let Ok(accepted) = timeout(Duration::from_millis(100), listener.accept()).await else {
                continue;
            };
            let (mut stream, _) = accepted?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                // Ends with the client's end of it, however that comes.
                drop(tokio::io::copy(&mut from, &mut to).await);
            });
        }
        Ok(())
    })
}

async fn echo(stream: &mut TcpStream) -> Result<()> {
    let mut word = *b"picket!!";
    stream.write_all(&word).await?;
    timeout(ECHO_WITHIN, stream.read_exact(&mut word))
        .await
        .map_err(|_late| anyhow!("no echo within {ECHO_WITHIN:?}"))??;
    Ok(())
}

async fn connect() -> Result<TcpStream> {
    let server: SocketAddr = SERVER.parse()?;
    let connected = timeout(ECHO_WITHIN, TcpStream::connect(server)).await;
    let stream = connected.map_err(|_late| anyhow!("no connection within {ECHO_WITHIN:?}"))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Streams that live all through the run, and new connections all the time.
fn call(shared: &Arc<Shared>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut tasks = Vec::new();
        for _ in 0..STREAMS {
            let mut stream = connect().await.context("opening the streams")?;
            let shared = Arc::clone(shared);
            tasks.push(tokio::spawn(async move {
                while shared.runs() {
                    match echo(&mut stream).await {
                        Ok(()) => shared.echoes.fetch_add(1, Ordering::Relaxed),
                        Err(error) => return shared.fault(format!("a stream: {error:#}")),
                    };
                    sleep(PACE).await;
                }
            }));
            tokio::task::yield_now().await;
        }
        shared.are_open.store(true, Ordering::Relaxed);
        let mut tick = tokio::time::interval(Duration::from_millis(1000 / NEW_PER_S));
        while shared.runs() {
            tick.tick().await;
            let shared = Arc::clone(shared);
            tasks.push(tokio::spawn(async move {
                let done = async { echo(&mut connect().await?).await }.await;
                match done {
                    Ok(()) => _ = shared.opened.fetch_add(1, Ordering::Relaxed),
                    Err(error) => shared.fault(format!("a new connection: {error:#}")),
                }
            }));
        }
        for task in tasks {
            task.await?;
        }
        Ok(())
    })
}

/// Sends datagrams, each with whether it is forbidden when it leaves.
fn intrude(shared: &Arc<Shared>) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(SINK)?;
    socket.set_read_timeout(Some(Duration::from_millis(1)))?;
    while shared.runs() {
        {
            let is_forbidden = shared.is_forbidden.read().expect("no panic holds it");
            if !*is_forbidden {
                shared.offered.fetch_add(1, Ordering::Relaxed);
            }
            // Refusals of datagrams before show here and mean nothing.
            drop(socket.send(&[u8::from(*is_forbidden)]));
        }
        // Where there are refusals, they are read; a pause otherwise.
        drop(socket.recv(&mut [0]));
    }
    Ok(())
}

#[test]
fn changes_without_end_disturb_nothing_allowed_and_let_nothing_forbidden_in() -> Result<()> {
    let length = length();
    let mut stage = Stage::open(&cluster())?;
    stage.apply("server.yaml", &server_policy(0))?;
    let shared = Arc::new(Shared::default());
    let place = |pod: &str| stage.lab.place(pod).map(|place| &place.namespace);
    let server = inside(place("shop/server")?, &shared, serve)?;
    wait_until("the server to listen", Duration::from_mins(2), || {
        ensure!(shared.is_serving.load(Ordering::Relaxed), "not yet");
        Ok(())
    })?;
    let callers = [
        inside(place("shop/client")?, &shared, call)?,
        inside(place("shop/other")?, &shared, intrude)?,
    ];
    wait_until("the streams to be open", Duration::from_mins(2), || {
        let faults = shared.faults.lock().expect("no panic holds it");
        ensure!(faults.is_empty(), "{faults:?}");
        ensure!(shared.are_open.load(Ordering::Relaxed), "not yet");
        Ok(())
    })?;

    let started = Instant::now();
    let mut round = 0;
    let mut changed = Ok(());
    while started.elapsed() < length && changed.is_ok() {
        round += 1;
        *shared.is_forbidden.write().expect("no panic holds it") = false;
        changed = stage.apply("server.yaml", &server_policy(round));
        if changed.is_ok() && !is_open(round) {
            *shared.is_forbidden.write().expect("no panic holds it") = true;
        }
    }
    let took = started.elapsed();
    shared.stop.store(true, Ordering::Relaxed);
    for thread in callers {
        ensure!(thread.join().is_ok(), "a thread of the traffic panicked");
    }
    shared.is_deserted.store(true, Ordering::Relaxed);
    ensure!(server.join().is_ok(), "the server's thread panicked");
    changed?;

    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "{round} changes in {:.0} s: {} echoes over {STREAMS} streams, {} new connections, {} of {} datagrams let in while allowed",
        took.as_secs_f32(),
        count(&shared.echoes),
        count(&shared.opened),
        count(&shared.arrived),
        count(&shared.offered),
    );
    assert_eq!(*shared.faults.lock().expect("no panic holds it"), [""; 0]);
    assert_eq!(
        count(&shared.forbidden),
        0,
        "datagrams of a forbidden sender arrived"
    );
    ensure!(
        count(&shared.arrived) > 0,
        "the other one was let in at times: {shared:?}"
    );
    // Every drop is counted, so none here means none.
    let status: Status = ask("/v1/status")?;
    for (pod, directions) in [
        (
            "shop/client",
            &[DirectionWord::Ingress, DirectionWord::Egress][..],
        ),
        ("shop/server", &[DirectionWord::Egress]),
    ] {
        let endpoint = endpoint(&status, pod)?;
        for each in endpoint
            .directions
            .iter()
            .filter(|each| directions.contains(&each.direction))
        {
            ensure!(
                each.dropped.is_empty(),
                "{pod}: {:?} dropped {:?}",
                each.direction,
                each.dropped
            );
        }
    }
    // At the server's ingress, nobody but the other one was ever refused.
    let edges: EdgeList = ask("/v1/edges")?;
    let refused: Vec<&Party> = edges
        .items
        .iter()
        .filter(|edge| edge.verdict == VerdictWord::Deny)
        .map(|edge| &edge.from)
        .collect();
    ensure!(!refused.is_empty(), "the other one was refused at times");
    for party in refused {
        ensure!(format!("{party:?}").contains("other"), "refused: {party:?}");
    }
    Ok(())
}
