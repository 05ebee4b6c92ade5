//! One reading of the whole agent: what the kernel has counted, joined with whose it is. The API's
//! status and the metrics are made of it, so that both say the same.
//!
//! The loop is asked for names and states; maps are read outside it, however long that takes, and
//! joined with what the loop said. No plan waits for whoever looks.

mod take;

use std::collections::BTreeMap;

use agent_common::maps::Counter;
use agent_common::{Direction, Reason, RuleId};
use agent_policy::model::RuleRef;

use crate::dto;
use crate::reconcile::Plans;

pub use take::{Denial, TakeError, Wanted, denials, denied, maps, rule_hits};

/// Traffic of one slot, with the pod it belongs to.
#[derive(Clone, Debug, Default)]
pub struct SlotReading {
    /// The pod's UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Let through, by `Direction::index`.
    pub passed: [dto::Traffic; 2],
    /// Dropped.
    pub dropped: BTreeMap<(Direction, Reason), dto::Traffic>,
}

/// One row of DENIED, joined.
#[derive(Clone, Debug)]
pub struct DeniedReading {
    /// What makes the row: slot, peer, port, protocol, direction.
    pub key: (u32, std::net::IpAddr, u16, u8, Direction),
    /// UID of the slot's pod.
    pub uid: String,
    /// The endpoint's side.
    pub local: dto::Party,
    /// The other side.
    pub peer: dto::Party,
    /// Why; a number of a later version has a word of its own.
    pub reason: String,
    /// Packets so far.
    pub packets: u64,
    /// First and latest, where the kernel's clock can be read.
    pub times: Option<(jiff::Timestamp, jiff::Timestamp)>,
    /// Revision of the endpoint's policy at the latest.
    pub revision: u32,
}

/// What the loop and the kernel say at one moment.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Node name, when told.
    pub node: Option<String>,
    /// True when plans are applied and none is failing.
    pub enforcing: bool,
    /// Local endpoints with counts.
    pub endpoints: Vec<dto::Endpoint>,
    /// Local pods that cannot be enforced.
    pub unenforced: Vec<dto::Unenforced>,
    /// Interfaces whose pod no object states.
    pub unclaimed: Vec<dto::Unclaimed>,
    /// Interfaces that another layout version still judges.
    pub elsewhere: Vec<dto::Elsewhere>,
    /// Pods of this node that share its network.
    pub host_network: usize,
    /// Findings of manifests.
    pub findings: Vec<dto::Finding>,
    /// Names of every policy there is, as (namespace, name, isolates ingress, isolates egress).
    pub policies: Vec<(String, String, [bool; 2])>,
    /// Pods known.
    pub pods: usize,
    /// Namespaces known.
    pub namespaces: usize,
    /// Traffic by slot, also of slots whose pod went and which nobody has taken over.
    pub slots: BTreeMap<u32, SlotReading>,
    /// Number of the latest fold when slots and rules were named. What was cleared later may have
    /// been read before or after.
    pub folds: u64,
    /// New connections by rule.
    pub rule_hits: Vec<(RuleId, RuleRef, u64)>,
    /// New connections that no rule with a row of its own decided, by why they were allowed.
    pub allowed: BTreeMap<(Direction, Reason), u64>,
    /// COUNTERS.
    pub counters: Vec<(Counter, u64)>,
    /// How full the maps are.
    pub maps: Vec<dto::MapFill>,
    /// What applying plans took.
    pub plans: Plans,
}

impl Reading {
    /// One of the node's counters.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters
            .iter()
            .find(|(each, _)| *each == counter)
            .map_or(0, |(_, count)| *count)
    }
}

impl Reading {
    /// What `picket status` shows.
    pub fn into_status(self) -> dto::Status {
        let events_lost = self.counter(Counter::EventsLost);
        let denied_overflow = self.counter(Counter::DeniedOverflow);
        let error = self
            .plans
            .refused
            .clone()
            .or_else(|| self.plans.failing.clone());
        dto::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node,
            enforcing: self.enforcing,
            policies: self.policies.len(),
            pods: self.pods,
            namespaces: self.namespaces,
            endpoints: self.endpoints,
            unenforced: self.unenforced,
            unclaimed: self.unclaimed,
            elsewhere: self.elsewhere,
            findings: self.findings,
            maps: self.maps,
            last_apply: self.plans.last.and_then(|last| {
                Some(dto::Apply {
                    time: jiff::Timestamp::try_from(last.at).ok()?.to_string(),
                    writes: last.writes as u64,
                    took_ms: last.watch_to_map.map(|took| took.as_secs_f64() * 1_000.0),
                })
            }),
            error,
            cni_plugin: None,
            events_lost,
            denied_overflow,
        }
    }
}
