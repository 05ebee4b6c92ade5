//! The loop itself: what each event does, and the order of writing and attaching.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use agent_common::maps::{NAME_SLOT, NameKey};
use agent_policy::cluster::Touched;
use agent_policy::engine::{Engine, LocalEndpoint, Progress as Published};
use agent_policy::model::{ObjectName, PodUid};
use agent_policy::plan::{Plan, Summary};
use agent_policy::tables::Tables;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, info, warn};

use super::locals::{Decision, Locals};
use super::plans::{Backoff, Progress};
use super::{
    Endpoint, EndpointState, Event, Phase, Plans, Question, Timing, Unenforced, View, earlier,
    findings, settings,
};
use crate::config::{Config, Posture};
use crate::dataplane::{Dataplane, DataplaneError};
use crate::endpoints::{IfIndex, Interface, Sighting};
use crate::source::{Batch, Reported};

/// Plans written in one go; more follow at once, but events come first.
const PLANS_AT_ONCE: usize = 8;
/// Events taken in before a plan is made of them.
const EVENTS_AT_ONCE: usize = 1024;

/// Where events come from.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub(crate) objects: mpsc::Receiver<Batch>,
    pub(crate) sightings: mpsc::Receiver<Sighting>,
    pub(crate) questions: mpsc::Receiver<Question>,
    pub(crate) shutdown: oneshot::Receiver<()>,
}

/// A source has ended that never should.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the watch on {0} has ended; enforcement stays as it is, start the agent again")]
pub(crate) struct Lost(&'static str);

impl Inputs {
    /// Waits for the next event.
    async fn next(&mut self, deadline: Option<Instant>) -> Result<Event, Lost> {
        let deadline = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            batch = self.objects.recv() => batch.map(Event::Objects).ok_or(Lost("objects")),
            seen = self.sightings.recv() => seen.map(Event::Interfaces).ok_or(Lost("interfaces")),
            // Nobody can ask any more when every handle is gone; whoever holds none needs none.
            Some(question) = self.questions.recv() => Ok(Event::Ask(question)),
            () = deadline => Ok(Event::Deadline),
            // Dropping the other end means the same.
            _ = &mut self.shutdown => Ok(Event::Shutdown),
        }
    }

    /// The next event that is already waiting.
    fn waiting(&mut self) -> Option<Event> {
        if let Ok(batch) = self.objects.try_recv() {
            return Some(Event::Objects(batch));
        }
        self.sightings.try_recv().ok().map(Event::Interfaces)
    }
}

/// How far the loop is. Only [`Reconciler::settle`] leads from `Loading` to `Settled`, and nothing
/// is written or attached before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    /// Which first lists are here.
    Loading { objects: bool, interfaces: bool },
    /// Everything is known, the knobs are written, the first plan is not in force yet.
    Settled,
    /// The first plan is in force.
    Enforcing,
}

/// The state of the loop.
#[derive(Debug)]
pub(crate) struct Reconciler {
    config: Config,
    engine: Engine,
    dataplane: Dataplane,
    locals: Locals,
    endpoints: BTreeMap<IfIndex, Endpoint>,
    unenforced: Vec<Unenforced>,
    findings: Vec<Reported>,
    plans: Plans,
    started: SystemTime,
    clock: Instant,
    stage: Stage,
    progress: Progress,
    writing: Backoff,
    /// Interfaces that our programs are on, with the tick of the attachment (low 32 bits).
    attached: HashMap<IfIndex, u32>,
    /// Interfaces whose programs wait for their rows.
    unattached: BTreeSet<IfIndex>,
    attaching: Backoff,
    /// Interfaces that an earlier agent's programs are on, with whose they were.
    left: HashMap<IfIndex, (PodUid, ObjectName)>,
    /// When the oldest change was noticed that is not in force yet.
    noticed: Option<Instant>,
}

impl Reconciler {
    /// Takes up what an earlier agent left in the maps.
    pub(crate) fn new(config: Config, dataplane: Dataplane) -> Result<Self, DataplaneError> {
        let present = dataplane.present()?;
        let engine = Engine::adopt(settings::limits(&config, &dataplane), &present);
        let mut locals = Locals::new(config.node.clone());
        let mut attached = HashMap::new();
        let mut left = HashMap::new();
        for interface in dataplane.taken_up() {
            let ifindex = IfIndex(interface.ifindex);
            let (owner, since) = left_at(ifindex, &present);
            locals.take_up(ifindex, owner.0.clone());
            left.insert(ifindex, owner);
            // One that is only half on is attached again.
            if interface.is_whole() {
                attached.insert(ifindex, since);
            }
        }
        for kept in dataplane.kept_capacities() {
            warn!(
                map = kept.map,
                pinned = kept.pinned,
                wanted = kept.wanted,
                "the pinned map keeps its capacity; `picket uninstall` first, if it must change"
            );
        }
        Ok(Self {
            config,
            engine,
            dataplane,
            locals,
            endpoints: BTreeMap::new(),
            unenforced: Vec::new(),
            findings: Vec::new(),
            plans: Plans::default(),
            started: SystemTime::now(),
            clock: Instant::now(),
            stage: Stage::Loading {
                objects: false,
                interfaces: false,
            },
            progress: Progress::default(),
            writing: Backoff::default(),
            attached,
            unattached: BTreeSet::new(),
            attaching: Backoff::default(),
            left,
            noticed: None,
        })
    }

