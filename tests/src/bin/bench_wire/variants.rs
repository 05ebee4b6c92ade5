//! What stands between the two pods: nothing, Picket, or netfilter; each on a node of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use agent::dto::Status;
use anyhow::{Context as _, Result, anyhow, ensure};
use aya::programs::tc::TcAttachType;
use serde::Serialize;
use tests::bench::{cpus, keep_to};
use tests::cpu::{needed, process_time};
use tests::lab::Lab;
use tests::lab::agent::{Agent, ask};
use tests::lab::foreign::{Foreign, Place};
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::Stage;

use crate::floor::{has_tracked, tracking};
use crate::traffic::{Ends, Kind, Order};

/// Elements that one call of nft(8) is given: its arguments have an end.
const ELEMENTS: usize = 1_000;

/// What a node does with the packets between its pods.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Variant {
    /// Routes them.
    Nothing,
    /// The same: how far two figures of one thing are apart.
    NothingAgain,
    /// tc programs that do nothing, where Picket has its own.
    EmptyPrograms,
    /// Programs that do the least that tracking connections can cost, and allow everything.
    Floor,
    /// Both pods isolated in both directions, their peers among as many as there are.
    Picket,
    /// netfilter's connection tracking, by the one rule that everybody has.
    Conntrack,
    /// An nft set of as many addresses, asked about each packet's source.
    Set,
    /// The same asked twice, as where the client's egress and the server's ingress are isolated:
    /// about the destination, and about the source.
    SetForBoth,
    /// Connection tracking, and the set for what is not established.
    SetAndConntrack,
}

impl Variant {
    pub(crate) const ALL: [Self; 9] = [
        Self::Nothing,
        Self::NothingAgain,
        Self::EmptyPrograms,
        Self::Floor,
        Self::Picket,
        Self::Conntrack,
        Self::Set,
        Self::SetForBoth,
        Self::SetAndConntrack,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no program",
            Self::NothingAgain => "no program, again",
            Self::EmptyPrograms => "empty programs",
            Self::Floor => "floor programs",
            Self::Picket => "Picket",
            Self::Conntrack => "nf_conntrack",
            Self::Set => "nft set",
            Self::SetForBoth => "nft set, for both pods",
            Self::SetAndConntrack => "nf_conntrack and nft set",
        }
    }

    const fn tracks(self) -> bool {
        match self {
            Self::Nothing
            | Self::NothingAgain
            | Self::EmptyPrograms
            | Self::Floor
            | Self::Picket
            | Self::Set
            | Self::SetForBoth => false,
            Self::Conntrack | Self::SetAndConntrack => true,
        }
    }
}

/// What all variants have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Addresses that the pods may talk to, and their own.
    pub(crate) peers: u32,
    pub(crate) is_v6: bool,
    /// Where client and server run.
    pub(crate) cpu: usize,
    /// Room on each side of bulk; 0: as much as TCP finds good.
    pub(crate) buffer: usize,
    /// No figure means anything.
    pub(crate) is_smoke: bool,
}

impl Load {
    /// Of the server, the client, and those that are elsewhere.
    fn address(&self, number: u32) -> IpAddr {
        if self.is_v6 {
            let first = Ipv6Addr::new(0xfd05, 0, 0, 0, 0, 0, 0, 1);
            IpAddr::V6(Ipv6Addr::from(u128::from(first) + u128::from(number)))
        } else {
            let first = Ipv4Addr::new(10, 5, 0, 1);
            IpAddr::V4(Ipv4Addr::from(u32::from(first) + number))
        }
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        (0..self.peers.max(2)).map(|number| self.address(number))
    }
}

/// A node with its two pods and their traffic, in a thread of its own.
#[derive(Debug)]
pub(crate) struct Node {
    orders: Option<SyncSender<Order>>,
    samples: Receiver<Result<f64>>,
    thread: Option<JoinHandle<Result<Agents>>>,
}

/// What the agent did meanwhile; nothing where there is none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Agents {
    pub(crate) cpu_ns: f64,
    pub(crate) connections: u32,
}

