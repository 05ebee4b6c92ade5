//! Address prefixes: every range that a live ipBlock or one of its exceptions draws a border at,
//! each with a class that is complete by itself.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::Address;
use agent_common::address::V4_PREFIX_BITS;
use agent_common::maps::Prefix;
use ipnet::IpNet;

use super::atoms::{AtomContent, AtomId, Block, Drawing};
use super::peer_classes::ClassId;
use crate::tables::masked;

/// A prefix of the one address space that has IPv4 mapped into it. Orders so that everything
/// inside a prefix follows it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Net {
    address: Address,
    length: u8,
}

impl Net {
    /// All of IPv4.
    pub(crate) const V4: Self = Self {
        address: Address::from_v4([0; 4]),
        length: V4_PREFIX_BITS,
    };

    /// All of IPv6.
    const V6: Self = Self {
        address: Address::UNSPECIFIED,
        length: 0,
    };

    /// The prefix, unless it is IPv6 and within IPv4's mapped range: no packet shows those.
    pub(crate) fn of(net: IpNet) -> Option<Self> {
        let net = net.trunc();
        let length = match net {
            IpNet::V4(v4) => v4.prefix_len() + V4_PREFIX_BITS,
            IpNet::V6(v6) => v6.prefix_len(),
        };
        let prefix = Self {
            address: net.network().into(),
            length,
        };
        let is_mapped_v6 = matches!(net, IpNet::V6(_)) && prefix.is_v4();
        (!is_mapped_v6).then_some(prefix)
    }

    /// One address.
    pub(crate) const fn host(address: Address) -> Self {
        Self {
            address,
            length: 128,
        }
    }

    fn is_v4(self) -> bool {
        self.length >= V4_PREFIX_BITS && self.address.is_v4()
    }

    /// True for an IPv6 prefix that has IPv4's mapped range inside.
    fn is_around_v4(self) -> bool {
        self.length < V4_PREFIX_BITS
            && masked(Self::V4.address, u32::from(self.length)) == self.address
    }

    /// True when the address is inside. The families don't mix.
    fn contains(self, address: Address) -> bool {
        masked(address, u32::from(self.length)) == self.address
            && (self.is_v4() || !address.is_v4())
    }

    /// The last address inside.
    fn last(self) -> Address {
        let bits = u128::from_be_bytes(self.address.0);
        let rest = u128::MAX.checked_shr(u32::from(self.length)).unwrap_or(0);
        Address((bits | rest).to_be_bytes())
    }

    /// First and last address inside.
    pub(crate) fn range(self) -> std::ops::RangeInclusive<Address> {
        self.address..=self.last()
    }

    /// How long it is, in bits.
    pub(crate) const fn length(self) -> u8 {
        self.length
    }
}

impl From<Net> for Prefix {
    fn from(net: Net) -> Self {
        Self {
            address: net.address,
            length: u32::from(net.length),
        }
    }
}

impl From<Prefix> for Net {
    fn from(prefix: Prefix) -> Self {
        Self {
            address: prefix.address,
            length: u8::try_from(prefix.length).unwrap_or(128).min(128),
        }
    }
}

/// Which block of an atom, by its number.
type BlockOf = (AtomId, u64);

/// A row of `PEERS_CIDR`: wanted, present, or both.
#[derive(Clone, Debug, Default)]
struct Entry {
    cidrs: BTreeSet<BlockOf>,
    holes: BTreeSet<BlockOf>,
    /// Class once the next plan is written.
    wanted: ClassId,
    /// Class in the map; `None` when there is no row.
    present: Option<ClassId>,
    /// The next plan deletes the row.
    is_leaving: bool,
}

impl Entry {
    fn is_border(&self) -> bool {
        !self.cidrs.is_empty() || !self.holes.is_empty()
    }
}

/// The prefixes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prefixes {
    entries: BTreeMap<Net, Entry>,
    /// How many entries have each length.
    lengths: BTreeMap<u8, usize>,
}

impl Prefixes {
    /// Draws borders of a live atom; every prefix that may have another class by that, some twice.
    pub(crate) fn insert(&mut self, atom: AtomId, drawing: &Drawing) -> Vec<Net> {
        let mut touched = Vec::new();
        for (number, block) in drawing.blocks() {
            self.border(block.cidr).cidrs.insert((atom, number));
            for hole in &block.except {
                self.border(*hole).holes.insert((atom, number));
            }
            if block.cidr.is_around_v4() {
                // Without it a wide IPv6 prefix would speak for IPv4 addresses.
                self.border(Net::V4);
                touched.push(Net::V4);
            }
            touched.extend(self.inside(block));
        }
        touched
    }

    /// Forgets a dead atom's borders. Their rows stay, and stay right, until [`Self::sweep`].
    pub(crate) fn remove(&mut self, atom: AtomId, drawing: &Drawing) {
        for (number, block) in drawing.blocks() {
            self.forget(block, (atom, number));
        }
    }

