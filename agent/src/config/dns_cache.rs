//! A DNS cache on the node, which pods ask in the place of the cluster's DNS.

use std::net::IpAddr;

use agent_policy::manifest;
use agent_policy::model::ObjectName;

use super::ConfigError;

/// Where `NodeLocal DNSCache` answers unless it is told otherwise (Kubernetes documentation, "Using
/// `NodeLocal DNSCache`").
pub const DEFAULT_DNS_CACHE: &str = "169.254.20.10";
/// The cluster's DNS Service as kubeadm and most others call it.
pub const DEFAULT_DNS_SERVICE: &str = "kube-system/kube-dns";

/// The node's cache: to policy its addresses are addresses of the cluster's DNS Service, so that a
/// rule for that one's pods holds for it, too.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DnsCache {
    /// Where it answers; nowhere when the node has none.
    pub addresses: Vec<IpAddr>,
    /// The Service that it stands for.
    pub service: ObjectName,
}

impl DnsCache {
    pub(super) fn parse(addresses: &[String], service: &str) -> Result<Self, ConfigError> {
        let stated = addresses.iter().filter(|text| !text.is_empty());
        let addresses = stated.map(|text| {
            let address = text.parse::<IpAddr>();
            address.map_err(|_error| ConfigError::DnsCacheAddress(text.clone()))
        });
        let is_name = |name: &&str| !name.is_empty() && manifest::identity(name).is_ok();
        let parts = service.split_once('/');
        let name = parts
            .filter(|(namespace, name)| is_name(namespace) && is_name(name))
            .ok_or_else(|| ConfigError::DnsService(service.to_owned()))?;
        Ok(Self {
            addresses: addresses.collect::<Result<_, _>>()?,
            service: ObjectName::new(name.0, name.1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(addresses: &[&str], service: &str) -> Result<DnsCache, String> {
        let addresses: Vec<String> = addresses.iter().map(|&text| text.to_owned()).collect();
        DnsCache::parse(&addresses, service).map_err(|error| error.to_string())
    }

    #[test]
    fn addresses_and_a_service_are_read() {
        let cache = parsed(&["169.254.20.10", "fd00::10"], "kube-system/kube-dns").unwrap();
        assert_eq!(cache.addresses.len(), 2);
        assert_eq!(cache.service.to_string(), "kube-system/kube-dns");
        let none = parsed(&[""], DEFAULT_DNS_SERVICE).unwrap();
        assert_eq!(none.addresses, [] as [IpAddr; 0]);
    }

    #[test]
    fn what_is_none_is_refused_by_name() {
        let refused = parsed(&["dns"], DEFAULT_DNS_SERVICE).unwrap_err();
        assert!(refused.starts_with("--dns-cache \"dns\""), "{refused}");
        for service in ["kube-dns", "/kube-dns", "kube-system/", "a/b/c", ""] {
            let refused = parsed(&[], service).unwrap_err();
            assert!(refused.starts_with("--dns-service"), "{service}: {refused}");
        }
    }
}
