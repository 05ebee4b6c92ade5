//! The layout of version 1, as far as an agent of version 2 reads it: where connections are and
//! what they say. Nothing else of the version before is read; policy is compiled anew.
//!
//! Frozen: this is how an older agent wrote, whatever [`super`] becomes. A new `LAYOUT_VERSION`
//! replaces this file by what is in `super` today.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{MapKind, MapSpec, map_types};
use crate::address::Address;

/// The version that is described here. One version later it can be read; any other agent takes
/// open connections from the kernel's connection tracking.
pub const VERSION: u32 = 1;

map_types! {
    /// ENDPOINTS and ENDPOINTS_COLLIDING.
    pub struct EndpointWord {
        /// Row of CONFIGS; 0 means that no endpoint is published here.
        pub config_row: u32,
        /// Revision of the endpoint's policy.
        pub revision: u32,
    } = 8

    /// CONFIGS.
    pub struct Config {
        /// The host-side interface this row is for.
        pub ifindex: u32,
        /// Place of the endpoint in per-slot maps; 0 means none.
        pub slot: u32,
        /// Policy, which means nothing without that version's maps.
        pub rest: [[u32; 19]; 2],
    } = 160

    /// CONNTRACK and PENDING.
    pub struct FlowKey {
        /// The other side.
        pub peer: Address,
        /// Port of the pod's side, host order; of an ICMP echo, its identifier.
        pub local_port: u16,
        /// Port of the other side, host order; of an ICMP echo, who asks.
        pub peer_port: u16,
        /// IP protocol number.
        pub protocol: u8,
        /// Which of its addresses the pod uses.
        pub local: u8,
        /// The endpoint's slot.
        pub slot: u16,
    } = 24

    /// CONNTRACK and PENDING.
    pub struct Connection {
        /// Revision of the endpoint under which the flow was last judged.
        pub revision: u32,
        /// Revision of the peer's bucket under which the flow was last judged.
        pub peer_revision: u32,
        /// When a packet was last seen, in jiffies (low 32 bits).
        pub last_seen: u32,
        /// Rule that admitted the flow.
        pub rule: u32,
        /// `ingress_ifindex` of the local pod that sent the flow's first packet under another
        /// address; else 0.
        pub via: u32,
        /// Bucket of PEER_REVISION the peer belongs to.
        pub peer_bucket: u16,
        /// `conntrack::State` as an integer.
        pub state: u8,
        /// Direction of the flow's first packet, as `Direction::index`.
        pub originator: u8,
        /// `connection_flags`.
        pub flags: u16,
        /// Reason the flow was allowed for, as `Reason::number`.
        pub reason: u8,
        /// Zero.
        pub reserved: u8,
        /// When the flow was made, in jiffies (low 32 bits).
        pub first_seen: u32,
    } = 32
}

impl From<FlowKey> for super::FlowKey {
    fn from(key: FlowKey) -> Self {
        Self {
            peer: key.peer,
            local_port: key.local_port,
            peer_port: key.peer_port,
            protocol: key.protocol,
            local: key.local,
            slot: key.slot,
        }
    }
}

/// Without a verdict: revisions and rules of the version before mean nothing in other maps, and no
/// endpoint's revision is 0, so the flow's next packet meets policy in the direction it was opened
/// in. Numbers of states, flags and reasons are those of today; `peer_bucket` is computed as today.
impl From<Connection> for super::Connection {
    fn from(connection: Connection) -> Self {
        Self {
            last_seen: connection.last_seen,
            via: connection.via,
            peer_bucket: connection.peer_bucket,
            state: connection.state,
            originator: connection.originator,
            flags: connection.flags,
            reason: connection.reason,
            first_seen: connection.first_seen,
            ..Self::default()
        }
    }
}

const fn spec(
    name: &'static str,
    kind: MapKind,
    (key, key_size): (&'static str, usize),
    (value, value_size): (&'static str, usize),
) -> MapSpec {
    MapSpec {
        name,
        kind,
        key,
        value,
        key_size,
        value_size,
        // Whatever it was made with.
        capacity: 0,
    }
}

const INDEX: (&str, usize) = ("u32", size_of::<u32>());
const WORD: (&str, usize) = ("EndpointWord", size_of::<EndpointWord>());
const CONNECTION: (&str, usize) = ("Connection", size_of::<Connection>());

/// The interface's word, by its index masked.
pub const ENDPOINTS: &MapSpec = &spec("ENDPOINTS", MapKind::MappedArray, INDEX, WORD);
/// Words of interfaces whose place in ENDPOINTS is another's, by the whole index.
pub const ENDPOINTS_COLLIDING: &MapSpec = &spec("ENDPOINTS_COLLIDING", MapKind::Hash, INDEX, WORD);
/// Endpoints, by row.
pub const CONFIGS: &MapSpec = &spec(
    "CONFIGS",
    MapKind::Array,
    INDEX,
    ("Config", size_of::<Config>()),
);
/// Each slot's own map of connections.
pub const CONNTRACK: &MapSpec = &spec(
    "CONNTRACK",
    MapKind::ArrayOfLruHash,
    ("FlowKey", size_of::<FlowKey>()),
    CONNECTION,
);
/// Flows without an answer, of all slots.
pub const PENDING: &MapSpec = &spec(
    "PENDING",
    MapKind::LruHash,
    ("FlowKey", size_of::<FlowKey>()),
    CONNECTION,
);
/// Rows of ENDPOINTS.
pub const ENDPOINT_ROWS: u32 = 4096;
