//! Ports of virtual addresses: for each the classes and ports of the backends behind it. Rows of
//! SERVICES.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agent_common::Address;
use agent_common::maps::{Backend, SERVICE_MANY, Service, ServiceKey};

use super::peer_classes::ClassId;
use super::prefixes::Net;
use crate::cluster::{Cluster, Frontend};

/// A key of SERVICES, in an order that keeps the ports of an address together.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Key {
    /// The virtual address.
    pub(crate) address: Address,
    /// IP protocol number.
    pub(crate) protocol: u8,
    port: u16,
}

impl From<Key> for ServiceKey {
    fn from(key: Key) -> Self {
        Self {
            address: key.address,
            port: key.port,
            protocol: key.protocol,
            reserved: 0,
        }
    }
}

impl From<ServiceKey> for Key {
    fn from(key: ServiceKey) -> Self {
        Self {
            address: key.address,
            protocol: key.protocol,
            port: key.port,
        }
    }
}

/// A row of SERVICES: wanted, present, or both.
#[derive(Clone, Debug, Default)]
struct Entry {
    wanted: Option<Vec<(Address, u16)>>,
    present: Option<Service>,
    /// Who was behind it when it was written last.
    before: Vec<(Address, u16)>,
}

/// Every port of every virtual address.
#[derive(Clone, Debug, Default)]
pub(crate) struct Services {
    entries: BTreeMap<Key, Entry>,
    /// Rows that a backend's address is in.
    rows_of: BTreeMap<Address, BTreeSet<Key>>,
    /// Virtual addresses to be read again.
    stale: BTreeSet<Address>,
    /// Rows that may differ from what is in the map, beside those with backends that moved.
    moved: BTreeSet<Key>,
}

impl Services {
    /// What is behind a virtual address may have changed.
    pub(crate) fn doubt(&mut self, address: IpAddr) {
        self.stale.insert(address.into());
    }

    /// Takes over a row that an earlier agent left.
    pub(crate) fn adopt(&mut self, key: Key, present: Service) {
        self.entries.entry(key).or_default().present = Some(present);
        self.moved.insert(key);
    }

    /// Reads what is behind the addresses that were doubted.
    pub(super) fn refresh(&mut self, cluster: &Cluster) {
        for address in std::mem::take(&mut self.stale) {
            let mut wanted: BTreeMap<Key, Vec<(Address, u16)>> = BTreeMap::new();
            for frontend in cluster.frontends(address.into()) {
                let Frontend {
                    protocol,
                    port,
                    backends,
                } = frontend;
                let key = Key {
                    address,
                    protocol: protocol.0,
                    port,
                };
                let backends = backends.into_iter();
                let backends = backends.map(|(address, port)| (address.into(), port));
                wanted.insert(key, backends.collect());
            }
            let known = self.rows_at(address);
            for key in known
                .into_iter()
                .chain(wanted.keys().copied())
                .collect::<BTreeSet<_>>()
            {
                self.want(key, wanted.remove(&key));
            }
        }
    }

    fn rows_at(&self, address: Address) -> Vec<Key> {
        let first = Key {
            address,
            protocol: 0,
            port: 0,
        };
        let last = Key {
            address,
            protocol: u8::MAX,
            port: u16::MAX,
        };
        self.entries
            .range(first..=last)
            .map(|(key, _)| *key)
            .collect()
    }

    fn want(&mut self, key: Key, wanted: Option<Vec<(Address, u16)>>) {
        let entry = self.entries.entry(key).or_default();
        if entry.wanted == wanted {
            return;
        }
        for (address, _) in entry.wanted.iter().flatten() {
            if let Some(rows) = self.rows_of.get_mut(address) {
                rows.remove(&key);
                if rows.is_empty() {
                    self.rows_of.remove(address);
                }
            }
        }
        for (address, _) in wanted.iter().flatten() {
            self.rows_of.entry(*address).or_default().insert(key);
        }
        entry.wanted = wanted;
        if entry.wanted.is_none() && entry.present.is_none() {
            self.entries.remove(&key);
        }
        self.moved.insert(key);
    }

    /// Rows that may differ from what is in the map when these addresses and prefixes move.
    pub(crate) fn moved(
        &self,
        addresses: &BTreeSet<Address>,
        prefixes: &BTreeSet<Net>,
    ) -> BTreeSet<Key> {
        let of_addresses = addresses
            .iter()
            .filter_map(|address| self.rows_of.get(address));
        let inside = prefixes
            .iter()
            .flat_map(|net| self.rows_of.range(net.range()));
        let of_prefixes = inside.map(|(_, rows)| rows);
        let mut moved = self.moved.clone();
        moved.extend(of_addresses.chain(of_prefixes).flatten());
        moved
    }

    /// What is behind a port; `None` when nothing is to be said of it.
    pub(crate) fn backends(&self, key: Key) -> Option<&[(Address, u16)]> {
        self.entries.get(&key)?.wanted.as_deref()
    }

    /// What was behind a port when its row was written last; nobody where there is no row.
    pub(crate) fn before(&self, key: Key) -> &[(Address, u16)] {
        self.entries.get(&key).map_or(&[], |entry| &entry.before)
    }

    /// The row in the map.
    pub(crate) fn present(&self, key: Key) -> Option<Service> {
        self.entries.get(&key)?.present
    }

    /// A row is in the map, or gone from it, as wanted.
    pub(crate) fn settle(&mut self, key: Key, present: Option<Service>) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        entry.present = present;
        if entry.wanted.is_none() && entry.present.is_none() {
            self.entries.remove(&key);
        }
    }

    /// All rows are as wanted.
    pub(crate) fn settled(&mut self) {
        for key in std::mem::take(&mut self.moved) {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.before = entry.wanted.clone().unwrap_or_default();
            }
        }
    }

    /// True when no row is to be written on its own account.
    pub(crate) fn is_settled(&self) -> bool {
        self.moved.is_empty()
    }

    /// Rows there are while a plan is carried out.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

/// The row of backends of these classes and ports, in their order: each kind as it first comes.
pub(crate) fn row(backends: &[(ClassId, u16)]) -> Service {
    let mut kinds: Vec<(ClassId, u16)> = Vec::new();
    let mut service = Service::default();
    for kind in backends {
        if kinds.contains(kind) {
            continue;
        }
        let Some(place) = service.backends.get_mut(kinds.len()) else {
            return Service {
                count: SERVICE_MANY,
                ..Service::default()
            };
        };
        *place = Backend {
            class: kind.0.0,
            port: kind.1,
            reserved: 0,
        };
        kinds.push(*kind);
        service.count += 1;
    }
    service
}