impl Node {
    /// Lays the node out.
    pub(crate) fn start(variant: Variant, load: Load) -> Result<Self> {
        let (orders, received) = sync_channel::<Order>(1);
        let (answer, samples) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(variant.name().to_owned())
            .spawn(move || stand(variant, load, &received, &answer).context(variant.name()))?;
        let mut node = Self {
            orders: Some(orders),
            samples,
            thread: Some(thread),
        };
        match node.samples.recv() {
            Ok(ready) => ready.map(|_ready| node),
            Err(_gone) => Err(node.end().err().unwrap_or_else(|| anyhow!("it has gone"))),
        }
    }

    /// A sample of traffic, in ns for each.
    pub(crate) fn sample(&mut self, order: Order) -> Result<f64> {
        let asked = self.orders.as_ref().map(|orders| orders.send(order));
        match (asked, self.samples.recv()) {
            (Some(Ok(())), Ok(sample)) => sample,
            _ => Err(self.end().err().unwrap_or_else(|| anyhow!("it has gone"))),
        }
    }

    /// Takes the node away.
    pub(crate) fn end(&mut self) -> Result<Agents> {
        self.orders = None;
        let Some(thread) = self.thread.take() else {
            return Ok(Agents::default());
        };
        thread.join().map_err(|_panic| anyhow!("a node panicked"))?
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // What went wrong is known by now, or does not matter any more.
        drop(self.end());
    }
}

/// A node's life: laid out, ready (a first answer), a sample for each order.
fn stand(
    variant: Variant,
    load: Load,
    orders: &Receiver<Order>,
    samples: &SyncSender<Result<f64>>,
) -> Result<Agents> {
    // Agent and reader run beside the traffic where there is room.
    let beside: Vec<usize> = cpus()?.into_iter().filter(|cpu| *cpu != load.cpu).collect();
    if !beside.is_empty() {
        keep_to(&beside)?;
    }
    let pods = [("server", 0), ("client", 1)].map(|(name, number)| {
        pod(
            &format!("shop/{name}"),
            "role: peer, measured: yes-it-is",
            &[load.address(number)],
        )
    });
    let mut stage = Stage::without_agent(
        &[&[namespace("shop", "")], pods.as_slice()]
            .concat()
            .join("---\n"),
    )?;
    let (mut empty, mut floor) = (Vec::new(), Vec::new());
    let interfaces = ["shop/client", "shop/server"]
        .map(|pod| -> Result<String> { Ok(format!("pod{}", stage.lab.place(pod)?.veth)) });
    match variant {
        Variant::Nothing | Variant::NothingAgain => {}
        Variant::EmptyPrograms => {
            for interface in interfaces {
                let interface = interface?;
                for side in [TcAttachType::Ingress, TcAttachType::Egress] {
                    empty.push(Foreign::uncounted(&interface, side, Place::Tcx)?);
                }
            }
        }
        Variant::Floor => {
            for interface in interfaces {
                floor.push(tracking(&interface?, load.is_v6)?);
            }
        }
        Variant::Picket => stage.agent = Some(picket(&stage.lab, &load)?),
        Variant::Conntrack => netfilter(
            &stage.lab,
            &load,
            &["ct state established,related accept", "ct state new accept"],
        )?,
        Variant::Set => netfilter(&stage.lab, &load, &[&asked(&load, &["saddr"])])?,
        Variant::SetForBoth => {
            netfilter(&stage.lab, &load, &[&asked(&load, &["daddr", "saddr"])])?;
        }
        Variant::SetAndConntrack => {
            let established = "ct state established,related accept";
            let new = asked(&load, &["daddr", "saddr"]);
            netfilter(&stage.lab, &load, &[established, &new])?;
        }
    }
    let agent = stage.agent.as_ref().map(Agent::pid);
    let time_of = |pid| needed(process_time(pid), load.is_smoke);
    let agent_time = || agent.map(time_of).transpose();
    let before = agent_time()?;
    let mut connections = 0;
    let (client, server) = (
        stage.lab.place("shop/client")?,
        stage.lab.place("shop/server")?,
    );
    std::thread::scope(|scope| -> Result<()> {
        let server = (&server.namespace, load.address(0));
        let ends = Ends::start(scope, &load, &client.namespace, server)?;
        // Nothing is measured yet: what is used for the first time is made.
        for kind in Kind::ALL {
            ends.sample(Order { kind, amount: 10 })?;
            connections += if kind == Kind::Connection { 10 } else { 0 };
        }
        if samples.send(Ok(0.0)).is_err() {
            return Ok(());
        }
        for order in orders {
            let sample = ends.sample(order)?;
            if order.kind == Kind::Connection {
                connections += order.amount;
            }
            if samples.send(Ok(sample)).is_err() {
                break;
            }
        }
        Ok(())
    })?;
    let spent = agent_time()?
        .unwrap_or_default()
        .saturating_sub(before.unwrap_or_default());
    if variant == Variant::Picket {
        is_at_work(connections)?;
    }
    floor
        .iter()
        .try_for_each(|floor| has_tracked(floor, load.is_v6, connections))?;
    drop((empty, floor));
    is_as_it_should(variant)?;
    Ok(Agents {
        cpu_ns: spent.as_secs_f64() * 1e9,
        connections,
    })
}

