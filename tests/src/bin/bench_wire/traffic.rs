//! What goes between the two pods, and what it costs: a client and a server, a thread each, taking
//! turns on one CPU as two processes of a node would.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};
use serde::Serialize;
use tests::bench::keep_to;
use tests::cpu::{SoftirqThread, needed, thread_time};
use tests::lab::namespace::Namespace;

use crate::variants::Load;

/// First of the server's ports; each kind of traffic has its own.
const PORT: u16 = 8080;
/// How long one packet may stay away before the traffic counts as broken.
const PATIENCE_S: i64 = 10;
/// What one system call hands over or takes of bulk.
const PIECE: usize = 128 << 10;
const MIB: usize = 1 << 20;

/// Kinds of traffic.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// One byte there and one back, over a connection that stays: `TCP_RR`.
    Request,
    /// A connection for each byte there and back: `TCP_CRR`.
    Connection,
    /// As much as goes: a MiB each.
    Bulk,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Request, Self::Connection, Self::Bulk];

    fn port(self) -> u16 {
        match self {
            Self::Request => PORT,
            Self::Connection => PORT + 1,
            Self::Bulk => PORT + 2,
        }
    }

    /// What one of it is called.
    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::Request => "TCP_RR transaction",
            Self::Connection => "TCP_CRR transaction",
            Self::Bulk => "bulk MiB",
        }
    }

    /// How many make a sample of some milliseconds.
    pub(crate) const fn a_sample(self) -> u32 {
        match self {
            Self::Request => 500,
            Self::Connection => 100,
            Self::Bulk => 24,
        }
    }
}

/// What to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    pub(crate) kind: Kind,
    pub(crate) amount: u32,
}

/// A client and a server at work.
#[derive(Debug)]
pub(crate) struct Ends {
    ends: [End; 2],
    /// Only a smoke run goes without.
    softirqs: Option<SoftirqThread>,
}

#[derive(Debug)]
struct End {
    orders: SyncSender<Order>,
    took: Receiver<Result<Duration>>,
}

impl Ends {
    /// Starts both on a CPU, bulk with so much room; they end when this is dropped.
    pub(crate) fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        load: &Load,
        client: &'scope Namespace,
        (server, address): (&'scope Namespace, IpAddr),
    ) -> Result<Self> {
        let (cpu, buffer) = (load.cpu, load.buffer);
        let softirqs = needed(SoftirqThread::of(cpu).map(Some), load.is_smoke)?;
        let listeners = server.enter(|| {
            let listen = |kind: Kind| -> Result<TcpListener> {
                let listener = TcpListener::bind(SocketAddr::new(address, kind.port()))?;
                be_patient(&listener)?;
                if kind == Kind::Bulk {
                    make_room(&listener, buffer)?;
                }
                Ok(listener)
            };
            Ok([
                listen(Kind::Request)?,
                listen(Kind::Connection)?,
                listen(Kind::Bulk)?,
            ])
        })?;
        let ends = [
            end(scope, move |work| {
                server.enter(|| serve(cpu, &listeners, work))
            }),
            end(scope, move |work| {
                client.enter(|| call((cpu, buffer), address, work))
            }),
        ];
        Ok(Self { ends, softirqs })
    }

    /// Sends what is ordered; the CPU time of both ends, and of the kernel's thread beside them,
    /// for each of the amount, in ns.
    pub(crate) fn sample(&self, order: Order) -> Result<f64> {
        let softirqs = || self.softirqs.as_ref().map(SoftirqThread::time).transpose();
        let before = softirqs()?.unwrap_or_default();
        for end in &self.ends {
            end.orders
                .send(order)
                .map_err(|_gone| anyhow!("an end has gone"))?;
        }
        let mut took = Duration::ZERO;
        for end in &self.ends {
            took += end.took.recv().context("an end has gone")??;
        }
        took += softirqs()?.unwrap_or_default().saturating_sub(before);
        Ok(took.as_secs_f64() * 1e9 / f64::from(order.amount))
    }
}

/// An end's side of the channels.
struct Work {
    orders: Receiver<Order>,
    took: SyncSender<Result<Duration>>,
}

