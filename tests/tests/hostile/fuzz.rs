//! Mutated frames from pods under random policies: what arrives is what the host's packet path allows
//! over the same tables, what is counted is what it counts, and where policy decided, it decided as
//! the specification says.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::thread;

use agent_common::Reason;
use agent_common::packet::{self, Fragmentation};
use agent_policy::evaluate::{Decision, judge};
use agent_policy::model::{Direction, ObjectName, Protocol};
use anyhow::{Context as _, Result, ensure};
use tests::lab::frames::switch::{Fate, Lying, Switch, at_the_hook, hex};
use tests::lab::objects::{namespace, pod, policy};
use tests::packets::Frame;
use tests::runs::{Dice, is_thorough, seed};

/// Frames in all, frames under one choice of policies, and frames sent in one go.
fn frames() -> usize {
    if is_thorough() { 10_000_000 } else { 200_000 }
}
const FRAMES_OF_A_NODE: usize = 20_000;
const AT_ONCE: usize = 250;

const PODS: usize = 4;
const PORTS: [u16; 6] = [0, 79, 80, 81, 443, 40_000];

fn name(pod: usize) -> String {
    format!("fuzz/pod-{pod}")
}

fn own(pod: usize, is_v6: bool) -> IpAddr {
    let text = if is_v6 {
        format!("fd15::{}", pod + 1)
    } else {
        format!("10.15.0.{}", pod + 1)
    };
    text.parse().unwrap()
}

/// Pods, and policies that chance has written.
fn cluster(dice: &mut Dice) -> String {
    let mut objects = vec![namespace("fuzz", "")];
    for place in 0..PODS {
        let labels = format!("app: p{place}, half: h{}", place % 2);
        objects.push(pod(
            &name(place),
            &labels,
            &[own(place, false), own(place, true)],
        ));
    }
    for number in 0..2 + dice.roll(5) {
        let selected = match dice.roll(3) {
            0 => "{}".to_owned(),
            1 => format!("{{matchLabels: {{half: h{}}}}}", dice.roll(2)),
            _ => format!("{{matchLabels: {{app: p{}}}}}", dice.roll(PODS)),
        };
        let types = dice.pick(&["Ingress", "Egress", "Ingress, Egress"]);
        let rules = |dice: &mut Dice, peers: &str| {
            let rules: Vec<String> = (0..dice.roll(3)).map(|_| rule(dice, peers)).collect();
            rules.join(", ")
        };
        let (ingress, egress) = (rules(dice, "from"), rules(dice, "to"));
        let spec = format!(
            "{{podSelector: {selected}, policyTypes: [{types}], ingress: [{ingress}], egress: [{egress}]}}"
        );
        objects.push(policy("fuzz", &format!("policy-{number}"), &spec));
    }
    objects.join("---\n")
}

fn rule(dice: &mut Dice, peers: &str) -> String {
    let peer = match dice.roll(5) {
        0 => format!(
            "{{podSelector: {{matchLabels: {{half: h{}}}}}}}",
            dice.roll(2)
        ),
        1 => format!(
            "{{podSelector: {{matchLabels: {{app: p{}}}}}}}",
            dice.roll(PODS)
        ),
        2 => format!("{{ipBlock: {{cidr: 10.15.0.{}/30}}}}", 4 * dice.roll(2)),
        3 => format!("{{ipBlock: {{cidr: \"fd15::{}/127\"}}}}", 2 * dice.roll(3)),
        _ => "{ipBlock: {cidr: 239.0.0.0/8}}, {namespaceSelector: {}}".to_owned(),
    };
    let protocol = dice.pick(&["TCP", "UDP", "SCTP"]);
    let ports = match dice.roll(4) {
        0 => String::new(),
        1 => format!(", ports: [{{protocol: {protocol}}}]"),
        2 => format!(", ports: [{{protocol: {protocol}, port: 80, endPort: 443}}]"),
        _ => ", ports: [{port: 80}, {port: 443, protocol: UDP}, {port: 80, protocol: SCTP}]"
            .to_owned(),
    };
    format!("{{{peers}: [{peer}]{ports}}}")
}

