//! What may become of a packet, by the specification and by what came before it: nothing passes but
//! what policy allows now or what belongs to a flow that was opened so, and a flow that was is not lost.
//!
//! It keeps flows as the packets' outcomes tell of them, not as the packet path's maps have them, and
//! looks nothing up there.

use std::collections::HashMap;
use std::net::IpAddr;

use agent_common::classify::{Arrival, Hook, Outcome};
use agent_common::conntrack::{Signal, State, Timeout};
use agent_common::maps::Settings;
use agent_common::packet::transport::protocol;
use agent_common::packet::{Fragmentation, Frame, Headers, parse};
use agent_common::{Address, Direction, Reason};
use agent_policy::cluster::Cluster;
use agent_policy::evaluate::Decision;
use agent_policy::model::{ObjectName, Pod};

use super::flows::{Flow, flow_of, quoted_flow, said};

/// Seconds in which no flow ends by itself, however it was left.
const SURELY_KNOWN: u64 = 9;
/// Seconds for which a first fragment is waited on.
const WAIT: u64 = 30;

/// Has seen every packet of a node.
#[derive(Debug, Default)]
pub struct Witness {
    /// Pods by their interfaces.
    endpoints: HashMap<u32, ObjectName>,
    /// Where the node takes what comes in for an address.
    routes: HashMap<Address, u32>,
    settings: Settings,
    /// Flows may be refused for want of room.
    may_be_full: bool,
    flows: HashMap<Flow, Vec<Opening>>,
    firsts: HashMap<Pieces, First>,
}

/// How a flow was opened, of which there may be several.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Opening {
    originator: Direction,
    /// Where it entered the node.
    ingress_ifindex: u32,
    /// It showed an address that is not that interface's pod's.
    is_hidden: bool,
    exemption: Option<Reason>,
    /// In jiffies, the last packet of it.
    seen: u64,
}

/// A datagram in pieces, at an endpoint.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Pieces {
    ifindex: u32,
    addresses: (Address, Address),
    identification: u32,
    /// Of IPv4.
    protocol: u8,
}

/// The first one of them, which has passed.
#[derive(Clone, Copy, Debug)]
struct First {
    flow: Flow,
    signal: Signal,
    header_bytes: u16,
    seen: u64,
}

/// A packet, read.
struct Seen<'a> {
    at: &'a Arrival,
    headers: &'a Headers,
    pod: &'a Pod,
    flow: Flow,
    signal: Signal,
    now: u64,
}

impl Witness {
    /// With these settings; `may_be_full` when flows, or their budget, may run out.
    pub fn new(settings: Settings, may_be_full: bool) -> Self {
        Self {
            settings,
            may_be_full,
            ..Self::default()
        }
    }

    /// A pod is behind this interface, and its policy in force.
    pub fn attach(&mut self, ifindex: u32, pod: ObjectName) {
        self.endpoints.insert(ifindex, pod);
    }

    /// The node takes what comes in for this address out by an interface; nowhere without.
    pub fn route(&mut self, address: Address, interface: u32) {
        self.routes.insert(address, interface);
    }

