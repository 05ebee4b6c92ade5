//! Takes a reading: the one place that turns the loop's view into plain values.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use agent_common::maps::{Denied, DeniedKey, FIRST_RULE_ROW, SLOTS, hit_row, rule_row};
use agent_common::{Direction, Reason, RuleId, Verdict};
use agent_policy::cluster::Cluster;
use agent_policy::engine::EndpointStatus;
use agent_policy::evaluate;
use agent_policy::model::{ObjectName, Pod, Policy, RuleRef, Severity};

use super::{DeniedReading, Reading, SlotReading};
use crate::config::Posture;
use crate::dataplane::{Counted, DataplaneError, Tick};
use crate::dto;
use crate::flows::decode::Cause;
use crate::flows::join::{self, Names};
use crate::reconcile::{Endpoint, EndpointState, Handle, Phase, Stopped, Unclaimed, View};

impl Names for View<'_> {
    fn cluster(&self) -> &Cluster {
        self.engine.cluster()
    }

    fn pod_of_slot(&self, slot: u32) -> Option<Arc<Pod>> {
        let owner = self.engine.slot_owner(slot)?;
        self.cluster().pod(&owner.uid).map(Arc::clone)
    }

    fn pod_of_interface(&self, ifindex: u32) -> Option<Arc<Pod>> {
        let (_, endpoint) = self.endpoints.iter().find(|(each, _)| each.0 == ifindex)?;
        self.cluster().pod(&endpoint.uid).map(Arc::clone)
    }

    fn judges_arrivals_at(&self, pod: &Pod) -> bool {
        self.endpoints
            .values()
            .any(|each| each.uid == pod.uid && each.state == EndpointState::Enforced)
    }

    fn rule(&self, rule: RuleId) -> Option<String> {
        self.engine.rule_ref(rule).map(ToString::to_string)
    }

    fn node(&self) -> Option<&str> {
        self.config.node.as_deref()
    }
}

/// Why there is no reading.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The agent stops.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// A map cannot be read.
    #[error(transparent)]
    Unreadable(#[from] DataplaneError),
    /// The thread that read the maps did not come to its end.
    #[error("reading the maps was broken off")]
    BrokenOff,
}

/// Reads maps on a thread of its own.
async fn read<T: Send + 'static>(
    handle: &Handle,
    read: impl FnOnce(&Counted) -> Result<T, DataplaneError> + Send + 'static,
) -> Result<T, TakeError> {
    let counted = handle.ask(|view| view.dataplane.counted()).await?;
    let read = tokio::task::spawn_blocking(move || read(&counted)).await;
    Ok(read.map_err(|_joining| TakeError::BrokenOff)??)
}

/// Rules with a row of their own in `RULE_HITS`, by that row.
type RuleRows = HashMap<u32, (RuleId, RuleRef)>;

/// What is read only when somebody looks at it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// How full the maps are, which is a walk over them.
    pub maps: bool,
    /// The policies that isolate each endpoint, which is a look at all policies of its namespace.
    pub isolating: bool,
}

/// What the loop says. The rest of the reading is made of it outside the loop.
struct Told {
    reading: Reading,
    rules: RuleRows,
    policies: Vec<Arc<Policy>>,
    /// The pods of the reading's endpoints.
    pods: Vec<Option<Arc<Pod>>>,
}

impl Reading {
    /// Reads the loop's state and the kernel's counts.
    ///
    /// # Errors
    /// A map cannot be read, or the agent stops.
    pub async fn take(handle: &Handle, wanted: Wanted) -> Result<Self, TakeError> {
        let Told {
            mut reading,
            rules,
            policies,
            pods,
        } = handle.ask(told).await?;
        read(handle, move |counted| {
            reading.policies = policies.iter().map(|policy| named(policy)).collect();
            if wanted.isolating {
                say_isolating(&mut reading.endpoints, &pods, &policies);
            }
            for (slot, reading) in &mut reading.slots {
                count(counted, *slot, reading)?;
            }
            for endpoint in &mut reading.endpoints {
                let published = endpoint.slot.filter(|_| endpoint.revision.is_some());
                let slot = published.and_then(|slot| reading.slots.get(&slot));
                if let Some(slot) = slot {
                    add_counts(endpoint, slot);
                }
            }
            reading.rule_hits = hits_of(counted, &rules)?;
            reading.allowed = allowed(counted)?;
            reading.counters = counted.counters()?;
            if wanted.maps {
                reading.maps = fills(counted)?;
            }
            Ok(reading)
        })
        .await
    }
}