/// A frame of one pod's to another, sound or not.
fn frame(dice: &mut Dice, from: usize, to: usize) -> Vec<u8> {
    let is_v6 = dice.one_in(2);
    let groups: [&str; 4] = ["239.1.1.1", "255.255.255.255", "ff15::7", "ff02::1:ff00:1"];
    let source = match dice.roll(24) {
        0 => own(dice.roll(PODS), is_v6),
        1 => dice
            .pick(&["10.99.0.1", "fd99::1", "fe80::1", "::", "0.0.0.0"])
            .parse()
            .unwrap(),
        _ => own(from, is_v6),
    };
    let destination = match dice.roll(24) {
        0 => own(dice.roll(PODS), is_v6),
        1 => dice.pick(&groups).parse().unwrap(),
        2 => dice
            .pick(&["10.99.0.1", "fd99::1", "fe80::1"])
            .parse()
            .unwrap(),
        _ => own(to, is_v6),
    };
    let destination = if source.is_ipv4() == destination.is_ipv4() {
        destination
    } else {
        own(to, source.is_ipv6())
    };
    if dice.one_in(30) {
        let v4 = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.octets(),
            IpAddr::V6(_) => [10, 15, 0, 1],
        };
        let operation = dice.pick(&[1, 1, 2, 2, 3, 0]);
        return Frame::arp_of(operation, v4(source), v4(destination));
    }
    let (a, b) = (
        (source, dice.pick(&PORTS)),
        (destination, dice.pick(&PORTS)),
    );
    let mut frame = match dice.roll(12) {
        0..=3 => Frame::tcp(a, b, dice.pick(&[2, 2, 0x12, 16, 24, 17, 4, 20, 0])),
        4..=6 => Frame::udp(a, b),
        7 => Frame::sctp(a, b, dice.pick(&[1, 1, 2, 10, 0, 6, 7, 14])),
        8 => Frame::echo_request(source, destination, dice.pick(&[1, 2])),
        9 => Frame::echo_reply(source, destination, dice.pick(&[1, 2])),
        10 => {
            let kind = dice.pick(&[1, 2, 3, 4, 11, 12, 130, 133, 134, 135, 136, 137, 143]);
            let mut frame = Frame::icmp(source, destination, kind, dice.pick(&[0, 0, 0, 4]), 0);
            // The target of a neighbour's message, or what an error quotes.
            let inner = Frame::udp((destination, 80), (source, 443)).bytes();
            let own_target: Vec<u8> = match own(from, true) {
                IpAddr::V6(v6) => v6.octets().to_vec(),
                IpAddr::V4(v4) => v4.octets().to_vec(),
            };
            frame.payload.extend(if dice.one_in(2) {
                own_target
            } else {
                inner[14..].to_vec()
            });
            frame
        }
        _ => {
            let length = dice.roll(80);
            let protocol = dice.pick(&[1, 58, 47, 50, 59, 6, 4, 41, 17]);
            Frame::new(source, destination, protocol, vec![dice.byte(); length])
        }
    };
    frame.hop_limit = dice.pick(&[64, 64, 255, 1]);
    if dice.one_in(6) {
        frame.options = (0..dice.roll(41)).map(|_| 1).collect();
        for _ in 0..dice.roll(4) {
            let kind = dice.pick(&[0, 60, 43, 51]);
            frame = frame.with_extension(kind, vec![0; 6 + 8 * dice.roll(3)]);
        }
    }
    if dice.one_in(12) {
        let offset = dice.pick(&[0, 0, 1, 2, 100, 0x1fff]);
        frame = frame.with_fragment(offset, dice.one_in(2));
    }
    if dice.one_in(40) {
        frame.lie = dice.pick(&[-1, 1, -21, 8, 1_000]);
    }
    if dice.one_in(50) {
        // More than a page.
        frame.payload.resize(5_000, 0);
    }
    frame.bytes()
}

