//! What a plan has to do beyond writing the new beside the old: which moving keys need a class of
//! their own while endpoints flip, who is judged differently, and who has to be judged again.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use agent_common::Address;
use agent_common::maps::{PortFunction, Service, VerdictKey, peer_bucket};

use crate::compile::Compiler;
use crate::compile::peer_classes::{ClassId, Token};
use crate::compile::policy_sets::SetId;
use crate::compile::port_functions::FunctionId;
use crate::compile::prefixes::{Net, Row};
use crate::compile::services::{self, Key};
use crate::hash::HashMap;
use crate::model::Protocol;

/// A key's class before and after.
pub(super) type Change = (ClassId, ClassId);

/// Rows of an earlier agent, by class: content unknown, verdicts copied as they are.
#[derive(Clone, Debug, Default)]
pub(super) struct Foreign {
    pub(super) rows: HashMap<ClassId, Vec<(SetId, PortFunction)>>,
    pub(super) sets: BTreeSet<SetId>,
}

/// Which class a moving key has while endpoints flip.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Meanwhile {
    /// Its old one: no set that endpoints flip to tells them apart.
    Old,
    /// Its new one already: no other set in force tells them apart.
    New,
    /// One of its own: old for old sets, new for the sets that endpoints flip to.
    Own,
}

/// A row of a transitional class.
#[derive(Clone, Copy, Debug)]
pub(super) struct TransitionalRow {
    pub(super) key: VerdictKey,
    pub(super) row: PortFunction,
    /// The compiled function behind it; `None` when it is an earlier agent's.
    pub(super) function: Option<FunctionId>,
}

/// Everything that moves in one plan.
#[derive(Debug)]
pub(super) struct Transition<'a> {
    compiler: &'a Compiler,
    foreign: Option<&'a Foreign>,
    /// Rows of `PEERS_EXACT` that differ from the map.
    pub(super) peers: Vec<(Address, Row)>,
    /// Addresses whose row stays, for another pod.
    taken_over: Vec<Address>,
    /// Rows of `PEERS_CIDR` that differ from the map.
    pub(super) prefixes: Vec<(Net, Row)>,
    /// Rows of SERVICES that may differ from the map.
    pub(super) services: Vec<ServiceRow>,
    /// Sets that published endpoints flip to.
    targets: BTreeSet<SetId>,
    /// How many (endpoint, direction) pairs leave a set.
    leaving: HashMap<SetId, usize>,
    /// Distinct changes of class.
    changes: BTreeSet<Change>,
    /// Those of prefixes.
    prefix_changes: BTreeSet<Change>,
    /// How many keys leave a class.
    departures: BTreeMap<ClassId, usize>,
    revised: RefCell<HashMap<(SetId, SetId), bool>>,
}

/// A row of SERVICES that may differ from the map.
#[derive(Clone, Debug)]
pub(super) struct ServiceRow {
    pub(super) key: Key,
    /// Nothing is to be said of the port any more.
    is_gone: bool,
    backends: Vec<BackendRow>,
    /// Those that were behind it when it was written last.
    before: Vec<BackendRow>,
    /// Some of those are not behind it any more.
    has_lost: bool,
}

/// A backend of a [`ServiceRow`].
#[derive(Clone, Copy, Debug)]
pub(super) struct BackendRow {
    port: u16,
    /// The class its address is judged by now.
    old: ClassId,
    /// The class its address is to be judged by.
    new: ClassId,
}

impl ServiceRow {
    fn all(compiler: &Compiler) -> Vec<Self> {
        let moved = &compiler.moved;
        let keys = compiler.services.moved(&moved.addresses, &moved.prefixes);
        let keys = keys.into_iter();
        keys.map(|key| Self::of(compiler, key)).collect()
    }

    fn of(compiler: &Compiler, key: Key) -> Self {
        let rows = |backends: &[(Address, u16)]| {
            let backends = backends.iter();
            let backends = backends.map(|(address, port)| {
                let Row { old, new, .. } = compiler.addresses.row(*address, &compiler.prefixes).row;
                BackendRow {
                    port: *port,
                    old,
                    new,
                }
            });
            backends.collect()
        };
        let (before, wanted) = (
            compiler.services.before(key),
            compiler.services.backends(key),
        );
        let backends = wanted.unwrap_or_default();
        Self {
            key,
            is_gone: wanted.is_none(),
            backends: rows(backends),
            before: rows(before),
            // Both are in order.
            has_lost: before
                .iter()
                .any(|backend| backends.binary_search(backend).is_err()),
        }
    }

    /// The row, its backends having classes by their change; `None` when it is to go.
    pub(super) fn with(&self, class: impl Fn(Change) -> ClassId) -> Option<Service> {
        let backends = self.backends.iter();
        let backends: Vec<(ClassId, u16)> = backends
            .map(|backend| (class((backend.old, backend.new)), backend.port))
            .collect();
        (!self.is_gone).then(|| services::row(&backends))
    }
}

