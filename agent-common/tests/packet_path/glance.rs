//! The short way says what the long way says, and leaves the same behind, for any packets in any
//! order.

use std::net::IpAddr;

use agent_common::Reason;
use agent_common::classify::{
    Arrival, Glance, Hook, Outcome, Room, classify, classify_in, glance, open,
};
use agent_common::maps::PeerEntry;
use agent_common::packet::{Head, Packet};
use proptest::prelude::*;

use crate::packets::Frame;
use crate::world::{
    CLOSED_SET, EGRESS_SET, FRIEND, Family, HZ, INGRESS_SET, NEIGHBOUR, Node, POD, UPLINK,
    change_policy, families, node, relabel,
};

/// A packet that cannot be glanced at: none of it lies in one piece.
struct Paged<'a>(&'a [u8]);

impl Packet for Paged<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.load(offset)
    }

    fn head<const N: usize>(&self) -> Option<impl Head> {
        None::<&[u8; N]>
    }

    fn length(&self) -> u32 {
        self.0.length()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Packet {
        family: usize,
        is_from_pod: bool,
        peer: usize,
        protocol: u8,
        flags: u8,
        ingress_ifindex: u32,
        /// A byte that is changed, and how much of the frame is cut off.
        damage: Option<(usize, u8, usize)>,
    },
    Wait(u64),
    Policy([u32; 2]),
    Relabel(usize, u32),
}

fn step() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![4 => Just(16), 1 => Just(2), 1 => Just(18), 1 => any::<u8>()];
    let protocol = prop_oneof![4 => Just(6), 2 => Just(17), 1 => Just(132), 1 => Just(1)];
    let ifindex =
        prop_oneof![4 => Just(UPLINK), 1 => Just(0), 1 => Just(POD.0), 1 => Just(NEIGHBOUR.0)];
    // Fields that are looked at, of both families, more often than others.
    let fields = vec![13, 14, 15, 16, 17, 18, 19, 20, 21, 23, 46, 47, 66, 67];
    let place = prop_oneof![4 => prop::sample::select(fields), 1 => 0..80_usize];
    let cut = prop_oneof![6 => Just(0), 1 => 1..4_usize];
    let damage = prop_oneof![
        3 => Just(None),
        1 => (place, any::<u8>(), cut).prop_map(Some)
    ];
    let packet = (
        0..2_usize,
        any::<bool>(),
        0..4_usize,
        protocol,
        flags,
        ifindex,
        damage,
    )
        .prop_map(
            |(family, is_from_pod, peer, protocol, flags, ingress_ifindex, damage)| Step::Packet {
                family,
                is_from_pod,
                peer,
                protocol,
                flags,
                ingress_ifindex,
                damage,
            },
        );
    let sets = [[INGRESS_SET, EGRESS_SET], [CLOSED_SET, EGRESS_SET], [0, 0]];
    prop_oneof![
        16 => packet,
        1 => (0..200 * u64::from(HZ)).prop_map(Step::Wait),
        1 => prop::sample::select(sets.to_vec()).prop_map(Step::Policy),
        1 => (0..4_usize, prop::sample::select(vec![0, FRIEND])).prop_map(|(peer, class)| Step::Relabel(peer, class)),
    ]
}

fn frame(step: &Step) -> Option<(Arrival, Vec<u8>)> {
    let Step::Packet {
        family,
        is_from_pod,
        peer,
        protocol,
        flags,
        ingress_ifindex,
        damage,
    } = *step
    else {
        return None;
    };
    let family = &families()[family];
    let peer = [
        family.friend,
        family.friend,
        family.neighbour,
        family.stranger,
    ][peer];
    // One flow of each protocol with each peer, opened by either side.
    let (pod, peer) = ((family.pod, 80), (peer, 443));
    let (from, to) = if is_from_pod {
        (pod, peer)
    } else {
        (peer, pod)
    };
    let mut bytes = match protocol {
        6 => Frame::tcp(from, to, flags),
        17 => Frame::udp(from, to),
        132 => Frame::sctp(from, to, flags & 15),
        _ if is_from_pod => Frame::echo_request(from.0, to.0, 7),
        _ => Frame::echo_reply(from.0, to.0, 7),
    }
    .bytes();
    if let Some((place, value, cut)) = damage {
        if let Some(byte) = bytes.get_mut(place) {
            *byte = value;
        }
        bytes.truncate(bytes.len() - cut);
    }
    let at = passing(is_from_pod, ingress_ifindex);
    Some((at, bytes))
}

