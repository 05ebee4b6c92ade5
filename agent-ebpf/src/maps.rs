//! The maps of `agent_common::maps::MAPS`, as the loader is to make them. User space compares
//! every one with its description when it opens them, so a difference cannot go unseen.

use agent_common::Address;
use agent_common::classify::Room;
use agent_common::event::FlowEvent;
use agent_common::maps::{
    Budget, CONFIG_ROWS, CONNTRACK_CAPACITY, COUNTER_ROWS, Config, Connection, Denied, DeniedKey,
    ENDPOINT_ROWS, EndpointWord, FlowKey, Fragment, FragmentKey, ID_ROWS, MAPS, Name, NameKey,
    PEER_BUCKETS, PeerEntry, PortFunction, PortVerdict, RuleHit, SLOTS, Service, ServiceKey,
    Settings, Traffic, VerdictKey,
};
use agent_common::verdict::DENY_REASONS;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// Default capacity of a map, from its description.
#[expect(
    clippy::indexing_slicing,
    clippy::panic,
    reason = "evaluated by the compiler, where iterators are not to be had and a panic is an error"
)]
const fn capacity(name: &str) -> usize {
    let mut index = 0;
    while index < MAPS.len() {
        if same(MAPS[index].name, name) {
            return MAPS[index].capacity as usize;
        }
        index += 1;
    }
    panic!("MAPS has no map of this name")
}

#[expect(clippy::indexing_slicing, reason = "as above")]
const fn same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut index = 0;
    while index < one.len() && index < other.len() && one[index] == other[index] {
        index += 1;
    }
    index == one.len() && index == other.len()
}

#[btf_map]
pub(crate) static ENDPOINTS: Array<EndpointWord, { ENDPOINT_ROWS as usize }, MMAPABLE> =
    Array::new();
#[btf_map]
pub(crate) static ENDPOINTS_COLLIDING: HashMap<
    u32,
    EndpointWord,
    { capacity("ENDPOINTS_COLLIDING") },
    NO_PREALLOC,
> = HashMap::new();
#[btf_map]
pub(crate) static CONFIGS: Array<Config, { CONFIG_ROWS as usize }> = Array::new();
#[btf_map]
pub(crate) static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map]
pub(crate) static PEER_REVISION: Array<u32, { PEER_BUCKETS as usize }, MMAPABLE> = Array::new();
#[btf_map]
pub(crate) static CONNTRACK: ArrayOfMaps<
    LruHashMap<FlowKey, Connection, { CONNTRACK_CAPACITY as usize }>,
    { SLOTS as usize },
> = ArrayOfMaps::new();
#[btf_map]
pub(crate) static PENDING: LruHashMap<FlowKey, Connection, { capacity("PENDING") }> =
    LruHashMap::new();
#[btf_map]
pub(crate) static PEERS_EXACT: HashMap<
    Address,
    PeerEntry,
    { capacity("PEERS_EXACT") },
    NO_PREALLOC,
> = HashMap::new();
/// Keyed by `PrefixKey`: aya's key has the length in front, like ours.
#[btf_map]
pub(crate) static PEERS_CIDR: LpmTrie<[u8; 16], PeerEntry, { capacity("PEERS_CIDR") }> =
    LpmTrie::new();
#[btf_map]
pub(crate) static VERDICTS: HashMap<
    VerdictKey,
    PortFunction,
    { capacity("VERDICTS") },
    NO_PREALLOC,
> = HashMap::new();
/// Keyed by `PortKey`: aya's key has the length in front, like ours.
#[btf_map]
pub(crate) static PORTS: LpmTrie<[u8; 8], PortVerdict, { capacity("PORTS") }> = LpmTrie::new();
#[btf_map]
pub(crate) static SERVICES: HashMap<ServiceKey, Service, { capacity("SERVICES") }, NO_PREALLOC> =
    HashMap::new();
#[btf_map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, Fragment, { capacity("FRAGMENTS") }> =
    LruHashMap::new();
#[btf_map]
pub(crate) static BUDGETS: Array<Budget, { SLOTS as usize }> = Array::new();
#[btf_map]
pub(crate) static PASSED: PerCpuArray<Traffic, { 2 * SLOTS as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static DROPPED: Array<Traffic, { (2 * SLOTS * DENY_REASONS) as usize }> = Array::new();
#[btf_map]
pub(crate) static DENIED: HashMap<DeniedKey, Denied, { capacity("DENIED") }, NO_PREALLOC> =
    HashMap::new();
#[btf_map]
pub(crate) static RULE_HITS: PerCpuArray<RuleHit, { capacity("RULE_HITS") }> = PerCpuArray::new();
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, { COUNTER_ROWS as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static EVENTS: RingBuf<FlowEvent, { capacity("EVENTS") }> = RingBuf::new();
/// Written and read by user space only; here so that the loader makes and pins it with the rest.
#[btf_map]
pub(crate) static IDS: Array<u64, { ID_ROWS as usize }> = Array::new();
/// Written and read by user space only; here so that the loader makes and pins it with the rest.
#[btf_map]
pub(crate) static NAMES: HashMap<NameKey, Name, { capacity("NAMES") }, NO_PREALLOC> =
    HashMap::new();
/// Where each CPU keeps what it reads of a packet; not one of `MAPS`, and not pinned.
#[btf_map]
pub(crate) static ROOM: PerCpuArray<[u64; size_of::<Room>().div_ceil(8)], 1> = PerCpuArray::new();
