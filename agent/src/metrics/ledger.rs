//! Totals that never go back, over maps whose rows do: what the loop reads before it clears rows
//! for another pod or rule is folded into a total, and the ledger is kept in a file beside the
//! socket, so that neither a reused slot nor a restarted agent takes anything away.

mod denials;
mod rules;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::path::Path;

use agent_common::{Direction, Reason, Verdict, maps};
use serde::{Deserialize, Serialize};

use self::denials::{OVERFLOW, Pair, Row};
use self::rules::Rule;
use crate::dataplane::Dropped;
use crate::dto::Traffic;
use crate::reading::{Reading, SlotReading};
use crate::reconcile::{Counts, Fold, Owner};

#[cfg(test)]
pub(crate) use self::denials::MOST_PAIRS;

/// Packets and bytes by direction and reason; `None` as reason is what passed.
type ByReason = BTreeMap<(u8, Option<u8>), Traffic>;

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Slot {
    uid: String,
    namespace: String,
    #[serde(with = "pairs")]
    traffic: ByReason,
}

/// See the module.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Ledger {
    /// Slots as last read.
    slots: BTreeMap<u32, Slot>,
    /// What slots had when they were cleared, by namespace.
    #[serde(with = "nested")]
    closed: BTreeMap<String, ByReason>,
    /// DENIED rows as last read, by the text of their key.
    rows: HashMap<String, Row>,
    /// What rows had when they went.
    #[serde(with = "pairs")]
    pairs: BTreeMap<Pair, u64>,
    /// The same of DNS, by namespace.
    dns: BTreeMap<String, u64>,
    /// Rows of RULE_HITS as last read, by the rule's id.
    rules: BTreeMap<u32, Rule>,
    /// Rows of RULE_HITS that count by direction and reason, as last read.
    #[serde(with = "pairs", default)]
    allowed: BTreeMap<(u8, u8), u64>,
    /// What rules had when their rows were cleared, by namespace, policy and direction.
    #[serde(with = "pairs", default)]
    closed_rules: BTreeMap<(String, String, u8), u64>,
    /// The number of the latest fold of this agent that is in here.
    #[serde(skip)]
    folded: u64,
    /// Pairs that found no series.
    pub(crate) overflowed: u64,
    #[serde(skip)]
    living_namespaces: BTreeSet<String>,
}

/// JSON wants text as keys: maps with other keys are lists of pairs.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(super) fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Vec::<(K, V)>::deserialize(deserializer).map(|pairs| pairs.into_iter().collect())
    }
}

mod nested {
    use std::collections::BTreeMap;

    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::{ByReason, Traffic};

