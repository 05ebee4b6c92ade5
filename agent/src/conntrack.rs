//! The kernel's own connection tracking: what it knows of connections that are older than our
//! programs, so that attaching breaks none.
//!
//! [`list`] reads it, [`adopted`] says what of it local endpoints should remember. It is only ever
//! read, and only when programs come onto an interface that may carry connections already. A
//! connection is adopted without a verdict: its revision is none that is in force, so the first
//! packet is judged by policy in the direction the connection was opened in.

mod netlink;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;

use agent_common::conntrack::State;
use agent_common::maps::connection_flags::{ITSELF, NODE};
use agent_common::maps::{Connection, FlowKey, flow_slot, peer_bucket};
use agent_common::{Address, Direction, Reason};

pub use netlink::list;

/// No endpoint's and no peer's: the first packet meets policy.
const JUDGE_AGAIN: u32 = 0;

/// One direction's addresses and ports.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Tuple {
    /// Who sends.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// From which port.
    pub source_port: u16,
    /// To which port.
    pub destination_port: u16,
}

/// A connection as the kernel tracks it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Tracked {
    /// IP protocol number; TCP, UDP and SCTP are listed.
    pub protocol: u8,
    /// As its originator sends.
    pub original: Tuple,
    /// As the answers are sent, before any translation is undone.
    pub reply: Tuple,
    /// How far it is.
    pub state: State,
}

/// A local endpoint that connections may be adopted for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Local {
    /// Its place in per-slot maps.
    pub slot: u32,
    /// Its host-side interface.
    pub ifindex: u32,
}

/// What tells whose an address is.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    /// Endpoints whose programs are about to be attached, by address.
    pub adopting: HashMap<IpAddr, Local>,
    /// Interfaces of all local endpoints, by address.
    pub interfaces: HashMap<IpAddr, u32>,
    /// The node's own addresses.
    pub node: HashSet<IpAddr>,
}

/// Addresses of this node's interfaces.
///
/// # Errors
/// The kernel does not list them.
pub fn node_addresses() -> io::Result<HashSet<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    Ok(interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect())
}

/// What endpoints should remember of a connection: the original tuple where its originator is
/// local, the inverted reply where its responder is. Each is what that endpoint's programs see, the
/// virtual address before translation at the client, the backend's at the server.
pub fn adopted(tracked: &Tracked, owners: &Owners, now: u32) -> Vec<(FlowKey, Connection)> {
    let mut found = Vec::new();
    let Tracked {
        original, reply, ..
    } = tracked;
    if let Some(local) = owners.adopting.get(&original.source) {
        let flags = if original.source == original.destination {
            ITSELF
        } else {
            0
        };
        let seen = Seen {
            local_port: original.source_port,
            peer: (original.destination, original.destination_port),
            originator: Direction::Egress,
            judged: original.destination,
            via: 0,
            flags,
        };
        found.push(seen.entry(local.slot, tracked, now));
    }
    if let Some(local) = owners.adopting.get(&reply.source) {
        let sender = owners.interfaces.get(&original.source).copied();
        // Only the node itself sends with an address of the node before any translation.
        let (via, flags) = match sender {
            Some(ifindex) if ifindex == local.ifindex => (0, ITSELF),
            Some(ifindex) if original.source != reply.destination => (ifindex, 0),
            None if owners.node.contains(&original.source) => (0, NODE),
            Some(_) | None => (0, 0),
        };
        let seen = Seen {
            local_port: reply.source_port,
            peer: (reply.destination, reply.destination_port),
            originator: Direction::Ingress,
            judged: if via == 0 {
                reply.destination
            } else {
                original.source
            },
            via,
            flags,
        };
        found.push(seen.entry(local.slot, tracked, now));
    }
    found
}

/// A connection as one endpoint's programs see it.
struct Seen {
    local_port: u16,
    peer: (IpAddr, u16),
    originator: Direction,
    /// Whom policy is asked about.
    judged: IpAddr,
    via: u32,
    flags: u16,
}

impl Seen {
    fn entry(self, slot: u32, tracked: &Tracked, now: u32) -> (FlowKey, Connection) {
        let key = FlowKey {
            peer: address(self.peer.0),
            local_port: self.local_port,
            peer_port: self.peer.1,
            protocol: tracked.protocol,
            // Owners are found by addresses of their own.
            local: 0,
            slot: flow_slot(slot),
        };
        let connection = Connection {
            revision: JUDGE_AGAIN,
            peer_revision: JUDGE_AGAIN,
            last_seen: now,
            rule: 0,
            via: self.via,
            peer_bucket: peer_bucket(address(self.judged)),
            state: tracked.state.number(),
            originator: self.originator.index(),
            flags: self.flags,
            reason: Reason::MidStream.number(),
            reserved: Default::default(),
            first_seen: now,
        };
        (key, connection)
    }
}

fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => Address::from_v4(v4.octets()),
        IpAddr::V6(v6) => Address::from_v6(v6.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: &str, destination: &str) -> Tuple {
        let end = |text: &str| -> std::net::SocketAddr { text.parse().unwrap() };
        let (source, destination) = (end(source), end(destination));
        Tuple {
            source: source.ip(),
            destination: destination.ip(),
            source_port: source.port(),
            destination_port: destination.port(),
        }
    }

    fn tracked(original: (&str, &str), reply: (&str, &str)) -> Tracked {
        Tracked {
            protocol: 6,
            original: tuple(original.0, original.1),
            reply: tuple(reply.0, reply.1),
            state: State::Established,
        }
    }

    /// Pods a (10.0.0.1, slot 1, interface 11) and b (10.0.0.2, slot 2, interface 12).
    fn owners() -> Owners {
        let pods = [("10.0.0.1", 1, 11), ("10.0.0.2", 2, 12)];
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        Owners {
            adopting: pods
                .iter()
                .map(|(ip, slot, ifindex)| {
                    let local = Local {
                        slot: *slot,
                        ifindex: *ifindex,
                    };
                    (address(ip), local)
                })
                .collect(),
            interfaces: pods
                .iter()
                .map(|(ip, _, ifindex)| (address(ip), *ifindex))
                .collect(),
            node: [address("10.0.0.254"), address("192.0.2.1")].into(),
        }
    }

    /// Each entry as `slot :port peer:port who-opened via flags`.
    fn entries(tracked: &Tracked) -> Vec<String> {
        let show = |address: Address| match address.as_v4() {
            Some([a, b, c, d]) => format!("{a}.{b}.{c}.{d}"),
            None => format!("{:?}", address.0),
        };
        adopted(tracked, &owners(), 7)
            .into_iter()
            .map(|(flow, connection)| {
                assert_eq!((connection.revision, connection.peer_revision), (0, 0));
                assert_eq!(connection.last_seen, 7);
                let opened = if connection.originator == Direction::Egress.index() {
                    "by the pod"
                } else {
                    "by the peer"
                };
                format!(
                    "{} :{} {}:{} {opened} {} {}",
                    flow.slot,
                    flow.local_port,
                    show(flow.peer),
                    flow.peer_port,
                    connection.via,
                    connection.flags
                )
            })
            .collect()
    }

    #[test]
    fn a_connection_between_local_pods_is_two_entries() {
        let direct = tracked(
            ("10.0.0.1:40000", "10.0.0.2:80"),
            ("10.0.0.2:80", "10.0.0.1:40000"),
        );
        assert_eq!(
            entries(&direct),
            [
                "1 :40000 10.0.0.2:80 by the pod 0 0",
                "2 :80 10.0.0.1:40000 by the peer 0 0",
            ]
        );
    }

    #[test]
    fn through_a_service_the_client_knows_the_virtual_address_and_the_server_its_own() {
        let service = tracked(
            ("10.0.0.1:40000", "10.96.0.1:443"),
            ("10.0.0.2:8443", "10.0.0.1:40000"),
        );
        assert_eq!(
            entries(&service),
            [
                "1 :40000 10.96.0.1:443 by the pod 0 0",
                "2 :8443 10.0.0.1:40000 by the peer 0 0",
            ]
        );
    }

    #[test]
    fn behind_a_masquerade_a_local_pod_is_named_by_its_interface() {
        let masqueraded = tracked(
            ("10.0.0.1:40000", "192.0.2.1:30080"),
            ("10.0.0.2:80", "10.0.0.254:61000"),
        );
        assert_eq!(
            entries(&masqueraded),
            [
                "1 :40000 192.0.2.1:30080 by the pod 0 0",
                "2 :80 10.0.0.254:61000 by the peer 11 0",
            ]
        );
        let hairpin = tracked(
            ("10.0.0.2:40000", "10.96.0.1:443"),
            ("10.0.0.2:8443", "10.0.0.254:61000"),
        );
        assert_eq!(
            entries(&hairpin),
            [
                "2 :40000 10.96.0.1:443 by the pod 0 0",
                "2 :8443 10.0.0.254:61000 by the peer 0 32",
            ]
        );
    }

    #[test]
    fn only_what_the_node_itself_opened_is_the_nodes() {
        let probe = tracked(
            ("10.0.0.254:40000", "10.0.0.2:80"),
            ("10.0.0.2:80", "10.0.0.254:40000"),
        );
        assert_eq!(entries(&probe), ["2 :80 10.0.0.254:40000 by the peer 0 16"]);
        // From outside, masqueraded: the node's address, not the node's deed.
        let external = tracked(
            ("203.0.113.9:5555", "192.0.2.1:30080"),
            ("10.0.0.2:80", "10.0.0.254:61000"),
        );
        assert_eq!(
            entries(&external),
            ["2 :80 10.0.0.254:61000 by the peer 0 0"]
        );
    }

    #[test]
    fn what_touches_no_endpoint_is_left_to_others() {
        let elsewhere = tracked(
            ("10.1.0.1:40000", "10.1.0.2:80"),
            ("10.1.0.2:80", "10.1.0.1:40000"),
        );
        assert!(entries(&elsewhere).is_empty());
    }
}
