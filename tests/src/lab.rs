//! A node made of network namespaces: pods with veths, external endpoints beyond a router, IPv4
//! and IPv6, real sockets. Routed as the ptp CNI plugin does it: /32 and /128 addresses, the
//! gateway on each pod's host-side veth.
//!
//! A lab belongs to the thread that entered it. It has no name anywhere on the machine: when the
//! thread ends, by return, panic or kill -9, the kernel takes all of it away.

pub mod agent;
pub mod bare;
pub mod bridge;
pub mod cgroup;
pub mod foreign;
pub mod frames;
pub mod hanging;
pub mod manifests;
pub mod measure;
pub mod namespace;
pub mod netlink;
pub mod objects;
pub mod offload;
mod outside;
pub mod pair;
pub mod pins;
mod reach;
mod sides;
pub mod stage;
pub mod tracked;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use manifests::Manifests;
use namespace::{Namespace, leave_the_machine, sysctl};
use netlink::{MAIN_TABLE, Mac, Netlink, Route, VethEnd};
use outside::Outside;

/// The node's end of every link, as each pod and the router see it.
const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 254, 1));
/// See [`GATEWAY_V4`].
const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
/// The router, as the node sees it.
const ROUTER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 254, 2));
/// See [`ROUTER_V4`].
const ROUTER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2));
/// Index of `lo` in every namespace.
const LOOPBACK: u32 = 1;
/// Index of `eth0` in every pod.
const ETH0: u32 = 2;
/// First index on the node's side; away from the pods' own, see [`VethEnd::index`].
const FIRST_INDEX: u32 = 100;
/// How long the kernel may take to notice the carrier of a new link.
const CARRIER_WITHIN: Duration = Duration::from_secs(10);
/// Where a lab keeps the manifests its tests write; private to the lab.
const MANIFESTS: &str = "/run/lab/manifests";

/// What a place of the lab is to policy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A pod with a namespace and a veth of its own.
    Pod,
    /// A hostNetwork pod, in the node's namespace.
    Host,
    /// An address beyond the router.
    External,
}

/// A source and destination of probes.
#[derive(Debug)]
pub struct Place {
    /// What it is.
    pub kind: Kind,
    /// Its addresses, at most one a family.
    pub addresses: Vec<IpAddr>,
    /// Its network namespace.
    pub namespace: Namespace,
    /// Index of the host-side veth; 0 when it has none.
    pub veth: u32,
}

impl Place {
    /// Its address of the given family.
    pub fn address(&self, v4: bool) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| address.is_ipv4() == v4)
    }

    /// The addresses of a connection to another place, as `picket matrix` picks them: the first of
    /// the destination's whose family the source has too.
    pub fn pair_with(&self, other: &Self) -> Option<(IpAddr, IpAddr)> {
        other
            .addresses
            .iter()
            .find_map(|to| Some((self.address(to.is_ipv4())?, *to)))
    }
}

/// A node and everything around it.
#[derive(Debug)]
pub struct Lab {
    places: BTreeMap<String, Place>,
    node: Namespace,
    node_addresses: BTreeSet<IpAddr>,
    netlink: Netlink,
    outside: Option<Outside>,
    next_index: u32,
}

impl Lab {
    /// Moves the calling thread into a new lab: a node without pods. The thread cannot leave.
    pub fn enter() -> Result<Self> {
        leave_the_machine()?;
        allow_many_descriptors()?;
        prepare_network()?;
        sysctl("ipv4/ip_forward", "1")?;
        sysctl("ipv6/conf/all/forwarding", "1")?;
        fs::create_dir_all(MANIFESTS).with_context(|| format!("creating {MANIFESTS}"))?;
        let mut netlink = Netlink::open()?;
        netlink.set_up(LOOPBACK)?;
        Ok(Self {
            places: BTreeMap::new(),
            node: Namespace::current()?,
            node_addresses: BTreeSet::new(),
            netlink,
            outside: None,
            next_index: FIRST_INDEX,
        })
    }

    /// Everything that can be probed, by name (`namespace/pod`, or an address).
    pub fn places(&self) -> &BTreeMap<String, Place> {
        &self.places
    }

    /// A place that the caller knows to exist.
    pub fn place(&self, name: &str) -> Result<&Place> {
        self.places
            .get(name)
            .with_context(|| format!("{name} is not laid out in the lab"))
    }

    /// The node's own namespace.
    pub fn node(&self) -> &Namespace {
        &self.node
    }

