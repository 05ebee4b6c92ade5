//! Totals that never go back, over maps whose rows do: a slot's counts are folded into a total
//! before they are forgotten, and the ledger is kept in a file beside the socket, so that neither
//! a reused slot nor a restarted agent takes anything away.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::Path;

use agent_common::{Direction, Reason, Verdict};
use serde::{Deserialize, Serialize};

use crate::dto::{Party, Traffic};
use crate::reading::{DeniedReading, Reading, SlotReading};

/// Series of one family of pairs; beyond it values go to [`OVERFLOW`].
pub(crate) const MOST_PAIRS: usize = 500;
/// Label value of what found no series of its own.
pub(crate) const OVERFLOW: &str = "__overflow__";
/// DNS (RFC 1035 §4.2).
const DNS_PORT: u16 = 53;

/// Who was refused, in labels.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub(crate) struct Pair {
    pub(crate) direction: String,
    pub(crate) reason: String,
    pub(crate) namespace: String,
    pub(crate) workload: String,
    pub(crate) peer_namespace: String,
    pub(crate) peer_workload: String,
}

impl Pair {
    fn of(row: &DeniedReading) -> Self {
        let (peer_namespace, peer_workload) = peer_labels(&row.peer);
        Self {
            direction: row.key.4.as_label().to_owned(),
            reason: row.reason.clone(),
            namespace: row
                .local
                .namespace
                .clone()
                .unwrap_or_else(|| "unknown".to_owned()),
            workload: row
                .local
                .workload
                .clone()
                .unwrap_or_else(|| "unknown".to_owned()),
            peer_namespace,
            peer_workload,
        }
    }

    /// Where everything goes that has no series of its own.
    fn overflow(direction: &str) -> Self {
        let over = || OVERFLOW.to_owned();
        Self {
            direction: direction.to_owned(),
            reason: over(),
            namespace: over(),
            workload: over(),
            peer_namespace: over(),
            peer_workload: over(),
        }
    }
}

/// Closed words for whoever is no pod: addresses would be labels without bound.
fn peer_labels(peer: &Party) -> (String, String) {
    match (&peer.namespace, &peer.workload, &peer.node) {
        (Some(namespace), Some(workload), _) => (namespace.clone(), workload.clone()),
        (Some(namespace), None, _) => (namespace.clone(), "unknown".to_owned()),
        (None, _, Some(_)) => (String::new(), "node".to_owned()),
        (None, _, None) => (String::new(), "world".to_owned()),
    }
}

