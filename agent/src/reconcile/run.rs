//! The loop itself: what each event does, and the order of writing and attaching.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant, SystemTime};

use agent_policy::cluster::Touched;
use agent_policy::engine::Engine;
use agent_policy::model::{Change, ObjectName, PodUid};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::warn;

use super::assigned::Assigned;
use super::attaching::left_at;
use super::locals::{Decision, Locals};
use super::newcomers::Newcomers;
use super::plans::{Backoff, Progress};
use super::{
    Endpoint, Event, Folds, Phase, Plans, Question, Unclaimed, Unenforced, View, earlier, findings,
    readiness, settings,
};
use crate::config::Config;
use crate::dataplane::{Dataplane, DataplaneError};
use crate::endpoints::{IfIndex, Sighting};
use crate::source::{Batch, Reported};

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

/// What the loop tells without being asked.
#[derive(Debug)]
pub(crate) struct Tells {
    /// Whether what is here is enforced.
    pub(crate) is_ready: watch::Sender<bool>,
    /// Another round is over in which something may have changed.
    pub(crate) rounds: watch::Sender<()>,
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

/// How far the loop is. Only [`Reconciler::settle`] leads from `Loading` to `Settled`, and before
/// nothing is written, nor attached but to interfaces that come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stage {
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
    pub(super) config: Config,
    pub(super) engine: Engine,
    pub(super) dataplane: Dataplane,
    pub(super) locals: Locals,
    assigned: Assigned,
    newcomers: Newcomers,
    pub(super) endpoints: BTreeMap<IfIndex, Endpoint>,
    pub(super) unenforced: Vec<Unenforced>,
    pub(super) unclaimed: Vec<Unclaimed>,
    pub(super) findings: Vec<Reported>,
    pub(super) plans: Plans,
    pub(super) folds: Folds,
    pub(super) started: SystemTime,
    pub(super) clock: Instant,
    pub(super) stage: Stage,
    pub(super) progress: Progress,
    pub(super) writing: Backoff,
    /// Interfaces that our programs are on, with the tick of the attachment (low 32 bits).
    pub(super) attached: HashMap<IfIndex, u32>,
    /// Interfaces whose programs wait for their rows or could not be attached, with the error.
    pub(super) unattached: BTreeMap<IfIndex, Option<String>>,
    pub(super) attaching: Backoff,
    /// Interfaces that an earlier agent's programs are on, with whose they were.
    pub(super) left: HashMap<IfIndex, (PodUid, ObjectName)>,
    /// When the oldest change was noticed that is not in force yet.
    pub(super) noticed: Option<Instant>,
}