    /// Runs until told to stop. What is in force stays in force.
    pub(crate) async fn run(mut self, mut inputs: Inputs) -> Result<(), Lost> {
        loop {
            let mut event = inputs.next(self.deadline()).await?;
            for _ in 0..EVENTS_AT_ONCE {
                if self.take(event).is_break() {
                    return Ok(());
                }
                match inputs.waiting() {
                    Some(next) => event = next,
                    None => break,
                }
            }
            self.reconcile();
        }
    }

    fn take(&mut self, event: Event) -> std::ops::ControlFlow<()> {
        match event {
            Event::Objects(batch) => self.take_objects(batch),
            Event::Interfaces(sighting) => {
                self.notice(sighting.noticed);
                self.locals.sight(sighting);
                if let Stage::Loading { interfaces, .. } = &mut self.stage {
                    *interfaces = true;
                }
            }
            // What is due is looked at after every event.
            Event::Deadline => {}
            Event::Ask(Question(read)) => read(&self.view()),
            Event::Shutdown => return std::ops::ControlFlow::Break(()),
        }
        std::ops::ControlFlow::Continue(())
    }

    fn take_objects(&mut self, batch: Batch) {
        self.notice(batch.noticed);
        let mut touched = Touched::default();
        for change in batch.changes {
            touched.merge(self.engine.apply(change));
        }
        self.locals.touch(&touched, self.engine.cluster());
        findings::tell(&self.findings, &batch.findings);
        self.findings = batch.findings;
        if let Stage::Loading { objects, .. } = &mut self.stage {
            *objects = true;
        }
    }

    /// Something changed, so what failed may well succeed now.
    fn notice(&mut self, at: Instant) {
        self.noticed = earlier(self.noticed, Some(at));
        self.writing.reset();
        self.attaching.reset();
    }

    fn reconcile(&mut self) {
        if !self.settle() {
            return;
        }
        for decision in self.locals.decide(self.engine.cluster()) {
            match decision {
                Decision::Enforce {
                    interface,
                    uid,
                    pod,
                    is_new,
                } => self.enforce(interface, uid, pod, is_new),
                Decision::Orphan(ifindex) => self.orphan(ifindex),
                Decision::Remove(ifindex) => self.remove(ifindex),
            }
        }
        self.report_unenforced();
        self.write();
        self.attach_those_with_rows();
    }

    /// True once everything is known and the knobs are written.
    fn settle(&mut self) -> bool {
        match self.stage {
            Stage::Settled | Stage::Enforcing => return true,
            Stage::Loading {
                objects: true,
                interfaces: true,
            } => {}
            Stage::Loading { .. } => return false,
        }
        let settings = settings::settings(&self.config, self.dataplane.hz());
        match self.dataplane.put_settings(&settings) {
            Ok(()) => self.stage = Stage::Settled,
            Err(error) => {
                self.writing.fail(Instant::now());
                self.fail_writing(chain(&error));
            }
        }
        self.stage == Stage::Settled
    }

    fn enforce(&mut self, interface: Interface, uid: PodUid, pod: ObjectName, is_new: bool) {
        let ifindex = interface.ifindex;
        if is_new {
            // Closed until its rows are in: nothing is published for it yet.
            self.attach(ifindex, &interface.name);
        }
        let attached = match self.attached.get(&ifindex) {
            Some(since) => *since,
            None => self.now_in_jiffies(),
        };
        if !self.attached.contains_key(&ifindex) {
            self.unattached.insert(ifindex);
        }
        self.engine.attach(LocalEndpoint {
            uid: uid.clone(),
            ifindex: ifindex.0,
            // Those its object states: what a pod puts on its interface is not evidence.
            addresses: Vec::new(),
            attached,
            fails_open: self.config.posture == Posture::Open,
        });
        let before = self.endpoints.remove(&ifindex);
        let state = match before {
            Some(before) if before.uid == uid && before.state == EndpointState::Enforced => {
                EndpointState::Enforced
            }
            Some(_) | None => EndpointState::Pending,
        };
        self.endpoints.insert(
            ifindex,
            Endpoint {
                interface,
                uid,
                pod,
                state,
            },
        );
    }

