//! Connections that are open while something changes: what policy still allows never notices,
//! what it forbids ends with the next packet, and the agent's own life is nobody's business.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use agent::dto::{DirectionWord, Status};
use agent_policy::model::Protocol;
use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use tests::lab::agent::{Agent, ask, run_picket};
use tests::lab::namespace::sysctl;
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::{Stage, endpoint};
use tests::lab::wait_until;
use tests::probe::{Server, Servers};

const PORT: u16 = 8080;
const SERVER: &str = "10.3.0.1";
/// How long an echo may take before the connection counts as cut.
const ECHO_WITHIN: Duration = Duration::from_millis(800);
const ALLOW_CLIENT: &str = "{podSelector: {matchLabels: {role: server}}, ingress: [{from: [{podSelector: {matchLabels: {role: client}}}]}]}";
const ALLOW_ALL: &str = "{podSelector: {}, ingress: [{}], egress: [{}]}";

fn cluster(role_of_other: &str) -> String {
    [
        namespace("shop", ""),
        pod("shop/server", "role: server", &[SERVER]),
        pod("shop/client", "role: client", &["10.3.0.2"]),
        pod(
            "shop/other",
            &format!("role: {role_of_other}"),
            &["10.3.0.3"],
        ),
    ]
    .join("---\n")
}

fn serve(stage: &Stage) -> Result<Servers> {
    let place = stage.lab.place("shop/server")?;
    let address: IpAddr = SERVER.parse()?;
    Servers::start(&[Protocol::TCP, Protocol::UDP].map(|protocol| Server {
        namespace: &place.namespace,
        address,
        protocol,
        port: PORT,
    }))
}

/// An open TCP connection and a UDP flow from one pod to the server.
#[derive(Debug)]
struct Flows {
    tcp: TcpStream,
    udp: UdpSocket,
    said: u8,
}

impl Flows {
    fn open(stage: &Stage, pod: &str) -> Result<Self> {
        let place = stage.lab.place(pod)?;
        let own = *place.addresses.first().context("an address")?;
        let server = SocketAddr::new(SERVER.parse()?, PORT);
        let mut flows = place.namespace.enter(|| {
            let tcp = TcpStream::connect_timeout(&server, Duration::from_secs(3))
                .with_context(|| format!("connecting {pod}"))?;
            let udp = UdpSocket::bind((own, 0))?;
            udp.connect(server)?;
            Ok(Self { tcp, udp, said: 0 })
        })?;
        flows.tcp.set_read_timeout(Some(ECHO_WITHIN))?;
        flows.tcp.set_nodelay(true)?;
        flows.udp.set_read_timeout(Some(ECHO_WITHIN))?;
        ensure!(
            flows.alive()? == (true, true),
            "{pod}: no echo over the new flows"
        );
        Ok(flows)
    }

    /// Whether the server still echoes over TCP, over UDP.
    fn alive(&mut self) -> Result<(bool, bool)> {
        self.said = self.said.wrapping_add(1);
        let said = [self.said];
        self.udp.send(&said)?;
        self.tcp.write_all(&said)?;
        let mut heard = [0];
        let tcp = self.tcp.read_exact(&mut heard).is_ok() && heard == said;
        let udp = self.udp.recv(&mut heard).is_ok() && heard == said;
        Ok((tcp, udp))
    }
}

const ALIVE: (bool, bool) = (true, true);
const CUT: (bool, bool) = (false, false);

#[test]
fn policy_change_cuts_what_it_forbids_and_leaves_the_rest_alone() -> Result<()> {
    let mut stage = Stage::open(&cluster("other"))?;
    let _servers = serve(&stage)?;
    let mut client = Flows::open(&stage, "shop/client")?;
    let mut other = Flows::open(&stage, "shop/other")?;

    stage.apply("policy.yaml", &policy("shop", "p", ALLOW_CLIENT))?;

    assert_eq!(client.alive()?, ALIVE);
    assert_eq!(other.alive()?, CUT);
    Ok(())
}

#[test]
fn egress_policy_cuts_flows_at_their_source() -> Result<()> {
    let mut stage = Stage::open(&cluster("other"))?;
    let _servers = serve(&stage)?;
    let mut client = Flows::open(&stage, "shop/client")?;
    let mut other = Flows::open(&stage, "shop/other")?;

    let spec = "{podSelector: {matchLabels: {role: other}}, policyTypes: [Egress]}";
    stage.apply("policy.yaml", &policy("shop", "p", spec))?;

    assert_eq!(client.alive()?, ALIVE);
    assert_eq!(other.alive()?, CUT);
    Ok(())
}

