//! What keeps a link alive passes whatever policy says, so it must go nowhere: a node that routes has
//! nothing of it to pass on, and a bridge passes on nothing else.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Result, ensure};
use tests::lab::agent::Agent;
use tests::lab::frames::{Wire, between};
use tests::lab::netlink::Mac;
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::Stage;
use tests::packets::Frame;

use crate::origin::{LAST, OWN_PORT, is_to};

const ATTACKER: &str = "shop/attacker";
const ACCOMPLICE: &str = "shop/accomplice";
/// Another of another prefix.
const DISTANT: &str = "shop/distant";
const ATTACKER_V6: &str = "fd14::2";
const ATTACKER_LINK_LOCAL: &str = "fe80::470:ff:fe00:64";
const ACCOMPLICE_V6: &str = "fd14::3";
const DISTANT_V6: &str = "fd14:0:0:1::3";
const OUTSIDE: &str = "2001:db8::9";
/// Beyond the router, too, though the attacker's prefix has it: nodes may share one.
const FAR: &str = "fd14::9";
/// An address that the node has a way to, and nobody has.
const NOBODY: &str = "fd14:0:0:2::7";
/// The gateway's, and the router's.
const NEAR: [&str; 2] = ["fe80::1", "fe80::2"];
/// The bridge's hardware address.
const BRIDGE: Mac = [0x02, 0x70, 0, 0, 0xff, 0x01];

/// What the attacker has to say, in every message.
const SECRET: &[u8; 6] = b"\x02leak!";
const ICMPV6: u8 = 58;
const UNROUTED: u8 = 255;
const UNROUTABLE: u8 = 1;
const NEIGHBOUR: [u8; 5] = [133, 134, 135, 136, 137];
const LISTENER: [u8; 4] = [130, 131, 132, 143];
/// What is for every host of a link, of a site, and of everywhere.
const GROUPS: [&str; 4] = ["ff02::1", "ff02::1:ff00:3", "ff05::1:3", "ff0e::1"];

