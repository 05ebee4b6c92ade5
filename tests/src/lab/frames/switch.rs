//! Pods on a bridge, their programs judging by compiled policy, and the host's packet path beside
//! them on the same tables: what a frame comes to is said twice, and must be the same.
//!
//! A bridge passes on whatever it is given, so all that stands between two pods is our programs. The
//! pods' own stacks are silent: no frame is on the wire, and none is counted, that no test has sent.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use agent::dataplane::{Dataplane, Options};
use agent::source::directory;
use agent_common::classify::{Arrival, Hook, Outcome};
use agent_common::judge::PolicyTables as _;
use agent_common::maps::{Counter, Settings, Traffic};
use agent_common::{Direction, Reason, Verdict};
use agent_policy::engine::{Engine, LocalEndpoint, Options as EngineOptions};
use agent_policy::model::{Change, ObjectName, PodUid};
use agent_policy::tables::Tables;
use anyhow::{Context as _, Result, bail, ensure};

use super::super::foreign::run;
use super::super::namespace::sysctl;
use super::super::netlink::Mac;
use super::super::pins::PINS;
use super::super::{FAR, Lab, mac};
use super::Wire;
use crate::bench::{cpus, keep_to};
use crate::machine::Machine;
use crate::packets::Frame;
use crate::wild::witness::Witness;

/// The bridge.
const BRIDGE: &str = "br0";
/// Largest packet of every interface: as some clouds have it, and more than a page.
pub const MTU: usize = 9000;
/// Flows, refusals and connections that a run may make without anything being forgotten.
const CAPACITY: u32 = 131_072;
/// Nor does a flow end by itself: kernel and host do not look at the clock at the same moment.
const NEVER: u32 = u32::MAX / 2;
/// New flows are not what is to be limited here.
const NO_BUDGET: u32 = 1 << 24;

/// No packet is under way when a policy changes: its rows may go with the next one.
const RESTED: Duration = Duration::from_secs(10);

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Fate {
    /// It passes both programs, for these reasons, and arrives.
    Arrives(Reason, Reason),
    /// Its sender's program drops it.
    DroppedFrom(Reason),
    /// Its receiver's program drops it.
    DroppedTo(Reason),
    /// Its receiver's program drops it: it is for another pod.
    NotMine,
    /// The kernel drops it before any program.
    Lost,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arrives(from, to) => write!(f, "arrives ({from}, {to})"),
            Self::DroppedFrom(reason) => write!(f, "dropped from the pod ({reason})"),
            Self::DroppedTo(reason) => write!(f, "dropped to the pod ({reason})"),
            Self::NotMine => f.write_str("not for this pod"),
            Self::Lost => f.write_str("lost before any program"),
        }
    }
}

/// How frames lie in the kernel's buffers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lying {
    /// As a packet socket puts them: in one piece.
    Linear,
    /// All but the Ethernet header in pages; frames of less than a page are in one piece all the same.
    Paged,
}

/// A pod's port of the bridge.
#[derive(Debug)]
struct Port {
    uid: PodUid,
    addresses: Vec<IpAddr>,
    ifindex: u32,
    slot: u32,
    mac: Mac,
    wire: Wire,
}

/// What arrives, by pod.
type Deliveries = BTreeMap<String, Vec<Vec<u8>>>;

/// A node whose pods are on a bridge. The calling thread stays on one CPU: the kernel then passes
/// frames on in the order they were sent.
#[derive(Debug)]
pub struct Switch {
    /// The host's packet path, with the tables and settings of the kernel.
    pub host: Machine<Tables>,
    /// The kernel's.
    pub dataplane: Dataplane,
    engine: Engine,
    /// Has seen every packet at every hook.
    witness: Witness,
    /// What the engine takes for the time: rows rest long enough between two changes.
    changed: Duration,
    ports: BTreeMap<String, Port>,
    marks: u32,
    /// Its namespaces, for as long as it lives.
    lab: Lab,
}

impl Switch {
    /// Lays out the pods of some manifests and puts their policies in force.
    pub fn open(cluster: &str) -> Result<Self> {
        let loaded = directory::load_bytes(Path::new("cluster.yaml"), cluster.as_bytes());
        ensure!(loaded.findings.is_empty(), "{:?}", loaded.findings);
        Self::of(loaded.changes)
    }

