//! Where pods ask for names, and what policies have to allow for it.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use super::{Check, Finding};

/// Where kubeadm and most others have the kubelet's configuration.
const KUBELET: &str = "var/lib/kubelet/config.yaml";
/// The interface that a node-local cache (`NodeLocal DNSCache`) makes, and the address that its
/// manifests propose.
const CACHE_LINK: &str = "nodelocaldns";
const CACHE: &str = "169.254.20.10";

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
            link == CACHE_LINK || address.to_string() == CACHE || is_server()
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
            all.join(", ")
        };
        if !self.cache.is_empty() {
            return Finding::warning(
                Check::Dns,
                format!(
                    "a node-local cache answers at {}: to policy the node, not a pod of the \
                     cluster's DNS",
                    listed(&self.cache)
                ),
                format!(
                    "where egress is isolated, allow UDP and TCP 53 to {} by ipBlock, too",
                    listed(&self.cache)
                ),
            );
        }
        match self.servers.as_deref() {
            None => Finding::unknown(
                Check::Dns,
                "no configuration of the kubelet is seen, nor a node-local cache",
                "run it with --root where the node's files are below another directory",
            ),
            Some([]) => Finding::ok(Check::Dns, "the kubelet names no server of the cluster's"),
            Some(servers) => Finding::warning(
                Check::Dns,
                format!(
                    "pods ask {}, a Service: judged by its address, not yet by the pods behind it",
                    listed(servers)
                ),
                format!(
                    "where egress is isolated, allow UDP and TCP 53 to {} by ipBlock, beside the \
                     DNS pods",
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
    fn what_the_kubelet_tells_pods_is_what_policies_have_to_allow() {
        let finding = judged(Some(CONFIG), &[("eth0", "10.0.0.1")]);
        let Judgement::Warning(remedy) = finding.judgement else {
            panic!("{finding:?}");
        };
        assert!(
            remedy.contains("TCP 53 to 10.96.0.10 by ipBlock"),
            "{remedy}"
        );
        let none = judged(Some("kind: KubeletConfiguration\n"), &[]);
        assert_eq!(none.judgement, Judgement::Ok);
        assert!(matches!(judged(None, &[]).judgement, Judgement::Unknown(_)));
    }

    #[test]
    fn a_node_local_cache_is_found_by_its_link_its_address_or_as_the_clusters_server() {
        for (kubelet, link, address) in [
            (None, "nodelocaldns", "10.96.0.10"),
            (None, "lo", "169.254.20.10"),
            (Some(CONFIG), "dummy0", "10.96.0.10"),
        ] {
            let finding = judged(kubelet, &[("eth0", "10.0.0.1"), (link, address)]);
            assert!(
                matches!(finding.judgement, Judgement::Warning(_)),
                "{finding:?}"
            );
            assert!(
                finding
                    .found
                    .contains(&format!("cache answers at {address}:")),
                "{finding:?}"
            );
        }
    }
}
