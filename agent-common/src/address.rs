//! One address type for both families: 16 bytes, IPv4 as `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2).
//!
//! A real IPv6 packet never carries a mapped address here: `packet` refuses it as malformed.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// An IPv4 or IPv6 address in network byte order; IPv4 is stored mapped.
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, PartialEq)]
#[repr(C, align(4))]
pub struct Address(pub [u8; 16]);

/// Bits that precede an IPv4 address in its mapped form.
pub const V4_PREFIX_BITS: u8 = 96;

impl Address {
    /// `::`, which is also the "no address" filler of map values.
    pub const UNSPECIFIED: Self = Self([0; 16]);

    /// The mapped form of an IPv4 address.
    #[inline(always)]
    pub const fn from_v4(v4: [u8; 4]) -> Self {
        Self::from_words([0, 0, MAPPED, u32::from_ne_bytes(v4)])
    }

    /// The address of four native-endian words.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        zerocopy::transmute!(words)
    }

    /// An IPv6 address as it is on the wire.
    #[inline(always)]
    pub const fn from_v6(v6: [u8; 16]) -> Self {
        Self(v6)
    }

    /// The IPv4 address, when this is one.
    #[inline(always)]
    pub const fn as_v4(self) -> Option<[u8; 4]> {
        match self.0 {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some([a, b, c, d]),
            _ => None,
        }
    }

    /// The address as four native-endian words, for cheap comparison and hashing in the kernel.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        // All of this works on words: byte by byte, BPF needs sixteen places on its stack for one
        // address.
        zerocopy::transmute!(self)
    }

    /// The address of two native-endian halves.
    #[inline(always)]
    pub const fn from_halves(halves: [u64; 2]) -> Self {
        zerocopy::transmute!(halves)
    }

    /// The address as two native-endian halves.
    #[inline(always)]
    pub const fn halves(self) -> [u64; 2] {
        zerocopy::transmute!(self)
    }

    /// The mapped form of an IPv4 address given as a native-endian word.
    #[inline(always)]
    pub const fn from_v4_word(v4: u32) -> Self {
        let [a, b, c, d] = v4.to_ne_bytes();
        Self::from_halves([0, u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d])])
    }

    /// True for the mapped form of an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        let [a, b, c, _] = self.words();
        a | b | (c ^ MAPPED) == 0
    }

    /// True for 224.0.0.0/4 (RFC 5771), 255.255.255.255 (RFC 919) and `ff00::/8` (RFC 4291 §2.7).
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        let [first, .., last] = self.words();
        if self.is_v4() {
            last & first_bytes(0xf0, 0) == first_bytes(0xe0, 0) || last == u32::MAX
        } else {
            first & first_bytes(0xff, 0) == first_bytes(0xff, 0)
        }
    }

    /// True for `fe80::/10` (RFC 4291 §2.5.6). IPv4's 169.254.0.0/16 is an ordinary unicast range here.
    #[inline(always)]
    pub const fn is_v6_link_local(self) -> bool {
        let [first, ..] = self.words();
        first & first_bytes(0xff, 0xc0) == first_bytes(0xfe, 0x80)
    }
}

/// The order of the bytes, told by one number: a search in a sorted table is many comparisons.
impl Ord for Address {
    #[inline]
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        u128::from_be_bytes(self.0).cmp(&u128::from_be_bytes(other.0))
    }
}

impl PartialOrd for Address {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The third word of a mapped IPv4 address.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// A word with these first two bytes in network order.
const fn first_bytes(first: u8, second: u8) -> u32 {
    u32::from_ne_bytes([first, second, 0, 0])
}

impl From<core::net::IpAddr> for Address {
    fn from(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            core::net::IpAddr::V6(v6) => Self::from_v6(v6.octets()),
        }
    }
}

impl From<Address> for core::net::IpAddr {
    fn from(address: Address) -> Self {
        match address.as_v4() {
            Some(v4) => Self::V4(v4.into()),
            None => Self::V6(address.0.into()),
        }
    }
}

impl core::fmt::Display for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&core::net::IpAddr::from(*self), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_ordered_as_their_bytes_are() {
        let mut before = [0; 16];
        for place in (0..16).rev() {
            let mut bytes = [0; 16];
            bytes[place] = 1;
            // One more here outweighs whatever follows.
            assert!(Address(before) < Address(bytes), "byte {place}");
            before[place] = 0xff;
        }
    }
}
