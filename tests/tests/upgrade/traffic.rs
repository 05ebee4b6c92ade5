//! What goes on in a lab while the agent's version changes: flows of every kind, each a thread that
//! notices the first thing that is lost, and senders that policy keeps out.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::{RecvFlags, SendFlags};
use tests::lab::namespace::Namespace;
use tests::lab::pair::{Pair, echo};
use tests::lab::stage::Stage;
use tests::lab::wait_until;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 14, 0, 1);
/// Longest way of a datagram through a busy machine; one that is dropped never comes.
const HEARD_WITHIN: Duration = Duration::from_secs(2);
/// Between two packets of a flow.
const PACE: Duration = Duration::from_millis(1);
/// Between two new flows: fewer than push an idle one out of its pod's table.
const NEW_PACE: Duration = Duration::from_millis(10);
const SINK: u16 = 9000;

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Books {
    stop: AtomicBool,
    /// Round trips, one way trips and new flows that went as they should.
    pub(crate) exchanged: AtomicU64,
    /// Datagrams of the stranger that arrived.
    pub(crate) strangers: AtomicU64,
    /// Datagrams of the third one that were sent, and that arrived.
    pub(crate) sent: AtomicU64,
    pub(crate) arrived: AtomicU64,
    /// Answers that did not come, of flows that had just begun.
    pub(crate) unanswered: AtomicU64,
    faults: Mutex<Vec<String>>,
}

impl Books {
    fn runs(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits until a count has grown by some.
    pub(crate) fn wait_for_more(&self, count: &AtomicU64, more: u64) -> Result<()> {
        let before = count.load(Ordering::Relaxed);
        wait_until("traffic to go on", Duration::from_secs(30), || {
            let grown = count.load(Ordering::Relaxed) - before;
            ensure!(grown >= more, "only {grown}; faults: {:?}", self.faults());
            Ok(())
        })
    }

    /// No flow has lost anything, and nothing of the stranger's has come.
    pub(crate) fn are_clean(&self) -> Result<()> {
        let faults = self.faults();
        ensure!(faults.is_empty(), "{faults:?}");
        let strangers = self.strangers.load(Ordering::Relaxed);
        ensure!(strangers == 0, "{strangers} of the stranger's came");
        Ok(())
    }

    pub(crate) fn faults(&self) -> Vec<String> {
        self.faults.lock().expect("no panic holds it").clone()
    }

    /// Repeats what may fail while programs are replaced; failures are counted.
    fn attempt(&self, pace: Duration, mut step: impl FnMut(u32) -> Result<()>) {
        let mut number = 0;
        while self.runs() {
            number += 1;
            match step(number) {
                Ok(()) => self.exchanged.fetch_add(1, Ordering::Relaxed),
                Err(_) => self.unanswered.fetch_add(1, Ordering::Relaxed),
            };
            pass(pace);
        }
    }

    /// Repeats a step until told to stop; the first failure is noted and ends it.
    fn repeat(&self, what: &str, mut step: impl FnMut(u32) -> Result<()>) {
        let mut number = 0;
        while self.runs() {
            number += 1;
            if let Err(error) = step(number) {
                let mut faults = self.faults.lock().expect("no panic holds it");
                faults.push(format!("{what}, {number}: {error:#}"));
                return;
            }
            self.exchanged.fetch_add(1, Ordering::Relaxed);
            pass(PACE);
        }
    }
}

/// Lets a moment pass between two packets; nothing is waited for.
pub(crate) fn pass(moment: Duration) {
    let end = Instant::now() + moment;
    while let Some(left) = end.checked_duration_since(Instant::now())
        && !left.is_zero()
    {
        std::thread::park_timeout(left);
    }
}

/// Flows that the client has opened and that last.
#[derive(Debug)]
pub(crate) struct Lasting(Pair);

impl Lasting {
    pub(crate) fn open(stage: &Stage, port: u16) -> Result<Self> {
        let (server, client) = (place(stage, "server")?, place(stage, "client")?);
        let listening = SocketAddr::from((SERVER, port));
        let pair = Pair::open(server, client, (listening, listening), HEARD_WITHIN)?;
        let [client, server] = &pair.udp;
        datagram(server, client, 0).context("its first answer")?;
        Ok(Self(pair))
    }