/// What the loop says by itself; counts are still to be read.
fn told(view: &View<'_>) -> Told {
    let cluster = view.engine.cluster();
    let statuses: HashMap<u32, EndpointStatus> = view
        .engine
        .endpoints()
        .into_iter()
        .map(|each| (each.ifindex, each))
        .collect();
    let mut endpoints: Vec<&Endpoint> = view.endpoints.values().collect();
    endpoints.sort_by_key(|each| &each.pod);
    let of_endpoint = |each: &&Endpoint| {
        let pod = cluster.pod(&each.uid);
        let status = statuses.get(&each.interface.ifindex.0);
        (endpoint(pod, each, status), pod.map(Arc::clone))
    };
    let (endpoints, pods) = endpoints.iter().map(of_endpoint).unzip();
    let is_failing = view.plans.failing.is_some() || view.plans.refused.is_some();
    let is_here = |pod: &Pod| {
        view.config
            .node
            .as_ref()
            .is_none_or(|node| **node == *pod.node)
    };
    let reading = Reading {
        node: view.config.node.clone(),
        enforcing: view.phase == Phase::Enforcing && !is_failing,
        endpoints,
        unenforced: view
            .unenforced
            .iter()
            .map(|each| dto::Unenforced {
                pod: each.pod.to_string(),
                message: format!("{} ({})", each.place.why, each.place.interface),
            })
            .collect(),
        unclaimed: view
            .unclaimed
            .iter()
            .map(|each| unclaimed(each, view.config.posture))
            .collect(),
        elsewhere: elsewhere(view),
        host_network: cluster
            .pods()
            .filter(|pod| pod.host_network && is_here(pod))
            .count(),
        findings: view.findings.iter().map(finding).collect(),
        pods: cluster.pods().count(),
        namespaces: cluster.namespaces().count(),
        slots: slots(view),
        folds: view.folds.number(),
        plans: view.plans.clone(),
        ..Reading::default()
    };
    Told {
        reading,
        rules: rule_rows(view),
        policies: cluster.policies().map(Arc::clone).collect(),
        pods,
    }
}

/// Interfaces that another layout version still judges; one line each, whatever is left of it.
fn elsewhere(view: &View<'_>) -> Vec<dto::Elsewhere> {
    let mut found: Vec<dto::Elsewhere> = Vec::new();
    let mut last = None;
    for one in view.dataplane.elsewhere() {
        if last.replace(one.ifindex) == Some(one.ifindex) {
            continue;
        }
        let mut endpoints = view.endpoints.values();
        let endpoint = endpoints.find(|each| each.interface.ifindex.0 == one.ifindex);
        let mut unclaimed = view.unclaimed.iter().map(|each| &each.interface);
        let name = endpoint
            .map(|endpoint| &endpoint.interface)
            .or_else(|| unclaimed.find(|interface| interface.ifindex.0 == one.ifindex))
            .map_or_else(
                || format!("with index {}", one.ifindex),
                |interface| interface.name.clone(),
            );
        let message = match endpoint {
            Some(endpoint) => format!("the policy of {} is not in the maps yet", endpoint.pod),
            None => "no object states its pod".to_owned(),
        };
        found.push(dto::Elsewhere {
            interface: name,
            layout: one.layout.to_string(),
            message,
        });
    }
    found
}

/// Namespace, name, and what it isolates.
fn named(policy: &Policy) -> (String, String, [bool; 2]) {
    let isolates = Direction::ALL.map(|direction| policy.isolates(direction));
    let ObjectName { namespace, name } = &policy.name;
    (namespace.to_string(), name.to_string(), isolates)
}

/// Names the policies that isolate each endpoint.
fn say_isolating(
    endpoints: &mut [dto::Endpoint],
    pods: &[Option<Arc<Pod>>],
    policies: &[Arc<Policy>],
) {
    let mut by_namespace: HashMap<&str, Vec<&Arc<Policy>>> = HashMap::new();
    for policy in policies {
        let namespace = by_namespace.entry(&policy.name.namespace).or_default();
        namespace.push(policy);
    }
    for (endpoint, pod) in endpoints.iter_mut().zip(pods) {
        let Some(pod) = pod else { continue };
        let policies = by_namespace.get(&*pod.name.namespace);
        for (said, direction) in endpoint.directions.iter_mut().zip(Direction::ALL) {
            let all = policies.into_iter().flatten().copied();
            let isolating = evaluate::isolating_of(all, pod, direction);
            said.isolated_by = isolating.iter().map(|each| each.name.to_string()).collect();
        }
    }
}

