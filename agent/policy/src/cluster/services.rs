//! Services and the slices of their backends: what is behind a virtual address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::hash::HashMap;
use crate::model::{EndpointSlice, ObjectName, Protocol, Service};

/// Where a Service proxy may take a flow: an address and its port there.
pub type Backend = (IpAddr, u16);

/// A port of a virtual address, and what is behind it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Frontend {
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
    /// In order, each once, of the virtual address's family. None: the Service proxy refuses it.
    pub backends: BTreeSet<Backend>,
}

/// Services by name, address and slice.
#[derive(Clone, Debug, Default)]
pub(super) struct Services {
    by_name: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, EndpointSlice>,
    /// Names of slices, by the Service they are of.
    slices_of: HashMap<ObjectName, BTreeSet<Arc<str>>>,
    /// Services that state an address; more than one when external addresses are shared.
    by_address: HashMap<IpAddr, BTreeSet<ObjectName>>,
    /// Addresses that stand for a Service's beside those it states.
    stand_ins: BTreeMap<IpAddr, ObjectName>,
}

impl Services {
    pub(super) fn get(&self, name: &ObjectName) -> Option<&Service> {
        self.by_name.get(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Service> {
        self.by_name.values()
    }

    pub(super) fn slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.values()
    }

    /// Puts a Service in the place of another; the virtual addresses that may mean something else
    /// now.
    pub(super) fn replace(&mut self, name: &ObjectName, new: Option<Service>) -> BTreeSet<IpAddr> {
        if self.by_name.get(name) == new.as_ref() {
            return BTreeSet::new();
        }
        let mut touched = self.addresses_of(name);
        let old = match new {
            Some(service) => self.by_name.insert(name.clone(), service),
            None => self.by_name.remove(name),
        };
        for address in old.iter().flat_map(|service| &service.addresses) {
            if let Some(names) = self.by_address.get_mut(address) {
                names.remove(name);
                if names.is_empty() {
                    self.by_address.remove(address);
                }
            }
        }
        let addresses = self.by_name.get(name).map(|new| new.addresses.clone());
        for address in addresses.into_iter().flatten() {
            let names = self.by_address.entry(address).or_default();
            names.insert(name.clone());
        }
        touched.extend(self.addresses_of(name));
        touched
    }

    /// The same of a slice.
    pub(super) fn replace_slice(
        &mut self,
        name: &ObjectName,
        new: Option<EndpointSlice>,
    ) -> BTreeSet<IpAddr> {
        if self.slices.get(name) == new.as_ref() {
            return BTreeSet::new();
        }
        let old = match new {
            Some(slice) => self.slices.insert(name.clone(), slice),
            None => self.slices.remove(name),
        };
        let mut touched = BTreeSet::new();
        if let Some(old) = old {
            let service = service_of(&old);
            if let Some(slices) = self.slices_of.get_mut(&service) {
                slices.remove(&name.name);
                if slices.is_empty() {
                    self.slices_of.remove(&service);
                }
            }
            touched.extend(self.addresses_of(&service));
        }
        if let Some(service) = self.slices.get(name).map(service_of) {
            touched.extend(self.addresses_of(&service));
            let slices = self.slices_of.entry(service).or_default();
            slices.insert(Arc::clone(&name.name));
        }
        touched
    }

    /// Has an address stand for a Service's; the addresses that may mean something else now.
    pub(super) fn stand_in(&mut self, address: IpAddr, service: ObjectName) -> BTreeSet<IpAddr> {
        self.stand_ins.insert(address, service);
        BTreeSet::from([address])
    }

    fn addresses_of(&self, name: &ObjectName) -> BTreeSet<IpAddr> {
        let stated = self.by_name.get(name);
        let stated = stated.iter().flat_map(|service| &service.addresses);
        let standing_in = self.stand_ins.iter().filter(|(_, of)| *of == name);
        stated
            .chain(standing_in.map(|(address, _)| address))
            .copied()
            .collect()
    }

    fn at(&self, address: IpAddr) -> impl Iterator<Item = &Service> {
        let stated = self.by_address.get(&address).into_iter().flatten();
        let names = stated.chain(self.stand_ins.get(&address));
        names.filter_map(|name| self.by_name.get(name))
    }

    /// True when a Service proxy takes some port of the address elsewhere.
    pub(super) fn is_virtual(&self, address: IpAddr) -> bool {
        self.at(address).any(|service| !service.ports.is_empty())
    }

    /// Every port of an address that a Service proxy takes elsewhere, in order, each once. Of a port
    /// that several Services claim, the backends of all.
    pub(super) fn frontends(&self, address: IpAddr) -> Vec<Frontend> {
        let mut found: BTreeMap<(Protocol, u16), BTreeSet<Backend>> = BTreeMap::new();
        for service in self.at(address) {
            for port in &*service.ports {
                let backends = found.entry((port.protocol, port.port)).or_default();
                for slice in self.slices_with(&service.name) {
                    let ports = slice.ports.iter().filter(|backend| {
                        backend.name == port.name && backend.protocol == port.protocol
                    });
                    for backend in ports {
                        let addresses = slice.addresses.iter();
                        let addresses =
                            addresses.filter(|found| found.is_ipv4() == address.is_ipv4());
                        backends.extend(addresses.map(|address| (*address, backend.port)));
                    }
                }
            }
        }
        let found = found.into_iter();
        found
            .map(|((protocol, port), backends)| Frontend {
                protocol,
                port,
                backends,
            })
            .collect()
    }

    fn slices_with<'a>(
        &'a self,
        service: &'a ObjectName,
    ) -> impl Iterator<Item = &'a EndpointSlice> {
        let names = self.slices_of.get(service).into_iter().flatten();
        names.filter_map(|name| {
            let name = ObjectName {
                namespace: Arc::clone(&service.namespace),
                name: Arc::clone(name),
            };
            self.slices.get(&name)
        })
    }
}

fn service_of(slice: &EndpointSlice) -> ObjectName {
    ObjectName {
        namespace: Arc::clone(&slice.name.namespace),
        name: Arc::clone(&slice.service),
    }
}