    pub(super) fn serialize<S: Serializer>(
        map: &BTreeMap<String, ByReason>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(
            map.iter()
                .map(|(name, rows)| (name, rows.iter().collect::<Vec<_>>())),
        )
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, ByReason>, D::Error> {
        type Rows = Vec<((u8, Option<u8>), Traffic)>;
        let lists = Vec::<(String, Rows)>::deserialize(deserializer)?;
        Ok(lists
            .into_iter()
            .map(|(name, rows)| (name, rows.into_iter().collect()))
            .collect())
    }
}

impl Ledger {
    /// The ledger an earlier agent left; an empty one when there is none or it cannot be read.
    pub(crate) fn load(path: &Path) -> Self {
        let Ok(bytes) = std::fs::read(path) else {
            return Self::default();
        };
        serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "totals of an earlier agent are unreadable; counting from the maps alone");
            Self::default()
        })
    }

    /// Writes it beside its place, then moves it there: a reader sees one whole ledger.
    pub(crate) fn save(&self, path: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(self)?;
        let beside = path.with_extension("new");
        std::fs::write(&beside, bytes)?;
        std::fs::rename(&beside, path)
    }

    /// The latest fold that was taken in.
    pub(crate) fn folded(&self) -> u64 {
        self.folded
    }

    /// Takes in what was cleared since the last time, and a reading that began before the latest of
    /// it. Returns the slots that were cleared since the reading began.
    pub(crate) fn take(&mut self, reading: &Reading, folds: &[Fold]) -> HashSet<u32> {
        let mut cleared = (HashSet::new(), HashSet::new());
        for fold in folds {
            self.folded = self.folded.max(fold.number);
            let is_later = fold.number > reading.folds;
            match &fold.counts {
                Counts::Slot {
                    slot,
                    owner,
                    passed,
                    dropped,
                } => {
                    self.fold_slot(*slot, owner.as_ref(), by_reason(passed, dropped));
                    self.fold_denied_of(*slot);
                    if is_later {
                        cleared.0.insert(*slot);
                    }
                }
                Counts::Rule {
                    row,
                    rule,
                    connections,
                } => {
                    self.fold_rule(*row, rule.as_ref(), *connections);
                    if is_later {
                        cleared.1.insert(*row);
                    }
                }
            }
        }
        let (slots, rows) = cleared;
        self.take_slots(reading, &slots);
        self.take_rules(reading, &rows);
        self.forget_policies(reading);
        self.living_namespaces = reading
            .endpoints
            .iter()
            .map(|endpoint| endpoint.namespace.clone())
            .collect();
        slots
    }

    /// Series go when the objects they name go.
    pub(crate) fn forget_series(&mut self, reading: &Reading) {
        let living = &self.living_namespaces;
        let workloads: BTreeSet<(&str, &str)> = reading
            .endpoints
            .iter()
            .map(|endpoint| (endpoint.namespace.as_str(), endpoint.workload.as_str()))
            .collect();
        let used: BTreeSet<&Pair> = self.rows.values().map(|row| &row.series).collect();
        self.pairs.retain(|pair, _| {
            pair.namespace == OVERFLOW
                || used.contains(pair)
                || workloads.contains(&(pair.namespace.as_str(), pair.workload.as_str()))
        });
        self.dns.retain(|namespace, _| living.contains(namespace));
    }

    /// A slot's rows were cleared; this is what they had. The holder is the one that was seen
    /// there, or the one whose name was in the maps.
    fn fold_slot(&mut self, slot: u32, owner: Option<&Owner>, traffic: ByReason) {
        let namespace = match (self.slots.remove(&slot), owner) {
            (Some(seen), Some(owner)) if seen.uid != owner.uid => {
                // The one that was seen was cleared by an agent that did not come to tell.
                self.close(&seen);
                owner.namespace.clone()
            }
            (Some(seen), _) => seen.namespace,
            (None, Some(owner)) => owner.namespace.clone(),
            (None, None) => String::new(),
        };
        let closed = Slot {
            uid: String::new(),
            namespace,
            traffic,
        };
        self.close(&closed);
    }

    fn close(&mut self, slot: &Slot) {
        let total = self.closed.entry(slot.namespace.clone()).or_default();
        for (key, traffic) in &slot.traffic {
            add(total.entry(*key).or_default(), *traffic);
        }
    }

    /// A slot that nobody has any more stays as it was seen until it is cleared.
    fn take_slots(&mut self, reading: &Reading, cleared: &HashSet<u32>) {
        let next = reading.slots.iter();
        for (number, next) in next.filter(|(number, _)| !cleared.contains(number)) {
            let next = Slot {
                uid: next.uid.clone(),
                namespace: next.namespace.clone(),
                traffic: of_reading(next),
            };
            // Cleared by an agent that did not come to tell.
            let before = self.slots.insert(*number, next.clone());
            if let Some(before) = before
                && (before.uid != next.uid || has_gone_back(&before, &next))
            {
                self.close(&before);
            }
        }
    }

    /// Traffic by direction and verdict or reason, of the node.
    pub(crate) fn node_traffic(&self) -> BTreeMap<(Direction, Option<Reason>), Traffic> {
        let mut total = BTreeMap::new();
        let all = self
            .closed
            .values()
            .chain(self.slots.values().map(|slot| &slot.traffic));
        for ((direction, reason), traffic) in all.flatten() {
            let reason = reason.and_then(Reason::from_number);
            add(
                total
                    .entry((Direction::from_index(*direction), reason))
                    .or_default(),
                *traffic,
            );
        }
        total
    }

    /// Packets by namespace, direction and verdict; every label set of a living namespace is
    /// there, zeros included.
    pub(crate) fn namespace_packets(&self) -> BTreeMap<(String, Direction, Verdict), u64> {
        let mut total = BTreeMap::new();
        for namespace in &self.living_namespaces {
            for direction in Direction::ALL {
                for verdict in [Verdict::Allow, Verdict::Deny, Verdict::Audit] {
                    total.insert((namespace.clone(), direction, verdict), 0);
                }
            }
        }
        let slots = self
            .slots
            .values()
            .map(|slot| (&slot.namespace, &slot.traffic));
        for (namespace, rows) in self.closed.iter().chain(slots) {
            for ((direction, reason), traffic) in rows {
                let verdict = if reason.is_some() {
                    Verdict::Deny
                } else {
                    Verdict::Allow
                };
                let key = (
                    namespace.clone(),
                    Direction::from_index(*direction),
                    verdict,
                );
                if let Some(sum) = total.get_mut(&key) {
                    *sum += traffic.packets;
                }
            }
        }
        total
    }
}

fn add(sum: &mut Traffic, more: Traffic) {
    sum.packets += more.packets;
    sum.bytes += more.bytes;
}

fn of_reading(slot: &SlotReading) -> ByReason {
    let mut rows = ByReason::new();
    for (direction, traffic) in Direction::ALL.into_iter().zip(slot.passed) {
        rows.insert((direction.index(), None), traffic);
    }
    for ((direction, reason), traffic) in &slot.dropped {
        rows.insert((direction.index(), Some(reason.number())), *traffic);
    }
    rows
}

fn by_reason(passed: &[maps::Traffic; 2], dropped: &[Dropped]) -> ByReason {
    let of = |traffic: &maps::Traffic| Traffic {
        packets: traffic.packets,
        bytes: traffic.bytes,
    };
    let passed = Direction::ALL.into_iter().zip(passed);
    let mut rows: ByReason = passed
        .map(|(direction, traffic)| ((direction.index(), None), of(traffic)))
        .collect();
    for row in dropped {
        let key = (row.direction.index(), Some(row.reason.number()));
        rows.insert(key, of(&row.traffic));
    }
    rows
}

/// True when the slot was cleared between two readings.
fn has_gone_back(before: &Slot, now: &Slot) -> bool {
    let now = &now.traffic;
    before
        .traffic
        .iter()
        .any(|(key, traffic)| now.get(key).copied().unwrap_or_default().packets < traffic.packets)
}

#[cfg(test)]
mod tests;
