//! What keeps a link alive and passes whatever policy says: ARP (RFC 826), neighbour discovery
//! (RFC 4861) and multicast listener discovery (RFC 2710, RFC 3810), type by type.
//!
//! Receivers believe neighbour discovery without asking, so policy has no say in it either way: what
//! is not right is dropped. A pod speaks of its own addresses only, is no router, and is heard on its
//! link only: a router must have nothing to pass on.

use super::tables::{FlowTables, Route};
use super::{Arrival, Hook, Read};
use crate::address::Address;
use crate::maps::Config;
use crate::packet::{Head as _, Headers, Packet, ethernet, icmp::v6, transport::protocol};

/// The hop limit that shows a packet was not routed (RFC 4861 §7.1.1).
const UNROUTED: u8 = 255;
/// The hop limit that keeps a packet from being routed (RFC 2710 §3).
const UNROUTABLE: u8 = 1;
/// Offset in the frame of the target of a neighbour's message, which has no extension headers: hosts
/// do not send them, and they make room for other things.
const TARGET: usize = ethernet::HEADER_BYTES + 40 + 8;
/// Longest frame of a neighbour's message. With every option that hosts send it takes 94 bytes; what
/// is much longer carries something else.
const LONGEST: u32 = 128;
/// An address that is no pod's in an IPv6 packet.
const NOBODY: Address = Address::from_v4([0; 4]);

/// What an ICMPv6 packet, or any other, is to the link.
///
/// The source becomes the address that a neighbour's message binds to its sender's hardware address,
/// where it does: the source check that follows is about that.
#[inline(always)]
pub(super) fn read<P: Packet + ?Sized>(packet: &P, headers: &mut Headers, at: &Arrival) -> Read {
    if headers.protocol != protocol::ICMPV6 || headers.source.is_v4() {
        return Read::Ip;
    }
    let is_from_node = matches!(at.hook, Hook::ToPod) && at.ingress_ifindex == 0;
    match headers.detail {
        v6::ROUTER_SOLICITATION..=v6::REDIRECT => {
            // Only a router sends these, and a pod's router is its node.
            let is_by_router = matches!(headers.detail, v6::ROUTER_ADVERTISEMENT | v6::REDIRECT);
            // RFC 6980 §5: never fragmented.
            if headers.hop_limit != UNROUTED
                || headers.has_extension_header
                || headers.code != 0
                || !(is_from_node || (!is_by_router && packet.length() <= LONGEST))
            {
                return Read::Nothing;
            }
            if matches!(at.hook, Hook::FromPod) && !read_claim(packet, headers) {
                return Read::Nothing;
            }
            Read::Neighbour
        }
        // RFC 2710 §3: with a router alert, which is a hop-by-hop option. To a group; a query for
        // one host is for debugging (RFC 3810 §5.1.15).
        v6::LISTENER_QUERY | v6::LISTENER_REPORT | v6::LISTENER_DONE | v6::LISTENER_REPORT_V2
            if headers.hop_limit == UNROUTABLE
                && headers.has_hop_by_hop
                && !headers.has_fragment_header
                && headers.destination.is_group()
                && headers.code == 0 =>
        {
            Read::Link
        }
        // Whatever only resembles it is judged as any other ICMPv6.
        _ => Read::Ip,
    }
}

/// Reads whose address a pod says is its own: by an advertisement, or by looking whether anybody
/// else has it. False when the message ends before that, or is not in one piece: so few bytes always
/// are.
#[inline(always)]
fn read_claim<P: Packet + ?Sized>(packet: &P, headers: &mut Headers) -> bool {
    let source = headers.source.halves();
    let is_unspecified = source[0] | source[1] == 0;
    if headers.detail != v6::NEIGHBOUR_ADVERTISEMENT
        && !(headers.detail == v6::NEIGHBOUR_SOLICITATION && is_unspecified)
    {
        return true;
    }
    let Some(head) = packet.head::<{ TARGET + 16 }>() else {
        return false;
    };
    let target = [head.long::<TARGET>(), head.long::<{ TARGET + 8 }>()];
    // Hosts speak of an address from that very one, or from a link-local one. A pod that may send
    // from any address may speak for others, too.
    let is_for_itself = is_unspecified || headers.source.is_v6_link_local() || source == target;
    headers.source = if is_for_itself {
        Address::from_halves(target)
    } else {
        NOBODY
    };
    true
}

/// True for a destination of neighbour discovery that a pod finds on its own link: a group, a
/// link-local address, or one that shares the first half with one of its own (RFC 4291 §2.5.4), as
/// its gateway's does, unless the node takes there by another way than to the pod: nodes may share
/// one prefix, and forward these messages like any other.
#[inline(always)]
pub(super) fn is_on_link<T: FlowTables>(
    tables: &T,
    ifindex: u32,
    config: &Config,
    destination: &Address,
) -> bool {
    if destination.is_group() || destination.is_v6_link_local() {
        return true;
    }
    let [prefix, _] = destination.halves();
    let [one, other] = &config.addresses;
    let own = if prefix == one.halves()[0] {
        one
    } else {
        other
    };
    if prefix == 0 || prefix != own.halves()[0] {
        return false;
    }
    match tables.route(ifindex, own, destination) {
        Route::Nowhere => true,
        Route::By(interface) => tables.route(ifindex, own, own) == Route::By(interface),
        Route::Unknown => false,
    }
}
