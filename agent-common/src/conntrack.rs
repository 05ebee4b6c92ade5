//! Known flows: what a packet does to one, its state, and how long it lives in silence.
//!
//! Values in, values out; where entries are kept is `classify`'s business.

use crate::maps::connection_flags::{FIN_ORIGINAL, FIN_REPLY};
use crate::packet::{
    Headers,
    icmp::Echo,
    transport::{protocol, tcp_flags},
};

/// How far a flow has come.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum State {
    /// Only its originator was heard.
    Opening = 1,
    /// TCP, SCTP: the other side answered; the originator has not confirmed it.
    Answered = 2,
    /// Both sides were heard.
    Established = 3,
    /// TCP, SCTP: both sides have finished, or one has reset it.
    Closing = 4,
}

impl State {
    /// The state behind a map's integer; what we do not know lives shortest.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Opening,
            2 => Self::Answered,
            3 => Self::Established,
            _ => Self::Closing,
        }
    }

    /// The number written to map values.
    #[inline(always)]
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// What a packet does to a flow.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Signal {
    /// Belongs to no flow that we keep: ICMP that is no echo.
    Untracked,
    /// A packet of a protocol without connections.
    Datagram,
    /// Asks for an echo.
    Ask,
    /// Answers an echo; no flow begins with it.
    Answer,
    /// TCP SYN, SCTP INIT: a new connection, whatever was before.
    Open,
    /// TCP SYN-ACK, SCTP INIT ACK.
    Accept,
    /// The middle of a connection.
    Segment,
    /// TCP FIN, SCTP SHUTDOWN and its answers.
    Finish,
    /// TCP RST, SCTP ABORT; no flow begins with it.
    Reset,
    /// An ICMP error about a packet of the flow.
    Related,
}

/// SCTP's chunk types (RFC 9260 §3.2).
mod chunk {
    pub(super) const INIT: u8 = 1;
    pub(super) const INIT_ACK: u8 = 2;
    pub(super) const ABORT: u8 = 6;
    pub(super) const SHUTDOWN: u8 = 7;
    pub(super) const SHUTDOWN_ACK: u8 = 8;
    pub(super) const SHUTDOWN_COMPLETE: u8 = 14;
}

impl Signal {
    /// What this packet does.
    #[inline(always)]
    pub fn of(headers: &Headers) -> Self {
        match (headers.protocol, headers.echo) {
            (_, Some(Echo::Request(_))) => Self::Ask,
            (_, Some(Echo::Reply(_))) => Self::Answer,
            (protocol::TCP, None) => Self::of_tcp(headers.detail),
            (protocol::SCTP, None) => match headers.detail {
                // RFC 9260 §6.10: INIT, INIT ACK and SHUTDOWN COMPLETE stand alone; ABORT ends
                // whatever it is bundled with, and comes first when we have to act on it.
                chunk::INIT => Self::Open,
                chunk::INIT_ACK => Self::Accept,
                chunk::ABORT => Self::Reset,
                chunk::SHUTDOWN | chunk::SHUTDOWN_ACK | chunk::SHUTDOWN_COMPLETE => Self::Finish,
                _ => Self::Segment,
            },
            (protocol::ICMP | protocol::ICMPV6, None) => Self::Untracked,
            _ => Self::Datagram,
        }
    }

    #[inline(always)]
    const fn of_tcp(flags: u8) -> Self {
        use tcp_flags::{ACK, FIN, RST, SYN};
        if flags & RST != 0 {
            Self::Reset
        } else if flags & (SYN | ACK) == SYN {
            Self::Open
        } else if flags & SYN != 0 {
            Self::Accept
        } else if flags & FIN != 0 {
            Self::Finish
        } else {
            Self::Segment
        }
    }

    /// True in the middle of a connection: without an entry, its direction is not known.
    #[inline(always)]
    pub const fn is_mid_stream(self) -> bool {
        matches!(
            self,
            Self::Accept | Self::Segment | Self::Finish | Self::Reset
        )
    }

    /// True when a flow may begin with it.
    #[inline(always)]
    pub const fn begins_flow(self) -> bool {
        !matches!(
            self,
            Self::Untracked | Self::Answer | Self::Reset | Self::Related
        )
    }

    /// The state of a flow that begins with it.
    #[inline(always)]
    pub const fn first_state(self) -> State {
        if self.is_mid_stream() {
            State::Established
        } else {
            State::Opening
        }
    }
}

/// State and `connection_flags` after a packet.
#[inline(always)]
pub const fn step(
    state: State,
    flags: u16,
    signal: Signal,
    is_from_originator: bool,
) -> (State, u16) {
    if matches!(signal, Signal::Reset) {
        return (State::Closing, flags);
    }
    let mut flags = flags;
    if matches!(signal, Signal::Finish) {
        flags |= if is_from_originator {
            FIN_ORIGINAL
        } else {
            FIN_REPLY
        };
        if flags & FIN_ORIGINAL != 0 && flags & FIN_REPLY != 0 {
            return (State::Closing, flags);
        }
    }
    let state = match (state, is_from_originator) {
        (State::Opening, false) => {
            if matches!(signal, Signal::Datagram | Signal::Ask | Signal::Answer) {
                State::Established
            } else {
                State::Answered
            }
        }
        (State::Answered, true) if !matches!(signal, Signal::Open) => State::Established,
        (unchanged, _) => unchanged,
    };
    (state, flags)
}

/// Places of `Settings::timeouts`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Timeout {
    /// TCP, SCTP: a connection that is not complete.
    Opening = 0,
    /// TCP, SCTP: a complete one.
    Established = 1,
    /// TCP, SCTP: one that has ended.
    Closing = 2,
    /// Protocols without connections: only one side was heard.
    Datagram = 3,
    /// Protocols without connections: both sides were heard.
    DatagramAnswered = 4,
    /// ICMP echo.
    Echo = 5,
}

impl Timeout {
    /// Which one a flow has.
    #[inline(always)]
    pub const fn of(protocol: u8, state: State) -> Self {
        match (protocol, state) {
            (protocol::ICMP | protocol::ICMPV6, _) => Self::Echo,
            (protocol::TCP | protocol::SCTP, State::Opening | State::Answered) => Self::Opening,
            (protocol::TCP | protocol::SCTP, State::Established) => Self::Established,
            (protocol::TCP | protocol::SCTP, State::Closing) => Self::Closing,
            (_, State::Opening) => Self::Datagram,
            (_, State::Answered | State::Established | State::Closing) => Self::DatagramAnswered,
        }
    }

    /// Default lifetimes in jiffies for a kernel with `hz` ticks a second.
    pub const fn defaults(hz: u32) -> [u32; 8] {
        const DAY: u32 = 24 * 60 * 60;
        // Keepalive speaks every 2 h by default, so 5 d of silence is a dead connection.
        [
            60 * hz,
            5 * DAY * hz,
            10 * hz,
            30 * hz,
            180 * hz,
            30 * hz,
            0,
            0,
        ]
    }
}

/// Jiffies by which one CPU's clock reading may be behind another's stamp.
const SKEW: u32 = 1024;

/// True when what was last heard of at `stamp` has been silent for longer than its lifetime.
#[inline(always)]
pub const fn is_expired(stamp: u32, lifetime: u32, now: u32) -> bool {
    now.wrapping_sub(stamp).wrapping_add(SKEW) > lifetime.saturating_add(SKEW)
}
