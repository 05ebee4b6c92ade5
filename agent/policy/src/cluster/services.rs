//! Services and the slices of their backends: what is behind a virtual address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::hash::HashMap;
use crate::model::{EndpointSlice, ObjectName, Protocol, Service, ServicePort};

/// Where a Service proxy may take a flow: an address and its port there.
pub type Backend = (IpAddr, u16);

/// A port of a virtual address, and what is behind it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Frontend {
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
    /// In order, each once, of the virtual address's family. None: the Service proxy refuses it. An
    /// external address is among them itself: until its proxy knows of it, a packet goes there.
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
        for address in old.iter().flat_map(stated) {
            if let Some(names) = self.by_address.get_mut(address) {
                names.remove(name);
                if names.is_empty() {
                    self.by_address.remove(address);
                }
            }
        }
        for address in self.by_name.get(name).into_iter().flat_map(stated) {
            let names = self.by_address.entry(*address).or_default();
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
        let stated = self.by_name.get(name).into_iter().flat_map(stated);
        let standing_in = self.stand_ins.iter().filter(|(_, of)| *of == name);
        stated
            .chain(standing_in.map(|(address, _)| address))
            .copied()
            .collect()
    }

    fn at(&self, address: IpAddr) -> impl Iterator<Item = (&Service, Claim)> {
        let stated = self.by_address.get(&address).into_iter().flatten();
        let stated = stated.filter_map(move |name| {
            let service = self.by_name.get(name)?;
            let claim = if service.addresses.contains(&address) {
                Claim::Own
            } else {
                Claim::External
            };
            Some((service, claim))
        });
        let standing_in = self.stand_ins.get(&address).into_iter();
        let standing_in = standing_in.filter_map(|name| self.by_name.get(name));
        stated.chain(standing_in.map(|service| (service, Claim::StandsIn)))
    }

    /// True when a Service proxy takes some port of the address elsewhere.
    pub(super) fn is_virtual(&self, address: IpAddr) -> bool {
        self.at(address)
            .any(|(service, _)| !service.ports.is_empty())
    }

    /// Every port of an address that a Service proxy takes elsewhere, in order, each once. Of a port
    /// that several Services claim, the backends of all.
    pub(super) fn frontends(&self, address: IpAddr) -> Vec<Frontend> {
        let mut found: BTreeMap<(Protocol, u16), BTreeSet<Backend>> = BTreeMap::new();
        for (service, claim) in self.at(address) {
            for port in &*service.ports {
                let mut backends = self.backends(service, port, address);
                match claim {
                    // No proxy refuses what is sent there.
                    Claim::StandsIn if backends.is_empty() => continue,
                    Claim::External => {
                        backends.insert((address, port.port));
                    }
                    Claim::Own | Claim::StandsIn => {}
                }
                let known = found.entry((port.protocol, port.port)).or_default();
                known.append(&mut backends);
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

    fn backends(
        &self,
        service: &Service,
        port: &ServicePort,
        address: IpAddr,
    ) -> BTreeSet<Backend> {
        let mut backends = BTreeSet::new();
        for slice in self.slices_with(&service.name) {
            let ports = slice
                .ports
                .iter()
                .filter(|backend| backend.name == port.name && backend.protocol == port.protocol);
            for backend in ports {
                let addresses = slice.addresses.iter();
                let addresses = addresses.filter(|found| found.is_ipv4() == address.is_ipv4());
                backends.extend(addresses.map(|address| (*address, backend.port)));
            }
        }
        backends
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

/// How a Service comes by an address.
#[derive(Clone, Copy, Debug)]
enum Claim {
    /// The cluster, or its load balancer, gave it.
    Own,
    /// Its owner has named it.
    External,
    /// Something on the node answers there in its place.
    StandsIn,
}

fn stated(service: &Service) -> impl Iterator<Item = &IpAddr> {
    service.addresses.iter().chain(&service.external_addresses)
}

fn service_of(slice: &EndpointSlice) -> ObjectName {
    ObjectName {
        namespace: Arc::clone(&slice.name.namespace),
        name: Arc::clone(&slice.service),
    }
}
