//! What a condition of a rule is about.

use std::fmt;

/// What a condition is about.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// The rule could be read.
    Readable,
    /// The policy isolates in this direction, so that its rules count.
    Direction,
    /// The policy selects the endpoint.
    Selects,
    /// Protocol.
    Protocol,
    /// Port number.
    Port,
    /// Port number behind a name.
    NamedPort,
    /// The peer's namespace.
    Namespace,
    /// The peer's labels, or that it is a pod at all.
    Pod,
    /// The peer's address.
    IpBlock,
    /// The peer's address is not among the exceptions.
    Except,
}

impl Kind {
    /// The word used in JSON and text.
    pub const fn as_label(self) -> &'static str {
        match self {
            Self::Readable => "readable",
            Self::Direction => "direction",
            Self::Selects => "selects",
            Self::Protocol => "protocol",
            Self::Port => "port",
            Self::NamedPort => "named port",
            Self::Namespace => "namespace",
            Self::Pod => "pod",
            Self::IpBlock => "ipBlock",
            Self::Except => "except",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_label())
    }
}
