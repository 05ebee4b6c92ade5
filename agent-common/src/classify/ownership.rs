//! Whose address is it? The source check of `from_pod`, the destination check of `to_pod`, and
//! who really sent a packet.

use super::{Hook, Seen, tables::FlowTables};
use crate::address::Address;
use crate::maps::{Config, Prefix, config_flags};

/// True for an address of the endpoint, or one that it may use beside its own.
#[inline(always)]
pub(super) fn owns(config: &Config, address: Address) -> bool {
    is_own(config, address.halves())
        || config.flags & config_flags::ANY_SOURCE != 0
        || (config.source_count != 0 && is_extra_source(config, &address))
}

/// True for an address in one of the prefixes that the pod was given beside its own.
#[inline(never)]
fn is_extra_source(config: &Config, address: &Address) -> bool {
    let mut found = false;
    let mut place = 0;
    while place < config.sources.len() {
        if let Some(prefix) = config.sources.get(place) {
            found |= place < config.source_count as usize && contains(prefix, *address);
        }
        place += 1;
    }
    found
}

/// True for one of the endpoint's own addresses.
#[inline(always)]
pub(super) fn is_own(config: &Config, [a, b]: [u64; 2]) -> bool {
    let ([c, d], [e, f]) = (config.addresses[0].halves(), config.addresses[1].halves());
    ((a == c && b == d) || (a == e && b == f)) && (a | b) != 0
}

/// True for an address that is not the endpoint's but is right for link upkeep: none yet, or one
/// of the link alone.
#[inline(always)]
pub(super) fn never_leaves_the_link(address: Address) -> bool {
    let [a, b] = address.halves();
    address.is_v6_link_local() || a | b == 0
}

#[inline(always)]
pub(super) fn is_same(one: Address, other: Address) -> bool {
    let ([a, b, c, d], [e, f, g, h]) = (one.words(), other.words());
    (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
}

#[inline(always)]
fn contains(prefix: &Prefix, address: Address) -> bool {
    let (wanted, given) = (prefix.address.words(), address.words());
    let mut differs = 0;
    let mut place: u32 = 0;
    while place < 4 {
        if let (Some(wanted), Some(given)) = (wanted.get(place as usize), given.get(place as usize))
        {
            let bits = prefix.length.saturating_sub(place * 32);
            let mask = if bits >= 32 {
                u32::MAX
            } else {
                // Not `MAX << (32 - bits)`: a shift by 32 has no meaning.
                !(u32::MAX >> (bits & 31))
            };
            differs |= (wanted ^ given) & mask.to_be();
        }
        place += 1;
    }
    differs == 0
}

/// Writes the question's peer: who is on the other side, and the interface that told when that is
/// not whom the packet shows. A local pod is itself whatever address a masquerade has put on it.
#[inline(always)]
pub(super) fn find_sender<T: FlowTables>(tables: &T, seen: &mut Seen) {
    match seen.at.hook {
        // The pod itself.
        Hook::FromPod => {
            seen.question.key.address = seen.flow.peer;
            seen.question.via = 0;
        }
        // Where the packet hides a local pod: the peer is that pod's address, else what it shows.
        Hook::ToPod => {
            let ifindex = seen.at.ingress_ifindex;
            let is_hidden = find_behind(tables, seen, ifindex);
            seen.question.via = if is_hidden { ifindex } else { 0 };
        }
    }
}

/// Makes the peer of the question the local pod behind `ifindex`, by its address of the family
/// that the packet shows. False, and the peer is whom the packet shows, when there is no such pod
/// or that address is the pod's to use.
#[inline(never)]
pub(super) fn find_behind<T: FlowTables>(tables: &T, seen: &mut Seen, ifindex: u32) -> bool {
    let shown = &seen.flow.peer;
    seen.question.key.address = *shown;
    if ifindex == 0 {
        return false;
    }
    let Some((config, _)) = tables.endpoint(ifindex) else {
        return false;
    };
    if owns(config, *shown) {
        return false;
    }
    let [first, second] = &config.addresses;
    let stands_for = |address: &Address| {
        address.is_v4() == shown.is_v4() && !is_same(*address, Address::UNSPECIFIED)
    };
    if stands_for(first) {
        seen.question.key.address = *first;
        true
    } else if stands_for(second) {
        seen.question.key.address = *second;
        true
    } else {
        false
    }
}
