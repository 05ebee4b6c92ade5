//! Probes: does a server answer? Real sockets, any number at once, retried until their patience
//! ends, because a denied packet vanishes silently and looks like a lost one.

pub mod packet;
pub mod sctp;
mod servers;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use agent_policy::model::Protocol;
use anyhow::{Context as _, Result};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, ipproto, recv,
    send, socket_with, sockopt,
};

pub use servers::{Server, Servers};

use crate::lab::namespace::Namespace;

/// What a UDP or ICMP probe says, and expects to hear again.
const GREETING: &[u8] = b"picket";
/// Probes on their way at once; bounded by descriptors and by the device queues of one CPU.
const IN_FLIGHT: usize = 1500;
/// Probes started in one go: more would overflow the kernel's packet backlog of 1000.
const BURST: usize = 128;

/// One question: does `destination` answer `source` on this port?
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// Where the source lives.
    pub namespace: &'a Namespace,
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// TCP, UDP, SCTP or ICMP (which stands for `ICMPv6` between IPv6 addresses, too).
    pub protocol: Protocol,
    /// Destination port; 0 for ICMP.
    pub port: u16,
}

/// What came of a probe.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The server answered.
    Answered,
    /// The destination itself refused: the packet arrived, nobody listens.
    Refused,
    /// Nothing came back in time, though asked again.
    Silent,
    /// The kernel reported something else, for example no route: the lab is at fault.
    Failed(io::ErrorKind),
}

impl Outcome {
    /// True when packets made it there and back.
    pub fn is_reached(&self) -> bool {
        matches!(self, Self::Answered | Self::Refused)
    }
}

/// How long to go on asking.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From the first packet until silence counts as an answer.
    pub total: Duration,
    /// Between two packets of the protocols that we repeat ourselves; TCP's first repetition is
    /// the kernel's, after 1 s.
    pub retry: Duration,
}

impl Patience {
    /// Outlasts the kernel's first repetition of a SYN.
    pub const USUAL: Self = Self {
        total: Duration::from_millis(1600),
        retry: Duration::from_millis(500),
    };
    /// For one packet's fate, where the way was proven just before.
    pub const SHORT: Self = Self {
        total: Duration::from_millis(450),
        retry: Duration::from_millis(150),
    };
}

/// A probe on its way.
struct Attempt {
    socket: OwnedFd,
    started: Instant,
    /// What to send again; nothing for TCP, whose kernel does it.
    request: Option<Vec<u8>>,
}

