//! CONNTRACK as user space sees it: which slots have a map of connections, and that map's id.
//!
//! Before Linux 6.8 every look at an outer map waits for an RCU grace period, some ten
//! milliseconds: a walk over all slots would take ten seconds. So they are read once, in parallel
//! because waits that overlap end together, and remembered: whoever holds the pins is the only one
//! who writes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use agent_common::maps::SLOTS;

use super::maps::Table;
use super::sys;

/// Slots that one thread reads.
const SHARE: usize = 32;

/// The outer map, and what is in it once somebody asked.
#[derive(Debug)]
pub(crate) struct Slots {
    table: Table<u32, u32>,
    /// Ids by slot; `None` until they are read.
    ids: Mutex<Option<BTreeMap<u32, u32>>>,
}

impl Slots {
    pub(crate) fn new(table: Table<u32, u32>) -> Self {
        Self {
            table,
            ids: Mutex::new(None),
        }
    }

    /// Slots there may be.
    pub(crate) fn capacity(&self) -> u32 {
        self.table.capacity()
    }

    /// The id of a slot's map.
    pub(crate) fn get(&self, slot: u32) -> io::Result<Option<u32>> {
        self.with(|ids| Ok(ids.get(&slot).copied()))
    }

    /// Every slot that has a map.
    pub(crate) fn open_ones(&self) -> io::Result<BTreeSet<u32>> {
        self.with(|ids| Ok(ids.keys().copied().collect()))
    }

    /// Gives a slot its map. Not read back: the kernel would show the same id, a grace period later.
    pub(crate) fn open(&self, slot: u32, map: BorrowedFd<'_>) -> io::Result<()> {
        self.with(|ids| {
            let id = sys::map_id(map)?;
            // Outer maps take descriptors and show ids.
            self.table.put(&slot, &map.as_raw_fd().cast_unsigned())?;
            ids.insert(slot, id);
            Ok(())
        })
    }

    /// Takes a slot's map away; that there is none is no error.
    pub(crate) fn close(&self, slot: u32) -> io::Result<()> {
        self.with(|ids| {
            if ids.contains_key(&slot) {
                self.table.remove(&slot)?;
                ids.remove(&slot);
            }
            Ok(())
        })
    }

    fn with<T>(
        &self,
        then: impl FnOnce(&mut BTreeMap<u32, u32>) -> io::Result<T>,
    ) -> io::Result<T> {
        // Whoever panicked had changed the kernel's map and this one, or neither.
        let mut ids: MutexGuard<'_, _> = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ids) = ids.as_mut() {
            return then(ids);
        }
        then(ids.insert(read(&self.table)?))
    }
}

fn read(table: &Table<u32, u32>) -> io::Result<BTreeMap<u32, u32>> {
    let slots: Vec<u32> = (0..SLOTS).collect();
    let share = |slots: &[u32]| -> io::Result<Vec<(u32, u32)>> {
        let ids = slots
            .iter()
            .filter_map(|slot| Some(table.get(slot).transpose()?.map(|id| (*slot, id))));
        ids.collect()
    };
    thread::scope(|scope| {
        let threads: Vec<_> = slots
            .chunks(SHARE)
            .map(|slots| thread::Builder::new().spawn_scoped(scope, move || share(slots)))
            .collect::<io::Result<_>>()?;
        let mut ids = BTreeMap::new();
        for thread in threads {
            let read = thread.join();
            ids.extend(read.map_err(|_panic| io::Error::other("a reading thread panicked"))??);
        }
        Ok(ids)
    })
}
