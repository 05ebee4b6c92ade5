//! What leaves the process: the objects of the API and of `-o json`, and nothing that computes.
//!
//! Fixed once they are out: fields are added, never renamed. Unknown is absent, never 0 or "".
//! Times are RFC 3339 UTC. The engine's own types stay unserializable, so that they can change.

use std::collections::BTreeMap;

use agent_common::{Direction, Reason, Verdict};
use serde::{Deserialize, Serialize};

/// `apiVersion` of every object here.
pub const API_VERSION: &str = "picket.dev/v1alpha1";

/// An object with its version and kind.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document<T> {
    /// [`API_VERSION`].
    pub api_version: String,
    /// What `body` is.
    pub kind: String,
    /// Its fields.
    #[serde(flatten)]
    pub body: T,
}

/// An object with a kind.
pub trait Kind {
    /// The kind's name.
    const KIND: &'static str;

    /// The object as it leaves the process.
    fn into_document(self) -> Document<Self>
    where
        Self: Sized,
    {
        Document {
            api_version: API_VERSION.to_owned(),
            kind: Self::KIND.to_owned(),
            body: self,
        }
    }
}

macro_rules! kinds {
    ($($name:ident),*) => { $(impl Kind for $name { const KIND: &'static str = stringify!($name); })* };
}
kinds!(
    Status,
    EndpointList,
    EdgeList,
    Edge,
    FlowList,
    Flow,
    Explanation,
    ExplanationList,
    DenialList,
    EffectivePolicy,
    MapList,
    PodStart,
    Removal,
    Doctor,
    Problem
);

/// A verdict for people: the kernel's three, and the honest fourth.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VerdictWord {
    /// It passes.
    Allow,
    /// It is dropped.
    Deny,
    /// Audited policies would judge it differently.
    Audit,
    /// Cannot be told.
    Unknown,
}

impl VerdictWord {
    /// The word.
    pub const fn as_label(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Audit => "audit",
            Self::Unknown => "unknown",
        }
    }
}

impl From<Verdict> for VerdictWord {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Allow => Self::Allow,
            Verdict::Deny => Self::Deny,
            Verdict::Audit => Self::Audit,
        }
    }
}

impl From<Reason> for VerdictWord {
    fn from(reason: Reason) -> Self {
        reason.verdict().into()
    }
}

/// Ingress or egress, seen from the pod.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DirectionWord {
    /// Towards the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl DirectionWord {
    /// The word.
    pub const fn as_label(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl From<Direction> for DirectionWord {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Ingress => Self::Ingress,
            Direction::Egress => Self::Egress,
        }
    }
}

impl From<DirectionWord> for Direction {
    fn from(word: DirectionWord) -> Self {
        match word {
            DirectionWord::Ingress => Self::Ingress,
            DirectionWord::Egress => Self::Egress,
        }
    }
}

/// One side of a connection, as far as it is known.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Party {
    /// Namespace of the pod.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub namespace: Option<String>,
    /// Name of the pod; absent when a whole workload is meant.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pod: Option<String>,
    /// `Deployment/portal`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub workload: Option<String>,
    /// Name of the node, when the side is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<String>,
    /// Its address; absent when a whole workload is meant.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ip: Option<String>,
    /// Labels of the pod.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub labels: BTreeMap<String, String>,
}

/// One condition of a rule, held against a connection.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// `port`, `namespace`, `pod`, `ipBlock`, `selects`, …
    pub condition: String,
    /// True when it holds.
    pub holds: bool,
    /// What the rule wants.
    pub wants: String,
    /// What there is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub has: Option<String>,
}

/// A rule that nearly admits a connection.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NearRule {
    /// `namespace/policy/ingress/0`.
    pub rule: String,
    /// Names of the conditions that fail.
    pub failed: Vec<String>,
    /// Every condition, in the order they are read.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub conditions: Vec<Condition>,
}

/// A policy that isolates an endpoint in one direction.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Isolating {
    /// `namespace/name`.
    pub policy: String,
    /// Which pods it selects, in words.
    pub selects: String,
    /// How many rules it has in this direction.
    pub rules: usize,
}