    /// Directory of manifests that belongs to this lab.
    pub fn manifests(&self) -> PathBuf {
        PathBuf::from(MANIFESTS)
    }

    /// Writes a file of the lab's manifests, in one piece as `kubectl` and editors do.
    pub fn write_manifest(&self, file: &str, content: &str) -> Result<()> {
        let path = self.manifests().join(file);
        let fresh = Path::new("/run/lab").join(file);
        fs::write(&fresh, content).with_context(|| format!("writing {}", fresh.display()))?;
        fs::rename(&fresh, &path).with_context(|| format!("renaming to {}", path.display()))
    }

    /// Removes a file of the lab's manifests.
    pub fn remove_manifest(&self, file: &str) -> Result<()> {
        let path = self.manifests().join(file);
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
    }

    /// Lays out what manifests state, and external endpoints.
    pub fn lay_out(&mut self, manifests: &Manifests, endpoints: &[IpAddr]) -> Result<()> {
        for pod in &manifests.pods {
            if pod.host_network {
                self.add_host_pod(&pod.name, &pod.addresses)?;
            } else {
                self.add_pod(&pod.name, &pod.addresses)?;
            }
        }
        for address in &manifests.node_addresses {
            self.add_node_address(*address)?;
        }
        endpoints
            .iter()
            .try_for_each(|endpoint| self.add_external(*endpoint))
    }

    /// Adds a pod: its namespace under `/run/netns`, its veth, addresses and routes.
    pub fn add_pod(&mut self, name: &str, addresses: &[IpAddr]) -> Result<()> {
        let context = || format!("laying out pod {name}");
        let place = self.wire(name, addresses).with_context(context)?;
        self.insert(name, place)
    }

    /// Adds a pod whose host-side interface has the index that another one had.
    pub fn add_pod_at(&mut self, name: &str, addresses: &[IpAddr], veth: u32) -> Result<()> {
        let context = || format!("laying out pod {name} at interface {veth}");
        let place = self.wire_at(name, addresses, veth).with_context(context)?;
        self.insert(name, place)
    }

    fn wire(&mut self, name: &str, addresses: &[IpAddr]) -> Result<Place> {
        let veth = self.next_index;
        self.next_index += 1;
        self.wire_at(name, addresses, veth)
    }

    fn wire_at(&mut self, name: &str, addresses: &[IpAddr], veth: u32) -> Result<Place> {
        let namespace = Namespace::create()?;
        let link = format!("pod{veth}");
        let mut inside = self.connect(&namespace, &link, veth)?;
        for address in addresses {
            inside.add_address(ETH0, *address, host_bits(*address))?;
            self.netlink.add_route(Route {
                to: (*address, host_bits(*address)),
                via: None,
                link: veth,
                source: None,
                table: MAIN_TABLE,
            })?;
        }
        default_route(&mut inside, ETH0, GATEWAY_V4, GATEWAY_V6)?;
        // Last: the agent looks at addresses as soon as the name is there.
        namespace.publish(&name.replace('/', "_"))?;
        Ok(Place {
            kind: Kind::Pod,
            addresses: addresses.to_vec(),
            namespace,
            veth,
        })
    }

    /// Joins a namespace's `eth0` to the node; the node's end gets the gateway's addresses.
    fn connect(&mut self, namespace: &Namespace, link: &str, index: u32) -> Result<Netlink> {
        let here = VethEnd {
            name: link,
            index,
            mac: mac(NEAR, index),
        };
        let there = VethEnd {
            name: "eth0",
            index: ETH0,
            mac: mac(FAR, index),
        };
        let mut inside = namespace.enter(|| {
            prepare_network()?;
            Netlink::open()
        })?;
        join(
            (&mut self.netlink, here),
            (&mut inside, there),
            namespace,
            GATEWAY_V4,
        )?;
        inside.set_up(LOOPBACK)?;
        Ok(inside)
    }

