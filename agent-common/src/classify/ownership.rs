//! Whose address is it? The source check of `from_pod`, the destination check of `to_pod`, and
//! who really sent a packet.

use super::{Hook, Seen, tables::FlowTables};
use crate::address::Address;
use crate::maps::{Config, Prefix, config_flags};

/// True for an address of the endpoint, or one that it may use beside its own.
#[inline(always)]
pub(super) fn owns(config: &Config, address: Address) -> bool {
    is_own(config, address) || config.flags & config_flags::ANY_SOURCE != 0 || {
        let mut found = false;
        let mut place = 0;
        while place < config.sources.len() {
            if let Some(prefix) = config.sources.get(place) {
                found |= place < config.source_count as usize && contains(prefix, address);
            }
            place += 1;
        }
        found
    }
}

/// True for one of the endpoint's own addresses.
#[inline(always)]
pub(super) fn is_own(config: &Config, address: Address) -> bool {
    let [first, second] = &config.addresses;
    (is_same(*first, address) || is_same(*second, address))
        && !is_same(address, Address::UNSPECIFIED)
}

/// True for a source that is not the endpoint's but is right for link upkeep: none yet, or one
/// that never leaves the link.
#[inline(always)]
pub(super) fn is_link_source(address: Address) -> bool {
    address.is_v6_link_local() || is_same(address, Address::UNSPECIFIED)
}

#[inline(always)]
fn is_same(one: Address, other: Address) -> bool {
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

/// Who sent a packet, and the interface that told when that is not whom the packet shows. A local
/// pod is itself whatever address a masquerade has put on its packet.
#[inline(always)]
pub(super) fn sender<T: FlowTables>(tables: &T, seen: &Seen<'_>, shown: Address) -> (Address, u32) {
    let ifindex = seen.at.ingress_ifindex;
    if matches!(seen.at.hook, Hook::ToPod)
        && let Some(address) = address_behind(tables, ifindex, shown)
    {
        return (address, ifindex);
    }
    (shown, 0)
}

/// The address of the local pod behind `ifindex` that stands for `shown`, of the same family;
/// `None` when there is no such pod or `shown` is the pod's to use.
#[inline(always)]
pub(super) fn address_behind<T: FlowTables>(
    tables: &T,
    ifindex: u32,
    shown: Address,
) -> Option<Address> {
    if ifindex == 0 {
        return None;
    }
    let (config, _) = tables.endpoint(ifindex)?;
    if owns(config, shown) {
        return None;
    }
    let [first, second] = &config.addresses;
    let stands_for = |address: Address| {
        address.is_v4() == shown.is_v4() && !is_same(address, Address::UNSPECIFIED)
    };
    if stands_for(*first) {
        Some(*first)
    } else if stands_for(*second) {
        Some(*second)
    } else {
        None
    }
}
