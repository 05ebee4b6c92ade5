//! One side of a connection by itself: does the source's pod let it out, would the destination's
//! let it in, whatever the other says? Both are measured at the programs in force.
//!
//! A detour namespace hangs off the node on a veth without programs. Packets from a reserved
//! source port are routed there instead of to their destination: what arrives has left its pod.
//! From there packets go to the destination under the source's address: what arrives in the pod
//! was let in. Each is sent up to [`TRIES`] times; silence after that is a denial.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use agent_policy::model::Protocol;
use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with,
};

use super::namespace::Namespace;
use super::netlink::{MAIN_TABLE, Netlink, Route, Rule};
use super::{
    ETH0, FAR, GATEWAY_V4, GATEWAY_V6, Lab, NEAR, ROUTER_V4, ROUTER_V6, default_route, mac,
};
use crate::probe::packet::{self, Flow};

/// How often a packet is sent before its absence means anything.
const TRIES: usize = 3;
/// How long each may take to arrive.
const WITHIN: Duration = Duration::from_millis(200);
/// Packets sent in one go.
const BURST: usize = 128;
/// Routing table of the detour.
const DETOUR_TABLE: u32 = 77;
/// Name of the node's link to the detour.
const DETOUR: &str = "detour";

/// A pair of pods that do not reach each other.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// The source pod's name.
    pub(super) from: String,
    /// Its address.
    pub(super) source: IpAddr,
    /// The destination's address.
    pub(super) destination: IpAddr,
    /// Protocol.
    pub(super) protocol: Protocol,
    /// Destination port.
    pub(super) port: u16,
}

/// What each side does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sides {
    /// The source lets it out (egress).
    pub(super) left: bool,
    /// The destination lets it in (ingress).
    pub(super) entered: bool,
}

/// Measures both sides of every question.
pub(super) fn measure(lab: &mut Lab, questions: &[Question]) -> Result<Vec<Sides>> {
    if questions.is_empty() {
        return Ok(Vec::new());
    }
    let ports: BTreeSet<u16> = questions.iter().map(|question| question.port).collect();
    // Above the ports that ordinary sockets are given, and none that a server answers from.
    let mut unused = (61_000..=u16::MAX).filter(|port| !ports.contains(port));
    let (leaving, entering) = unused
        .next()
        .zip(unused.next())
        .context("every port is in use")?;
    let detour = Detour::build(lab, leaving).context("laying out the detour")?;
    let way = |source_port: u16| {
        let flow = move |question: &Question| Flow {
            source: question.source,
            destination: question.destination,
            protocol: question.protocol,
            source_port,
            destination_port: question.port,
        };
        questions.iter().map(flow).collect::<Vec<Flow>>()
    };

    let mut senders = Senders::default();
    let at_the_detour = detour.namespace.enter(tap)?;
    let left = arrivals(&way(leaving), &[at_the_detour], |index, flow| {
        let from = questions.get(index).map(|question| question.from.as_str());
        let place = lab.place(from.unwrap_or_default())?;
        senders.send(place.veth, &place.namespace, flow)
    })?;

    let mut destinations = BTreeMap::new();
    for place in lab.places().values() {
        for address in &place.addresses {
            destinations.insert(*address, &place.namespace);
        }
    }
    let wanted: BTreeSet<IpAddr> = questions
        .iter()
        .map(|question| question.destination)
        .collect();
    let taps: Vec<OwnedFd> = wanted
        .iter()
        .filter_map(|address| destinations.get(address))
        .map(|namespace| namespace.enter(tap))
        .collect::<Result<_>>()?;
    let entered = arrivals(&way(entering), &taps, |_, flow| {
        senders.send(detour.link, &detour.namespace, flow)
    })?;

    let sides = left.into_iter().zip(entered);
    Ok(sides
        .map(|(left, entered)| Sides { left, entered })
        .collect())
}

/// Sends every flow's first packet until it arrives at a tap or its tries are over.
fn arrivals(
    flows: &[Flow],
    taps: &[OwnedFd],
    mut send: impl FnMut(usize, &Flow) -> Result<()>,
) -> Result<Vec<bool>> {
    let mut seen = HashSet::new();
    for _ in 0..TRIES {
        let missing: Vec<(usize, &Flow)> = flows
            .iter()
            .enumerate()
            .filter(|(_, flow)| !seen.contains(*flow))
            .collect();
        for burst in missing.chunks(BURST) {
            for (index, flow) in burst {
                send(*index, flow)?;
            }
            collect(taps, &mut seen)?;
        }
        let end = Instant::now() + WITHIN;
        loop {
            collect(taps, &mut seen)?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || flows.iter().all(|flow| seen.contains(flow)) {
                break;
            }
            let mut polled: Vec<PollFd<'_>> = taps
                .iter()
                .map(|tap| PollFd::new(tap, PollFlags::IN))
                .collect();
            let left = Timespec::try_from(left).context("a pause")?;
            poll(&mut polled, Some(&left)).context("waiting at the taps")?;
        }
    }
    Ok(flows.iter().map(|flow| seen.contains(flow)).collect())
}

