//! The host's side of the packet path: what BPF maps are in the kernel, as plain collections.
//!
//! agent-common's tests use this very file, so what they prove and what `differential.rs` compares
//! with the kernel is one machine.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::rc::Rc;

use agent_common::classify::{Arrival, DeniedRow, FlowEntry, FlowTables, Outcome, Route, classify};
use agent_common::event::FlowEvent;
use agent_common::judge::PolicyTables;
use agent_common::maps::{
    Budget, Config, Connection, Counter, Denied, DeniedKey, FlowKey, Fragment, FragmentKey,
    PeerEntry, PortFunction, PortVerdict, RuleHit, Service, ServiceKey, Settings, Traffic,
    VerdictKey, dropped_index, passed_index,
};
use agent_common::{Address, Direction, Reason};

/// Policy tables `P` with the state of flows beside them.
#[derive(Debug)]
pub struct Machine<P> {
    /// What user space has written.
    pub policy: P,
    /// The interfaces by which the node takes what comes in for an address; nowhere for others.
    pub routes: HashMap<Address, u32>,
    /// The clock, in jiffies.
    pub now: Cell<u64>,
    /// CONNTRACK, all slots.
    pub connections: RefCell<HashMap<FlowKey, Rc<Cell<Connection>>>>,
    /// PENDING.
    pub pending: RefCell<HashMap<FlowKey, Rc<Cell<Connection>>>>,
    /// Room in PENDING and in CONNTRACK.
    pub flow_capacity: usize,
    /// FRAGMENTS.
    pub fragments: RefCell<HashMap<FragmentKey, Fragment>>,
    /// DENIED.
    pub denied: RefCell<HashMap<DeniedKey, Rc<Cell<Denied>>>>,
    /// Room in DENIED.
    pub denied_capacity: usize,
    /// BUDGETS.
    pub budgets: RefCell<HashMap<u32, Budget>>,
    /// PASSED, by row.
    pub passed: RefCell<HashMap<u32, Traffic>>,
    /// DROPPED, by row.
    pub dropped: RefCell<HashMap<u32, Traffic>>,
    /// `RULE_HITS`, by row.
    pub rule_hits: RefCell<HashMap<u32, RuleHit>>,
    /// COUNTERS.
    pub counters: RefCell<HashMap<Counter, u64>>,
    /// EVENTS.
    pub events: RefCell<Vec<FlowEvent>>,
    /// Room in EVENTS.
    pub event_capacity: usize,
}

impl<P: PolicyTables> Machine<P> {
    /// A machine without flows.
    pub fn new(policy: P) -> Self {
        Self {
            policy,
            routes: HashMap::new(),
            now: Cell::new(1 << 33),
            connections: RefCell::default(),
            pending: RefCell::default(),
            flow_capacity: usize::MAX,
            fragments: RefCell::default(),
            denied: RefCell::default(),
            denied_capacity: usize::MAX,
            budgets: RefCell::default(),
            passed: RefCell::default(),
            dropped: RefCell::default(),
            rule_hits: RefCell::default(),
            counters: RefCell::default(),
            events: RefCell::default(),
            event_capacity: usize::MAX,
        }
    }

    /// Sends a frame through one hook.
    pub fn classify(&self, at: Arrival, frame: &[u8]) -> Outcome {
        classify(self, frame, &at)
    }

    /// Lets time pass.
    pub fn advance(&self, jiffies: u64) {
        self.now.set(self.now.get() + jiffies);
    }