    /// The same of pods and policies as they are.
    pub fn of(changes: Vec<Change>) -> Result<Self> {
        keep_to(cpus()?.get(..1).unwrap_or_default())?;
        let lab = Lab::enter()?;
        let mut options = Options::new(PINS);
        for map in ["CONNTRACK", "PENDING", "DENIED", "FRAGMENTS"] {
            options.capacities.push((map.to_owned(), CAPACITY));
        }
        let mut dataplane = Dataplane::open(&options)?;
        dataplane.put_settings(&Settings {
            timeouts: [NEVER; 8],
            report_interval: u32::MAX,
            budget_rate: NO_BUDGET,
            budget_burst: NO_BUDGET,
            ..Settings::default()
        })?;
        let mut host = Machine::new(Tables::default());
        host.policy.settings = dataplane.settings()?;
        host.now.set(dataplane.tick()?.jiffies);
        make_bridge()?;
        let mut switch = Self {
            witness: Witness::new(host.policy.settings, false),
            changed: Duration::ZERO,
            host,
            dataplane,
            engine: Engine::new(EngineOptions::default()),
            ports: BTreeMap::new(),
            marks: 0,
            lab,
        };
        for change in changes {
            if let Change::Pod(pod) = &change {
                switch.add(&pod.name.to_string(), &pod.uid, &pod.addresses)?;
            }
            drop(switch.engine.apply(change));
        }
        for (pod, port) in &switch.ports {
            let (namespace, name) = pod.split_once('/').unwrap_or_default();
            let pod = ObjectName::new(namespace, name);
            switch.witness.attach(port.ifindex, pod);
            switch.engine.attach(LocalEndpoint {
                uid: port.uid.clone(),
                ifindex: port.ifindex,
                addresses: port.addresses.clone(),
                attached: 0,
                fails_open: false,
            });
        }
        switch.carry_out()?;
        for port in switch.ports.values_mut() {
            let interface = format!("pod{}", port.ifindex);
            switch.dataplane.attach(port.ifindex, &interface)?;
            let endpoint = switch.host.policy.endpoint(port.ifindex);
            port.slot = endpoint
                .with_context(|| format!("{interface} is not published"))?
                .0
                .slot;
            port.wire.forget()?;
        }
        Ok(switch)
    }

    /// A pod without addresses of its own: what it would say by itself is not asked for.
    fn add(&mut self, name: &str, uid: &PodUid, addresses: &[IpAddr]) -> Result<()> {
        self.lab.add_pod(name, &[])?;
        let place = self.lab.place(name)?;
        let (ifindex, interface) = (place.veth, format!("pod{}", place.veth));
        silence(&interface)?;
        run("ip", &format!("addr flush dev {interface}"))?;
        run(
            "ip",
            &format!("link set {interface} mtu {MTU} master {BRIDGE}"),
        )?;
        place.namespace.enter(|| {
            silence("eth0")?;
            run("ip", &format!("link set eth0 mtu {MTU} arp off")).map(drop)
        })?;
        let mac = mac(FAR, ifindex);
        let [a, b, c, d, e, f] = mac;
        let own = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        run(
            "bridge",
            &format!("fdb replace {own} dev {interface} master static"),
        )?;
        let port = Port {
            uid: uid.clone(),
            addresses: addresses.to_vec(),
            ifindex,
            slot: 0,
            mac,
            wire: Wire::open(&place.namespace)?,
        };
        self.ports.insert(name.to_owned(), port);
        Ok(())
    }

    /// Has other policies, or pods of other labels, from now on.
    pub fn change(&mut self, changes: Vec<Change>) -> Result<()> {
        for change in changes {
            drop(self.engine.apply(change));
        }
        self.carry_out()
    }

    /// Carries out what the engine plans, in the kernel and on the host.
    fn carry_out(&mut self) -> Result<()> {
        self.changed += RESTED;
        while let Some(plan) = self.engine.plan(self.changed)? {
            self.dataplane.apply(&plan.writes)?;
            self.host.policy.apply_all(&plan.writes);
            self.engine.written(self.changed);
        }
        Ok(())
    }

    /// What policies mean here.
    pub fn cluster(&self) -> &agent_policy::cluster::Cluster {
        self.engine.cluster()
    }

    /// Sends a frame from one pod to another, and says what became of it. See [`Self::send_all`].
    pub fn send(&mut self, from: &str, to: &str, frame: &[u8]) -> Result<Fate> {
        let fates = self.send_all(from, to, &[frame.to_vec()], Lying::Linear)?;
        fates.first().copied().context("one frame, one fate")
    }

