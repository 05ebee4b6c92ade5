//! `--on-cut reset`: whoever speaks on a TCP connection that a change forbids is reset, in both
//! families, through a Service's address and in the middle of a transfer; nobody else's connection
//! is touched; and without the option there is silence.

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

/// An end of a connection.
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

/// The server turns the client away.
fn cut(stage: &mut Stage) -> Result<()> {
    stage.apply("ingress.yaml", &policy("shop", "ingress", FRIEND))
}

/// Speaks, and hears what comes of it: `None` is silence.
fn speak(end: &mut TcpStream) -> Result<Option<ErrorKind>> {
    end.write_all(b"c")?;
    Ok(match end.read(&mut [0]).map_err(|error| error.kind()) {
        Err(ErrorKind::WouldBlock) => None,
        Err(kind) => Some(kind),
        Ok(_) => Some(ErrorKind::UnexpectedEof),
    })
}

/// What each end hears that speaks after the cut, one after the other.
fn speak_in_turn(ends: Ends, first: Speaker) -> Result<[Option<ErrorKind>; 2]> {
    let [mut client, mut server] = ends;
    Ok(match first {
        Speaker::Client => [speak(&mut client)?, speak(&mut server)?],
        Speaker::Server => [speak(&mut server)?, speak(&mut client)?],
    })
}

const RESET: [Option<ErrorKind>; 2] = [Some(ErrorKind::ConnectionReset); 2];

#[test]
fn each_end_of_a_cut_connection_is_reset_as_it_speaks_and_no_other() -> Result<()> {
    for family in [V4, V6] {
        for first in SPEAKERS {
            let mut stage = stage(family, &["--on-cut", "reset"])?;
            let [server, ..] = family;
            let ends = connect(&stage, "shop/client", server, server)?;
            let mut others = connect(&stage, "shop/friend", server, server)?;
            cut(&mut stage)?;
            let heard = speak_in_turn(ends, first)?;
            assert_eq!(heard, RESET, "{family:?}, first the {first:?}");
            assert!(goes_on(&mut others)?, "its policy allows it as before");
        }
    }
    Ok(())
}

#[test]
fn a_connection_through_a_service_is_reset_too() -> Result<()> {
    for first in SPEAKERS {
        let mut stage = stage(V4, &["--on-cut", "reset"])?;
        stage.lab.nft(&format!(
            "add table ip kube\n\
             add chain ip kube before {{ type nat hook prerouting priority dstnat; }}\n\
             add rule ip kube before ip daddr {SERVICE} tcp dport {PORT} dnat to {}:{PORT}\n",
            V4[0]
        ))?;
        let ends = connect(&stage, "shop/client", V4[0], SERVICE)?;
        cut(&mut stage)?;
        assert_eq!(speak_in_turn(ends, first)?, RESET, "first the {first:?}");
    }
    Ok(())
}

#[test]
fn who_is_sending_in_bulk_is_reset_with_data_in_flight() -> Result<()> {
    for sender in SPEAKERS {
        let mut stage = stage(V4, &["--on-cut", "reset"])?;
        let [client, server] = connect(&stage, "shop/client", V4[0], V4[0])?;
        let (mut sends, mut receives) = match sender {
            Speaker::Client => (client, server),
            Speaker::Server => (server, client),
        };
        let sending = std::thread::spawn(move || {
            loop {
                if let Err(error) = sends.write_all(&[0; 8_192]) {
                    return error.kind();
                }
            }
        });
        // As slow as it can be, so that there is always data on the way.
        let receiving = std::thread::spawn(move || {
            while receives.read(&mut [0; 1_024]).is_ok_and(|read| read > 0) {}
            speak(&mut receives)
        });
        cut(&mut stage)?;
        let sent = sending.join().ok();
        assert_eq!(sent, Some(ErrorKind::ConnectionReset), "{sender:?} sends");
        // It was told of while it acknowledged, or is when it speaks.
        let heard = receiving.join().ok().context("the receiver panicked")?;
        let broken = matches!(&heard, Err(error) if error.is::<std::io::Error>());
        let is_told = broken || matches!(heard, Ok(Some(ErrorKind::ConnectionReset)));
        assert!(is_told, "{sender:?} sends, the other hears {heard:?}");
    }
    Ok(())
}

#[test]
fn without_the_option_a_cut_is_silent() -> Result<()> {
    let mut stage = stage(V4, &[])?;
    let ends = connect(&stage, "shop/client", V4[0], V4[0])?;
    cut(&mut stage)?;
    assert_eq!(speak_in_turn(ends, Speaker::Client)?, [None; 2]);
    Ok(())
}