/// Changes a frame anywhere behind its hardware addresses.
fn mutate(dice: &mut Dice, frame: &mut Vec<u8>) {
    const ADDRESSES: usize = 12;
    if dice.one_in(20) {
        frame[..6].copy_from_slice(&dice.pick(&[[0xff; 6], [0x33, 0x33, 0, 0, 0, 1]]));
    }
    if dice.one_in(30) {
        let tag = [
            dice.pick(&[0x81, 0x88]),
            dice.pick(&[0x00, 0xa8]),
            dice.byte(),
            dice.byte(),
        ];
        frame.splice(ADDRESSES..ADDRESSES, tag);
    }
    if dice.one_in(2) {
        return;
    }
    for _ in 0..=dice.roll(4) {
        // Mostly the headers.
        let near = (frame.len() - ADDRESSES).min(100);
        let place = ADDRESSES + dice.roll(near.max(1));
        let byte = dice.byte();
        match dice.roll(8) {
            0..=2 => set(frame, place, &[byte]),
            3 => {
                let old = frame.get(place).copied().unwrap_or_default();
                set(frame, place, &[old ^ 1 << dice.roll(8)]);
            }
            4 => {
                let value = dice.pick(&[
                    0_u16, 1, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x86dd, 0x0800,
                ]);
                set(frame, place, &value.to_be_bytes());
            }
            5 => frame.truncate(14 + dice.roll(frame.len())),
            6 => frame.resize((frame.len() + dice.roll(80)).min(9_000), byte),
            _ => {
                let bytes = vec![byte; 1 + dice.roll(8)];
                let place = place.min(frame.len());
                frame.splice(place..place, bytes);
            }
        }
    }
    // Ethernet's own header is what an interface takes at least.
    frame.resize(frame.len().clamp(14, 9_000), 0);
}

fn set(frame: &mut [u8], place: usize, bytes: &[u8]) {
    for (place, byte) in frame.iter_mut().skip(place).zip(bytes) {
        *place = *byte;
    }
}

/// What became of a run's frames, by name.
type Fates = BTreeMap<String, usize>;

/// Some thousand frames on one node, under one choice of policies.
fn on_a_node(seed: u64, count: usize) -> Result<Fates> {
    let mut dice = Dice::of(seed);
    let cluster = cluster(&mut dice);
    let mut switch = Switch::open(&cluster).context(cluster.clone())?;
    let mut fates = Fates::new();
    for turn in 0..count / AT_ONCE {
        let from = dice.roll(PODS);
        let to = (from + 1 + dice.roll(PODS - 1)) % PODS;
        let frames: Vec<Vec<u8>> = (0..AT_ONCE)
            .map(|_| {
                let mut frame = frame(&mut dice, from, to);
                mutate(&mut dice, &mut frame);
                frame
            })
            .collect();
        let lying = dice.pick(&[Lying::Linear, Lying::Paged]);
        let became = switch
            .send_all(&name(from), &name(to), &frames, lying)
            .with_context(|| format!("turn {turn} from {from} to {to}, {lying:?}"))?;
        for (frame, fate) in frames.iter().zip(became) {
            as_specified(&switch, (from, to), frame, fate)
                .with_context(|| format!("{fate}: {}", hex(Some(frame))))?;
            *fates.entry(fate.to_string()).or_default() += 1;
        }
    }
    Ok(fates)
}