    /// Sends frames from one pod to another and says what became of each. A frame whose first byte is
    /// even goes to the other pod's hardware address; else to its own, which is a group's.
    ///
    /// An error when anything else becomes of them in the kernel than on the host: what arrives, byte
    /// by byte, and what is counted for every pod, by reason; or than policy allows.
    pub fn send_all(
        &mut self,
        from: &str,
        to: &str,
        frames: &[Vec<u8>],
        lying: Lying,
    ) -> Result<Vec<Fate>> {
        self.host.now.set(self.dataplane.tick()?.jiffies);
        let frames: Vec<Vec<u8>> = frames
            .iter()
            .map(|frame| self.addressed(from, to, frame))
            .collect::<Result<_>>()?;
        let mut expected = Deliveries::new();
        let fates: Vec<Fate> = frames
            .iter()
            .map(|frame| self.fate((from, to), frame, &mut expected))
            .collect::<Result<_>>()?;
        let mark = self.mark(from, to)?;
        let marked = self.fate((from, to), &mark, &mut Deliveries::new())?;
        ensure!(
            matches!(marked, Fate::Arrives(..)),
            "the frame behind all others: {marked}"
        );
        let sender = &self.port(from)?.wire;
        for frame in &frames {
            match lying {
                Lying::Linear => sender.send(frame)?,
                Lying::Paged => sender.send_paged(frame)?,
            }
        }
        sender.send(&mark)?;
        let receiver = &mut self.ports.get_mut(to).context("a port")?.wire;
        let arrived = receiver.until(|frame| *frame == *mark)?;
        same_frames(&expected.remove(to).unwrap_or_default(), &arrived)
            .with_context(|| format!("at {to}"))?;
        // What was flooded has gone its ways before the last frame went its one.
        for (pod, port) in &mut self.ports {
            let arrived = port.wire.arrived()?;
            same_frames(&expected.remove(pod).unwrap_or_default(), &arrived)
                .with_context(|| format!("at {pod}"))?;
        }
        self.same_books()?;
        Ok(fates)
    }

    /// What becomes of a frame on the host, at the other pod and at those that it is flooded to. Their
    /// books are kept.
    fn fate(
        &mut self,
        (from, to): (&str, &str),
        frame: &[u8],
        deliveries: &mut Deliveries,
    ) -> Result<Fate> {
        let sender = self.port(from)?.ifindex;
        let Some(frame) = at_the_hook(frame) else {
            return Ok(Fate::Lost);
        };
        let at = |hook, ifindex| Arrival {
            hook,
            ifindex,
            ingress_ifindex: sender,
        };
        let left = match self.judge(&at(Hook::FromPod, sender), &frame)? {
            Outcome::Pass(reason) => reason,
            Outcome::Drop(reason) => return Ok(Fate::DroppedFrom(reason)),
            Outcome::NotMine => bail!("a pod's own frame is not for another pod"),
        };
        let mut fate = None;
        let is_reached = |pod: &String| pod == to || (pod != from && is_group(&frame));
        let reached: Vec<(String, u32)> = self
            .ports
            .iter()
            .filter(|(pod, _)| is_reached(pod))
            .map(|(pod, port)| (pod.clone(), port.ifindex))
            .collect();
        for (pod, ifindex) in &reached {
            let outcome = self.judge(&at(Hook::ToPod, *ifindex), &frame)?;
            if matches!(outcome, Outcome::Pass(_)) {
                let deliveries = deliveries.entry(pod.clone()).or_default();
                deliveries.push(frame.clone());
            }
            if pod == to {
                fate = Some(match outcome {
                    Outcome::Pass(reason) => Fate::Arrives(left, reason),
                    Outcome::Drop(reason) => Fate::DroppedTo(reason),
                    Outcome::NotMine => Fate::NotMine,
                });
            }
        }
        fate.with_context(|| format!("{to} is no pod of this switch"))
    }

    /// What becomes of a packet at a hook, on the host; an error when it should not.
    fn judge(&mut self, at: &Arrival, frame: &[u8]) -> Result<Outcome> {
        let outcome = self.host.classify(*at, frame);
        let cluster = self.engine.cluster();
        let now = self.host.now.get();
        match self.witness.see(cluster, (at, frame), outcome, now) {
            Ok(()) => Ok(outcome),
            Err(wrong) => bail!("{outcome:?}, but {wrong}: {at:?}, {}", hex(frame)),
        }
    }

    /// A frame that passes whatever policy says, and is like no other.
    fn mark(&mut self, from: &str, to: &str) -> Result<Vec<u8>> {
        self.marks += 1;
        let frame = Frame::arp_of(1, [0; 4], self.marks.to_be_bytes());
        self.addressed(from, to, &frame)
    }

    fn addressed(&self, from: &str, to: &str, frame: &[u8]) -> Result<Vec<u8>> {
        let (sender, receiver) = (self.port(from)?, self.port(to)?);
        let mut frame = frame.to_vec();
        let is_group = is_group(&frame);
        let macs = [receiver.mac, sender.mac].concat();
        let skipped = if is_group { 6 } else { 0 };
        for (byte, own) in frame.iter_mut().zip(macs).skip(skipped) {
            *byte = own;
        }
        Ok(frame)
    }

