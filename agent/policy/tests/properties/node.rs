//! A node: an engine, the maps it writes, and what the specification says of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use agent_common::Address;
use agent_common::judge::{PolicyTables as _, judge_peer, peer_of};
use agent_common::maps::{
    IdKind, NAME_SLOT, NameKey, PeerEntry, SERVICE_MANY, ServiceKey, peer_bucket,
};
use agent_policy::cluster::{Cluster, Frontend};
use agent_policy::engine::{Engine, LocalEndpoint, Options};
use agent_policy::evaluate;
use agent_policy::hash::HashMap;
use agent_policy::model::{
    Change, Direction, Labels, NamespaceScope, ObjectName, Peer, Peers, Phase, Pod, PodUid, Policy,
    Ports, Protocol, Rule, RuleId, Verdict,
};
use agent_policy::plan::Refused;
use agent_policy::selector::Selector;
use agent_policy::tables::Tables;
use proptest::prelude::*;

use super::world::{self, Event, uid};

/// A packet at one side of an endpoint.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Packet {
    pub(crate) ifindex: u32,
    /// Another slot is another endpoint.
    pub(crate) slot: u32,
    pub(crate) direction: Direction,
    pub(crate) peer: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) port: u16,
}

/// What the tables say of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Verdicted {
    pub(crate) is_allowed: bool,
    pub(crate) rule: RuleId,
}

/// What is behind each address.
pub(crate) type Frontends = BTreeMap<IpAddr, Vec<Frontend>>;

pub(crate) type Verdicts = BTreeMap<Packet, Verdicted>;

/// Every packet at every published endpoint.
pub(crate) fn verdicts(tables: &Tables) -> Verdicts {
    let mut verdicts = Verdicts::new();
    let entries: Vec<(IpAddr, PeerEntry)> = world::addresses()
        .into_iter()
        .map(|peer| (peer, peer_of(tables, &Address::from(peer))))
        .collect();
    for ifindex in tables.endpoints.keys() {
        let (config, _) = tables.endpoint(*ifindex).expect("published with its row");
        for direction in Direction::ALL {
            let set = config.sets[direction as usize];
            for (peer, entry) in &entries {
                for (protocol, port) in world::protocols_and_ports() {
                    let key = ServiceKey {
                        address: Address::from(*peer),
                        port,
                        protocol,
                        reserved: 0,
                    };
                    let judgement = judge_peer(tables, set, *entry, direction, &key);
                    let packet = Packet {
                        ifindex: *ifindex,
                        slot: config.slot,
                        direction,
                        peer: *peer,
                        protocol,
                        port,
                    };
                    let verdict = Verdicted {
                        is_allowed: judgement.reason.verdict() == Verdict::Allow,
                        rule: judgement.rule,
                    };
                    verdicts.insert(packet, verdict);
                }
            }
        }
    }
    assert_eq!(
        tables.default_rows_missed.get(),
        0,
        "a set has no default row"
    );
    verdicts
}

/// What a connection between an endpoint and a peer is stamped with.
pub(crate) fn stamps(tables: &Tables) -> BTreeMap<(u32, IpAddr), (u32, u32)> {
    let mut stamps = BTreeMap::new();
    for (ifindex, word) in &tables.endpoints {
        for peer in world::addresses() {
            let bucket = peer_bucket(Address::from(peer));
            let stamp = (word.revision, tables.peer_revision(bucket));
            stamps.insert((*ifindex, peer), stamp);
        }
    }
    stamps
}

/// How much each map holds.
pub(crate) fn sizes(tables: &Tables) -> [usize; 7] {
    [
        tables.verdicts.len(),
        tables.ports.len(),
        tables.peers.len(),
        tables.prefix_rows().count(),
        tables.endpoints.len(),
        tables.slots.len(),
        tables.services.len(),
    ]
}

const FIRST_IFINDEX: u32 = 10;

pub(crate) fn ifindex(pod: usize) -> u32 {
    FIRST_IFINDEX + u32::try_from(pod).unwrap()
}

fn local(pod: usize) -> LocalEndpoint {
    LocalEndpoint {
        uid: uid(pod),
        ifindex: ifindex(pod),
        addresses: Vec::new(),
        attached: 7,
        fails_open: false,
    }
}

pub(crate) struct Node {
    pub(crate) engine: Engine,
    pub(crate) tables: Tables,
    pub(crate) now: Duration,
    options: Options,
    /// Local pods as they were last seen alive while attached.
    pub(crate) identities: HashMap<u32, Pod>,
    attached: BTreeMap<u32, usize>,
}