impl Work {
    /// Carries orders out until there are no more, or one fails.
    fn run(&self, mut order: impl FnMut(Order) -> Result<()>) {
        for wanted in &self.orders {
            let begun = thread_time();
            let done = order(wanted);
            let spent = thread_time().saturating_sub(begun);
            let is_broken = done.is_err();
            // Whoever does not wait for it any more has an error of its own.
            if self.took.send(done.map(|()| spent)).is_err() || is_broken {
                return;
            }
        }
    }
}

fn end<'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce(&Work) -> Result<()> + Send + 'scope,
) -> End {
    let (orders, received) = sync_channel(1);
    let (answer, took) = sync_channel(1);
    scope.spawn(move || {
        let channels = Work {
            orders: received,
            took: answer,
        };
        if let Err(error) = work(&channels) {
            // As above.
            drop(channels.took.send(Err(error)));
        }
    });
    End { orders, took }
}

fn serve(cpu: usize, [requests, connections, bulk]: &[TcpListener; 3], work: &Work) -> Result<()> {
    keep_to(&[cpu])?;
    let mut requests = accept(requests)?;
    let mut piece = vec![0; PIECE];
    work.run(|Order { kind, amount }| match kind {
        Kind::Request => (0..amount).try_for_each(|_| answer(&mut requests)),
        // The server closes first: a client that did would soon spend most of its time looking
        // for a port without a connection in TIME-WAIT.
        Kind::Connection => (0..amount).try_for_each(|_| answer(&mut accept(connections)?)),
        Kind::Bulk => {
            let taken = read_to_end(&mut accept(bulk)?, &mut piece)?;
            ensure!(taken == MIB * amount as usize, "{taken} bytes of bulk came");
            Ok(())
        }
    });
    Ok(())
}

fn read_to_end(stream: &mut TcpStream, piece: &mut [u8]) -> Result<usize> {
    let mut taken = 0;
    loop {
        match stream.read(piece).context("bulk")? {
            0 => return Ok(taken),
            some => taken += some,
        }
    }
}

fn answer(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte).context("a request")?;
    stream.write_all(&byte).context("its answer")
}

fn call((cpu, buffer): (usize, usize), address: IpAddr, work: &Work) -> Result<()> {
    keep_to(&[cpu])?;
    let open = |kind: Kind| -> Result<TcpStream> {
        let to = SocketAddr::new(address, kind.port());
        let stream = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
        be_patient(&stream)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    let mut requests = open(Kind::Request)?;
    let piece = vec![0; PIECE];
    work.run(|Order { kind, amount }| match kind {
        Kind::Request => (0..amount).try_for_each(|_| ask(&mut requests)),
        Kind::Connection => (0..amount).try_for_each(|_| {
            let mut connection = open(kind)?;
            ask(&mut connection)?;
            let more = connection.read(&mut [0]).context("the server's end")?;
            ensure!(more == 0, "more than the answer came");
            Ok(())
        }),
        Kind::Bulk => {
            // A new connection each time: how large its window grows is partly chance, and stays.
            let mut bulk = open(kind)?;
            make_room(&bulk, buffer)?;
            (0..amount as usize * (MIB / PIECE))
                .try_for_each(|_| bulk.write_all(&piece).context("bulk"))
        }
    });
    Ok(())
}

fn ask(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(&[1]).context("a request")?;
    stream.read_exact(&mut [0]).context("its answer")
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let (stream, _from) = listener.accept().context("waiting for a connection")?;
    be_patient(&stream)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// What is refused ends the run, instead of holding it up for ever.
fn be_patient(socket: &impl AsFd) -> Result<()> {
    let patience = TimeVal::seconds(PATIENCE_S);
    setsockopt(socket, sockopt::ReceiveTimeout, &patience).context("setting a deadline")?;
    setsockopt(socket, sockopt::SendTimeout, &patience).context("setting a deadline")
}

/// Sets how much a socket may hold on the way out and in; what it accepts has the same.
fn make_room(socket: &impl AsFd, bytes: usize) -> Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    setsockopt(socket, sockopt::SndBuf, &bytes).context("sizing a socket")?;
    setsockopt(socket, sockopt::RcvBuf, &bytes).context("sizing a socket")
}
