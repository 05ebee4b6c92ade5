//! What is beyond the node: a router, and external addresses behind it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};

use super::namespace::{Namespace, sysctl};
use super::netlink::{MAIN_TABLE, Netlink, Route, VethEnd};
use super::{
    ETH0, GATEWAY_V4, GATEWAY_V6, Kind, LOOPBACK, Lab, Place, ROUTER_V4, ROUTER_V6, default_route,
    host_bits, join, mac, prepare_network,
};

/// What is beyond the router, as the router sees it.
const WORLD_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 254, 3));
/// See [`WORLD_V4`].
const WORLD_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 3));

/// The router, as what is beyond it sees it. Not the node's [`GATEWAY_V4`]: an ARP request of the
/// node's would then carry an address of the router's own, and not be answered.
const WORLD_GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 254, 4));

/// The router's link to what is beyond it.
const WORLD: u32 = ETH0 + 1;

/// The router and what is beyond it.
#[derive(Debug)]
pub(super) struct Outside {
    router: Netlink,
    world: Namespace,
    world_netlink: Netlink,
    router_namespace: Namespace,
}

impl Lab {
    /// Adds an address beyond the router.
    pub fn add_external(&mut self, address: IpAddr) -> Result<()> {
        if self.outside.is_none() {
            self.outside = Some(self.build_outside().context("laying out the router")?);
        }
        let outside = self
            .outside
            .as_mut()
            .context("the router was just laid out")?;
        let far = if address.is_ipv4() {
            WORLD_V4
        } else {
            WORLD_V6
        };
        outside
            .world_netlink
            .add_address(LOOPBACK, address, host_bits(address))?;
        outside.router.add_route(Route {
            to: (address, host_bits(address)),
            via: Some(far),
            link: WORLD,
            source: None,
            table: MAIN_TABLE,
        })?;
        let namespace = outside.world.enter(Namespace::current)?;
        let addresses = vec![address];
        self.insert(
            &address.to_string(),
            Place {
                kind: Kind::External,
                addresses,
                namespace,
                veth: 0,
            },
        )
    }

    /// The router's namespace: whatever leaves the node comes in by its `eth0`.
    pub fn router(&self) -> Result<&Namespace> {
        let outside = self.outside.as_ref().context("nothing is beyond yet")?;
        Ok(&outside.router_namespace)
    }

    /// Makes the router's link to what is beyond it a narrow one, of `mtu` bytes, and gives the
    /// router an address to say so from in each family: a link-local one is not routed to pods.
    pub fn narrow_outside(&mut self, mtu: u32, router: [IpAddr; 2]) -> Result<()> {
        let outside = self.outside.as_mut().context("nothing is beyond yet")?;
        outside.router.set_mtu(WORLD, mtu)?;
        for address in router {
            let bits = host_bits(address);
            outside.router.add_address(LOOPBACK, address, bits)?;
        }
        outside.router.set_up(LOOPBACK)
    }

    /// node uplink ── eth0 router world ── eth0 world; the node's default route leads there.
    fn build_outside(&mut self) -> Result<Outside> {
        let (router_namespace, world) = (Namespace::create()?, Namespace::create()?);
        let uplink = self.next_index;
        self.next_index += 1;
        let mut router = self.connect(&router_namespace, "uplink", uplink)?;
        router_namespace.enter(|| {
            sysctl("ipv4/ip_forward", "1")?;
            sysctl("ipv6/conf/all/forwarding", "1")
        })?;
        for (address, bits) in [(ROUTER_V4, 32), (ROUTER_V6, 64)] {
            router.add_address(ETH0, address, bits)?;
        }
        default_route(&mut router, ETH0, GATEWAY_V4, GATEWAY_V6)?;
        default_route(&mut self.netlink, uplink, ROUTER_V4, ROUTER_V6)?;

        let mut world_netlink = world.enter(|| {
            prepare_network()?;
            Netlink::open()
        })?;
        let here = VethEnd {
            name: "world",
            index: WORLD,
            mac: mac(0x02, WORLD),
        };
        let there = VethEnd {
            name: "eth0",
            index: ETH0,
            mac: mac(0x06, WORLD),
        };
        join(
            (&mut router, here),
            (&mut world_netlink, there),
            &world,
            WORLD_GATEWAY_V4,
        )?;
        world_netlink.set_up(LOOPBACK)?;
        for (address, bits) in [(WORLD_V4, 32), (WORLD_V6, 64)] {
            world_netlink.add_address(ETH0, address, bits)?;
        }
        default_route(&mut world_netlink, ETH0, WORLD_GATEWAY_V4, GATEWAY_V6)?;
        Ok(Outside {
            router,
            world,
            world_netlink,
            router_namespace,
        })
    }
}