/// Packets and bytes by direction and reason; `None` as reason is what passed.
type ByReason = BTreeMap<(u8, Option<u8>), Traffic>;

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Slot {
    uid: String,
    namespace: String,
    #[serde(with = "pairs")]
    traffic: ByReason,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Row {
    uid: String,
    pair: Pair,
    /// Where it counts: its own pair's series, or the overflow's.
    series: Pair,
    dns: Option<String>,
    packets: u64,
    /// Of `packets`, those that were counted under another pair: its labels have changed since.
    counted: u64,
}

impl Row {
    fn own(&self) -> u64 {
        self.packets.saturating_sub(self.counted)
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Rule {
    namespace: String,
    policy: String,
    direction: u8,
    connections: u64,
}

/// See the module.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Ledger {
    /// Slots as last read.
    slots: BTreeMap<u32, Slot>,
    /// What slots had when they went, by namespace.
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

    /// Takes a reading in.
    pub(crate) fn take(&mut self, reading: &Reading) {
        self.take_slots(reading);
        self.take_denied(reading);
        self.take_rules(reading);
        self.living_namespaces = reading
            .endpoints
            .iter()
            .map(|endpoint| endpoint.namespace.clone())
            .collect();
        // Series go when the objects they name go.
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

    fn take_slots(&mut self, reading: &Reading) {
        let Self { slots, closed, .. } = self;
        slots.retain(|number, slot| {
            let next = reading.slots.get(number);
            let goes_on =
                next.is_some_and(|next| next.uid == slot.uid && !has_gone_back(slot, next));
            if !goes_on {
                let total = closed.entry(slot.namespace.clone()).or_default();
                for (key, traffic) in &slot.traffic {
                    add(total.entry(*key).or_default(), *traffic);
                }
            }
            goes_on
        });
        for (number, next) in &reading.slots {
            slots.insert(
                *number,
                Slot {
                    uid: next.uid.clone(),
                    namespace: next.namespace.clone(),
                    traffic: by_reason(next),
                },
            );
        }
    }

    fn take_denied(&mut self, reading: &Reading) {
        let next: HashMap<String, &DeniedReading> = reading
            .denied
            .iter()
            .map(|row| (format!("{:?}", row.key), row))
            .collect();
        let gone: Vec<String> = self
            .rows
            .iter()
            .filter(|(key, row)| {
                next.get(*key)
                    .is_none_or(|next| next.uid != row.uid || next.packets < row.packets)
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            if let Some(row) = self.rows.remove(&key) {
                self.fold(&row);
            }
        }
        for (key, next) in next {
            let pair = Pair::of(next);
            let before = self.rows.remove(&key);
            let (series, counted) = match before {
                Some(row) if row.pair == pair => (row.series, row.counted),
                Some(row) => {
                    self.fold(&row);
                    (self.series(&pair), row.packets)
                }
                None => (self.series(&pair), 0),
            };
            let row = Row {
                uid: next.uid.clone(),
                pair,
                series,
                dns: (next.key.2 == DNS_PORT)
                    .then(|| dns_namespace(next))
                    .flatten(),
                packets: next.packets,
                counted,
            };
            self.rows.insert(key, row);
        }
    }

    /// Keeps what a row has counted, which is about to be forgotten.
    fn fold(&mut self, row: &Row) {
        *self.pairs.entry(row.series.clone()).or_default() += row.own();
        if let Some(namespace) = &row.dns {
            *self.dns.entry(namespace.clone()).or_default() += row.own();
        }
    }

    /// The series of a pair, for good: its own while there is room.
    fn series(&mut self, pair: &Pair) -> Pair {
        let series = if self.pairs.contains_key(pair) || self.pairs.len() < MOST_PAIRS {
            pair.clone()
        } else {
            self.overflowed += 1;
            Pair::overflow(&pair.direction)
        };
        self.pairs.entry(series.clone()).or_default();
        series
    }

    fn take_rules(&mut self, reading: &Reading) {
        for (id, rule, connections) in &reading.rule_hits {
            let known = self.rules.entry(id.0).or_insert_with(|| Rule {
                namespace: rule.policy.namespace.to_string(),
                policy: rule.policy.name.to_string(),
                direction: rule.direction.index(),
                connections: 0,
            });
            known.connections = known.connections.max(*connections);
        }
        for ((direction, reason), connections) in &reading.allowed {
            let key = (direction.index(), reason.number());
            self.allowed.insert(key, *connections);
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

    /// Refused packets by pair, bounded.
    pub(crate) fn denied_pairs(&self) -> BTreeMap<Pair, u64> {
        let mut total = self.pairs.clone();
        for row in self.rows.values() {
            *total.entry(row.series.clone()).or_default() += row.own();
        }
        total
    }

    /// Refused DNS packets by the namespace whose look-ups fail; zeros of living ones included.
    pub(crate) fn dns_denied(&self) -> BTreeMap<String, u64> {
        let mut total: BTreeMap<String, u64> = self
            .living_namespaces
            .iter()
            .map(|namespace| (namespace.clone(), 0))
            .collect();
        let rows = self
            .rows
            .values()
            .filter_map(|row| Some((row.dns.as_ref()?, row.own())));
        for (namespace, packets) in self
            .dns
            .iter()
            .map(|(name, packets)| (name, *packets))
            .chain(rows)
        {
            *total.entry(namespace.clone()).or_default() += packets;
        }
        total
    }

    /// New connections by direction and why they were allowed, of the node.
    pub(crate) fn allowed_connections(&self) -> BTreeMap<(Direction, Reason), u64> {
        let by_reason = self
            .allowed
            .iter()
            .filter_map(|((direction, reason), count)| {
                let reason = Reason::from_number(*reason)?;
                Some(((Direction::from_index(*direction), reason), *count))
            });
        let mut total: BTreeMap<_, _> = by_reason.collect();
        for rule in self.rules.values() {
            let key = (Direction::from_index(rule.direction), Reason::Rule);
            *total.entry(key).or_default() += rule.connections;
        }
        total
    }

    /// New connections by policy and direction, of policies there are; zeros included.
    pub(crate) fn policy_connections(
        &self,
        reading: &Reading,
    ) -> BTreeMap<(String, String, Direction), u64> {
        let mut total = BTreeMap::new();
        for (namespace, name, isolates) in &reading.policies {
            for (direction, isolates) in Direction::ALL.into_iter().zip(isolates) {
                if *isolates && self.living_namespaces.contains(namespace) {
                    total.insert((namespace.clone(), name.clone(), direction), 0);
                }
            }
        }
        for rule in self.rules.values() {
            let direction = Direction::from_index(rule.direction);
            let key = (rule.namespace.clone(), rule.policy.clone(), direction);
            if let Some(sum) = total.get_mut(&key) {
                *sum += rule.connections;
            }
        }
        total
    }
}

fn add(sum: &mut Traffic, more: Traffic) {
    sum.packets += more.packets;
    sum.bytes += more.bytes;
}

fn by_reason(slot: &SlotReading) -> ByReason {
    let mut rows = ByReason::new();
    for (direction, traffic) in Direction::ALL.into_iter().zip(slot.passed) {
        rows.insert((direction.index(), None), traffic);
    }
    for ((direction, reason), traffic) in &slot.dropped {
        rows.insert((direction.index(), Some(reason.number())), *traffic);
    }
    rows
}

/// True when the slot was cleared between two readings.
fn has_gone_back(before: &Slot, now: &SlotReading) -> bool {
    let now = by_reason(now);
    before
        .traffic
        .iter()
        .any(|(key, traffic)| now.get(key).copied().unwrap_or_default().packets < traffic.packets)
}

/// Whose look-up was refused: the endpoint's when leaving it, the peer's when entering a server.
fn dns_namespace(row: &DeniedReading) -> Option<String> {
    match row.key.4 {
        Direction::Egress => row.local.namespace.clone(),
        Direction::Ingress => row.peer.namespace.clone(),
    }
}

#[cfg(test)]
mod tests;