impl Reconciler {
    /// Takes up what an earlier agent left in the maps.
    pub(crate) fn new(config: Config, dataplane: Dataplane) -> Result<Self, DataplaneError> {
        let present = dataplane.present()?;
        let mut engine = Engine::adopt(settings::limits(&config, &dataplane), &present);
        for address in &config.dns_cache.addresses {
            engine.stand_in(*address, config.dns_cache.service.clone());
        }
        let mut locals = Locals::new(config.node.clone());
        let mut attached = HashMap::new();
        let mut left = HashMap::new();
        let mut unattached = BTreeMap::new();
        for interface in dataplane.taken_up() {
            let ifindex = IfIndex(interface.ifindex);
            let (owner, since) = left_at(ifindex, &present);
            if let Some(owner) = owner {
                locals.take_up(ifindex, owner.0.clone());
                left.insert(ifindex, owner);
            } else {
                locals.take_up_enclosed(ifindex);
                unattached.insert(ifindex, None);
            }
            // One that is only half on is attached again.
            if interface.is_whole() {
                unattached.remove(&ifindex);
                attached.insert(ifindex, since);
            }
        }
        for interface in dataplane.elsewhere() {
            locals.know(IfIndex(interface.ifindex));
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
            assigned: Assigned::default(),
            newcomers: Newcomers::default(),
            endpoints: BTreeMap::new(),
            unenforced: Vec::new(),
            unclaimed: Vec::new(),
            findings: Vec::new(),
            plans: Plans::default(),
            folds: Folds::adopt(&present),
            started: SystemTime::now(),
            clock: Instant::now(),
            stage: Stage::Loading {
                objects: false,
                interfaces: false,
            },
            progress: Progress::default(),
            writing: Backoff::default(),
            attached,
            unattached,
            attaching: Backoff::default(),
            left,
            noticed: None,
        })
    }

    /// Runs until told to stop. What is in force stays in force.
    pub(crate) async fn run(mut self, mut inputs: Inputs, tells: Tells) -> Result<(), Lost> {
        self.announce_takeover();
        loop {
            let mut event = inputs.next(self.deadline()).await?;
            let mut is_news = false;
            for _ in 0..EVENTS_AT_ONCE {
                is_news |= !matches!(event, Event::Ask(_));
                if self.take(event).is_break() {
                    return Ok(());
                }
                match inputs.waiting() {
                    Some(next) => event = next,
                    None => break,
                }
            }
            self.reconcile();
            let wanting =
                readiness::wanting(self.phase(), &self.plans, &self.endpoints, &self.unclaimed);
            let now = wanting.is_none();
            tells
                .is_ready
                .send_if_modified(|was| std::mem::replace(was, now) != now);
            // Whoever waits asks again, which must not make anybody ask again.
            if is_news {
                tells.rounds.send_replace(());
            }
        }
    }

    fn take(&mut self, event: Event) -> std::ops::ControlFlow<()> {
        match event {
            Event::Objects(batch) => self.take_objects(batch),
            Event::Interfaces(sighting) => {
                self.notice(sighting.noticed);
                self.newcomers.sight(&sighting);
                self.sight_elsewhere(&sighting);
                let interfaces = &sighting.interfaces;
                let changes = self.assigned.sight(interfaces, self.engine.cluster());
                self.locals.sight(sighting);
                self.apply(changes);
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
        let changes = batch.changes.into_iter();
        let changes: Vec<Change> = changes.map(|change| self.assigned.over(change)).collect();
        self.apply(changes);
        findings::tell(&self.findings, &batch.findings);
        self.findings = batch.findings;
        if let Stage::Loading { objects, .. } = &mut self.stage {
            *objects |= batch.is_complete;
        }
    }

    fn apply(&mut self, changes: Vec<Change>) {
        let mut touched = Touched::default();
        for change in changes {
            touched.merge(self.engine.apply(change));
        }
        self.locals.touch(&touched, self.engine.cluster());
    }

    /// Something changed, so what failed may well succeed now.
    fn notice(&mut self, at: Instant) {
        self.noticed = earlier(self.noticed, Some(at));
        self.writing.reset();
        self.attaching.reset();
    }

    fn reconcile(&mut self) {
        if !self.settle() {
            self.enclose_newcomers();
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
                Decision::Enclose(interface) => self.enclose(&interface),
                Decision::Orphan(ifindex) => self.orphan(ifindex),
                Decision::Remove(ifindex) => self.remove(ifindex),
            }
        }
        self.unclaimed = self.locals.unclaimed();
        self.report_unenforced();
        self.write();
        self.attach_those_with_rows();
        self.note_those_left_open();
        self.leave_other_layouts();
        self.newcomers
            .arrive(&self.endpoints, &mut self.plans.first_enforced);
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
        if self.put_settings() {
            self.stage = Stage::Settled;
        }
        self.stage == Stage::Settled
    }

    fn put_settings(&mut self) -> bool {
        let settings = settings::settings(&self.config, self.dataplane.hz());
        let put = self.dataplane.put_settings(&settings);
        if let Err(error) = &put {
            self.writing.fail(Instant::now());
            self.fail_writing(chain(error));
        }
        put.is_ok()
    }

    /// Interfaces that come while objects are not known: the posture decides about them, too. It may
    /// take long until the source says what there is.
    fn enclose_newcomers(&mut self) {
        let came = self.locals.enclose_newcomers();
        if !came.is_empty() {
            // Without settings everything is closed, which a failure is reported for; they are
            // written again before rows are.
            self.put_settings();
        }
        for interface in came {
            self.enclose(&interface);
        }
        self.unclaimed = self.locals.unclaimed();
        self.attach_those_with_rows();
        self.note_those_left_open();
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

    fn phase(&self) -> Phase {
        match self.stage {
            Stage::Loading { .. } | Stage::Settled => Phase::Loading,
            Stage::Enforcing => Phase::Enforcing,
        }
    }

    fn view(&mut self) -> View<'_> {
        let tick = self.dataplane.tick().ok();
        View {
            config: &self.config,
            started: self.started,
            phase: self.phase(),
            engine: &self.engine,
            dataplane: &self.dataplane,
            tick,
            endpoints: &self.endpoints,
            unenforced: &self.unenforced,
            unclaimed: &self.unclaimed,
            findings: &self.findings,
            plans: &self.plans,
            folds: &self.folds,
        }
    }
}

/// An error with its causes, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