    /// Takes borders of a live atom away; every prefix that may have another class by that, some
    /// twice. Rows that are no border any more are marked for deletion.
    pub(crate) fn erase(&mut self, atom: AtomId, drawing: &Drawing) -> Vec<Net> {
        let mut touched = Vec::new();
        for (number, block) in drawing.blocks() {
            touched.extend(self.inside(block));
            self.forget(block, (atom, number));
            for net in block.nets().filter(|net| *net != Net::V4) {
                if let Some(entry) = self.entries.get_mut(&net) {
                    entry.is_leaving |= !entry.is_border();
                }
            }
        }
        touched
    }

    /// The borders inside a block, its own and those of its exceptions included.
    fn inside(&self, block: &Block) -> impl Iterator<Item = Net> {
        let range = block.cidr..=Net::host(block.cidr.last());
        let inside = self.entries.range(range).map(|(net, _)| *net);
        inside.chain(block.except.iter().copied())
    }

    fn forget(&mut self, block: &Block, of: BlockOf) {
        if let Some(entry) = self.entries.get_mut(&block.cidr) {
            entry.cidrs.remove(&of);
        }
        for hole in &block.except {
            if let Some(entry) = self.entries.get_mut(hole) {
                entry.holes.remove(&of);
            }
        }
    }

    /// Marks rows that are no border any more for deletion; every prefix there is.
    pub(crate) fn sweep(&mut self) -> impl Iterator<Item = Net> {
        let is_v4_kept = self
            .entries
            .iter()
            .any(|(net, entry)| net.is_around_v4() && entry.is_border());
        for (net, entry) in &mut self.entries {
            let is_kept = entry.is_border() || (*net == Net::V4 && is_v4_kept);
            entry.is_leaving = !is_kept;
        }
        self.entries.keys().copied()
    }

    /// Takes over a row that an earlier agent left; the next plan deletes it unless it becomes a
    /// border before.
    pub(crate) fn adopt(&mut self, net: Net, class: ClassId) {
        let entry = self.border(net);
        entry.present = Some(class);
        entry.is_leaving = true;
    }

    fn border(&mut self, net: Net) -> &mut Entry {
        let entry = self.entries.entry(net).or_insert_with(|| {
            *self.lengths.entry(net.length).or_default() += 1;
            Entry::default()
        });
        entry.is_leaving = false;
        entry
    }

    /// The live atoms whose blocks have all of this prefix that no narrower prefix takes out, in
    /// order, each once.
    pub(crate) fn atoms_of(&self, net: Net) -> Vec<AtomId> {
        let mut open: Vec<BlockOf> = Vec::new();
        let mut holes: BTreeSet<BlockOf> = BTreeSet::new();
        for (_, entry) in self.around(net, net.length) {
            open.extend(&entry.cidrs);
            holes.extend(&entry.holes);
        }
        // Each block minus its own exceptions only; the union comes after.
        open.retain(|block| !holes.contains(block));
        let mut atoms: Vec<AtomId> = open.into_iter().map(|(atom, _)| atom).collect();
        atoms.sort_unstable();
        atoms.dedup();
        atoms
    }

    /// The prefixes around this one, itself included, widest first, up to a length.
    fn around(&self, net: Net, up_to: u8) -> impl DoubleEndedIterator<Item = (Net, &Entry)> {
        // The families don't mix: what is around all of IPv4 says nothing of IPv4.
        let from = if net.is_v4() { V4_PREFIX_BITS } else { 0 };
        self.lengths
            .range(from..=up_to.max(from))
            .filter_map(move |(length, _)| {
                let around = Net {
                    address: masked(net.address, u32::from(*length)),
                    length: *length,
                };
                let entry = self.entries.get(&around)?;
                (*length <= up_to).then_some((around, entry))
            })
    }

    /// The class an address is to have by its prefixes alone.
    pub(crate) fn wanted_at(&self, address: Address) -> ClassId {
        self.wanted_above(Net::host(address), 128)
    }

    /// The class an address has in the map by its prefixes alone.
    pub(crate) fn present_at(&self, address: Address) -> ClassId {
        self.present_above(Net::host(address), 128)
    }

    fn wanted_above(&self, net: Net, up_to: u8) -> ClassId {
        self.around(net, up_to)
            .rev()
            .find(|(_, entry)| !entry.is_leaving)
            .map_or(ClassId::NOTHING, |(_, entry)| entry.wanted)
    }

    fn present_above(&self, net: Net, up_to: u8) -> ClassId {
        self.around(net, up_to)
            .rev()
            .find_map(|(_, entry)| entry.present)
            .unwrap_or(ClassId::NOTHING)
    }

    /// What a row was and is to be.
    pub(crate) fn row(&self, net: Net) -> Row {
        let Some(entry) = self.entries.get(&net) else {
            return Row::default();
        };
        let (present, wanted) = (entry.present, (!entry.is_leaving).then_some(entry.wanted));
        let above = |class: fn(&Self, Net, u8) -> ClassId| match net.length.checked_sub(1) {
            Some(up_to) => class(self, net, up_to),
            None => ClassId::NOTHING,
        };
        Row {
            present,
            wanted,
            old: present.unwrap_or_else(|| above(Self::present_above)),
            new: wanted.unwrap_or_else(|| above(Self::wanted_above)),
            present_flags: 0,
            wanted_flags: 0,
        }
    }

