//! Objects and local endpoints in, plans out: the ground state, the compiler and the planner in
//! one synchronous value that the reconciler owns. No I/O, no clock.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use agent_common::RuleId;

use crate::cluster::{Cluster, Touched};
use crate::model::{Change, ObjectName, PodUid, RuleRef};
use crate::plan::{Plan, Refused};
use crate::tables::Tables;

/// How much the engine may use, and how long rows rest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Options {
    /// Largest number of peer classes.
    pub classes: usize,
    /// Largest number of rows in VERDICTS.
    pub rows: usize,
    /// Largest number of rows in `PEERS_EXACT`.
    pub peers: usize,
    /// Largest number of rows in `PEERS_CIDR`.
    pub prefixes: usize,
    /// Largest number of rows in PORTS.
    pub ports: usize,
    /// How long a row that packets under way may still read is kept and not used again.
    pub grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            classes: 65_536,
            rows: 524_288,
            peers: 131_072,
            prefixes: 131_072,
            ports: 131_072,
            grace: Duration::from_secs(2),
        }
    }
}

/// A pod of this node with its host-side interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LocalEndpoint {
    /// The pod.
    pub uid: PodUid,
    /// The host-side interface.
    pub ifindex: u32,
    /// Addresses found on the pod's side; empty: those its object states.
    pub addresses: Vec<IpAddr>,
    /// When the programs were attached, in jiffies (low 32 bits).
    pub attached: u32,
    /// The posture while a state cannot be kept: open.
    pub fails_open: bool,
}

/// How far an endpoint is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Progress {
    /// Its pod was never seen: no row, the posture decides.
    PodUnknown,
    /// Every slot is taken: no row, the posture decides.
    NoSlot,
    /// Known, but no plan with its row was written yet.
    Planned,
    /// Its row is published.
    Published,
}

/// An endpoint as the engine knows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EndpointStatus {
    /// The host-side interface.
    pub ifindex: u32,
    /// The pod.
    pub uid: PodUid,
    /// Its name; `None` while it was never seen.
    pub pod: Option<ObjectName>,
    /// How far it is.
    pub progress: Progress,
    /// Place in per-slot maps; 0 when it has none.
    pub slot: u32,
    /// Policy sets in force by direction, 0 when not isolated; as of the last plan.
    pub sets: [u32; 2],
    /// Revision of its policy, as of the last plan.
    pub revision: u32,
}

/// How much is compiled, for metrics and limits.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Endpoints.
    pub endpoints: usize,
    /// Policy sets.
    pub sets: usize,
    /// Atoms: distinct `from`/`to` lists in use.
    pub atoms: usize,
    /// Peer classes, without class 0.
    pub classes: usize,
    /// Rows of VERDICTS, resting ones included.
    pub rows: usize,
    /// Distinct port functions.
    pub functions: usize,
    /// Of those, how many are in PORTS.
    pub long_functions: usize,
    /// Rows of `PEERS_EXACT`.
    pub peers: usize,
    /// Rows of `PEERS_CIDR`.
    pub prefixes: usize,
}

/// Whose a slot is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SlotOwner {
    /// The pod.
    pub uid: PodUid,
    /// Its name.
    pub pod: ObjectName,
}

/// The engine. See the module.
#[derive(Debug)]
pub struct Engine {
    cluster: Cluster,
}

impl Engine {
    /// An engine for empty maps.
    pub fn new(options: Options) -> Self {
        Self::adopt(options, &Tables::default())
    }

    /// An engine for maps that an earlier agent left: everything they hold, read back. The first
    /// plan replaces it, and withdraws endpoints that were not attached by then; endpoints of the
    /// same pod and interface keep their slot, and with it their connections.
    pub fn adopt(_options: Options, _present: &Tables) -> Self {
        Self {
            cluster: Cluster::default(),
        }
    }

    /// Takes a change of the cluster in. Cheap: the work is done by [`Engine::plan`].
    pub fn apply(&mut self, change: Change) -> Touched {
        self.cluster.apply(change)
    }

    /// A local endpoint appeared, or something about it changed. Its programs may be attached
    /// before or after.
    pub fn attach(&mut self, _endpoint: LocalEndpoint) {}

    /// A local endpoint's interface is gone.
    pub fn detach(&mut self, _ifindex: u32) {}

    /// Plans what leads from the maps' content to what the cluster and the endpoints want; `None`
    /// when nothing has to be written. A plan that was not yet [`written`](Self::written) is
    /// given again. `now` is any monotonic clock.
    ///
    /// # Errors
    /// [`Refused`]; nothing was changed then, and the next call tries again.
    pub fn plan(&mut self, _now: Duration) -> Result<Option<Arc<Plan>>, Refused> {
        Ok(None)
    }

    /// The last plan was carried out, wholly.
    pub fn written(&mut self, _now: Duration) {}

    /// When [`Engine::plan`] will have something to clear away although nothing changed.
    pub fn next_deadline(&self) -> Option<Duration> {
        None
    }

    /// Moves addresses and prefixes out of classes that name what no policy mentions any more.
    /// For idle times: in proportion to everything compiled.
    pub fn compact(&mut self) {}

    /// The ground state.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// What a rule id in a counter or event means.
    pub fn rule_ref(&self, _rule: RuleId) -> Option<&RuleRef> {
        None
    }

    /// Whose a slot is, or was while nobody else has it.
    pub fn slot_owner(&self, _slot: u32) -> Option<&SlotOwner> {
        None
    }

    /// Every endpoint, by interface.
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        Vec::new()
    }

    /// How much is compiled.
    pub fn counts(&self) -> Counts {
        Counts::default()
    }
}
