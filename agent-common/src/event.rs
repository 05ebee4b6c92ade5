//! The ring buffer's records.

#![expect(
    missing_debug_implementations,
    reason = "zerocopy's derives make helper types without it; ours derive it in map_types!"
)]

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::address::Address;
use crate::maps::map_types;

map_types! {
    /// One flow event: a new flow, a refusal, or an audit difference.
    pub struct FlowEvent {
        /// When, in 64-bit jiffies.
        pub time: u64,
        /// The pod's side.
        pub local: Address,
        /// The other side, as the packet shows it.
        pub peer: Address,
        /// Port of the pod's side, host order; ICMP: 0.
        pub local_port: u16,
        /// Port of the other side, host order; ICMP: 0.
        pub peer_port: u16,
        /// The endpoint's slot.
        pub slot: u32,
        /// The endpoint's host-side interface.
        pub ifindex: u32,
        /// Interface of the local pod that really sent it, when a masquerade hides it; else 0.
        pub via: u32,
        /// Endpoint revision the flow was judged under.
        pub revision: u32,
        /// Deciding rule; 0 when none.
        pub rule: u32,
        /// Policy set judged, 0 when not isolated.
        pub set: u32,
        /// Peer class judged.
        pub class: u32,
        /// Length of the packet in bytes.
        pub length: u32,
        /// Packets this record stands for (DENIED's count so far; 1 for a new flow; 0 when another
        /// event reports them).
        pub packets: u32,
        /// TCP acknowledgement number of the packet, host order, for who tells its sender; else 0.
        pub acknowledgement: u32,
        /// IP protocol number.
        pub protocol: u8,
        /// `Direction::index` of the judgement.
        pub direction: u8,
        /// `Reason::number`; an unknown number reads as deny.
        pub reason: u8,
        /// `Reason::number` of the verdict in force when `reason` is an audit difference; else 0.
        pub in_force: u8,
        /// TCP flags, or ICMP type.
        pub detail: u8,
        /// ICMP code.
        pub code: u8,
        /// Bits of [`event_flags`].
        pub flags: u8,
        /// Zero.
        pub reserved: [u8; 5],
    } = 96
}

/// Bits of [`FlowEvent::flags`].
pub mod event_flags {
    /// The pod has sent the packet; else it was on its way to the pod.
    pub const FROM_POD: u8 = 1;
    /// A segment of a TCP connection that was allowed until policy or peer changed: who sent it may
    /// be told. It says no more than that; the refusal is reported by another event.
    pub const TELL: u8 = 2;
}