impl<'a> Transition<'a> {
    pub(super) fn new(compiler: &'a Compiler, foreign: Option<&'a Foreign>) -> Self {
        let moved = &compiler.moved;
        let mut peers = Vec::with_capacity(moved.addresses.len());
        let mut taken_over = Vec::new();
        for address in &moved.addresses {
            let peer = compiler.addresses.row(*address, &compiler.prefixes);
            if peer.has_new_owner {
                taken_over.push(*address);
            }
            if peer.row.differs() {
                peers.push((*address, peer.row));
            }
        }
        let prefixes = moved
            .prefixes
            .iter()
            .map(|net| (*net, compiler.prefixes.row(*net)));
        let mut this = Self {
            compiler,
            foreign,
            peers,
            taken_over,
            prefixes: prefixes.filter(|(_, row)| row.differs()).collect(),
            services: ServiceRow::all(compiler),
            targets: BTreeSet::new(),
            leaving: HashMap::default(),
            changes: BTreeSet::new(),
            prefix_changes: BTreeSet::new(),
            departures: BTreeMap::new(),
            revised: RefCell::default(),
        };
        let moves = this.prefixes.iter();
        this.prefix_changes = moves.map(|(_, row)| (row.old, row.new)).collect();
        let rows = this.peers.iter().map(|(_, row)| *row);
        for row in rows.chain(this.prefixes.iter().map(|(_, row)| *row)) {
            this.changes.insert((row.old, row.new));
            if let Some(present) = row.present {
                *this.departures.entry(present).or_default() += 1;
            }
        }
        this
    }

    /// A published endpoint goes from one set to another in one direction.
    pub(super) fn flip(&mut self, from: SetId, to: SetId) {
        self.leave(from);
        if to != SetId::NOT_ISOLATED {
            self.targets.insert(to);
        }
    }

    /// A published endpoint is withdrawn: one set in force less.
    pub(super) fn leave(&mut self, from: SetId) {
        *self.leaving.entry(from).or_default() += 1;
    }

    /// True when published endpoints flip to some set.
    pub(super) fn has_targets(&self) -> bool {
        !self.targets.is_empty()
    }

    /// What each change of class needs while endpoints flip.
    pub(super) fn meanwhile(&self) -> BTreeMap<Change, Meanwhile> {
        let changes = self.changes.iter();
        changes
            .map(|change| (*change, self.meanwhile_of(*change)))
            .collect()
    }

    fn meanwhile_of(&self, (old, new): Change) -> Meanwhile {
        if self.targets.is_empty() || old == new {
            return Meanwhile::Old;
        }
        if self.is_foreign(old) {
            return Meanwhile::Own;
        }
        let (mut targets_agree, mut others_agree) = (true, true);
        for set in self.concerned((old, new)) {
            if self.compiler.function(set, old) == self.compiler.function(set, new) {
                continue;
            }
            if self.targets.contains(&set) {
                targets_agree = false;
            } else if self.is_published(set) {
                others_agree = false;
            }
        }
        if targets_agree {
            Meanwhile::Old
        } else if others_agree {
            Meanwhile::New
        } else {
            Meanwhile::Own
        }
    }

    /// The rows of a transitional class.
    pub(super) fn rows(&self, (old, new): Change, class: ClassId) -> Vec<TransitionalRow> {
        let key = |set: SetId| VerdictKey {
            set: set.0,
            class: class.0,
        };
        let tokens = |class| self.compiler.classes.tokens(class).iter().copied();
        let mut rows = Vec::new();
        for set in self.compiler.sets_of(tokens(old).chain(tokens(new))) {
            let from = if self.targets.contains(&set) {
                new
            } else if self.is_published(set) {
                old
            } else {
                continue;
            };
            let function = self.compiler.function(set, from);
            if let Some(function) = function
                && self.compiler.function(set, ClassId::NOTHING) != Some(function)
            {
                rows.push(TransitionalRow {
                    key: key(set),
                    row: self.compiler.functions.row(function),
                    function: Some(function),
                });
            }
        }
        let copied = self.foreign.and_then(|foreign| foreign.rows.get(&old));
        rows.extend(
            copied
                .into_iter()
                .flatten()
                .map(|(set, row)| TransitionalRow {
                    key: key(*set),
                    row: *row,
                    function: None,
                }),
        );
        rows
    }

    /// True when an endpoint that goes from one set to another meets a different verdict for some
    /// packet once the plan is carried out.
    pub(super) fn is_revised(&self, from: SetId, to: SetId) -> bool {
        if let Some(known) = self.revised.borrow().get(&(from, to)) {
            return *known;
        }
        let is_revised = self.judge_revision(from, to);
        self.revised.borrow_mut().insert((from, to), is_revised);
        is_revised
    }

    fn judge_revision(&self, from: SetId, to: SetId) -> bool {
        if self
            .foreign
            .is_some_and(|foreign| foreign.sets.contains(&from))
        {
            return true;
        }
        let differs = |old, new| self.compiler.judges_differently((from, old), (to, new));
        if self.changes.iter().any(|(old, new)| differs(*old, *new)) {
            return true;
        }
        let is_met = |class: ClassId| self.is_kept(class) && differs(class, class);
        if differs(ClassId::NOTHING, ClassId::NOTHING) {
            // Whoever has no row of its own meets this, nearly always some address no key lists.
            return !self.compiler.prefixes.is_everything_covered()
                || is_met(ClassId::NOTHING)
                || self.compiler.classes.ids().any(is_met);
        }
        let sets = [from, to].into_iter();
        let sets = sets.filter_map(|set| self.compiler.sets.get(set));
        let mut classes = sets.flat_map(|set| set.rows.iter().copied());
        classes.any(is_met)
    }

