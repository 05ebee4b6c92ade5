//! Every map the agent and the kernel share: name, kind, key, value, default capacity.
//!
//! One definition each. User space pins all of them under one directory that carries
//! [`LAYOUT_VERSION`]; a change of any layout here is a new version. Map values hold plain
//! integers; zeroed memory always reads as the safe answer (no class, deny, not programmed).
//! Fields are host-endian unless they say `_be`; addresses are in network order by their type.

#![expect(
    missing_debug_implementations,
    reason = "zerocopy's derives make helper types without it; ours derive it in map_types!"
)]

use zerocopy::{FromBytes, Immutable, IntoBytes};

pub mod before;
mod flags;
mod list;
mod rows;

use crate::address::Address;
pub use flags::{config_flags, connection_flags, peer_flags, settings_flags};
pub use list::{CONNTRACK_CAPACITY, MAPS, MapKind, MapSpec};
pub use rows::{
    FIRST_RULE_ROW, RULE_GENERATIONS, RULE_ROWS, dropped_index, flow_slot, hit_row, other_local,
    passed_index, peer_bucket, rule_generation, rule_id, rule_row,
};

/// Version of all layouts below; part of the pin directory's name.
pub const LAYOUT_VERSION: u32 = 1 + TRIED;

/// 1 in the build that tries a change of layout out (feature `next-layout`), where some values are
/// longer; else 0.
const TRIED: u32 = cfg!(feature = "next-layout") as u32;
/// [`TRIED`], to count bytes with.
const TRIED_BYTES: usize = TRIED as usize;

/// Declares map keys and values: `repr(C)`, plain data proved by derives, size asserted.
macro_rules! map_types {
    ($($(#[$doc:meta])* pub struct $name:ident { $($(#[$fdoc:meta])* pub $field:ident: $ty:ty,)* } = $size:tt)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, FromBytes, IntoBytes, Immutable)]
        #[repr(C)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }

        const _: () = assert!(size_of::<$name>() == $size);

        impl $name {
            /// Field names and byte offsets, for the layout snapshot.
            pub const FIELDS: &[(&str, usize)] = &[$((stringify!($field), core::mem::offset_of!($name, $field))),*];
        }

        // SAFETY: `IntoBytes` and `FromBytes` above prove that the type has no padding and that
        // every bit pattern is valid, which is all that `Pod` asks for.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    )*
        /// The types declared here, for the layout snapshot.
        pub const TYPES: &[$crate::maps::TypeLayout] = &[$($crate::maps::TypeLayout {
            name: stringify!($name),
            size: $size,
            fields: $name::FIELDS,
        }),*];
    };
}
pub(crate) use map_types;

/// How one shared type lies in memory.
#[derive(Clone, Copy, Debug)]
pub struct TypeLayout {
    /// Name of the type.
    pub name: &'static str,
    /// Size in bytes.
    pub size: usize,
    /// Names and byte offsets of its fields, in order.
    pub fields: &'static [(&'static str, usize)],
}

