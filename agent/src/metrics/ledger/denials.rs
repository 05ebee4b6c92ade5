//! DENIED in the ledger: pairs that were refused, whatever becomes of the rows.
//!
//! A row goes when it is old, when the map fills up, or when its slot is another pod's; what it had
//! counted stays in its pair's series. Refusals that found no row are in no pair: DENIED says who
//! was refused what, DROPPED how much was refused.

use std::collections::{BTreeMap, HashSet};

use agent_common::Direction;
use agent_common::maps::DeniedKey;
use serde::{Deserialize, Serialize};

use super::Ledger;
use crate::dto::Party;
use crate::reading::{Denial, DeniedReading};

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

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Row {
    #[serde(default)]
    slot: u32,
    uid: String,
    pair: Pair,
    /// Where it counts: its own pair's series, or the overflow's.
    pub(super) series: Pair,
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

/// A row's key as text: JSON wants text as keys.
fn text(
    (slot, peer, port, protocol, direction): (u32, std::net::IpAddr, u16, u8, Direction),
) -> String {
    format!("{slot} {peer} {port} {protocol} {direction}")
}

fn text_of(key: &DeniedKey) -> String {
    let direction = Direction::from_index(key.direction);
    text((key.slot, key.peer.into(), key.port, key.protocol, direction))
}

impl Ledger {
    /// Rows that have grown, or are new: the only ones whose names are asked for again.
    pub(crate) fn grown(&self, rows: Vec<Denial>) -> Vec<Denial> {
        let mut grown = rows;
        grown.retain(|(key, row)| {
            let known = self.rows.get(&text_of(key));
            known.is_none_or(|known| known.packets != row.packets)
        });
        grown
    }

    /// Takes in rows that have grown. Of rows that are not `present`, what they had is kept. Rows
    /// of slots that were cleared meanwhile are looked at the next time.
    pub(crate) fn take_denied(
        &mut self,
        grown: &[DeniedReading],
        present: &[DeniedKey],
        cleared: &HashSet<u32>,
    ) {
        let present: HashSet<String> = present.iter().map(text_of).collect();
        self.fold_where(|key, _| !present.contains(key));
        for next in grown.iter().filter(|next| !cleared.contains(&next.key.0)) {
            let key = text(next.key);
            let has_gone_back = self
                .rows
                .get(&key)
                .is_some_and(|row| row.uid != next.uid || next.packets < row.packets);
            if has_gone_back {
                self.fold_where(|each, _| *each == key);
            }
            let pair = Pair::of(next);
            let (series, counted) = match self.rows.remove(&key) {
                Some(row) if row.pair == pair => (row.series, row.counted),
                Some(row) => {
                    self.fold_row(&row);
                    (self.series(&pair), row.packets)
                }
                None => (self.series(&pair), 0),
            };
            let row = Row {
                slot: next.key.0,
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

    /// Rows were removed, with what they had at the end.
    pub(crate) fn forget_denied(&mut self, removed: &[Denial]) {
        for (key, last) in removed {
            if let Some(mut row) = self.rows.remove(&text_of(key)) {
                row.packets = row.packets.max(last.packets);
                self.fold_row(&row);
            }
        }
    }

    /// The slot is another pod's from now on.
    pub(super) fn fold_denied_of(&mut self, slot: u32) {
        self.fold_where(|_, row| row.slot == slot);
    }

    fn fold_where(&mut self, goes: impl Fn(&String, &Row) -> bool) {
        let rows = std::mem::take(&mut self.rows);
        for (key, row) in rows {
            if goes(&key, &row) {
                self.fold_row(&row);
            } else {
                self.rows.insert(key, row);
            }
        }
    }

    /// Keeps what a row has counted, which is about to be forgotten.
    fn fold_row(&mut self, row: &Row) {
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
}

/// Whose look-up was refused: the endpoint's when leaving it, the peer's when entering a server.
fn dns_namespace(row: &DeniedReading) -> Option<String> {
    match row.key.4 {
        Direction::Egress => row.local.namespace.clone(),
        Direction::Ingress => row.peer.namespace.clone(),
    }
}
