//! What a lab needs to know of manifests: which pods there are, at which addresses, with which
//! ports.

use std::net::IpAddr;

use agent_policy::model::ContainerPort;

/// A pod to lay out.
#[derive(Clone, Debug)]
pub struct PodManifest {
    /// `namespace/name`.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Shares the node's network.
    pub host_network: bool,
    /// Declared ports.
    pub ports: Vec<ContainerPort>,
}
