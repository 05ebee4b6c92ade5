//! Flows, as a witness tells them apart: by what packets show.

use std::net::IpAddr;

use agent_common::classify::{Arrival, Hook};
use agent_common::maps::other_local;
use agent_common::packet::Headers;
use agent_common::packet::icmp::Echo;
use agent_common::packet::transport;
use agent_common::{Address, Direction};
use agent_policy::cluster::Cluster;
use agent_policy::evaluate::{self, Decision};
use agent_policy::model::{Pod, Protocol};

/// A flow at an endpoint; both of its directions have this.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Flow {
    pub(super) ifindex: u32,
    pub(super) protocol: u8,
    pub(super) local: (Address, u16),
    pub(super) peer: (Address, u16),
    /// Of an echo, whose request began it.
    pub(super) asker: Option<Direction>,
}

/// The flow that a packet belongs to.
pub(super) fn flow_of(headers: &Headers, at: &Arrival) -> Flow {
    flow(
        at.ifindex,
        at.hook,
        headers.protocol,
        (headers.source, headers.source_port),
        (headers.destination, headers.destination_port),
        headers.echo,
    )
}

/// The flow that an ICMP error quotes, which is about what its receiver has sent.
pub(super) fn quoted_flow(headers: &Headers, at: &Arrival) -> Option<Flow> {
    let quote = headers.quote.as_ref()?;
    if quote.source != headers.destination {
        return None;
    }
    let hook = match at.hook {
        Hook::FromPod => Hook::ToPod,
        Hook::ToPod => Hook::FromPod,
    };
    Some(flow(
        at.ifindex,
        hook,
        quote.protocol,
        (quote.source, quote.source_port),
        (quote.destination, quote.destination_port),
        quote.echo,
    ))
}

fn flow(
    ifindex: u32,
    hook: Hook,
    protocol: u8,
    source: (Address, u16),
    destination: (Address, u16),
    echo: Option<Echo>,
) -> Flow {
    let (mut local, peer) = match hook {
        Hook::FromPod => (source, destination),
        Hook::ToPod => (destination, source),
    };
    // Groups are told apart as the maps' keys do it: now and then two of them are one, of which
    // policy says the same.
    if local.0.is_group() {
        local.0 = Address::from_v4([0, 0, 0, other_local(local.0)]);
    }
    let (identifier, asker) = match echo {
        None => (None, None),
        Some(Echo::Request(identifier)) => (Some(identifier), Some(hook.direction())),
        Some(Echo::Reply(identifier)) => (Some(identifier), Some(hook.direction().opposite())),
    };
    Flow {
        ifindex,
        protocol,
        local: (local.0, identifier.unwrap_or(local.1)),
        peer,
        asker,
    }
}

/// What policy says of a flow with a peer, in the direction it is opened in.
pub(super) fn said(
    cluster: &Cluster,
    pod: &Pod,
    flow: &Flow,
    direction: Direction,
    peer: IpAddr,
) -> Decision {
    let port = match direction {
        _ if !transport::has_ports(flow.protocol) => 0,
        Direction::Ingress => flow.local.1,
        Direction::Egress => flow.peer.1,
    };
    let protocol = Protocol(flow.protocol);
    if pod.addresses.contains(&peer) {
        // Its own address on what comes from elsewhere proves nothing: it is a pod like others.
        let nobody = Pod {
            addresses: Vec::new(),
            ..pod.clone()
        };
        return evaluate::judge(cluster, &nobody, direction, peer, protocol, port);
    }
    evaluate::judge(cluster, pod, direction, peer, protocol, port)
}
