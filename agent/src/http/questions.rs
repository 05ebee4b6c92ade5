//! `can`, `why` and the effective policy, asked of the running agent: the answers of
//! [`crate::answer`], with what the kernel has seen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agent_common::Direction;
use agent_policy::model::Protocol;

use super::Failure;
use crate::answer::{self, End, PortName, PortReference, Reference, Resolved};
use crate::dto;
use crate::flows::join::Names as _;
use crate::reading::{self, Denial, DeniedReading};
use crate::reconcile::View;

/// Refusals that `why --to` lists.
const MOST_DENIALS: usize = 20;

/// Who asks about whom.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) from: Option<Reference>,
    pub(super) to: Reference,
    pub(super) namespace: String,
}

/// One pair, resolved.
struct Ends {
    from: Resolved,
    to: Resolved,
}

impl Question {
    fn ends(&self, view: &View<'_>) -> Result<Ends, Failure> {
        let resolve = |reference: &Reference| {
            answer::resolve(view.cluster(), reference, &self.namespace)
                .map_err(answer::AnswerError::from)
        };
        let Some(from) = &self.from else {
            return Err(Failure(
                axum::http::StatusCode::BAD_REQUEST,
                "say from=…".to_owned(),
            ));
        };
        Ok(Ends {
            from: resolve(from)?,
            to: resolve(&self.to)?,
        })
    }
}

/// May one reach the other?
pub(super) fn can(
    view: &View<'_>,
    question: &Question,
    denials: &[Denial],
) -> Result<dto::Explanation, Failure> {
    let port = question
        .to
        .port
        .as_ref()
        .ok_or_else(|| answer::AnswerError::PortMissing(question.to.to_string()))?;
    let ends = question.ends(view)?;
    let mut explanation = answer::explain(view.cluster(), &ends.from, &ends.to, port)?;
    let rows = ends.refused(view, denials);
    observe(view, &rows, &mut explanation);
    Ok(explanation)
}

/// Why, on the port that is said; else on those that were refused; else on those declared.
pub(super) fn why(
    view: &View<'_>,
    question: &Question,
    denials: &[Denial],
) -> Result<dto::ExplanationList, Failure> {
    let ends = question.ends(view)?;
    let rows = ends.refused(view, denials);
    let ports = if let Some(port) = &question.to.port {
        vec![port.clone()]
    } else {
        {
            let refused: BTreeSet<(Protocol, u16)> = rows
                .iter()
                .map(|row| (Protocol(row.key.3), row.key.2))
                .filter(|(protocol, _)| protocol.has_ports())
                .collect();
            if refused.is_empty() {
                answer::declared_ports(&ends.to)
            } else {
                let number = |(protocol, port)| PortReference {
                    protocol,
                    port: PortName::Number(port),
                };
                refused.into_iter().map(number).collect()
            }
        }
    };
    if ports.is_empty() {
        return Err(answer::AnswerError::NothingDeclared(ends.to.party.to_string()).into());
    }
    let mut items = Vec::new();
    for port in &ports {
        let mut explanation = answer::explain(view.cluster(), &ends.from, &ends.to, port)?;
        observe(view, &rows, &mut explanation);
        items.push(explanation);
    }
    Ok(dto::ExplanationList { items })
}

impl Ends {
    /// The refusals of connections from the one to the other. Names are put to no others: there
    /// may be very many.
    fn refused(&self, view: &View<'_>, denials: &[Denial]) -> Vec<DeniedReading> {
        let own = denials.iter().filter(|(key, _)| {
            let (local, peer) = match Direction::from_index(key.direction) {
                Direction::Egress => (&self.from, &self.to),
                Direction::Ingress => (&self.to, &self.from),
            };
            is_address_of(peer, key.peer.into()) && is_pod_of(view, local, key.slot)
        });
        reading::denied(view, own)
    }
}

fn is_pod_of(view: &View<'_>, resolved: &Resolved, slot: u32) -> bool {
    let Some(owner) = view.engine.slot_owner(slot) else {
        return false;
    };
    resolved.ends.iter().any(|end| match end {
        End::Pod(pod) => pod.uid == owner.uid,
        End::Address(_) => false,
    })
}

fn is_address_of(resolved: &Resolved, address: IpAddr) -> bool {
    resolved
        .ends
        .iter()
        .any(|end| end.addresses().contains(&address))
}