impl Node {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            engine: Engine::new(options),
            tables: Tables::default(),
            now: Duration::from_secs(100),
            options,
            identities: HashMap::default(),
            attached: BTreeMap::new(),
        }
    }

    pub(crate) fn happen(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::Change(change) => {
                    let _touched = self.engine.apply(change.clone());
                }
                Event::Relist(name, place, peers) => self.relist(name, *place, peers),
                Event::Attach(pod) => {
                    let endpoint = local(*pod);
                    self.attached.insert(endpoint.ifindex, *pod);
                    self.engine.attach(endpoint);
                }
                Event::Detach(pod) => {
                    let ifindex = ifindex(*pod);
                    self.attached.remove(&ifindex);
                    self.identities.remove(&ifindex);
                    self.engine.detach(ifindex);
                }
            }
            self.identify();
        }
    }

    fn relist(&mut self, name: &ObjectName, place: usize, peers: &[Peer]) {
        let Some(policy) = self.engine.cluster().policy(name) else {
            return;
        };
        let mut policy = Policy::clone(policy);
        let rules = policy.ingress.len() + policy.egress.len();
        let mut all = policy.ingress.iter_mut().chain(&mut policy.egress);
        if let Some(rule) = all.nth(place % rules.max(1)) {
            rule.peers = Peers::Any(peers.to_vec());
        }
        let _touched = self.engine.apply(Change::Policy(Box::new(policy)));
    }

    fn identify(&mut self) {
        for (ifindex, pod) in &self.attached {
            if let Some(pod) = self.engine.cluster().pod(&uid(*pod))
                && pod.phase != Phase::Completed
                && !pod.host_network
            {
                self.identities.insert(*ifindex, Pod::clone(pod));
            }
        }
    }

    /// Plans and carries out until there is nothing more to do now.
    pub(crate) fn settle_in_steps(&mut self) -> Result<(), Refused> {
        while let Some(plan) = self.engine.plan(self.now)? {
            self.tables.apply_all(&plan.writes);
            self.engine.written(self.now);
        }
        Ok(())
    }

    /// Plans and carries out.
    pub(crate) fn settle(&mut self) -> Result<(), TestCaseError> {
        match self.engine.plan(self.now) {
            Err(refused) => return Err(TestCaseError::fail(refused.to_string())),
            Ok(None) => {}
            Ok(Some(plan)) => {
                self.tables.apply_all(&plan.writes);
                self.engine.written(self.now);
            }
        }
        let again = self.engine.plan(self.now);
        prop_assert_eq!(again, Ok(None), "settled, yet there is more to do");
        Ok(())
    }

    /// Compacts, and lets everything rest and go.
    pub(crate) fn settle_down(&mut self) -> Result<(), TestCaseError> {
        self.engine.compact();
        self.settle()?;
        for _ in 0..3 {
            self.now += Duration::from_secs(3);
            self.settle()?;
        }
        prop_assert_eq!(self.engine.next_deadline(), None);
        Ok(())
    }

    /// Every policy goes.
    pub(crate) fn forget_policies(&mut self) {
        let policies = self.engine.cluster().policies();
        let gone = policies.map(|policy| Change::PolicyGone(policy.name.clone()));
        let gone: Vec<Event> = gone.map(Event::Change).collect();
        self.happen(&gone);
    }

    /// Everything goes: pods, policies, namespaces, endpoints.
    pub(crate) fn forget_everything(&mut self) {
        self.forget_policies();
        let cluster = self.engine.cluster();
        let pods = cluster.pods().map(|pod| Change::PodGone(pod.uid.clone()));
        let namespaces = cluster
            .namespaces()
            .map(|namespace| Change::NamespaceGone(Arc::clone(&namespace.name)));
        let services = cluster.services();
        let services = services.map(|service| Change::ServiceGone(service.name.clone()));
        let slices = cluster.endpoint_slices();
        let slices = slices.map(|slice| Change::EndpointSliceGone(slice.name.clone()));
        let changes = pods.chain(namespaces).chain(services).chain(slices);
        let changes: Vec<Event> = changes.map(Event::Change).collect();
        self.happen(&changes);
        let detached: Vec<Event> = self
            .attached
            .values()
            .map(|pod| Event::Detach(*pod))
            .collect();
        self.happen(&detached);
    }

    /// The next agent, with the maps this one leaves, the same objects and interfaces.
    pub(crate) fn restarted(&self) -> Self {
        let mut next = Self {
            engine: Engine::adopt(self.options, &self.tables),
            tables: self.tables.clone(),
            ..Self::new(self.options)
        };
        next.happen(&self.objects());
        next
    }

    /// A node that never had another state than this one.
    pub(crate) fn fresh(&self) -> Result<Self, TestCaseError> {
        let mut scratch = Self::new(self.options);
        scratch.happen(&self.objects());
        scratch.settle()?;
        scratch.settle_down()?;
        Ok(scratch)
    }

    fn objects(&self) -> Vec<Event> {
        let cluster = self.engine.cluster();
        let pods = cluster
            .pods()
            .map(|pod| Change::Pod(Box::new(Pod::clone(pod))));
        let policies = cluster
            .policies()
            .map(|policy| Change::Policy(Box::new(Policy::clone(policy))));
        let namespaces = cluster
            .namespaces()
            .map(|namespace| Change::Namespace(namespace.clone()));
        let services = cluster
            .services()
            .map(|service| Change::Service(Box::new(service.clone())));
        let slices = cluster
            .endpoint_slices()
            .map(|slice| Change::EndpointSlice(Box::new(slice.clone())));
        let changes = namespaces.chain(pods).chain(policies);
        let changes = changes.chain(services).chain(slices).map(Event::Change);
        changes
            .chain(self.attached.values().map(|pod| Event::Attach(*pod)))
            .collect()
    }

    /// True when no endpoint lives on by what was known of its pod earlier.
    pub(crate) fn knows_every_pod(&self) -> bool {
        self.identities.iter().all(|(ifindex, known)| {
            let uid = uid(self.attached[ifindex]);
            self.engine
                .cluster()
                .pod(&uid)
                .is_some_and(|pod| **pod == *known)
        })
    }

    /// What is behind each virtual address.
    pub(crate) fn frontends(&self) -> Frontends {
        let cluster = self.engine.cluster();
        let addresses = world::addresses().into_iter();
        addresses
            .map(|address| (address, cluster.frontends(address)))
            .collect()
    }

    /// The pod each address belongs to.
    pub(crate) fn owners(&self) -> BTreeMap<IpAddr, PodUid> {
        let owner = |address: IpAddr| {
            let owner = self.engine.cluster().owner_of(address)?;
            Some((address, owner.uid.clone()))
        };
        world::addresses().into_iter().filter_map(owner).collect()
    }

    /// The slot of each published endpoint. A new slot is a new endpoint.
    pub(crate) fn published(&self) -> BTreeMap<u32, u32> {
        let slot = |(ifindex, word): (&u32, &agent_common::maps::EndpointWord)| {
            (*ifindex, self.tables.configs[&word.config_row].slot)
        };
        self.tables.endpoints.iter().map(slot).collect()
    }

    /// Whose slot each published endpoint has.
    pub(crate) fn slots(&self) -> BTreeMap<u32, (String, u32)> {
        let named = |(ifindex, slot): (u32, u32)| {
            let key = NameKey {
                kind: NAME_SLOT,
                id: slot,
            };
            (ifindex, (self.tables.names[&key].clone(), slot))
        };
        self.published().into_iter().map(named).collect()
    }

    /// True for a port of a virtual address with more kinds of backends than its row can tell: closed
    /// to whom policy isolates, whatever it says of each.
    pub(crate) fn has_too_many_kinds(&self, address: IpAddr, protocol: u8, port: u16) -> bool {
        let key = ServiceKey {
            address: Address::from(address),
            port,
            protocol,
            reserved: 0,
        };
        let row = self.tables.services.get(&key);
        row.is_some_and(|row| row.count == SERVICE_MANY)
    }

    /// Verdicts and deciding rules are those of the specification; ids are reserved and named.
    pub(crate) fn check_against_specification(&self) -> Result<(), TestCaseError> {
        let cluster = self.engine.cluster();
        let verdicts = verdicts(&self.tables);
        let published: Vec<u32> = self.tables.endpoints.keys().copied().collect();
        let expected: Vec<u32> = self
            .attached
            .keys()
            .filter(|ifindex| self.identities.contains_key(*ifindex))
            .copied()
            .collect();
        prop_assert_eq!(published, expected, "published endpoints");
        for (packet, verdict) in &verdicts {
            let pod = &self.identities[&packet.ifindex];
            if pod.addresses.contains(&packet.peer)
                || self.has_too_many_kinds(packet.peer, packet.protocol, packet.port)
            {
                continue;
            }
            let wanted = specified(cluster, pod, packet);
            prop_assert_eq!(
                verdict.is_allowed,
                wanted.is_allowed(),
                "{:?}, {:?}",
                packet,
                wanted
            );
            let rule = self.engine.rule_ref(verdict.rule).cloned();
            prop_assert_eq!(&rule, &wanted.rule, "rule of {:?}", packet);
        }
        let next = |kind: IdKind| self.tables.ids[kind as usize];
        for (key, row) in &self.tables.verdicts {
            prop_assert!(u64::from(key.set) < next(IdKind::Set));
            prop_assert!(u64::from(key.class) < next(IdKind::Class).max(1));
            prop_assert!(u64::from(row.function) < next(IdKind::Function).max(1));
        }
        for word in self.tables.endpoints.values() {
            prop_assert!(u64::from(word.revision) < next(IdKind::Revision));
        }
        Ok(())
    }
}

