//! Local endpoints: whose they are, what is published for them, and the slots and rows they take.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use agent_common::Address;
use agent_common::maps::{CONFIG_ROWS, Config, NAME_SLOT, NameKey, SLOTS, config_flags};

use super::{LocalEndpoint, SlotOwner};
use crate::compile::policy_sets::SetId;
use crate::hash::HashMap;
use crate::model::{ObjectName, Pod, PodUid};
use crate::tables::Tables;

/// What is in the maps for an interface.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Published {
    pub(super) row: u32,
    pub(super) revision: u32,
    pub(super) config: Config,
}

impl Published {
    /// The sets in force by direction.
    pub(super) fn sets(&self) -> [SetId; 2] {
        self.config.sets.map(SetId)
    }
}

/// A local endpoint.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    pub(super) local: LocalEndpoint,
    /// The pod as last seen: a local pod keeps its identity until its interface goes.
    pub(super) pod: Option<Arc<Pod>>,
    /// 0 while it has none.
    pub(super) slot: u32,
    /// Sets it is to have; held.
    pub(super) wanted: [SetId; 2],
    pub(super) published: Option<Published>,
}

impl Endpoint {
    pub(super) const fn new(local: LocalEndpoint) -> Self {
        Self {
            local,
            pod: None,
            slot: 0,
            wanted: [SetId::NOT_ISOLATED; 2],
            published: None,
        }
    }

    /// True when one of its addresses has gone, or another of a family has come, or the first one of
    /// all: it has to begin as a new endpoint. Keys of flows leave the endpoint's own address out, so
    /// those it had would pass for flows of the address it has now. One of a family that it had no
    /// address of disturbs none of them.
    pub(super) fn has_moved(&self) -> bool {
        let of = |config: &Config, is_v4: bool| -> BTreeSet<Address> {
            let known = config.addresses.iter();
            known
                .filter(|own| **own != Address::UNSPECIFIED && own.is_v4() == is_v4)
                .copied()
                .collect()
        };
        self.published.is_some_and(|published| {
            let wanted = self.config();
            let none = [Address::UNSPECIFIED; 2];
            if published.config.addresses == none {
                return wanted.addresses != none;
            }
            [true, false].into_iter().any(|is_v4| {
                let before = of(&published.config, is_v4);
                !before.is_empty() && before != of(&wanted, is_v4)
            })
        })
    }

    /// The row it is to have.
    pub(super) fn config(&self) -> Config {
        let stated = || self.pod.iter().flat_map(|pod| pod.addresses.iter());
        let found = self.local.addresses.iter();
        let all: Vec<IpAddr> = if self.local.addresses.is_empty() {
            stated().copied().collect()
        } else {
            found.copied().collect()
        };
        let mut addresses = [Address::UNSPECIFIED; 2];
        for (place, address) in addresses.iter_mut().zip(all) {
            *place = address.into();
        }
        let posture = if self.local.fails_open {
            config_flags::FAIL_OPEN
        } else {
            0
        };
        let sets = self.wanted.map(|set| set.0);
        Config {
            ifindex: self.local.ifindex,
            slot: self.slot,
            addresses,
            sets,
            // Until policies can be audited, what is judged is what is in force.
            audit_sets: sets,
            flags: config_flags::PROGRAMMED | posture,
            attached: self.local.attached,
            ..Config::default()
        }
    }
}

/// An endpoint that goes, with what it leaves in the maps.
#[derive(Clone, Debug)]
pub(super) struct Withdrawal {
    pub(super) published: Option<(u32, Published)>,
    /// 0 when it had none.
    pub(super) slot: u32,
    /// The slot has a CONNTRACK map and a name.
    pub(super) is_open: bool,
}

/// Places in per-slot maps. The one that was free the longest is given first, and says whose it
/// was until then.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    free: VecDeque<u32>,
    owners: HashMap<u32, SlotOwner>,
}

impl Slots {
    pub(super) fn adopt(present: &Tables) -> Self {
        let mut owners = HashMap::default();
        for (key, text) in &present.names {
            if key.kind == NAME_SLOT
                && present.slots.contains(&key.id)
                && let Some(owner) = SlotOwner::parse(text)
            {
                owners.insert(key.id, owner);
            }
        }
        let taken = &present.slots;
        Self {
            free: (1..SLOTS).filter(|slot| !taken.contains(slot)).collect(),
            owners,
        }
    }

    pub(super) fn take(&mut self, pod: &Pod) -> Option<u32> {
        let slot = self.free.pop_front()?;
        let owner = SlotOwner {
            uid: pod.uid.clone(),
            pod: pod.name.clone(),
        };
        self.owners.insert(slot, owner);
        Some(slot)
    }

