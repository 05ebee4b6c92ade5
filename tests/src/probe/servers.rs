//! Servers for all places of a lab in one thread: TCP and UDP echo, SCTP's INIT ACK. A socket
//! stays in the network namespace it was opened in, so one event loop serves them all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use agent_policy::model::Protocol;
use anyhow::{Context as _, Result};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrAny, SocketFlags, SocketType, bind, ipproto,
    listen, recvfrom, sendto, socket_with, sockopt,
};

use super::sctp;
use crate::lab::namespace::Namespace;

/// Connections a listener holds before they are accepted.
const BACKLOG: i32 = 4096;
/// Receive buffer for the bursts of a whole lab.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Key of the descriptor that stops the loop.
const STOP: u64 = 0;

/// What to serve where.
#[derive(Clone, Copy, Debug)]
pub struct Server<'a> {
    /// Where.
    pub namespace: &'a Namespace,
    /// Address to serve on.
    pub address: IpAddr,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// Running servers; they stop when this is dropped.
#[derive(Debug)]
pub struct Servers {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Servers {
    /// Opens every socket, then serves. When this returns, all of them listen.
    pub fn start(servers: &[Server<'_>]) -> Result<Self> {
        let mut sockets = Vec::new();
        let mut associations: BTreeMap<IpAddr, (&Namespace, BTreeSet<u16>)> = BTreeMap::new();
        for server in servers {
            let what = || {
                format!(
                    "serving {} {}:{}",
                    server.protocol, server.address, server.port
                )
            };
            let address = SocketAddr::new(server.address, server.port);
            let socket = match server.protocol {
                Protocol::TCP => server.namespace.enter(|| tcp_listener(address)),
                Protocol::UDP => server.namespace.enter(|| udp_socket(address)),
                _ => {
                    let (_, ports) = associations
                        .entry(server.address)
                        .or_insert_with(|| (server.namespace, BTreeSet::new()));
                    ports.insert(server.port);
                    continue;
                }
            };
            sockets.push(socket.with_context(what)?);
        }
        for (address, (namespace, ports)) in associations {
            let socket = namespace
                .enter(|| sctp_socket(address, ports.into_iter().collect()))
                .with_context(|| format!("serving SCTP on {address}"))?;
            sockets.push(socket);
        }
        let (stop, stopped) = UnixStream::pair().context("making a socket pair")?;
        let mut serving = Loop::new(stopped).context("making the servers' event loop")?;
        for socket in sockets {
            serving.add(socket).context("watching a server's socket")?;
        }
        let thread = std::thread::Builder::new()
            .name("servers".to_owned())
            .spawn(move || serving.run())
            .context("starting the servers' thread")?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed; the probes that miss their answers tell the rest.
            drop(thread.join());
        }
    }
}

enum Socket {
    Stop(UnixStream),
    Listener(TcpListener),
    Connection(TcpStream),
    Udp(UdpSocket),
    Sctp {
        socket: OwnedFd,
        v4: bool,
        ports: Vec<u16>,
    },
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stop(socket) => socket.as_fd(),
            Self::Listener(socket) => socket.as_fd(),
            Self::Connection(socket) => socket.as_fd(),
            Self::Udp(socket) => socket.as_fd(),
            Self::Sctp { socket, .. } => socket.as_fd(),
        }
    }
}

struct Loop {
    epoll: OwnedFd,
    sockets: HashMap<u64, Socket>,
    next: u64,
}

impl Loop {
    fn new(stopped: UnixStream) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut serving = Self {
            epoll,
            sockets: HashMap::new(),
            next: STOP,
        };
        serving.add(Socket::Stop(stopped))?;
        Ok(serving)
    }

    fn add(&mut self, socket: Socket) -> io::Result<()> {
        let data = epoll::EventData::new_u64(self.next);
        epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN)?;
        self.sockets.insert(self.next, socket);
        self.next += 1;
        Ok(())
    }

    fn run(mut self) {
        let mut events = Vec::with_capacity(256);
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
            for event in events.drain(..) {
                let key = event.data.u64();
                if key == STOP {
                    return;
                }
                self.serve(key);
            }
        }
    }

    /// Serves what is there. Errors are the client's: it sees no answer, which is what it asks.
    fn serve(&mut self, key: u64) {
        let mut arrived = Vec::new();
        let keep = match self.sockets.get_mut(&key) {
            None | Some(Socket::Stop(_)) => true,
            Some(Socket::Listener(listener)) => {
                arrived.extend(std::iter::from_fn(|| listener.accept().ok()));
                true
            }
            Some(Socket::Connection(connection)) => echo(connection).is_ok(),
            Some(Socket::Udp(socket)) => {
                let mut buffer = [0; 2048];
                while let Ok((length, client)) = socket.recv_from(&mut buffer) {
                    drop(socket.send_to(buffer.get(..length).unwrap_or_default(), client));
                }
                true
            }
            Some(Socket::Sctp { socket, v4, ports }) => {
                answer_associations(socket, *v4, ports);
                true
            }
        };
        if !keep {
            self.sockets.remove(&key);
        }
        for (connection, _) in arrived {
            if connection.set_nonblocking(true).is_ok() {
                drop(self.add(Socket::Connection(connection)));
            }
        }
    }
}

/// Sends back what came; an error when the connection is over.
fn echo(connection: &mut TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match connection.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => connection.write_all(buffer.get(..length).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn answer_associations(socket: &OwnedFd, v4: bool, ports: &[u16]) {
    let mut buffer = [0; 2048];
    while let Ok((_, length, Some(client))) = recvfrom(socket, &mut buffer[..], RecvFlags::empty())
    {
        let packet = buffer.get(..length).unwrap_or_default();
        let packet = if v4 {
            sctp::without_ip_header(packet)
        } else {
            Some(packet)
        };
        let client = SocketAddrAny::try_into(client).map(|client: SocketAddr| client.ip());
        if let (Some(answer), Ok(client)) = (
            packet.and_then(|packet| sctp::init_ack(packet, ports)),
            client,
        ) {
            let client = SocketAddr::new(client, 0);
            sendto(socket, &answer, SendFlags::NOSIGNAL, &client).unwrap_or_default();
        }
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    }
}

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

fn tcp_listener(address: SocketAddr) -> Result<Socket> {
    let socket = socket_with(
        family(address.ip()),
        SocketType::STREAM,
        FLAGS,
        Some(ipproto::TCP),
    )?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(Socket::Listener(socket.into()))
}

fn udp_socket(address: SocketAddr) -> Result<Socket> {
    let socket = socket_with(
        family(address.ip()),
        SocketType::DGRAM,
        FLAGS,
        Some(ipproto::UDP),
    )?;
    sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)?;
    bind(&socket, &address)?;
    Ok(Socket::Udp(socket.into()))
}

fn sctp_socket(address: IpAddr, ports: Vec<u16>) -> Result<Socket> {
    let socket = socket_with(family(address), SocketType::RAW, FLAGS, Some(ipproto::SCTP))?;
    sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)?;
    bind(&socket, &SocketAddr::new(address, 0))?;
    Ok(Socket::Sctp {
        socket,
        v4: address.is_ipv4(),
        ports,
    })
}
