//! Reads the policy maps back as the planner's tables, for an agent that finds them in force.

use std::io;

use agent_common::maps::{ENDPOINT_ROWS, ID_ROWS, Name, PEER_BUCKETS, Prefix};
use agent_policy::hash::HashMap;
use agent_policy::tables::Tables;

use super::apply::unpacked;
use super::error::DataplaneError;
use super::maps::{Maps, Plain, Table};

/// Everything that user space has ever written, as it is now.
pub(crate) fn read(maps: &Maps) -> Result<Tables, DataplaneError> {
    let mut tables = Tables {
        peers: all(&maps.peers_exact)?,
        verdicts: all(&maps.verdicts)?,
        ports: all(&maps.ports)?,
        services: all(&maps.services)?,
        ids: first_ids(maps)?,
        slots: maps
            .conntrack
            .open_ones()
            .map_err(|source| reading("CONNTRACK", source))?,
        settings: maps
            .settings
            .get(&0)
            .map_err(|source| reading("SETTINGS", source))?
            .unwrap_or_default(),
        ..Tables::default()
    };
    for (key, entry) in entries(&maps.peers_cidr)? {
        let prefix = Prefix {
            address: key.address,
            length: key.length,
        };
        tables.put_prefix(prefix, entry);
    }
    for (key, name) in entries(&maps.names)? {
        tables.names.insert(key, text(&name));
    }
    for bucket in 0..PEER_BUCKETS {
        let revision = maps.peer_revision.load_u32(bucket).unwrap_or(0);
        if let (Ok(bucket), true) = (u16::try_from(bucket), revision != 0) {
            tables.peer_revisions.insert(bucket, revision);
        }
    }
    for row in 1..maps.configs.capacity() {
        let config = maps
            .configs
            .get(&row)
            .map_err(|source| reading("CONFIGS", source))?;
        // A row that was never filled names no interface.
        if let Some(config) = config.filter(|config| config.ifindex != 0) {
            tables.configs.insert(row, config);
        }
    }
    for index in 0..ENDPOINT_ROWS {
        let word = unpacked(maps.endpoints.load(index).unwrap_or(0));
        if let Some(config) = tables.configs.get(&word.config_row) {
            tables.endpoints.insert(config.ifindex, word);
        }
    }
    tables.endpoints.extend(entries(&maps.endpoints_colliding)?);
    Ok(tables)
}

/// The next unused id of each kind, by `IdKind`.
pub(crate) fn first_ids(maps: &Maps) -> Result<[u64; ID_ROWS as usize], DataplaneError> {
    let mut ids = [0; ID_ROWS as usize];
    for (kind, place) in (0..).zip(ids.iter_mut()) {
        *place = maps
            .ids
            .get(&kind)
            .map_err(|source| reading("IDS", source))?
            .unwrap_or(0);
    }
    Ok(ids)
}

/// The text of a row of NAMES.
fn text(name: &Name) -> String {
    let bytes: Vec<u8> = name
        .text
        .iter()
        .flatten()
        .copied()
        .take(name.length as usize)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn all<K: Plain + Eq + std::hash::Hash, V: Plain>(
    table: &Table<K, V>,
) -> Result<HashMap<K, V>, DataplaneError> {
    entries(table).map(|entries| entries.into_iter().collect())
}

fn entries<K: Plain, V: Plain>(table: &Table<K, V>) -> Result<Vec<(K, V)>, DataplaneError> {
    table
        .entries()
        .map_err(|source| reading(table.name(), source))
}

pub(crate) fn reading(map: &'static str, source: io::Error) -> DataplaneError {
    DataplaneError::Map {
        map,
        action: "reading",
        source,
    }
}