/// Where policy has decided about a packet, it did as the specification says.
fn as_specified(
    switch: &Switch,
    (from, to): (usize, usize),
    frame: &[u8],
    fate: Fate,
) -> Result<()> {
    let parsed = at_the_hook(frame).map(|frame| packet::parse(frame.as_slice()));
    let Some(Ok(packet::Frame::Ip(headers))) = parsed else {
        ensure!(
            !matches!(fate, Fate::Arrives(from, to) if from != Reason::Link || to != Reason::Link),
            "what cannot be read has arrived"
        );
        return Ok(());
    };
    // It says nothing of ports, and is judged by what the first one said.
    if headers.fragmentation == Fragmentation::Later {
        return Ok(());
    }
    let cluster = switch.cluster();
    let said_of = |endpoint: usize, direction, peer: IpAddr| -> Result<Decision> {
        let endpoint = cluster.pod_named(&ObjectName::new("fuzz", format!("pod-{endpoint}")));
        let (protocol, port) = (Protocol(headers.protocol), headers.destination_port);
        let endpoint = endpoint.context("a pod that is not there")?;
        Ok(judge(cluster, endpoint, direction, peer, protocol, port))
    };
    let egress = || said_of(from, Direction::Egress, headers.destination.into());
    let ingress = || said_of(to, Direction::Ingress, headers.source.into());
    match fate {
        Fate::Arrives(left, entered) => {
            agrees(left, &egress()?)?;
            agrees(entered, &ingress()?)
        }
        Fate::DroppedFrom(reason) => agrees(reason, &egress()?),
        Fate::DroppedTo(reason) => agrees(reason, &ingress()?),
        Fate::NotMine | Fate::Lost => Ok(()),
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "all others are decided before policy is asked, or by a flow"
)]
fn agrees(reason: Reason, decision: &Decision) -> Result<()> {
    let is_allowed = match reason {
        Reason::Rule | Reason::NotIsolated => true,
        Reason::IsolatedNoRule => false,
        _ => return Ok(()),
    };
    ensure!(
        is_allowed == decision.is_allowed(),
        "the specification says {decision:?}"
    );
    Ok(())
}

/// The kernel's log from now on.
struct KernelLog(File);

impl KernelLog {
    fn open() -> Result<Self> {
        let mut options = File::options();
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut log = options.open("/dev/kmsg").context("opening /dev/kmsg")?;
        log.seek(SeekFrom::End(0)).context("the end of /dev/kmsg")?;
        Ok(Self(log))
    }

    /// Lines in which the kernel complains.
    fn complaints(&mut self) -> Result<Vec<String>> {
        let mut complaints = Vec::new();
        let mut line = [0; 8192];
        loop {
            match self.0.read(&mut line) {
                Ok(length) => {
                    let line = String::from_utf8_lossy(&line[..length]);
                    if ["WARNING:", "BUG:", "Oops", "Call Trace"]
                        .iter()
                        .any(|word| line.contains(word))
                    {
                        complaints.push(line.into_owned());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(complaints),
                // Some lines were overwritten before they were read.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) => return Err(error).context("reading /dev/kmsg"),
            }
        }
    }
}

#[test]
fn of_mutated_frames_arrives_what_policy_allows_and_all_are_counted() -> Result<()> {
    let seed = seed(1);
    let mut log = KernelLog::open()?;
    let mut fates = Fates::new();
    for node in 0..frames() / FRAMES_OF_A_NODE {
        let own = seed
            .wrapping_add(node as u64)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            | 1;
        // A lab belongs to its thread.
        let run = thread::spawn(move || on_a_node(own, FRAMES_OF_A_NODE));
        let became = run.join().unwrap();
        let became = became.with_context(|| format!("PICKET_SEED={seed}, node {node}"))?;
        for (fate, count) in became {
            *fates.entry(fate).or_default() += count;
        }
    }
    let complaints = log.complaints()?;
    assert!(complaints.is_empty(), "{complaints:#?}");
    let least = frames() / 1_000;
    for fate in [
        Fate::Arrives(Reason::Rule, Reason::Rule),
        Fate::Arrives(Reason::Reply, Reason::Reply),
        Fate::Arrives(Reason::NotIsolated, Reason::Rule),
        Fate::Arrives(Reason::Link, Reason::Link),
        Fate::DroppedFrom(Reason::Malformed),
        Fate::DroppedFrom(Reason::SpoofedSource),
        Fate::DroppedFrom(Reason::IsolatedNoRule),
        Fate::DroppedTo(Reason::IsolatedNoRule),
        Fate::NotMine,
    ] {
        let count = fates.get(&fate.to_string()).copied().unwrap_or_default();
        assert!(count >= least, "{fate}: {count} of {fates:#?}");
    }
    Ok(())
}
