//! Carries out a plan: each write in order, each read back, equal neighbours in one batch.

use std::collections::BTreeSet;
use std::io;

use agent_common::Address;
use agent_common::maps::{
    Budget, Connection, ENDPOINT_ROWS, EndpointWord, FlowKey, Name, PEER_BUCKETS, Prefix,
    PrefixKey, SLOTS, Traffic, dropped_index, passed_index, rule_row,
};
use agent_common::verdict::{DENY_REASONS, Direction, FIRST_DENY_REASON};
use agent_policy::hash::HashMap;
use agent_policy::plan::Write;
use zerocopy::IntoBytes;

use super::error::{ApplyCause, ApplyError};
use super::maps::{Maps, Plain, Table};
use super::sys;

/// Runs shorter than this are read back element by element.
const WORTH_A_WALK: usize = 1024;
/// A call for one element costs about as much as a walk over so many places of an empty map …
const PLACES_A_CALL: usize = 64;
/// … and over so many elements.
const ELEMENTS_A_CALL: usize = 8;

/// Carries out `writes`; on failure everything before `at` is in force. Writes are idempotent, so
/// a plan may be taken up again at any earlier place.
pub(crate) fn apply(
    maps: &Maps,
    conntrack_capacity: u32,
    writes: &[Write],
) -> Result<usize, ApplyError> {
    let mut at = 0;
    while let Some(rest) = writes.get(at..)
        && let Some(first) = rest.first()
    {
        let run = rest
            .iter()
            .take_while(|other| std::mem::discriminant(*other) == std::mem::discriminant(first))
            .count();
        let run = rest.get(..run).unwrap_or_default();
        let step = Step {
            maps,
            conntrack_capacity,
        };
        at += step
            .run(first, run)
            .map_err(|(done, map, cause)| ApplyError {
                at: at + done,
                map,
                cause,
            })?;
    }
    Ok(at)
}

/// How far a run of equal writes came, the map, and why it stopped.
type Stopped = (usize, &'static str, ApplyCause);

struct Step<'a> {
    maps: &'a Maps,
    conntrack_capacity: u32,
}

/// Collects the keys and values of a run's writes of one kind.
macro_rules! pairs {
    ($run:expr, $pattern:pat => $pair:expr) => {{
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        keys.reserve_exact($run.len());
        values.reserve_exact($run.len());
        for write in $run {
            if let $pattern = write {
                let (key, value) = $pair;
                keys.push(key);
                values.push(value);
            }
        }
        (keys, values)
    }};
}

/// Collects the keys of a run's deletions of one kind.
macro_rules! keys {
    ($run:expr, $pattern:pat => $key:expr) => {
        $run.iter()
            .filter_map(|write| {
                if let $pattern = write {
                    Some($key)
                } else {
                    None
                }
            })
            .collect::<Vec<_>>()
    };
}

