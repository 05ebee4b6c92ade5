//! The agent's process is killed at any moment of its work, its start included: what old and new
//! allow goes on packet by packet, what both forbid stays out, and the next agent ends at the new.
//! `PICKET_SEED` repeats the moments, as far as a machine can; `PICKET_THOROUGH` makes it long.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::lab::agent::Agent;
use tests::lab::namespace::Namespace;
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::Stage;
use tests::runs::{Moments, is_thorough};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 12, 0, 1);
const PORT: u16 = 8080;
/// Longest way of a datagram through a busy machine. One that is dropped never comes.
const HEARD_WITHIN: Duration = Duration::from_secs(5);
/// No kill comes later than this after a change's write: most changes are in the maps by then.
const KILLED_WITHIN: Duration = Duration::from_millis(60);
/// Ranges of the policy that change with each round, so that a plan has many writes.
const RANGES: u64 = 300;

fn rounds() -> u64 {
    if is_thorough() { 200 } else { 12 }
}

fn is_open(round: u64) -> bool {
    round % 4 < 2
}

/// Labels, policies and ranges of a round: the friend may always call, by another rule each time,
/// the stranger never, and the third one by turns.
fn manifests(round: u64) -> String {
    let pod = |name: &str, labels: &str, number: u8| {
        pod(
            &format!("shop/{name}"),
            labels,
            &[Ipv4Addr::new(10, 12, 0, number)],
        )
    };
    let (friend, calls) = if round.is_multiple_of(2) {
        (
            "{podSelector: {matchLabels: {role: friend}}}",
            "{podSelector: {matchLabels: {role: server}}}",
        )
    } else {
        (
            "{ipBlock: {cidr: 10.12.0.2/32}}",
            "{ipBlock: {cidr: 10.12.0.0/24, except: [10.12.0.9/32]}}",
        )
    };
    let ranges = (0..RANGES).map(|range| {
        format!(
            ", {{ipBlock: {{cidr: 172.{}.{}.0/24}}}}",
            16 + round % 8,
            range % 256
        )
    });
    let ranges: String = ranges.collect();
    let server = format!(
        "{{podSelector: {{matchLabels: {{role: server}}}}, ingress: [{{from: [{friend}{ranges}]}}, \
         {{from: [{{podSelector: {{matchLabels: {{may: \"yes\"}}}}}}]}}]}}"
    );
    let callers = format!(
        "{{podSelector: {{matchLabels: {{role: friend}}}}, policyTypes: [Egress], egress: [{{to: [{calls}]}}]}}"
    );
    let may = if is_open(round) { "yes" } else { "no" };
    [
        namespace("shop", ""),
        pod("server", "role: server", 1),
        pod("friend", "role: friend", 2),
        pod("stranger", &format!("round: \"{round}\""), 3),
        pod("third", &format!("may: \"{may}\""), 4),
        policy("shop", "server", &server),
        policy("shop", "callers", &callers),
    ]
    .join("---\n")
}

/// Who sends a datagram is its one byte.
const FRIEND: u8 = 1;
const STRANGER: u8 = 2;
const THIRD: u8 = 3;

#[derive(Debug)]
struct Sender {
    word: u8,
    namespace: Namespace,
    /// A flow that lives as long as the test.
    lasting: UdpSocket,
}

impl Sender {
    fn of(stage: &Stage, pod: &str, word: u8) -> Result<Self> {
        let namespace = stage.lab.place(pod)?.namespace.enter(Namespace::current)?;
        let lasting = flow(&namespace)?;
        Ok(Self {
            word,
            namespace,
            lasting,
        })
    }

    /// Sends in the lasting flow and in a new one. A refusal would be the server's, which is there.
    fn send(&self) -> Result<()> {
        self.lasting.send(&[self.word])?;
        flow(&self.namespace)?.send(&[self.word])?;
        Ok(())
    }
}

fn flow(namespace: &Namespace) -> Result<UdpSocket> {
    let socket = namespace.enter(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?))?;
    socket.connect((SERVER, PORT))?;
    Ok(socket)
}