    /// A row of COUNTERS.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters
            .borrow()
            .get(&counter)
            .copied()
            .unwrap_or_default()
    }

    /// PASSED of a slot and direction.
    pub fn passed_of(&self, slot: u32, direction: Direction) -> Traffic {
        let row = passed_index(slot, direction.index());
        self.passed.borrow().get(&row).copied().unwrap_or_default()
    }

    /// DROPPED of a slot, direction and reason.
    pub fn dropped_of(&self, slot: u32, direction: Direction, reason: Reason) -> Traffic {
        let row = dropped_index(slot, direction.index(), reason.number());
        self.dropped.borrow().get(&row).copied().unwrap_or_default()
    }

    /// What packets have left behind so far.
    pub fn remains(&self) -> Remains {
        Remains {
            connections: values(&self.connections),
            pending: values(&self.pending),
            fragments: self.fragments.borrow().clone(),
            denied: values(&self.denied),
            budgets: self.budgets.borrow().clone(),
            passed: self.passed.borrow().clone(),
            dropped: self.dropped.borrow().clone(),
            rule_hits: self.rule_hits.borrow().clone(),
            counters: self.counters.borrow().clone(),
            events: self.events.borrow().clone(),
        }
    }

    /// Removes and returns the events so far.
    pub fn take_events(&self) -> Vec<FlowEvent> {
        self.events.take()
    }
}

/// All that packets have left behind, for comparing one machine with another.
#[derive(Debug, Eq, PartialEq)]
pub struct Remains {
    connections: HashMap<FlowKey, Connection>,
    pending: HashMap<FlowKey, Connection>,
    fragments: HashMap<FragmentKey, Fragment>,
    denied: HashMap<DeniedKey, Denied>,
    budgets: HashMap<u32, Budget>,
    passed: HashMap<u32, Traffic>,
    dropped: HashMap<u32, Traffic>,
    rule_hits: HashMap<u32, RuleHit>,
    counters: HashMap<Counter, u64>,
    events: Vec<FlowEvent>,
}

impl<P: PolicyTables> PolicyTables for Machine<P> {
    fn endpoint(&self, ifindex: u32) -> Option<(&Config, u32)> {
        self.policy.endpoint(ifindex)
    }

    fn peer_revision(&self, bucket: u16) -> u32 {
        self.policy.peer_revision(bucket)
    }

    fn peer_exact(&self, address: &Address) -> Option<PeerEntry> {
        self.policy.peer_exact(address)
    }

    fn peer_prefix(&self, address: &Address) -> Option<PeerEntry> {
        self.policy.peer_prefix(address)
    }

    fn verdict(&self, key: &VerdictKey) -> Option<&PortFunction> {
        self.policy.verdict(key)
    }

    fn port(&self, function: u32, protocol: u8, port: u16) -> Option<PortVerdict> {
        self.policy.port(function, protocol, port)
    }

    fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.policy.service(key)
    }

    fn settings(&self) -> &Settings {
        self.policy.settings()
    }

    fn default_row_missing(&self) {
        self.count(Counter::DefaultRowMissing);
    }
}

/// A flow's entry, shared with the collection it is in.
#[derive(Debug)]
pub struct Entry(Rc<Cell<Connection>>);

impl Entry {
    fn change(&self, change: impl FnOnce(&mut Connection)) {
        let mut connection = self.0.get();
        change(&mut connection);
        self.0.set(connection);
    }
}

impl FlowEntry for Entry {
    fn read(&self) -> Connection {
        self.0.get()
    }

    fn touch(&self, now: u32) {
        self.change(|entry| entry.last_seen = now);
    }

    fn advance(&self, state: u8, flags: u16) {
        self.change(|entry| {
            entry.state = state;
            entry.flags = flags;
        });
    }

    fn stamp(&self, revision: u32, peer_revision: u32, rule: u32, reason: u8) {
        self.change(|entry| {
            entry.revision = revision;
            entry.peer_revision = peer_revision;
            entry.rule = rule;
            entry.reason = reason;
        });
    }
}

/// A row of DENIED, shared with its collection.
#[derive(Debug)]
pub struct Row(Rc<Cell<Denied>>);

impl DeniedRow for Row {
    fn add(&self, latest: &Denied) -> u64 {
        let row = self.0.get();
        self.0.set(Denied {
            packets: row.packets + 1,
            first: row.first,
            reported: row.reported,
            ..*latest
        });
        row.packets + 1
    }

    fn reported(&self) -> u32 {
        self.0.get().reported
    }

    fn set_reported(&self, now: u32) {
        self.0.set(Denied {
            reported: now,
            ..self.0.get()
        });
    }
}

impl<P: PolicyTables> FlowTables for Machine<P> {
    type Entry = Entry;
    type Row = Row;

