//! The agent and its node: endpoints, maps, policy in force, what is wrong.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{DirectionWord, Isolating};

/// What became of waiting for a pod's policy, as the chained CNI plugin is told.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PodStart {
    /// How far its interface is.
    pub state: PodStartState,
    /// Why it is not there, for people.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message: Option<String>,
}

/// How far the interface of a pod that starts is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PodStartState {
    /// Its policy is in force.
    Programmed,
    /// Not within the time that was given.
    Pending,
    /// It never will be: it is of a kind that is not enforced.
    Unenforced,
}

/// Where an endpoint is on its way to being enforced.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointState {
    /// Its policy is in force.
    Programmed,
    /// Not yet.
    Pending,
    /// Could not be programmed; it has its posture.
    Failed,
}

impl EndpointState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Programmed, Self::Pending, Self::Failed];

    /// The word.
    pub const fn as_label(self) -> &'static str {
        match self {
            Self::Programmed => "programmed",
            Self::Pending => "pending",
            Self::Failed => "failed",
        }
    }
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes from the IP header on.
    pub bytes: u64,
}

/// One direction of an endpoint.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointDirection {
    /// The direction.
    pub direction: DirectionWord,
    /// Some policy selects the endpoint in this direction.
    pub isolated: bool,
    /// The policy set in force; absent when not isolated.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub set: Option<u32>,
    /// Names of the policies that isolate it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub isolated_by: Vec<String>,
    /// Traffic let through since the slot was opened.
    pub passed: Traffic,
    /// Traffic dropped since then, by reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub dropped: BTreeMap<String, Traffic>,
}

/// A pod on this node with its interface and policy.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Namespace.
    pub namespace: String,
    /// Pod.
    pub pod: String,
    /// `Deployment/portal`.
    pub workload: String,
    /// Addresses.
    pub addresses: Vec<String>,
    /// Host-side interface index.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ifindex: Option<u32>,
    /// Place in per-slot maps.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub slot: Option<u32>,
    /// State.
    pub state: EndpointState,
    /// Why it is not programmed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
    /// Revision of its policy.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub revision: Option<String>,
    /// Ingress, then egress.
    pub directions: Vec<EndpointDirection>,
}

/// `/v1/endpoints`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct EndpointList {
    /// By namespace and name.
    pub items: Vec<Endpoint>,
}

/// How full a map is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct MapFill {
    /// Name, lower case.
    pub name: String,
    /// Entries in use; absent where counting is not possible.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub entries: Option<u64>,
    /// Entries there is room for.
    pub capacity: u64,
}

/// `/v1/maps`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct MapList {
    /// In the order of a packet's way.
    pub items: Vec<MapFill>,
}

/// Something wrong with an object or a file.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// `warning` or `error`.
    pub severity: String,
    /// Object, field, value, remedy, in one line.
    pub message: String,
}

/// A local pod that is not enforced.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Unenforced {
    /// `namespace/pod`.
    pub pod: String,
    /// Where it was found and why it is not enforced.
    pub message: String,
}

/// An interface that leads to a pod no object states.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unclaimed {
    /// The host-side interface.
    pub interface: String,
    /// The network namespace's file.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub netns: Option<String>,
    /// Addresses at its other end.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub addresses: Vec<String>,
    /// `namespace/name` of the pod that the container runtime made it for, whose object is not here.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pod: Option<String>,
    /// It came after the agent did, so the posture decides about its packets; otherwise it is left
    /// as it was.
    pub enclosed: bool,
    /// Its packets pass.
    pub open: bool,
}

/// An interface that programs of another layout version judge, by the policy of the agent that left
/// them.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Elsewhere {
    /// The host-side interface.
    pub interface: String,
    /// That version; `unknown` when its pins are gone.
    pub layout: String,
    /// Why it was not taken over yet.
    pub message: String,
}

/// The latest change that reached the kernel.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Apply {
    /// When.
    pub time: String,
    /// Writes it took.
    pub writes: u64,
    /// From event to map, in milliseconds; absent when no change of objects was behind it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub took_ms: Option<f64>,
}

/// How the chained CNI plugin stands in the node's network.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CniPlugin {
    /// The list of plugins that names it; absent when none does, and then a finding says why.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub list: Option<String>,
    /// How often the list was written since the agent started: more than once, and somebody else
    /// writes it, too.
    pub writes: u64,
}

/// `/v1/status`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Node name; absent when the agent was not told.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<String>,
    /// True when everything known is in force.
    pub enforcing: bool,
    /// Policies in force.
    pub policies: usize,
    /// Pods known, on this node and elsewhere.
    pub pods: usize,
    /// Namespaces known.
    pub namespaces: usize,
    /// Local pods.
    pub endpoints: Vec<Endpoint>,
    /// Local pods that cannot be enforced.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub unenforced: Vec<Unenforced>,
    /// Interfaces whose pod no object states.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub unclaimed: Vec<Unclaimed>,
    /// Interfaces that another layout version still judges: an upgrade or a downgrade is under way.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub elsewhere: Vec<Elsewhere>,
    /// What is wrong with the objects.
    pub findings: Vec<Finding>,
    /// How full the maps are.
    pub maps: Vec<MapFill>,
    /// The latest apply.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_apply: Option<Apply>,
    /// Why the wanted state is not in force; absent when it is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    /// How the chained CNI plugin stands in the node's network; absent where it is not asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cni_plugin: Option<CniPlugin>,
    /// Events lost since the pins were made.
    pub events_lost: u64,
    /// Refusals that found no room in DENIED.
    pub denied_overflow: u64,
}

/// One rule of an endpoint's effective policy.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveRule {
    /// `namespace/policy/ingress/0`.
    pub rule: String,
    /// Who, in words.
    pub peers: String,
    /// On which ports, in words.
    pub ports: String,
    /// New connections it decided; absent when nothing counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub connections: Option<u64>,
}

/// One direction of an endpoint's effective policy.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveDirection {
    /// The direction.
    pub direction: DirectionWord,
    /// The policies that isolate it; empty means not isolated.
    pub isolated_by: Vec<Isolating>,
    /// Every rule that admits something.
    pub rules: Vec<EffectiveRule>,
}

/// `/v1/policy/{endpoint}`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EffectivePolicy {
    /// `namespace/pod`.
    pub endpoint: String,
    /// Ingress, then egress.
    pub directions: Vec<EffectiveDirection>,
}

/// What `uninstall` took away.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Removal {
    /// One line a thing.
    pub removed: Vec<String>,
}
