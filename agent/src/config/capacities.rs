//! How many entries each map has.

use std::collections::BTreeMap;

use agent_common::maps::{MAPS, MapKind};

use super::ConfigError;

/// Entries per map, where they differ from `agent_common::maps::MAPS`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Capacities(BTreeMap<&'static str, u32>);

/// No map may be asked to hold more entries than this.
const MOST_ENTRIES: u32 = 16 << 20;

impl Capacities {
    /// How many entries a map gets.
    pub fn of(&self, name: &str) -> u32 {
        self.0.get(name).copied().unwrap_or_else(|| {
            MAPS.iter()
                .find(|spec| spec.name == name)
                .map_or(0, |spec| spec.capacity)
        })
    }

    /// The capacities that differ from the default.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.0.iter().map(|(name, entries)| (*name, *entries))
    }

    pub(super) fn parse(items: &[String]) -> Result<Self, ConfigError> {
        let mut capacities = BTreeMap::new();
        for item in items {
            let malformed = || ConfigError::CapacityForm(item.clone());
            let (name, entries) = item.split_once('=').ok_or_else(malformed)?;
            let entries: u64 = entries.parse().map_err(|_error| malformed())?;
            let name = sizeable()
                .find(|known| known.eq_ignore_ascii_case(name))
                .ok_or_else(|| ConfigError::UnknownMap {
                    name: name.to_owned(),
                    known: sizeable().collect::<Vec<_>>().join(", "),
                })?;
            match u32::try_from(entries) {
                Ok(entries) if (1..=MOST_ENTRIES).contains(&entries) => {
                    capacities.insert(name, entries);
                }
                Ok(_) | Err(_) => {
                    return Err(ConfigError::Capacity {
                        name,
                        value: entries,
                        most: MOST_ENTRIES,
                    });
                }
            }
        }
        Ok(Self(capacities))
    }
}

/// Interfaces whose place is taken: as many as there are slots. Fewer would be found full in the
/// middle of a plan, and that plan would keep every later one back.
const AS_MANY_AS_SLOTS: &str = "ENDPOINTS_COLLIDING";

/// Maps whose size is a matter of taste; arrays are sized by what indexes them.
fn sizeable() -> impl Iterator<Item = &'static str> {
    MAPS.iter()
        .filter(|spec| match spec.kind {
            _ if spec.name == AS_MANY_AS_SLOTS => false,
            MapKind::Hash | MapKind::LruHash | MapKind::LpmTrie | MapKind::ArrayOfLruHash => true,
            MapKind::Array | MapKind::MappedArray | MapKind::PerCpuArray | MapKind::RingBuffer => {
                false
            }
        })
        .map(|spec| spec.name)
}
