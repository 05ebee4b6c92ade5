//! The policy look-up: a (set, peer class, protocol, port) to its verdict, reason and rule.

use crate::address::Address;
use crate::maps::{
    ALLOW, Backend, Config, FUNCTION_LONG, PeerEntry, PortFunction, PortVerdict, Service,
    ServiceKey, Settings, VerdictKey, peer_flags,
};
use crate::verdict::{Direction, Reason, RuleId, Verdict};

/// What user space has compiled: BPF maps in the kernel, plain collections on the host.
pub trait PolicyTables {
    /// The endpoint published for an interface, and its policy revision, from one load of its word.
    fn endpoint(&self, ifindex: u32) -> Option<(&Config, u32)>;
    /// Current revision of a bucket of peers.
    fn peer_revision(&self, bucket: u16) -> u32;
    /// PEERS_EXACT.
    fn peer_exact(&self, address: &Address) -> Option<PeerEntry>;
    /// PEERS_CIDR, longest prefix.
    fn peer_prefix(&self, address: &Address) -> Option<PeerEntry>;
    /// VERDICTS.
    fn verdict(&self, key: &VerdictKey) -> Option<&PortFunction>;
    /// PORTS, longest prefix of (function, protocol, port).
    fn port(&self, function: u32, protocol: u8, port: u16) -> Option<PortVerdict>;
    /// SERVICES.
    fn service(&self, key: &ServiceKey) -> Option<&Service>;
    /// SETTINGS.
    fn settings(&self) -> &Settings;
    /// A set had neither a row for a class nor a default row: counted, never expected.
    fn default_row_missing(&self);
}

/// What policy says of a new flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub struct Judgement {
    /// Why; its verdict is the judgement's verdict.
    pub reason: Reason,
    /// Deciding rule, if one decided.
    pub rule: RuleId,
}

/// What an address is to this node's policies: exact entry, else longest prefix, else class 0.
#[inline(always)]
pub fn peer_of(tables: &impl PolicyTables, address: &Address) -> PeerEntry {
    match tables.peer_exact(address) {
        Some(entry) => entry,
        None => tables.peer_prefix(address).unwrap_or_default(),
    }
}

/// Judges a flow that is opened to `key`, or by whom it names: by the peer's class, or when a Service
/// proxy takes it elsewhere by the backends of which it is about to choose one. Whoever may reach all
/// of them may reach the Service, by the rule that admits to the first. Only who opens a flow sees its
/// Service: its backend sees who opened it.
#[inline(always)]
pub fn judge_peer(
    tables: &impl PolicyTables,
    set: u32,
    peer: PeerEntry,
    direction: Direction,
    key: &ServiceKey,
) -> Judgement {
    let service = if peer.flags & peer_flags::VIP != 0
        && matches!(direction, Direction::Egress)
        && set != 0
    {
        tables.service(key)
    } else {
        None
    };
    let Some(service) = service else {
        return judge_apart(tables, set, peer.class, key.protocol, key.port).open(tables);
    };
    let mut judgement = Judgement {
        reason: Reason::NoEndpoints,
        rule: RuleId::NONE,
    };
    let (mut allowed, mut place) = (0, 0);
    while place < BACKENDS {
        if place >= service.count {
            break;
        }
        let Some(Backend { class, port, .. }) = service.backends.get(place as usize) else {
            break;
        };
        let of_backend = judge_apart(tables, set, *class, key.protocol, *port).open(tables);
        if matches!(of_backend.reason, Reason::FailClosed) {
            return of_backend;
        }
        if place == 0 {
            judgement = of_backend;
        }
        if matches!(of_backend.reason.verdict(), Verdict::Allow) {
            allowed += 1;
        }
        place += 1;
    }
    if allowed != service.count {
        judgement.rule = RuleId::NONE;
        // More kinds than the row has places for: not all of them were asked.
        judgement.reason = if allowed == 0 && service.count <= BACKENDS {
            Reason::ServiceNone
        } else {
            Reason::ServiceUnseen
        };
    }
    judgement
}

/// A judgement of [`look_up`] in one number, which is what a function of the kernel's can return.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Sealed(u64);

impl Sealed {
    #[inline(always)]
    const fn of(judgement: Judgement) -> Self {
        Self((judgement.reason.number() as u64) << 32 | judgement.rule.0 as u64)
    }

    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "halves of what `of` put together"
    )]
    fn open(self, tables: &impl PolicyTables) -> Judgement {
        let reason = match (self.0 >> 32) as u8 {
            number if number == Reason::Rule.number() => Reason::Rule,
            number if number == Reason::IsolatedNoRule.number() => Reason::IsolatedNoRule,
            number if number == Reason::NotIsolated.number() => Reason::NotIsolated,
            number if number == Reason::DenyRule.number() => Reason::DenyRule,
            _ => {
                tables.default_row_missing();
                Reason::FailClosed
            }
        };
        Judgement {
            reason,
            rule: RuleId(self.0 as u32),
        }
    }
}

/// The look-up as a function of its own: a program has room for few of it.
#[inline(never)]
fn judge_apart(
    tables: &impl PolicyTables,
    set: u32,
    class: u32,
    protocol: u8,
    port: u16,
) -> Sealed {
    Sealed::of(look_up(tables, set, class, protocol, port))
}

/// Places of a SERVICES row.
#[expect(clippy::cast_possible_truncation, reason = "they are four")]
const BACKENDS: u32 = (size_of::<[Backend; 4]>() / size_of::<Backend>()) as u32;

/// Judges one direction of one endpoint. `port` is the destination port of the flow's first
/// packet; protocols without ports use 0.
#[inline(always)]
pub fn judge(
    tables: &impl PolicyTables,
    set: u32,
    class: u32,
    protocol: u8,
    port: u16,
) -> Judgement {
    let judgement = look_up(tables, set, class, protocol, port);
    if matches!(judgement.reason, Reason::FailClosed) {
        tables.default_row_missing();
    }
    judgement
}

#[inline(always)]
fn look_up(tables: &impl PolicyTables, set: u32, class: u32, protocol: u8, port: u16) -> Judgement {
    if set == 0 {
        return Judgement {
            reason: Reason::NotIsolated,
            rule: RuleId::NONE,
        };
    }
    let row = if let Some(row) = tables.verdict(&VerdictKey { set, class }) {
        row
    } else {
        // Rows exist only where they differ from the set's row for class 0.
        let Some(row) = tables.verdict(&VerdictKey { set, class: 0 }) else {
            return Judgement {
                reason: Reason::FailClosed,
                rule: RuleId::NONE,
            };
        };
        row
    };
    if row.kind == FUNCTION_LONG {
        if let Some(found) = tables.port(row.function, protocol, port) {
            return judgement(found.verdict, found.rule);
        }
    } else {
        let mut place = 0;
        while place < row.intervals.len() {
            if place < row.count as usize
                && let Some(interval) = row.intervals.get(place)
                && interval.protocol == protocol
                && interval.first <= port
                && port <= interval.last
            {
                return judgement(interval.verdict, interval.rule);
            }
            place += 1;
        }
    }
    judgement(row.verdict, row.rule)
}

#[inline(always)]
const fn judgement(verdict: u8, rule: u32) -> Judgement {
    let reason = if verdict == ALLOW {
        Reason::Rule
    } else if rule == 0 {
        Reason::IsolatedNoRule
    } else {
        Reason::DenyRule
    };
    Judgement {
        reason,
        rule: RuleId(rule),
    }
}