/// Runs all probes; the outcomes are in their order.
pub fn run(probes: &[Probe<'_>], patience: Patience) -> Result<Vec<Outcome>> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("making an epoll")?;
    let mut outcomes = vec![None; probes.len()];
    let mut attempts: Vec<Option<Attempt>> = Vec::new();
    attempts.resize_with(probes.len(), || None);
    let mut waiting = probes.iter().enumerate().peekable();
    let mut timers = BinaryHeap::new();
    let mut in_flight = 0;
    let mut events = Vec::with_capacity(256);
    loop {
        for _ in 0..BURST {
            if in_flight >= IN_FLIGHT {
                break;
            }
            let Some((index, probe)) = waiting.next() else {
                break;
            };
            match start(probe, index) {
                Ok(attempt) => {
                    epoll::add(
                        &epoll,
                        &attempt.socket,
                        token(index),
                        interest(probe.protocol),
                    )
                    .context("watching a probe")?;
                    let retry = if attempt.request.is_some() {
                        patience.retry
                    } else {
                        patience.total
                    };
                    timers.push(Reverse((attempt.started + retry, index)));
                    attempts
                        .get_mut(index)
                        .context("index of a probe")?
                        .replace(attempt);
                    in_flight += 1;
                }
                Err(error) => settle(&mut outcomes, index, outcome_of(&error)),
            }
        }
        if in_flight == 0 && waiting.peek().is_none() {
            break;
        }
        let pause = match timers.peek() {
            _ if waiting.peek().is_some() && in_flight < IN_FLIGHT => Duration::ZERO,
            Some(Reverse((due, _))) => due.saturating_duration_since(Instant::now()),
            None => Duration::ZERO,
        };
        let pause = Timespec::try_from(pause).context("a pause")?;
        epoll::wait(&epoll, spare_capacity(&mut events), Some(&pause)).context("waiting")?;
        for event in events.drain(..) {
            let index = usize::try_from(event.data.u64()).context("index of a probe")?;
            let Some(place) = attempts.get_mut(index) else {
                continue;
            };
            let (Some(attempt), Some(probe)) = (place.as_ref(), probes.get(index)) else {
                continue;
            };
            if let Some(outcome) = read(probe, index, attempt) {
                settle(&mut outcomes, index, outcome);
                *place = None;
                in_flight -= 1;
            }
        }
        let now = Instant::now();
        while let Some(&Reverse((due, index))) = timers.peek()
            && due <= now
        {
            timers.pop();
            let Some(place) = attempts.get_mut(index) else {
                continue;
            };
            let Some(attempt) = place.as_ref() else {
                continue;
            };
            let end = attempt.started + patience.total;
            if now >= end {
                settle(&mut outcomes, index, Outcome::Silent);
                *place = None;
                in_flight -= 1;
                continue;
            }
            if let Some(request) = &attempt.request {
                // An error shows at the next read; a full queue is what the next try is for.
                send(&attempt.socket, request, SendFlags::NOSIGNAL).unwrap_or_default();
            }
            timers.push(Reverse((end.min(now + patience.retry), index)));
        }
    }
    Ok(outcomes
        .into_iter()
        .map(|outcome| outcome.unwrap_or(Outcome::Silent))
        .collect())
}

fn settle(outcomes: &mut [Option<Outcome>], index: usize, outcome: Outcome) {
    if let Some(place) = outcomes.get_mut(index) {
        *place = Some(outcome);
    }
}

fn token(index: usize) -> epoll::EventData {
    epoll::EventData::new_u64(u64::try_from(index).unwrap_or(u64::MAX))
}

fn interest(protocol: Protocol) -> epoll::EventFlags {
    if protocol == Protocol::TCP {
        epoll::EventFlags::OUT
    } else {
        epoll::EventFlags::IN
    }
}

/// Opens the socket in the source's namespace and sends the first packet.
fn start(probe: &Probe<'_>, index: usize) -> io::Result<Attempt> {
    let socket = probe
        .namespace
        .enter(|| Ok(open(probe)))
        .map_err(|error| io::Error::other(format!("{error:#}")))??;
    let (source, destination) = match probe.protocol {
        // The port of a raw socket's address means nothing, or the protocol.
        Protocol::SCTP | Protocol::ICMP => (0, 0),
        _ => (0, probe.port),
    };
    bind(&socket, &SocketAddr::new(probe.source, source))?;
    let request = match probe.protocol {
        Protocol::TCP => None,
        Protocol::SCTP => Some(sctp::init(source_port(index), probe.port, tag(index))),
        Protocol::ICMP => Some(echo_request(probe.destination)),
        _ => Some(GREETING.to_vec()),
    };
    let started = Instant::now();
    match connect(&socket, &SocketAddr::new(probe.destination, destination)) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    if let Some(request) = &request {
        send(&socket, request, SendFlags::NOSIGNAL)?;
    } else {
        // Close by reset: thousands of probes would leave as many TIME-WAIT states.
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    }
    Ok(Attempt {
        socket,
        started,
        request,
    })
}

fn open(probe: &Probe<'_>) -> io::Result<OwnedFd> {
    let v4 = probe.source.is_ipv4();
    let family = if v4 {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let (kind, protocol) = match probe.protocol {
        Protocol::TCP => (SocketType::STREAM, ipproto::TCP),
        Protocol::UDP => (SocketType::DGRAM, ipproto::UDP),
        Protocol::SCTP => (SocketType::RAW, ipproto::SCTP),
        Protocol::ICMP if v4 => (SocketType::DGRAM, ipproto::ICMP),
        Protocol::ICMP => (SocketType::DGRAM, ipproto::ICMPV6),
        _ => return Err(io::ErrorKind::Unsupported.into()),
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(socket_with(family, kind, flags, Some(protocol))?)
}

/// Looks at a socket that has something to say; `None` while it has not said enough.
fn read(probe: &Probe<'_>, index: usize, attempt: &Attempt) -> Option<Outcome> {
    if probe.protocol == Protocol::TCP {
        return Some(match sockopt::socket_error(&attempt.socket) {
            Ok(Ok(())) => Outcome::Answered,
            Ok(Err(error)) | Err(error) => outcome_of(&error.into()),
        });
    }
    let mut buffer = [0; 2048];
    loop {
        let received = match recv(&attempt.socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((_, length)) => buffer.get(..length)?,
            Err(Errno::AGAIN) => return None,
            Err(error) => return Some(outcome_of(&error.into())),
        };
        if probe.protocol != Protocol::SCTP {
            return Some(Outcome::Answered);
        }
        let ports = (probe.port, source_port(index));
        match sctp::answer_to(received, probe.source.is_ipv4(), ports, tag(index)) {
            Some(sctp::Answer::InitAck) => return Some(Outcome::Answered),
            Some(sctp::Answer::Abort) => return Some(Outcome::Refused),
            None => {}
        }
    }
}

fn outcome_of(error: &io::Error) -> Outcome {
    let kind = error.kind();
    if matches!(
        kind,
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
    ) {
        Outcome::Refused
    } else if kind == io::ErrorKind::TimedOut {
        Outcome::Silent
    } else {
        Outcome::Failed(kind)
    }
}

/// SCTP source port of a probe: raw sockets have none of their own.
fn source_port(index: usize) -> u16 {
    u16::try_from(index % 20_000).map_or(40_000, |port| 40_000 + port)
}

/// SCTP initiate tag of a probe; never 0 (RFC 9260 §3.3.2).
fn tag(index: usize) -> u32 {
    u32::try_from(index).map_or(1, |index| index.wrapping_add(0x5049_434b) | 1)
}

/// An echo request; identifier and checksum are the kernel's.
fn echo_request(destination: IpAddr) -> Vec<u8> {
    let kind = if destination.is_ipv4() { 8 } else { 128 };
    [&[kind, 0, 0, 0, 0, 0, 0, 1], GREETING].concat()
}
