//! Other people's programs, filters and qdiscs on a pod's interface stay and still run: whatever
//! comes and goes beside them, through the agent's restart, and after it is uninstalled.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use agent::dataplane::Method;
use anyhow::{Context as _, Result, ensure};
use aya::programs::tc::TcAttachType;
use tests::lab::agent::{Agent, get, request, run_picket};
use tests::lab::foreign::{Foreign, Place, Shaped, Shaping};
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::Stage;
use tests::lab::wait_until;

const PORT: u16 = 8080;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 13, 0, 1);
/// Datagrams each way in one look: more than a shaper lets through at once.
const WORDS: u64 = 30;
const WORD: [u8; 1000] = [7; 1000];
/// Much longer than shaping holds them back.
const HEARD_WITHIN: Duration = Duration::from_secs(10);
/// What an agent that starts may take to say how it is.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long silence is taken for silence.
const SILENT_FOR: Duration = Duration::from_millis(400);
/// Pods that come and go.
const ROUNDS: u8 = 4;
const ADMITS_CLIENTS: &str = "{podSelector: {matchLabels: {role: server}}, policyTypes: [Ingress, Egress], \
     ingress: [{from: [{podSelector: {matchLabels: {role: client}}}]}]}";
const SIDES: [TcAttachType; 2] = [TcAttachType::Ingress, TcAttachType::Egress];

/// A server with others' things on its interface.
struct World {
    stage: Stage,
    server: UdpSocket,
    shaped: Shaped,
    programs: Vec<Foreign>,
    /// A pod that came while the agent ran, and what shapes it.
    guest: Option<(UdpSocket, Shaped)>,
}

impl World {
    fn new(method: Method) -> Result<Self> {
        let cluster = [
            namespace("shop", ""),
            pod("shop/server", "role: server", &[SERVER]),
            pod("shop/client", "role: client", &["10.13.0.2"]),
            pod("shop/stranger", "role: stranger", &["10.13.0.3"]),
        ];
        let stage = Stage::without_agent(&cluster.join("---\n"))?;
        let place = stage.lab.place("shop/server")?;
        let veth = format!("pod{}", place.veth);
        let listening = SocketAddr::from((SERVER, PORT));
        let server = place.namespace.enter(|| Ok(UdpSocket::bind(listening)?))?;
        server.set_read_timeout(Some(HEARD_WITHIN))?;
        let shaped = Shaped::new(&veth, holder(method))?;
        let mut world = Self {
            stage,
            server,
            shaped,
            programs: Vec::new(),
            guest: None,
        };
        // In front of ours, which are not there yet.
        world.attach(match method {
            Method::Tcx => Place::Tcx,
            Method::Clsact => Place::Filter(1),
        })?;
        Ok(world)
    }

    fn attach(&mut self, place: Place) -> Result<()> {
        let veth = format!("pod{}", self.stage.lab.place("shop/server")?.veth);
        for side in SIDES {
            self.programs.push(Foreign::attach(&veth, side, place)?);
        }
        Ok(())
    }

    /// Talks with the server; an error unless every part of what others put there has seen it all.
    fn look(&self, when: &str) -> Result<()> {
        let programs =
            || -> Result<Vec<u64>> { self.programs.iter().map(Foreign::packets).collect() };
        let (shaped, seen) = (self.shaped.done()?, programs()?);
        let client = &self.stage.lab.place("shop/client")?.namespace;
        let client = client.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        client.set_read_timeout(Some(HEARD_WITHIN))?;
        talk(&client, &self.server).with_context(|| format!("{when}: the client"))?;
        has_shaped(shaped, self.shaped.done()?, [1, 1]).with_context(|| when.to_owned())?;
        for (program, (before, after)) in self.programs.iter().zip(seen.iter().zip(programs()?)) {
            ensure!(
                after >= before + WORDS,
                "{when}: {program:?} saw {before} packets, then {after}"
            );
        }
        if let Some((socket, shaped)) = &self.guest {
            let before = shaped.done()?;
            talk(socket, &self.server).with_context(|| format!("{when}: the guest"))?;
            has_shaped(before, shaped.done()?, [0, 1]).with_context(|| when.to_owned())?;
        }
        Ok(())
    }

    /// Whether the server hears the stranger.
    fn hears_the_stranger(&self) -> Result<bool> {
        let stranger = &self.stage.lab.place("shop/stranger")?.namespace;
        let stranger = stranger.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        self.server.set_read_timeout(Some(SILENT_FOR))?;
        stranger.send_to(b"?", (SERVER, PORT))?;
        let heard = self.server.recv(&mut [0]).is_ok();
        self.server.set_read_timeout(Some(HEARD_WITHIN))?;
        Ok(heard)
    }

    /// Pods come with others' things on their interfaces, talk and go.
    fn come_and_go(&mut self, method: Method) -> Result<()> {
        for round in 0..ROUNDS {
            let name = format!("shop/churn-{round}");
            let address = Ipv4Addr::new(10, 13, 1, round);
            self.stage.lab.add_pod(&name, &[address.into()])?;
            let place = self.stage.lab.place(&name)?;
            let shaped = Shaped::new(&format!("pod{}", place.veth), holder(method))?;
            let socket = place
                .namespace
                .enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
            socket.set_read_timeout(Some(HEARD_WITHIN))?;
            let manifest = pod(&name, "role: client", &[address]);
            self.stage.apply("churn.yaml", &manifest)?;
            self.stage.programmed(&name)?;
            let before = shaped.done()?;
            talk(&socket, &self.server).with_context(|| name.clone())?;
            // What comes back was held back at the server already.
            has_shaped(before, shaped.done()?, [0, 1]).with_context(|| name.clone())?;
            self.stage.lab.remove_pod(&name)?;
            self.stage.remove("churn.yaml")?;
        }
        Ok(())
    }