/// Slots that somebody has, or had while nobody else has it.
fn slots(view: &View<'_>) -> BTreeMap<u32, SlotReading> {
    let owned = view.folds.slots();
    owned
        .map(|(slot, owner)| {
            let reading = SlotReading {
                uid: owner.uid.clone(),
                namespace: owner.namespace.clone(),
                ..SlotReading::default()
            };
            (slot, reading)
        })
        .collect()
}

/// Reads a slot's counts.
fn count(counted: &Counted, slot: u32, reading: &mut SlotReading) -> Result<(), DataplaneError> {
    reading.passed = counted.passed(slot)?.map(traffic);
    reading.dropped = counted
        .dropped(slot)?
        .into_iter()
        .map(|row| ((row.direction, row.reason), traffic(row.traffic)))
        .collect();
    Ok(())
}

fn add_counts(endpoint: &mut dto::Endpoint, counts: &SlotReading) {
    let both = endpoint.directions.iter_mut().zip(Direction::ALL);
    for (place, (said, direction)) in both.enumerate() {
        said.passed = counts.passed.get(place).copied().unwrap_or_default();
        said.dropped = counts
            .dropped
            .iter()
            .filter(|((its, _), traffic)| *its == direction && traffic.packets > 0)
            .map(|((_, reason), traffic)| (reason.as_label().to_owned(), *traffic))
            .collect();
    }
}

fn rule_rows(view: &View<'_>) -> RuleRows {
    let rules = view.engine.rules();
    rules
        .map(|(id, rule)| (rule_row(id), (id, rule.clone())))
        // The others have no row, or it is not theirs yet.
        .filter(|(row, (id, _))| {
            *row >= FIRST_RULE_ROW && view.folds.rule_of_row(*row) == Some(*id)
        })
        .collect()
}

fn hits_of(
    counted: &Counted,
    rules: &RuleRows,
) -> Result<Vec<(RuleId, RuleRef, u64)>, DataplaneError> {
    let hits = counted.rule_hits(rules.keys().copied())?;
    let named = hits.into_iter().filter_map(|(row, hit)| {
        let (id, rule) = rules.get(&row)?;
        Some((*id, RuleRef::clone(rule), hit.connections))
    });
    Ok(named.collect())
}

/// New connections by rule; rules that decided none are left out.
///
/// # Errors
/// The map cannot be read, or the agent stops.
pub async fn rule_hits(handle: &Handle) -> Result<Vec<(RuleId, RuleRef, u64)>, TakeError> {
    let rules = handle.ask(rule_rows).await?;
    read(handle, move |counted| hits_of(counted, &rules)).await
}

/// New connections that no rule with a row of its own decided.
fn allowed(counted: &Counted) -> Result<BTreeMap<(Direction, Reason), u64>, DataplaneError> {
    let reasons = Reason::ALL
        .iter()
        .filter(|reason| reason.verdict() == Verdict::Allow);
    let rows: HashMap<u32, (Direction, Reason)> = reasons
        .flat_map(|reason| Direction::ALL.map(|direction| (direction, *reason)))
        .map(|key| (hit_row(RuleId::NONE, key.1, key.0), key))
        .collect();
    let hits = counted.rule_hits(rows.keys().copied())?;
    let found = hits
        .into_iter()
        .filter_map(|(row, hit)| Some((*rows.get(&row)?, hit.connections)));
    Ok(found.collect())
}

/// A row of DENIED as it is in the map.
pub type Denial = (DeniedKey, Denied);

/// Every refusal that is remembered. Names are put to them by [`denied`].
///
/// # Errors
/// The map cannot be read, or the agent stops.
pub async fn denials(handle: &Handle) -> Result<Vec<Denial>, TakeError> {
    read(handle, Counted::denied).await
}

/// How full the maps are.
///
/// # Errors
/// A map cannot be read, or the agent stops.
pub async fn maps(handle: &Handle) -> Result<Vec<dto::MapFill>, TakeError> {
    read(handle, fills).await
}

fn fills(counted: &Counted) -> Result<Vec<dto::MapFill>, DataplaneError> {
    let uses = counted.map_uses()?;
    Ok(uses
        .into_iter()
        .map(|each| dto::MapFill {
            name: each.map.to_ascii_lowercase(),
            entries: each.entries,
            capacity: each.capacity,
        })
        .collect())
}
const fn traffic(traffic: agent_common::maps::Traffic) -> dto::Traffic {
    dto::Traffic {
        packets: traffic.packets,
        bytes: traffic.bytes,
    }
}

