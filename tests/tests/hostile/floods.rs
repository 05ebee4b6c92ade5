//! Floods of fragments from one pod: what they take from others' large datagrams, and that each piece
//! of them is counted.
//!
//! FRAGMENTS is one LRU of 8 192 rows for all pods of a node, and a first fragment that passes is
//! written there at both of its hooks. So a pod that may send at all can push out another pod's rows,
//! after 4 000 first fragments of its own (`a_first_fragment_is_known_after_thousands_of_another_pods`
//! holds 3 000), which at a million a second take 4 ms. The pieces of a datagram follow each other within
//! microseconds where a pod or a fast link sends them, so nothing is lost; a datagram whose pieces come
//! milliseconds apart, by a slow link, can be, and counts as `fragment`. Nothing passes by it.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::lab::agent::metric;
use tests::lab::frames::{Wire, between};
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::Stage;
use tests::lab::wait_until;
use tests::packets::{Frame, protocol};

use crate::origin::is_from;

const CLIENT: &str = "shop/client";
const SERVER: &str = "shop/server";
const FLOODER: &str = "shop/flooder";
/// Whom the flood is for. The server's own kernel would have no room left for pieces.
const SINK: &str = "shop/sink";
const PORT: u16 = 8080;
const OWN_PORT: u16 = 40_000;
/// Bytes of a datagram that fills six packets of 1 500 bytes in either family.
const LARGE: usize = 8_000;
/// Fragments of which the first ones, at both of their hooks, are all of FRAGMENTS several times over.
const ROWS_OVER: u64 = 40_000;
/// Large datagrams that are sent during as many more, at least, in each family.
const DATAGRAMS: usize = 100;
/// First fragments of others that a later one's own may lie behind.
const IN_BETWEEN: u16 = 3_000;
const WITHIN: Duration = Duration::from_secs(10);

/// Clients and servers that may talk by UDP on one port and in no other way.
fn stage() -> Result<Stage> {
    let rule = |peers: &str, app: &str| {
        format!(
            "[{{{peers}: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}], \
             ports: [{{port: {PORT}, protocol: UDP}}]}}]"
        )
    };
    let spec = format!(
        "{{podSelector: {{}}, policyTypes: [Ingress, Egress], ingress: {}, egress: {}}}",
        rule("from", "client"),
        rule("to", "server")
    );
    let cluster = [
        namespace("shop", ""),
        pod(CLIENT, "app: client", &["10.18.0.2", "fd18::2"]),
        pod(SERVER, "app: server", &["10.18.0.3", "fd18::3"]),
        pod(FLOODER, "app: client", &["10.18.0.4", "fd18::4"]),
        pod(SINK, "app: server", &["10.18.0.5", "fd18::5"]),
        policy("shop", "large", &spec),
    ]
    .join("---\n");
    Stage::open(&cluster)
}

fn address(stage: &Stage, pod: &str, is_v4: bool) -> Result<IpAddr> {
    stage.lab.place(pod)?.address(is_v4).context("an address")
}

/// Packets that were dropped because nobody knew their first fragment, at either side.
fn dropped() -> Result<f64> {
    ["egress", "ingress"].iter().try_fold(0.0, |sum, side| {
        let series = format!(
            "picket_verdicts_total{{direction=\"{side}\",verdict=\"deny\",reason=\"fragment\"}}"
        );
        Ok(sum + metric(&series).unwrap_or_default())
    })
}

/// A first fragment without end, and a later one of a datagram that has no first, by turns.
struct Flood {
    wire: Wire,
    frames: Vec<Vec<u8>>,
}

impl Flood {
    fn new(stage: &Stage, is_v4: bool) -> Result<Self> {
        let flooder = stage.lab.place(FLOODER)?;
        let (from, to) = (
            address(stage, FLOODER, is_v4)?,
            address(stage, SINK, is_v4)?,
        );
        let frames = (0..u16::MAX).map(|identification| {
            let frame = if identification % 2 == 0 {
                first((from, to))
            } else {
                later((from, to))
            };
            let frame = frame.with_identification(identification).bytes();
            between(flooder.mac(), flooder.near_mac(), &frame)
        });
        Ok(Self {
            wire: Wire::open(&flooder.namespace)?,
            frames: frames.collect(),
        })
    }