map_types! {
    /// ENDPOINTS: what the programs load once per packet, as one aligned 8-byte word.
    pub struct EndpointWord {
        /// Row of CONFIGS; 0 means that no endpoint is published here.
        pub config_row: u32,
        /// Revision of the endpoint's policy; connections stamped with another are judged again.
        pub revision: u32,
    } = 8

    /// An address prefix; IPv4 is mapped, so an IPv4 /24 has length 120.
    pub struct Prefix {
        /// The address, bits past the length zero.
        pub address: Address,
        /// Length in bits, 0 to 128.
        pub length: u32,
    } = 20

    /// CONFIGS: an endpoint as its programs see it. A row is immutable once published.
    pub struct Config {
        /// The host-side interface this row is for; guards against index collisions.
        pub ifindex: u32,
        /// Place of the endpoint in per-slot maps; 0 means none.
        pub slot: u32,
        /// The pod's addresses; unused places are `::`.
        pub addresses: [Address; 2],
        /// Policy sets in force, by direction; 0 means not isolated.
        pub sets: [u32; 2],
        /// Policy sets in force plus the audited ones, by direction; equal to `sets` when no
        /// audited policy selects the endpoint.
        pub audit_sets: [u32; 2],
        /// `config_flags`.
        pub flags: u32,
        /// When the programs were attached, in jiffies (low 32 bits).
        pub attached: u32,
        /// Break-glass deadline in 64-bit jiffies; 0 when the glass is whole.
        pub open_until: u64,
        /// Prefixes beside `addresses` the pod may send from.
        pub sources: [Prefix; 4],
        /// How many of `sources` are used.
        pub source_count: u32,
        /// Zero.
        pub reserved: u32,
    } = 160

    /// CONNTRACK and PENDING: a flow at one endpoint, the same key for both of its directions. The
    /// pod's own address is no part of it: it has one of the peer's family, and takes another slot
    /// with another one; and the shorter the key, the sooner it is found.
    pub struct FlowKey {
        /// The other side.
        pub peer: Address,
        /// Port of the pod's side, host order; of an ICMP echo, its identifier.
        pub local_port: u16,
        /// Port of the other side, host order; of an ICMP echo, 0 when the pod asks and 1 when
        /// the peer does.
        pub peer_port: u16,
        /// IP protocol number.
        pub protocol: u8,
        /// 0 when the pod's side is an address of its own; else [`other_local`] of what it is.
        pub local: u8,
        /// The endpoint's slot.
        pub slot: u16,
    } = 24

    /// CONNTRACK and PENDING: what is known of a flow that was allowed.
    pub struct Connection {
        /// Revision of the endpoint under which the flow was last judged.
        pub revision: u32,
        /// Revision of the peer's bucket under which the flow was last judged.
        pub peer_revision: u32,
        /// When a packet was last seen, in jiffies (low 32 bits).
        pub last_seen: u32,
        /// Rule that admitted the flow; 0 when none did.
        pub rule: u32,
        /// `ingress_ifindex` of the local pod that sent the flow's first packet under another
        /// address (masquerade); 0 when the peer is who its address says.
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
        pub reserved: [u8; 1 + 8 * TRIED_BYTES],
        /// When the flow was made, in jiffies (low 32 bits).
        pub first_seen: u32,
    } = (32 + 8 * TRIED_BYTES)

    /// PEERS_CIDR key. The leading length is what the LPM trie wants.
    pub struct PrefixKey {
        /// Prefix length in bits, 0 to 128.
        pub length: u32,
        /// The address.
        pub address: Address,
    } = 20

    /// PEERS_EXACT and PEERS_CIDR: what an address is to this node's policies.
    pub struct PeerEntry {
        /// Peer class; 0 matches nothing.
        pub class: u32,
        /// `peer_flags`.
        pub flags: u32,
    } = 8

    /// VERDICTS key.
    pub struct VerdictKey {
        /// Policy set.
        pub set: u32,
        /// Peer class.
        pub class: u32,
    } = 8

    /// A stretch of ports of one protocol inside a port function.
    pub struct PortInterval {
        /// IP protocol number.
        pub protocol: u8,
        /// `ALLOW` or `DENY`.
        pub verdict: u8,
        /// Precedence of the deciding rule; lower was asked first.
        pub rank: u16,
        /// First port, host order.
        pub first: u16,
        /// Last port, host order, inclusive.
        pub last: u16,
        /// Deciding rule; 0 when none.
        pub rule: u32,
    } = 12

    /// VERDICTS: the flattened function over (protocol, port) for one set and class. What no
    /// interval covers has the row's own verdict.
    pub struct PortFunction {
        /// `FUNCTION_INLINE` or `FUNCTION_LONG`.
        pub kind: u8,
        /// How many of `intervals` are used.
        pub count: u8,
        /// Verdict outside all intervals: `ALLOW` or `DENY`.
        pub verdict: u8,
        /// Zero.
        pub reserved: u8,
        /// Precedence of the rule behind `verdict`.
        pub rank: u16,
        /// Zero.
        pub reserved2: [u16; 1 + 2 * TRIED_BYTES],
        /// Rule behind `verdict`; 0 when none.
        pub rule: u32,
        /// Function id in PORTS, when the kind is `FUNCTION_LONG`.
        pub function: u32,
        /// Disjoint intervals, in no particular order.
        pub intervals: [PortInterval; 3],
    } = (52 + 4 * TRIED_BYTES)

    /// PORTS key: function, protocol, port, longest prefix first. The leading length is what the
    /// LPM trie wants: 40 bits cover one protocol, 56 one port.
    pub struct PortKey {
        /// Prefix length in bits, 0 to 56.
        pub length: u32,
        /// Function id, big-endian.
        pub function_be: [u8; 4],
        /// IP protocol number.
        pub protocol: u8,
        /// Port, big-endian.
        pub port_be: [u8; 2],
        /// Zero.
        pub reserved: u8,
    } = 12

    /// PORTS: the verdict for a stretch of ports. A miss means the row's own verdict.
    pub struct PortVerdict {
        /// `ALLOW` or `DENY`.
        pub verdict: u8,
        /// Zero.
        pub reserved: u8,
        /// Precedence of the deciding rule.
        pub rank: u16,
        /// Deciding rule; 0 when none.
        pub rule: u32,
    } = 8

    /// SERVICES key: a virtual address and port before DNAT.
    pub struct ServiceKey {
        /// The virtual address.
        pub address: Address,
        /// Port, host order.
        pub port: u16,
        /// IP protocol number.
        pub protocol: u8,
        /// Zero.
        pub reserved: u8,
    } = 20

    /// One distinct kind of backend of a Service.
    pub struct Backend {
        /// Peer class of the backends.
        pub class: u32,
        /// Their port, host order.
        pub port: u16,
        /// Zero.
        pub reserved: u16,
    } = 8

    /// SERVICES: the distinct backends behind a virtual address and port.
    pub struct Service {
        /// How many of `backends` are used; `SERVICE_MANY` when four do not suffice.
        pub count: u32,
        /// The distinct (class, port) pairs.
        pub backends: [Backend; 4],
    } = 36

    /// FRAGMENTS key: a fragmented packet as one endpoint sees it, from the pod or to it.
    pub struct FragmentKey {
        /// Source address.
        pub source: Address,
        /// Destination address.
        pub destination: Address,
        /// Identification (RFC 791, RFC 8200 §4.5), host order.
        pub identification: u32,
        /// The endpoint's slot.
        pub slot: u32,
        /// IP protocol number; 0 of IPv6, whose later fragments may show another one than the
        /// first (RFC 8200 §4.5).
        pub protocol: u8,
        /// Zero.
        pub reserved: [u8; 3],
    } = 44

    /// FRAGMENTS: what the first fragment of a packet said, which was allowed.
    pub struct Fragment {
        /// `FlowKey::local_port` of its flow.
        pub local_port: u16,
        /// `FlowKey::peer_port` of its flow.
        pub peer_port: u16,
        /// When it was seen, in jiffies (low 32 bits).
        pub first_seen: u32,
        /// How many bytes of what is in pieces are headers that were judged.
        pub header_bytes: u16,
        /// IP protocol number.
        pub protocol: u8,
        /// TCP flags, ICMP type or the type of SCTP's first chunk.
        pub detail: u8,
    } = 12

    /// PASSED and DROPPED: exact traffic counts.
    pub struct Traffic {
        /// Packets.
        pub packets: u64,
        /// Bytes from the IP header on.
        pub bytes: u64,
    } = 16

    /// DENIED key: who was refused what.
    pub struct DeniedKey {
        /// The other side's address.
        pub peer: Address,
        /// The endpoint's slot.
        pub slot: u32,
        /// Port the refused flow was opened to, host order; ICMP: type << 8 | code.
        pub port: u16,
        /// IP protocol number.
        pub protocol: u8,
        /// `Direction::index`.
        pub direction: u8,
    } = 24

    /// DENIED: how often and since when.
    pub struct Denied {
        /// Packets refused.
        pub packets: u64,
        /// First refusal, 64-bit jiffies.
        pub first: u64,
        /// Latest refusal, 64-bit jiffies.
        pub last: u64,
        /// Endpoint revision of the latest refusal.
        pub revision: u32,
        /// Deciding rule of the latest refusal; 0 when none.
        pub rule: u32,
        /// When this row was last reported as an event, jiffies (low 32 bits).
        pub reported: u32,
        /// `Reason::number` of the latest refusal.
        pub reason: u8,
        /// Zero.
        pub reserved: [u8; 3],
    } = 40

    /// RULE_HITS: new connections of one rule; in the first rows, those that no rule of its own
    /// row decided (see [`hit_row`]).
    pub struct RuleHit {
        /// New connections.
        pub connections: u64,
        /// Latest one, 64-bit jiffies.
        pub last_seen: u64,
    } = 16

    /// BUDGETS: token bucket of new flows, per slot.
    pub struct Budget {
        /// When tokens were last added, in jiffies (low 32 bits).
        pub stamp: u32,
        /// Tokens left, each one new flow.
        pub tokens: u32,
    } = 8

    /// SETTINGS: knobs the programs read; one row.
    pub struct Settings {
        /// `settings_flags`.
        pub flags: u32,
        /// Kernel ticks a second (`CONFIG_HZ` as measured by user space).
        pub hz: u32,
        /// A DENIED row this old, in jiffies, is reported again when it grows.
        pub report_interval: u32,
        /// Length of the mid-stream grace after attachment under the strict knob, in jiffies.
        pub mid_stream_grace: u32,
        /// Lifetime of a silent flow in jiffies, by `conntrack::Timeout`.
        pub timeouts: [u32; 8],
        /// New flows an endpoint may open a second.
        pub budget_rate: u32,
        /// New flows an endpoint may open at once.
        pub budget_burst: u32,
        /// Bits of the packet mark that carry a source endpoint's slot to the next hook.
        pub mark_mask: u32,
        /// Zero.
        pub reserved: u32,
    } = 64

    /// NAMES key: what an id means to people.
    pub struct NameKey {
        /// `NAME_RULE` or `NAME_SLOT`.
        pub kind: u32,
        /// Rule id or slot.
        pub id: u32,
    } = 8

    /// NAMES: `namespace/policy/ingress/0` of a rule, `uid namespace/pod` of a slot; UTF-8.
    pub struct Name {
        /// Length of the text in bytes.
        pub length: u32,
        /// The text; zero past its length.
        pub text: [[u8; 32]; 12],
    } = 388
}

