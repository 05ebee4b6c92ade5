//! The words of a decision: direction, verdict, reason, rule. Kernel, metrics, JSON and CLI all
//! take their names from here.

use core::fmt;

/// Which way a packet goes, always seen from the pod.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Direction {
    /// Towards the pod.
    Ingress = 0,
    /// From the pod.
    Egress = 1,
}

impl Direction {
    /// Both directions, in index order.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// Position in per-direction arrays and map keys.
    #[inline(always)]
    pub const fn index(self) -> u8 {
        self as u8
    }

    /// The other direction.
    #[inline(always)]
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }

    /// The direction behind a map's integer; any non-zero value is egress.
    #[inline(always)]
    pub const fn from_index(index: u8) -> Self {
        if index == 0 {
            Self::Ingress
        } else {
            Self::Egress
        }
    }

    /// The word used in metrics, JSON and text.
    pub const fn as_label(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_label())
    }
}

/// What happened, or would happen, to a flow.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Verdict {
    /// It passes.
    Allow,
    /// It is dropped.
    Deny,
    /// It is judged differently by audited policies; what happens to it is not changed by that.
    Audit,
}

impl Verdict {
    /// The word used in metrics, JSON and text.
    pub const fn as_label(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_label())
    }
}

/// Declares [`Reason`] with its number, label, verdict and meaning in one table.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $label:literal, $verdict:ident;)*) => {
        /// Why a verdict was reached. Numbers are fixed for good and never reused.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[$doc])* $name = $number,)*
        }

        impl Reason {
            /// Every reason, by number.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The word used in metrics, JSON and text.
            pub const fn as_label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// The verdict this reason stands for.
            #[inline(always)]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$name => Verdict::$verdict,)* }
            }

            /// The reason with this number; `None` must be read as deny.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// The reason with this word.
            pub fn from_label(label: &str) -> Option<Self> {
                match label { $($label => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    /// A rule admits it.
    Rule = 1, "rule", Allow;
    /// No policy selects the endpoint in this direction.
    NotIsolated = 2, "not-isolated", Allow;
    /// It belongs to a known flow.
    Reply = 3, "reply", Allow;
    /// The pod to itself, also through a Service.
    Itself = 4, "self", Allow;
    /// Originated by the pod's own node.
    Node = 5, "node", Allow;
    /// ARP, neighbour discovery, duplicate address detection, MLD.
    Link = 6, "link", Allow;
    /// An ICMP error about a known flow.
    IcmpRelated = 7, "icmp-related", Allow;
    /// A connection older than the attachment, within the grace.
    MidStream = 8, "mid-stream", Allow;
    /// Allowed only because the glass is broken.
    BreakGlass = 9, "break-glass", Allow;
    /// Posture open, and the policy is unknown or cannot be represented.
    FailOpen = 10, "fail-open", Allow;
    /// A virtual address without backends; the Service proxy will refuse it.
    NoEndpoints = 11, "no-endpoints", Allow;
    /// Isolated, and no rule admits it.
    IsolatedNoRule = 32, "isolated-no-rule", Deny;
    /// A tier's Deny rule.
    DenyRule = 33, "deny-rule", Deny;
    /// The source is not one of the pod's addresses.
    SpoofedSource = 34, "spoofed-source", Deny;
    /// Cannot be parsed as what it claims to be.
    Malformed = 35, "malformed", Deny;
    /// A fragment whose first part is unknown.
    Fragment = 36, "fragment", Deny;
    /// The endpoint's policy is not in place yet.
    NotProgrammed = 37, "not-programmed", Deny;
    /// Posture closed: a map is full, or a state cannot be represented.
    FailClosed = 38, "fail-closed", Deny;
    /// No backend of this virtual address is allowed.
    ServiceNone = 39, "service-none", Deny;
    /// Some backends are allowed, and the packet cannot be seen after DNAT.
    ServiceUnseen = 40, "service-unseen", Deny;
    /// Passes today, would be denied with the audited policies in force.
    WouldDeny = 64, "would-deny", Audit;
    /// Denied today, would be allowed with the audited policies in force.
    WouldAllow = 65, "would-allow", Audit;
}

/// Number of the first deny reason: DROPPED is indexed from here.
pub const FIRST_DENY_REASON: u8 = 32;
/// Places DROPPED keeps for deny reasons, per slot and direction.
pub const DENY_REASONS: u32 = 16;

impl Reason {
    /// The number written to events and map values.
    #[inline(always)]
    pub const fn number(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_label())
    }
}

/// A rule as the kernel knows it; the agent keeps the table to `namespace/policy/ingress/0`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RuleId(pub u32);

impl RuleId {
    /// No rule decided: isolation, a built-in exemption, or nothing at all.
    pub const NONE: Self = Self(0);
}
