//! A packet's way, top to bottom: from its bytes to what happens to it.
//!
//! [`classify`] and its [`way`] are the whole story; each step has its file. Nothing here knows
//! the kernel: `tc` programs and host tests run the same code.

mod audit;
mod budget;
pub mod flow;
mod link;
mod ownership;
mod report;
mod steps;
pub mod tables;

use crate::address::Address;
use crate::conntrack::Signal;
use crate::maps::{Config, Counter, config_flags, settings_flags};
use crate::packet::{self, Fragmentation, Frame, Headers, Packet, ParseError, ethernet};
use crate::verdict::{Direction, Reason, RuleId, Verdict};

pub use tables::{DeniedRow, FlowEntry, FlowTables};

/// Which program is asking, seen from the pod.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Hook {
    /// tc ingress of the host-side interface: what the pod sends.
    FromPod,
    /// tc egress of the host-side interface: what reaches the pod.
    ToPod,
}

impl Hook {
    /// The direction of the packets a hook sees.
    #[inline(always)]
    pub const fn direction(self) -> Direction {
        match self {
            Self::FromPod => Direction::Egress,
            Self::ToPod => Direction::Ingress,
        }
    }
}

/// How a packet came to the hook.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Arrival {
    /// Which program is asking. A constant in each program.
    pub hook: Hook,
    /// `skb->ifindex`: the endpoint's host-side interface.
    pub ifindex: u32,
    /// `skb->ingress_ifindex`: where the packet entered the node; 0 when the node made it.
    pub ingress_ifindex: u32,
}

/// What happens to a packet, and why.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[must_use]
pub enum Outcome {
    /// It goes on, to the next program.
    Pass(Reason),
    /// It vanishes; counted and, now and then, reported.
    Drop(Reason),
    /// Unicast for another pod, flooded by a bridge: it vanishes, counted as
    /// [`Counter::NotMine`] only.
    NotMine,
}

/// Decides about one packet and keeps the books on it.
#[inline(always)]
pub fn classify<T: FlowTables, P: Packet + ?Sized>(
    tables: &T,
    packet: &P,
    at: &Arrival,
) -> Outcome {
    let parsed = packet::parse(packet);
    // One load gives the row and the revision that every stamp below carries.
    let endpoint = tables.endpoint(at.ifindex);
    let seen = Seen::new(at, packet.length(), tables.now(), endpoint, parsed);
    let config = endpoint.map(|(config, _)| config);
    let decision = match way(tables, &seen, parsed, config) {
        Step::Decided(decision) => decision,
        Step::NotMine => {
            tables.count(Counter::NotMine);
            return Outcome::NotMine;
        }
    };
    match decision.reason.verdict() {
        Verdict::Allow => {
            tables.passed(seen.slot, seen.direction, seen.bytes());
            Outcome::Pass(decision.reason)
        }
        // No judgement in force has a reason of audit; if it had, it would not open anything.
        Verdict::Deny | Verdict::Audit => {
            report::refused(tables, &seen, &decision);
            Outcome::Drop(decision.reason)
        }
    }
}

/// The way itself: every early end in the order it is asked for.
#[inline(always)]
fn way<T: FlowTables>(
    tables: &T,
    seen: &Seen<'_>,
    parsed: Result<Frame, ParseError>,
    config: Option<&Config>,
) -> Step {
    let is_link_upkeep = match parsed {
        Ok(Frame::Arp) => return seen.decided(Reason::Link),
        Ok(Frame::Ip(_)) => link::is_link_upkeep(&seen.headers, seen.at),
        Err(_) => false,
    };
    let Some(config) = config.filter(|config| config.flags & config_flags::PROGRAMMED != 0) else {
        return seen.decided(if is_link_upkeep {
            Reason::Link
        } else {
            posture_without_policy(tables, config)
        });
    };
    if parsed.is_err() {
        return seen.decided(Reason::Malformed);
    }
    let Headers {
        source,
        destination,
        ..
    } = seen.headers;
    match seen.at.hook {
        Hook::FromPod if ownership::owns(config, source) => {}
        Hook::FromPod if is_link_upkeep && ownership::is_link_source(source) => {}
        Hook::FromPod => return seen.decided(Reason::SpoofedSource),
        // Groups are judged by policy; link upkeep also reaches the pod's link-local addresses.
        Hook::ToPod if is_link_upkeep || destination.is_group() => {}
        Hook::ToPod if ownership::owns(config, destination) => {}
        Hook::ToPod => return Step::NotMine,
    }
    if is_link_upkeep {
        return seen.decided(Reason::Link);
    }
    if seen.headers.fragmentation == Fragmentation::Later {
        return seen.decided(Reason::Fragment);
    }
    let signal = Signal::of(&seen.headers);
    let flow = flow::key_of(&seen.headers, seen.at.hook, seen.slot);
    Step::Decided(match flow::find(tables, seen, &flow, signal) {
        Some(known) => steps::known_flow(tables, seen, config, &flow, signal, known),
        None => steps::new_flow(tables, seen, config, &flow, signal),
    })
}