/// What one direction says of a connection, at the endpoint it concerns.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Judgement {
    /// Egress at the source, ingress at the destination.
    pub direction: DirectionWord,
    /// Allow or deny.
    pub verdict: VerdictWord,
    /// Why: a word of the list of reasons.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// The rule that admits it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rule: Option<String>,
    /// What was judged instead of policy, in words ("not a pod of this cluster").
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
    /// Every policy that isolates the endpoint in this direction.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub isolated_by: Vec<Isolating>,
    /// Rules that nearly admit it, nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub nearest: Vec<NearRule>,
    /// What is often the cause, in sentences.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub suspects: Vec<String>,
    /// What would admit it on this side.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub addition: Option<Addition>,
}

/// What was seen of a connection, and over how long.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Observed {
    /// Packets denied.
    pub denied_packets: u64,
    /// First of them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub first: Option<String>,
    /// Latest of them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last: Option<String>,
    /// Revision of the endpoint's policy at the latest of them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub revision: Option<String>,
    /// The node that refused.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<String>,
    /// Refusals found no room in the table: the count may be too low.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub incomplete: bool,
}

/// `can` and `why`: may one talk to the other, and which rules, or which absence, decide.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Who opens the connection.
    pub from: Party,
    /// To whom.
    pub to: Party,
    /// `TCP`, `UDP`, `SCTP`, …
    pub protocol: String,
    /// Destination port; absent for protocols without ports.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<u16>,
    /// The name the port was asked for by.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port_name: Option<String>,
    /// Both directions together.
    pub verdict: VerdictWord,
    /// True when only some pods of the two workloads may talk; `judgements` are of a refused pair.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub partly: bool,
    /// Pairs of pods asked about, and how many of them are allowed.
    pub pairs: usize,
    /// Of `pairs`, those allowed.
    pub allowed_pairs: usize,
    /// Leaving the source, then entering the destination.
    pub judgements: Vec<Judgement>,
    /// What the kernel counted; absent when no agent was asked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub observed: Option<Observed>,
}

/// `why`: one explanation a port.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct ExplanationList {
    /// By port.
    pub items: Vec<Explanation>,
}

/// The smallest addition to the policies that admits a connection on one side.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Addition {
    /// `namespace/name` of the policy to add to, or of a new one.
    pub policy: String,
    /// True when `yaml` is a whole policy.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub is_new_policy: bool,
    /// `spec.ingress` or `spec.egress`, the list that `yaml` is an item of.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub field: Option<String>,
    /// What to add.
    pub yaml: String,
    /// What it admits beside what was asked for, when that is much.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub caution: Option<String>,
}

/// One refused (endpoint, peer, port), as DENIED holds it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Denial {
    /// Who opened the connection.
    pub from: Party,
    /// To whom.
    pub to: Party,
    /// Where it was refused.
    pub direction: DirectionWord,
    /// `TCP`, …
    pub protocol: String,
    /// Destination port.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<u16>,
    /// Why.
    pub reason: String,
    /// What was seen.
    pub observed: Observed,
    /// The explanation under the policies as they are now.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub explanation: Option<Explanation>,
}

/// `why --to X`: latest refusals first.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DenialList {
    /// Latest first.
    pub items: Vec<Denial>,
    /// Refusals that found no room in the table and are missing here (they are counted).
    pub lost: u64,
}

/// Why an answer could not be given.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// What is wrong and what to do.
    pub message: String,
}

pub use crate::dto::doctor::*;
pub use crate::dto::node::*;
pub use crate::dto::traffic::*;
mod doctor;
mod node;
mod traffic;

impl std::fmt::Display for Party {
    /// `web/portal-1`, `web/deploy/portal`, `node:node-a`, or the address.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (
            &self.namespace,
            &self.pod,
            &self.workload,
            &self.node,
            &self.ip,
        ) {
            (Some(namespace), Some(pod), ..) => write!(f, "{namespace}/{pod}"),
            (Some(namespace), None, Some(workload), ..) => {
                write!(f, "{namespace}/{}", crate::answer::short_workload(workload))
            }
            (.., Some(node), _) => write!(f, "node:{node}"),
            (.., None, Some(ip)) => f.write_str(ip),
            _ => f.write_str("unknown"),
        }
    }
}