    /// The server speaks, then the client, over both.
    pub(crate) fn goes_on(&mut self) -> Result<()> {
        self.says_by_tcp()?;
        let [client, server] = &self.0.udp;
        datagram(server, client, 3).context("UDP from the server")?;
        datagram(client, server, 4).context("UDP from the client")
    }

    /// The server speaks, then the client, over TCP.
    pub(crate) fn says_by_tcp(&mut self) -> Result<()> {
        let [client, server] = &mut self.0.tcp;
        word(server, client, 1).context("TCP from the server")?;
        word(client, server, 2).context("TCP from the client")
    }
}

fn place<'a>(stage: &'a Stage, name: &str) -> Result<&'a Namespace> {
    Ok(&stage.lab.place(&format!("shop/{name}"))?.namespace)
}

fn datagram(from: &UdpSocket, to: &UdpSocket, number: u32) -> Result<()> {
    from.send(&number.to_be_bytes()).context("sending")?;
    let mut heard = [0; 4];
    to.recv(&mut heard).context("a datagram was lost")?;
    ensure!(u32::from_be_bytes(heard) == number, "not the one sent");
    Ok(())
}

fn word(from: &mut TcpStream, to: &mut TcpStream, number: u32) -> Result<()> {
    from.write_all(&number.to_be_bytes()).context("sending")?;
    let mut heard = [0; 4];
    to.read_exact(&mut heard).context("a word was lost")?;
    ensure!(u32::from_be_bytes(heard) == number, "not the one sent");
    Ok(())
}

/// All flows and senders, ready to run.
#[derive(Debug)]
pub(crate) struct Traffic {
    pushed: Lasting,
    spoken: Lasting,
    echo: OwnedFd,
    client: Namespace,
    answering: UdpSocket,
    stranger: Sender,
    third: Sender,
}

/// Somebody who sends to a port of the server's, in a lasting flow and in new ones.
#[derive(Debug)]
struct Sender {
    namespace: Namespace,
    lasting: UdpSocket,
    sink: UdpSocket,
    port: u16,
}

impl Sender {
    fn of(stage: &Stage, pod: &str, port: u16) -> Result<Self> {
        let namespace = place(stage, pod)?.enter(Namespace::current)?;
        let sink = place(stage, "server")?.enter(|| Ok(UdpSocket::bind((SERVER, port))?))?;
        sink.set_nonblocking(true)?;
        let lasting = flow(&namespace, port)?;
        Ok(Self {
            namespace,
            lasting,
            sink,
            port,
        })
    }

    fn send(&self) -> Result<()> {
        self.lasting.send(&[1])?;
        flow(&self.namespace, self.port)?.send(&[1])?;
        Ok(())
    }

    /// How many have arrived since the last time.
    fn arrived(&self) -> u64 {
        let mut count = 0;
        while self.sink.recv(&mut [0]).is_ok() {
            count += 1;
        }
        count
    }
}

fn flow(namespace: &Namespace, port: u16) -> Result<UdpSocket> {
    let socket = namespace.enter(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?))?;
    socket.set_read_timeout(Some(HEARD_WITHIN))?;
    socket.connect((SERVER, port))?;
    Ok(socket)
}

impl Traffic {
    /// Opens what lasts, while nothing forbids it.
    pub(crate) fn open(stage: &Stage) -> Result<Self> {
        let client = place(stage, "client")?;
        let echo = echo(client, SERVER, HEARD_WITHIN)?;
        let answering = place(stage, "server")?.enter(|| Ok(UdpSocket::bind((SERVER, SINK))?))?;
        answering.set_read_timeout(Some(HEARD_WITHIN))?;
        let traffic = Self {
            pushed: Lasting::open(stage, 8001)?,
            spoken: Lasting::open(stage, 8002)?,
            echo,
            client: client.enter(Namespace::current)?,
            answering,
            stranger: Sender::of(stage, "stranger", SINK + 1)?,
            third: Sender::of(stage, "third", SINK + 2)?,
        };
        for sender in [&traffic.stranger, &traffic.third] {
            sender.send()?;
            wait_until(
                "both to arrive while nobody forbids it",
                HEARD_WITHIN,
                || {
                    ensure!(sender.arrived() > 0, "nothing came");
                    Ok(())
                },
            )?;
        }
        Ok(traffic)
    }

