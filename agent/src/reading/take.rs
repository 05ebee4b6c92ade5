//! Takes a reading: the one place that turns the loop's view into plain values.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use agent_common::maps::{FIRST_RULE_ROW, SLOTS, hit_row, rule_row};
use agent_common::{Direction, Reason, RuleId, Verdict};
use agent_policy::cluster::Cluster;
use agent_policy::engine::EndpointStatus;
use agent_policy::evaluate;
use agent_policy::model::{Pod, RuleRef, Severity};

use super::{DeniedReading, Reading, SlotReading};
use crate::config::Posture;
use crate::dataplane::{DataplaneError, Tick};
use crate::dto;
use crate::flows::decode::Cause;
use crate::flows::join::{self, Names};
use crate::reconcile::{Endpoint, EndpointState, Phase, Unclaimed, View};

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

impl Reading {
    /// Reads the loop's state and the kernel's counts. How full maps are costs a walk over them:
    /// `with_maps` when somebody looks.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn take(view: &View<'_>, with_maps: bool) -> Result<Self, DataplaneError> {
        let cluster = view.engine.cluster();
        let slots = slots(view)?;
        let statuses: HashMap<u32, EndpointStatus> = view
            .engine
            .endpoints()
            .into_iter()
            .map(|each| (each.ifindex, each))
            .collect();
        let mut endpoints: Vec<dto::Endpoint> = view
            .endpoints
            .values()
            .map(|each| {
                endpoint(
                    cluster,
                    each,
                    statuses.get(&each.interface.ifindex.0),
                    &slots,
                )
            })
            .collect();
        endpoints.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
        let is_failing = view.plans.failing.is_some() || view.plans.refused.is_some();
        let is_here = |pod: &Pod| {
            view.config
                .node
                .as_ref()
                .is_none_or(|node| *node == pod.node)
        };
        Ok(Self {
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
            host_network: cluster
                .pods()
                .filter(|pod| pod.host_network && is_here(pod))
                .count(),
            findings: view.findings.iter().map(finding).collect(),
            policies: cluster
                .policies()
                .map(|policy| {
                    let isolates = Direction::ALL.map(|direction| policy.isolates(direction));
                    (
                        policy.name.namespace.to_string(),
                        policy.name.name.to_string(),
                        isolates,
                    )
                })
                .collect(),
            pods: cluster.pods().count(),
            namespaces: cluster.namespaces().count(),
            slots,
            denied: denied(view)?,
            rule_hits: rule_hits(view)?,
            allowed: allowed(view)?,
            counters: view.dataplane.counters()?,
            maps: if with_maps { maps(view)? } else { Vec::new() },
            plans: view.plans.clone(),
        })
    }
}

/// Slots that somebody has, or had while nobody else has it.
fn slots(view: &View<'_>) -> Result<BTreeMap<u32, SlotReading>, DataplaneError> {
    let mut slots = BTreeMap::new();
    for slot in 1..SLOTS {
        let Some(owner) = view.engine.slot_owner(slot) else {
            continue;
        };
        let [ingress, egress] = view.dataplane.passed(slot)?.map(traffic);
        let dropped = view
            .dataplane
            .dropped(slot)?
            .into_iter()
            .map(|row| ((row.direction, row.reason), traffic(row.traffic)))
            .collect();
        let reading = SlotReading {
            uid: owner.uid.0.to_string(),
            namespace: owner.pod.namespace.to_string(),
            passed: [ingress, egress],
            dropped,
        };
        slots.insert(slot, reading);
    }
    Ok(slots)
}

/// New connections by rule; rules that decided none are left out.
///
/// # Errors
/// The map cannot be read.
pub fn rule_hits(view: &View<'_>) -> Result<Vec<(RuleId, RuleRef, u64)>, DataplaneError> {
    let rules: HashMap<u32, (RuleId, &RuleRef)> = view
        .engine
        .rules()
        .map(|(id, rule)| (rule_row(id), (id, rule)))
        .filter(|(row, _)| *row >= FIRST_RULE_ROW)
        .collect();
    let hits = view.dataplane.rule_hits(rules.keys().copied())?;
    let named = hits.into_iter().filter_map(|(row, hit)| {
        let (id, rule) = rules.get(&row)?;
        Some((*id, RuleRef::clone(rule), hit.connections))
    });
    Ok(named.collect())
}