#[test]
fn relabelled_peer_loses_its_flows_and_the_others_keep_theirs() -> Result<()> {
    let mut stage = Stage::open(&cluster("client"))?;
    let _servers = serve(&stage)?;
    stage.apply("policy.yaml", &policy("shop", "p", ALLOW_CLIENT))?;
    let mut client = Flows::open(&stage, "shop/client")?;
    let mut other = Flows::open(&stage, "shop/other")?;

    stage.apply("cluster.yaml", &cluster("former-client"))?;

    assert_eq!(client.alive()?, ALIVE);
    assert_eq!(other.alive()?, CUT);
    Ok(())
}

#[test]
fn many_changes_that_allow_a_flow_never_cut_it() -> Result<()> {
    let mut stage = Stage::open(&cluster("other"))?;
    let _servers = serve(&stage)?;
    let mut client = Flows::open(&stage, "shop/client")?;
    for round in 0..10 {
        let spec = if round % 2 == 0 {
            ALLOW_CLIENT
        } else {
            ALLOW_ALL
        };
        stage.apply("policy.yaml", &policy("shop", "p", spec))?;
        assert_eq!(client.alive()?, ALIVE, "round {round}");
    }
    Ok(())
}

#[test]
fn replies_pass_although_the_client_admits_nobody() -> Result<()> {
    let mut stage = Stage::open(&cluster("other"))?;
    let _servers = serve(&stage)?;
    let spec = "{podSelector: {matchLabels: {role: client}}, policyTypes: [Ingress]}";
    stage.apply("policy.yaml", &policy("shop", "p", spec))?;
    let mut client = Flows::open(&stage, "shop/client")?;
    assert_eq!(client.alive()?, ALIVE);
    Ok(())
}

#[test]
fn killed_agent_leaves_enforcement_as_it_is() -> Result<()> {
    let mut stage = Stage::open(&cluster("other"))?;
    let _servers = serve(&stage)?;
    stage.apply("policy.yaml", &policy("shop", "p", ALLOW_CLIENT))?;
    let mut client = Flows::open(&stage, "shop/client")?;

    stage.agent.take().context("the agent")?.kill()?;

    assert_eq!(client.alive()?, ALIVE, "an open flow");
    Flows::open(&stage, "shop/client").context("a new flow")?;
    assert!(
        Flows::open(&stage, "shop/other").is_err(),
        "a forbidden one"
    );
    Ok(())
}

#[test]
fn restarted_agent_keeps_flows_and_takes_in_what_changed_meanwhile() -> Result<()> {
    let mut stage = Stage::open(&cluster("other"))?;
    let _servers = serve(&stage)?;
    let mut client = Flows::open(&stage, "shop/client")?;
    let mut other = Flows::open(&stage, "shop/other")?;

    stage.agent.take().context("the agent")?.stop()?;
    assert_eq!((client.alive()?, other.alive()?), (ALIVE, ALIVE), "stopped");
    stage.agent = Some(Agent::start(&stage.lab.manifests())?);
    assert_eq!(
        (client.alive()?, other.alive()?),
        (ALIVE, ALIVE),
        "started again"
    );

    stage.agent.take().context("the agent")?.kill()?;
    stage
        .lab
        .write_manifest("policy.yaml", &policy("shop", "p", ALLOW_CLIENT))?;
    assert_eq!((client.alive()?, other.alive()?), (ALIVE, ALIVE), "killed");
    stage.agent = Some(Agent::start(&stage.lab.manifests())?);
    stage.settle()?;
    assert_eq!(
        (client.alive()?, other.alive()?),
        (ALIVE, CUT),
        "with the policy of meanwhile"
    );
    Ok(())
}

