//! The content of every policy map as plain collections: what the planner's writes lead to, what
//! a restarted agent reads back, and what the packet path runs on in host tests.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use agent_common::Address;
use agent_common::judge::PolicyTables;
use agent_common::maps::{
    Config, EndpointWord, ID_ROWS, NameKey, PeerEntry, PortFunction, PortKey, PortVerdict, Prefix,
    Service, ServiceKey, Settings, VerdictKey,
};

use crate::hash::HashMap;
use crate::plan::Write;

/// Every policy map's content. Nothing here is derived: what is not in a map is not here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tables {
    /// ENDPOINTS, by interface.
    pub endpoints: BTreeMap<u32, EndpointWord>,
    /// CONFIGS, by row.
    pub configs: HashMap<u32, Config>,
    /// `PEER_REVISION`, by bucket.
    pub peer_revisions: HashMap<u16, u32>,
    /// `PEERS_EXACT`.
    pub peers: HashMap<Address, PeerEntry>,
    /// `PEERS_CIDR`, by length, then address.
    pub prefixes: BTreeMap<u32, HashMap<Address, PeerEntry>>,
    /// VERDICTS.
    pub verdicts: HashMap<VerdictKey, PortFunction>,
    /// PORTS.
    pub ports: HashMap<PortKey, PortVerdict>,
    /// SERVICES.
    pub services: HashMap<ServiceKey, Service>,
    /// NAMES.
    pub names: HashMap<NameKey, String>,
    /// IDS: the next unused id of each kind.
    pub ids: [u64; ID_ROWS as usize],
    /// Slots that have a CONNTRACK map.
    pub slots: BTreeSet<u32>,
    /// SETTINGS.
    pub settings: Settings,
    /// How often a look-up met a set without a default row: never, when all is well.
    pub default_rows_missed: Cell<u64>,
}

impl Tables {
    /// Carries out writes in their order.
    pub fn apply_all(&mut self, writes: &[Write]) {
        for write in writes {
            self.apply(write);
        }
    }

    /// Carries out one write.
    pub fn apply(&mut self, write: &Write) {
        match write {
            Write::ReserveIds(kind, next) => {
                if let Some(place) = self.ids.get_mut(*kind as usize) {
                    *place = *next;
                }
            }
            Write::PutName(key, name) => {
                self.names.insert(*key, name.clone());
            }
            Write::DeleteName(key) => {
                self.names.remove(key);
            }
            // Counts are not policy.
            Write::OpenRule(_) => {}
            Write::PutPort(key, verdict) => {
                self.ports.insert(*key, *verdict);
            }
            Write::DeletePort(key) => {
                self.ports.remove(key);
            }
            Write::PutVerdict(key, row) => {
                self.verdicts.insert(*key, *row);
            }
            Write::DeleteVerdict(key) => {
                self.verdicts.remove(key);
            }
            Write::PutService(key, service) => {
                self.services.insert(*key, *service);
            }
            Write::DeleteService(key) => {
                self.services.remove(key);
            }
            Write::PutPeer(address, entry) => {
                self.peers.insert(Address::from(*address), *entry);
            }
            Write::DeletePeer(address) => {
                self.peers.remove(&Address::from(*address));
            }
            Write::PutPrefix(prefix, entry) => self.put_prefix(*prefix, *entry),
            Write::DeletePrefix(prefix) => self.delete_prefix(*prefix),
            Write::StampPeers { bucket, revision } => {
                self.peer_revisions.insert(*bucket, *revision);
            }
            Write::OpenSlot(slot) => {
                self.slots.insert(*slot);
            }
            Write::CloseSlot(slot) => {
                self.slots.remove(slot);
            }
            Write::PutConfig(row, config) => {
                self.configs.insert(*row, **config);
            }
            Write::Flip { ifindex, word } => {
                self.endpoints.insert(*ifindex, *word);
            }
            Write::Unpublish { ifindex } => {
                self.endpoints.remove(ifindex);
            }
        }
    }

    /// Puts a row of `PEERS_CIDR`.
    pub fn put_prefix(&mut self, prefix: Prefix, entry: PeerEntry) {
        self.prefixes
            .entry(prefix.length)
            .or_default()
            .insert(prefix.address, entry);
    }

