//! The core of the lab with the real agent: who reaches whom is as `picket matrix` says, a change
//! cuts what it forbids and nothing else, and the agent's end changes nothing.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use ::agent::config::DEFAULT_PINS;
use ::agent::dataplane::{Method, uninstall};
use agent_policy::matrix::{Port, Question};
use agent_policy::model::Protocol;
use anyhow::{Context as _, Result, bail, ensure};
use tests::lab::agent::{self, Agent};
use tests::lab::measure::{self, Row, Word};
use tests::lab::objects::policy;
use tests::lab::stage::Stage;
use tests::lab::{Lab, manifests};
use tests::probe::{self, Outcome, Patience, Probe};

use crate::{discovery, memory, report, sctp};

/// A server, its friend and a stranger.
pub(crate) const CLUSTER: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Namespace
metadata: {name: attic}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: server, labels: {app: server}}
spec: {containers: [{name: c, image: i}]}
status: {podIPs: [{ip: 10.8.0.1}, {ip: 'fd08::1'}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: friend, labels: {app: friend}}
spec: {containers: [{name: c, image: i}]}
status: {podIPs: [{ip: 10.8.0.2}, {ip: 'fd08::2'}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: attic, name: stranger}
spec: {containers: [{name: c, image: i}]}
status: {podIPs: [{ip: 10.8.0.3}, {ip: 'fd08::3'}]}
";
pub(crate) const SERVER: &str = "shop/server";
pub(crate) const FRIEND: &str = "shop/friend";
pub(crate) const STRANGER: &str = "attic/stranger";

/// The server admits its friend on these ports and may itself call nobody: its answers pass as
/// answers, or not at all.
const GUARDED: &str = "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress, Egress],
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}],
             ports: [{protocol: TCP, port: 80}, {protocol: UDP, port: 53}]}]}";
/// As `GUARDED`, with one port more.
const WIDENED: &str = "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress, Egress],
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}],
             ports: [{protocol: TCP, port: 80}, {protocol: UDP, port: 53},
                     {protocol: TCP, port: 81}]}]}";
/// The friend may call the server and nobody else.
const BOUND: &str = "{podSelector: {matchLabels: {app: friend}}, policyTypes: [Egress],
  egress: [{to: [{podSelector: {matchLabels: {app: server}}}]}]}";
/// Nobody in, nobody out.
const DEFAULT_DENY: &str = "{podSelector: {}, policyTypes: [Ingress, Egress]}";

/// What is probed between every two pods.
const PORTS: [(Protocol, u16); 3] = [
    (Protocol::TCP, 80),
    (Protocol::TCP, 81),
    (Protocol::UDP, 53),
];
/// How long what must come may take: an emulated machine on a busy one is slow.
pub(crate) const COMES_WITHIN: Duration = Duration::from_secs(10);
/// How long nothing has to come for what must not come.
pub(crate) const SILENT_FOR: Duration = Duration::from_millis(1500);

/// All of it, with programs held as the kernel does it best, then by clsact if that is another way.
pub(crate) fn check(best: Method) -> Result<()> {
    let mut stage = Stage::without_agent(CLUSTER)?;
    let _servers = measure::serve(&stage.lab, &rows(&stage.lab)?)?;
    compare(&stage.lab)?;
    report::ok("without an agent everybody reaches everybody, both families");
    discovery::prepare(&mut stage)?;
    ensure!(
        discovery::leaves_the_node(&stage)?,
        "without an agent the node does not route neighbour discovery"
    );

    enforce(&mut stage, best)?;
    // Under the last of those policies.
    let mut flows = Flows::open(&stage.lab, FRIEND, SERVER)?;
    stage.agent.take().context("an agent")?.kill()?;
    flows.expect(true, "the agent was killed")?;
    compare(&stage.lab)?;
    report::ok("a killed agent leaves verdicts and flows as they are");
    stage.agent = Some(start(&stage.lab, best)?);
    flows.expect(true, "the next agent took over")?;
    compare(&stage.lab)?;
    report::ok("the next agent takes over without a gap");
    // Once only: what is left of a cut association holds the server's port.
    stage.remove("server.yaml")?;
    sctp::check(&mut stage, report::ok)?;
    ensure!(
        !discovery::leaves_the_node(&stage)?,
        "the node routes a pod's neighbour discovery"
    );
    report::ok("a pod's neighbour discovery stays on its link");
    stage.apply("server.yaml", &policy("shop", "server", GUARDED))?;

    if best != Method::Clsact {
        clear(&mut stage)?;
        enforce(&mut stage, Method::Clsact)?;
    }
    clear(&mut stage)?;
    compare(&stage.lab)?;
    report::ok("uninstalled, everybody reaches everybody again");
    Ok(())
}

/// What the agent is there for, with programs held by `method`. Leaves `GUARDED` in force.
fn enforce(stage: &mut Stage, method: Method) -> Result<()> {
    let label = method.as_label();
    let ok = |case: &str| report::ok(&format!("{label}: {case}"));
    stage.agent = Some(start(&stage.lab, method)?);
    report::note("attached", label);
    compare(&stage.lab)?;
    ok("without a policy the agent changes nothing");

    stage.apply("bound.yaml", &policy("shop", "bound", BOUND))?;
    stage.apply("server.yaml", &policy("shop", "server", GUARDED))?;
    compare(&stage.lab)?;
    ok("TCP and UDP are allowed and denied as judged, replies pass, both families");

    let mut flows = Flows::open(&stage.lab, FRIEND, SERVER)?;
    stage.apply("server.yaml", &policy("shop", "server", WIDENED))?;
    flows.expect(true, "a policy that allows them still")?;
    ok("a change leaves flows alone that it allows");
    stage.apply("server.yaml", &policy("shop", "server", DEFAULT_DENY))?;
    flows.expect(false, "default deny")?;
    ok("a change cuts established flows");
    compare(&stage.lab)?;
    ok("default deny closes both directions");

    stage.remove("bound.yaml")?;
    stage.remove("server.yaml")?;
    stage.apply("server.yaml", &policy("shop", "server", GUARDED))
}

