//! Connections from the maps of the layout version before this one.
//!
//! They are carried over while that version's programs still decide, and once more after they were
//! replaced, so what was opened or has moved on in between is not lost.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use agent_common::maps::{Connection, FlowKey, LAYOUT_VERSION, before, flow_slot};
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::adopt;
use super::error::DataplaneError;
use super::maps::{Maps, Plain, Table};
use super::pins::Pins;
use super::present::reading;
use super::slots::Slots;
use super::sys;

/// The maps of the version before, as far as they are read.
#[derive(Debug)]
pub(crate) struct Before {
    endpoints: Table<u32, before::EndpointWord>,
    colliding: Table<u32, before::EndpointWord>,
    configs: Table<u32, before::Config>,
    /// Asked twice an interface, the second time while packets wait for the answer.
    conntrack: Slots,
    pending: Table<before::FlowKey, before::Connection>,
}

impl Before {
    /// Opens them, where that version is the one before this and has left any.
    pub(crate) fn find(pins: &Pins) -> Result<Option<Self>, DataplaneError> {
        if before::VERSION + 1 != LAYOUT_VERSION {
            return Ok(None);
        }
        let others = pins.others()?;
        let version = others
            .iter()
            .find(|version| version.number() == before::VERSION);
        version
            .map(|version| Self::open(version.directory()))
            .transpose()
    }

    fn open(directory: &Path) -> Result<Self, DataplaneError> {
        Ok(Self {
            endpoints: Table::open(directory, before::ENDPOINTS)?,
            colliding: Table::open(directory, before::ENDPOINTS_COLLIDING)?,
            configs: Table::open(directory, before::CONFIGS)?,
            conntrack: Slots::new(Table::open(directory, before::CONNTRACK)?),
            pending: Table::open(directory, before::PENDING)?,
        })
    }

    /// An interface's slot, if anything is published for it.
    fn slot_of(&self, ifindex: u32) -> Result<Option<u32>, DataplaneError> {
        let places = [
            (&self.endpoints, ifindex & (before::ENDPOINT_ROWS - 1)),
            (&self.colliding, ifindex),
        ];
        for (table, key) in places {
            let wrong = |source| reading(table.name(), source);
            let Some(word) = table.get(&key).map_err(wrong)? else {
                continue;
            };
            let config = self.configs.get(&word.config_row);
            let config = config.map_err(|source| reading(self.configs.name(), source))?;
            if let Some(config) = config.filter(|config| config.ifindex == ifindex)
                && word.config_row != 0
            {
                return Ok(Some(config.slot));
            }
        }
        Ok(None)
    }

    /// A slot's connections: those that have an answer, and those that have none.
    fn connections(&self, slot: u32) -> Result<[Vec<Carried>; 2], DataplaneError> {
        let wrong = |source| reading(before::CONNTRACK.name, source);
        let mut answered = Vec::new();
        if let Some(id) = self.conntrack.get(slot).map_err(wrong)? {
            let inner = sys::map_by_id(id).map_err(wrong)?;
            let inner: Table<before::FlowKey, before::Connection> =
                Table::of(inner, before::CONNTRACK).map_err(wrong)?;
            for (flow, connection) in all(&inner).map_err(wrong)? {
                answered.push((flow.into(), connection.into()));
            }
        }
        let pending = all(&self.pending).map_err(|source| reading(self.pending.name(), source))?;
        let pending = pending
            .into_iter()
            .filter(|(key, _)| u32::from(key.slot) == slot);
        let pending = pending.map(|(key, connection)| (key.into(), connection.into()));
        Ok([answered, pending.collect()])
    }
}

/// A flow and what is known of it, as this version keeps both.
type Carried = (FlowKey, Connection);

/// Writes down what the version before knows of an interface's connections, unless a packet has
/// told our programs better since. Returns how many there are.
pub(crate) fn carry_over(
    maps: &Maps,
    before: &Before,
    ifindex: u32,
    slot: u32,
    now: u32,
) -> Result<usize, DataplaneError> {
    let Some(old_slot) = before.slot_of(ifindex)? else {
        return Ok(0);
    };
    let writing = |map, source| DataplaneError::Map {
        map,
        action: "writing",
        source,
    };
    let own = adopt::open(maps, slot).map_err(|source| reading("CONNTRACK", source))?;
    let Some(own) = own else { return Ok(0) };
    let [mut answered, pending] = before.connections(old_slot)?;
    // A map with less room keeps those that spoke last.
    answered.sort_by_key(|(_, connection)| {
        std::cmp::Reverse(now.wrapping_sub(connection.last_seen).cast_signed())
    });
    let slot = flow_slot(slot);
    for (flow, connection) in &answered {
        let key = FlowKey { slot, ..*flow };
        keep_newer(own.as_fd(), &key, connection).map_err(|error| writing("CONNTRACK", error))?;
    }
    for (flow, connection) in &pending {
        let key = FlowKey { slot, ..*flow };
        keep_newer(maps.pending.fd(), &key, connection)
            .map_err(|error| writing("PENDING", error))?;
    }
    Ok(answered.len() + pending.len())
}

/// Writes a connection unless there is one whose last packet was later, or as late.
fn keep_newer(map: BorrowedFd<'_>, key: &FlowKey, connection: &Connection) -> io::Result<()> {
    if sys::insert(map, key.as_bytes(), connection.as_bytes())? {
        return Ok(());
    }
    let mut there = Connection::new_zeroed();
    let is_there = sys::lookup(map, key.as_bytes(), there.as_mut_bytes())?;
    if is_there && !is_later(connection.last_seen, there.last_seen) {
        return Ok(());
    }
    sys::update(map, key.as_bytes(), connection.as_bytes())
}

/// Stamps wrap around and are compared by differences.
const fn is_later(stamp: u32, other: u32) -> bool {
    stamp.wrapping_sub(other).cast_signed() > 0
}

/// Every entry of a map that programs use meanwhile. What comes or goes during the walk may be
/// missed.
fn all<K: Plain, V: Plain>(table: &Table<K, V>) -> io::Result<Vec<(K, V)>> {
    let mut found = Vec::new();
    let walked = table.walk(|key, value| {
        if let (Ok(key), Ok(value)) = (K::read_from_bytes(key), V::read_from_bytes(value)) {
            found.push((key, value));
        }
        true
    });
    match walked {
        Ok(()) => Ok(found),
        // Before Linux 5.6, or because the map moved under the walk.
        Err(_) => table.entries(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_of_two_stamps_is_told_across_the_wrap() {
        assert!(is_later(6, 5));
        assert!(!is_later(5, 5));
        assert!(is_later(3, u32::MAX - 3));
        assert!(!is_later(u32::MAX - 3, 3));
    }

    #[test]
    fn what_is_carried_over_has_no_verdict_and_is_else_what_it_was() {
        let before = before::Connection {
            revision: 7,
            peer_revision: 8,
            last_seen: 9,
            rule: 10,
            via: 11,
            peer_bucket: 12,
            state: 3,
            originator: 1,
            flags: 6,
            reason: 1,
            reserved: 0,
            first_seen: 5,
        };
        let expected = Connection {
            last_seen: 9,
            via: 11,
            peer_bucket: 12,
            state: 3,
            originator: 1,
            flags: 6,
            reason: 1,
            first_seen: 5,
            ..Connection::default()
        };
        assert_eq!(Connection::from(before), expected);
    }
}
