//! A packet's way, top to bottom: from its bytes to what happens to it.

pub mod tables;

use crate::packet::Packet;
use crate::verdict::{Direction, Reason};

pub use tables::{DeniedRow, FlowEntry, FlowTables};

/// Which program is asking, seen from the pod.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Hook {
    /// tc ingress of the host-side interface: what the pod sends.
    FromPod,
    /// tc egress of the host-side interface: what reaches the pod.
    ToPod,
}

impl Hook {
    /// The direction of the packets a hook sees.
    #[inline(always)]
    pub const fn direction(self) -> Direction {
        match self {
            Self::FromPod => Direction::Egress,
            Self::ToPod => Direction::Ingress,
        }
    }
}

/// How a packet came to the hook.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Arrival {
    /// Which program is asking. A constant in each program.
    pub hook: Hook,
    /// `skb->ifindex`: the endpoint's host-side interface.
    pub ifindex: u32,
    /// `skb->ingress_ifindex`: where the packet entered the node; 0 when the node made it.
    pub ingress_ifindex: u32,
}

/// What happens to a packet, and why.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[must_use]
pub enum Outcome {
    /// It goes on, to the next program.
    Pass(Reason),
    /// It vanishes; counted and, now and then, reported.
    Drop(Reason),
    /// Unicast for another pod, flooded by a bridge: it vanishes, counted as [`NotMine`] only.
    ///
    /// [`NotMine`]: crate::maps::Counter::NotMine
    NotMine,
}

/// Decides about one packet and keeps the books on it.
#[inline(always)]
pub fn classify<T: FlowTables, P: Packet + ?Sized>(
    tables: &T,
    packet: &P,
    at: &Arrival,
) -> Outcome {
    let _ = (tables, packet, at);
    Outcome::Drop(Reason::NotProgrammed)
}