    /// A pod comes; others come to its interface after the agent, and use what it has put there.
    fn take_in(&mut self, method: Method) -> Result<()> {
        let (name, address) = ("shop/guest", Ipv4Addr::new(10, 13, 1, 99));
        self.stage.lab.add_pod(name, &[address.into()])?;
        let manifest = pod(name, "role: client", &[address]);
        self.stage.apply("guest.yaml", &manifest)?;
        self.stage.programmed(name)?;
        let place = self.stage.lab.place(name)?;
        let shaped = Shaped::new(&format!("pod{}", place.veth), holder(method))?;
        let socket = place
            .namespace
            .enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        socket.set_read_timeout(Some(HEARD_WITHIN))?;
        self.guest = Some((socket, shaped));
        Ok(())
    }
}

/// The qdisc that others' filters are in: where ours must be in it, it cannot be `ingress`.
fn holder(method: Method) -> &'static str {
    match method {
        Method::Tcx => "ingress",
        Method::Clsact => "clsact",
    }
}

/// Waits for a datagram, also through a stop of the whole machine.
fn hear(socket: &UdpSocket) -> std::io::Result<SocketAddr> {
    let mut word = [0; WORD.len()];
    loop {
        match socket.recv_from(&mut word) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            heard => return heard.map(|(_, from)| from),
        }
    }
}

/// Says many words at once and hears as many.
fn talk(client: &UdpSocket, server: &UdpSocket) -> Result<()> {
    for _ in 0..WORDS {
        client.send_to(&WORD, (SERVER, PORT))?;
    }
    let mut peer = None;
    for word in 0..WORDS {
        peer = Some(hear(server).with_context(|| format!("word {word} is not heard"))?);
    }
    let peer = peer.context("somebody who spoke")?;
    for _ in 0..WORDS {
        server.send_to(&WORD, peer)?;
    }
    for word in 0..WORDS {
        hear(client).with_context(|| format!("answer {word} is not heard"))?;
    }
    Ok(())
}

/// Whether everything has passed the shapers, and been held back at least so often.
fn has_shaped(before: Shaping, after: Shaping, held: [u64; 2]) -> Result<()> {
    let more = |before: [u64; 2], after: [u64; 2], by: [u64; 2]| {
        let least = before.iter().zip(by).map(|(before, by)| before + by);
        least.zip(after).all(|(least, after)| after >= least)
    };
    ensure!(
        more(before.packets, after.packets, [WORDS; 2])
            && more(before.held, after.held, held)
            && after.redirected >= before.redirected + WORDS,
        "{before:?}, then {after:?}"
    );
    Ok(())
}

fn stay_and_run(method: Method) -> Result<()> {
    let mut world = World::new(method)?;
    world.look("before the agent")?;
    ensure!(world.hears_the_stranger()?, "nothing isolates yet");

    let options = ["--attach", method.as_label()];
    let manifests = world.stage.lab.manifests();
    world.stage.agent = Some(Agent::start_with(&manifests, &options)?);
    let policy = policy("shop", "server", ADMITS_CLIENTS);
    world.stage.apply("policy.yaml", &policy)?;
    // Behind ours.
    world.attach(match method {
        Method::Tcx => Place::Tcx,
        Method::Clsact => Place::Filter(7),
    })?;
    world.look("with the agent")?;
    ensure!(!world.hears_the_stranger()?, "the policy is in force");

    world.come_and_go(method)?;
    world.take_in(method)?;
    world.look("after pods came and went")?;

    world.stage.agent.take().context("the agent")?.kill()?;
    world.look("while no agent runs")?;
    world.stage.agent = Some(Agent::start_with(&manifests, &options)?);
    world.stage.settle()?;
    world.look("after the restart")?;
    ensure!(!world.hears_the_stranger()?, "the policy is still in force");

    world.stage.agent.take().context("the agent")?.stop()?;
    let output = run_picket(&["uninstall", "--yes"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    world.look("uninstalled")?;
    ensure!(world.hears_the_stranger()?, "nothing of ours is left");
    Ok(())
}

#[test]
fn programs_and_shaping_of_others_stay_and_run_beside_tcx() -> Result<()> {
    stay_and_run(Method::Tcx)
}

#[test]
fn filters_and_shaping_of_others_stay_and_run_beside_clsact() -> Result<()> {
    stay_and_run(Method::Clsact)
}

#[test]
fn an_agent_is_not_ready_while_an_interface_cannot_be_had() -> Result<()> {
    let cluster = [namespace("shop", ""), pod("shop/server", "", &[SERVER])];
    let mut stage = Stage::without_agent(&cluster.join("---\n"))?;
    let veth = format!("pod{}", stage.lab.place("shop/server")?.veth);
    // Where clsact would be.
    tc(&format!("qdisc add dev {veth} ingress"))?;
    let options = ["--attach", "clsact"].map(Into::into);
    stage.agent = Some(Agent::spawn(&stage.lab.manifests(), &options)?);
    wait_until("the agent to say so", READY_WITHIN, || {
        let (status, body) = request("/readyz")?;
        let said = String::from_utf8_lossy(&body);
        ensure!(status == 503, "{status}: {said}");
        ensure!(said.contains("shop/server is not enforced"), "{said}");
        Ok(())
    })?;
    tc(&format!("qdisc del dev {veth} ingress"))?;
    wait_until("the agent to be ready", READY_WITHIN, || get("/readyz")).map(drop)
}

fn tc(arguments: &str) -> Result<()> {
    let output = Command::new("tc").args(arguments.split(' ')).output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tc {arguments}: {complaint}");
    Ok(())
}
