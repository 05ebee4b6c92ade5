//! Writes connections that began before our programs did into CONNTRACK and PENDING.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use agent_common::conntrack::State;
use agent_common::maps::{Connection, FlowKey};
use zerocopy::IntoBytes as _;

use super::error::DataplaneError;
use super::maps::Maps;
use super::sys;

/// What becomes of entries that are there already.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Known {
    /// A packet has written them since, and knows better.
    Stays,
    /// No program of ours has seen the interface for some time: what is written down is old.
    IsReplaced,
}

/// Writes entries down; returns how many. Slots that have no map are passed over.
pub(crate) fn adopt(
    maps: &Maps,
    entries: &[(FlowKey, Connection)],
    known: Known,
) -> Result<usize, DataplaneError> {
    let write = |map: BorrowedFd<'_>, key: &[u8], value: &[u8]| match known {
        Known::Stays => sys::insert(map, key, value),
        Known::IsReplaced => sys::update(map, key, value).map(|()| true),
    };
    let mut inner: BTreeMap<u32, Option<OwnedFd>> = BTreeMap::new();
    let mut added = 0;
    for (key, connection) in entries {
        // As the programs do: what both sides have not agreed to takes no place in CONNTRACK.
        let is_half_open = matches!(
            State::from_number(connection.state),
            State::Opening | State::Answered
        );
        let is_new = if is_half_open {
            write(maps.pending.fd(), key.as_bytes(), connection.as_bytes())
                .map_err(|error| writing("PENDING", error))?
        } else {
            let of_slot = match inner.entry(u32::from(key.slot)) {
                std::collections::btree_map::Entry::Occupied(found) => found.into_mut(),
                std::collections::btree_map::Entry::Vacant(vacant) => vacant.insert(
                    open(maps, u32::from(key.slot)).map_err(|error| writing("CONNTRACK", error))?,
                ),
            };
            let Some(map) = of_slot else { continue };
            write(map.as_fd(), key.as_bytes(), connection.as_bytes())
                .map_err(|error| writing("CONNTRACK", error))?
        };
        added += usize::from(is_new);
    }
    Ok(added)
}

/// A slot's own map; `None` when it has none.
pub(crate) fn open(maps: &Maps, slot: u32) -> io::Result<Option<OwnedFd>> {
    match maps.conntrack.get(slot)? {
        Some(id) => sys::map_by_id(id).map(Some),
        None => Ok(None),
    }
}

fn writing(map: &'static str, source: io::Error) -> DataplaneError {
    DataplaneError::Map {
        map,
        action: "writing",
        source,
    }
}
