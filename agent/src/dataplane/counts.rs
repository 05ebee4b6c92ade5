//! What the programs have counted: traffic, refusals, rules in use, and how full the maps are.

use agent_common::maps::{
    Connection, Counter, Denied, DeniedKey, FlowKey, MAPS, RuleHit, SLOTS, Traffic, dropped_index,
    passed_index,
};
use agent_common::verdict::{Direction, Reason, Verdict};
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::error::DataplaneError;
use super::maps::{Maps, PerCpu, Plain};
use super::present::reading;
use super::sys;

/// Traffic of one slot that was dropped, by direction and reason.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Dropped {
    /// Seen from the pod.
    pub direction: Direction,
    /// Why.
    pub reason: Reason,
    /// How much.
    pub traffic: Traffic,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MapUse {
    /// The map's name in `MAPS`.
    pub map: &'static str,
    /// Entries in it; `None` where entries cannot be counted or always exist (arrays, the ring).
    pub entries: Option<u64>,
    /// Entries it may hold; bytes for the ring buffer.
    pub capacity: u64,
}

/// What a slot's pod received and sent.
pub(crate) fn passed(maps: &Maps, slot: u32) -> Result<[Traffic; 2], DataplaneError> {
    let mut both = [Traffic::default(); 2];
    for (place, direction) in both.iter_mut().zip(Direction::ALL) {
        let index = passed_index(slot, direction.index());
        *place = sum(&per_cpu(&maps.passed, index)?);
    }
    Ok(both)
}

/// What was dropped at a slot; rows of zero are left out.
pub(crate) fn dropped(maps: &Maps, slot: u32) -> Result<Vec<Dropped>, DataplaneError> {
    let mut rows = Vec::new();
    for direction in Direction::ALL {
        for reason in Reason::ALL
            .iter()
            .copied()
            .filter(|reason| reason.verdict() == Verdict::Deny)
        {
            let index = dropped_index(slot, direction.index(), reason.number());
            let traffic = maps
                .dropped
                .get(&index)
                .map_err(|source| reading("DROPPED", source))?
                .unwrap_or_default();
            if traffic.packets != 0 {
                rows.push(Dropped {
                    direction,
                    reason,
                    traffic,
                });
            }
        }
    }
    Ok(rows)
}

/// Every refusal that is remembered.
pub(crate) fn denied(maps: &Maps) -> Result<Vec<(DeniedKey, Denied)>, DataplaneError> {
    maps.denied
        .entries()
        .map_err(|source| reading("DENIED", source))
}

/// Removes rows of DENIED; see `Dataplane::forget_denied`.
pub(crate) fn forget_denied(
    maps: &Maps,
    known: &[(DeniedKey, u64)],
    is_urgent: bool,
) -> Result<Vec<(DeniedKey, Denied)>, DataplaneError> {
    let wrong = |action| {
        move |source| DataplaneError::Map {
            map: "DENIED",
            action,
            source,
        }
    };
    let mut forgotten = Vec::new();
    for (key, last) in known {
        let row = maps.denied.get(key).map_err(wrong("reading"))?;
        let Some(row) = row.filter(|row| is_urgent || row.last == *last) else {
            continue;
        };
        if maps.denied.remove(key).map_err(wrong("deleting from"))? {
            forgotten.push((*key, row));
        }
    }
    Ok(forgotten)
}

/// New connections by row of RULE_HITS; rows of zero are left out.
pub(crate) fn rule_hits(
    maps: &Maps,
    rows: impl IntoIterator<Item = u32>,
) -> Result<Vec<(u32, RuleHit)>, DataplaneError> {
    let mut hits = Vec::new();
    for row in rows {
        let total = per_cpu(&maps.rule_hits, row)?
            .iter()
            .fold(RuleHit::default(), |sum, one| RuleHit {
                connections: sum.connections + one.connections,
                last_seen: sum.last_seen.max(one.last_seen),
            });
        if total.connections != 0 {
            hits.push((row, total));
        }
    }
    Ok(hits)
}

