//! Local pods' interfaces, found whatever the CNI: addresses inside network namespaces and the
//! host-side interface behind each. Which pod that is, is decided by `reconcile`.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

/// Index of a network interface of the node.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct IfIndex(pub u32);

impl fmt::Display for IfIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The host side of a veth whose other end is in a network namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Interface {
    /// Index on the host side.
    pub ifindex: IfIndex,
    /// Name on the host side.
    pub name: String,
    /// Addresses of the other end, link-local ones left out, sorted.
    pub addresses: Vec<IpAddr>,
    /// The network namespace's file.
    pub netns: PathBuf,
}

/// An address inside a namespace that Picket cannot enforce: no veth into the node leads there.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Unreachable {
    /// The network namespace's file.
    pub netns: PathBuf,
    /// The interface inside it.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Why: `macvlan`, `peer is not in this namespace`.
    pub why: String,
}
