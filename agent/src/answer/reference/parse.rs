//! Reads references and ports as they are written, and says what to write instead.

use std::str::FromStr;

use agent_policy::model::Protocol;

use super::{PortArg, PortName, PortReference, Reference, Who, kind};

/// Why a text names nobody.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing before the port.
    #[error("{0:?} names nobody; write namespace/pod, namespace/kind/name or an address")]
    Empty(String),
    /// Too many parts, or an empty one.
    #[error("{0:?} is no endpoint; write namespace/pod, namespace/kind/name or an address")]
    Shape(String),
    /// The middle part is no kind.
    #[error("{text:?}: unknown kind {kind:?}; known are pod, deploy, sts, ds, rs, job, cronjob")]
    Kind {
        /// The whole text.
        text: String,
        /// The unknown part.
        kind: String,
    },
    /// A virtual address is not a place where policy is judged.
    #[error(
        "{0:?}: a Service is not found by its name yet; name the workload behind it, or its address as ip:10.96.0.10"
    )]
    Service(String),
    /// A form that stands in edges or will mean something one day, and means nobody today.
    #[error(
        "{0:?}: only pods, workloads, nodes and addresses can be asked about; write \
         namespace/pod, namespace/kind/name, node:NAME or an address"
    )]
    NotYet(String),
    /// After `ip:` or brackets stands no address.
    #[error("{0:?} is no IP address; IPv6 with a port is written [fd00::7]:443")]
    Address(String),
    /// The port is neither a number nor a name.
    #[error("{text:?}: port {port:?} is no port; write :8080, :53/UDP or :http")]
    Port {
        /// The whole text.
        text: String,
        /// The port.
        port: String,
    },
    /// The protocol is none that policy knows.
    #[error("{text:?}: protocol {protocol:?} is unknown; write TCP, UDP or SCTP")]
    Protocol {
        /// The whole text.
        text: String,
        /// The protocol.
        protocol: String,
    },
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text == "world"
            || ["dns:", "cidr:", "ns:"]
                .iter()
                .any(|form| text.starts_with(form))
        {
            return Err(ReferenceError::NotYet(text.to_owned()));
        }
        if let Some(node) = text.strip_prefix("node:") {
            return at_node(text, node);
        }
        let said = text.strip_prefix("ip:").unwrap_or(text);
        if let Ok(address) = said.parse() {
            return Ok(Self {
                who: Who::Address(address),
                port: None,
            });
        }
        let (who, port) = if let Some(rest) = said.strip_prefix('[') {
            let not_closed = || ReferenceError::Address(text.to_owned());
            let (address, port) = rest.split_once(']').ok_or_else(not_closed)?;
            match port {
                "" => (address, None),
                _ => (
                    address,
                    Some(port.strip_prefix(':').ok_or_else(not_closed)?),
                ),
            }
        } else {
            match said.rsplit_once(':') {
                Some((who, port)) => (who, Some(port)),
                None => (said, None),
            }
        };
        let port = port.map(|port| port_reference(text, port)).transpose()?;
        let must_be_address = text.starts_with("ip:") || said.starts_with('[');
        let who = match who.parse() {
            Ok(address) => Who::Address(address),
            Err(_) if must_be_address => return Err(ReferenceError::Address(text.to_owned())),
            Err(_) => named(text, who)?,
        };
        Ok(Self { who, port })
    }
}

fn at_node(text: &str, node: &str) -> Result<Reference, ReferenceError> {
    let (name, port) = match node.split_once(':') {
        Some((name, port)) => (name, Some(port_reference(text, port)?)),
        None => (node, None),
    };
    if name.is_empty() || name.contains('/') {
        return Err(ReferenceError::Shape(text.to_owned()));
    }
    Ok(Reference {
        who: Who::Node(name.to_owned()),
        port,
    })
}

fn named(text: &str, who: &str) -> Result<Who, ReferenceError> {
    let parts: Vec<&str> = who.split('/').collect();
    if who.is_empty() {
        return Err(ReferenceError::Empty(text.to_owned()));
    }
    // A second colon would be half of an IPv6 address.
    if parts
        .iter()
        .any(|part| part.is_empty() || part.contains(':'))
    {
        return Err(ReferenceError::Shape(text.to_owned()));
    }
    let is_service = |word: &str| matches!(word, "svc" | "service" | "services");
    match *parts.as_slice() {
        [name] => Ok(Who::Named {
            namespace: None,
            name: name.to_owned(),
        }),
        [first, _] if is_service(first) => Err(ReferenceError::Service(text.to_owned())),
        [first, name] => Ok(match kind(first) {
            Some(kind) => Who::Workload {
                namespace: None,
                kind,
                name: name.to_owned(),
            },
            None => Who::Named {
                namespace: Some(first.to_owned()),
                name: name.to_owned(),
            },
        }),
        [_, word, _] if is_service(word) => Err(ReferenceError::Service(text.to_owned())),
        [namespace, word, name] => match kind(word) {
            Some(kind) => Ok(Who::Workload {
                namespace: Some(namespace.to_owned()),
                kind,
                name: name.to_owned(),
            }),
            None => Err(ReferenceError::Kind {
                text: text.to_owned(),
                kind: word.to_owned(),
            }),
        },
        _ => Err(ReferenceError::Shape(text.to_owned())),
    }
}

fn protocol(text: &str, word: &str) -> Result<Protocol, ReferenceError> {
    Protocol::from_name(&word.to_ascii_uppercase()).ok_or_else(|| ReferenceError::Protocol {
        text: text.to_owned(),
        protocol: word.to_owned(),
    })
}

fn port_reference(text: &str, written: &str) -> Result<PortReference, ReferenceError> {
    let (port, protocol) = match written.split_once('/') {
        Some((port, word)) => (port, protocol(text, word)?),
        None => (written, Protocol::TCP),
    };
    let wrong = || ReferenceError::Port {
        text: text.to_owned(),
        port: port.to_owned(),
    };
    let port = if port.starts_with(|first: char| first.is_ascii_digit())
        && port.chars().all(|each| each.is_ascii_digit())
    {
        // Kubernetes: ports are 1 to 65535.
        match port.parse() {
            Ok(0) | Err(_) => return Err(wrong()),
            Ok(number) => PortName::Number(number),
        }
    } else if is_port_name(port) {
        PortName::Name(port.to_owned())
    } else {
        return Err(wrong());
    };
    Ok(PortReference { protocol, port })
}

/// RFC 6335 §5.1: letters, digits and hyphens, at most 15, with a letter.
fn is_port_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name
            .chars()
            .all(|each| each.is_ascii_alphanumeric() || each == '-')
        && name.chars().any(|each| each.is_ascii_alphabetic())
}

impl FromStr for PortArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no port; write TCP/80, UDP/53 or SCTP/3868");
        let (protocol, port) = text.split_once('/').ok_or_else(wrong)?;
        let protocol = Protocol::from_name(&protocol.to_ascii_uppercase()).ok_or_else(wrong)?;
        match port.parse() {
            Ok(0) | Err(_) => Err(wrong()),
            Ok(port) => Ok(Self { protocol, port }),
        }
    }
}
