//! Policies, pods and namespaces after validation: no `Option` or empty list that secretly means
//! something, except where Kubernetes itself gives the empty list a meaning and the type says so.

mod service;

use std::collections::{BTreeMap, btree_map};
use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

pub use agent_common::{Direction, Reason, RuleId, Verdict};
use ipnet::IpNet;

use crate::selector::Selector;
pub use service::{BackendPort, EndpointSlice, Service, ServicePort};

/// Labels of a pod or namespace. Copies share what they hold until one is changed.
#[derive(Clone, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Labels(Arc<BTreeMap<String, String>>);

impl Labels {
    /// No labels.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a label; its value before, if it had one.
    pub fn insert(&mut self, key: String, value: String) -> Option<String> {
        Arc::make_mut(&mut self.0).insert(key, value)
    }

    /// Takes a label away; its value, if it had one.
    pub fn remove(&mut self, key: &str) -> Option<String> {
        Arc::make_mut(&mut self.0).remove(key)
    }

    /// What copies of these share.
    pub(crate) fn shared(&mut self) -> &mut Arc<BTreeMap<String, String>> {
        &mut self.0
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Deref for Labels {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl From<BTreeMap<String, String>> for Labels {
    fn from(labels: BTreeMap<String, String>) -> Self {
        Self(Arc::new(labels))
    }
}

impl<const N: usize> From<[(String, String); N]> for Labels {
    fn from(labels: [(String, String); N]) -> Self {
        BTreeMap::from(labels).into()
    }
}

impl FromIterator<(String, String)> for Labels {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(labels: I) -> Self {
        labels.into_iter().collect::<BTreeMap<_, _>>().into()
    }
}

impl<'a> IntoIterator for &'a Labels {
    type Item = (&'a String, &'a String);
    type IntoIter = btree_map::Iter<'a, String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// Name of a namespaced object.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ObjectName {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectName {
    /// Makes a name from its two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Identity of a pod: `metadata.uid`; manifests without one get `namespace/name`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PodUid(pub Arc<str>);

/// IP protocol number.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP (RFC 792).
    pub const ICMP: Self = Self(1);
    /// TCP (RFC 9293).
    pub const TCP: Self = Self(6);
    /// UDP (RFC 768).
    pub const UDP: Self = Self(17);
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: Self = Self(58);
    /// SCTP (RFC 9260).
    pub const SCTP: Self = Self(132);

    /// The protocol a Kubernetes port names.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "TCP" => Some(Self::TCP),
            "UDP" => Some(Self::UDP),
            "SCTP" => Some(Self::SCTP),
            _ => None,
        }
    }

    /// True for protocols whose flows have ports.
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP | Self::SCTP)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ICMP => f.write_str("ICMP"),
            Self::TCP => f.write_str("TCP"),
            Self::UDP => f.write_str("UDP"),
            Self::ICMPV6 => f.write_str("ICMPv6"),
            Self::SCTP => f.write_str("SCTP"),
            Self(other) => write!(f, "protocol {other}"),
        }
    }
}

/// A container port that has a name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ContainerPort {
    /// Name; empty when the port has none (it is still probed by `matrix`).
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Number.
    pub port: u16,
}

/// Where a pod is in its life, as far as its addresses go.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Phase {
    /// Pending, running or unknown.
    Live,
    /// `metadata.deletionTimestamp` is set.
    Terminating,
    /// Succeeded or Failed: its addresses are no longer its own.
    Completed,
}

/// A pod, trimmed to what policy needs.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Pod {
    /// Identity.
    pub uid: PodUid,
    /// Namespace and name.
    pub name: ObjectName,
    /// Labels.
    pub labels: Labels,
    /// `status.podIPs`, or `status.podIP`.
    pub addresses: Vec<IpAddr>,
    /// Container ports as declared, of containers and of init containers that keep running.
    pub ports: Arc<[ContainerPort]>,
    /// Shares the node's network: not enforced, not selected, seen as its node.
    pub host_network: bool,
    /// Phase.
    pub phase: Phase,
    /// `metadata.creationTimestamp`, seconds since 1970; 0 when absent.
    pub created: i64,
    /// `spec.nodeName`; empty when not scheduled.
    pub node: Arc<str>,
    /// Owning workload (`Deployment/name`); a bare pod is its own.
    pub workload: Arc<str>,
    /// `picket.dev/…` annotations.
    pub annotations: Labels,
}

impl Pod {
    /// A live pod about which nothing else is known: no labels, addresses or ports, no node, no
    /// workload, created at 0.
    pub fn new(uid: PodUid, name: ObjectName) -> Self {
        Self {
            uid,
            name,
            labels: Labels::new(),
            addresses: Vec::new(),
            ports: Arc::default(),
            host_network: false,
            phase: Phase::Live,
            created: 0,
            node: Arc::default(),
            workload: Arc::default(),
            annotations: Labels::new(),
        }
    }

    /// True for one whose object states no UID: a manifest that no API server has seen.
    pub fn goes_by_its_name(&self) -> bool {
        *self.uid.0 == *self.name.to_string()
    }
}

