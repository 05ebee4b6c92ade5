//! Present and wanted tables to an ordered list of writes, safe after every prefix.

use std::net::IpAddr;

use agent_common::maps::{
    Config, EndpointWord, IdKind, NameKey, PeerEntry, PortFunction, PortKey, PortVerdict, Prefix,
    Service, ServiceKey, VerdictKey,
};

/// One write to one map. The dataplane carries these out in order and reads each back.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// IDS: ids below this are taken. Comes before anything that uses them.
    ReserveIds(IdKind, u64),
    /// NAMES: what an id means.
    PutName(NameKey, String),
    /// NAMES: the id is no longer in use anywhere.
    DeleteName(NameKey),
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
    /// PEERS_EXACT.
    PutPeer(IpAddr, PeerEntry),
    /// PEERS_EXACT.
    DeletePeer(IpAddr),
    /// PEERS_CIDR.
    PutPrefix(Prefix, PeerEntry),
    /// PEERS_CIDR.
    DeletePrefix(Prefix),
    /// PEER_REVISION: connections with peers in this bucket are judged again.
    StampPeers {
        /// Bucket.
        bucket: u16,
        /// New revision.
        revision: u32,
    },
    /// CONNTRACK: an empty inner map for a slot, its counters and budget cleared.
    OpenSlot(u32),
    /// CONNTRACK: the slot's inner map goes.
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
