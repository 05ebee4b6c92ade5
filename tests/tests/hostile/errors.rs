//! ICMP errors that pods forge, about flows that live: whom they are for hears only the flow's own
//! other end, and only about what was sent to it. The forger is a pod that nobody isolates, so all that
//! stands in its way is what an error quotes.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::lab::frames::{Wire, between};
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::Stage;
use tests::packets::{Frame, protocol};

use crate::origin::{is_from, is_to};

const CLIENT: &str = "shop/client";
const SERVER: &str = "shop/server";
const FORGER: &str = "shop/forger";
const PORT: u16 = 80;
const OWN_PORT: u16 = 40_000;
/// Of UDP, which everybody may send to everybody: what shows that all before has come.
const LAST: u16 = 9;
const HEARD_WITHIN: Duration = Duration::from_secs(5);

/// A client that may talk to a server, and hear nobody; and one that nobody isolates.
fn cluster() -> String {
    let last = format!("{{ports: [{{port: {LAST}, protocol: UDP}}]}}");
    let rule = |peers: &str, app: &str| {
        format!(
            "{{{peers}: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}], \
             ports: [{{port: {PORT}, protocol: UDP}}]}}"
        )
    };
    let isolated = |app: &str, ingress: &str, egress: &str| {
        let spec = format!(
            "{{podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [Ingress, Egress], \
             ingress: [{last}{ingress}], egress: [{last}{egress}]}}"
        );
        policy("shop", app, &spec)
    };
    [
        namespace("shop", ""),
        pod(CLIENT, "app: client", &["10.17.0.2", "fd17::2"]),
        pod(SERVER, "app: server", &["10.17.0.3", "fd17::3"]),
        pod(FORGER, "app: forger", &["10.17.0.4", "fd17::4"]),
        isolated("client", "", &format!(", {}", rule("to", "server"))),
        isolated("server", &format!(", {}", rule("from", "client")), ""),
    ]
    .join("---\n")
}

/// Everybody's address of one family.
#[derive(Clone, Copy)]
struct Family {
    client: IpAddr,
    server: IpAddr,
    forger: IpAddr,
}

/// A datagram of the client's to the server, and its answer, by their own sockets.
fn open_flow(stage: &Stage, family: Family) -> Result<()> {
    let socket = |name: &str, address: IpAddr, port: u16| -> Result<UdpSocket> {
        let place = stage.lab.place(name)?;
        let socket = place
            .namespace
            .enter(|| Ok(UdpSocket::bind((address, port))?))?;
        socket.set_read_timeout(Some(HEARD_WITHIN))?;
        Ok(socket)
    };
    let client = socket(CLIENT, family.client, OWN_PORT)?;
    let server = socket(SERVER, family.server, PORT)?;
    client.send_to(b"ping", SocketAddr::new(family.server, PORT))?;
    let (_, from) = server.recv_from(&mut [0; 16]).context("the question")?;
    server.send_to(b"pong", from)?;
    client.recv_from(&mut [0; 16]).context("the answer")?;
    Ok(())
}

/// Whether an error that a pod puts on its own interface arrives at another one.
fn arrives(stage: &Stage, from: &str, to: &str, error: &Frame) -> Result<bool> {
    let (sender, receiver) = (stage.lab.place(from)?, stage.lab.place(to)?);
    let (source, destination) = error.addresses;
    let last = Frame::udp((source, OWN_PORT + 1), (destination, LAST)).bytes();
    let near = Wire::open(&sender.namespace)?;
    let mut far = Wire::open(&receiver.namespace)?;
    for frame in [&error.bytes(), &last] {
        near.send(&between(sender.mac(), sender.near_mac(), frame))?;
    }
    let arrived = far.until(|frame| is_to(frame, source, LAST))?;
    let place = if source.is_ipv4() { 23 } else { 20 };
    let is_icmp =
        |frame: &&Vec<u8>| matches!(frame.get(place), Some(&(protocol::ICMP | protocol::ICMPV6)));
    Ok(arrived
        .iter()
        .filter(|frame| is_from(frame, source))
        .any(|frame| is_icmp(&frame)))
}

/// An error that one pod puts on its wire for another, and whether that one should hear it.
struct Case {
    what: &'static str,
    from: &'static str,
    to: &'static str,
    about: Frame,
    is_right: bool,
}

fn cases(family: Family) -> Vec<Case> {
    let (near, far) = ((family.client, OWN_PORT), (family.server, PORT));
    let asked = || Frame::udp(near, far);
    let answered = || Frame::udp(far, near);
    let case = |what, from, to, about, is_right| Case {
        what,
        from,
        to,
        about,
        is_right,
    };
    let right = |what, from, to, about| case(what, from, to, about, true);
    let wrong = |what, from, to, about| case(what, from, to, about, false);
    vec![
        right("about what was asked", SERVER, CLIENT, asked()),
        right("about the answer", CLIENT, SERVER, answered()),
        wrong("wrong side: its own answer", SERVER, CLIENT, answered()),
        wrong("wrong side: its own question", CLIENT, SERVER, asked()),
        wrong("wrong pod: what another was asked", FORGER, CLIENT, asked()),
        wrong("wrong pod: another's answer", FORGER, SERVER, answered()),
        wrong("wrong pod, ends swapped", FORGER, CLIENT, answered()),
        wrong("wrong pod, ends swapped", FORGER, SERVER, asked()),
        wrong(
            "a flow with the forger that never was",
            FORGER,
            CLIENT,
            Frame::udp(near, (family.forger, PORT)),
        ),
        wrong(
            "a flow from another port that never was",
            SERVER,
            CLIENT,
            Frame::udp((family.client, OWN_PORT + 7), far),
        ),
        wrong(
            "a flow of another protocol that never was",
            SERVER,
            CLIENT,
            Frame::tcp(near, far, 16),
        ),
    ]
}

#[test]
fn an_error_is_heard_from_its_flows_other_end_and_from_no_other_pod() -> Result<()> {
    let stage = Stage::open(&cluster())?;
    let mut wrong = Vec::new();
    for is_v4 in [true, false] {
        let address = |name: &str| stage.lab.place(name)?.address(is_v4).context("an address");
        let family = Family {
            client: address(CLIENT)?,
            server: address(SERVER)?,
            forger: address(FORGER)?,
        };
        open_flow(&stage, family)?;
        for case in cases(family) {
            let mut error = Frame::too_big(address(case.from)?, &case.about);
            error.addresses.1 = address(case.to)?;
            let is_there = arrives(&stage, case.from, case.to, &error).context(case.what)?;
            if is_there != case.is_right {
                let said = if is_there { "arrives" } else { "is lost" };
                wrong.push(format!("{}, from {}: {said}", case.what, case.from));
            }
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}
