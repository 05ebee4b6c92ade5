//! `--on-cut reset`: both ends of a TCP connection that a change forbids learn it at once, whoever
//! spoke, in both families and through a Service's address; nobody else's connection is touched;
//! and without the option there is silence.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tests::lab::agent::Agent;
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::Stage;

const PORT: u16 = 8080;
/// A reset comes within milliseconds; what silence leaves open is still open after this.
const HEARD_WITHIN: Duration = Duration::from_secs(3);
const V4: [&str; 3] = ["10.9.0.1", "10.9.0.2", "10.9.0.3"];
const V6: [&str; 3] = ["fd09::1", "fd09::2", "fd09::3"];
const SERVICE: &str = "10.96.0.9";

/// The server admits both clients.
const BOTH: &str = "{podSelector: {matchLabels: {role: server}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]}";
/// The server admits the friend only.
const FRIEND: &str = "{podSelector: {matchLabels: {role: server}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]}";

/// Who says the first word that a change forbids.
#[derive(Clone, Copy, Debug)]
enum Speaker {
    Client,
    Server,
}

const SPEAKERS: [Speaker; 2] = [Speaker::Client, Speaker::Server];

/// A connection, the client's end first.
type Ends = [TcpStream; 2];

fn stage(family: [&str; 3], options: &[&str]) -> Result<Stage> {
    let [server, client, friend] = family;
    let cluster = [
        namespace("shop", ""),
        pod("shop/server", "role: server", &[server]),
        pod("shop/client", "role: client", &[client]),
        pod("shop/friend", "role: friend", &[friend]),
    ];
    let mut stage = Stage::without_agent(&cluster.join("---\n"))?;
    stage.agent = Some(Agent::start_with(&stage.lab.manifests(), options)?);
    stage.apply("ingress.yaml", &policy("shop", "ingress", BOTH))?;
    Ok(stage)
}

fn connect(stage: &Stage, from: &str, listen: &str, to: &str) -> Result<Ends> {
    let listening = SocketAddr::new(listen.parse()?, PORT);
    let server = &stage.lab.place("shop/server")?.namespace;
    let listener = server.enter(|| Ok(TcpListener::bind(listening)?))?;
    let to = SocketAddr::new(to.parse()?, PORT);
    let client = stage.lab.place(from)?.namespace.enter(|| {
        TcpStream::connect_timeout(&to, HEARD_WITHIN).with_context(|| format!("{from} to {to}"))
    })?;
    let (accepted, _) = listener.accept()?;
    let mut ends = [client, accepted];
    for end in &ends {
        end.set_read_timeout(Some(HEARD_WITHIN))?;
    }
    assert!(goes_on(&mut ends)?, "it is open");
    Ok(ends)
}

/// Whether a word gets through, both ways.
fn goes_on(ends: &mut Ends) -> Result<bool> {
    let [client, server] = ends;
    let mut heard = [0];
    client.write_all(b"a")?;
    server.read_exact(&mut heard)?;
    server.write_all(b"b")?;
    client.read_exact(&mut heard)?;
    Ok(heard == *b"b")
}

/// What an end learns after the cut: `None` is silence.
fn learns(end: &mut TcpStream) -> Option<ErrorKind> {
    match end.read(&mut [0]).map_err(|error| error.kind()) {
        Err(ErrorKind::WouldBlock) => None,
        Err(kind) => Some(kind),
        Ok(_) => Some(ErrorKind::UnexpectedEof),
    }
}

/// The server turns the client away, then one of the two speaks.
fn cut(stage: &mut Stage, ends: &mut Ends, speaker: Speaker) -> Result<[Option<ErrorKind>; 2]> {
    stage.apply("ingress.yaml", &policy("shop", "ingress", FRIEND))?;
    let [client, server] = ends;
    match speaker {
        Speaker::Client => client.write_all(b"c")?,
        Speaker::Server => server.write_all(b"c")?,
    }
    Ok([learns(client), learns(server)])
}

const RESET: [Option<ErrorKind>; 2] = [Some(ErrorKind::ConnectionReset); 2];

#[test]
fn both_ends_of_a_cut_connection_are_reset_and_no_other() -> Result<()> {
    for family in [V4, V6] {
        for speaker in SPEAKERS {
            let mut stage = stage(family, &["--on-cut", "reset"])?;
            let [server, ..] = family;
            let mut ends = connect(&stage, "shop/client", server, server)?;
            let mut others = connect(&stage, "shop/friend", server, server)?;
            let learnt = cut(&mut stage, &mut ends, speaker)?;
            assert_eq!(learnt, RESET, "{family:?}, {speaker:?} spoke");
            assert!(goes_on(&mut others)?, "its policy allows it as before");
        }
    }
    Ok(())
}

#[test]
fn a_connection_through_a_service_is_reset_at_both_ends() -> Result<()> {
    for speaker in SPEAKERS {
        let mut stage = stage(V4, &["--on-cut", "reset"])?;
        stage.lab.nft(&format!(
            "add table ip kube\n\
             add chain ip kube before {{ type nat hook prerouting priority dstnat; }}\n\
             add rule ip kube before ip daddr {SERVICE} tcp dport {PORT} dnat to {}:{PORT}\n",
            V4[0]
        ))?;
        let mut ends = connect(&stage, "shop/client", V4[0], SERVICE)?;
        let learnt = cut(&mut stage, &mut ends, speaker)?;
        assert_eq!(learnt, RESET, "{speaker:?} spoke");
    }
    Ok(())
}

#[test]
fn without_the_option_a_cut_is_silent() -> Result<()> {
    let mut stage = stage(V4, &[])?;
    let mut ends = connect(&stage, "shop/client", V4[0], V4[0])?;
    assert_eq!(cut(&mut stage, &mut ends, Speaker::Client)?, [None; 2]);
    Ok(())
}
