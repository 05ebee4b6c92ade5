//! The policy look-up: a (set, peer class, protocol, port) to its verdict, reason and rule.

use crate::address::Address;
use crate::maps::{
    ALLOW, Config, FUNCTION_LONG, PeerEntry, PortFunction, PortVerdict, Service, ServiceKey,
    Settings, VerdictKey,
};
use crate::verdict::{Reason, RuleId};

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
    /// Precedence of the deciding rule.
    pub rank: u16,
}

/// What an address is to this node's policies: exact entry, else longest prefix, else class 0.
#[inline(always)]
pub fn peer_of(tables: &impl PolicyTables, address: &Address) -> PeerEntry {
    match tables.peer_exact(address) {
        Some(entry) => entry,
        None => tables.peer_prefix(address).unwrap_or_default(),
    }
}

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
    if set == 0 {
        return Judgement {
            reason: Reason::NotIsolated,
            rule: RuleId::NONE,
            rank: 0,
        };
    }
    let row = if let Some(row) = tables.verdict(&VerdictKey { set, class }) {
        row
    } else {
        // Rows exist only where they differ from the set's row for class 0.
        let Some(row) = tables.verdict(&VerdictKey { set, class: 0 }) else {
            tables.default_row_missing();
            return Judgement {
                reason: Reason::FailClosed,
                rule: RuleId::NONE,
                rank: 0,
            };
        };
        row
    };
    if row.kind == FUNCTION_LONG {
        if let Some(found) = tables.port(row.function, protocol, port) {
            return judgement(found.verdict, found.rule, found.rank);
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
                return judgement(interval.verdict, interval.rule, interval.rank);
            }
            place += 1;
        }
    }
    judgement(row.verdict, row.rule, row.rank)
}

#[inline(always)]
const fn judgement(verdict: u8, rule: u32, rank: u16) -> Judgement {
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
        rank,
    }
}