/// Takes away the agent and what it left in the kernel, then the policy: whatever stays in force
/// shows.
fn clear(stage: &mut Stage) -> Result<()> {
    stage.agent.take().context("an agent")?.stop()?;
    uninstall(DEFAULT_PINS.as_ref()).context("uninstalling")?;
    stage.lab.remove_manifest("server.yaml")
}

fn start(lab: &Lab, method: Method) -> Result<Agent> {
    memory::limit()?;
    let options = ["--attach".into(), method.as_label().into()];
    let mut agent = Agent::spawn(&lab.manifests(), &options)?;
    agent.wait_ready()?;
    memory::is_unlimited(&agent)?;
    let log = agent::log();
    ensure!(
        log.contains(&format!("{method:?}")),
        "the agent does not say that it attaches by {method:?}:\n{log}"
    );
    Ok(agent)
}

/// What `picket matrix` says of the lab's manifests.
fn rows(lab: &Lab) -> Result<Vec<Row>> {
    let manifests = manifests::read(&lab.manifests())?;
    let question = Question {
        ports: PORTS
            .map(|(protocol, number)| Port { protocol, number })
            .to_vec(),
        endpoints: Vec::new(),
    };
    let mut rows = measure::judged(&manifests.cluster, &question)?.rows;
    // The stage's own pod tells when a change is in force; nobody serves there.
    rows.retain(|row| !row.from.starts_with("sentinel/") && !row.to.starts_with("sentinel/"));
    Ok(rows)
}

/// Probes every row in both families; an error names whatever is not as judged.
fn compare(lab: &Lab) -> Result<()> {
    let rows = rows(lab)?;
    let mut wrong = Vec::new();
    for (word, total) in [(Word::Allow, COMES_WITHIN), (Word::Deny, SILENT_FOR)] {
        let mut asked = Vec::new();
        let mut probes = Vec::new();
        for row in rows.iter().filter(|row| row.verdict == word) {
            let (from, to) = (lab.place(&row.from)?, lab.place(&row.to)?);
            for v4 in [true, false] {
                asked.push(row);
                probes.push(Probe {
                    namespace: &from.namespace,
                    source: from.address(v4).context("an address of each family")?,
                    destination: to.address(v4).context("an address of each family")?,
                    protocol: Protocol::from_name(&row.protocol).context("a protocol")?,
                    port: row.port,
                });
            }
        }
        let retry = Duration::from_millis(500);
        let outcomes = probe::run(&probes, Patience { total, retry })?;
        for ((row, probe), outcome) in asked.iter().zip(&probes).zip(outcomes) {
            let as_judged = match word {
                Word::Allow => outcome == Outcome::Answered,
                Word::Deny => outcome == Outcome::Silent,
            };
            if !as_judged {
                wrong.push(format!(
                    "{row} ({}): {outcome:?}, judged {word:?}",
                    probe.destination
                ));
            }
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{}\nthe agent said:\n{}", wrong.join("\n"), agent::log())
}

/// Open flows to the echo servers, TCP and UDP of both families.
struct Flows {
    tcp: Vec<TcpStream>,
    udp: Vec<UdpSocket>,
    word: u8,
}

impl Flows {
    fn open(lab: &Lab, from: &str, to: &str) -> Result<Self> {
        let (from, to) = (lab.place(from)?, lab.place(to)?);
        let mut flows = Self {
            tcp: Vec::new(),
            udp: Vec::new(),
            word: 0,
        };
        for v4 in [true, false] {
            let source = from.address(v4).context("an address of each family")?;
            let server = to.address(v4).context("an address of each family")?;
            from.namespace.enter(|| {
                let web = SocketAddr::new(server, 80);
                let tcp = TcpStream::connect_timeout(&web, COMES_WITHIN)
                    .with_context(|| format!("connecting to {web}"))?;
                tcp.set_nodelay(true)?;
                flows.tcp.push(tcp);
                let udp = UdpSocket::bind((source, 0))?;
                udp.connect((server, 53))?;
                flows.udp.push(udp);
                Ok(())
            })?;
        }
        flows.expect(true, "they were opened")?;
        Ok(flows)
    }

    /// Says a new word on every flow: all of them answer, or none.
    fn expect(&mut self, goes_on: bool, after: &str) -> Result<()> {
        self.word += 1;
        let word = [self.word];
        for tcp in &mut self.tcp {
            tcp.write_all(&word)?;
        }
        for udp in &self.udp {
            udp.send(&word)?;
        }
        let end = Instant::now() + if goes_on { COMES_WITHIN } else { SILENT_FOR };
        let mut heard = [0];
        for tcp in &mut self.tcp {
            tcp.set_read_timeout(Some(until(end)))?;
            let comes = tcp.read_exact(&mut heard).is_ok() && heard == word;
            ensure!(comes == goes_on, "TCP, after {after}: answered: {comes}");
        }
        for udp in &self.udp {
            udp.set_read_timeout(Some(until(end)))?;
            let comes = udp.recv(&mut heard).is_ok() && heard == word;
            ensure!(comes == goes_on, "UDP, after {after}: answered: {comes}");
        }
        Ok(())
    }
}

/// What is left until then, as a socket's patience, which cannot be nothing.
pub(crate) fn until(end: Instant) -> Duration {
    let left = end.saturating_duration_since(Instant::now());
    left.max(Duration::from_millis(1))
}
