//! How people name the ends of a connection: `shop/deploy/api:8080`, `10.0.0.7`, `shop/db-0:dns/UDP`.
//! What it means among the pods there are is [`super::resolve`]'s job.

mod parse;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;

use agent_policy::model::Protocol;

pub use parse::ReferenceError;

/// One end as it was written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reference {
    /// Who.
    pub who: Who,
    /// On which port, when said.
    pub port: Option<PortReference>,
}

/// Who is meant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Who {
    /// `10.0.0.7`, `ip:10.0.0.7`.
    Address(IpAddr),
    /// `node:node-a`: its own addresses.
    Node(String),
    /// `namespace/kind/name`.
    Workload {
        /// Namespace; the current one when not said.
        namespace: Option<String>,
        /// Kind as Kubernetes writes it, `Pod` among them.
        kind: &'static str,
        /// Name.
        name: String,
    },
    /// `namespace/name`: a pod, or the one workload of that name.
    Named {
        /// Namespace; the current one when not said.
        namespace: Option<String>,
        /// Name.
        name: String,
    },
}

/// A port as it was written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PortReference {
    /// Protocol; TCP unless said.
    pub protocol: Protocol,
    /// Which port.
    pub port: PortName,
}

/// A port by number or by the name a container gives it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PortName {
    /// `8080`.
    Number(u16),
    /// `http`.
    Name(String),
}

/// `--port TCP/80`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PortArg {
    /// Protocol.
    pub protocol: Protocol,
    /// Number.
    pub port: u16,
}

impl fmt::Display for Reference {
    /// As [`std::str::FromStr`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let optional = |namespace: &Option<String>| {
            namespace
                .as_ref()
                .map_or_else(String::new, |namespace| format!("{namespace}/"))
        };
        match &self.who {
            Who::Address(IpAddr::V6(address)) if self.port.is_some() => write!(f, "[{address}]")?,
            Who::Address(address) => write!(f, "{address}")?,
            Who::Node(name) => write!(f, "node:{name}")?,
            Who::Workload {
                namespace,
                kind,
                name,
            } => {
                write!(f, "{}{}/{name}", optional(namespace), short_kind(kind))?;
            }
            Who::Named { namespace, name } => write!(f, "{}{name}", optional(namespace))?,
        }
        match &self.port {
            None => Ok(()),
            Some(PortReference { protocol, port }) => {
                match port {
                    PortName::Number(number) => write!(f, ":{number}")?,
                    PortName::Name(name) => write!(f, ":{name}")?,
                }
                if *protocol == Protocol::TCP {
                    Ok(())
                } else {
                    write!(f, "/{protocol}")
                }
            }
        }
    }
}

/// Kinds by every word for them, as `kubectl api-resources` lists them.
const KINDS: &[(&str, &[&str])] = &[
    ("Pod", &["pod", "pods", "po"]),
    ("Deployment", &["deploy", "deployment", "deployments"]),
    ("StatefulSet", &["sts", "statefulset", "statefulsets"]),
    ("DaemonSet", &["ds", "daemonset", "daemonsets"]),
    ("ReplicaSet", &["rs", "replicaset", "replicasets"]),
    ("Job", &["job", "jobs"]),
    ("CronJob", &["cronjob", "cronjobs", "cj"]),
];

fn kind(word: &str) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    KINDS
        .iter()
        .find(|(_, words)| words.contains(&word.as_str()))
        .map(|(kind, _)| *kind)
}

/// The short word for a kind, as tables show it; other kinds stay as they are, in lower case.
pub fn short_kind(kind: &str) -> String {
    KINDS
        .iter()
        .find(|(name, _)| *name == kind)
        .and_then(|(_, words)| words.first())
        .map_or_else(|| kind.to_ascii_lowercase(), |word| (*word).to_owned())
}

impl fmt::Display for PortArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol, self.port)
    }
}

impl fmt::Display for PortReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.port {
            PortName::Number(number) => write!(f, "{}/{number}", self.protocol),
            PortName::Name(name) => write!(f, "{}/{name}", self.protocol),
        }
    }
}