    fn orphan(&mut self, ifindex: IfIndex) {
        self.engine.detach(ifindex.0);
        if !self.endpoints.contains_key(&ifindex)
            && let (Some(interface), Some((uid, pod))) =
                (self.locals.interface(ifindex), self.left.get(&ifindex))
        {
            let endpoint = Endpoint {
                interface: interface.clone(),
                uid: uid.clone(),
                pod: pod.clone(),
                state: EndpointState::Orphaned,
            };
            self.endpoints.insert(ifindex, endpoint);
        }
        if let Some(endpoint) = self.endpoints.get_mut(&ifindex) {
            endpoint.state = EndpointState::Orphaned;
            warn!(
                interface = %endpoint.interface.name,
                pod = %endpoint.pod,
                posture = self.config.posture.as_label(),
                "the pod's object is gone and its interface is not: the posture decides until it goes"
            );
        }
    }

    fn remove(&mut self, ifindex: IfIndex) {
        self.engine.detach(ifindex.0);
        if let Err(error) = self.dataplane.detach(ifindex.0) {
            warn!(%ifindex, error = chain(&error), "what is left of a vanished interface stays pinned");
        }
        self.attached.remove(&ifindex);
        self.unattached.remove(&ifindex);
        self.left.remove(&ifindex);
        if let Some(endpoint) = self.endpoints.remove(&ifindex) {
            debug!(pod = %endpoint.pod, interface = %endpoint.interface.name, "endpoint gone");
        }
    }

    fn report_unenforced(&mut self) {
        let unenforced = self.locals.unenforced(self.engine.cluster());
        for new in unenforced
            .iter()
            .filter(|each| !self.unenforced.contains(each))
        {
            warn!(
                pod = %new.pod,
                netns = %new.place.netns.display(),
                interface = %new.place.interface,
                why = %new.place.why,
                "pod is not enforced"
            );
        }
        self.unenforced = unenforced;
    }

    /// Brings the maps to what is wanted, as far as the kernel takes it.
    fn write(&mut self) {
        for _ in 0..PLANS_AT_ONCE {
            let began = Instant::now();
            if self.writing.is_waiting(began) {
                return;
            }
            self.writing.begin();
            match self.engine.plan(self.clock.elapsed()) {
                Ok(None) => {
                    self.plans.refused = None;
                    self.be_ready();
                    self.noticed = None;
                    break;
                }
                Ok(Some(plan)) => {
                    self.plans.refused = None;
                    let compile = began.elapsed();
                    if !self.carry_out(&plan, compile) {
                        return;
                    }
                }
                Err(refused) => {
                    self.plans.refusals += 1;
                    let refused = refused.to_string();
                    if self.plans.refused.as_ref() != Some(&refused) {
                        error!(reason = refused, "plan refused, the state in force stays");
                    }
                    self.plans.refused = Some(refused);
                    self.writing.fail(Instant::now());
                    return;
                }
            }
        }
        self.mark_published();
    }

    fn carry_out(
        &mut self,
        plan: &std::sync::Arc<agent_policy::plan::Plan>,
        compile: Duration,
    ) -> bool {
        let from = self.progress.begin(plan);
        let began = Instant::now();
        match self
            .dataplane
            .apply(plan.writes.get(from..).unwrap_or_default())
        {
            Ok(writes) => {
                self.plans.writes += writes as u64;
                self.progress.finish();
                self.writing.reset();
                self.engine.written(self.clock.elapsed());
                let noticed = self.noticed.take();
                let timing = Timing {
                    at: SystemTime::now(),
                    writes: plan.writes.len(),
                    watch_to_map: noticed.map(|at| at.elapsed()),
                    compile,
                    swap: began.elapsed(),
                };
                self.plans.done(timing);
                tell(&plan.summary, &timing);
                true
            }
            Err(error) => {
                self.progress.advance(error.at);
                self.plans.writes += error.at as u64;
                self.writing.fail(Instant::now());
                self.fail_writing(chain(&error));
                false
            }
        }
    }

    fn fail_writing(&mut self, error: String) {
        self.plans.failures += 1;
        if self.plans.failing.as_ref() != Some(&error) {
            error!(
                error,
                "the kernel refused a write; the old state stays, tried again"
            );
        }
        self.plans.failing = Some(error);
    }

    fn mark_published(&mut self) {
        for status in self.engine.endpoints() {
            let ifindex = IfIndex(status.ifindex);
            if let Some(endpoint) = self.endpoints.get_mut(&ifindex)
                && endpoint.state == EndpointState::Pending
                && status.progress == Published::Published
                && self.attached.contains_key(&ifindex)
            {
                endpoint.state = EndpointState::Enforced;
            }
        }
    }

