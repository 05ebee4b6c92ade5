//! A packet's way, top to bottom: from its bytes to what happens to it.
//!
//! [`classify`] and its `way` are the whole story; each step has its file. Nothing here knows
//! the kernel: `tc` programs and host tests run the same code.

mod audit;
mod budget;
pub mod flow;
mod fragments;
mod glance;
mod link;
mod opening;
mod ownership;
mod refusals;
mod related;
mod report;
mod steps;
pub mod tables;

use crate::address::Address;
use crate::conntrack::Signal;
use crate::event::event_flags;
use crate::maps::{Config, Connection, Counter, FlowKey, config_flags, settings_flags};
use crate::packet::{self, Fragmentation, Headers, Kind, Packet, ethernet};
use crate::verdict::{Direction, Reason, RuleId, Verdict};

pub use glance::{Glance, glance};
pub use opening::open;
pub use tables::{DeniedRow, FlowEntry, FlowTables, Route};

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

    /// What an event's flags say about where its packet was seen.
    #[inline(always)]
    const fn as_flag(self) -> u8 {
        match self {
            Self::FromPod => event_flags::FROM_POD,
            Self::ToPod => 0,
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
    classify_in(&mut Room::default(), tables, packet, at)
}

/// The same in a place of the caller's, which remembers some refusals from packet to packet.
#[inline(always)]
pub fn classify_in<T: FlowTables, P: Packet + ?Sized>(
    room: &mut Room,
    tables: &T,
    packet: &P,
    at: &Arrival,
) -> Outcome {
    let is_untracked = match glance(room, tables, packet, at) {
        Glance::Established => return Outcome::Pass(Reason::Reply),
        Glance::Opens(segment) => {
            if let Some(outcome) = open(room, tables, at, segment) {
                return outcome;
            }
            false
        }
        Glance::Unsure { is_untracked } => is_untracked,
    };
    look_closely(room, tables, packet, at, is_untracked)
}

/// The long way, which every packet may take, for what [`glance`] was unsure of. It happens in a
/// place of the caller's: the kernel's stack is too small for it. What the place held before makes
/// no difference.
#[inline(always)]
pub fn look_closely<T: FlowTables, P: Packet + ?Sized>(
    room: &mut Room,
    tables: &T,
    packet: &P,
    at: &Arrival,
    is_untracked: bool,
) -> Outcome {
    let Room {
        headers,
        seen,
        decision,
        refusals,
        key: _,
    } = room;
    let kind = Read::of(packet, headers, at);
    // One load gives the row and the revision that every stamp below carries.
    let endpoint = tables.endpoint(at.ifindex);
    seen.read(at, packet.length(), tables.now(), endpoint, headers);
    seen.is_untracked = is_untracked;
    let config = endpoint.map(|(config, _)| config);
    decision.begin(seen.direction);
    match way(tables, at.hook, seen, kind, headers, config, decision) {
        Step::Decided(reason) => decision.reason = reason,
        Step::NotMine => {
            tables.count(Counter::NotMine);
            return Outcome::NotMine;
        }
    }
    settle(tables, seen, decision, refusals)
}

/// Keeps the books on what was decided.
#[inline(always)]
fn settle<T: FlowTables>(
    tables: &T,
    seen: &Seen,
    decision: &Decision,
    refusals: &mut refusals::Refusals,
) -> Outcome {
    match decision.reason.verdict() {
        Verdict::Allow => {
            tables.passed(seen.slot(), seen.direction, seen.bytes());
            Outcome::Pass(decision.reason)
        }
        // No judgement in force has a reason of audit; if it had, it would not open anything.
        Verdict::Deny | Verdict::Audit => {
            refusals.remember(seen, decision);
            report::refused(tables, seen, decision);
            Outcome::Drop(decision.reason)
        }
    }
}

/// The way itself: every early end in the order it is asked for. `hook` is what `seen.at` says, too,
/// but as a constant: so each program holds no more than its own half.
#[inline(always)]
fn way<T: FlowTables>(
    tables: &T,
    hook: Hook,
    seen: &mut Seen,
    kind: Read,
    headers: &Headers,
    config: Option<&Config>,
    decision: &mut Decision,
) -> Step {
    let is_link_upkeep = matches!(kind, Read::Link | Read::Neighbour);
    let Some(config) = config.filter(|config| config.flags & config_flags::PROGRAMMED != 0) else {
        return Step::Decided(if is_link_upkeep {
            Reason::Link
        } else {
            posture_without_policy(tables, config)
        });
    };
    if matches!(kind, Read::Nothing) {
        return Step::Decided(Reason::Malformed);
    }
    let local = seen.local;
    match hook {
        // The source, or the destination, is the endpoint's.
        Hook::FromPod | Hook::ToPod if ownership::owns(config, local) => {}
        // Or, of link upkeep, one that never leaves the link, or none: ARP has none.
        Hook::FromPod | Hook::ToPod
            if is_link_upkeep && ownership::never_leaves_the_link(local) => {}
        Hook::FromPod => return Step::Decided(Reason::SpoofedSource),
        // Groups are judged by policy.
        Hook::ToPod if local.is_group() => {}
        Hook::ToPod => return Step::NotMine,
    }
    if !related::is_by_its_receiver(seen, config, headers) {
        return Step::Decided(Reason::SpoofedSource);
    }
    if is_link_upkeep {
        let would_leave = matches!((kind, hook), (Read::Neighbour, Hook::FromPod))
            && !link::is_on_link(tables, seen.at.ifindex, config, &seen.flow.peer);
        return Step::Decided(if would_leave {
            Reason::Malformed
        } else {
            Reason::Link
        });
    }
    fragments::follow(tables, seen, config, headers, decision);
    if seen.is_settled {
        return Step::Decided(decision.reason);
    }
    related::turn_to_quoted_flow(seen, config, headers);
    let reason = if let Some(known) = flow::find(tables, seen) {
        steps::known_flow(tables, seen, config, &known, decision)
    } else {
        related::turn_back(seen, config, headers);
        steps::new_flow(tables, seen, config, decision)
    };
    if matches!(headers.fragmentation, Fragmentation::First) && steps::is_allowed(reason) {
        fragments::remember(tables, seen, headers);
    }
    Step::Decided(reason)
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

/// What is said of a TCP segment beside its flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Segment {
    /// TCP flags.
    pub flags: u8,
    /// Length of the frame in bytes.
    pub length: u32,
}

/// A packet, and what was read once for it. The only copy.
#[derive(Clone, Copy, Debug)]
struct Seen {
    at: Arrival,
    direction: Direction,
    signal: Signal,
    /// The pod's side, as the packet shows it.
    local: Address,
    /// The flow's key; its slot is 0 when no endpoint is published.
    flow: FlowKey,
    /// The ports the packet shows, the pod's and its peer's.
    ports: (u16, u16),
    /// TCP flags, ICMP type or the type of SCTP's first chunk; and ICMP's code.
    detail: (u8, u8),
    /// TCP's acknowledgement number.
    acknowledgement: u32,
    /// Where it came from says nothing about an IPv6 fragment.
    has_fragment_header: bool,
    /// CONNTRACK is known to have nothing of the flow.
    is_untracked: bool,
    /// The decision's reason stands before any flow is looked for. Not what a function says: a
    /// verifier would follow both of its answers to the end of the way.
    is_settled: bool,
    /// Length of the frame.
    length: u32,
    /// The endpoint's revision, from the same load as its row.
    revision: u32,
    /// 64-bit jiffies.
    now: u64,
    /// What is asked of policy, when it is.
    question: steps::Question,
    /// What is written down of a flow that begins, when one does.
    begun: Connection,
}

impl Seen {
    /// Field by field: a whole value would be made on the stack first.
    #[inline(always)]
    fn read(
        &mut self,
        at: &Arrival,
        length: u32,
        now: u64,
        endpoint: Option<(&Config, u32)>,
        headers: &Headers,
    ) {
        let (config, revision) = match endpoint {
            Some((config, revision)) => (Some(config), revision),
            None => (None, 0),
        };
        self.at = *at;
        self.direction = at.hook.direction();
        self.signal = Signal::of(headers);
        self.local = match at.hook {
            Hook::FromPod => headers.source,
            Hook::ToPod => headers.destination,
        };
        self.flow = flow::key_of(headers, at.hook, config);
        self.ports = match at.hook {
            Hook::FromPod => (headers.source_port, headers.destination_port),
            Hook::ToPod => (headers.destination_port, headers.source_port),
        };
        self.detail = (headers.detail, headers.code);
        self.acknowledgement = headers.acknowledgement;
        self.has_fragment_header = headers.has_fragment_header;
        self.is_settled = false;
        self.length = length;
        self.revision = revision;
        self.now = now;
    }

    /// The same of a TCP connection's first segment whose flow is known, by its key.
    #[inline(always)]
    fn read_first_segment(
        &mut self,
        at: &Arrival,
        words: &glance::KeyWords,
        Segment { flags, length }: Segment,
        revision: u32,
        now: u64,
    ) {
        self.at = *at;
        self.direction = at.hook.direction();
        self.signal = Signal::Open;
        let key = words.key();
        self.local = words.local();
        self.flow = *key;
        self.ports = (key.local_port, key.peer_port);
        self.detail = (flags, 0);
        self.acknowledgement = 0;
        self.has_fragment_header = false;
        self.is_untracked = false;
        self.is_settled = false;
        self.length = length;
        self.revision = revision;
        self.now = now;
    }

    /// The endpoint's slot.
    #[inline(always)]
    const fn slot(&self) -> u32 {
        self.flow.slot as u32
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
}

/// What was read of a packet.
#[derive(Clone, Copy)]
enum Read {
    /// ARP, or multicast listener discovery.
    Link,
    /// Neighbour discovery.
    Neighbour,
    /// An IP packet's headers.
    Ip,
    /// It is not what it claims to be.
    Nothing,
}

impl Read {
    /// Not inlined: what it needs of the stack is free again afterwards.
    #[inline(never)]
    fn of<P: Packet + ?Sized>(packet: &P, headers: &mut Headers, at: &Arrival) -> Self {
        headers.clear();
        match packet::parse_into(packet, headers) {
            Ok(Kind::Arp) => Self::Link,
            Ok(Kind::Ip) => link::read(packet, headers, at),
            Err(_) => Self::Nothing,
        }
    }
}

/// How the way ends.
enum Step {
    /// The packet is for another pod.
    NotMine,
    /// It passes or is dropped, by the reason's verdict.
    Decided(Reason),
}

/// A verdict with all that is reported about it.
#[derive(Clone, Copy, Debug)]
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
    /// A known flow was judged again: what is said of it need not be said of another one that shows
    /// the same.
    is_known: bool,
    /// Audited policies were asked too.
    is_audited: bool,
    difference: Option<audit::Difference>,
}

impl Decision {
    /// Before anything is decided, which denies.
    const NONE: Self = Self {
        reason: Reason::NotProgrammed,
        direction: Direction::Ingress,
        rule: RuleId::NONE,
        set: 0,
        class: 0,
        via: 0,
        is_new: false,
        is_known: false,
        is_audited: false,
        difference: None,
    };

    /// Forgets the packet before.
    #[inline(always)]
    fn begin(&mut self, direction: Direction) {
        self.reason = Reason::NotProgrammed;
        self.direction = direction;
        // Not seen through, as in `Headers::clear`.
        let zero = core::hint::black_box(0);
        self.rule = RuleId(zero);
        self.set = zero;
        self.class = zero;
        self.via = zero;
        self.is_new = zero != 0;
        self.is_known = zero != 0;
        self.is_audited = zero != 0;
        self.difference = None;
    }
}

/// Where a packet's particulars are while it is judged.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// The flow that [`glance`] has read, for it and for [`open`].
    key: glance::KeyWords,
    headers: Headers,
    seen: Seen,
    decision: Decision,
    refusals: refusals::Refusals,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            key: glance::KeyWords::default(),
            headers: Headers::default(),
            seen: Seen {
                at: Arrival {
                    hook: Hook::FromPod,
                    ifindex: 0,
                    ingress_ifindex: 0,
                },
                direction: Direction::Egress,
                signal: Signal::Untracked,
                local: Address::UNSPECIFIED,
                flow: FlowKey::default(),
                ports: (0, 0),
                detail: (0, 0),
                acknowledgement: 0,
                has_fragment_header: false,
                is_untracked: false,
                is_settled: false,
                length: 0,
                revision: 0,
                now: 0,
                question: steps::Question::NONE,
                begun: Connection::default(),
            },
            decision: Decision::NONE,
            refusals: refusals::Refusals::NONE,
        }
    }
}