    /// Looks at what became of a packet under the policies of `cluster`.
    ///
    /// # Errors
    /// It should not have.
    pub fn see(
        &mut self,
        cluster: &Cluster,
        (at, frame): (&Arrival, &[u8]),
        outcome: Outcome,
        now: u64,
    ) -> Result<(), String> {
        let pod = self.endpoints.get(&at.ifindex);
        let Some(pod) = pod.and_then(|name| cluster.pod_named(name)).cloned() else {
            return expect(
                matches!(
                    outcome,
                    Outcome::Pass(Reason::Link) | Outcome::Drop(Reason::NotProgrammed)
                ),
                "nobody is known to be there",
            );
        };
        let headers = match parse(frame) {
            Err(error) => {
                let is_dropped = outcome == Outcome::Drop(Reason::Malformed);
                return expect(is_dropped, &format!("it cannot be read: {error:?}"));
            }
            Ok(Frame::Arp) => return arp(&pod, at, frame, outcome),
            Ok(Frame::Ip(headers)) => headers,
        };
        if let Some(said) = self.discovery(&pod, at, &headers, outcome) {
            return said;
        }
        let (source, destination) = (
            IpAddr::from(headers.source),
            IpAddr::from(headers.destination),
        );
        match at.hook {
            Hook::FromPod if !pod.addresses.contains(&source) => {
                return expect(
                    outcome == Outcome::Drop(Reason::SpoofedSource),
                    "it shows an address that is not its sender's",
                );
            }
            Hook::ToPod
                if !pod.addresses.contains(&destination) && !headers.destination.is_group() =>
            {
                return expect(outcome == Outcome::NotMine, "it is for another pod");
            }
            Hook::FromPod | Hook::ToPod => {}
        }
        // RFC 1122 §3.2.2: a host tells of what was sent to it.
        let told = headers.quote.map(|quote| IpAddr::from(quote.destination));
        if at.hook == Hook::FromPod && told.is_some_and(|told| !pod.addresses.contains(&told)) {
            let is_dropped = outcome == Outcome::Drop(Reason::SpoofedSource);
            return expect(is_dropped, "it tells of what was sent to somebody else");
        }
        let mut seen = Seen {
            at,
            headers: &headers,
            pod: &pod,
            flow: flow_of(&headers, at),
            signal: Signal::of(&headers),
            now,
        };
        if headers.fragmentation == Fragmentation::Later {
            match self.firsts.get(&pieces_of(&seen)) {
                Some(first) if now - first.seen <= WAIT * u64::from(self.settings.hz) => {
                    if headers.fragment_offset < first.header_bytes {
                        let is_dropped = outcome == Outcome::Drop(Reason::Malformed);
                        return expect(is_dropped, "it lies over the headers that were judged");
                    }
                    seen.flow = first.flow;
                    seen.signal = first.signal;
                }
                _ => return self.without_first(cluster, &seen, outcome),
            }
        }
        self.judged(cluster, &seen, outcome)?;
        if headers.fragmentation == Fragmentation::First && matches!(outcome, Outcome::Pass(_)) {
            self.keep_first(&seen);
        }
        Ok(())
    }

    fn keep_first(&mut self, seen: &Seen<'_>) {
        let first = First {
            flow: seen.flow,
            signal: match seen.signal {
                Signal::Open
                | Signal::Accept
                | Signal::Segment
                | Signal::Finish
                | Signal::Reset => Signal::Segment,
                Signal::Ask | Signal::Answer => Signal::Answer,
                signal @ (Signal::Untracked | Signal::Datagram | Signal::Related) => signal,
            },
            header_bytes: seen.headers.fragment_offset,
            seen: seen.now,
        };
        self.firsts.insert(pieces_of(seen), first);
    }

    /// A later fragment whose ports nobody knows.
    fn without_first(
        &self,
        cluster: &Cluster,
        seen: &Seen<'_>,
        outcome: Outcome,
    ) -> Result<(), String> {
        if let Some(reason) = exemption(seen) {
            return expect(outcome == Outcome::Pass(reason), "nobody judges it");
        }
        let said = self.said_of(cluster, seen, seen.at.hook.direction());
        let expected = if said.reason == Reason::NotIsolated {
            Outcome::Pass(Reason::NotIsolated)
        } else {
            Outcome::Drop(Reason::Fragment)
        };
        expect(outcome == expected, "nobody knows its first fragment")
    }