impl Step<'_> {
    /// Carries out a run of writes of one kind; returns how many there were.
    fn run(&self, first: &Write, run: &[Write]) -> Result<usize, Stopped> {
        let maps = self.maps;
        match first {
            Write::PutPort(..) => {
                let (keys, values) = pairs!(run, Write::PutPort(key, value) => (*key, *value));
                put_all(&maps.ports, &keys, &values)
            }
            Write::PutVerdict(..) => {
                let (keys, values) = pairs!(run, Write::PutVerdict(key, value) => (*key, *value));
                put_all(&maps.verdicts, &keys, &values)
            }
            Write::PutService(..) => {
                let (keys, values) = pairs!(run, Write::PutService(key, value) => (*key, *value));
                put_all(&maps.services, &keys, &values)
            }
            Write::PutPeer(..) => {
                let (keys, values) =
                    pairs!(run, Write::PutPeer(key, value) => (Address::from(*key), *value));
                put_all(&maps.peers_exact, &keys, &values)
            }
            Write::PutPrefix(..) => {
                let (keys, values) =
                    pairs!(run, Write::PutPrefix(key, value) => (prefix_key(*key), *value));
                put_all(&maps.peers_cidr, &keys, &values)
            }
            Write::PutConfig(..) => {
                let (keys, values) = pairs!(run, Write::PutConfig(row, config) => (*row, **config));
                put_all(&maps.configs, &keys, &values)
            }
            Write::DeleteName(_) => {
                remove_all(&maps.names, &keys!(run, Write::DeleteName(key) => *key))
            }
            Write::DeletePort(_) => {
                remove_all(&maps.ports, &keys!(run, Write::DeletePort(key) => *key))
            }
            Write::DeleteVerdict(_) => remove_all(
                &maps.verdicts,
                &keys!(run, Write::DeleteVerdict(key) => *key),
            ),
            Write::DeleteService(_) => remove_all(
                &maps.services,
                &keys!(run, Write::DeleteService(key) => *key),
            ),
            Write::DeletePeer(_) => remove_all(
                &maps.peers_exact,
                &keys!(run, Write::DeletePeer(address) => Address::from(*address)),
            ),
            Write::DeletePrefix(_) => remove_all(
                &maps.peers_cidr,
                &keys!(run, Write::DeletePrefix(prefix) => prefix_key(*prefix)),
            ),
            Write::OpenSlot(_) => self.open_slots(run),
            Write::ReserveIds(..)
            | Write::PutName(..)
            | Write::OpenRule(_)
            | Write::StampPeers { .. }
            | Write::CloseSlot(_)
            | Write::Flip { .. }
            | Write::Unpublish { .. } => {
                for (done, write) in run.iter().enumerate() {
                    self.one(write).map_err(|(map, cause)| (done, map, cause))?;
                }
                Ok(run.len())
            }
        }
    }

    /// Carries out a write that is not worth a batch.
    fn one(&self, write: &Write) -> Result<(), (&'static str, ApplyCause)> {
        let maps = self.maps;
        match write {
            Write::ReserveIds(kind, next) => put(&maps.ids, &(*kind as u32), next),
            Write::PutName(key, text) => put(&maps.names, key, &name(text)),
            Write::OpenRule(rule) => maps
                .rule_hits
                .clear(rule_row(*rule))
                .map_err(|error| io(maps.rule_hits.name(), error)),
            Write::StampPeers { bucket, revision } => {
                let index = u32::from(*bucket);
                let stored = maps.peer_revision.store_u32(index, *revision);
                if stored && maps.peer_revision.load_u32(index) == Some(*revision) {
                    Ok(())
                } else if u32::from(*bucket) < PEER_BUCKETS {
                    Err(("PEER_REVISION", ApplyCause::ReadBack))
                } else {
                    Err(("PEER_REVISION", ApplyCause::Invalid("no such bucket")))
                }
            }
            Write::CloseSlot(slot) => close_slot(maps, *slot),
            Write::Flip { ifindex, word } => self.flip(*ifindex, *word),
            Write::Unpublish { ifindex } => self.unpublish(*ifindex),
            Write::PutPort(..)
            | Write::PutVerdict(..)
            | Write::PutService(..)
            | Write::PutPeer(..)
            | Write::PutPrefix(..)
            | Write::PutConfig(..)
            | Write::DeleteName(_)
            | Write::DeletePort(_)
            | Write::DeleteVerdict(_)
            | Write::DeleteService(_)
            | Write::DeletePeer(_)
            | Write::DeletePrefix(_)
            | Write::OpenSlot(_) => self
                .run(write, std::slice::from_ref(write))
                .map(|_one| ())
                .map_err(|(_, map, cause)| (map, cause)),
        }
    }

    /// Publishes a word at the interface's own place, or in the hash when another living endpoint
    /// has that place.
    fn flip(&self, ifindex: u32, word: EndpointWord) -> Result<(), (&'static str, ApplyCause)> {
        const MAP: &str = "ENDPOINTS";
        let maps = self.maps;
        let colliding = &maps.endpoints_colliding;
        let is_colliding = colliding
            .get(&ifindex)
            .map_err(|error| io(colliding.name(), error))?;
        let index = ifindex & (ENDPOINT_ROWS - 1);
        let owner = owner(maps, index).map_err(|error| io("CONFIGS", error))?;
        if is_colliding.is_some() || owner.is_some_and(|owner| owner != ifindex) {
            return put(colliding, &ifindex, &word);
        }
        let word = packed(word);
        if maps.endpoints.store(index, word) && maps.endpoints.load(index) == Some(word) {
            Ok(())
        } else {
            Err((MAP, ApplyCause::ReadBack))
        }
    }

    fn unpublish(&self, ifindex: u32) -> Result<(), (&'static str, ApplyCause)> {
        let maps = self.maps;
        let index = ifindex & (ENDPOINT_ROWS - 1);
        remove(&maps.endpoints_colliding, &ifindex)?;
        if owner(maps, index).map_err(|error| io("CONFIGS", error))? == Some(ifindex)
            && !maps.endpoints.store(index, 0)
        {
            return Err(("ENDPOINTS", ApplyCause::ReadBack));
        }
        Ok(())
    }

    /// A new inner map for each slot, after everything that an earlier holder left is gone.
    fn open_slots(&self, run: &[Write]) -> Result<usize, Stopped> {
        let maps = self.maps;
        let mut slots = BTreeSet::new();
        for (done, write) in run.iter().enumerate() {
            if let Write::OpenSlot(slot) = write {
                if *slot >= SLOTS {
                    return Err((done, "CONNTRACK", ApplyCause::Invalid("no such slot")));
                }
                slots.insert(*slot);
            }
        }
        // The old holder's flows first: without its map none of them can come back from PENDING.
        for slot in &slots {
            close_slot(maps, *slot).map_err(|(map, cause)| (0, map, cause))?;
        }
        clear_hashes(maps, &slots).map_err(|(map, cause)| (0, map, cause))?;
        for (done, write) in run.iter().enumerate() {
            if let Write::OpenSlot(slot) = write {
                clear_rows(maps, *slot).map_err(|(map, cause)| (done, map, cause))?;
                self.open_slot(*slot)
                    .map_err(|cause| (done, "CONNTRACK", cause))?;
            }
        }
        Ok(run.len())
    }

    fn open_slot(&self, slot: u32) -> Result<(), ApplyCause> {
        let conntrack = &self.maps.conntrack;
        let wrong = |error| ApplyCause::from_update(error, conntrack.capacity());
        let inner = sys::create_lru(
            u32::try_from(size_of::<FlowKey>()).unwrap_or(0),
            u32::try_from(size_of::<Connection>()).unwrap_or(0),
            self.conntrack_capacity,
        )
        .map_err(wrong)?;
        conntrack
            .open(slot, std::os::fd::AsFd::as_fd(&inner))
            .map_err(wrong)
    }
}