/// At the pod's interface, having entered the node elsewhere.
const fn at_pod(hook: Hook, ingress_ifindex: u32) -> Arrival {
    Arrival {
        hook,
        ifindex: POD.0,
        ingress_ifindex,
    }
}

/// What the pod sends, or what reaches it from `ingress_ifindex`.
const fn passing(is_from_pod: bool, ingress_ifindex: u32) -> Arrival {
    if is_from_pod {
        at_pod(Hook::FromPod, POD.0)
    } else {
        at_pod(Hook::ToPod, ingress_ifindex)
    }
}

proptest! {
    #[test]
    fn a_glance_says_and_leaves_what_the_long_way_does(steps in prop::collection::vec(step(), 1..60)) {
        let (mut short, mut long) = (node(), node());
        let mut room = Room::default();
        for step in &steps {
            match step {
                Step::Packet { .. } => {}
                Step::Wait(jiffies) => {
                    short.advance(*jiffies);
                    long.advance(*jiffies);
                }
                Step::Policy(sets) => {
                    change_policy(&mut short, *sets);
                    change_policy(&mut long, *sets);
                }
                Step::Relabel(peer, class) => {
                    let family = &families()[peer % 2];
                    let peer = [family.friend, family.neighbour][peer / 2];
                    relabel(&mut short, peer, *class);
                    relabel(&mut long, peer, *class);
                }
            }
            let Some((at, bytes)) = frame(step) else { continue };
            prop_assert_eq!(
                classify_in(&mut room, &short, bytes.as_slice(), &at),
                classify(&long, &Paged(&bytes), &at),
                "{:?}", step
            );
            prop_assert_eq!(short.remains(), long.remains(), "after {:?}", step);
        }
    }
}

#[test]
fn an_established_flow_is_passed_at_a_glance() {
    // Else the property above would compare the long way with itself.
    for family in families() {
        let node = node();
        let (pod, friend) = ((family.pod, 80), (family.friend, 40_000));
        for (is_from_pod, flags) in [(false, 2), (true, 18), (false, 16)] {
            let (from, to) = if is_from_pod {
                (pod, friend)
            } else {
                (friend, pod)
            };
            let bytes = Frame::tcp(from, to, flags).bytes();
            let at = passing(is_from_pod, UPLINK);
            let _outcome = classify(&node, bytes.as_slice(), &at);
        }
        let at = at_pod(Hook::FromPod, POD.0);
        let bytes = Frame::tcp(pod, friend, 16).bytes();
        let room = &mut Room::default();
        assert_eq!(
            glance(room, &node, bytes.as_slice(), &at),
            Glance::Established
        );
    }
}

#[test]
fn a_connection_that_begins_or_is_refused_again_takes_the_short_way() {
    // As above: else nothing is compared.
    for family in families() {
        let node = node();
        let room = &mut Room::default();
        let pod = (family.pod, 40_000);
        for (peer, attempts, outcome) in [
            (family.friend, 1, Outcome::Pass(Reason::Rule)),
            (family.stranger, 2, Outcome::Drop(Reason::IsolatedNoRule)),
        ] {
            let bytes = Frame::tcp(pod, (peer, 443), 2).bytes();
            let at = at_pod(Hook::FromPod, POD.0);
            for _attempt in 0..attempts {
                let Glance::Opens(segment) = glance(room, &node, bytes.as_slice(), &at) else {
                    panic!("a plain first segment is read at a glance");
                };
                assert_eq!(open(room, &node, &at, segment), Some(outcome));
            }
        }
    }
}

const REFUSED: Outcome = Outcome::Drop(Reason::IsolatedNoRule);
const ALLOWED: Outcome = Outcome::Pass(Reason::Rule);

/// A connection's first segment, met again and again by a CPU that remembers.
struct Segment {
    node: Node,
    room: Room,
    bytes: Vec<u8>,
}