/// Takes in what has arrived so far.
fn collect(taps: &[OwnedFd], seen: &mut HashSet<Flow>) -> Result<()> {
    let mut buffer = [0; 2048];
    for tap in taps {
        loop {
            match recv(tap.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => seen.extend(buffer.get(..length).and_then(packet::flow_of)),
                Err(Errno::EAGAIN) => break,
                // The interface may come and go under a tap; what counts still arrives.
                Err(Errno::ENETDOWN | Errno::EINTR) => {}
                Err(error) => return Err(error).context("reading a tap"),
            }
        }
    }
    Ok(())
}

/// A socket that sees every packet of the calling thread's namespace, without link header.
fn tap() -> Result<OwnedFd> {
    socket(
        nix::sys::socket::AddressFamily::Packet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )
    .context("opening a tap")
}

/// Raw sockets, one a namespace and family.
#[derive(Default)]
struct Senders {
    sockets: HashMap<(u32, bool), OwnedFd>,
}

impl Senders {
    fn send(&mut self, link: u32, namespace: &Namespace, flow: &Flow) -> Result<()> {
        let v4 = flow.destination.is_ipv4();
        let socket = match self.sockets.entry((link, v4)) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let family = if v4 {
                    AddressFamily::INET
                } else {
                    AddressFamily::INET6
                };
                let open = || {
                    socket_with(
                        family,
                        SocketType::RAW,
                        SocketFlags::CLOEXEC,
                        Some(ipproto::RAW),
                    )
                    .context("opening a raw socket")
                };
                entry.insert(namespace.enter(open)?)
            }
        };
        let destination = SocketAddr::new(flow.destination, 0);
        match sendto(
            &*socket,
            &packet::first_packet(flow),
            SendFlags::NOSIGNAL,
            &destination,
        ) {
            Ok(_) => Ok(()),
            // A full queue is what the next try is for.
            Err(error) if error == rustix::io::Errno::NOBUFS => Ok(()),
            Err(error) => Err(io::Error::from(error)).with_context(|| format!("sending {flow:?}")),
        }
    }
}

struct Detour {
    namespace: Namespace,
    link: u32,
    /// Keeps the far end's configuration socket with its namespace.
    _netlink: Netlink,
}

impl Detour {
    fn build(lab: &mut Lab, leaving: u16) -> Result<Self> {
        let namespace = Namespace::create()?;
        let link = lab.next_index;
        lab.next_index += 1;
        let mut inside = lab.connect(&namespace, DETOUR, link)?;
        for (address, bits) in [(ROUTER_V4, 32), (ROUTER_V6, 64)] {
            inside.add_address(ETH0, address, bits)?;
            // A question that got no answer is asked again after a second: longer than packets are
            // waited for here.
            lab.netlink.add_neighbour(link, address, mac(FAR, link))?;
            let everywhere = if address.is_ipv4() {
                [0_u8; 4].into()
            } else {
                [0_u8; 16].into()
            };
            lab.netlink.add_route(Route {
                to: (everywhere, 0),
                via: Some(address),
                link,
                source: None,
                table: DETOUR_TABLE,
            })?;
        }
        for gateway in [GATEWAY_V4, GATEWAY_V6] {
            inside.add_neighbour(ETH0, gateway, mac(NEAR, link))?;
        }
        default_route(&mut inside, ETH0, GATEWAY_V4, GATEWAY_V6)?;
        // What comes back from the detour goes on to its destination.
        let back = Rule {
            priority: 10,
            iif: Some(DETOUR),
            source_ports: None,
            table: MAIN_TABLE,
        };
        let out = Rule {
            priority: 11,
            iif: None,
            source_ports: Some((leaving, leaving)),
            table: DETOUR_TABLE,
        };
        lab.netlink.add_rule(back)?;
        lab.netlink.add_rule(out)?;
        Ok(Self {
            namespace,
            link,
            _netlink: inside,
        })
    }
}
