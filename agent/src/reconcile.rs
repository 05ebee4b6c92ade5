//! The loop: event, apply, plan, write. One task, the only writer of the kernel's maps.
//!
//! Before the first complete list of objects and the first look at interfaces nothing is written
//! or attached, so a start can neither open nor close anything by half-knowledge. Then:
//!
//! - interfaces that are there get their rows first, their programs when the rows are in;
//! - interfaces that come later get their programs at once and are closed until their rows are in:
//!   a few milliseconds, or until their pod is known;
//! - programs of an earlier agent stay in force, their rows are replaced by one plan;
//! - those of an agent with another layout stay in force, too, with their own maps, until the
//!   interface's rows are in ours;
//! - an interface that is a pod's is until it goes, by the node's list of links: no object that
//!   goes and no namespace that cannot be seen takes anything out of force. Only after a restart
//!   without its object is nothing known to publish, and the posture decides.

mod assigned;
mod attaching;
mod findings;
mod folds;
mod handle;
mod locals;
mod newcomers;
mod plans;
mod readiness;
mod run;
mod settings;
mod takeover;
mod writing;

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use agent_policy::engine::Engine;
use agent_policy::model::{ObjectName, PodUid};

use crate::config::Config;
use crate::dataplane::{Dataplane, Tick};
use crate::endpoints::{IfIndex, Interface, Sighting, Unreachable};
use crate::source::{Batch, Reported};

pub use folds::{Counts, Fold, Folds, Owner};
pub use handle::{Handle, Record, Records, Stopped};
pub use plans::{Histogram, Plans, Timing};
pub(crate) use run::{Inputs, Reconciler, Tells};
pub(crate) use settings::default_settings;

/// Everything that can wake the reconciler. Closed on purpose: this list is the documentation.
#[derive(Debug)]
pub(crate) enum Event {
    /// Objects changed; the first one is the first complete list of every kind.
    Objects(Batch),
    /// Interfaces came or went; the first one is everything that is there.
    Interfaces(Sighting),
    /// Rows have rested, or what failed is to be tried again.
    Deadline,
    /// Someone wants to read the state.
    Ask(Question),
    /// Stop; enforcement stays as it is.
    Shutdown,
}

/// A reading of the state, carried out between two plans.
pub(crate) struct Question(Box<dyn FnOnce(&View<'_>) + Send>);

impl std::fmt::Debug for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Question")
    }
}

/// The state, as it may be read between two plans.
#[derive(Debug)]
#[non_exhaustive]
pub struct View<'a> {
    /// The configuration the agent was started with.
    pub config: &'a Config,
    /// When the agent started.
    pub started: SystemTime,
    /// How far the agent is.
    pub phase: Phase,
    /// Objects, and what is compiled of them.
    pub engine: &'a Engine,
    /// The maps and programs.
    pub dataplane: &'a Dataplane,
    /// The kernel's clock now; `None` when it could not be read.
    pub tick: Option<Tick>,
    /// Interfaces that belong to a known pod, by index.
    pub endpoints: &'a BTreeMap<IfIndex, Endpoint>,
    /// Pods that are here but cannot be enforced.
    pub unenforced: &'a [Unenforced],
    /// Interfaces whose pod is not known.
    pub unclaimed: &'a [Unclaimed],
    /// Everything wrong with objects and files now.
    pub findings: &'a [Reported],
    /// What applying plans took and how it went.
    pub plans: &'a Plans,
    /// Counts that were cleared, and whose they were.
    pub folds: &'a Folds,
}

impl View<'_> {
    /// Why not all that is here is enforced; nothing when it is.
    pub fn wanting(&self) -> Option<String> {
        readiness::wanting(self.phase, self.plans, self.endpoints, self.unclaimed)
    }
}

/// How far the agent is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// The first plan is not in force yet. On a restart, what the last agent left is.
    Loading,
    /// Plans are applied as changes come.
    Enforcing,
}

/// A local pod with its interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// The interface.
    pub interface: Interface,
    /// Whose it is.
    pub uid: PodUid,
    /// Its name, for people.
    pub pod: ObjectName,
    /// How far it is.
    pub state: EndpointState,
}

/// How far an endpoint is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum EndpointState {
    /// Its rows are not in the maps yet.
    Pending,
    /// Rows are in, programs attached.
    Enforced,
    /// Every slot is another pod's: programs attached, no rows, so the posture decides until a slot
    /// is free.
    NoSlot,
    /// Its pod object went while the interface stayed: what was in force stays until it goes.
    Orphaned,
    /// The programs could not be attached; tried again.
    Failed {
        /// Why.
        error: String,
    },
}

/// An interface into a network namespace whose pod no object states.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unclaimed {
    /// The interface.
    pub interface: Interface,
    /// It came after the first look: our programs are on it, and the posture decides. Otherwise it
    /// is left alone.
    pub is_enclosed: bool,
    /// Why our programs are not on it although they should be: it is open.
    pub error: Option<String>,
}

/// A local pod that is not enforced.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Unenforced {
    /// The pod.
    pub pod: ObjectName,
    /// Where it was found and why not.
    pub place: Unreachable,
}

/// The earlier of two moments, either of which may not be set.
fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, None) | (None, one) => one,
    }
}
