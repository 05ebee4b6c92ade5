//! The loop: event, apply, plan, write. The only writer of the kernel's maps.

mod handle;

pub use handle::{Handle, Record, Records, Stopped};

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use agent_policy::model::{ObjectName, PodUid};

use crate::config::Config;
use crate::endpoints::{IfIndex, Interface, Unreachable};
use crate::source::{Batch, Reported};

/// Everything that can wake the reconciler. Closed on purpose: this list is the documentation.
#[derive(Debug)]
pub(crate) enum Event {
    /// Objects changed, or the first complete list is here.
    Objects(Batch),
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
    /// Interfaces that belong to a known pod, by index.
    pub endpoints: &'a BTreeMap<IfIndex, Endpoint>,
    /// Pods that are here but cannot be enforced.
    pub unenforced: &'a [Unenforced],
    /// Everything wrong with objects and files now.
    pub findings: &'a [Reported],
    /// What applying plans took and how it went.
    pub plans: &'a Plans,
}

/// How far the agent is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// The first complete list of objects or interfaces is not here yet; nothing was written.
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
    /// Its pod object went while the interface stayed: the posture decides.
    Orphaned,
    /// The programs could not be attached; what that means and since when.
    Failed {
        /// Why.
        error: String,
    },
}

/// A local pod that is not enforced.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Unenforced {
    /// The pod.
    pub pod: ObjectName,
    /// Where it was found and why not.
    pub place: Unreachable,
}

/// What applying plans took and how it went, since the agent started.
#[derive(Clone, Debug, Default)]
pub struct Plans {
    /// Plans whose every write is in the maps.
    pub applied: u64,
    /// Writes carried out.
    pub writes: u64,
    /// Attempts that the kernel refused; the old state stayed, and they are tried again.
    pub failures: u64,
    /// Why the latest attempt failed, until one succeeds.
    pub failing: Option<String>,
    /// Plans refused whole because a limit would be exceeded.
    pub refusals: u64,
    /// Why the wanted state is refused, until it is not.
    pub refused: Option<String>,
    /// The latest plan.
    pub last: Option<Timing>,
    /// From a change being noticed to its last write.
    pub watch_to_map: Histogram,
    /// Compiling and planning.
    pub compile: Histogram,
    /// Writing and reading back.
    pub swap: Histogram,
}

/// What one plan took.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// When it was done.
    pub at: SystemTime,
    /// Its writes.
    pub writes: usize,
    /// From the earliest change in it being noticed to its last write.
    pub watch_to_map: Duration,
    /// Compiling and planning.
    pub compile: Duration,
    /// Writing and reading back.
    pub swap: Duration,
}

/// Durations counted in buckets, as Prometheus wants them.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// How many durations were at most the bound of the same place in [`Histogram::BOUNDS`];
    /// not cumulative.
    pub counts: [u64; Histogram::BOUNDS.len()],
    /// How many were longer than every bound.
    pub longer: u64,
    /// Sum of all.
    pub sum: Duration,
}

impl Histogram {
    /// Upper bounds in seconds, inclusive.
    pub const BOUNDS: [f64; 12] = [
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
    ];

    /// Counts one duration.
    pub(crate) fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let place = Self::BOUNDS.iter().position(|bound| seconds <= *bound);
        match place.and_then(|place| self.counts.get_mut(place)) {
            Some(count) => *count += 1,
            None => self.longer += 1,
        }
        self.sum += duration;
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.longer
    }
}
