//! SCTP with the kernel's own stack: real associations, allowed, denied, carried on and cut.
//! Ends at once, with a note, where the kernel has no such stack.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, listen, socket_with, sockopt,
};
use tests::lab::objects::policy;
use tests::lab::stage::Stage;
use tests::lab::{Lab, Place};

use crate::report;
use crate::traffic::{COMES_WITHIN, FRIEND, SERVER, SILENT_FOR, STRANGER, until};

const PORT: u16 = 9899;
const FRIENDS_ONLY: &str =
    "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress, Egress],
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}],
             ports: [{protocol: SCTP, port: 9899}]}]}";
const OTHER_PORT: &str =
    "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress, Egress],
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}],
             ports: [{protocol: SCTP, port: 9898}]}]}";

/// The agent runs, under no policy. Each case that passes is `ok`; `server.yaml` is removed again.
pub(crate) fn check(stage: &mut Stage, ok: impl Fn(&str)) -> Result<()> {
    if let Err(Errno::PROTONOSUPPORT) = open(true) {
        report::note("lacks", "SCTP");
        return Ok(());
    }
    let listeners = [
        (true, serve(&stage.lab, true)?),
        (false, serve(&stage.lab, false)?),
    ];
    for (is_v4, listener) in &listeners {
        associate(&stage.lab, STRANGER, *is_v4, listener, COMES_WITHIN)?
            .context("without a policy a stranger associates")?;
    }
    ok("real SCTP associations need no policy, both families");
    stage.apply("server.yaml", &policy("shop", "server", FRIENDS_ONLY))?;

    let mut open = Vec::new();
    for (is_v4, listener) in &listeners {
        let denied = associate(&stage.lab, STRANGER, *is_v4, listener, SILENT_FOR)?;
        ensure!(denied.is_none(), "a stranger associates, IPv4: {is_v4}");
        let allowed = associate(&stage.lab, FRIEND, *is_v4, listener, COMES_WITHIN)?;
        open.push(allowed.with_context(|| format!("a friend cannot associate, IPv4: {is_v4}"))?);
    }
    ok("real SCTP associations are allowed and denied, both families");
    expect(&mut open, true)?;
    stage.apply("server.yaml", &policy("shop", "server", OTHER_PORT))?;
    expect(&mut open, false)?;
    ok("real SCTP associations carry messages until a change cuts them");
    drop(open);
    stage.remove("server.yaml")
}

/// A one-to-one socket (RFC 6458 §4): it listens, connects and reads as TCP's do.
fn open(v4: bool) -> rustix::io::Result<std::os::fd::OwnedFd> {
    let family = if v4 {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    socket_with(
        family,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        Some(ipproto::SCTP),
    )
}

fn address(place: &Place, v4: bool) -> Result<std::net::IpAddr> {
    place.address(v4).context("an address of each family")
}

fn serve(lab: &Lab, v4: bool) -> Result<TcpListener> {
    let server = lab.place(SERVER)?;
    let at = SocketAddr::new(address(server, v4)?, PORT);
    server.namespace.enter(|| {
        let socket = open(v4).context("an SCTP socket")?;
        bind(&socket, &at).with_context(|| format!("binding {at}"))?;
        listen(&socket, 16).with_context(|| format!("listening on {at}"))?;
        Ok(socket.into())
    })
}

/// Both ends of an association.
struct Ends {
    client: TcpStream,
    server: TcpStream,
}

/// Says a word at both ends of every association: the other ends hear it, or none does.
fn expect(open: &mut [Ends], goes_on: bool) -> Result<()> {
    // Another word each time, so that one which comes late is not taken for it.
    let word = [u8::from(goes_on)];
    for ends in &mut *open {
        ends.client
            .write_all(&word)
            .context("the client's message")?;
        ends.server
            .write_all(&word)
            .context("the server's message")?;
    }
    let end = Instant::now() + if goes_on { COMES_WITHIN } else { SILENT_FOR };
    let mut heard = [0];
    for ends in open {
        for (name, side) in [("client", &mut ends.client), ("server", &mut ends.server)] {
            side.set_read_timeout(Some(until(end)))?;
            let hears = side.read_exact(&mut heard).is_ok() && heard == word;
            ensure!(hears == goes_on, "the {name} hears the other side: {hears}");
        }
    }
    Ok(())
}

/// An association from a pod to the server; `None` when there is no answer.
fn associate(
    lab: &Lab,
    from: &str,
    v4: bool,
    listener: &TcpListener,
    within: Duration,
) -> Result<Option<Ends>> {
    let place = lab.place(from)?;
    let from = SocketAddr::new(address(place, v4)?, 0);
    let to = SocketAddr::new(address(lab.place(SERVER)?, v4)?, PORT);
    let client = place.namespace.enter(|| {
        let socket = open(v4).context("an SCTP socket")?;
        // How long connect may take, too (socket(7)).
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(within))?;
        bind(&socket, &from)?;
        match connect(&socket, &to) {
            Ok(()) => Ok(Some(TcpStream::from(socket))),
            Err(Errno::INPROGRESS | Errno::AGAIN | Errno::TIMEDOUT) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("connecting to {to}")),
        }
    })?;
    let Some(client) = client else {
        return Ok(None);
    };
    let (server, _) = listener.accept().context("accepting an association")?;
    Ok(Some(Ends { client, server }))
}