    fn delete_prefix(&mut self, prefix: Prefix) {
        if let Some(entries) = self.prefixes.get_mut(&prefix.length) {
            entries.remove(&prefix.address);
            if entries.is_empty() {
                self.prefixes.remove(&prefix.length);
            }
        }
    }

    /// Every row of `PEERS_CIDR`.
    pub fn prefix_rows(&self) -> impl Iterator<Item = (Prefix, PeerEntry)> + '_ {
        self.prefixes.iter().flat_map(|(length, entries)| {
            entries.iter().map(|(address, entry)| {
                let prefix = Prefix {
                    address: *address,
                    length: *length,
                };
                (prefix, *entry)
            })
        })
    }
}

/// The address with everything past the first `length` bits zero.
pub(crate) fn masked(address: Address, length: u32) -> Address {
    let bits = u128::from_be_bytes(address.0);
    let mask = u128::MAX
        .checked_shl(128_u32.saturating_sub(length))
        .unwrap_or(0);
    Address((bits & mask).to_be_bytes())
}

/// The bits of a PORTS key that its length covers, in one number.
fn port_key(function: u32, protocol: u8, port: u16, length: u32) -> PortKey {
    let kept = length.saturating_sub(40).min(16);
    let mask = u16::MAX.checked_shl(16 - kept).unwrap_or(0);
    PortKey {
        length,
        function_be: function.to_be_bytes(),
        protocol,
        port_be: (port & mask).to_be_bytes(),
        reserved: 0,
    }
}

impl PolicyTables for Tables {
    fn endpoint(&self, ifindex: u32) -> Option<(&Config, u32)> {
        let word = self.endpoints.get(&ifindex)?;
        let config = self.configs.get(&word.config_row)?;
        (config.ifindex == ifindex).then_some((config, word.revision))
    }

    fn peer_revision(&self, bucket: u16) -> u32 {
        self.peer_revisions
            .get(&bucket)
            .copied()
            .unwrap_or_default()
    }

    fn peer_exact(&self, address: &Address) -> Option<PeerEntry> {
        self.peers.get(address).copied()
    }

    fn peer_prefix(&self, address: &Address) -> Option<PeerEntry> {
        self.prefixes
            .iter()
            .rev()
            .find_map(|(length, entries)| entries.get(&masked(*address, *length)).copied())
    }

    fn verdict(&self, key: &VerdictKey) -> Option<&PortFunction> {
        self.verdicts.get(key)
    }

    fn port(&self, function: u32, protocol: u8, port: u16) -> Option<PortVerdict> {
        (40..=56).rev().find_map(|length| {
            self.ports
                .get(&port_key(function, protocol, port, length))
                .copied()
        })
    }

    fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key)
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn default_row_missing(&self) {
        self.default_rows_missed
            .set(self.default_rows_missed.get() + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(a: u8, b: u8, c: u8, d: u8) -> Address {
        Address::from_v4([a, b, c, d])
    }

    #[test]
    fn longest_prefix_wins_and_a_miss_is_none() {
        let mut tables = Tables::default();
        let class = |class| PeerEntry { class, flags: 0 };
        for (length, address, n) in [(104, v4(10, 0, 0, 0), 1), (112, v4(10, 1, 0, 0), 2)] {
            tables.put_prefix(Prefix { address, length }, class(n));
        }
        assert_eq!(tables.peer_prefix(&v4(10, 1, 2, 3)), Some(class(2)));
        assert_eq!(tables.peer_prefix(&v4(10, 2, 2, 3)), Some(class(1)));
        assert_eq!(tables.peer_prefix(&v4(11, 0, 0, 1)), None);
    }

    #[test]
    fn ports_are_found_by_their_longest_prefix() {
        let mut tables = Tables::default();
        let rule = |rule| PortVerdict {
            verdict: 1,
            rule,
            ..PortVerdict::default()
        };
        tables.ports.insert(port_key(7, 6, 0, 40), rule(1));
        tables.ports.insert(port_key(7, 6, 80, 56), rule(2));
        assert_eq!(tables.port(7, 6, 80), Some(rule(2)));
        assert_eq!(tables.port(7, 6, 81), Some(rule(1)));
        assert_eq!(tables.port(7, 17, 80), None);
        assert_eq!(tables.port(8, 6, 80), None);
    }
}