fn specified(cluster: &Cluster, pod: &Pod, packet: &Packet) -> evaluate::Decision {
    evaluate::judge(
        cluster,
        pod,
        packet.direction,
        packet.peer,
        Protocol(packet.protocol),
        packet.port,
    )
}

/// A local pod that one policy isolates, then the policy is gone.
pub(crate) fn isolating_then_open() -> [Vec<Event>; 2] {
    isolating_many_then_open(1)
}

/// A pod without labels, with an address of its own.
pub(crate) fn plain_pod(index: usize) -> Pod {
    Pod {
        addresses: vec![Ipv4Addr::from(0x0a00_0001 + u32::try_from(index).unwrap()).into()],
        ..Pod::new(uid(index), ObjectName::new("a", format!("pod-{index}")))
    }
}

/// Isolates every pod of the namespace, and admits what the rules do.
fn isolating(ingress: Vec<Rule>) -> Policy {
    Policy {
        name: ObjectName::new("a", "p"),
        pods: Selector::EVERYTHING,
        isolates_ingress: true,
        isolates_egress: false,
        ingress,
        egress: Vec::new(),
        annotations: Labels::new(),
    }
}

/// A local pod that admits its namespace's, one of which gives its address to another of the same
/// labels; and the address.
pub(crate) fn taken_over() -> ([Vec<Event>; 2], IpAddr) {
    let rule = Rule {
        peers: Peers::Any(vec![Peer::Pods {
            namespaces: NamespaceScope::Own,
            pods: Selector::EVERYTHING,
        }]),
        ports: Ports::All,
    };
    let before = plain_pod(1);
    let address = before.addresses[0];
    let heir = Pod {
        addresses: vec![address],
        created: 1,
        ..plain_pod(2)
    };
    let change = |pod: Pod| Event::Change(Change::Pod(Box::new(pod)));
    let policy = Event::Change(Change::Policy(Box::new(isolating(vec![rule]))));
    let first = vec![
        change(plain_pod(0)),
        change(before),
        policy,
        Event::Attach(0),
    ];
    ([first, vec![change(heir)]], address)
}

