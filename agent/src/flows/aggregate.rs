//! Flows folded into edges, bounded: who talks to whom on which port, decided how, how often.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use crate::dto::{Edge, EdgeList, Flow, Party, VerdictWord, Window};

/// Edges kept; beyond it the ones that were quiet longest are forgotten.
const MOST_EDGES: usize = 4_096;
/// Refused (endpoint, peer, port) rows whose count so far is remembered.
const MOST_ROWS: usize = 16_384;

/// What makes two flows the same edge.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct EdgeKey {
    from: String,
    to: String,
    protocol: String,
    port: Option<u16>,
    verdict: VerdictWord,
    reason: String,
    rule: Option<String>,
}

impl EdgeKey {
    fn of(flow: &Flow) -> Self {
        Self {
            from: group(&flow.from).to_string(),
            to: group(&flow.to).to_string(),
            protocol: flow.protocol.clone(),
            port: flow.port,
            verdict: flow.verdict,
            reason: flow.decision.reason.clone(),
            rule: flow.decision.rule.clone(),
        }
    }

    /// A short name that is the same in every run: FNV-1a (draft-eastlake-fnv §2), base 32
    /// without the letters and digits that look alike.
    fn id(&self) -> String {
        const LETTERS: &[u8; 32] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZ";
        let port = self.port.map_or_else(String::new, |port| port.to_string());
        let rule = self.rule.as_deref().unwrap_or_default();
        let parts = [
            &self.from,
            &self.to,
            &self.protocol,
            &port,
            self.verdict.as_label(),
            &self.reason,
            rule,
        ];
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for part in parts {
            for byte in part.bytes().chain([0]) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        (0..6)
            .filter_map(|place| LETTERS.get((hash >> (64 - 5 * (place + 1)) & 31) as usize))
            .map(|letter| char::from(*letter))
            .collect()
    }
}

/// A party as edges see it: the workload instead of the pod, no address where a name is.
fn group(party: &Party) -> Party {
    match (&party.namespace, &party.workload) {
        (Some(_), Some(_)) => Party {
            pod: None,
            ip: None,
            ..party.clone()
        },
        _ => party.clone(),
    }
}

#[derive(Clone, Debug)]
struct Entry {
    latest: Arc<Flow>,
    connections: u64,
    first_seen: String,
    last_seen: jiff::Timestamp,
}

/// Every edge since the agent started.
#[derive(Debug)]
pub(super) struct Edges {
    since: jiff::Timestamp,
    by_key: HashMap<EdgeKey, Entry>,
    /// Packets a refused row had when it was last reported, so that only the growth is added. By
    /// the digest of who, whom and where: names of every pod that ever was would take megabytes.
    rows: HashMap<u64, u32>,
    digests: RandomState,
    evicted: u64,
}

impl Edges {
    /// No edges yet.
    pub(super) fn new(since: jiff::Timestamp) -> Self {
        Self {
            since,
            by_key: HashMap::new(),
            rows: HashMap::new(),
            digests: RandomState::new(),
            evicted: 0,
        }
    }

    /// Adds a flow that was judged at `now`.
    pub(super) fn add(&mut self, flow: &Arc<Flow>, now: jiff::Timestamp) {
        let connections = self.growth(flow);
        let key = EdgeKey::of(flow);
        if self.by_key.len() >= MOST_EDGES && !self.by_key.contains_key(&key) {
            self.forget_the_quiet();
        }
        if let Some(entry) = self.by_key.get_mut(&key) {
            entry.connections += connections;
            entry.last_seen = now;
            entry.latest = Arc::clone(flow);
            return;
        }
        let entry = Entry {
            latest: Arc::clone(flow),
            connections,
            first_seen: flow.time.clone(),
            last_seen: now,
        };
        self.by_key.insert(key, entry);
    }

    /// How much a flow adds: a connection is one; a refusal says how many packets its row has had
    /// so far.
    fn growth(&mut self, flow: &Flow) -> u64 {
        if flow.verdict != VerdictWord::Deny {
            return 1;
        }
        if self.rows.len() >= MOST_ROWS {
            self.rows.clear();
        }
        let (from, to) = (flow.from.to_string(), flow.to.to_string());
        let row = (from, to, &flow.protocol, flow.port);
        let row = self.digests.hash_one(row);
        let before = self.rows.insert(row, flow.packets).unwrap_or(0);
        // A row that was cleared starts again.
        u64::from(flow.packets.checked_sub(before).unwrap_or(flow.packets))
    }

    /// Forgets a tenth, so that a flood of new edges does not sort them each time.
    fn forget_the_quiet(&mut self) {
        let mut seen: Vec<jiff::Timestamp> =
            self.by_key.values().map(|entry| entry.last_seen).collect();
        seen.sort_unstable();
        let Some(limit) = seen.get(MOST_EDGES / 10).copied() else {
            return;
        };
        let before = self.by_key.len();
        let mut spare = MOST_EDGES / 10;
        self.by_key.retain(|_, entry| {
            let is_quiet = entry.last_seen <= limit && spare > 0;
            spare -= usize::from(is_quiet);
            !is_quiet
        });
        self.evicted += (before - self.by_key.len()) as u64;
    }

