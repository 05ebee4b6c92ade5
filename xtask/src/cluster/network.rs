//! A cluster's addresses: who has which, of which family.

use std::fmt::Display;

use clap::ValueEnum;

/// The family of addresses that nodes, pods and Services have.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Family {
    /// IPv4 alone.
    #[value(name = "4")]
    V4,
    /// IPv6 alone.
    #[value(name = "6")]
    V6,
    /// Both, IPv4 first.
    Dual,
}

/// An address or range in both families, before a cluster's own is chosen.
#[derive(Clone, Debug)]
struct Both {
    v4: String,
    v6: String,
}

impl Both {
    fn new(v4: impl Display, v6: impl Display) -> Self {
        Self {
            v4: v4.to_string(),
            v6: v6.to_string(),
        }
    }
}

/// The last part of the control plane's address on the network that joins the nodes.
const CONTROL_PLANE: usize = 1;

/// A node's is this and its number, from 1.
const NODES: usize = 10;

impl Family {
    /// In order of preference: what a list of addresses holds.
    fn of(self, both: Both) -> Vec<String> {
        match self {
            Self::V4 => vec![both.v4],
            Self::V6 => vec![both.v6],
            Self::Dual => vec![both.v4, both.v6],
        }
    }

    fn first(self, both: Both) -> String {
        match self {
            Self::V4 | Self::Dual => both.v4,
            Self::V6 => both.v6,
        }
    }

    /// Where all Services are.
    pub(super) fn services(self) -> Vec<String> {
        self.of(Both::new("10.96.0.0/16", "fd00:10:96::/112"))
    }

    /// The API server's addresses as a Service: the first of each range.
    pub(super) fn api_service(self) -> Vec<String> {
        self.of(Both::new("10.96.0.1", "fd00:10:96::1"))
    }

    /// The DNS Service's address.
    pub(super) fn dns(self) -> String {
        self.first(Both::new("10.96.0.10", "fd00:10:96::a"))
    }

    /// Where all pods are.
    pub(super) fn pods(self) -> Vec<String> {
        self.of(Both::new("10.244.0.0/16", "fd00:10:244::/48"))
    }

    /// Where the pods of node `number` are.
    pub(super) fn pods_of(self, number: usize) -> Vec<String> {
        self.of(Both::new(
            format_args!("10.244.{number}.0/24"),
            format_args!("fd00:10:244:{number:x}::/64"),
        ))
    }

    /// Where everything is.
    pub(super) fn anywhere(self) -> Vec<String> {
        self.of(Both::new("0.0.0.0/0", "::/0"))
    }

    /// The control plane's addresses, where the API server is.
    pub(super) fn control_plane(self) -> Vec<String> {
        self.of(on_the_fabric(CONTROL_PLANE))
    }

    /// Addresses of node `number`.
    pub(super) fn node(self, number: usize) -> Vec<String> {
        self.of(on_the_fabric(NODES + number))
    }

    /// How others reach the API server.
    pub(super) fn api_url(self) -> String {
        let both = on_the_fabric(CONTROL_PLANE);
        let v6 = format!("[{}]", both.v6);
        format!("https://{}:6443", self.first(Both::new(both.v4, v6)))
    }
}

fn on_the_fabric(last: usize) -> Both {
    Both::new(
        format_args!("172.30.0.{last}"),
        format_args!("fd00:172:30::{last:x}"),
    )
}

/// An address with the length of its network's prefix, as `ip` takes it.
fn on_link(address: &str) -> String {
    let length = if address.contains(':') { 64 } else { 24 };
    format!("{address}/{length}")
}

/// `ip -batch` lines for the control plane: the bridge that joins the nodes.
pub(super) fn fabric(family: Family) -> Vec<String> {
    let mut lines = vec![
        "link set lo up".to_owned(),
        "link add fabric type bridge".to_owned(),
        "link set fabric up".to_owned(),
    ];
    lines.extend(addresses(&family.control_plane(), "fabric"));
    lines
}

/// Lines for the control plane: a node's cable, whose other end is in the namespace of process
/// `pid`, and the way to its pods.
pub(super) fn cable(family: Family, number: usize, pid: u32) -> Vec<String> {
    let mut lines = vec![
        format!("link add node{number} type veth peer name eth0 netns {pid}"),
        format!("link set node{number} master fabric up"),
    ];
    lines.extend(way_to(family, number));
    lines
}

/// Lines for node `number` of `nodes`: its end of the cable and the ways to the others' pods.
pub(super) fn node(family: Family, number: usize, nodes: usize) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
    lines.extend(addresses(&family.node(number), "eth0"));
    for gateway in family.control_plane() {
        lines.push(format!("route add default via {gateway}"));
    }
    for other in (1..=nodes).filter(|&other| other != number) {
        lines.extend(way_to(family, other));
    }
    lines
}

fn addresses(addresses: &[String], interface: &str) -> Vec<String> {
    let lines = addresses.iter().map(|address| {
        // Nobody else is there: no need to ask whether the address is taken.
        let nodad = if address.contains(':') { " nodad" } else { "" };
        format!("address add {} dev {interface}{nodad}", on_link(address))
    });
    lines.collect()
}

/// Through a node, to its pods.
fn way_to(family: Family, number: usize) -> Vec<String> {
    let gateways = family.node(number);
    let ranges = family.pods_of(number).into_iter().zip(gateways);
    ranges
        .map(|(range, gateway)| format!("route add {range} via {gateway}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_has_addresses_of_its_own_kind_only() {
        for (family, v4, v6) in [
            (Family::V4, true, false),
            (Family::V6, false, true),
            (Family::Dual, true, true),
        ] {
            let all = [
                family.services(),
                family.pods(),
                family.pods_of(3),
                family.node(2),
                node(family, 1, 3),
                fabric(family),
                cable(family, 2, 77),
            ];
            for lines in all {
                let has = |end: &str| lines.iter().any(|line| line.contains(end));
                assert_eq!(has("10.") || has("172."), v4, "{lines:?}");
                assert_eq!(has("::"), v6, "{lines:?}");
            }
        }
    }

    #[test]
    fn a_node_reaches_the_others_pods_through_them_and_its_own_by_itself() {
        let lines = node(Family::V4, 2, 3).join("\n");
        assert!(lines.contains("route add 10.244.1.0/24 via 172.30.0.11"));
        assert!(lines.contains("route add 10.244.3.0/24 via 172.30.0.13"));
        assert!(!lines.contains("10.244.2.0"), "{lines}");
    }

    #[test]
    fn an_ipv6_api_server_stands_in_brackets() {
        assert_eq!(Family::V6.api_url(), "https://[fd00:172:30::1]:6443");
        assert_eq!(Family::Dual.api_url(), "https://172.30.0.1:6443");
    }
}