/// The word as the programs load it.
pub(crate) fn packed(word: EndpointWord) -> u64 {
    let [a, b, c, d] = word.config_row.to_ne_bytes();
    let [e, f, g, h] = word.revision.to_ne_bytes();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// The word behind what the programs load.
pub(crate) fn unpacked(word: u64) -> EndpointWord {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    EndpointWord {
        config_row: u32::from_ne_bytes([a, b, c, d]),
        revision: u32::from_ne_bytes([e, f, g, h]),
    }
}

/// The interface whose endpoint is published at a place of ENDPOINTS.
pub(crate) fn owner(maps: &Maps, index: u32) -> io::Result<Option<u32>> {
    let word = unpacked(maps.endpoints.load(index).unwrap_or(0));
    if word.config_row == 0 {
        return Ok(None);
    }
    Ok(maps
        .configs
        .get(&word.config_row)?
        .map(|config| config.ifindex))
}

/// The key of a prefix as the trie wants it.
fn prefix_key(prefix: Prefix) -> PrefixKey {
    PrefixKey {
        length: prefix.length,
        address: prefix.address,
    }
}

/// The text as NAMES keeps it, cut at a character where it is too long.
fn name(text: &str) -> Name {
    let mut value = Name::default();
    let space = size_of_val(&value.text);
    let mut end = text.len().min(space);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    value.length = u32::try_from(end).unwrap_or(0);
    for (place, byte) in value.text.iter_mut().flatten().zip(text.bytes().take(end)) {
        *place = byte;
    }
    value
}

/// Removes what other maps hold under these slots.
fn clear_hashes(maps: &Maps, slots: &BTreeSet<u32>) -> Result<(), (&'static str, ApplyCause)> {
    remove_where(&maps.denied, |key| slots.contains(&key.slot))?;
    remove_where(&maps.pending, |key| slots.contains(&u32::from(key.slot)))?;
    remove_where(&maps.fragments, |key| slots.contains(&key.slot))
}

/// Zeroes the slot's rows of counters and its budget.
fn clear_rows(maps: &Maps, slot: u32) -> Result<(), (&'static str, ApplyCause)> {
    for direction in Direction::ALL {
        let index = passed_index(slot, direction.index());
        maps.passed
            .clear(index)
            .map_err(|error| io(maps.passed.name(), error))?;
        let first = dropped_index(slot, direction.index(), FIRST_DENY_REASON);
        for index in first..first + DENY_REASONS {
            put(&maps.dropped, &index, &Traffic::default())?;
        }
    }
    put(&maps.budgets, &slot, &Budget::default())
}

fn remove_where<K: Plain, V: Plain>(
    table: &Table<K, V>,
    goes: impl Fn(&K) -> bool,
) -> Result<(), (&'static str, ApplyCause)> {
    let keys = table.keys().map_err(|error| io(table.name(), error))?;
    for key in keys.iter().filter(|key| goes(key)) {
        remove(table, key)?;
    }
    Ok(())
}

fn put_all<K: Plain, V: Plain>(
    table: &Table<K, V>,
    keys: &[K],
    values: &[V],
) -> Result<usize, Stopped> {
    let (done, result) = table.put_all(keys, values);
    read_back(table, keys.get(..done).unwrap_or(keys), values)
        .map_err(|(place, cause)| (place, table.name(), cause))?;
    result.map(|()| done).map_err(|error| {
        (
            done,
            table.name(),
            ApplyCause::from_update(error, table.capacity()),
        )
    })
}

/// Places among the writes, by their keys, of what is not yet seen to be in the map.
type Unseen<'a> = HashMap<&'a [u8], usize>;

/// Compares the map with what was written to it; the number is the place of the first difference.
fn read_back<K: Plain, V: Plain>(
    table: &Table<K, V>,
    keys: &[K],
    values: &[V],
) -> Result<(), (usize, ApplyCause)> {
    let by_bytes = keys.iter().map(IntoBytes::as_bytes);
    // A key may have been written more than once: the last value is to be there.
    let mut unseen: Unseen<'_> = by_bytes.zip(0..).collect();
    see_by_walking(table, values, &mut unseen);
    let mut places: Vec<usize> = unseen.into_values().collect();
    places.sort_unstable();
    for place in places {
        if let (Some(key), Some(value)) = (keys.get(place), values.get(place)) {
            same(table, key, value).map_err(|cause| (place, cause))?;
        }
    }
    Ok(())
}

/// Takes out what the map holds, of so much that walking all of the map is cheaper than asking for
/// each. What is left is not yet known to be wrong.
fn see_by_walking<K: Plain, V: Plain>(table: &Table<K, V>, values: &[V], unseen: &mut Unseen<'_>) {
    let count = unseen.len();
    if count < WORTH_A_WALK || count < table.capacity() as usize / PLACES_A_CALL {
        return;
    }
    // How full the map is shows on the way.
    let mut others = count.saturating_mul(ELEMENTS_A_CALL);
    let walked = table.walk(|key, value| {
        let wanted = unseen.get(key).and_then(|place| values.get(*place));
        if wanted.is_some_and(|wanted| wanted.as_bytes() == value) {
            unseen.remove(key);
        } else {
            others = others.saturating_sub(1);
        }
        others > 0
    });
    if let Err(error) = walked {
        // Each is asked for, then.
        tracing::debug!(map = table.name(), %error, "the map cannot be walked");
    }
}

fn remove_all<K: Plain, V: Plain>(table: &Table<K, V>, keys: &[K]) -> Result<usize, Stopped> {
    let (done, result) = table.remove_all(keys);
    result
        .map(|()| done)
        .map_err(|error| (done, table.name(), ApplyCause::Io(error)))
}

fn put<K: Plain, V: Plain>(
    table: &Table<K, V>,
    key: &K,
    value: &V,
) -> Result<(), (&'static str, ApplyCause)> {
    table
        .put(key, value)
        .map_err(|error| ApplyCause::from_update(error, table.capacity()))
        .and_then(|()| same(table, key, value))
        .map_err(|cause| (table.name(), cause))
}

fn same<K: Plain, V: Plain>(table: &Table<K, V>, key: &K, value: &V) -> Result<(), ApplyCause> {
    match table.get(key) {
        Ok(Some(found)) if found.as_bytes() == value.as_bytes() => Ok(()),
        Ok(Some(_) | None) => Err(ApplyCause::ReadBack),
        Err(error) => Err(ApplyCause::Io(error)),
    }
}

/// Deletes; what is gone already is no error, so a plan can be taken up again.
fn remove<K: Plain, V: Plain>(
    table: &Table<K, V>,
    key: &K,
) -> Result<(), (&'static str, ApplyCause)> {
    match table.remove(key) {
        Ok(_was_there) => Ok(()),
        Err(error) => Err(io(table.name(), error)),
    }
}

fn close_slot(maps: &Maps, slot: u32) -> Result<(), (&'static str, ApplyCause)> {
    maps.conntrack
        .close(slot)
        .map_err(|error| io("CONNTRACK", error))
}

fn io(map: &'static str, error: io::Error) -> (&'static str, ApplyCause) {
    (map, ApplyCause::Io(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_packed_and_unpacked_whole() {
        let word = EndpointWord {
            config_row: 0x0102_0304,
            revision: 0x0506_0708,
        };
        assert_eq!(unpacked(packed(word)), word);
        assert_eq!(packed(word).to_ne_bytes(), word.as_bytes());
    }

    #[test]
    fn names_are_cut_at_a_character() {
        let long = "ä".repeat(300);
        let kept = name(&long);
        assert_eq!(kept.length, 384);
        let odd = format!("a{long}");
        assert_eq!(name(&odd).length, 383, "half an ä is not kept");
        assert_eq!(name("a/b").length, 3);
    }
}