    /// An IP packet that is the endpoint's.
    fn judged(
        &mut self,
        cluster: &Cluster,
        seen: &Seen<'_>,
        outcome: Outcome,
    ) -> Result<(), String> {
        let direction = seen.at.hook.direction();
        self.check_kept(cluster, seen, outcome)?;
        let new = self.said_of(cluster, seen, direction);
        let shown = seen.flow.peer.0.into();
        let opposite = || said(cluster, seen.pod, &seen.flow, direction.opposite(), shown);
        match outcome {
            Outcome::Pass(Reason::Reply) => {
                let is_repeated = |opening: &Opening| {
                    seen.signal != Signal::Open || opening.originator == direction
                };
                let is_of_flow = self.openings(&seen.flow).any(|opening| {
                    self.is_allowed(cluster, seen.pod, &seen.flow, opening)
                        && comes_as(seen, opening)
                        && is_repeated(opening)
                        && seen.now - opening.seen <= self.longest(seen.flow.protocol)
                });
                expect(is_of_flow, "it is of no flow that is allowed")?;
                self.touch(seen);
                Ok(())
            }
            Outcome::Pass(Reason::IcmpRelated) => {
                let quoted = quoted_flow(seen.headers, seen.at);
                let is_of_flow = quoted.is_some_and(|flow| {
                    self.openings(&flow)
                        .any(|opening| self.is_allowed(cluster, seen.pod, &flow, opening))
                });
                expect(is_of_flow, "it quotes no flow that is allowed")
            }
            Outcome::Pass(reason @ (Reason::Rule | Reason::NotIsolated)) => {
                expect(
                    new.reason == reason && exemption(seen).is_none(),
                    &format!("the specification says {new:?}"),
                )?;
                self.open(cluster, seen, direction, None);
                Ok(())
            }
            Outcome::Pass(Reason::MidStream) => {
                let opposite = opposite();
                expect(
                    seen.signal.is_mid_stream() && !new.is_allowed() && opposite.is_allowed(),
                    &format!("the specification says {new:?}, the other way {opposite:?}"),
                )?;
                self.open(cluster, seen, direction.opposite(), None);
                Ok(())
            }
            Outcome::Pass(reason @ (Reason::Node | Reason::Itself)) => {
                expect(exemption(seen) == Some(reason), "nothing exempts it")?;
                self.open(cluster, seen, direction, Some(reason));
                Ok(())
            }
            Outcome::Drop(Reason::IsolatedNoRule) => {
                let quoted = quoted_flow(seen.headers, seen.at);
                let is_cut = [Some(seen.flow), quoted].into_iter().flatten().any(|flow| {
                    self.openings(&flow)
                        .any(|opening| !self.is_allowed(cluster, seen.pod, &flow, opening))
                });
                let is_denied = !new.is_allowed()
                    && exemption(seen).is_none()
                    && !(seen.signal.is_mid_stream() && opposite().is_allowed());
                expect(
                    is_denied || is_cut,
                    &format!("the specification says {new:?}"),
                )
            }
            Outcome::Pass(Reason::FailOpen) | Outcome::Drop(Reason::FailClosed) => {
                expect(self.may_be_full, "there is room")?;
                let is_allowed = new.is_allowed()
                    || exemption(seen).is_some()
                    || (seen.signal.is_mid_stream() && opposite().is_allowed());
                expect(is_allowed, "policy denies it in any case")
            }
            Outcome::Pass(_) | Outcome::Drop(_) | Outcome::NotMine => {
                expect(false, "nothing here has that reason")
            }
        }
    }

    /// A flow that is allowed, and lately was heard of, is not lost.
    fn check_kept(
        &self,
        cluster: &Cluster,
        seen: &Seen<'_>,
        outcome: Outcome,
    ) -> Result<(), String> {
        if matches!(seen.signal, Signal::Open | Signal::Untracked) {
            return Ok(());
        }
        let surely = SURELY_KNOWN * u64::from(self.settings.hz);
        let mut openings = self.openings(&seen.flow).peekable();
        let is_known = openings.peek().is_some()
            && openings.all(|opening| {
                seen.now - opening.seen < surely
                    && comes_as(seen, opening)
                    && self.is_allowed(cluster, seen.pod, &seen.flow, opening)
            });
        expect(
            !is_known || outcome == Outcome::Pass(Reason::Reply),
            "it is of a flow that is allowed",
        )
    }

    fn openings(&self, flow: &Flow) -> impl Iterator<Item = &Opening> {
        self.flows.get(flow).into_iter().flatten()
    }