fn unclaimed(unclaimed: &Unclaimed, posture: Posture) -> dto::Unclaimed {
    let interface = &unclaimed.interface;
    let netns = interface.netns.display().to_string();
    dto::Unclaimed {
        interface: interface.name.clone(),
        netns: (!netns.is_empty()).then_some(netns),
        addresses: interface
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect(),
        pod: interface
            .sandbox
            .as_ref()
            .map(|sandbox| sandbox.pod.to_string()),
        enclosed: unclaimed.is_enclosed,
        open: !unclaimed.is_enclosed || unclaimed.error.is_some() || posture == Posture::Open,
    }
}

fn finding(reported: &crate::source::Reported) -> dto::Finding {
    dto::Finding {
        severity: match reported.finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
        .to_owned(),
        message: reported.to_string(),
    }
}

fn endpoint(
    pod: Option<&Arc<Pod>>,
    endpoint: &Endpoint,
    status: Option<&EndpointStatus>,
) -> dto::Endpoint {
    let (state, note) = match &endpoint.state {
        EndpointState::Pending => (dto::EndpointState::Pending, None),
        EndpointState::Enforced => (dto::EndpointState::Programmed, None),
        EndpointState::NoSlot => {
            let note = format!(
                "every one of the node's {} slots is taken: the posture decides until a pod goes",
                SLOTS - 1
            );
            (dto::EndpointState::Failed, Some(note))
        }
        EndpointState::Orphaned => {
            let note = if status.is_some_and(|status| status.slot != 0) {
                "its pod object is gone while the interface stays: its policy stays in force"
            } else {
                "its pod object is gone while the interface stays: the posture decides"
            };
            (dto::EndpointState::Failed, Some(note.to_owned()))
        }
        EndpointState::Failed { error } => (dto::EndpointState::Failed, Some(error.clone())),
    };
    let slot = status.map(|status| status.slot).filter(|slot| *slot != 0);
    let directions = Direction::ALL.map(|direction| {
        let place = usize::from(direction.index());
        let set = status
            .and_then(|status| status.sets.get(place).copied())
            .filter(|set| *set != 0);
        dto::EndpointDirection {
            direction: direction.into(),
            isolated: set.is_some(),
            set,
            isolated_by: Vec::new(),
            passed: dto::Traffic::default(),
            dropped: BTreeMap::new(),
        }
    });
    dto::Endpoint {
        namespace: endpoint.pod.namespace.to_string(),
        pod: endpoint.pod.name.to_string(),
        workload: pod.map_or_else(
            || format!("Pod/{}", endpoint.pod.name),
            |pod| pod.workload.to_string(),
        ),
        addresses: endpoint
            .interface
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect(),
        ifindex: Some(endpoint.interface.ifindex.0),
        slot,
        state,
        note,
        revision: status
            .filter(|status| status.revision != 0)
            .map(|status| status.revision.to_string()),
        directions: directions.into(),
    }
}

/// Refusals with names, in the order given.
#[expect(single_use_lifetimes, reason = "anonymous ones are not stable here")]
pub fn denied<'a>(
    view: &View<'_>,
    rows: impl IntoIterator<Item = &'a Denial>,
) -> Vec<DeniedReading> {
    rows.into_iter()
        .map(|(key, row)| {
            let peer = std::net::IpAddr::from(key.peer);
            let owner = view.engine.slot_owner(key.slot);
            let local = match view.pod_of_slot(key.slot) {
                Some(pod) => crate::answer::pod_party(&pod),
                // The pod went; its name is all that is left.
                None => owner.map_or_else(dto::Party::default, |owner| dto::Party {
                    namespace: Some(owner.pod.namespace.to_string()),
                    pod: Some(owner.pod.name.to_string()),
                    ..dto::Party::default()
                }),
            };
            DeniedReading {
                key: (
                    key.slot,
                    peer,
                    key.port,
                    key.protocol,
                    Direction::from_index(key.direction),
                ),
                uid: owner.map_or_else(String::new, |owner| owner.uid.0.to_string()),
                local,
                peer: dto::Party {
                    ip: Some(peer.to_string()),
                    ..join::peer_party(view, 0, peer)
                },
                reason: Cause::from_number(row.reason).label(),
                packets: row.packets,
                times: view
                    .tick
                    .as_ref()
                    .and_then(|tick| Some((at(tick, row.first)?, at(tick, row.last)?))),
                revision: row.revision,
            }
        })
        .collect()
}

fn at(tick: &Tick, jiffies: u64) -> Option<jiff::Timestamp> {
    jiff::Timestamp::try_from(tick.wall(jiffies)?).ok()
}
