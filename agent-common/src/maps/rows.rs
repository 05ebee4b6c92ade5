//! Which row of a map is whose: rule ids, places in arrays, parts of keys.

use super::PEER_BUCKETS;
use crate::address::Address;
use crate::verdict::{Direction, Reason, RuleId};

/// Rows of RULE_HITS.
pub const RULE_ROWS: u32 = 16_384;
/// Rows of RULE_HITS before it count by reason and direction; from here on, a row is a rule's own.
pub const FIRST_RULE_ROW: u32 = 64;
/// Generations a row of RULE_HITS may go through.
pub const RULE_GENERATIONS: u32 = u32::MAX / RULE_ROWS + 1;

/// The id of the rule that has a row in its n-th generation. So ids are never used twice and rows
/// are: what still shows an old id names nobody, rather than somebody else.
#[inline(always)]
pub const fn rule_id(row: u32, generation: u32) -> RuleId {
    RuleId(generation.wrapping_mul(RULE_ROWS) | (row & (RULE_ROWS - 1)))
}

/// The row of RULE_HITS that a rule's id points to; before [`FIRST_RULE_ROW`] when the rule found
/// none of its own.
#[inline(always)]
pub const fn rule_row(rule: RuleId) -> u32 {
    rule.0 & (RULE_ROWS - 1)
}

/// The generation in a rule's id.
#[inline(always)]
pub const fn rule_generation(rule: RuleId) -> u32 {
    rule.0 / RULE_ROWS
}

/// Row of RULE_HITS where a new connection is counted: its rule's; where no rule decided, that of
/// its reason and direction.
#[inline(always)]
pub const fn hit_row(rule: RuleId, reason: Reason, direction: Direction) -> u32 {
    if rule.0 == 0 {
        (reason.number() as u32 * 2 + direction.index() as u32) & (FIRST_RULE_ROW - 1)
    } else {
        rule_row(rule)
    }
}

/// Row of PASSED for a slot and direction index.
#[inline(always)]
pub const fn passed_index(slot: u32, direction: u8) -> u32 {
    slot * 2 + direction as u32
}

/// Row of DROPPED for a slot, direction index and deny reason number.
#[inline(always)]
pub const fn dropped_index(slot: u32, direction: u8, reason: u8) -> u32 {
    (slot * 2 + direction as u32) * crate::verdict::DENY_REASONS
        + (reason.wrapping_sub(crate::verdict::FIRST_DENY_REASON) as u32
            & (crate::verdict::DENY_REASONS - 1))
}

/// Bucket of PEER_REVISION for an address. Multiply-and-shift over its words (Knuth, TAOCP §6.4): the
/// highest bits of the product, the only ones that every bit of the last word reaches.
#[inline(always)]
pub const fn peer_bucket(address: Address) -> u16 {
    let [a, b, c, d] = address.words();
    let mut h = a.wrapping_mul(0x9e37_79b1);
    h = (h ^ b).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 15) ^ c).wrapping_mul(0xc2b2_ae35);
    h = (h ^ (h >> 13) ^ d).wrapping_mul(0x27d4_eb2f);
    ((h >> (u32::BITS - PEER_BUCKETS.ilog2())) & (PEER_BUCKETS - 1)) as u16
}

/// [`super::FlowKey::local`] of an address that is not the pod's own: a group, or one that it may use
/// beside its own. Two such are the same one now and then, and then their flows with the same peer
/// and ports are one: policy says the same of both.
#[inline(always)]
pub const fn other_local(address: Address) -> u8 {
    let [low, high] = peer_bucket(address).to_le_bytes();
    match low ^ high {
        0 => u8::MAX,
        digest => digest,
    }
}

/// [`super::FlowKey::slot`] of an endpoint's slot.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "there are fewer of them")]
pub const fn flow_slot(slot: u32) -> u16 {
    slot as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many buckets there are among the addresses that a changing octet makes.
    fn buckets(address: impl Fn(u8) -> Address) -> usize {
        let mut taken = [false; PEER_BUCKETS as usize];
        for value in 0..=u8::MAX {
            taken[usize::from(peer_bucket(address(value)))] = true;
        }
        taken.iter().filter(|taken| **taken).count()
    }

    #[test]
    fn neighbouring_addresses_have_buckets_of_their_own_whichever_octet_tells_them_apart() {
        for octet in 0..16 {
            let found = buckets(|value| {
                let mut octets = [0xfd; 16];
                octets[octet] = value;
                Address::from_v6(octets)
            });
            assert!(found > 240, "octet {octet} of 16: {found}");
        }
        for octet in 0..4 {
            let found = buckets(|value| {
                let mut octets = [10; 4];
                octets[octet] = value;
                Address::from_v4(octets)
            });
            assert!(found > 240, "octet {octet} of 4: {found}");
        }
    }
}