fn v6(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An attacker that may send nothing but one kind of datagram, and an accomplice of its own prefix and
/// one of another.
fn cluster() -> String {
    let spec = format!(
        "{{podSelector: {{matchLabels: {{app: attacker}}}}, policyTypes: [Ingress, Egress], \
         egress: [{{ports: [{{port: {LAST}, protocol: UDP}}]}}]}}"
    );
    [
        namespace("shop", ""),
        pod(ATTACKER, "app: attacker", &[ATTACKER_V6]),
        pod(ACCOMPLICE, "app: accomplice", &[ACCOMPLICE_V6]),
        pod(DISTANT, "app: accomplice", &[DISTANT_V6]),
        policy("shop", "attacker", &spec),
    ]
    .join("---\n")
}

/// A message with the secret in it.
fn message(kind: u8, from: IpAddr, to: IpAddr, hop_limit: u8) -> Frame {
    let mut frame = Frame::icmp(from, to, kind, 0, 0).with_hop_limit(hop_limit);
    frame.payload[4..8].fill(0);
    if NEIGHBOUR.contains(&kind) {
        // RFC 4861 §4: but for a router's, whose address it is about; and an option.
        if kind >= 135 {
            let own: Ipv6Addr = ATTACKER_V6.parse().unwrap();
            frame.payload.extend(own.octets());
        }
        frame.payload.extend([1, 1]);
        frame.payload.extend(SECRET);
        return frame;
    }
    // RFC 2710 §3, RFC 3810 §5.2: a group, behind a router alert.
    frame.payload.extend([0xff, 0x0e, 0, 0, 0, 0, 0, 0, 0, 0]);
    frame.payload.extend(SECRET);
    frame.with_extension(0, vec![5, 2, 0, 0, 1, 0])
}

/// Every message from every address to every destination, for each of these hardware addresses.
fn messages(macs: &[Mac]) -> Vec<(Mac, Frame)> {
    let mut messages = Vec::new();
    for from in [ATTACKER_V6, ATTACKER_LINK_LOCAL, "::"].map(v6) {
        let elsewhere = [OUTSIDE, FAR, ACCOMPLICE_V6, DISTANT_V6, NOBODY];
        for to in elsewhere.into_iter().chain(NEAR).chain(GROUPS).map(v6) {
            for hop_limit in [UNROUTED, 64, 2, UNROUTABLE] {
                for kind in NEIGHBOUR.into_iter().chain(LISTENER) {
                    let frame = message(kind, from, to, hop_limit);
                    messages.extend(macs.iter().map(|mac| (*mac, frame.clone())));
                }
            }
        }
    }
    messages
}

/// A message as it came: its type, hop limit and destination.
type Heard = (u8, u8, Ipv6Addr);

fn heard(frame: &[u8]) -> Option<Heard> {
    let is_secret = frame.windows(SECRET.len()).any(|part| part == SECRET);
    // Behind the only extension header that these have.
    let place = if *frame.get(20)? == ICMPV6 { 54 } else { 62 };
    let to: [u8; 16] = frame.get(38..54)?.try_into().ok()?;
    is_secret.then_some((*frame.get(place)?, *frame.get(21)?, to.into()))
}

/// Sends messages; what of them comes to the accomplice, to the distant one, and to the node's router.
fn sent(stage: &Stage, messages: &[(Mac, Frame)], node: Mac) -> Result<[BTreeSet<Heard>; 3]> {
    let attacker = stage.lab.place(ATTACKER)?;
    let sender = Wire::open(&attacker.namespace)?;
    let from = v6(ATTACKER_V6);
    let at_pod = |pod| Wire::open(&stage.lab.place(pod)?.namespace);
    let mut receivers = [
        (at_pod(ACCOMPLICE)?, v6(ACCOMPLICE_V6)),
        (at_pod(DISTANT)?, v6(DISTANT_V6)),
        (Wire::open(stage.lab.router()?)?, v6(OUTSIDE)),
    ];
    let last = |to: IpAddr| {
        let frame = Frame::udp((from, OWN_PORT), (to, LAST)).bytes();
        sender.send(&between(attacker.mac(), node, &frame))
    };
    // The node knows where everybody is: nothing has to wait for that.
    for (receiver, to) in &mut receivers {
        last(*to)?;
        receiver.until(|frame| is_to(frame, from, LAST))?;
    }
    for (to, frame) in messages {
        sender.send(&between(attacker.mac(), *to, &frame.bytes()))?;
    }
    let mut all = [(); 3].map(|()| BTreeSet::new());
    for ((receiver, to), heard_there) in receivers.iter_mut().zip(&mut all) {
        last(*to)?;
        let arrived = receiver.until(|frame| is_to(frame, from, LAST))?;
        heard_there.extend(arrived.iter().filter_map(|frame| heard(frame)));
    }
    Ok(all)
}

fn kinds(heard: &BTreeSet<Heard>) -> BTreeSet<u8> {
    heard.iter().map(|(kind, _, _)| *kind).collect()
}

#[test]
fn a_node_that_routes_passes_no_message_of_a_link_on() -> Result<()> {
    let mut stage = Stage::without_agent(&cluster())?;
    for address in [OUTSIDE, FAR] {
        stage.lab.add_external(v6(address))?;
    }
    let near = stage.lab.place(ATTACKER)?.near_mac();
    let everybody = [0x33, 0x33, 0, 0, 0, 1];
    let messages = messages(&[near, everybody]);

    let all: BTreeSet<u8> = NEIGHBOUR.into_iter().chain(LISTENER).collect();
    for heard in sent(&stage, &messages, near)? {
        ensure!(kinds(&heard) == all, "nobody watches: {heard:?}");
    }
    stage.agent = Some(Agent::start(&stage.lab.manifests())?);
    let [accomplice, distant, outside] = sent(&stage, &messages, near)?;
    ensure!(accomplice.is_empty(), "at another pod: {accomplice:?}");
    ensure!(distant.is_empty(), "at one of another prefix: {distant:?}");
    ensure!(outside.is_empty(), "beyond the node: {outside:?}");
    Ok(())
}

#[test]
fn a_bridge_passes_on_what_its_link_lives_by_and_its_node_nothing() -> Result<()> {
    let mut stage = Stage::without_agent(&cluster())?;
    for address in [OUTSIDE, FAR] {
        stage.lab.add_external(v6(address))?;
    }
    stage.lab.bridge(&[ATTACKER, ACCOMPLICE], false)?;
    stage.agent = Some(Agent::start(&stage.lab.manifests())?);
    let accomplice = stage.lab.place(ACCOMPLICE)?.mac();
    let macs = [BRIDGE, accomplice, [0x33, 0x33, 0, 0, 0, 1]];
    let [accomplice, distant, outside] = sent(&stage, &messages(&macs), BRIDGE)?;
    ensure!(distant.is_empty(), "beyond the bridge: {distant:?}");
    ensure!(outside.is_empty(), "beyond the node: {outside:?}");
    let each = |kinds: &[u8], hop_limit: u8, to: &[&str]| -> Vec<Heard> {
        let of = |kind: u8| {
            to.iter()
                .map(move |to| (kind, hop_limit, to.parse().unwrap()))
        };
        kinds.iter().flat_map(|kind| of(*kind)).collect()
    };
    let near = NEAR.into_iter().chain(GROUPS).chain([ACCOMPLICE_V6]);
    let neighbour = each(&[133, 135, 136], UNROUTED, &near.collect::<Vec<_>>());
    let listener = each(&LISTENER, UNROUTABLE, &GROUPS);
    let expected: BTreeSet<Heard> = neighbour.into_iter().chain(listener).collect();
    ensure!(accomplice == expected, "{accomplice:?}\n{expected:?}");
    Ok(())
}
