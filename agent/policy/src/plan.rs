//! The contract with the dataplane: what a plan is, what its writes mean, and why one is refused.
//! How plans are made is in [`crate::engine`].

use std::net::IpAddr;
use std::time::Duration;

use agent_common::maps::{
    Config, EndpointWord, IdKind, NameKey, PeerEntry, PortFunction, PortKey, PortVerdict, Prefix,
    Service, ServiceKey, VerdictKey,
};
use thiserror::Error;

use crate::model::RuleId;

/// One write to one map. The dataplane carries these out in order and reads each back.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// IDS: ids below this are taken. Comes before anything that uses them.
    ReserveIds(IdKind, u64),
    /// NAMES: what an id means.
    PutName(NameKey, String),
    /// NAMES: the id is no longer in use anywhere.
    DeleteName(NameKey),
    /// `RULE_HITS`: the row of a rule that is not in use yet starts at zero.
    OpenRule(RuleId),
    /// PORTS.
    PutPort(PortKey, PortVerdict),
    /// PORTS.
    DeletePort(PortKey),
    /// VERDICTS.
    PutVerdict(VerdictKey, PortFunction),
    /// VERDICTS.
    DeleteVerdict(VerdictKey),
    /// SERVICES.
    PutService(ServiceKey, Service),
    /// SERVICES.
    DeleteService(ServiceKey),
    /// `PEERS_EXACT`.
    PutPeer(IpAddr, PeerEntry),
    /// `PEERS_EXACT`.
    DeletePeer(IpAddr),
    /// `PEERS_CIDR`.
    PutPrefix(Prefix, PeerEntry),
    /// `PEERS_CIDR`.
    DeletePrefix(Prefix),
    /// `PEER_REVISION`: connections with peers in this bucket are judged again.
    StampPeers {
        /// Bucket.
        bucket: u16,
        /// New revision.
        revision: u32,
    },
    /// CONNTRACK: an empty inner map for a slot, its counters and budget cleared.
    OpenSlot(u32),
    /// CONNTRACK: the slot's inner map goes. Nothing is published with this slot any more.
    CloseSlot(u32),
    /// CONFIGS: fills a row nobody can see yet.
    PutConfig(u32, Box<Config>),
    /// ENDPOINTS: publishes a row and a revision for an interface, atomically.
    Flip {
        /// Host-side interface.
        ifindex: u32,
        /// What its programs load from now on.
        word: EndpointWord,
    },
    /// ENDPOINTS: nothing is published for the interface any more.
    Unpublish {
        /// Host-side interface.
        ifindex: u32,
    },
}

/// What leads from the present content of the maps to the wanted one.
///
/// After every prefix of its writes each packet is judged wholly by the old or wholly by the new
/// state, so a plan that failed midway may wait there; it is continued from the failed write.
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use]
pub struct Plan {
    /// The writes, in the order they have to be carried out.
    pub writes: Vec<Write>,
    /// What they amount to.
    pub summary: Summary,
    /// The wanted state does not fit: this only clears away what has rested, and judges no packet
    /// differently.
    pub is_clearing: bool,
}

/// What a plan amounts to, for logs and metrics.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Summary {
    /// Endpoints published for the first time.
    pub endpoints_published: usize,
    /// Published endpoints whose row changes.
    pub endpoints_flipped: usize,
    /// Published endpoints that get a new revision because they judge some packet differently.
    pub endpoints_revised: usize,
    /// Endpoints that are no longer published.
    pub endpoints_withdrawn: usize,
    /// Addresses whose peer class changes.
    pub peers_moved: usize,
    /// Prefixes whose peer class changes.
    pub prefixes_moved: usize,
    /// Classes that only exist while this plan is carried out.
    pub transitional_classes: usize,
    /// Buckets of peers whose connections are judged again.
    pub buckets_stamped: usize,
}

/// Why the wanted state cannot be planned. Nothing was changed: the state in force stays.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum Refused {
    /// A limit would be exceeded.
    #[error(
        "policy needs {wanted} {what}, more than the limit of {limit}: the state in force stays; \
         {}simplify the policies that select pods of this node",
        remedy(map, *wanted)
    )]
    Limit {
        /// What there would be too many of.
        what: &'static str,
        /// The map that holds them, if its capacity is the limit; else empty.
        map: &'static str,
        /// How many.
        wanted: usize,
        /// How many there may be.
        limit: usize,
    },
    /// More endpoints change than rows are free; rows rest before they are used again.
    #[error(
        "{wanted} endpoint rows are needed and {free} are free: the state in force stays and is \
         tried again when rows have rested"
    )]
    ConfigRows {
        /// How many are needed.
        wanted: usize,
        /// How many are free.
        free: usize,
        /// When more will be free, if any rests.
        retry_at: Option<Duration>,
    },
    /// Ids of a kind are used up, which takes years.
    #[error(
        "ids of kind {kind:?} are used up: the state in force stays; run `picket uninstall`, then \
         start again"
    )]
    IdsExhausted {
        /// The kind.
        kind: IdKind,
    },
}

/// What raises a limit, before the advice that holds for all of them.
fn remedy(map: &str, wanted: usize) -> String {
    if map.is_empty() {
        // Classes have no map of their own, and no setting.
        return "let fewer different from and to lists apply to each peer, by selecting labels that many \
                peers share; "
            .to_owned();
    }
    let room = wanted.next_power_of_two();
    format!(
        "start the agent with --map-capacity {map}={room} (`picket uninstall` first: a pinned map \
         keeps its size), or "
    )
}
