//! What a change of policies, labels or addresses does to flows that are open: what it forbids
//! ends at the next packet, whoever sends it; what it allows goes on; and what changes no verdict
//! touches nothing. TCP, UDP and ICMP echo, opened by the pod and to the pod.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use agent::dto::Status;
use anyhow::{Result, ensure};
use rustix::net::{RecvFlags, SendFlags};
use tests::lab::agent::ask;
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::pair::{Pair, echo};
use tests::lab::stage::{Stage, endpoint};
use tests::lab::wait_until;

const PORT: u16 = 8080;
/// How long a message may take before the flow counts as cut.
const HEARD_WITHIN: Duration = Duration::from_millis(600);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 2);

/// The server's namespace admits trusted namespaces' clients.
const INGRESS: &str = "{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {team: trusted}}, \
     podSelector: {matchLabels: {role: client}}}]}]}";
/// The clients' namespace lets its pods call servers only.
const EGRESS: &str = "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {team: servers}}, \
     podSelector: {matchLabels: {role: server}}}]}]}";

/// What the pods and namespaces are called at the moment.
#[derive(Clone, Debug)]
struct World {
    servers: &'static str,
    server: &'static str,
    clients: &'static str,
    client: &'static str,
    /// Objects beside.
    more: String,
}

impl World {
    fn usual() -> Self {
        Self {
            servers: "team: servers",
            server: "role: server",
            clients: "team: trusted",
            client: "role: client",
            more: String::new(),
        }
    }

    fn manifests(&self) -> String {
        [
            namespace("servers", self.servers),
            namespace("clients", self.clients),
            pod("servers/server", self.server, &[SERVER]),
            pod("clients/client", self.client, &[CLIENT]),
            self.more.clone(),
        ]
        .join("---\n")
    }
}

/// Flows from the client to the server, with both ends in hand.
#[derive(Debug)]
struct Flows {
    pair: Pair,
    echo: OwnedFd,
    number: u8,
}

/// Who speaks first after a change.
#[derive(Clone, Copy, Debug)]
enum Side {
    Client,
    Server,
}

const SIDES: [Side; 2] = [Side::Client, Side::Server];

impl Flows {
    fn open(stage: &Stage) -> Result<Self> {
        let server = &stage.lab.place("servers/server")?.namespace;
        let client = &stage.lab.place("clients/client")?.namespace;
        let listening = SocketAddr::from((SERVER, PORT));
        let mut flows = Self {
            pair: Pair::open(server, client, (listening, listening), HEARD_WITHIN)?,
            echo: echo(client, SERVER, HEARD_WITHIN)?,
            number: 0,
        };
        for side in SIDES {
            ensure!(flows.go_on(side)? == GO_ON, "new flows answer");
        }
        Ok(flows)
    }

    /// Whether TCP, UDP and, when the client speaks, ICMP echo get through.
    fn go_on(&mut self, side: Side) -> Result<[bool; 3]> {
        let [client, server] = &mut self.pair.tcp;
        let [udp_client, udp_server] = &self.pair.udp;
        let ((tcp, tcp_peer), (udp, udp_peer)) = match side {
            Side::Client => ((client, server), (udp_client, udp_server)),
            Side::Server => ((server, client), (udp_server, udp_client)),
        };
        self.number = self.number.wrapping_add(1);
        let (word, mut heard) = ([self.number], [0]);
        tcp.write_all(&word)?;
        udp.send(&word)?;
        let tcp = tcp_peer.read_exact(&mut heard).is_ok() && heard == word;
        let udp = udp_peer.recv(&mut heard).is_ok() && heard == word;
        let echo = match side {
            Side::Client => self.is_echoed()?,
            Side::Server => tcp,
        };
        Ok([tcp, udp, echo])
    }

    fn is_echoed(&self) -> Result<bool> {
        // Type 8; the kernel fills identifier and checksum in (ping(7) sockets).
        let request = [8, 0, 0, 0, 0, 0, 0, self.number];
        rustix::net::send(&self.echo, &request, SendFlags::empty())?;
        let mut answer = [0; 64];
        // An earlier answer that came late is not this one's.
        loop {
            match rustix::net::recv(&self.echo, &mut answer, RecvFlags::empty()) {
                Ok(_) if answer.get(7) == Some(&self.number) => return Ok(true),
                Ok(_) => {}
                Err(_) => return Ok(false),
            }
        }
    }
}

const GO_ON: [bool; 3] = [true; 3];
const CUT: [bool; 3] = [false; 3];

/// A stage under both policies, with flows open.
fn stage(world: &World) -> Result<(Stage, Flows)> {
    let mut stage = Stage::open(&world.manifests())?;
    stage.apply("ingress.yaml", &policy("servers", "ingress", INGRESS))?;
    stage.apply("egress.yaml", &policy("clients", "egress", EGRESS))?;
    let flows = Flows::open(&stage)?;
    Ok((stage, flows))
}

/// What a change does to open flows, whichever side speaks first after it.
fn after(change: impl Fn(&mut Stage, &mut World) -> Result<()>) -> Result<[[bool; 3]; 2]> {
    let mut outcomes = [GO_ON; 2];
    for (side, outcome) in SIDES.into_iter().zip(&mut outcomes) {
        let mut world = World::usual();
        let (mut stage, mut flows) = stage(&world)?;
        change(&mut stage, &mut world)?;
        *outcome = flows.go_on(side)?;
    }
    Ok(outcomes)
}