/// The node's own counters.
pub(crate) fn counters(maps: &Maps) -> Result<Vec<(Counter, u64)>, DataplaneError> {
    Counter::ALL
        .iter()
        .map(|counter| {
            per_cpu(&maps.counters, *counter as u32).map(|rows| (*counter, rows.iter().sum()))
        })
        .collect()
}

/// How full every map is. Walks the keys of hashes and tries: for status, not for each packet.
pub(crate) fn map_uses(maps: &Maps) -> Result<Vec<MapUse>, DataplaneError> {
    MAPS.iter()
        .map(|spec| {
            let counted = match spec.name {
                "ENDPOINTS_COLLIDING" => Some(count(&maps.endpoints_colliding)?),
                "PENDING" => Some(count(&maps.pending)?),
                "PEERS_EXACT" => Some(count(&maps.peers_exact)?),
                "PEERS_CIDR" => Some(count(&maps.peers_cidr)?),
                "VERDICTS" => Some(count(&maps.verdicts)?),
                "PORTS" => Some(count(&maps.ports)?),
                "SERVICES" => Some(count(&maps.services)?),
                "FRAGMENTS" => Some(count(&maps.fragments)?),
                "DENIED" => Some(count(&maps.denied)?),
                "NAMES" => Some(count(&maps.names)?),
                "CONNTRACK" => {
                    let slots = maps.conntrack.open_ones();
                    let slots = slots.map_err(|source| reading("CONNTRACK", source))?.len() as u64;
                    Some((slots, u64::from(SLOTS)))
                }
                _ => None,
            };
            Ok(MapUse {
                map: spec.name,
                entries: counted.map(|(entries, _)| entries),
                capacity: counted.map_or(u64::from(spec.capacity), |(_, capacity)| capacity),
            })
        })
        .collect()
}

/// Every connection of a slot; none when the slot has no map.
pub(crate) fn connections(
    maps: &Maps,
    slot: u32,
) -> Result<Vec<(FlowKey, Connection)>, DataplaneError> {
    let wrong = |source| reading("CONNTRACK", source);
    let Some(id) = maps.conntrack.get(slot).map_err(wrong)? else {
        return Ok(Vec::new());
    };
    let inner = sys::map_by_id(id).map_err(wrong)?;
    let inner = std::os::fd::AsFd::as_fd(&inner);
    let capacity = sys::map_shape(inner).map_err(wrong)?.capacity as usize;
    let mut found = Vec::new();
    let mut previous: Option<FlowKey> = None;
    let mut key = FlowKey::new_zeroed();
    // A busy LRU restarts the walk when the key it stands on is evicted: twice round is enough.
    for _step in 0..2 * capacity {
        let from = previous.as_ref().map(zerocopy::IntoBytes::as_bytes);
        if !sys::next_key(inner, from, key.as_mut_bytes()).map_err(wrong)? {
            break;
        }
        let mut connection = Connection::new_zeroed();
        if sys::lookup(inner, key.as_bytes(), connection.as_mut_bytes()).map_err(wrong)? {
            found.push((key, connection));
        }
        previous = Some(key);
    }
    Ok(found)
}

fn count<K: Plain, V: Plain>(
    table: &super::maps::Table<K, V>,
) -> Result<(u64, u64), DataplaneError> {
    let keys = table
        .keys()
        .map_err(|source| reading(table.name(), source))?;
    Ok((keys.len() as u64, u64::from(table.capacity())))
}

fn per_cpu<V: Plain>(map: &PerCpu<V>, index: u32) -> Result<Vec<V>, DataplaneError> {
    map.get(index).map_err(|source| reading(map.name(), source))
}

fn sum(rows: &[Traffic]) -> Traffic {
    rows.iter().fold(Traffic::default(), |sum, one| Traffic {
        packets: sum.packets + one.packets,
        bytes: sum.bytes + one.bytes,
    })
}