    /// Forgets a row that is to go and never came; the class it was to have.
    pub(crate) fn forget_unwritten(&mut self, net: Net) -> Option<ClassId> {
        let entry = self.entries.get(&net)?;
        let is_nothing = entry.is_leaving && entry.present.is_none();
        is_nothing.then(|| self.take(net)).flatten()
    }

    fn take(&mut self, net: Net) -> Option<ClassId> {
        let entry = self.entries.remove(&net)?;
        if let Some(entries) = self.lengths.get_mut(&net.length) {
            *entries -= 1;
            if *entries == 0 {
                self.lengths.remove(&net.length);
            }
        }
        Some(entry.wanted)
    }

    /// Sets what a row is to be; the class it was to be.
    pub(crate) fn want(&mut self, net: Net, class: ClassId) -> Option<ClassId> {
        let entry = self.entries.get_mut(&net)?;
        Some(std::mem::replace(&mut entry.wanted, class))
    }

    /// The row is in the map, or gone from it, as wanted. Gone, it lets go of the class it was to
    /// have.
    pub(crate) fn settle(&mut self, net: Net) -> Option<ClassId> {
        let entry = self.entries.get_mut(&net)?;
        if !entry.is_leaving {
            entry.present = Some(entry.wanted);
            return None;
        }
        self.take(net)
    }

    /// True when the address is inside a block of the atom.
    pub(crate) fn is_in(content: &AtomContent, address: Address) -> bool {
        content.blocks.iter().any(|block| {
            block.cidr.contains(address) && !block.except.iter().any(|hole| hole.contains(address))
        })
    }

    /// True when, before or after the next plan, some row speaks for every address of both
    /// families: none is left that no row speaks for all the time.
    pub(crate) fn is_everything_covered(&self) -> bool {
        [Net::V4, Net::V6].iter().all(|net| {
            let entry = self.entries.get(net);
            entry.is_some_and(|entry| entry.present.is_some() || !entry.is_leaving)
        })
    }

    /// Rows there are while a plan is carried out; exact where they might exceed `limit`.
    pub(crate) fn needed(&self, limit: usize) -> usize {
        if self.entries.len() <= limit {
            return self.entries.len();
        }
        let needed = self.entries.values();
        needed
            .filter(|entry| entry.present.is_some() || !entry.is_leaving)
            .count()
    }

    /// Rows, those to be deleted included.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

/// A row of a peer map: what it was and is to be.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Row {
    /// Class in the map, if the key is there.
    pub(crate) present: Option<ClassId>,
    /// Class it is to have, if it is to be there.
    pub(crate) wanted: Option<ClassId>,
    /// The class its addresses are judged by now, by this row or by the next wider one.
    pub(crate) old: ClassId,
    /// The class its addresses are to be judged by.
    pub(crate) new: ClassId,
    /// `peer_flags` in the map; 0 when the key is not there.
    pub(crate) present_flags: u32,
    /// `peer_flags` it is to have; 0 when it is not to be there.
    pub(crate) wanted_flags: u32,
}

impl Row {
    /// True when the map has to be written.
    pub(crate) fn differs(&self) -> bool {
        self.present != self.wanted || self.present_flags != self.wanted_flags
    }

    /// What is in the map once it is as wanted: class and flags.
    pub(crate) fn settled(&self) -> Option<(ClassId, u32)> {
        self.wanted.map(|class| (class, self.wanted_flags))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Net {
        Net::of(text.parse().unwrap()).unwrap()
    }

    fn address(text: &str) -> Address {
        let ip: std::net::IpAddr = text.parse().unwrap();
        ip.into()
    }

    #[test]
    fn everything_inside_a_prefix_follows_it() {
        let mut nets = [
            net("10.1.0.0/16"),
            net("0.0.0.0/0"),
            net("10.0.0.0/8"),
            net("10.0.0.0/16"),
            net("::/0"),
        ];
        nets.sort_unstable();
        assert_eq!(
            nets,
            [
                net("::/0"),
                net("0.0.0.0/0"),
                net("10.0.0.0/8"),
                net("10.0.0.0/16"),
                net("10.1.0.0/16")
            ]
        );
    }

    #[test]
    fn families_do_not_mix() {
        assert!(net("::/0").is_around_v4());
        assert!(!net("::/0").contains(address("10.0.0.1")));
        assert!(net("::/0").contains(address("fd00::1")));
        assert!(net("0.0.0.0/0").contains(address("10.0.0.1")));
        assert!(!net("0.0.0.0/0").contains(address("fd00::1")));
        assert_eq!(Net::of("::ffff:10.0.0.0/104".parse().unwrap()), None);
    }
}
