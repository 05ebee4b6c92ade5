//! Pods on a bridge, as the bridge CNI plugin has them: the gateway's addresses are the bridge's, and
//! pods find each other without the node.

use std::net::IpAddr;

use anyhow::Result;

use super::foreign::run;
use super::namespace::sysctl;
use super::{GATEWAY_V4, GATEWAY_V6, Lab, host_bits};

/// The bridge's name.
pub const BRIDGE: &str = "br0";
/// What tunnels are on.
const LOOPBACK_NAME: &str = "lo";

impl Lab {
    /// Moves pods that are laid out to a bridge of the node's. With `filters` the node's packet filter
    /// and its connection tracking see what the bridge passes on (`br_netfilter`).
    pub fn bridge(&self, pods: &[&str], filters: bool) -> Result<()> {
        let link = format!("link add {BRIDGE} type bridge forward_delay 0 mcast_snooping 0");
        run("ip", &link)?;
        for family in ["iptables", "ip6tables"] {
            let value = if filters { "1" } else { "0" };
            sysctl(&format!("bridge/bridge-nf-call-{family}"), value)?;
        }
        run(
            "ip",
            &format!("link set {BRIDGE} address 02:70:00:00:ff:01 up"),
        )?;
        run("ip", &format!("addr add {GATEWAY_V4}/32 dev {BRIDGE}"))?;
        run(
            "ip",
            &format!("addr add {GATEWAY_V6}/64 dev {BRIDGE} nodad"),
        )?;
        let mut addresses: Vec<IpAddr> = Vec::new();
        for pod in pods {
            let place = self.place(pod)?;
            let interface = format!("pod{}", place.veth);
            run("ip", &format!("addr flush dev {interface}"))?;
            run("ip", &format!("link set {interface} master {BRIDGE}"))?;
            for address in &place.addresses {
                let bits = host_bits(*address);
                run(
                    "ip",
                    &format!("route replace {address}/{bits} dev {BRIDGE}"),
                )?;
                addresses.push(*address);
            }
        }
        for pod in pods {
            let place = self.place(pod)?;
            place.namespace.enter(|| {
                for address in &addresses {
                    if !place.addresses.contains(address) {
                        let bits = host_bits(*address);
                        run("ip", &format!("route add {address}/{bits} dev eth0"))?;
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The bridge forgets where everybody is: what is sent next goes to every pod.
    pub fn age_bridge(&self) -> Result<()> {
        run("ip", &format!("link set {BRIDGE} type bridge fdb_flush")).map(drop)
    }

    /// Joins the bridge to an overlay network (VXLAN) that leads nowhere.
    pub fn overlay(&self, id: u32) -> Result<()> {
        let tunnel = format!("link add vx{id} type vxlan id {id} dstport 4789 dev {LOOPBACK_NAME}");
        run("ip", &tunnel)?;
        run("ip", &format!("link set vx{id} master {BRIDGE} up")).map(drop)
    }
}
