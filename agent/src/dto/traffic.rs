//! Flows and edges: connections one by one, and folded by who talks to whom.

use serde::{Deserialize, Serialize};

use super::{DirectionWord, NearRule, Party, VerdictWord};

/// Where and why a flow was decided.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// Direction of the judgement.
    pub direction: DirectionWord,
    /// `source` for egress, `destination` for ingress.
    pub at: String,
    /// A word of the list of reasons; `unknown-<n>` for a number this version does not know.
    pub reason: String,
    /// The deciding rule.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rule: Option<String>,
    /// Revision of the endpoint's policy.
    pub revision: String,
    /// The node that decided.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<String>,
    /// Policies that isolate the endpoint, for denials.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub isolated_by: Vec<String>,
    /// Rules that nearly admit it, nearest first, for denials.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub nearest: Vec<NearRule>,
}

/// One connection as the kernel judged its first packet.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// When.
    pub time: String,
    /// Who opened it.
    pub from: Party,
    /// Its port.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from_port: Option<u16>,
    /// To whom.
    pub to: Party,
    /// `TCP`, …
    pub protocol: String,
    /// Destination port; absent for protocols without ports.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<u16>,
    /// What happened to it.
    pub verdict: VerdictWord,
    /// By what.
    pub decision: Decision,
    /// Packets this record stands for.
    pub packets: u32,
}

/// The latest flows.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowList {
    /// Oldest first.
    pub items: Vec<Flow>,
    /// Events that were lost since the agent started.
    pub events_lost: u64,
}

/// From when to when an answer was watched for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Window {
    /// Start.
    pub from: String,
    /// End.
    pub to: String,
}

/// Connections between the same workloads, on the same port, decided alike.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Edge {
    /// Short name of the edge, stable while its ends, port and decision are.
    pub id: String,
    /// Watched time.
    pub window: Window,
    /// Who opened the connections.
    pub from: Party,
    /// To whom.
    pub to: Party,
    /// `TCP`, …
    pub protocol: String,
    /// Destination port.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<u16>,
    /// What happened to them.
    pub verdict: VerdictWord,
    /// By what; of the latest one.
    pub decision: Decision,
    /// Connections (allowed) or refused packets (denied).
    pub connections: u64,
    /// First one.
    pub first_seen: String,
    /// Latest one.
    pub last_seen: String,
    /// Events lost while the window was open.
    pub events_lost: u64,
}

/// Every edge the agent remembers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EdgeList {
    /// Latest first.
    pub items: Vec<Edge>,
    /// Watched time.
    pub window: Window,
    /// Events lost while the window was open.
    pub events_lost: u64,
    /// Edges forgotten because there were too many.
    pub evicted: u64,
}
