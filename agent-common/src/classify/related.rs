//! ICMP errors about known flows (RFC 792, RFC 4443 §2.4): they pass with the flow they are about,
//! which makes path MTU discovery work whatever policy says of ICMP.
//!
//! An error is for whoever sent what it quotes, so its destination is the quoted source. Then the
//! quoted flow is one of this endpoint's own or of nobody's: a pod can only tell its own peers, and
//! only what they have sent to it. An error neither begins a flow nor keeps one alive.

use super::{
    Hook, Seen, flow,
    ownership::{is_same, owns},
};
use crate::conntrack::Signal;
use crate::maps::Config;
use crate::packet::Headers;

/// False for an error of a pod's about what was sent to somebody else. A host tells of what it was sent
/// (RFC 1122 §3.2.2), and whom the error is for takes any router's word: which pods are no routers is
/// known here only, before the node may have put other addresses on it.
#[inline(always)]
pub(super) fn is_by_its_receiver(seen: &Seen, config: &Config, headers: &Headers) -> bool {
    match (seen.at.hook, &headers.quote) {
        (Hook::FromPod, Some(quote)) => owns(config, quote.destination),
        (Hook::FromPod | Hook::ToPod, _) => true,
    }
}

/// Makes an error a packet of the flow that it quotes, if it quotes one.
#[inline(never)]
pub(super) fn turn_to_quoted_flow(seen: &mut Seen, config: &Config, headers: &Headers) {
    let Some(quote) = &headers.quote else {
        return;
    };
    if !is_same(quote.source, headers.destination) {
        return;
    }
    seen.flow = flow::key_of_quote(quote, seen.at.hook, config);
    seen.ports = (seen.flow.local_port, seen.flow.peer_port);
    seen.signal = Signal::Related;
}

/// Makes an error about no known flow a packet of its own again, which policy judges.
#[inline(never)]
pub(super) fn turn_back(seen: &mut Seen, config: &Config, headers: &Headers) {
    if !matches!(seen.signal, Signal::Related) {
        return;
    }
    seen.flow = flow::key_of(headers, seen.at.hook, Some(config));
    seen.ports = (0, 0);
    seen.signal = Signal::Untracked;
}
