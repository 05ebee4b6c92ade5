//! Services after validation, and what is behind them.

use std::net::IpAddr;
use std::sync::Arc;

use super::{ObjectName, Protocol};

/// A Service, trimmed to what policy needs: at which virtual addresses it is, and on which ports.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// `spec.clusterIPs` (or `spec.clusterIP`) and `status.loadBalancer.ingress` addresses of mode VIP,
    /// of families with a cluster IP: what a packet shows before the Service proxy has chosen a backend.
    /// None of what no Service proxy serves: headless, of type `ExternalName`, or of another's.
    pub addresses: Vec<IpAddr>,
    /// `spec.externalIPs` of the same families: whoever owns the Service names them, and may name
    /// anybody's.
    pub external_addresses: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Arc<[ServicePort]>,
}

/// One item of a Service's `spec.ports`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ServicePort {
    /// Name; empty when the Service has one port only and gives it none.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port at the virtual addresses.
    pub port: u16,
}

/// An `EndpointSlice`, trimmed to what policy needs: some of a Service's backends.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub name: ObjectName,
    /// The Service it is of, in the same namespace (label `kubernetes.io/service-name`); empty when
    /// it is of none.
    pub service: Arc<str>,
    /// Addresses of endpoints that a Service proxy may choose: ready ones, and those on their way
    /// out that still serve (KEP-1669). Of each endpoint the first, as Service proxies do.
    pub addresses: Arc<[IpAddr]>,
    /// Its ports, each of every address.
    pub ports: Arc<[BackendPort]>,
}

/// One item of an `EndpointSlice`'s `ports`: where a [`ServicePort`] of the same name and protocol
/// leads to.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BackendPort {
    /// Name of the Service's port.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port at the backends (`targetPort`, resolved).
    pub port: u16,
}