    /// Every edge, latest first.
    pub(super) fn list(&self, now: jiff::Timestamp, events_lost: u64) -> EdgeList {
        let window = Window {
            from: self.since.to_string(),
            to: now.to_string(),
        };
        let mut entries: Vec<(&EdgeKey, &Entry)> = self.by_key.iter().collect();
        entries.sort_unstable_by(|(a_key, a), (b_key, b)| {
            b.last_seen
                .cmp(&a.last_seen)
                .then_with(|| a_key.id().cmp(&b_key.id()))
        });
        let items = entries
            .into_iter()
            .map(|(key, entry)| Edge {
                id: key.id(),
                window: window.clone(),
                from: group(&entry.latest.from),
                to: group(&entry.latest.to),
                protocol: entry.latest.protocol.clone(),
                port: entry.latest.port,
                verdict: entry.latest.verdict,
                decision: entry.latest.decision.clone(),
                connections: entry.connections,
                first_seen: entry.first_seen.clone(),
                last_seen: entry.last_seen.to_string(),
                events_lost,
            })
            .collect();
        EdgeList {
            items,
            window,
            events_lost,
            evicted: self.evicted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dto::{Decision, DirectionWord};

    fn pod(name: &str) -> Party {
        Party {
            namespace: Some("shop".to_owned()),
            pod: Some(name.to_owned()),
            workload: Some("Deployment/api".to_owned()),
            ip: Some("10.0.0.1".to_owned()),
            ..Party::default()
        }
    }

    fn world(last: u32) -> Party {
        Party {
            ip: Some(std::net::Ipv4Addr::from(last).to_string()),
            ..Party::default()
        }
    }

    fn flow(from: Party, verdict: VerdictWord, packets: u32) -> Arc<Flow> {
        Arc::new(Flow {
            time: "2026-11-21T14:00:00Z".to_owned(),
            from,
            from_port: Some(40_000),
            to: pod("api-9"),
            protocol: "TCP".to_owned(),
            port: Some(80),
            verdict,
            decision: Decision {
                direction: DirectionWord::Ingress,
                at: "destination".to_owned(),
                reason: "rule".to_owned(),
                rule: None,
                revision: "1".to_owned(),
                node: None,
                isolated_by: Vec::new(),
                nearest: Vec::new(),
            },
            packets,
        })
    }

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn replicas_of_a_workload_are_one_edge() {
        let mut edges = Edges::new(at(0));
        edges.add(&flow(pod("api-1"), VerdictWord::Allow, 1), at(1));
        edges.add(&flow(pod("api-2"), VerdictWord::Allow, 1), at(2));
        let list = edges.list(at(3), 0);
        assert_eq!(list.items.len(), 1);
        assert_eq!(list.items[0].connections, 2);
        assert_eq!(list.items[0].from.to_string(), "shop/deploy/api");
        assert_eq!(list.items[0].from.ip, None);
        assert_eq!(list.items[0].last_seen, "1970-01-01T00:00:02Z");
    }

    #[test]
    fn a_refusals_reports_add_their_growth_only() {
        let mut edges = Edges::new(at(0));
        for packets in [1, 5, 12] {
            edges.add(&flow(pod("api-1"), VerdictWord::Deny, packets), at(1));
        }
        // The row was cleared in between.
        edges.add(&flow(pod("api-1"), VerdictWord::Deny, 3), at(2));
        assert_eq!(edges.list(at(3), 0).items[0].connections, 15);
    }

    #[test]
    fn a_flood_of_strangers_is_bounded_and_keeps_the_latest() {
        let mut edges = Edges::new(at(0));
        for last in 0..25_000_u32 {
            edges.add(
                &flow(world(last), VerdictWord::Allow, 1),
                at(i64::from(last)),
            );
        }
        let list = edges.list(at(30_000), 0);
        assert!(list.items.len() <= MOST_EDGES, "{}", list.items.len());
        assert_eq!(
            list.items[0].from.to_string(),
            std::net::Ipv4Addr::from(24_999).to_string()
        );
        assert_eq!(list.evicted, 25_000 - list.items.len() as u64);
    }

    #[test]
    fn what_is_remembered_of_a_flood_of_refusals_is_small() {
        fn bytes<K, V>(map: &HashMap<K, V>) -> usize {
            map.capacity() * size_of::<(K, V)>()
        }
        let mut edges = Edges::new(at(0));
        for last in 0..20_000_u32 {
            edges.add(&flow(world(last), VerdictWord::Deny, 1), at(1));
            assert!(edges.rows.len() <= MOST_ROWS);
        }
        assert!(bytes(&edges.rows) < 1 << 20, "{}", bytes(&edges.rows));
    }

    #[test]
    fn ids_stay_and_differ() {
        let id = |flow: &Flow| EdgeKey::of(flow).id();
        let allow = flow(pod("api-1"), VerdictWord::Allow, 1);
        assert_eq!(id(&allow), id(&flow(pod("api-2"), VerdictWord::Allow, 1)));
        assert_ne!(id(&allow), id(&flow(pod("api-1"), VerdictWord::Deny, 1)));
        assert_eq!(id(&allow).len(), 6);
    }
}