/// A namespace.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Namespace {
    /// Name.
    pub name: Arc<str>,
    /// Labels, `kubernetes.io/metadata.name` always among them.
    pub labels: Labels,
    /// `picket.dev/…` annotations.
    pub annotations: Labels,
}

/// A node: whose addresses are "the node".
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Node {
    /// Name.
    pub name: Arc<str>,
    /// Labels.
    pub labels: Labels,
    /// `status.addresses` that are IP addresses.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
}

/// A NetworkPolicy after defaulting and validation.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Policy {
    /// Namespace and name.
    pub name: ObjectName,
    /// `spec.podSelector`: which pods of the namespace it selects.
    pub pods: Selector,
    /// Isolates selected pods for ingress (`policyTypes` after defaulting).
    pub isolates_ingress: bool,
    /// Isolates selected pods for egress.
    pub isolates_egress: bool,
    /// `spec.ingress`, in order; ignored when `isolates_ingress` is false.
    pub ingress: Vec<Rule>,
    /// `spec.egress`, in order; ignored when `isolates_egress` is false.
    pub egress: Vec<Rule>,
    /// `picket.dev/…` annotations.
    pub annotations: Labels,
}

impl Policy {
    /// True when the policy isolates the pods it selects in this direction.
    pub fn isolates(&self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.isolates_ingress,
            Direction::Egress => self.isolates_egress,
        }
    }

    /// The rules of one direction.
    pub fn rules(&self, direction: Direction) -> &[Rule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// One ingress or egress rule: any of its peers, on any of its ports.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Rule {
    /// Who.
    pub peers: Peers,
    /// On which ports.
    pub ports: Ports,
}

impl Rule {
    /// What an unreadable rule becomes: it keeps its index and admits nothing.
    pub const NOTHING: Self = Self {
        peers: Peers::Any(Vec::new()),
        ports: Ports::Any(Vec::new()),
    };
}

/// `from` / `to`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Peers {
    /// Absent or empty in the object: everyone.
    All,
    /// Any of these; none when the list is empty (only unreadable peers make it so).
    Any(Vec<Peer>),
}

/// One item of `from` / `to`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Peer {
    /// Pods by selector.
    Pods {
        /// Which namespaces.
        namespaces: NamespaceScope,
        /// Which of their pods.
        pods: Selector,
    },
    /// Addresses.
    Block {
        /// The range.
        cidr: IpNet,
        /// Minus these, each inside `cidr`.
        except: Vec<IpNet>,
    },
}

/// Namespaces a pod peer speaks of.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum NamespaceScope {
    /// The policy's own (no `namespaceSelector`).
    Own,
    /// Those the selector selects.
    Selected(Selector),
}

/// `ports` of a rule.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Ports {
    /// Absent or empty in the object: every port of every protocol.
    All,
    /// Any of these; none when the list is empty (only unreadable ports make it so).
    Any(Vec<PortMatch>),
}

/// One item of `ports`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum PortMatch {
    /// Every port of a protocol (`port` absent).
    Protocol(Protocol),
    /// Numbers, both ends inclusive (`port`, `endPort`).
    Range {
        /// Protocol.
        protocol: Protocol,
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
    },
    /// A container port's name, resolved at the destination pod.
    Named {
        /// Protocol.
        protocol: Protocol,
        /// Name.
        name: String,
    },
}

/// Where a rule stands: `namespace/policy/ingress/0`. Orders as precedence does: by namespace,
/// name, then index.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RuleRef {
    /// The policy.
    pub policy: ObjectName,
    /// The direction.
    pub direction: Direction,
    /// Index in the object's list.
    pub index: u32,
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.policy, self.direction, self.index)
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Severity {
    /// Works, but probably not as meant.
    Warning,
    /// The part it names is not in force; nothing is widened.
    Error,
}

/// Something wrong with an object, for people: which object, which field, which value, what to do.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// `networkpolicy payments/allow-api`.
    pub object: String,
    /// `spec.ingress[2].from[0].ipBlock.cidr`; empty when the whole object is meant.
    pub field: String,
    /// What is wrong, with the value, and what it means until mended.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            write!(f, "{}: {}", self.object, self.message)
        } else {
            write!(f, "{}: {} {}", self.object, self.field, self.message)
        }
    }
}

/// Any change of the ground state, from a watch or from a directory.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Change {
    /// A pod was added or changed.
    Pod(Box<Pod>),
    /// A pod went.
    PodGone(PodUid),
    /// A namespace was added or changed.
    Namespace(Namespace),
    /// A namespace went.
    NamespaceGone(Arc<str>),
    /// A node was added or changed.
    Node(Node),
    /// A node went.
    NodeGone(Arc<str>),
    /// A policy was added or changed.
    Policy(Box<Policy>),
    /// A policy went.
    PolicyGone(ObjectName),
    /// A Service was added or changed.
    Service(Box<Service>),
    /// A Service went.
    ServiceGone(ObjectName),
    /// A slice of a Service's backends was added or changed.
    EndpointSlice(Box<EndpointSlice>),
    /// A slice of a Service's backends went.
    EndpointSliceGone(ObjectName),
}