/// The rule that asks the set about these addresses of a packet.
fn asked(load: &Load, addresses: &[&str]) -> String {
    let family = if load.is_v6 { "ip6" } else { "ip" };
    let asked = addresses.iter().map(|of| format!("{family} {of} @peers"));
    format!("{} accept", asked.collect::<Vec<_>>().join(" "))
}

/// Rules at the node's forward hook, which drops what none of them accepts.
fn netfilter(lab: &Lab, load: &Load, rules: &[&str]) -> Result<()> {
    lab.nft(
        "add table inet wire\n\
         add chain inet wire forward { type filter hook forward priority 0; policy drop; }\n",
    )?;
    let kind = if load.is_v6 { "ipv6_addr" } else { "ipv4_addr" };
    lab.nft(&format!("add set inet wire peers {{ type {kind}; }}"))?;
    let addresses: Vec<String> = load
        .addresses()
        .map(|address| address.to_string())
        .collect();
    for some in addresses.chunks(ELEMENTS) {
        lab.nft(&format!(
            "add element inet wire peers {{ {} }}",
            some.join(", ")
        ))?;
    }
    rules
        .iter()
        .try_for_each(|rule| lab.nft(&format!("add rule inet wire forward {rule}")))
}

/// The agent, with both pods isolated in both directions.
fn picket(lab: &Lab, load: &Load) -> Result<Agent> {
    let mut elsewhere = Vec::new();
    for (number, address) in load.addresses().enumerate().skip(2) {
        elsewhere.push(pod(&format!("shop/p{number}"), "role: peer", &[address]));
    }
    if !elsewhere.is_empty() {
        lab.write_manifest("elsewhere.yaml", &elsewhere.join("---\n"))?;
    }
    let peers = "[{podSelector: {matchLabels: {role: peer}}}]";
    let spec = format!(
        "{{podSelector: {{matchLabels: {{measured: yes-it-is}}}}, policyTypes: [Ingress, Egress], \
         ingress: [{{from: {peers}}}], egress: [{{to: {peers}}}]}}"
    );
    lab.write_manifest("policy.yaml", &policy("shop", "peers", &spec))?;
    Agent::start(&lab.manifests())
}

/// Fails unless Picket has judged what was sent.
fn is_at_work(connections: u32) -> Result<()> {
    let status: Status = ask("/v1/status")?;
    for name in ["server", "client"] {
        let endpoint = tests::lab::stage::endpoint(&status, &format!("shop/{name}"))?;
        for direction in &endpoint.directions {
            ensure!(
                direction.isolated && direction.passed.packets > u64::from(connections),
                "{name}: {:?} of {connections} connections: Picket has not judged them",
                direction.passed
            );
        }
    }
    Ok(())
}

/// Fails when the kernel tracks connections where it should not, or does not where it should.
fn is_as_it_should(variant: Variant) -> Result<()> {
    let path = "/proc/sys/net/netfilter/nf_conntrack_count";
    // A kernel without connection tracking has no such file, and tracks none.
    let count = std::fs::read_to_string(path).unwrap_or_default();
    let is_tracking = !matches!(count.trim(), "" | "0");
    ensure!(
        is_tracking == variant.tracks(),
        "nf_conntrack counts {:?} connections",
        count.trim()
    );
    Ok(())
}
