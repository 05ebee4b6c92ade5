//! How people name the ends of a connection: `shop/deploy/api:8080`, `10.0.0.7`, `shop/db-0:dns/UDP`.
//! Reads the text; what it means among the pods there are is [`super::resolve`]'s job.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use agent_policy::model::Protocol;

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
    #[error("{0:?}: Services are not followed yet; name the workload behind it")]
    Service(String),
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

impl fmt::Display for Reference {
    /// As [`FromStr`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let optional = |namespace: &Option<String>| {
            namespace
                .as_ref()
                .map_or_else(String::new, |namespace| format!("{namespace}/"))
        };
        match &self.who {
            Who::Address(IpAddr::V6(address)) if self.port.is_some() => write!(f, "[{address}]")?,
            Who::Address(address) => write!(f, "{address}")?,
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

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Reference, ReferenceError> {
        text.parse()
    }

    #[expect(clippy::unnecessary_wraps, reason = "as a Reference has it")]
    fn tcp(port: u16) -> Option<PortReference> {
        Some(PortReference {
            protocol: Protocol::TCP,
            port: PortName::Number(port),
        })
    }

    #[test]
    fn addresses_are_read_in_every_form() {
        let v4 = Who::Address("10.0.0.7".parse().unwrap());
        let v6 = Who::Address("fd00::7".parse().unwrap());
        for (text, who, port) in [
            ("10.0.0.7", &v4, None),
            ("ip:10.0.0.7", &v4, None),
            ("10.0.0.7:443", &v4, tcp(443)),
            ("ip:10.0.0.7:443", &v4, tcp(443)),
            ("fd00::7", &v6, None),
            ("[fd00::7]", &v6, None),
            ("[fd00::7]:443", &v6, tcp(443)),
            ("ip:[fd00::7]:443", &v6, tcp(443)),
        ] {
            assert_eq!(
                read(text),
                Ok(Reference {
                    who: who.clone(),
                    port
                }),
                "{text}"
            );
        }
    }

    #[test]
    fn pods_workloads_and_ports_are_read() {
        let named = |namespace: Option<&str>, name: &str| Who::Named {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        };
        let deploy = |namespace: Option<&str>| Who::Workload {
            namespace: namespace.map(str::to_owned),
            kind: "Deployment",
            name: "api".to_owned(),
        };
        let dns = Some(PortReference {
            protocol: Protocol::UDP,
            port: PortName::Name("dns".to_owned()),
        });
        for (text, who, port) in [
            ("shop/api-0", named(Some("shop"), "api-0"), None),
            ("shop/api-0:80", named(Some("shop"), "api-0"), tcp(80)),
            ("api-0", named(None, "api-0"), None),
            ("deploy/api", deploy(None), None),
            ("shop/deploy/api:8080", deploy(Some("shop")), tcp(8080)),
            (
                "shop/Deployment/api:8080/tcp",
                deploy(Some("shop")),
                tcp(8080),
            ),
            ("shop/api-0:dns/UDP", named(Some("shop"), "api-0"), dns),
        ] {
            assert_eq!(read(text), Ok(Reference { who, port }), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for text in [
            "10.0.0.7",
            "10.0.0.7:443",
            "fd00::7",
            "[fd00::7]:443",
            "shop/api-0",
            "api-0:80",
            "shop/deploy/api:8080",
            "deploy/api",
            "shop/api-0:dns/UDP",
        ] {
            assert_eq!(read(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_read_says_what_to_write() {
        for (text, said) in [
            ("", "names nobody"),
            (":80", "names nobody"),
            ("a//b", "no endpoint"),
            ("a/b/c/d", "no endpoint"),
            ("shop/deplyo/api", "unknown kind \"deplyo\""),
            ("shop/svc/api:80", "name the workload"),
            ("ip:nonsense", "no IP address"),
            ("[fd00::7", "no IP address"),
            ("shop/api:0", "no port"),
            ("shop/api:65536", "no port"),
            ("shop/api:", "no port"),
            ("shop/api:80/GRE", "protocol \"GRE\" is unknown"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn matrix_ports_are_read_and_zero_is_none() {
        assert_eq!(
            "tcp/80".parse(),
            Ok(PortArg {
                protocol: Protocol::TCP,
                port: 80
            })
        );
        assert_eq!(
            "SCTP/3868".parse::<PortArg>().map(|port| port.to_string()),
            Ok("SCTP/3868".to_owned())
        );
        for wrong in ["80", "TCP/0", "TCP/65536", "ICMP/1", "TCP/http"] {
            assert!(wrong.parse::<PortArg>().is_err(), "{wrong}");
        }
    }
}