    fn port(&self, pod: &str) -> Result<&Port> {
        self.ports
            .get(pod)
            .with_context(|| format!("{pod} is no pod of this switch"))
    }

    /// An error when the kernel's counts are not the host's: sent is passed and dropped, by reason,
    /// to the packet and the byte.
    fn same_books(&self) -> Result<()> {
        let mut differences = Vec::new();
        let mut compare = |what: String, host: Traffic, kernel: Traffic| {
            if host != kernel {
                differences.push(format!("{what}: host {host:?}, kernel {kernel:?}"));
            }
        };
        for (pod, port) in &self.ports {
            let passed = self.dataplane.passed(port.slot)?;
            let dropped = self.dataplane.dropped(port.slot)?;
            for (direction, kernel) in Direction::ALL.into_iter().zip(passed) {
                let host = self.host.passed_of(port.slot, direction);
                compare(format!("{pod} {direction} passed"), host, kernel);
                for reason in Reason::ALL.iter().copied() {
                    if reason.verdict() != Verdict::Deny {
                        continue;
                    }
                    let host = self.host.dropped_of(port.slot, direction, reason);
                    let kernel = dropped
                        .iter()
                        .find(|row| row.direction == direction && row.reason == reason)
                        .map(|row| row.traffic)
                        .unwrap_or_default();
                    compare(format!("{pod} {direction} {reason}"), host, kernel);
                }
            }
        }
        for (counter, kernel) in self.dataplane.counters()? {
            let host = self.host.counter(counter);
            if matches!(counter, Counter::NotMine | Counter::UnknownEndpoint) && host != kernel {
                differences.push(format!("{counter:?}: host {host}, kernel {kernel}"));
            }
        }
        ensure!(differences.is_empty(), "{}", differences.join("\n"));
        Ok(())
    }
}

/// A frame as programs find it: the kernel takes an outer VLAN tag off before them (IEEE 802.1Q), and
/// drops what ends inside it. What the host is asked about is this.
pub fn at_the_hook(frame: &[u8]) -> Option<Vec<u8>> {
    const TAGS: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];
    let Some(ethertype) = frame.get(12..14) else {
        return Some(frame.to_vec());
    };
    if !TAGS.iter().any(|tag| tag == ethertype) {
        return Some(frame.to_vec());
    }
    // The tag, and the ethertype behind it.
    let inner = frame.get(16..).filter(|inner| inner.len() >= 4)?;
    Some([frame.get(..12)?, inner].concat())
}

fn is_group(frame: &[u8]) -> bool {
    frame.first().is_some_and(|first| first & 1 != 0)
}

fn make_bridge() -> Result<()> {
    run(
        "ip",
        &format!("link add {BRIDGE} type bridge forward_delay 0 mcast_snooping 0"),
    )?;
    silence(BRIDGE)?;
    // The bridge is one of frames, not of what is in them.
    let settings = "/proc/sys/net/bridge";
    if fs::exists(settings).unwrap_or_default() {
        for family in ["arptables", "iptables", "ip6tables"] {
            sysctl(&format!("bridge/bridge-nf-call-{family}"), "0")?;
        }
    }
    run("ip", &format!("link set {BRIDGE} mtu {MTU} up")).map(drop)
}

/// The kernel says nothing of its own accord on an interface of the calling thread's namespace.
fn silence(interface: &str) -> Result<()> {
    sysctl(&format!("ipv6/conf/{interface}/disable_ipv6"), "1")
}

/// An error that shows the first frame that is not as expected.
fn same_frames(expected: &[Vec<u8>], arrived: &[Vec<u8>]) -> Result<()> {
    let differing = expected
        .iter()
        .zip(arrived)
        .position(|(expected, arrived)| expected != arrived);
    let place = match differing {
        Some(place) => place,
        None if expected.len() == arrived.len() => return Ok(()),
        None => expected.len().min(arrived.len()),
    };
    let frame_at = |frames: &[Vec<u8>]| {
        frames
            .get(place)
            .map_or("none".to_owned(), |frame| hex(frame))
    };
    bail!(
        "{} frames of {} arrived; number {place} should be {}, is {}",
        arrived.len(),
        expected.len(),
        frame_at(expected),
        frame_at(arrived)
    )
}

/// A frame's bytes for people.
pub fn hex(frame: &[u8]) -> String {
    use fmt::Write as _;
    frame.iter().fold(String::new(), |mut text, byte| {
        // A string takes everything.
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    })
}
