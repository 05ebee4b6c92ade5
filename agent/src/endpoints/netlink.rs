//! Links and addresses by rtnetlink, here and inside other namespaces.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink's messages and attributes are the kernel's, and grow with it"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::{AsyncSocket as _, SocketAddr};
use rtnetlink::{Handle, MulticastGroup};

use super::IfIndex;
use super::netns::Netns;

/// An interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Link {
    pub(super) name: String,
    /// `veth`, `macvlan`, …; empty for physical ones.
    pub(super) kind: String,
}

/// An interface inside a namespace, with its way out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Inside {
    pub(super) link: Link,
    /// Addresses, link-local IPv6 ones left out, sorted; none yet while the link is being set up.
    pub(super) addresses: Vec<IpAddr>,
    /// Index of the other end, or of the lower device.
    pub(super) peer: Option<u32>,
    /// The other end is in the home namespace.
    pub(super) leads_home: bool,
}

/// The calling thread's namespace's interfaces, by index.
pub(super) async fn links() -> io::Result<BTreeMap<u32, Link>> {
    let connection = Connection::open()?;
    let links = connection.handle.link().get().execute();
    let links: Vec<LinkMessage> = links.try_collect().await.map_err(io::Error::other)?;
    Ok(links
        .iter()
        .map(|message| (message.header.index, link(message)))
        .collect())
}

/// Enters a namespace and returns its interfaces, loopback left out. The calling thread stays inside.
pub(super) async fn inside(netns: &Netns, home: &Netns) -> io::Result<Vec<Inside>> {
    netns.enter()?;
    let mut connection = Connection::open()?;
    let handle = &mut connection.handle;
    let home_id = id_of(handle, home).await?;
    let links = handle.link().get().execute();
    let links: Vec<LinkMessage> = links.try_collect().await.map_err(io::Error::other)?;
    let addresses = handle.address().get().execute();
    let addresses: Vec<AddressMessage> = addresses.try_collect().await.map_err(io::Error::other)?;
    Ok(links
        .iter()
        .filter(|message| !message.header.flags.contains(LinkFlags::Loopback))
        .map(|message| Inside {
            link: link(message),
            addresses: addresses_of(message.header.index, &addresses),
            peer: attribute(message, |attribute| match attribute {
                LinkAttribute::Link(index) => Some(*index),
                _ => None,
            }),
            // Without this attribute the other end is in the same namespace.
            leads_home: home_id.is_some()
                && home_id
                    == attribute(message, |attribute| match attribute {
                        LinkAttribute::LinkNetNsId(id) => Some(*id),
                        _ => None,
                    }),
        })
        .collect())
}

/// The id that the home namespace has in the one the handle was made in.
async fn id_of(handle: &mut Handle, home: &Netns) -> io::Result<Option<i32>> {
    let mut question = NsidMessage::default();
    question.attributes = vec![NsidAttribute::Fd(home.number())];
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(question));
    message.header.flags = NLM_F_REQUEST;
    let mut answers = handle.request(message).map_err(io::Error::other)?;
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(message)) => {
                let id = message
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        NsidAttribute::Id(id) => Some(*id),
                        _ => None,
                    });
                // -1: none was given, so nothing here has its other end at home.
                return Ok(id.filter(|id| *id >= 0));
            }
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            _ => {}
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

fn attribute<'a, T>(
    message: &'a LinkMessage,
    read: impl Fn(&'a LinkAttribute) -> Option<T>,
) -> Option<T> {
    message.attributes.iter().find_map(read)
}

fn link(message: &LinkMessage) -> Link {
    let name = attribute(message, |attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    let kind = attribute(message, |attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind.to_string()),
            _ => None,
        }),
        _ => None,
    });
    Link {
        name: name.unwrap_or_default(),
        kind: kind.unwrap_or_default(),
    }
}

fn addresses_of(index: u32, messages: &[AddressMessage]) -> Vec<IpAddr> {
    let own = |message: &AddressMessage| {
        let find = |want_local: bool| {
            message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Local(address) if want_local => Some(*address),
                    AddressAttribute::Address(address) if !want_local => Some(*address),
                    _ => None,
                })
        };
        // On a point-to-point link `Address` is the other side's.
        find(true).or_else(|| find(false))
    };
    let mut addresses: Vec<IpAddr> = messages
        .iter()
        .filter(|message| message.header.index == index)
        .filter_map(own)
        .filter(|address| match address {
            IpAddr::V4(_) => true,
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        })
        .collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

/// A connection, served by a task that ends with it.
pub(crate) struct Connection {
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Connection {
    /// What it is asked by.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Opens one in the calling thread's namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self {
            handle,
            task: tokio::spawn(connection),
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Received = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// What the kernel tells unasked.
pub(super) struct Messages {
    links: Received,
    addresses: Received,
    vanished: BTreeSet<IfIndex>,
    /// A connection ends with its last handle.
    _handles: [Handle; 2],
}

impl Messages {
    /// Subscribes to links of the calling thread's namespace, and to addresses of every namespace
    /// that has a link into it.
    pub(super) fn open() -> io::Result<Self> {
        let (connection, links_handle, links) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Link])?;
        tokio::spawn(connection);
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (mut connection, addresses_handle, addresses) =
            rtnetlink::new_multicast_connection(&groups)?;
        let socket = connection.socket_mut().socket_mut();
        if let Err(error) = socket.set_listen_all_namespaces(true) {
            tracing::debug!(%error, "addresses inside namespaces are found by looking only");
        }
        tokio::spawn(connection);
        Ok(Self {
            links,
            addresses,
            vanished: BTreeSet::new(),
            _handles: [links_handle, addresses_handle],
        })
    }

    /// Waits for a message. When the kernel tells nothing any more, forever.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            message = next(&mut self.links) => {
                if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) =
                    message.payload
                    // A port that leaves a bridge is told as a deletion of that family.
                    && link.header.interface_family == AddressFamily::Unspec
                {
                    self.vanished.insert(IfIndex(link.header.index));
                }
            }
            _ = next(&mut self.addresses) => {}
        }
    }

    /// Interfaces that went since this was last asked.
    pub(super) fn take_vanished(&mut self) -> BTreeSet<IfIndex> {
        std::mem::take(&mut self.vanished)
    }
}

async fn next(
    received: &mut (impl Stream<Item = (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)> + Unpin),
) -> NetlinkMessage<RouteNetlinkMessage> {
    match received.next().await {
        Some((message, _)) => message,
        None => std::future::pending().await,
    }
}