/// What becomes of IP packets of an endpoint whose policy is not in place.
#[inline(always)]
fn posture_without_policy<T: FlowTables>(tables: &T, config: Option<&Config>) -> Reason {
    let is_open = if let Some(config) = config {
        config.flags & config_flags::FAIL_OPEN != 0
    } else {
        tables.count(Counter::UnknownEndpoint);
        tables.settings().flags & settings_flags::UNKNOWN_OPEN != 0
    };
    if is_open {
        Reason::FailOpen
    } else {
        Reason::NotProgrammed
    }
}

/// A packet, and what was read once for it.
struct Seen<'a> {
    at: &'a Arrival,
    direction: Direction,
    /// All zero when it is no IP packet.
    headers: Headers,
    /// 64-bit jiffies.
    now: u64,
    /// Length of the frame.
    length: u32,
    /// The endpoint's slot; 0 when none is published.
    slot: u32,
    /// The endpoint's revision, from the same load as its row.
    revision: u32,
}

impl<'a> Seen<'a> {
    #[inline(always)]
    fn new(
        at: &'a Arrival,
        length: u32,
        now: u64,
        endpoint: Option<(&Config, u32)>,
        parsed: Result<Frame, ParseError>,
    ) -> Self {
        Self {
            at,
            direction: at.hook.direction(),
            headers: match parsed {
                Ok(Frame::Ip(headers)) => headers,
                Ok(Frame::Arp) | Err(_) => Headers::default(),
            },
            now,
            length,
            slot: endpoint.map_or(0, |(config, _)| config.slot),
            revision: endpoint.map_or(0, |(_, revision)| revision),
        }
    }

    /// The clock of stamps: it wraps, and is only ever compared by differences.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the low 32 bits are what stamps hold"
    )]
    const fn now32(&self) -> u32 {
        self.now as u32
    }

    /// Bytes from the IP header on.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "it is 14")]
    const fn bytes(&self) -> u32 {
        self.length.saturating_sub(ethernet::HEADER_BYTES as u32)
    }

    /// The other side's address, as the packet shows it.
    #[inline(always)]
    const fn peer(&self) -> Address {
        match self.at.hook {
            Hook::FromPod => self.headers.destination,
            Hook::ToPod => self.headers.source,
        }
    }

    /// Decided before any policy was asked.
    #[inline(always)]
    const fn decided(&self, reason: Reason) -> Step {
        Step::Decided(Decision::without_rule(self.direction, reason))
    }
}

/// How the way ends.
enum Step {
    /// The packet is for another pod.
    NotMine,
    /// It is judged.
    Decided(Decision),
}

/// A verdict with all that is reported about it.
struct Decision {
    reason: Reason,
    /// The direction that was judged: the flow's originator's.
    direction: Direction,
    rule: RuleId,
    set: u32,
    class: u32,
    via: u32,
    /// A flow began with this packet.
    is_new: bool,
    difference: Option<audit::Difference>,
}

impl Decision {
    #[inline(always)]
    const fn without_rule(direction: Direction, reason: Reason) -> Self {
        Self {
            reason,
            direction,
            rule: RuleId::NONE,
            set: 0,
            class: 0,
            via: 0,
            is_new: false,
            difference: None,
        }
    }
}