/// Everybody sends two datagrams, the friend last: its two must come, of the third one's as many as
/// are counted here, and nobody else's.
fn exchange(server: &UdpSocket, friend: &Sender, others: &[&Sender]) -> Result<u64> {
    for other in others {
        other.send()?;
    }
    friend.send()?;
    let (mut friends, mut thirds) = (0, 0);
    while friends < 2 {
        let mut word = [0];
        server
            .recv(&mut word)
            .context("a datagram that old and new allow did not come")?;
        match word {
            [FRIEND] => friends += 1,
            [THIRD] => thirds += 1,
            _ => anyhow::bail!("a datagram came that old and new forbid"),
        }
    }
    Ok(thirds)
}

#[test]
fn an_agent_killed_at_any_moment_leaves_old_or_new_and_the_next_ends_at_the_new() -> Result<()> {
    let mut moments = Moments::of_this_run();
    let mut stage = Stage::without_agent(&manifests(0))?;
    stage.agent = Some(Agent::start(&stage.lab.manifests())?);
    let listening = SocketAddr::from((SERVER, PORT));
    let server = stage
        .lab
        .place("shop/server")?
        .namespace
        .enter(|| Ok(UdpSocket::bind(listening)?))?;
    server.set_read_timeout(Some(HEARD_WITHIN))?;
    let friend = Sender::of(&stage, "shop/friend", FRIEND)?;
    let stranger = Sender::of(&stage, "shop/stranger", STRANGER)?;
    let third = Sender::of(&stage, "shop/third", THIRD)?;

    let mut round = 0;
    for turn in 0..rounds() {
        let stop = AtomicBool::new(false);
        let exchanged = AtomicU64::new(0);
        let fault = Mutex::new(None);
        std::thread::scope(|scope| -> Result<()> {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    if let Err(error) = exchange(&server, &friend, &[&stranger]) {
                        *fault.lock().expect("no panic holds it") = Some(error);
                        return;
                    }
                    exchanged.fetch_add(1, Ordering::Relaxed);
                    // Below what a pod may open in a second.
                    pass(Duration::from_millis(2));
                }
            });
            let done = (|| -> Result<bool> {
                // Changes faster than plans, and the end of the agent among them.
                for _ in 0..3 {
                    round += 1;
                    stage
                        .lab
                        .write_manifest("cluster.yaml", &manifests(round))?;
                    pass(moments.next_within(KILLED_WITHIN / 4));
                }
                pass(moments.next_within(KILLED_WITHIN));
                stage.agent.take().context("an agent runs")?.kill()?;
                // Every second time the next one dies at its start.
                if turn % 2 == 1 {
                    let next = Agent::spawn(&stage.lab.manifests(), &[])?;
                    pass(moments.next_within(KILLED_WITHIN * 4));
                    next.kill()?;
                }
                let seen = exchanged.load(Ordering::Relaxed);
                stage.agent = Some(Agent::start(&stage.lab.manifests())?);
                stage.settle()?;
                Ok(exchanged.load(Ordering::Relaxed) > seen)
            })();
            stop.store(true, Ordering::Relaxed);
            ensure!(done?, "nothing was sent around the start of the next agent");
            Ok(())
        })?;
        if let Some(error) = fault.into_inner().expect("no panic holds it") {
            return Err(error.context(format!("turn {turn}, round {round}")));
        }
        let thirds = exchange(&server, &friend, &[&third])?;
        let wanted = if is_open(round) { 2 } else { 0 };
        ensure!(
            thirds == wanted,
            "turn {turn}, round {round}: {thirds} of the third one's came, not {wanted}"
        );
    }
    Ok(())
}

/// Lets a moment pass: it is the moment itself that is tried out, nothing is waited for.
fn pass(moment: Duration) {
    let end = Instant::now() + moment;
    while let Some(left) = end.checked_duration_since(Instant::now())
        && !left.is_zero()
    {
        std::thread::park_timeout(left);
    }
}
