//! Addresses that pods own and that rules select by labels or port names: the candidates for
//! `PEERS_EXACT`. All others are judged by their prefixes.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use agent_common::Address;

use super::peer_classes::ClassId;
use super::prefixes::{Prefixes, Row};
use crate::model::PodUid;

#[derive(Clone, Debug, Default)]
struct Entry {
    /// Class of the address and its owner, if it is a candidate.
    wanted: Option<(ClassId, PodUid)>,
    /// Class in the map, if it is there, and who owned the address then.
    present: Option<(ClassId, Option<PodUid>)>,
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
    pub(crate) fn want(
        &mut self,
        address: Address,
        wanted: Option<(ClassId, PodUid)>,
    ) -> Option<ClassId> {
        if wanted.is_none() && !self.entries.contains_key(&address) {
            return None;
        }
        let entry = self.entries.entry(address).or_default();
        let before = std::mem::replace(&mut entry.wanted, wanted);
        if entry.wanted.is_none() && entry.present.is_none() {
            self.entries.remove(&address);
        }
        before.map(|(class, _)| class)
    }

    /// Takes over a row that an earlier agent left.
    pub(crate) fn adopt(&mut self, address: Address, class: ClassId) {
        self.entries.entry(address).or_default().present = Some((class, None));
        self.present += 1;
    }

    /// What an address's row was and is to be: only there when the prefixes say something else.
    pub(crate) fn row(&self, address: Address, prefixes: &Prefixes) -> PeerRow {
        let entry = self.entries.get(&address);
        let present = entry.and_then(|entry| entry.present.as_ref());
        let candidate = entry.and_then(|entry| entry.wanted.as_ref());
        let has_new_owner = match (present, candidate) {
            (Some((_, Some(before))), Some((_, after))) => before != after,
            (Some((_, None)) | None, _) | (_, None) => false,
        };
        let present = present.map(|(class, _)| *class);
        let candidate = candidate.map(|(class, _)| *class);
        let below = prefixes.wanted_at(address);
        let row = Row {
            present,
            wanted: candidate.filter(|class| *class != below),
            old: present.unwrap_or_else(|| prefixes.present_at(address)),
            new: candidate.unwrap_or(below),
        };
        PeerRow { row, has_new_owner }
    }

    /// The row is in the map, or gone from it, as wanted.
    pub(crate) fn settle(&mut self, address: Address, wanted: Option<ClassId>) {
        let Some(entry) = self.entries.get_mut(&address) else {
            return;
        };
        let owner = entry.wanted.as_ref().map(|(_, owner)| owner.clone());
        self.present -= usize::from(entry.present.is_some());
        entry.present = wanted.map(|class| (class, owner));
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