/// Verdict integers of port functions. Zeroed memory denies.
pub const DENY: u8 = 0;
/// See [`DENY`].
pub const ALLOW: u8 = 1;
/// The function is wholly in its VERDICTS row.
pub const FUNCTION_INLINE: u8 = 0;
/// The function's intervals are in PORTS.
pub const FUNCTION_LONG: u8 = 1;
/// A Service with more distinct backends than its row holds.
pub const SERVICE_MANY: u32 = u32::MAX;
/// `NameKey::kind` of a rule.
pub const NAME_RULE: u32 = 1;
/// `NameKey::kind` of a slot.
pub const NAME_SLOT: u32 = 2;

/// Rows of ENDPOINTS; an interface index is masked with this minus one.
pub const ENDPOINT_ROWS: u32 = 4096;
/// Rows of PEER_REVISION.
pub const PEER_BUCKETS: u32 = 4096;
/// Largest number of endpoints a node can have, slot 0 included.
pub const SLOTS: u32 = 1024;
const _: () = assert!(SLOTS <= 1 << 16, "a flow's key has 16 bits for its slot");
/// Rows of CONFIGS: each endpoint may have an old and a new row, and rows rest before reuse.
pub const CONFIG_ROWS: u32 = 4 * SLOTS;

/// Rows of COUNTERS: things that concern the node as a whole.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u32)]
pub enum Counter {
    /// An event found no room in the ring buffer.
    EventsLost = 0,
    /// A refusal found no room in DENIED (it is still counted in DROPPED).
    DeniedOverflow = 1,
    /// A new flow could not be kept in PENDING or CONNTRACK.
    ConnectionRefused = 2,
    /// A set had no default row: judged by posture.
    DefaultRowMissing = 3,
    /// A connection was adopted in the middle.
    MidStream = 4,
    /// Unicast for another pod, flooded by a bridge, was dropped at `to_pod`.
    NotMine = 5,
    /// A new flow was refused by its endpoint's budget.
    BudgetExceeded = 6,
    /// A packet met no published endpoint.
    UnknownEndpoint = 7,
    /// A rule without a row of its own in RULE_HITS decided: counted with all others of its kind.
    RuleHitLost = 8,
    /// An established flow was cut by a change of policy or peer.
    Cut = 9,
}

impl Counter {
    /// Every counter, by row.
    pub const ALL: &[Self] = &[
        Self::EventsLost,
        Self::DeniedOverflow,
        Self::ConnectionRefused,
        Self::DefaultRowMissing,
        Self::MidStream,
        Self::NotMine,
        Self::BudgetExceeded,
        Self::UnknownEndpoint,
        Self::RuleHitLost,
        Self::Cut,
    ];
}

/// Rows of COUNTERS.
pub const COUNTER_ROWS: u32 = 16;

/// Rows of IDS: the next unused id of each kind. Kept with the pins, never restarted.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u32)]
pub enum IdKind {
    /// Policy sets.
    Set = 0,
    /// Peer classes.
    Class = 1,
    /// Long port functions.
    Function = 2,
    /// Generations of rules (see [`rule_id`]).
    Rule = 3,
    /// Endpoint and peer revisions, one sequence.
    Revision = 4,
}

/// Rows of IDS.
pub const ID_ROWS: u32 = 8;
