//! Where pods ask for names, and what policies have to allow for it.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use super::{Check, Finding};
use crate::config::DEFAULT_DNS_CACHE;

/// Where kubeadm and most others have the kubelet's configuration.
const KUBELET: &str = "var/lib/kubelet/config.yaml";
/// The interface that a node-local cache (`NodeLocal DNSCache`) makes.
const CACHE_LINK: &str = "nodelocaldns";

/// What was read of it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Names {
    /// What the kubelet tells pods; `None` where its configuration is not seen.
    servers: Option<Vec<IpAddr>>,
    /// Addresses of a cache on this node.
    cache: Vec<IpAddr>,
}

#[derive(serde::Deserialize)]
struct Kubelet {
    #[serde(default, rename = "clusterDNS")]
    cluster_dns: Vec<IpAddr>,
}

impl Names {
    pub(super) fn read(root: &Path) -> Self {
        let kubelet = fs::read_to_string(root.join(KUBELET)).ok();
        let own = nix::ifaddrs::getifaddrs().into_iter().flatten();
        let own: Vec<(String, IpAddr)> = own
            .filter_map(|one| {
                let address = one.address?;
                let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
                let v6 = || address.as_sockaddr_in6().map(|address| address.ip().into());
                Some((one.interface_name, v4.or_else(v6)?))
            })
            .collect();
        Self::of(kubelet.as_deref(), &own)
    }

    fn of(kubelet: Option<&str>, own: &[(String, IpAddr)]) -> Self {
        let kubelet = kubelet.and_then(|text| serde_saphyr::from_str::<Kubelet>(text).ok());
        let servers = kubelet.map(|kubelet| kubelet.cluster_dns);
        let is_cache = |(link, address): &&(String, IpAddr)| {
            let is_server = || servers.iter().flatten().any(|server| server == address);
            link == CACHE_LINK || address.to_string() == DEFAULT_DNS_CACHE || is_server()
        };
        let is_link_local = |address: &IpAddr| match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        let cache = own.iter().filter(is_cache).map(|(_, address)| *address);
        Self {
            cache: cache.filter(|address| !is_link_local(address)).collect(),
            servers,
        }
    }

    pub(super) fn judge(&self) -> Finding {
        let listed = |addresses: &[IpAddr]| {
            let all: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            all.join(",")
        };
        if !self.cache.is_empty() {
            let found = format!("a node-local cache answers at {}", listed(&self.cache));
            let servers = self.servers.as_deref().unwrap_or_default();
            // The agent is told of the usual one, and the Service's own address is the Service's.
            let is_known = |address: &IpAddr| {
                let is_own = matches!(address, IpAddr::V4(v4) if v4.is_link_local());
                address.to_string() == DEFAULT_DNS_CACHE || (servers.contains(address) && !is_own)
            };
            if self.cache.iter().all(is_known) {
                return Finding::ok(
                    Check::Dns,
                    format!("{found}: policy takes it for the DNS pods"),
                );
            }
            return Finding::warning(
                Check::Dns,
                format!("{found}: to policy the node, unless the agent is told of it"),
                format!("start the agent with --dns-cache {}", listed(&self.cache)),
            );
        }
        match self.servers.as_deref() {
            None => Finding::unknown(
                Check::Dns,
                "no configuration of the kubelet is seen, nor a node-local cache",
                "run it with --root where the node's files are below another directory",
            ),
            Some([]) => Finding::ok(Check::Dns, "the kubelet names no server of the cluster's"),
            Some(servers) => Finding::ok(
                Check::Dns,
                format!(
                    "pods ask {}: who may reach the pods behind it is answered",
                    listed(servers)
                ),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Judgement;
    use super::*;

    const CONFIG: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                          clusterDNS:\n- 10.96.0.10\nclusterDomain: cluster.local\n";

    fn judged(kubelet: Option<&str>, own: &[(&str, &str)]) -> Finding {
        let own: Vec<(String, IpAddr)> = own
            .iter()
            .map(|(link, address)| ((*link).to_owned(), address.parse().unwrap()))
            .collect();
        Names::of(kubelet, &own).judge()
    }

    #[test]
    fn the_clusters_service_needs_nothing_but_a_rule_for_its_pods() {
        let finding = judged(Some(CONFIG), &[("eth0", "10.0.0.1")]);
        assert_eq!(finding.judgement, Judgement::Ok);
        assert!(finding.found.contains("10.96.0.10"), "{finding:?}");
        let none = judged(Some("kind: KubeletConfiguration\n"), &[]);
        assert_eq!(none.judgement, Judgement::Ok);
        assert!(matches!(judged(None, &[]).judgement, Judgement::Unknown(_)));
    }

    #[test]
    fn a_node_local_cache_is_found_by_its_link_its_address_or_as_the_clusters_server() {
        for (kubelet, link, address, is_known) in [
            (None, "nodelocaldns", "10.96.0.10", false),
            (Some(CONFIG), "nodelocaldns", "10.99.0.1", false),
            (None, "lo", "169.254.20.10", true),
            (Some(CONFIG), "dummy0", "10.96.0.10", true),
        ] {
            let finding = judged(kubelet, &[("eth0", "10.0.0.1"), (link, address)]);
            let said = format!("cache answers at {address}:");
            assert!(finding.found.contains(&said), "{finding:?}");
            match finding.judgement {
                Judgement::Ok => assert!(is_known, "{address}"),
                Judgement::Warning(remedy) => {
                    assert!(!is_known, "{address}");
                    assert!(
                        remedy.contains(&format!("--dns-cache {address}")),
                        "{remedy}"
                    );
                }
                other @ (Judgement::Problem(_) | Judgement::Unknown(_)) => panic!("{other:?}"),
            }
        }
    }
}