    /// Gives the node's packet filter rules, by nft(8).
    pub fn nft(&self, rules: &str) -> Result<()> {
        let output = self.node.enter(|| {
            Command::new("nft")
                .arg(rules)
                .output()
                .context("starting nft; `cargo xtask setup` installs it")
        })?;
        if !output.status.success() {
            bail!("nft: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Takes a pod's namespace away, as its deletion would.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        let place = self
            .places
            .remove(name)
            .with_context(|| format!("no pod {name} in the lab"))?;
        let path = Path::new(namespace::NETNS_DIR).join(name.replace('/', "_"));
        nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH)
            .with_context(|| format!("unmounting {}", path.display()))?;
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        self.netlink.delete_link(place.veth)
    }

    /// Adds a hostNetwork pod: the node, under one more name.
    pub fn add_host_pod(&mut self, name: &str, addresses: &[IpAddr]) -> Result<()> {
        for address in addresses {
            self.add_node_address(*address)?;
        }
        let namespace = Namespace::current()?;
        self.insert(
            name,
            Place {
                kind: Kind::Host,
                addresses: addresses.to_vec(),
                namespace,
                veth: 0,
            },
        )
    }

    /// Gives the node an address, if it does not have it yet.
    pub fn add_node_address(&mut self, address: IpAddr) -> Result<()> {
        if self.node_addresses.insert(address) {
            self.netlink
                .add_address(LOOPBACK, address, host_bits(address))?;
        }
        Ok(())
    }

    fn insert(&mut self, name: &str, place: Place) -> Result<()> {
        if self.places.insert(name.to_owned(), place).is_some() {
            bail!("{name} is laid out twice");
        }
        Ok(())
    }
}

/// Waits for a condition, asking again a few hundred times a second; the error says what was
/// waited for and what `condition` saw last.
pub fn wait_until<T>(
    what: &str,
    within: Duration,
    mut condition: impl FnMut() -> Result<T>,
) -> Result<T> {
    let within = within * patience();
    let end = Instant::now() + within;
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => {
                return Err(error.context(format!("waited {within:?} for: {what}")));
            }
            Err(_) => std::thread::park_timeout(Duration::from_millis(3)),
        }
    }
}

/// By how much everything may take longer here: an emulated machine sets `PICKET_PATIENCE`.
fn patience() -> u32 {
    let said = std::env::var("PICKET_PATIENCE").ok();
    said.and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// Both ends up, gateway addresses on the near one.
fn join(
    (netlink, here): (&mut Netlink, VethEnd<'_>),
    (inside, there): (&mut Netlink, VethEnd<'_>),
    namespace: &Namespace,
    gateway_v4: IpAddr,
) -> Result<()> {
    use std::os::fd::AsFd as _;
    netlink.add_veth(here, there, namespace.as_fd())?;
    netlink.set_up(here.index)?;
    inside.set_up(there.index)?;
    for (netlink, end) in [(&mut *netlink, here), (inside, there)] {
        wait_until(
            "both ends of a veth to carry packets",
            CARRIER_WITHIN,
            || {
                if netlink.is_running(end.index)? {
                    Ok(())
                } else {
                    bail!("{} does not", end.name)
                }
            },
        )?;
    }
    netlink.add_address(here.index, gateway_v4, 32)?;
    netlink.add_address(here.index, GATEWAY_V6, 64)
}

fn default_route(netlink: &mut Netlink, link: u32, via_v4: IpAddr, via_v6: IpAddr) -> Result<()> {
    for (to, via) in [
        (IpAddr::V4(Ipv4Addr::UNSPECIFIED), via_v4),
        (IpAddr::V6(Ipv6Addr::UNSPECIFIED), via_v6),
    ] {
        netlink.add_route(Route {
            to: (to, 0),
            via: Some(via),
            link,
            source: None,
            table: MAIN_TABLE,
        })?;
    }
    Ok(())
}

/// Settings of every namespace of a lab: addresses work at once, no filter but ours.
fn prepare_network() -> Result<()> {
    for scope in ["all", "default"] {
        sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0")?;
        sysctl(&format!("ipv4/conf/{scope}/send_redirects"), "0")?;
        sysctl(&format!("ipv6/conf/{scope}/disable_ipv6"), "0")?;
        sysctl(&format!("ipv6/conf/{scope}/accept_dad"), "0")?;
        sysctl(&format!("ipv6/conf/{scope}/dad_transmits"), "0")?;
        sysctl(&format!("ipv6/conf/{scope}/accept_ra"), "0")?;
        sysctl(&format!("ipv6/conf/{scope}/router_solicitations"), "0")?;
    }
    // Root may ping (both families) without raw sockets.
    sysctl("ipv4/ping_group_range", "0 0")
}

/// A server for each pod and port, and a socket for each probe, take many descriptors.
fn allow_many_descriptors() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).context("raising the limit of open files")
}

fn host_bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// First byte of the hardware address of a veth end: the node's, the other one's.
const NEAR: u8 = 0x02;
const FAR: u8 = 0x06;

/// A locally administered address, the same in every run.
fn mac(kind: u8, index: u32) -> Mac {
    let [a, b, c, d] = index.to_be_bytes();
    [kind, 0x70, a, b, c, d]
}
