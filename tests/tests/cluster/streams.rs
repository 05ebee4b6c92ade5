//! Connections between pods that go on while something happens, and attempts at forbidden ones.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tests::lab::wait_until;

use super::host::{Process, join};
use super::namespace::PATIENCE;

/// A byte is sent that often.
const PACE: Duration = Duration::from_millis(20);
/// A side that hears nothing for longer takes the connection for dead.
const DEAD_AFTER: Duration = Duration::from_secs(20);
/// Fewer attempts prove nothing.
const FEWEST: usize = 5;
/// How long a forbidden connection is waited for.
const REFUSED_AFTER: Duration = Duration::from_millis(300);

/// Which end of a connection speaks; the other one never does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Speaker {
    Server,
    Client,
}

/// A connection on which bytes flow.
pub(crate) struct Stream {
    stop: Arc<AtomicBool>,
    speaker: JoinHandle<Result<()>>,
    listener: JoinHandle<Result<Duration>>,
}

impl Stream {
    /// Opens one from a pod to an address of another, and hears the first byte.
    pub(crate) fn open(
        client: Process,
        server: Process,
        at: SocketAddr,
        speaks: Speaker,
    ) -> Result<Self> {
        let bound = join(server.inside(move || Ok(TcpListener::bind(at)?))?)
            .with_context(|| format!("listening at {at}"))?;
        let connected = client.inside(move || {
            TcpStream::connect_timeout(&at, PATIENCE).with_context(|| format!("connecting to {at}"))
        })?;
        let near = join(connected)?;
        let (far, _) = bound.accept().context("accepting it")?;
        let (from, to) = match speaks {
            Speaker::Server => (far, near),
            Speaker::Client => (near, far),
        };
        let stop = Arc::new(AtomicBool::new(false));
        let heard = Arc::new(AtomicBool::new(false));
        // Sockets stay in the namespaces they were made in, wherever their threads are.
        let stream = Self {
            speaker: std::thread::spawn({
                let stop = Arc::clone(&stop);
                move || speak(from, &stop)
            }),
            listener: std::thread::spawn({
                let heard = Arc::clone(&heard);
                move || listen(to, &heard)
            }),
            stop,
        };
        wait_until("the first byte", PATIENCE, || {
            ensure!(heard.load(Ordering::Relaxed), "none yet");
            Ok(())
        })?;
        Ok(stream)
    }

    /// Ends it; returns the longest time without a byte. An error is one of the connection's.
    pub(crate) fn end(self) -> Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        join(self.speaker).context("speaking")?;
        join(self.listener).context("listening")
    }
}

fn speak(mut to: TcpStream, stop: &AtomicBool) -> Result<()> {
    to.set_nodelay(true)?;
    to.set_write_timeout(Some(DEAD_AFTER))?;
    while !stop.load(Ordering::Relaxed) {
        to.write_all(b".")?;
        std::thread::park_timeout(PACE);
    }
    Ok(())
}

fn listen(mut from: TcpStream, heard: &AtomicBool) -> Result<Duration> {
    from.set_read_timeout(Some(DEAD_AFTER))?;
    let mut last = Instant::now();
    let mut longest = Duration::ZERO;
    let mut bytes = [0; 64];
    while from.read(&mut bytes)? > 0 {
        heard.store(true, Ordering::Relaxed);
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    Ok(longest)
}

/// Somebody who tries a forbidden connection again and again.
pub(crate) struct Attempts {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    thread: JoinHandle<Result<()>>,
}

impl Attempts {
    /// From a pod to an address that it must not reach.
    pub(crate) fn begin(from: Process, to: SocketAddr) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let made = Arc::new(AtomicUsize::new(0));
        let thread = from.inside({
            let (stop, made) = (Arc::clone(&stop), Arc::clone(&made));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    if TcpStream::connect_timeout(&to, REFUSED_AFTER).is_ok() {
                        let before = made.load(Ordering::Relaxed);
                        bail!("after {before} refused attempts {to} was reached");
                    }
                    made.fetch_add(1, Ordering::Relaxed);
                    // Refused at once where a route is missing.
                    std::thread::park_timeout(PACE);
                }
                Ok(())
            }
        })?;
        Ok(Self { stop, made, thread })
    }

    /// How many there were, and some more; an error when one succeeded.
    pub(crate) fn end(self) -> Result<usize> {
        let enough = self.made.load(Ordering::Relaxed) + FEWEST;
        let waited = wait_until("more attempts", PATIENCE, || {
            let ended = self.thread.is_finished();
            ensure!(
                ended || self.made.load(Ordering::Relaxed) >= enough,
                "too few"
            );
            Ok(())
        });
        self.stop.store(true, Ordering::Relaxed);
        join(self.thread)?;
        waited?;
        Ok(self.made.load(Ordering::Relaxed))
    }
}