    /// Attaches programs to interfaces whose rows are in, or never will be: those take the posture.
    fn attach_those_with_rows(&mut self) {
        if self.unattached.is_empty() || self.attaching.is_waiting(Instant::now()) {
            return;
        }
        self.attaching.begin();
        for status in self.engine.endpoints() {
            let ifindex = IfIndex(status.ifindex);
            let is_due = match status.progress {
                Published::Published | Published::NoSlot => true,
                Published::PodUnknown | Published::Planned => false,
            };
            if !is_due || !self.unattached.contains(&ifindex) {
                continue;
            }
            if let Some(endpoint) = self.endpoints.get(&ifindex) {
                let name = endpoint.interface.name.clone();
                self.attach(ifindex, &name);
            }
        }
        self.mark_published();
    }

    fn attach(&mut self, ifindex: IfIndex, name: &str) {
        match self.dataplane.attach(ifindex.0, name) {
            Ok(()) => {
                self.unattached.remove(&ifindex);
                let now = self.now_in_jiffies();
                self.attached.insert(ifindex, now);
                self.set_state(ifindex, EndpointState::Pending);
            }
            Err(error) => {
                let error = chain(&error);
                self.unattached.insert(ifindex);
                self.attaching.fail(Instant::now());
                let state = EndpointState::Failed { error };
                if self.endpoints.get(&ifindex).map(|each| &each.state) != Some(&state)
                    && let EndpointState::Failed { error } = &state
                {
                    error!(interface = name, error, "pod is not enforced; tried again");
                }
                self.set_state(ifindex, state);
            }
        }
    }

    fn set_state(&mut self, ifindex: IfIndex, state: EndpointState) {
        if let Some(endpoint) = self.endpoints.get_mut(&ifindex) {
            endpoint.state = state;
        }
    }

    /// The low half of the kernel's tick; 0 when it cannot be read, which gives no grace.
    fn now_in_jiffies(&mut self) -> u32 {
        match self.dataplane.tick() {
            Ok(tick) => (tick.jiffies & u64::from(u32::MAX)) as u32,
            Err(error) => {
                debug!(error = chain(&error), "the kernel's clock cannot be read");
                0
            }
        }
    }

    /// When something is due although no event came.
    fn deadline(&self) -> Option<Instant> {
        // Never at once: events come first.
        let soonest = Instant::now() + Duration::from_millis(1);
        let planned = self.engine.next_deadline();
        let planned = planned.map(|at| (self.clock + at).max(soonest));
        let writing = self.writing.due().or(planned);
        let attaching = self.attaching.due().filter(|_| !self.unattached.is_empty());
        earlier(writing, attaching)
    }

    fn view(&mut self) -> View<'_> {
        let tick = self.dataplane.tick().ok();
        View {
            config: &self.config,
            started: self.started,
            phase: match self.stage {
                Stage::Loading { .. } | Stage::Settled => Phase::Loading,
                Stage::Enforcing => Phase::Enforcing,
            },
            engine: &self.engine,
            dataplane: &self.dataplane,
            tick,
            endpoints: &self.endpoints,
            unenforced: &self.unenforced,
            findings: &self.findings,
            plans: &self.plans,
        }
    }
}

/// One line a plan; those that only clear away are not news.
fn tell(summary: &Summary, timing: &Timing) {
    let Some(watch_to_map) = timing.watch_to_map else {
        debug!(writes = timing.writes, "rows cleared away");
        return;
    };
    info!(
        writes = timing.writes,
        published = summary.endpoints_published,
        flipped = summary.endpoints_flipped,
        revised = summary.endpoints_revised,
        withdrawn = summary.endpoints_withdrawn,
        peers_moved = summary.peers_moved,
        prefixes_moved = summary.prefixes_moved,
        compile_ms = millis(timing.compile),
        swap_ms = millis(timing.swap),
        took_ms = millis(watch_to_map),
        "plan applied"
    );
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Whose an interface was under the last agent, and since when its programs are on.
fn left_at(ifindex: IfIndex, present: &Tables) -> ((PodUid, ObjectName), u32) {
    let config = present
        .endpoints
        .get(&ifindex.0)
        .and_then(|word| present.configs.get(&word.config_row));
    let name = config.and_then(|config| {
        let key = NameKey {
            kind: NAME_SLOT,
            id: config.slot,
        };
        let (uid, pod) = present.names.get(&key)?.split_once(' ')?;
        let (namespace, name) = pod.split_once('/')?;
        Some((PodUid(uid.into()), ObjectName::new(namespace, name)))
    });
    // Nothing was published for it: an orphan already.
    let unknown = || {
        let uid = PodUid(format!("interface {ifindex}").into());
        (uid, ObjectName::new("", ""))
    };
    (
        name.unwrap_or_else(unknown),
        config.map_or(0, |config| config.attached),
    )
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