/// Adds what the kernel has counted.
fn observe(view: &View<'_>, rows: &[DeniedReading], explanation: &mut dto::Explanation) {
    let rows: Vec<&DeniedReading> = rows
        .iter()
        .filter(|row| {
            Some(row.key.2) == explanation.port
                && Protocol(row.key.3).to_string() == explanation.protocol
        })
        .collect();
    explanation.observed = Some(observed(view, &rows));
}

fn observed(view: &View<'_>, rows: &[&DeniedReading]) -> dto::Observed {
    let mut sum = dto::Observed::default();
    let mut first = None;
    let mut last = None;
    for row in rows {
        sum.denied_packets += row.packets;
        sum.node.clone_from(&view.config.node);
        let Some((its_first, its_last)) = row.times else {
            continue;
        };
        first = Some(first.map_or(its_first, |first: jiff::Timestamp| first.min(its_first)));
        if last.is_none_or(|last| last <= its_last) {
            last = Some(its_last);
            sum.revision = Some(row.revision.to_string());
        }
    }
    sum.first = first.map(|first| first.to_string());
    sum.last = last.map(|last| last.to_string());
    sum.incomplete = overflow(view) > 0;
    sum
}

fn overflow(view: &View<'_>) -> u64 {
    // A counter that cannot be read is said by status; here it only adds a word.
    let counters = view.dataplane.counters().unwrap_or_default();
    counters
        .iter()
        .find(|(counter, _)| *counter == agent_common::maps::Counter::DeniedOverflow)
        .map_or(0, |(_, count)| *count)
}

/// The latest refusals of connections to and from someone, each explained under the policies as
/// they are now.
pub(super) fn latest(
    view: &View<'_>,
    question: &Question,
    denials: &[Denial],
) -> Result<dto::DenialList, Failure> {
    let who = answer::resolve(view.cluster(), &question.to, &question.namespace)
        .map_err(answer::AnswerError::from)?;
    let mut own: Vec<&Denial> = denials
        .iter()
        .filter(|(key, _)| is_address_of(&who, key.peer.into()) || is_pod_of(view, &who, key.slot))
        .collect();
    own.sort_by_key(|(_, row)| std::cmp::Reverse(row.last));
    own.truncate(MOST_DENIALS);
    let rows = reading::denied(view, own);
    let items = rows.iter().map(|row| denial(view, row)).collect();
    Ok(dto::DenialList {
        items,
        lost: overflow(view),
    })
}

fn denial(view: &View<'_>, row: &DeniedReading) -> dto::Denial {
    let (slot, peer, port, protocol, direction) = row.key;
    let protocol = Protocol(protocol);
    let local = view.pod_of_slot(slot).map(|pod| Resolved {
        party: answer::pod_party(&pod),
        ends: vec![End::Pod(pod)],
    });
    let other = Resolved {
        party: row.peer.clone(),
        ends: vec![match view.cluster().owner_of(peer) {
            Some(pod) => End::Pod(std::sync::Arc::clone(pod)),
            None => End::Address(peer),
        }],
    };
    let (from, to) = match direction {
        Direction::Egress => (row.local.clone(), row.peer.clone()),
        Direction::Ingress => (row.peer.clone(), row.local.clone()),
    };
    let reference = PortReference {
        protocol,
        port: PortName::Number(port),
    };
    let explanation = local.filter(|_| protocol.has_ports()).and_then(|local| {
        let (from, to) = match direction {
            Direction::Egress => (local, other),
            Direction::Ingress => (other, local),
        };
        answer::explain_refused(view.cluster(), &from, &to, &reference).ok()
    });
    dto::Denial {
        from,
        to,
        direction: direction.into(),
        protocol: protocol.to_string(),
        port: protocol.has_ports().then_some(port),
        reason: row.reason.clone(),
        observed: observed(view, &[row]),
        explanation,
    }
}

/// The effective policy of one pod, with how often each rule decided.
pub(super) fn policy(
    view: &View<'_>,
    reference: &Reference,
    hits: &BTreeMap<String, u64>,
) -> Result<dto::EffectivePolicy, Failure> {
    let resolved =
        answer::resolve(view.cluster(), reference, "default").map_err(answer::AnswerError::from)?;
    let Some(End::Pod(pod)) = resolved.ends.first() else {
        let message = format!("{reference} is no pod: no policy applies to it");
        return Err(Failure(axum::http::StatusCode::NOT_FOUND, message));
    };
    Ok(answer::effective(view.cluster(), pod, hits))
}