    /// Whether a flow that was opened so may be, now.
    fn is_allowed(&self, cluster: &Cluster, pod: &Pod, flow: &Flow, opening: &Opening) -> bool {
        if opening.exemption.is_some() {
            return true;
        }
        let peer = self.peer_of(cluster, opening.ingress_ifindex, flow);
        said(cluster, pod, flow, opening.originator, peer).is_allowed()
    }

    /// What policy says of a flow that begins with the packet.
    fn said_of(&self, cluster: &Cluster, seen: &Seen<'_>, direction: Direction) -> Decision {
        let came_in = match seen.at.hook {
            Hook::FromPod => 0,
            Hook::ToPod => seen.at.ingress_ifindex,
        };
        let peer = self.peer_of(cluster, came_in, &seen.flow);
        said(cluster, seen.pod, &seen.flow, direction, peer)
    }

    /// Who is on the other side: the local pod behind an interface, whatever address it shows.
    fn peer_of(&self, cluster: &Cluster, ingress_ifindex: u32, flow: &Flow) -> IpAddr {
        let shown = IpAddr::from(flow.peer.0);
        let sender = self.endpoints.get(&ingress_ifindex);
        let Some(sender) = sender.and_then(|name| cluster.pod_named(name)) else {
            return shown;
        };
        if sender.addresses.contains(&shown) {
            return shown;
        }
        let own = sender.addresses.iter();
        own.copied()
            .find(|own| own.is_ipv4() == shown.is_ipv4())
            .unwrap_or(shown)
    }

    fn open(
        &mut self,
        cluster: &Cluster,
        seen: &Seen<'_>,
        originator: Direction,
        exemption: Option<Reason>,
    ) {
        let is_nodes_answer =
            exemption == Some(Reason::Node) && matches!(seen.signal, Signal::Accept);
        if !seen.signal.begins_flow() || is_nodes_answer {
            return;
        }
        let ingress_ifindex = match seen.at.hook {
            Hook::FromPod => 0,
            Hook::ToPod if originator == Direction::Egress => 0,
            Hook::ToPod => seen.at.ingress_ifindex,
        };
        let peer = self.peer_of(cluster, ingress_ifindex, &seen.flow);
        let opening = Opening {
            originator,
            ingress_ifindex,
            is_hidden: peer != IpAddr::from(seen.flow.peer.0),
            exemption,
            seen: seen.now,
        };
        let openings = self.flows.entry(seen.flow).or_default();
        openings.retain(|known| {
            Opening {
                seen: seen.now,
                ..*known
            } != opening
        });
        openings.push(opening);
    }

    /// All of them: which one a packet belongs to is not known here.
    fn touch(&mut self, seen: &Seen<'_>) {
        for opening in self.flows.get_mut(&seen.flow).into_iter().flatten() {
            opening.seen = seen.now;
        }
    }

    /// How long a flow is remembered at most.
    fn longest(&self, protocol: u8) -> u64 {
        [State::Opening, State::Answered, State::Established]
            .into_iter()
            .filter_map(|state| {
                let place = Timeout::of(protocol, state) as usize;
                self.settings.timeouts.get(place).copied()
            })
            .max()
            .map_or(0, u64::from)
    }