    pub(super) fn give_back(&mut self, slot: u32) {
        self.free.push_back(slot);
    }

    /// Slots that somebody has.
    pub(super) fn taken(&self) -> usize {
        (SLOTS as usize - 1).saturating_sub(self.free.len())
    }

    pub(super) fn owner(&self, slot: u32) -> Option<&SlotOwner> {
        self.owners.get(&slot)
    }
}

/// The name of a slot in NAMES.
pub(super) const fn slot_key(slot: u32) -> NameKey {
    NameKey {
        kind: NAME_SLOT,
        id: slot,
    }
}

impl SlotOwner {
    fn parse(text: &str) -> Option<Self> {
        let (uid, pod) = text.split_once(' ')?;
        let (namespace, name) = pod.split_once('/')?;
        Some(Self {
            uid: PodUid(Arc::from(uid)),
            pod: ObjectName::new(namespace, name),
        })
    }
}

impl std::fmt::Display for SlotOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.uid.0, self.pod)
    }
}

/// The endpoints, found by interface, pod and namespace.
#[derive(Clone, Debug, Default)]
pub(super) struct Endpoints {
    interfaces: BTreeMap<u32, Endpoint>,
    of_uid: HashMap<PodUid, BTreeSet<u32>>,
    of_namespace: HashMap<Arc<str>, BTreeSet<u32>>,
}

impl Endpoints {
    pub(super) fn insert(&mut self, endpoint: Endpoint) {
        let ifindex = endpoint.local.ifindex;
        self.of_uid
            .entry(endpoint.local.uid.clone())
            .or_default()
            .insert(ifindex);
        let namespace = endpoint
            .pod
            .as_ref()
            .map(|pod| Arc::clone(&pod.name.namespace));
        self.interfaces.insert(ifindex, endpoint);
        if let Some(namespace) = namespace {
            self.of_namespace
                .entry(namespace)
                .or_default()
                .insert(ifindex);
        }
    }

    pub(super) fn remove(&mut self, ifindex: u32) -> Option<Endpoint> {
        let endpoint = self.interfaces.remove(&ifindex)?;
        forget(&mut self.of_uid, &endpoint.local.uid, ifindex);
        if let Some(pod) = &endpoint.pod {
            forget(&mut self.of_namespace, &pod.name.namespace, ifindex);
        }
        Some(endpoint)
    }

    pub(super) fn get(&self, ifindex: u32) -> Option<&Endpoint> {
        self.interfaces.get(&ifindex)
    }

    pub(super) fn get_mut(&mut self, ifindex: u32) -> Option<&mut Endpoint> {
        self.interfaces.get_mut(&ifindex)
    }

    pub(super) fn identify(&mut self, ifindex: u32, pod: Arc<Pod>) {
        if let Some(endpoint) = self.interfaces.get_mut(&ifindex) {
            if let Some(before) = &endpoint.pod {
                forget(&mut self.of_namespace, &before.name.namespace, ifindex);
            }
            let namespace = Arc::clone(&pod.name.namespace);
            self.of_namespace
                .entry(namespace)
                .or_default()
                .insert(ifindex);
            endpoint.pod = Some(pod);
        }
    }

    pub(super) fn of_pod(&self, uid: &PodUid) -> impl Iterator<Item = u32> + '_ {
        self.of_uid.get(uid).into_iter().flatten().copied()
    }

    pub(super) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = u32> + '_ {
        self.of_namespace
            .get(namespace)
            .into_iter()
            .flatten()
            .copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.interfaces.values()
    }

    pub(super) fn without_slot(&self) -> impl Iterator<Item = u32> + '_ {
        self.iter()
            .filter(|endpoint| endpoint.slot == 0)
            .map(|endpoint| endpoint.local.ifindex)
    }

    pub(super) fn len(&self) -> usize {
        self.interfaces.len()
    }
}

fn forget<K: std::hash::Hash + Eq>(index: &mut HashMap<K, BTreeSet<u32>>, key: &K, ifindex: u32) {
    if let Some(interfaces) = index.get_mut(key) {
        interfaces.remove(&ifindex);
        if interfaces.is_empty() {
            index.remove(key);
        }
    }
}

/// Rows of CONFIGS nobody can see. Row 0 means "none".
pub(super) fn free_config_rows(present: &Tables) -> VecDeque<u32> {
    let taken: BTreeSet<u32> = present
        .endpoints
        .values()
        .map(|word| word.config_row)
        .collect();
    (1..CONFIG_ROWS)
        .filter(|row| !taken.contains(row))
        .collect()
}
