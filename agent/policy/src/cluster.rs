//! The ground state: pods, namespaces, nodes and policies as last seen, who owns an address, and
//! for a change, what it touches. A change costs in proportion to what it touches.
//!
//! The meaning of these objects is not here but in [`crate::evaluate`].

mod changes;
pub mod labels;
mod namespaces;
mod owners;
mod services;
mod shared;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use self::labels::LabelIndex;
use self::namespaces::{Home, PodSlot};
use self::owners::Owners;
use self::services::Services;
use crate::hash::HashMap;
use crate::model::{
    Change, Direction, EndpointSlice, Namespace, NamespaceScope, Node, ObjectName, Phase, Pod,
    PodUid, Policy, Protocol, Service,
};
use crate::selector::Selector;

pub use self::services::{Backend, Frontend};
pub use self::shared::Shared;

/// What a change touched; nothing when it changed nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Touched {
    /// Pods that came, went, or differ in any field.
    pub pods: BTreeSet<PodUid>,
    /// Addresses that changed owner, or whose owner changed its identity: labels or ports. (The
    /// labels of its namespace are part of no pod: see `namespaces`.)
    pub addresses: BTreeSet<IpAddr>,
    /// Namespaces whose labels or annotations changed: every pod in them may be selected
    /// differently, none is listed in `pods` for that.
    pub namespaces: BTreeSet<Arc<str>>,
    /// Policies that came, went, or differ in any field.
    pub policies: BTreeSet<ObjectName>,
    /// Nodes that came, went, or differ in any field.
    pub nodes: BTreeSet<Arc<str>>,
    /// Virtual addresses with something else behind them, or none any more.
    pub virtual_addresses: BTreeSet<IpAddr>,
}

impl Touched {
    /// True when nothing changed.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
            && self.addresses.is_empty()
            && self.namespaces.is_empty()
            && self.policies.is_empty()
            && self.nodes.is_empty()
            && self.virtual_addresses.is_empty()
    }

    /// Adds what another change touched.
    pub fn merge(&mut self, other: Self) {
        self.pods.extend(other.pods);
        self.addresses.extend(other.addresses);
        self.namespaces.extend(other.namespaces);
        self.policies.extend(other.policies);
        self.nodes.extend(other.nodes);
        self.virtual_addresses.extend(other.virtual_addresses);
    }
}

/// The cluster as last seen.
///
/// A pod or policy may arrive before its namespace: until then the namespace counts as one whose
/// only label is `kubernetes.io/metadata.name`, which is the label it has for certain.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    slots: Vec<Option<Arc<Pod>>>,
    free: Vec<PodSlot>,
    by_uid: HashMap<PodUid, PodSlot>,
    by_name: Owners<ObjectName>,
    by_address: Owners<IpAddr>,
    shared: Shared,
    /// Pods that selectors may select, of every namespace.
    labels: LabelIndex<PodSlot>,
    homes: BTreeMap<Arc<str>, Home>,
    home_labels: LabelIndex<Arc<str>>,
    nodes: BTreeMap<Arc<str>, Node>,
    services: Services,
}

impl Cluster {
    /// An empty cluster.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a change in, and says what it touched.
    pub fn apply(&mut self, change: Change) -> Touched {
        match change {
            Change::Pod(pod) => self.put_pod(*pod),
            Change::PodGone(uid) => self.replace_pod(&uid, None),
            Change::Namespace(namespace) => {
                let name = Arc::clone(&namespace.name);
                self.replace_namespace(&name, Some(namespace))
            }
            Change::NamespaceGone(name) => self.replace_namespace(&name, None),
            Change::Node(node) => {
                let name = Arc::clone(&node.name);
                self.replace_node(&name, Some(node))
            }
            Change::NodeGone(name) => self.replace_node(&name, None),
            Change::Policy(policy) => {
                let name = policy.name.clone();
                self.replace_policy(&name, Some(Arc::new(*policy)))
            }
            Change::PolicyGone(name) => self.replace_policy(&name, None),
            Change::Service(service) => {
                let name = service.name.clone();
                virtual_addresses(self.services.replace(&name, Some(*service)))
            }
            Change::ServiceGone(name) => virtual_addresses(self.services.replace(&name, None)),
            Change::EndpointSlice(slice) => {
                let name = slice.name.clone();
                virtual_addresses(self.services.replace_slice(&name, Some(*slice)))
            }
            Change::EndpointSliceGone(name) => {
                virtual_addresses(self.services.replace_slice(&name, None))
            }
        }
    }

    /// Has an address stand for a Service's, beside those the Service states: a cache on the node
    /// that pods ask instead.
    pub fn stand_in(&mut self, address: IpAddr, service: ObjectName) -> Touched {
        virtual_addresses(self.services.stand_in(address.to_canonical(), service))
    }

    /// The pod with this UID.
    pub fn pod(&self, uid: &PodUid) -> Option<&Arc<Pod>> {
        self.at(*self.by_uid.get(uid)?)
    }

    /// The pod of this name; the newest when one is being replaced by another.
    pub fn pod_named(&self, name: &ObjectName) -> Option<&Arc<Pod>> {
        self.at(self.by_name.owner_of(name)?)
    }