#[test]
fn uninstall_removes_everything_and_resets_nothing() -> Result<()> {
    let mut stage = Stage::without_agent(&cluster("other"))?;
    let bpffs = || -> Result<BTreeSet<OsString>> {
        std::fs::read_dir("/sys/fs/bpf")?
            .map(|entry| Ok(entry?.file_name()))
            .collect()
    };
    let before = bpffs()?;
    stage.agent = Some(Agent::start(&stage.lab.manifests())?);
    let _servers = serve(&stage)?;
    stage.apply("policy.yaml", &policy("shop", "p", ALLOW_CLIENT))?;
    let mut client = Flows::open(&stage, "shop/client")?;
    let veth = format!("pod{}", stage.lab.place("shop/server")?.veth);
    let programs = |hook| -> Result<usize> {
        let (_, programs) = SchedClassifier::query_tcx(veth.as_str(), hook)?;
        Ok(programs.len())
    };
    assert_eq!(
        (
            programs(TcAttachType::Ingress)?,
            programs(TcAttachType::Egress)?
        ),
        (1, 1)
    );
    stage.agent.take().context("the agent")?.stop()?;

    let output = run_picket(&["uninstall", "--yes"])?;

    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(bpffs()?, before, "pins");
    assert_eq!(
        (
            programs(TcAttachType::Ingress)?,
            programs(TcAttachType::Egress)?
        ),
        (0, 0)
    );
    assert_eq!(client.alive()?, ALIVE, "an open flow");
    Flows::open(&stage, "shop/other").context("nothing is enforced any more")?;
    Ok(())
}

#[test]
fn every_packet_is_counted_once_as_passed_or_dropped() -> Result<()> {
    const ALLOWED: u64 = 500;
    const DENIED: u64 = 300;
    let mut stage = Stage::open(&cluster("other"))?;
    stage.apply("policy.yaml", &policy("shop", "p", ALLOW_CLIENT))?;
    // A sink, and no neighbour discovery or multicast beside what is sent here.
    let server = stage.lab.place("shop/server")?;
    let _sink = server
        .namespace
        .enter(|| Ok(UdpSocket::bind((SERVER, PORT))?))?;
    for pod in ["shop/server", "shop/client", "shop/other"] {
        let place = stage.lab.place(pod)?;
        place
            .namespace
            .enter(|| sysctl("ipv6/conf/eth0/disable_ipv6", "1"))?;
        let veth = format!("pod{}", place.veth);
        stage
            .lab
            .node()
            .enter(|| sysctl(&format!("ipv6/conf/{veth}/disable_ipv6"), "1"))?;
    }
    let send = |pod: &str, count: u64| {
        let place = stage.lab.place(pod)?;
        let own = *place.addresses.first().context("an address")?;
        let socket = place.namespace.enter(|| Ok(UdpSocket::bind((own, 0))?))?;
        for _ in 0..count {
            socket.send_to(b"count me", (SERVER, PORT))?;
        }
        Ok::<(), anyhow::Error>(())
    };
    // The first packets resolve the neighbours.
    send("shop/client", 1)?;
    send("shop/other", 1)?;
    wait_until(
        "the first packets to be counted",
        Duration::from_secs(5),
        || {
            let (passed, dropped) = counted("shop/server", DirectionWord::Ingress)?;
            ensure!(
                passed >= 1 && dropped >= 1,
                "{passed} passed, {dropped} dropped"
            );
            Ok(())
        },
    )?;
    let before = counted("shop/server", DirectionWord::Ingress)?;
    let sent_before = counted("shop/client", DirectionWord::Egress)?;

    send("shop/client", ALLOWED)?;
    send("shop/other", DENIED)?;

    let expected = (before.0 + ALLOWED, before.1 + DENIED);
    wait_until(
        "the counters to hold every packet",
        Duration::from_secs(5),
        || {
            let now = counted("shop/server", DirectionWord::Ingress)?;
            ensure!(now == expected, "{now:?}, not {expected:?}");
            Ok(())
        },
    )?;
    let sent = counted("shop/client", DirectionWord::Egress)?;
    assert_eq!(
        sent,
        (sent_before.0 + ALLOWED, sent_before.1),
        "at the client"
    );
    Ok(())
}

/// Packets passed and dropped in one direction of a pod.
fn counted(pod: &str, direction: DirectionWord) -> Result<(u64, u64)> {
    let status: Status = ask("/v1/status")?;
    let endpoint = endpoint(&status, pod)?;
    let counts = endpoint
        .directions
        .iter()
        .find(|counts| counts.direction == direction)
        .with_context(|| format!("{pod} has no {direction:?}"))?;
    Ok((
        counts.passed.packets,
        counts.dropped.values().map(|dropped| dropped.packets).sum(),
    ))
}