    /// Neighbour and listener discovery pass under the conditions of their standards only. `None` for
    /// what is neither.
    fn discovery(
        &self,
        pod: &Pod,
        at: &Arrival,
        headers: &Headers,
        outcome: Outcome,
    ) -> Option<Result<(), String>> {
        let is_icmp = headers.protocol == protocol::ICMPV6 && !headers.source.is_v4();
        let is_neighbour = is_icmp && matches!(headers.detail, 133..=137);
        let is_listener = is_icmp
            && matches!(headers.detail, 130..=132 | 143)
            && headers.hop_limit == 1
            && headers.has_hop_by_hop
            && !headers.has_fragment_header
            && headers.destination.is_group()
            && headers.code == 0;
        if !is_neighbour && !is_listener {
            let is_link = outcome == Outcome::Pass(Reason::Link);
            return is_link.then(|| Err("it keeps no link alive".to_owned()));
        }
        if outcome != Outcome::Pass(Reason::Link) {
            let is_refused = matches!(
                outcome,
                Outcome::Drop(Reason::Malformed | Reason::SpoofedSource) | Outcome::NotMine
            );
            return Some(expect(is_refused, "policy has no say in it"));
        }
        let is_unrouted = is_listener
            || (headers.hop_limit == 255 && !headers.has_extension_header && headers.code == 0);
        let source = IpAddr::from(headers.source);
        let is_routers = matches!(headers.detail, 134 | 137);
        let may_speak = match at.hook {
            Hook::FromPod => {
                !is_routers
                    && (pod.addresses.contains(&source)
                        || headers.source == Address::UNSPECIFIED
                        || headers.source.is_v6_link_local())
                    && self.stays(pod, headers.destination)
            }
            Hook::ToPod => !is_routers || at.ingress_ifindex == 0,
        };
        Some(expect(
            is_unrouted && may_speak,
            "it is no sound discovery of its sender's own",
        ))
    }

    /// The node takes what a pod sends there nowhere, or to where the pod is.
    fn stays(&self, pod: &Pod, destination: Address) -> bool {
        let way = self.routes.get(&destination);
        let is_pods = |own: &IpAddr| self.routes.get(&Address::from(*own)) == way;
        way.is_none()
            || pod
                .addresses
                .iter()
                .filter(|own| own.is_ipv6())
                .any(is_pods)
    }
}

fn expect(is_right: bool, what: &str) -> Result<(), String> {
    if is_right {
        Ok(())
    } else {
        Err(what.to_owned())
    }
}

/// ARP: a pod says where its own address is, or asks before it has one (RFC 5227 §2.1.1); it hears all.
fn arp(pod: &Pod, at: &Arrival, frame: &[u8], outcome: Outcome) -> Result<(), String> {
    let sender: [u8; 4] = frame
        .get(28..32)
        .and_then(|bytes| bytes.try_into().ok())
        .unwrap_or_default();
    let is_own = sender == [0; 4] || pod.addresses.contains(&IpAddr::from(sender));
    let expected = match at.hook {
        Hook::FromPod if !is_own => Outcome::Drop(Reason::SpoofedSource),
        Hook::FromPod | Hook::ToPod => Outcome::Pass(Reason::Link),
    };
    expect(outcome == expected, &format!("it is ARP: {expected:?}"))
}

/// What is allowed whatever policy says, by where it comes from.
fn exemption(seen: &Seen<'_>) -> Option<Reason> {
    let Arrival {
        hook,
        ifindex,
        ingress_ifindex,
    } = *seen.at;
    match hook {
        Hook::FromPod => {
            let peer = IpAddr::from(seen.headers.destination);
            seen.pod.addresses.contains(&peer).then_some(Reason::Itself)
        }
        Hook::ToPod if ingress_ifindex == 0 && !seen.headers.has_fragment_header => {
            Some(Reason::Node)
        }
        Hook::ToPod => (ingress_ifindex == ifindex).then_some(Reason::Itself),
    }
}

/// Whether a packet comes in where its flow does; from the pod, it always does.
fn comes_as(seen: &Seen<'_>, opening: &Opening) -> bool {
    if seen.at.hook == Hook::FromPod || opening.originator == Direction::Egress {
        return true;
    }
    let ingress_ifindex = seen.at.ingress_ifindex;
    match opening.exemption {
        Some(Reason::Node) => ingress_ifindex == 0 && !seen.headers.has_fragment_header,
        Some(_) => ingress_ifindex == seen.at.ifindex,
        None => !opening.is_hidden || ingress_ifindex == opening.ingress_ifindex,
    }
}

fn pieces_of(seen: &Seen<'_>) -> Pieces {
    let headers = seen.headers;
    Pieces {
        ifindex: seen.at.ifindex,
        addresses: (headers.source, headers.destination),
        identification: headers.identification,
        protocol: if headers.source.is_v4() {
            headers.protocol
        } else {
            0
        },
    }
}
