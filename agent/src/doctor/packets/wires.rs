//! Two pods and the node between them, wired as the ptp plugin does it. Who has which address is
//! written down, so that no packet waits for an answer to that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::Family;
use super::ground;
use crate::endpoints::{Connection, Netns};

/// Index of a pod's own interface.
const INSIDE: u32 = 2;

/// A pod of the attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Pod {
    /// Whom policy isolates.
    Server,
    /// Who may reach it, and whom it may reach, at one port.
    Client,
}

impl Pod {
    pub(super) const BOTH: [Self; 2] = [Self::Server, Self::Client];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }

    pub(super) const fn other(self) -> Self {
        match self {
            Self::Server => Self::Client,
            Self::Client => Self::Server,
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::Server => 1,
            Self::Client => 2,
        }
    }

    /// Of the ranges for documentation (RFC 5737, RFC 3849): nobody's.
    pub(super) fn address(self, family: Family) -> IpAddr {
        let last = self.number();
        match family {
            Family::V4 => Ipv4Addr::new(192, 0, 2, last).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).into(),
        }
    }

    /// Index of its interface on the node's side.
    pub(super) const fn ifindex(self) -> u32 {
        100 + self.number() as u32
    }

    const fn mac(self, is_inside: bool) -> [u8; 6] {
        [2, 0, 0, 0, is_inside as u8, self.number()]
    }
}

/// Lays out both pods around the calling thread's namespace; their namespaces.
pub(super) async fn lay_out(families: &[Family]) -> Result<[Netns; 2]> {
    let home = Netns::own().context("opening our own network namespace")?;
    prepare(families, true)?;
    let pods = [Netns::make(), Netns::make()];
    let [server, client] = pods.map(|pod| pod.context("making a network namespace"));
    let pods = [server?, client?];
    let node = Connection::open().context("opening a netlink socket")?;
    for (pod, netns) in Pod::BOTH.into_iter().zip(&pods) {
        let name = pod.name();
        join(&node, pod, netns)
            .await
            .with_context(|| format!("wiring pod {name}"))?;
        up(&node, pod.ifindex()).await?;
        for family in families {
            reach(&node, pod.ifindex(), pod.address(*family), pod.mac(true)).await?;
        }
        netns
            .enter()
            .with_context(|| format!("entering pod {name}"))?;
        let laid = inside(pod, families).await;
        home.enter().context("leaving a pod")?;
        laid.with_context(|| format!("laying out pod {name}"))?;
    }
    Ok(pods)
}

/// Knobs of a namespace, before it has interfaces.
fn prepare(families: &[Family], forwards: bool) -> Result<()> {
    for family in families {
        match family {
            Family::V4 if forwards => ground::set("ipv4/ip_forward", "1")?,
            Family::V4 => {}
            Family::V6 => {
                for scope in ["all", "default"] {
                    ground::set(&format!("ipv6/conf/{scope}/disable_ipv6"), "0")?;
                }
                if forwards {
                    ground::set("ipv6/conf/all/forwarding", "1")?;
                }
            }
        }
    }
    Ok(())
}

async fn join(node: &Connection, pod: Pod, netns: &Netns) -> Result<()> {
    let peer = rtnetlink::LinkMessageBuilder::<LinkUnspec>::new()
        .name("eth0")
        .index(INSIDE)
        .address(pod.mac(true).to_vec())
        .setns_by_fd(netns.as_raw_fd())
        .build();
    // The index differs from the peer's: the carrier of links whose own and peer's are equal is
    // noticed late.
    let link = LinkVeth::new(pod.name(), "eth0")
        .index(pod.ifindex())
        .address(pod.mac(false).to_vec())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    Ok(node.handle().link().add(link).execute().await?)
}

/// The pod's side, with the calling thread in it.
async fn inside(pod: Pod, families: &[Family]) -> Result<()> {
    prepare(families, false)?;
    let netlink = Connection::open().context("opening a netlink socket")?;
    up(&netlink, INSIDE).await?;
    for family in families {
        let own = pod.address(*family);
        let bits = if own.is_ipv4() { 32 } else { 128 };
        let mut add = netlink.handle().address().add(INSIDE, own, bits);
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        add.message_mut().attributes.push(flags);
        add.execute()
            .await
            .with_context(|| format!("adding {own}"))?;
        reach(
            &netlink,
            INSIDE,
            pod.other().address(*family),
            pod.mac(false),
        )
        .await?;
    }
    Ok(())
}

async fn up(netlink: &Connection, index: u32) -> Result<()> {
    let up = LinkUnspec::new_with_index(index).up().build();
    let set = netlink.handle().link().set(up).execute().await;
    set.with_context(|| format!("setting link {index} up"))
}

/// An address is behind a link, at this hardware address.
async fn reach(netlink: &Connection, link: u32, to: IpAddr, mac: [u8; 6]) -> Result<()> {
    let context = || format!("making {to} reachable");
    let bits = if to.is_ipv4() { 32 } else { 128 };
    let route = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(to, bits)
        .context("a prefix")?
        .output_interface(link)
        .scope(RouteScope::Link)
        .build();
    netlink
        .handle()
        .route()
        .add(route)
        .execute()
        .await
        .with_context(context)?;
    let neighbour = netlink
        .handle()
        .neighbours()
        .add(link, to)
        .link_layer_address(&mac);
    neighbour.execute().await.with_context(context)
}