    /// True when an endpoint that keeps its set judges the change differently: connections of
    /// the peer have to be judged again.
    fn is_stamped(&self, (old, new): Change) -> bool {
        self.concerned((old, new)).into_iter().any(|set| {
            self.is_kept_in_force(set) && self.compiler.judges_differently((set, old), (set, new))
        })
    }

    /// True when some published endpoint keeps the set.
    fn is_kept_in_force(&self, set: SetId) -> bool {
        let published = self.compiler.sets.get(set).map_or(0, |set| set.published);
        let leaving = self.leaving.get(&set).copied().unwrap_or_default();
        published > leaving
    }

    /// True when flows to a Service have to be judged again: some of those that were behind it are
    /// other peers now, to an endpoint that keeps its set; or nobody was, and flows were let through to
    /// where there is somebody now. Else what comes or goes behind one is of no concern to flows that the
    /// Service proxy has placed; but it places UDP's anew when their backend goes.
    fn is_service_stamped(&self, service: &ServiceRow) -> bool {
        if service.before.is_empty() {
            return !service.backends.is_empty();
        }
        let row = |backends: &[BackendRow], class: fn(&BackendRow) -> ClassId| {
            let kinds = backends
                .iter()
                .map(|backend| (class(backend), backend.port));
            services::row(&kinds.collect::<Vec<_>>())
        };
        let before = row(&service.before, |backend| backend.old);
        let is_udp = Protocol(service.key.protocol) == Protocol::UDP;
        let after = if is_udp && service.has_lost && !service.is_gone {
            row(&service.backends, |backend| backend.new)
        } else {
            row(&service.before, |backend| backend.new)
        };
        if before == after {
            return false;
        }
        let classes = before.backends.iter().chain(&after.backends);
        let tokens = classes.flat_map(|backend| {
            let class = ClassId(backend.class);
            self.compiler.classes.tokens(class).iter().copied()
        });
        let concerned = self.compiler.sets_of(tokens);
        let passes = |set, row| {
            let protocol = service.key.protocol;
            self.compiler.passes_to_service(set, protocol, row)
        };
        concerned
            .into_iter()
            .any(|set| self.is_kept_in_force(set) && passes(set, &before) != passes(set, &after))
    }

    /// Buckets of peers whose connections have to be judged again. Prefixes are not asked: whoever
    /// judges one differently gets a new revision.
    pub(super) fn buckets(&self) -> BTreeSet<u16> {
        let mut judged: BTreeMap<Change, bool> = BTreeMap::new();
        let mut buckets = BTreeSet::new();
        for (address, row) in &self.peers {
            let change = (row.old, row.new);
            let is_stamped = *judged
                .entry(change)
                .or_insert_with(|| self.is_stamped(change));
            if is_stamped {
                buckets.insert(peer_bucket(*address));
            }
        }
        buckets.extend(self.taken_over.iter().map(|address| peer_bucket(*address)));
        let services = self.services.iter();
        let rejudged = services.filter(|service| self.is_service_stamped(service));
        buckets.extend(rejudged.map(|service| peer_bucket(service.key.address)));
        buckets
    }

    /// Sets in force that judge some prefix differently once the plan is carried out: whoever keeps
    /// one of them has to judge its connections again. Of peers' buckets a prefix may have them all.
    pub(super) fn redrawn(&self) -> BTreeSet<SetId> {
        let mut redrawn = BTreeSet::new();
        for change in &self.prefix_changes {
            let (old, new) = *change;
            let differs = |set: &SetId| {
                self.is_published(*set)
                    && self.compiler.judges_differently((*set, old), (*set, new))
            };
            redrawn.extend(self.concerned(*change).into_iter().filter(differs));
        }
        redrawn
    }

    /// Sets that can tell the two classes apart.
    fn concerned(&self, (old, new): Change) -> BTreeSet<SetId> {
        let old: BTreeSet<Token> = self.compiler.classes.tokens(old).iter().copied().collect();
        let new: BTreeSet<Token> = self.compiler.classes.tokens(new).iter().copied().collect();
        self.compiler
            .sets_of(old.symmetric_difference(&new).copied())
    }

    fn is_published(&self, set: SetId) -> bool {
        self.compiler
            .sets
            .get(set)
            .is_some_and(|set| set.published > 0)
    }

    fn is_foreign(&self, class: ClassId) -> bool {
        class != ClassId::NOTHING && self.compiler.classes.get(class).is_none()
    }

    fn is_kept(&self, class: ClassId) -> bool {
        let departures = self.departures.get(&class).copied().unwrap_or_default();
        self.compiler.classes.present(class) > departures
    }
}