    fn now(&self) -> u64 {
        self.now.get()
    }

    fn route(&self, _ifindex: u32, _source: &Address, destination: &Address) -> Route {
        let interface = self.routes.get(destination);
        interface.map_or(Route::Nowhere, |interface| Route::By(*interface))
    }

    fn connection(&self, flow: &FlowKey) -> Option<Entry> {
        self.connections.borrow().get(flow).cloned().map(Entry)
    }

    fn insert_connection(&self, flow: &FlowKey, connection: &Connection) -> bool {
        insert(&self.connections, self.flow_capacity, flow, connection)
    }

    fn pending(&self, flow: &FlowKey) -> Option<Entry> {
        self.pending.borrow().get(flow).cloned().map(Entry)
    }

    fn insert_pending(&self, flow: &FlowKey, connection: &Connection) -> bool {
        insert(&self.pending, self.flow_capacity, flow, connection)
    }

    fn delete_pending(&self, flow: &FlowKey) {
        self.pending.borrow_mut().remove(flow);
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.fragments.borrow().get(key).copied()
    }

    fn insert_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.fragments.borrow_mut().insert(*key, *fragment);
    }

    fn denied(&self, key: &DeniedKey) -> Option<Row> {
        self.denied.borrow().get(key).cloned().map(Row)
    }

    fn insert_denied(&self, key: &DeniedKey, row: &Denied) -> bool {
        let mut denied = self.denied.borrow_mut();
        if denied.contains_key(key) || denied.len() >= self.denied_capacity {
            return false;
        }
        denied.insert(*key, Rc::new(Cell::new(*row)));
        true
    }

    fn spend(&self, slot: u32, spend: impl FnOnce(Budget) -> Option<Budget>) -> bool {
        let mut budgets = self.budgets.borrow_mut();
        let row = budgets.entry(slot).or_default();
        match spend(*row) {
            Some(left) => {
                *row = left;
                true
            }
            None => false,
        }
    }

    fn passed(&self, slot: u32, direction: Direction, bytes: u32) {
        add(&self.passed, passed_index(slot, direction.index()), bytes);
    }

    fn dropped(&self, slot: u32, direction: Direction, reason: Reason, bytes: u32) {
        let row = dropped_index(slot, direction.index(), reason.number());
        add(&self.dropped, row, bytes);
    }

    fn begun(&self, row: u32, now: u64) {
        let mut hits = self.rule_hits.borrow_mut();
        let row = hits.entry(row).or_default();
        row.connections += 1;
        row.last_seen = now;
    }

    fn count(&self, counter: Counter) {
        *self.counters.borrow_mut().entry(counter).or_default() += 1;
    }

    fn report(&self, write: impl FnOnce(&mut FlowEvent)) -> bool {
        let mut events = self.events.borrow_mut();
        if events.len() >= self.event_capacity {
            return false;
        }
        let mut event = OLDER;
        write(&mut event);
        events.push(event);
        true
    }
}

fn values<K: Copy + Eq + Hash, V: Copy>(
    entries: &RefCell<HashMap<K, Rc<Cell<V>>>>,
) -> HashMap<K, V> {
    let entries = entries.borrow();
    let values = entries.iter().map(|(key, entry)| (*key, entry.get()));
    values.collect()
}

/// What lay in an event's place before it was written.
const OLDER: FlowEvent = zerocopy::transmute!([0xa5_u8; size_of::<FlowEvent>()]);

fn insert(
    entries: &RefCell<HashMap<FlowKey, Rc<Cell<Connection>>>>,
    capacity: usize,
    flow: &FlowKey,
    connection: &Connection,
) -> bool {
    let mut entries = entries.borrow_mut();
    if !entries.contains_key(flow) && entries.len() >= capacity {
        return false;
    }
    entries.insert(*flow, Rc::new(Cell::new(*connection)));
    true
}

fn add(rows: &RefCell<HashMap<u32, Traffic>>, row: u32, bytes: u32) {
    let mut rows = rows.borrow_mut();
    let traffic = rows.entry(row).or_default();
    traffic.packets += 1;
    traffic.bytes += u64::from(bytes);
}