    /// Forgets what arrived until now.
    pub(crate) fn drain(&self) {
        self.stranger.arrived();
        self.third.arrived();
    }

    /// The third one's flow and a new one of its get through, the stranger's do not.
    pub(crate) fn goes_as_before(&self) -> Result<()> {
        self.stranger.send()?;
        self.third.send()?;
        let mut third = 0;
        wait_until("the third one's datagrams", HEARD_WITHIN, || {
            third += self.third.arrived();
            ensure!(third == 2, "{third} came");
            Ok(())
        })?;
        ensure!(self.stranger.arrived() == 0, "the stranger's came");
        Ok(())
    }

    /// Runs everything until the books say stop, in threads of the scope.
    pub(crate) fn run<'s>(&'s mut self, scope: &'s std::thread::Scope<'s, '_>, books: &'s Books) {
        let Self {
            pushed,
            spoken,
            echo,
            client,
            answering,
            stranger,
            third,
        } = self;
        let ([tcp_client, tcp_server], [udp_client, udp_server]) =
            (&mut pushed.0.tcp, &pushed.0.udp);
        scope.spawn(|| books.repeat("TCP server", |n| word(tcp_server, tcp_client, n)));
        scope.spawn(|| books.repeat("UDP server", |n| datagram(udp_server, udp_client, n)));
        let ([tcp_client, tcp_server], [udp_client, udp_server]) =
            (&mut spoken.0.tcp, &spoken.0.udp);
        scope.spawn(|| books.repeat("TCP client", |n| word(tcp_client, tcp_server, n)));
        scope.spawn(|| books.repeat("UDP client", |n| datagram(udp_client, udp_server, n)));
        scope.spawn(|| books.attempt(PACE, |n| ping(echo, n)));
        scope.spawn(|| books.attempt(NEW_PACE, |n| ask(client, answering, n)));
        scope.spawn(|| {
            while books.runs() {
                if let Err(error) = stranger.send() {
                    books.repeat("the stranger", |_| bail!("{error:#}"));
                }
                books
                    .strangers
                    .fetch_add(stranger.arrived(), Ordering::Relaxed);
                pass(PACE);
            }
        });
        scope.spawn(|| {
            while books.runs() {
                if let Err(error) = third.send() {
                    books.repeat("the third", |_| bail!("{error:#}"));
                }
                books.sent.fetch_add(2, Ordering::Relaxed);
                books.arrived.fetch_add(third.arrived(), Ordering::Relaxed);
                pass(PACE);
            }
        });
    }
}

/// A flow of its own: asked and answered.
fn ask(client: &Namespace, server: &UdpSocket, number: u32) -> Result<()> {
    let asking = flow(client, SINK)?;
    asking.send(&number.to_be_bytes())?;
    let mut heard = [0; 4];
    let (_, peer) = server
        .recv_from(&mut heard)
        .context("the question was lost")?;
    ensure!(u32::from_be_bytes(heard) == number, "another question");
    server.send_to(&heard, peer)?;
    asking.recv(&mut heard).context("the answer was lost")?;
    Ok(())
}

fn ping(echo: &OwnedFd, number: u32) -> Result<()> {
    let [.., high, low] = number.to_be_bytes();
    // Type 8; the kernel fills identifier and checksum in (ping(7) sockets).
    rustix::net::send(echo, &[8, 0, 0, 0, 0, 0, high, low], SendFlags::empty())?;
    let mut answer = [0; 64];
    rustix::net::recv(echo, &mut answer, RecvFlags::empty()).context("no echo")?;
    ensure!(answer.get(6..8) == Some(&[high, low]), "another's echo");
    Ok(())
}