/// A local pod that admits some ranges.
pub(crate) fn admitting_ranges() -> Vec<Event> {
    let pod = Event::Change(Change::Pod(Box::new(plain_pod(0))));
    vec![pod, Event::Attach(0), with_ranges(&[])]
}

/// The same pod's policy, which names these ranges beside two others.
pub(crate) fn with_ranges(ranges: &[&str]) -> Event {
    let ranges = ["192.0.2.0/24", "198.51.100.0/24"].iter().chain(ranges);
    let ranges = ranges.map(|range| Peer::Block {
        cidr: range.parse().unwrap(),
        except: Vec::new(),
    });
    let rule = Rule {
        peers: Peers::Any(ranges.collect()),
        ports: Ports::All,
    };
    Event::Change(Change::Policy(Box::new(isolating(vec![rule]))))
}

/// So many local pods that one policy isolates, then the policy is gone.
pub(crate) fn isolating_many_then_open(pods: usize) -> [Vec<Event>; 2] {
    let policy = isolating(Vec::new());
    let gone = Change::PolicyGone(policy.name.clone());
    let all = (0..pods).map(|index| Change::Pod(Box::new(plain_pod(index))));
    let changes = all.chain([Change::Policy(Box::new(policy))]);
    let attached = (0..pods).map(Event::Attach);
    let first = changes.map(Event::Change).chain(attached).collect();
    [first, vec![Event::Change(gone)]]
}
