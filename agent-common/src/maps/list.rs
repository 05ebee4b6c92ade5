//! The list of all maps, in the order of a packet's way.

use super::{
    Budget, CONFIG_ROWS, COUNTER_ROWS, Config, Connection, Denied, DeniedKey, ENDPOINT_ROWS,
    EndpointWord, FlowKey, Fragment, FragmentKey, ID_ROWS, Name, NameKey, PEER_BUCKETS, PeerEntry,
    PortFunction, PortKey, PortVerdict, PrefixKey, RULE_ROWS, RuleHit, SLOTS, Service, ServiceKey,
    Settings, Traffic, VerdictKey,
};
use crate::address::Address;
use crate::verdict::DENY_REASONS;

/// How a map keeps its entries.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum MapKind {
    /// `BPF_MAP_TYPE_ARRAY`.
    Array,
    /// `BPF_MAP_TYPE_ARRAY` with `BPF_F_MMAPABLE`: user space stores words atomically.
    MappedArray,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
    PerCpuArray,
    /// `BPF_MAP_TYPE_HASH` with `BPF_F_NO_PREALLOC`.
    Hash,
    /// `BPF_MAP_TYPE_LRU_HASH`, common list.
    LruHash,
    /// `BPF_MAP_TYPE_LPM_TRIE`.
    LpmTrie,
    /// `BPF_MAP_TYPE_ARRAY_OF_MAPS` of LRU hashes.
    ArrayOfLruHash,
    /// `BPF_MAP_TYPE_RINGBUF`; capacity in bytes.
    RingBuffer,
}

/// One map, whole.
#[derive(Clone, Copy, Debug)]
pub struct MapSpec {
    /// Name in the object, in the pin directory and in metrics (lower case there).
    pub name: &'static str,
    /// Kind.
    pub kind: MapKind,
    /// Type of a key (inner key for maps of maps).
    pub key: &'static str,
    /// Type of a value (inner value for maps of maps).
    pub value: &'static str,
    /// Size of a key in bytes (inner key for maps of maps; 0 for the ring buffer).
    pub key_size: usize,
    /// Size of a value in bytes (inner value for maps of maps; 0 for the ring buffer).
    pub value_size: usize,
    /// Default capacity in entries; bytes for the ring buffer.
    pub capacity: u32,
}

macro_rules! spec {
    ($name:literal, $kind:ident, $key:ty => $value:ty, $capacity:expr) => {
        MapSpec {
            name: $name,
            kind: MapKind::$kind,
            key: stringify!($key),
            value: stringify!($value),
            key_size: size_of::<$key>(),
            value_size: size_of::<$value>(),
            capacity: $capacity,
        }
    };
}

/// Default capacity of one endpoint's CONNTRACK map.
pub const CONNTRACK_CAPACITY: u32 = 4096;

/// Every map, in the order of a packet's way.
pub const MAPS: &[MapSpec] = &[
    spec!("ENDPOINTS", MappedArray, u32 => EndpointWord, ENDPOINT_ROWS),
    spec!("ENDPOINTS_COLLIDING", Hash, u32 => EndpointWord, SLOTS),
    spec!("CONFIGS", Array, u32 => Config, CONFIG_ROWS),
    spec!("SETTINGS", Array, u32 => Settings, 1),
    spec!("PEER_REVISION", MappedArray, u32 => u32, PEER_BUCKETS),
    spec!("CONNTRACK", ArrayOfLruHash, FlowKey => Connection, SLOTS),
    spec!("PENDING", LruHash, FlowKey => Connection, 16_384),
    spec!("PEERS_EXACT", Hash, Address => PeerEntry, 131_072),
    spec!("PEERS_CIDR", LpmTrie, PrefixKey => PeerEntry, 131_072),
    spec!("VERDICTS", Hash, VerdictKey => PortFunction, 524_288),
    spec!("PORTS", LpmTrie, PortKey => PortVerdict, 131_072),
    spec!("SERVICES", Hash, ServiceKey => Service, 65_536),
    spec!("FRAGMENTS", LruHash, FragmentKey => Fragment, 8_192),
    spec!("BUDGETS", Array, u32 => Budget, SLOTS),
    spec!("PASSED", PerCpuArray, u32 => Traffic, 2 * SLOTS),
    spec!("DROPPED", Array, u32 => Traffic, 2 * SLOTS * DENY_REASONS),
    spec!("DENIED", Hash, DeniedKey => Denied, 16_384),
    spec!("RULE_HITS", PerCpuArray, u32 => RuleHit, RULE_ROWS),
    spec!("COUNTERS", PerCpuArray, u32 => u64, COUNTER_ROWS),
    spec!("EVENTS", RingBuffer, () => (), 4 << 20),
    spec!("IDS", Array, u32 => u64, ID_ROWS),
    spec!("NAMES", Hash, NameKey => Name, 32_768),
];
