//! Writes connections that began before our programs did into CONNTRACK and PENDING.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use agent_common::conntrack::State;
use agent_common::maps::{Connection, PendingKey};
use zerocopy::IntoBytes as _;

use super::error::DataplaneError;
use super::maps::Maps;
use super::sys;

/// Writes each entry that is not there yet; what a packet has written meanwhile knows better.
/// Returns how many are new. Slots that have no map are passed over.
pub(crate) fn adopt(
    maps: &Maps,
    entries: &[(PendingKey, Connection)],
) -> Result<usize, DataplaneError> {
    let mut inner: BTreeMap<u32, Option<OwnedFd>> = BTreeMap::new();
    let mut added = 0;
    for (key, connection) in entries {
        let is_new = if connection.state == State::Opening.number() {
            sys::insert(maps.pending.fd(), key.as_bytes(), connection.as_bytes())
                .map_err(|error| writing("PENDING", error))?
        } else {
            let of_slot = match inner.entry(key.slot) {
                std::collections::btree_map::Entry::Occupied(found) => found.into_mut(),
                std::collections::btree_map::Entry::Vacant(vacant) => vacant
                    .insert(open(maps, key.slot).map_err(|error| writing("CONNTRACK", error))?),
            };
            let Some(map) = of_slot else { continue };
            sys::insert(map.as_fd(), key.flow.as_bytes(), connection.as_bytes())
                .map_err(|error| writing("CONNTRACK", error))?
        };
        added += usize::from(is_new);
    }
    Ok(added)
}

/// A slot's own map; `None` when it has none.
fn open(maps: &Maps, slot: u32) -> io::Result<Option<OwnedFd>> {
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