fn revisions() -> Result<Vec<Option<String>>> {
    let status: Status = ask("/v1/status")?;
    ["servers/server", "clients/client"]
        .iter()
        .map(|pod| Ok(endpoint(&status, pod)?.revision.clone()))
        .collect()
}

#[test]
fn a_policy_that_forbids_ends_flows_in_both_directions() -> Result<()> {
    let deny_in = |stage: &mut Stage, _: &mut World| {
        let spec = "{podSelector: {}, policyTypes: [Ingress]}";
        stage.apply("ingress.yaml", &policy("servers", "ingress", spec))
    };
    assert_eq!(after(deny_in)?, [CUT; 2]);
    let deny_out = |stage: &mut Stage, _: &mut World| {
        let spec = "{podSelector: {}, policyTypes: [Egress]}";
        stage.apply("egress.yaml", &policy("clients", "egress", spec))
    };
    assert_eq!(after(deny_out)?, [CUT; 2]);
    Ok(())
}

#[test]
fn a_peer_that_is_relabelled_loses_its_flows() -> Result<()> {
    let client = |stage: &mut Stage, world: &mut World| {
        world.client = "role: former";
        stage.apply("cluster.yaml", &world.manifests())
    };
    assert_eq!(after(client)?, [CUT; 2], "judged by the server's policy");
    let server = |stage: &mut Stage, world: &mut World| {
        world.server = "role: former";
        stage.apply("cluster.yaml", &world.manifests())
    };
    assert_eq!(after(server)?, [CUT; 2], "judged by the client's policy");
    Ok(())
}

#[test]
fn a_namespace_that_is_relabelled_loses_its_pods_flows() -> Result<()> {
    let clients = |stage: &mut Stage, world: &mut World| {
        world.clients = "team: former";
        stage.apply("cluster.yaml", &world.manifests())
    };
    assert_eq!(after(clients)?, [CUT; 2]);
    let servers = |stage: &mut Stage, world: &mut World| {
        world.servers = "team: former";
        stage.apply("cluster.yaml", &world.manifests())
    };
    assert_eq!(after(servers)?, [CUT; 2]);
    Ok(())
}

#[test]
fn a_peer_that_goes_and_whose_address_another_gets_leaves_it_no_flow() -> Result<()> {
    for side in SIDES {
        let world = World::usual();
        let (mut stage, mut flows) = stage(&world)?;
        // The same interface and address, so the very same sockets: another pod by its object.
        let manifests = world.manifests();
        let gone = manifests.replace(
            &pod("clients/client", world.client, &[CLIENT]),
            &pod("clients/heir", "role: heir", &[CLIENT]),
        );
        stage.apply("cluster.yaml", &gone)?;
        wait_until(
            "the heir to be the endpoint",
            Duration::from_secs(10),
            || endpoint(&ask::<Status>("/v1/status")?, "clients/heir").map(drop),
        )?;
        assert_eq!(flows.go_on(side)?, CUT, "{side:?}");
    }
    Ok(())
}

#[test]
fn changes_that_allow_open_flows_disturb_none() -> Result<()> {
    let mut world = World::usual();
    let (mut stage, mut flows) = stage(&world)?;
    let wider = INGRESS.replace(
        "ingress: [",
        "ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}, ",
    );
    stage.apply("ingress.yaml", &policy("servers", "ingress", &wider))?;
    for side in SIDES {
        assert_eq!(flows.go_on(side)?, GO_ON, "another rule");
    }
    world.client = "role: client, version: new";
    world.servers = "team: servers, stage: beta";
    stage.apply("cluster.yaml", &world.manifests())?;
    for side in SIDES {
        assert_eq!(flows.go_on(side)?, GO_ON, "labels that decide nothing");
    }
    stage.remove("egress.yaml")?;
    stage.remove("ingress.yaml")?;
    for side in SIDES {
        assert_eq!(flows.go_on(side)?, GO_ON, "nothing isolates any more");
    }
    Ok(())
}

#[test]
fn events_that_change_no_verdict_bump_no_revision() -> Result<()> {
    let mut world = World::usual();
    let (mut stage, _flows) = stage(&world)?;
    let before = revisions()?;
    assert!(before.iter().all(Option::is_some), "{before:?}");
    world.client = "role: client, version: new";
    world.server = "role: server, version: new";
    world.clients = "team: trusted, stage: beta";
    stage.apply("cluster.yaml", &world.manifests())?;
    assert_eq!(revisions()?, before, "labels that no rule asks for");
    // A pod elsewhere, which the server's rules admit.
    let elsewhere = pod(
        "clients/elsewhere",
        "role: client",
        &[Ipv4Addr::new(10, 8, 9, 9)],
    );
    world.more = elsewhere;
    stage.apply("cluster.yaml", &world.manifests())?;
    assert_eq!(revisions()?, before, "a peer that comes");
    world.more = String::new();
    stage.apply("cluster.yaml", &world.manifests())?;
    assert_eq!(revisions()?, before, "a peer that goes");
    // The same rules by another name in another order of words.
    let same = INGRESS.replace("policyTypes: [Ingress], ", "");
    stage.apply("ingress.yaml", &policy("servers", "ingress", &same))?;
    assert_eq!(revisions()?, before, "the same policy in other words");
    Ok(())
}