    /// Every pod, in no particular order.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.slots.iter().flatten()
    }

    /// Every pod of a namespace, in no particular order.
    pub fn pods_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<Pod>> {
        let slots = self.homes.get(namespace).map(|home| &home.pods);
        slots
            .into_iter()
            .flatten()
            .filter_map(|slot| self.at(*slot))
    }

    /// The namespace of this name; also one that is only known by a pod or policy in it.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.homes.get(name).map(|home| &home.namespace)
    }

    /// Every namespace, by name; also those only known by a pod or policy in them.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.homes.values().map(|home| &home.namespace)
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// Every node, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The Service of this name.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name)
    }

    /// Every Service, by namespace and name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.iter()
    }

    /// Every slice of Services' backends, by namespace and name.
    pub fn endpoint_slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.services.slices()
    }

    /// True when a Service proxy takes some port of the address elsewhere.
    pub fn is_virtual(&self, address: IpAddr) -> bool {
        self.services.is_virtual(address)
    }

    /// Every port of an address that a Service proxy takes elsewhere, by protocol and number.
    pub fn frontends(&self, address: IpAddr) -> Vec<Frontend> {
        self.services.frontends(address)
    }

    /// Where a Service proxy may take what is sent to an address and port; `None` when it goes
    /// there itself.
    pub fn backends(
        &self,
        address: IpAddr,
        protocol: Protocol,
        port: u16,
    ) -> Option<BTreeSet<Backend>> {
        let mut frontends = self.services.frontends(address).into_iter();
        let is_asked = |frontend: &Frontend| frontend.protocol == protocol && frontend.port == port;
        frontends.find(is_asked).map(|found| found.backends)
    }

    /// The policy of this name.
    pub fn policy(&self, name: &ObjectName) -> Option<&Arc<Policy>> {
        self.homes.get(&name.namespace)?.policies.get(&name.name)
    }

    /// Every policy, by namespace and name.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.homes.values().flat_map(|home| home.policies.values())
    }

    /// The policies of a namespace, by name.
    pub fn policies_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<Policy>> {
        let policies = self.homes.get(namespace).map(|home| &home.policies);
        policies.into_iter().flat_map(|policies| policies.values())
    }

    /// The policies that isolate a pod in a direction, by name. Empty for pods that no selector
    /// selects (hostNetwork, completed).
    pub fn policies_selecting(&self, pod: &Pod, direction: Direction) -> Vec<&Arc<Policy>> {
        if !is_selectable(pod) {
            return Vec::new();
        }
        let Some(home) = self.homes.get(&pod.name.namespace) else {
            return Vec::new();
        };
        let mut found: Vec<&Arc<Policy>> = home
            .policy_selectors
            .candidates(&pod.labels)
            .filter_map(|name| home.policies.get(name))
            .filter(|policy| policy.isolates(direction) && policy.pods.selects(&pod.labels))
            .collect();
        found.sort_unstable_by(|a, b| a.name.name.cmp(&b.name.name));
        found
    }

    /// The pod an address belongs to: of the pods that state it the newest by creation, then by
    /// UID. A hostNetwork pod owns no address (it shows its node's), a completed one none any
    /// more, a terminating one keeps its own.
    pub fn owner_of(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.at(self.by_address.owner_of(&address)?)
    }

    /// The pods a peer selects, in no particular order, seen from a policy in `own_namespace`.
    /// hostNetwork and completed pods are never selected.
    pub fn pods_selected(
        &self,
        scope: &NamespaceScope,
        own_namespace: &str,
        pods: &Selector,
    ) -> Vec<&Arc<Pod>> {
        let selects = |slot: &PodSlot| self.at(*slot).filter(|pod| pods.selects(&pod.labels));
        match scope {
            NamespaceScope::Own => self.homes.get(own_namespace).map_or_else(Vec::new, |home| {
                home.labels.candidates(pods).filter_map(selects).collect()
            }),
            NamespaceScope::Selected(namespaces) => {
                let homes: Vec<&Home> = self
                    .home_labels
                    .candidates(namespaces)
                    .filter_map(|name| self.homes.get(name))
                    .filter(|home| namespaces.selects(&home.namespace.labels))
                    .collect();
                // Whichever looks at less: every selected namespace, or the label in all of them.
                let by_label = self.labels.candidate_count(pods);
                if homes.len() <= by_label {
                    return homes
                        .into_iter()
                        .flat_map(|home| home.labels.candidates(pods))
                        .filter_map(selects)
                        .collect();
                }
                let candidates = self.labels.candidates(pods).filter_map(selects);
                candidates
                    .filter(|pod| {
                        self.namespace(&pod.name.namespace)
                            .is_some_and(|namespace| namespaces.selects(&namespace.labels))
                    })
                    .collect()
            }
        }
    }

    fn at(&self, slot: PodSlot) -> Option<&Arc<Pod>> {
        self.slots.get(slot as usize)?.as_ref()
    }
}

fn virtual_addresses(virtual_addresses: BTreeSet<IpAddr>) -> Touched {
    Touched {
        virtual_addresses,
        ..Touched::default()
    }
}

/// True for pods that selectors select and that own their addresses.
pub(crate) fn is_selectable(pod: &Pod) -> bool {
    !pod.host_network && pod.phase != Phase::Completed
}