/// New connections that no rule with a row of its own decided.
fn allowed(view: &View<'_>) -> Result<BTreeMap<(Direction, Reason), u64>, DataplaneError> {
    let reasons = Reason::ALL
        .iter()
        .filter(|reason| reason.verdict() == Verdict::Allow);
    let rows: HashMap<u32, (Direction, Reason)> = reasons
        .flat_map(|reason| Direction::ALL.map(|direction| (direction, *reason)))
        .map(|key| (hit_row(RuleId::NONE, key.1, key.0), key))
        .collect();
    let hits = view.dataplane.rule_hits(rows.keys().copied())?;
    let found = hits
        .into_iter()
        .filter_map(|(row, hit)| Some((*rows.get(&row)?, hit.connections)));
    Ok(found.collect())
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
        enclosed: unclaimed.is_enclosed,
        open: !unclaimed.is_enclosed || posture == Posture::Open,
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
    cluster: &Cluster,
    endpoint: &Endpoint,
    status: Option<&EndpointStatus>,
    slots: &BTreeMap<u32, SlotReading>,
) -> dto::Endpoint {
    let (state, note) = match &endpoint.state {
        EndpointState::Pending => (dto::EndpointState::Pending, None),
        EndpointState::Enforced => (dto::EndpointState::Programmed, None),
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
    let pod = cluster.pod(&endpoint.uid);
    let slot = status.map(|status| status.slot).filter(|slot| *slot != 0);
    let counts = slot.and_then(|slot| slots.get(&slot));
    let directions = Direction::ALL.map(|direction| {
        let place = usize::from(direction.index());
        let set = status
            .and_then(|status| status.sets.get(place).copied())
            .filter(|set| *set != 0);
        let isolated_by: Vec<String> = pod
            .map(|pod| evaluate::isolating(cluster, pod, direction))
            .unwrap_or_default()
            .iter()
            .map(|policy| policy.name.to_string())
            .collect();
        dto::EndpointDirection {
            direction: direction.into(),
            isolated: set.is_some(),
            set,
            isolated_by,
            passed: counts
                .and_then(|counts| counts.passed.get(place).copied())
                .unwrap_or_default(),
            dropped: counts
                .into_iter()
                .flat_map(|counts| &counts.dropped)
                .filter(|((its, _), traffic)| *its == direction && traffic.packets > 0)
                .map(|((_, reason), traffic)| (reason.as_label().to_owned(), *traffic))
                .collect(),
        }
    });
    dto::Endpoint {
        namespace: endpoint.pod.namespace.to_string(),
        pod: endpoint.pod.name.to_string(),
        workload: pod.map_or_else(
            || format!("Pod/{}", endpoint.pod.name),
            |pod| pod.workload.clone(),
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

/// Every row of DENIED with names.
///
/// # Errors
/// The map cannot be read.
pub fn denied(view: &View<'_>) -> Result<Vec<DeniedReading>, DataplaneError> {
    let rows = view.dataplane.denied()?;
    Ok(rows
        .into_iter()
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
        .collect())
}

fn at(tick: &Tick, jiffies: u64) -> Option<jiff::Timestamp> {
    jiff::Timestamp::try_from(tick.wall(jiffies)?).ok()
}

/// How full the maps are.
///
/// # Errors
/// A map cannot be read.
pub fn maps(view: &View<'_>) -> Result<Vec<dto::MapFill>, DataplaneError> {
    let uses = view.dataplane.map_uses()?;
    Ok(uses
        .into_iter()
        .map(|each| dto::MapFill {
            name: each.map.to_ascii_lowercase(),
            entries: each.entries,
            capacity: each.capacity,
        })
        .collect())
}
