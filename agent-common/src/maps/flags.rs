//! The bits of map values' flag fields.

/// `Config::flags`.
pub mod config_flags {
    /// The endpoint's policy is compiled and in force; without it the posture decides.
    pub const PROGRAMMED: u32 = 1;
    /// Posture of this endpoint while it is not programmed or a state cannot be kept: open.
    pub const FAIL_OPEN: u32 = 1 << 1;
    /// The pod may send from any address (annotation).
    pub const ANY_SOURCE: u32 = 1 << 2;
}

/// `Connection::flags`.
pub mod connection_flags {
    /// Adopted in the middle of the connection.
    pub const MID_STREAM: u16 = 1;
    /// The originator has sent a FIN.
    pub const FIN_ORIGINAL: u16 = 1 << 1;
    /// The other side has sent a FIN.
    pub const FIN_REPLY: u16 = 1 << 2;
    /// Allowed only by break-glass: judged again when the deadline is over.
    pub const BREAK_GLASS: u16 = 1 << 3;
    /// Originated by the node itself: never judged again.
    pub const NODE: u16 = 1 << 4;
    /// To the pod itself (hairpin): never judged again.
    pub const ITSELF: u16 = 1 << 5;
    /// Judged again and denied; the entry stays until it expires or is allowed again.
    pub const CUT: u16 = 1 << 6;
    /// How many segments from the pod were reported since it was cut, for the pod to be told: a
    /// number of three bits.
    pub const POD_TOLD: u16 = 7 << 8;
    /// The same of its peer's segments.
    pub const PEER_TOLD: u16 = 7 << 11;
}

/// `PeerEntry::flags`.
pub mod peer_flags {
    /// A virtual address: SERVICES decides.
    pub const VIP: u32 = 1;
    /// An address of this node.
    pub const NODE: u32 = 1 << 1;
}

/// `Settings::flags`.
pub mod settings_flags {
    /// Posture of interfaces without a published endpoint: open.
    pub const UNKNOWN_OPEN: u32 = 1;
    /// Mid-stream adoption ends `mid_stream_grace` after attachment.
    pub const STRICT_MID_STREAM: u32 = 1 << 1;
    /// Report new allowed flows as events.
    pub const REPORT_ALLOWED: u32 = 1 << 2;
    /// Report the first segments of each TCP connection that was cut, for their senders to be told.
    pub const TELL_CUT: u32 = 1 << 3;
}