impl Segment {
    /// Between the pod's port 80 and a peer's 443, as the hook sees it.
    fn new(hook: Hook, family: &Family, peer: IpAddr) -> Self {
        let (pod, peer) = ((family.pod, 80), (peer, 443));
        let (from, to) = match hook {
            Hook::FromPod => (pod, peer),
            Hook::ToPod => (peer, pod),
        };
        Self {
            node: node(),
            room: Room::default(),
            bytes: Frame::tcp(from, to, 2).bytes(),
        }
    }

    /// What becomes of it on its way to the pod.
    fn comes_in(&mut self, ingress_ifindex: u32) -> Outcome {
        self.met(&at_pod(Hook::ToPod, ingress_ifindex))
    }

    /// What becomes of it on its way from the pod.
    fn goes_out(&mut self) -> Outcome {
        self.met(&at_pod(Hook::FromPod, POD.0))
    }

    fn met(&mut self, at: &Arrival) -> Outcome {
        classify_in(&mut self.room, &self.node, self.bytes.as_slice(), at)
    }
}

#[test]
fn a_refusal_is_forgotten_after_a_moment_even_when_nothing_told_of_a_change() {
    // The peer's class changes without its revision, as no plan would do it.
    let family = &families()[0];
    let mut segment = Segment::new(Hook::FromPod, family, family.stranger);
    assert_eq!(segment.goes_out(), REFUSED);
    segment.node.policy.peers.insert(
        family.stranger.into(),
        PeerEntry {
            class: FRIEND,
            flags: 0,
        },
    );
    assert_eq!(segment.goes_out(), REFUSED);
    segment.node.advance(u64::from(HZ) / 10 + 1);
    assert_eq!(segment.goes_out(), ALLOWED);
}

#[test]
fn a_refusal_is_forgotten_at_once_when_the_peer_changes() {
    for family in families() {
        let mut segment = Segment::new(Hook::FromPod, &family, family.stranger);
        for _attempt in 0..2 {
            assert_eq!(segment.goes_out(), REFUSED);
        }
        relabel(&mut segment.node, family.stranger, FRIEND);
        assert_eq!(segment.goes_out(), ALLOWED);
    }
}

#[test]
fn a_refusal_is_forgotten_at_once_when_policy_changes() {
    let family = &families()[0];
    let mut segment = Segment::new(Hook::ToPod, family, family.friend);
    change_policy(&mut segment.node, [CLOSED_SET, EGRESS_SET]);
    for _attempt in 0..2 {
        assert_eq!(segment.comes_in(UPLINK), REFUSED);
    }
    change_policy(&mut segment.node, [INGRESS_SET, EGRESS_SET]);
    assert_eq!(segment.comes_in(UPLINK), ALLOWED);
}

// A masquerade shows a stranger; the interface tells that it is the neighbour.

#[test]
fn what_a_stranger_was_refused_is_not_held_against_a_hidden_neighbour() {
    for family in families() {
        let mut segment = Segment::new(Hook::ToPod, &family, family.stranger);
        assert_eq!(segment.comes_in(UPLINK), REFUSED);
        assert_eq!(segment.comes_in(NEIGHBOUR.0), ALLOWED);
    }
}

#[test]
fn what_a_known_flow_was_refused_is_not_held_against_a_hidden_neighbour() {
    for family in families() {
        let mut segment = Segment::new(Hook::ToPod, &family, family.stranger);
        relabel(&mut segment.node, family.stranger, FRIEND);
        assert_eq!(segment.comes_in(UPLINK), ALLOWED);
        relabel(&mut segment.node, family.stranger, 0);
        // The tuple's flow is judged again, whoever sends the packet, and cut.
        assert_eq!(segment.comes_in(NEIGHBOUR.0), REFUSED);
        assert_eq!(segment.comes_in(NEIGHBOUR.0), ALLOWED);
    }
}

#[test]
fn what_a_hidden_neighbour_was_refused_is_not_held_against_whom_it_shows() {
    for family in families() {
        let mut segment = Segment::new(Hook::ToPod, &family, family.stranger);
        relabel(&mut segment.node, family.neighbour, 0);
        assert_eq!(segment.comes_in(NEIGHBOUR.0), REFUSED);
        relabel(&mut segment.node, family.neighbour, FRIEND);
        assert_eq!(segment.comes_in(NEIGHBOUR.0), ALLOWED);
    }
}
