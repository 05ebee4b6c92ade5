//! Addresses that pods own and that rules select by labels or port names, and virtual ones: the
//! candidates for `PEERS_EXACT`. All others are judged by their prefixes.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use agent_common::Address;
use agent_common::maps::peer_flags;

use super::peer_classes::ClassId;
use super::prefixes::{Prefixes, Row};
use crate::model::PodUid;

/// What an address that rules know more of than its prefixes do is to them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Candidate {
    /// Its class.
    pub(crate) class: ClassId,
    /// The pod that owns it.
    pub(crate) owner: Option<PodUid>,
    /// It is virtual: a Service proxy takes ports of it elsewhere.
    pub(crate) is_virtual: bool,
}

impl Candidate {
    const fn flags(&self) -> u32 {
        if self.is_virtual { peer_flags::VIP } else { 0 }
    }
}

#[derive(Clone, Debug, Default)]
struct Entry {
    wanted: Option<Candidate>,
    /// The row, if it is there, and who owned the address then.
    present: Option<Present>,
}

#[derive(Clone, Debug)]
struct Present {
    class: ClassId,
    flags: u32,
    owner: Option<PodUid>,
}

/// A row of `PEERS_EXACT`, and whose the address is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerRow {
    /// What it was and is to be.
    pub(crate) row: Row,
    /// It stays, and the address belongs to another pod than when it was written.
    pub(crate) has_new_owner: bool,
}

/// The candidates, and what is in the map.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    entries: BTreeMap<Address, Entry>,
    present: usize,
}

impl Addresses {
    /// Sets what an address is to be; the class it was to have.
    pub(crate) fn want(&mut self, address: Address, wanted: Option<Candidate>) -> Option<ClassId> {
        if wanted.is_none() && !self.entries.contains_key(&address) {
            return None;
        }
        let entry = self.entries.entry(address).or_default();
        let before = std::mem::replace(&mut entry.wanted, wanted);
        if entry.wanted.is_none() && entry.present.is_none() {
            self.entries.remove(&address);
        }
        before.map(|before| before.class)
    }

    /// Takes over a row that an earlier agent left.
    pub(crate) fn adopt(&mut self, address: Address, class: ClassId, flags: u32) {
        self.entries.entry(address).or_default().present = Some(Present {
            class,
            flags,
            owner: None,
        });
        self.present += 1;
    }

    /// What an address's row was and is to be: only there when the prefixes say something else, or
    /// do not say that it is virtual.
    pub(crate) fn row(&self, address: Address, prefixes: &Prefixes) -> PeerRow {
        let entry = self.entries.get(&address);
        let present = entry.and_then(|entry| entry.present.as_ref());
        let candidate = entry.and_then(|entry| entry.wanted.as_ref());
        let has_new_owner = match (present, candidate) {
            (
                Some(Present {
                    owner: Some(before),
                    ..
                }),
                Some(after),
            ) => after.owner.as_ref() != Some(before),
            (Some(_) | None, _) => false,
        };
        let below = prefixes.wanted_at(address);
        let wanted = candidate.filter(|wanted| wanted.class != below || wanted.flags() != 0);
        let row = Row {
            present: present.map(|present| present.class),
            wanted: wanted.map(|wanted| wanted.class),
            old: present.map_or_else(|| prefixes.present_at(address), |present| present.class),
            new: candidate.map_or(below, |candidate| candidate.class),
            present_flags: present.map_or(0, |present| present.flags),
            wanted_flags: wanted.map_or(0, Candidate::flags),
        };
        PeerRow { row, has_new_owner }
    }

    /// The row is in the map, or gone from it, as wanted.
    pub(crate) fn settle(&mut self, address: Address, row: Option<(ClassId, u32)>) {
        let Some(entry) = self.entries.get_mut(&address) else {
            return;
        };
        let owner = entry
            .wanted
            .as_ref()
            .and_then(|wanted| wanted.owner.clone());
        self.present -= usize::from(entry.present.is_some());
        entry.present = row.map(|(class, flags)| Present {
            class,
            flags,
            owner,
        });
        self.present += usize::from(entry.present.is_some());
        if entry.wanted.is_none() && entry.present.is_none() {
            self.entries.remove(&address);
        }
    }

    /// Candidates inside a range.
    pub(crate) fn inside(
        &self,
        range: RangeInclusive<Address>,
    ) -> impl Iterator<Item = Address> + '_ {
        self.entries.range(range).map(|(address, _)| *address)
    }

    /// Every candidate and every address in the map.
    pub(crate) fn all(&self) -> impl Iterator<Item = Address> + '_ {
        self.entries.keys().copied()
    }

    /// Rows in the map.
    pub(crate) const fn present(&self) -> usize {
        self.present
    }
}
