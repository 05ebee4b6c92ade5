//! What keeps a link alive and passes whatever policy says: neighbour discovery (RFC 4861) and
//! multicast listener discovery (RFC 2710, RFC 3810), type by type. ARP is known by its ethertype.

use super::{Arrival, Hook};
use crate::packet::{Fragmentation, Headers, icmp::v6, transport::protocol};

/// The hop limit that shows a packet was not routed (RFC 4861 §7.1.1).
const UNROUTED: u8 = 255;
/// The hop limit that keeps a packet from being routed (RFC 2710 §3).
const UNROUTABLE: u8 = 1;

/// True for a message that keeps the link alive. Whatever only resembles one is judged as any
/// other ICMPv6.
#[inline(always)]
pub(super) fn is_link_upkeep(headers: &Headers, at: &Arrival) -> bool {
    if headers.protocol != protocol::ICMPV6
        || headers.source.is_v4()
        // RFC 6980 §5: neighbour discovery is never fragmented.
        || headers.has_fragment_header
        || headers.fragmentation != Fragmentation::Whole
        || headers.code != 0
    {
        return false;
    }
    let is_from_node = matches!(at.hook, Hook::ToPod) && at.ingress_ifindex == 0;
    match headers.detail {
        v6::ROUTER_SOLICITATION | v6::NEIGHBOUR_SOLICITATION | v6::NEIGHBOUR_ADVERTISEMENT => {
            headers.hop_limit == UNROUTED
        }
        // Only a router sends these, and a pod's router is its node.
        v6::ROUTER_ADVERTISEMENT | v6::REDIRECT => headers.hop_limit == UNROUTED && is_from_node,
        // RFC 2710 §3: with a router alert, which is a hop-by-hop option.
        v6::LISTENER_QUERY | v6::LISTENER_REPORT | v6::LISTENER_DONE | v6::LISTENER_REPORT_V2 => {
            headers.hop_limit == UNROUTABLE && headers.has_hop_by_hop
        }
        _ => false,
    }
}
