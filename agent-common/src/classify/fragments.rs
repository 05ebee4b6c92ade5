//! Fragments: later ones have no ports and follow the first one of their packet (RFC 791 §3.2,
//! RFC 8200 §4.5).
//!
//! What a first fragment shows is remembered when it passes, by endpoint: with `nf_conntrack` the node
//! puts packets together and cuts them anew between one pod and another. A later one is then judged as a
//! packet of that flow. One that comes before its first is dropped unless the verdict is the same for all
//! ports.

use super::{Decision, Seen, steps, tables::FlowTables};
use crate::conntrack::{self, Signal};
use crate::maps::{Config, Fragment, FragmentKey};
use crate::packet::{Fragmentation, Headers, icmp, transport, transport::protocol};
use crate::verdict::Reason;

/// How long a receiver waits for the rest of a packet: Linux's `ipfrag_time`, in seconds.
const WAIT: u32 = 30;

/// Remembers what the first fragment of a packet shows, which passes.
#[inline(never)]
pub(super) fn remember<T: FlowTables>(tables: &T, seen: &Seen, headers: &Headers) {
    let flow = &seen.flow;
    tables.insert_fragment(
        &key_of(seen, headers),
        &Fragment {
            local_port: flow.local_port,
            peer_port: flow.peer_port,
            first_seen: seen.now32(),
            protocol: flow.protocol,
            detail: seen.detail.0,
            header_bytes: headers.fragment_offset,
        },
    );
}

/// Makes a later fragment a packet of its first one's flow; or decides what becomes of it if that
/// cannot be.
#[inline(never)]
pub(super) fn follow<T: FlowTables>(
    tables: &T,
    seen: &mut Seen,
    config: &Config,
    headers: &Headers,
    decision: &mut Decision,
) {
    if !matches!(headers.fragmentation, Fragmentation::Later) {
        return;
    }
    let wait = tables.settings().hz.saturating_mul(WAIT);
    let Some(first) = tables
        .fragment(&key_of(seen, headers))
        .filter(|first| !conntrack::is_expired(first.first_seen, wait, seen.now32()))
    else {
        decision.reason = without_ports(seen, config);
        seen.is_settled = true;
        return;
    };
    // RFC 1858 §4, RFC 5722: it would lie over the headers that were judged.
    if headers.fragment_offset < first.header_bytes {
        decision.reason = Reason::Malformed;
        seen.is_settled = true;
        return;
    }
    let flow = &mut seen.flow;
    flow.local_port = first.local_port;
    flow.peer_port = first.peer_port;
    flow.protocol = first.protocol;
    seen.detail = (first.detail, 0);
    seen.signal = match first.protocol {
        protocol::TCP | protocol::SCTP => Signal::Segment,
        protocol::ICMP | protocol::ICMPV6 => {
            if icmp::echo(flow.peer.is_v4(), first.detail, 0).is_some() {
                Signal::Answer
            } else {
                Signal::Untracked
            }
        }
        _ => Signal::Datagram,
    };
    if transport::has_ports(first.protocol) {
        seen.ports = (first.local_port, first.peer_port);
    }
}

/// What becomes of a fragment whose ports nobody knows.
#[inline(always)]
fn without_ports(seen: &Seen, config: &Config) -> Reason {
    match steps::exemption(seen, config) {
        Some((reason, _)) => reason,
        None if steps::is_isolated(config, seen.direction) => Reason::Fragment,
        None => Reason::NotIsolated,
    }
}

#[inline(always)]
fn key_of(seen: &Seen, headers: &Headers) -> FragmentKey {
    FragmentKey {
        source: headers.source,
        destination: headers.destination,
        identification: headers.identification,
        slot: seen.slot(),
        protocol: if headers.source.is_v4() {
            headers.protocol
        } else {
            0
        },
        reserved: [0; 3],
    }
}