    /// Goes on until it is told to stop; how many later fragments it has sent.
    fn run(&self, is_over: &AtomicBool, sent: &AtomicU64) -> Result<u64> {
        let mut later = 0;
        loop {
            for (place, frame) in self.frames.iter().enumerate() {
                if is_over.load(Ordering::Relaxed) {
                    return Ok(later);
                }
                self.wire.send(frame)?;
                later += u64::from(place % 2 == 1);
                sent.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn first((from, to): (IpAddr, IpAddr)) -> Frame {
    let mut first = Frame::udp((from, OWN_PORT), (to, PORT));
    first.payload.resize(16, 0);
    first.with_fragment(0, true)
}

fn later((from, to): (IpAddr, IpAddr)) -> Frame {
    Frame::new(from, to, protocol::UDP, vec![0; 16]).with_fragment(2, false)
}

fn socket(stage: &Stage, pod: &str, address: SocketAddr) -> Result<UdpSocket> {
    let place = stage.lab.place(pod)?;
    let socket = place.namespace.enter(|| Ok(UdpSocket::bind(address)?))?;
    socket.set_read_timeout(Some(WITHIN))?;
    Ok(socket)
}

#[test]
#[expect(
    clippy::print_stdout,
    reason = "how fast the flood was says what is shown"
)]
fn large_datagrams_pass_while_another_pod_floods_with_fragments() -> Result<()> {
    let stage = stage()?;
    for is_v4 in [true, false] {
        let to = SocketAddr::new(address(&stage, SERVER, is_v4)?, PORT);
        let own = SocketAddr::new(address(&stage, CLIENT, is_v4)?, 0);
        let (client, server) = (socket(&stage, CLIENT, own)?, socket(&stage, SERVER, to)?);
        let before = dropped()?;
        let flood = Flood::new(&stage, is_v4)?;
        let (is_over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        let (later, arrived) = thread::scope(|scope| {
            let flooding = scope.spawn(|| flood.run(&is_over, &sent));
            let arrived = (|| -> Result<Vec<bool>> {
                // Every row is the flood's.
                wait_until("the flood", WITHIN, || {
                    ensure!(sent.load(Ordering::Relaxed) > ROWS_OVER, "it has begun");
                    Ok(())
                })?;
                let mut got = vec![0; LARGE + 1];
                let mut arrived = Vec::new();
                while arrived.len() < DATAGRAMS || sent.load(Ordering::Relaxed) < 2 * ROWS_OVER {
                    client.send_to(&[7; LARGE], to)?;
                    let got = server.recv_from(&mut got);
                    arrived.push(got.is_ok_and(|(length, _)| length == LARGE));
                }
                Ok(arrived)
            })();
            is_over.store(true, Ordering::Relaxed);
            let later = flooding.join().expect("the flood does not panic");
            (later, arrived)
        });
        let (later, arrived) = (later?, arrived?);
        let lost = arrived.iter().filter(|is_there| !**is_there).count();
        let (all, flood) = (arrived.len(), sent.into_inner());
        println!("{lost} of {all} datagrams lost in a flood of {flood} fragments");
        ensure!(lost == 0, "{lost} of {all} are lost");
        wait_until("every piece to be counted", WITHIN, || {
            let counted = dropped()? - before;
            let is_all = format!("{counted:.0}") == later.to_string();
            ensure!(is_all, "{counted} of {later}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_first_fragment_is_known_after_thousands_of_another_pods() -> Result<()> {
    let stage = stage()?;
    for is_v4 in [true, false] {
        let pair = (
            address(&stage, CLIENT, is_v4)?,
            address(&stage, SERVER, is_v4)?,
        );
        let (near, far) = (stage.lab.place(CLIENT)?, stage.lab.place(SERVER)?);
        let (sender, mut receiver) = (Wire::open(&near.namespace)?, Wire::open(&far.namespace)?);
        let send =
            |frame: &Frame| sender.send(&between(near.mac(), near.near_mac(), &frame.bytes()));
        let flood = Flood::new(&stage, is_v4)?;
        let firsts = flood.frames.iter().step_by(2);
        send(&first(pair))?;
        for frame in firsts.take(usize::from(IN_BETWEEN)) {
            flood.wire.send(frame)?;
        }
        send(&later(pair))?;
        // What shows that all before has come.
        send(&Frame::udp((pair.0, OWN_PORT), (pair.1, PORT)))?;
        let is_last = |frame: &[u8]| is_from(frame, pair.0) && frame.ends_with(b"ping");
        let arrived = receiver.until(is_last)?;
        let pieces = arrived
            .iter()
            .filter(|frame| is_from(frame, pair.0))
            .count();
        ensure!(pieces == 2, "{pieces} of 2 pieces arrived from {}", pair.0);
    }
    Ok(())
}
