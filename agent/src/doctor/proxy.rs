//! What serves Services on this node, and whether that works between pods of one bridge.

mod nft;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use super::{Check, Finding};
use crate::plugin::NodeNetwork;

/// Where kube-proxy says its mode (`metricsBindAddress`).
const AT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10_249);
/// How long it may take to answer.
const WITHIN: Duration = Duration::from_millis(500);
/// The interface of the mode that is gone in Kubernetes to come.
const IPVS_LINK: &str = "kube-ipvs0";
/// Whether packets between ports of a bridge meet iptables; there with `br_netfilter` alone.
const BRIDGE_CALLS: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
/// Plugins that join pods by a bridge.
const BRIDGING: [&str; 2] = ["bridge", "flannel"];

/// What was read of it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Proxy {
    /// Its mode in its own word, and how that is known; `None` where there is no sign of one.
    mode: Option<(String, &'static str)>,
    /// What the bridge's switch says; `None` without `br_netfilter`.
    bridge_calls: Option<String>,
}

impl Proxy {
    pub(super) fn read() -> Self {
        let by_word = || Some((ask(AT).ok()?, "by its own word"));
        let by_link = || {
            let link = nix::net::if_::if_nametoindex(IPVS_LINK).ok();
            link.map(|_index| ("ipvs".to_owned(), "by its interface"))
        };
        let by_rules = || Some((mode_of(&nft::chains().ok()?)?.to_owned(), "by its rules"));
        let calls = fs::read_to_string(BRIDGE_CALLS).ok();
        Self {
            mode: by_word().or_else(by_link).or_else(by_rules),
            bridge_calls: calls.map(|calls| calls.trim().to_owned()),
        }
    }

    pub(super) fn judge(&self, network: Option<&NodeNetwork>) -> Vec<Finding> {
        let mut findings = vec![self.judge_mode()];
        let bridges = |network: &NodeNetwork| {
            let mut plugins = network.plugins.iter();
            plugins.any(|plugin| BRIDGING.contains(&plugin.as_str()))
        };
        if network.is_some_and(bridges) {
            findings.push(self.judge_bridge());
        }
        findings
    }

    fn judge_mode(&self) -> Finding {
        match &self.mode {
            Some((mode, how)) if mode == "nftables" => Finding::ok(
                Check::Proxy,
                format!("nftables, {how}; it serves no NodePort at 127.0.0.1"),
            ),
            Some((mode, how)) => Finding::ok(Check::Proxy, format!("{mode}, {how}")),
            None => Finding::unknown(
                Check::Proxy,
                format!("no sign of one: none answers at {AT}, and none of its rules is there"),
                "nothing, where something else serves Services; else run picket doctor in the \
                 node's network (hostNetwork: true)",
            ),
        }
    }

    fn judge_bridge(&self) -> Finding {
        if self.bridge_calls.as_deref() == Some("1") {
            return Finding::ok(
                Check::Bridge,
                "br_netfilter is on: Services reach pods of the same bridge",
            );
        }
        let found = "br_netfilter is off: a Service does not reach a pod of the client's own \
                     bridge, whatever policy says: the answer bypasses the Service's address";
        let remedy = "modprobe br_netfilter, and sysctl -w net.bridge.bridge-nf-call-iptables=1 \
                      net.bridge.bridge-nf-call-ip6tables=1, both for good";
        if self.mode.is_some() {
            Finding::problem(Check::Bridge, found, remedy)
        } else {
            Finding::warning(Check::Bridge, found, remedy)
        }
    }
}

/// Asks kube-proxy for its mode.
fn ask(at: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&at, WITHIN)?;
    stream.set_read_timeout(Some(WITHIN))?;
    // HTTP/1.0: the answer ends with the connection.
    write!(stream, "GET /proxyMode HTTP/1.0\r\nHost: {at}\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer)?;
    let (head, word) = answer
        .split_once("\r\n\r\n")
        .ok_or(io::ErrorKind::InvalidData)?;
    let is_word = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if head.split(' ').nth(1) != Some("200") || !is_word {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(word.to_owned())
}

/// Whose rules these are, by (table, chain).
fn mode_of(chains: &[(String, String)]) -> Option<&'static str> {
    let has = |is_it: fn(&(String, String)) -> bool| chains.iter().any(is_it);
    if has(|(table, _)| table == "kube-proxy") {
        Some("nftables")
    } else if has(|(_, chain)| chain == "KUBE-SERVICES") {
        Some("iptables")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::Judgement;
    use super::*;

    fn network(plugin: &str) -> NodeNetwork {
        NodeNetwork {
            path: "/etc/cni/net.d/10-x.conflist".into(),
            name: "x".to_owned(),
            plugins: vec![plugin.to_owned()],
        }
    }

    fn proxy(mode: Option<&str>, bridge_calls: Option<&str>) -> Proxy {
        Proxy {
            mode: mode.map(|mode| (mode.to_owned(), "by its rules")),
            bridge_calls: bridge_calls.map(str::to_owned),
        }
    }

    #[test]
    fn pods_of_a_bridge_need_br_netfilter_for_services_and_routed_ones_do_not() {
        for plugin in ["bridge", "flannel"] {
            let bridge = |mode, calls| {
                let findings = proxy(mode, calls).judge(Some(&network(plugin)));
                findings.into_iter().nth(1).unwrap().judgement
            };
            assert_eq!(bridge(Some("iptables"), Some("1")), Judgement::Ok);
            for off in [None, Some("0")] {
                let judged = bridge(Some("nftables"), off);
                assert!(matches!(judged, Judgement::Problem(_)), "{judged:?}");
                let judged = bridge(None, off);
                assert!(matches!(judged, Judgement::Warning(_)), "{judged:?}");
            }
        }
        let routed = proxy(Some("iptables"), None).judge(Some(&network("ptp")));
        assert_eq!(routed.len(), 1, "{routed:?}");
    }

    #[test]
    fn no_sign_of_a_proxy_is_unknown_and_nftables_has_a_remark() {
        let mode = |mode| proxy(mode, None).judge_mode();
        assert!(matches!(mode(None).judgement, Judgement::Unknown(_)));
        assert!(
            mode(Some("nftables"))
                .found
                .contains("no NodePort at 127.0.0.1")
        );
        assert_eq!(mode(Some("ipvs")).found, "ipvs, by its rules");
    }

    #[test]
    fn rules_tell_whose_they_are() {
        let chain = |table: &str, chain: &str| vec![(table.to_owned(), chain.to_owned())];
        assert_eq!(mode_of(&chain("kube-proxy", "services")), Some("nftables"));
        assert_eq!(mode_of(&chain("nat", "KUBE-SERVICES")), Some("iptables"));
        assert_eq!(mode_of(&chain("filter", "INPUT")), None);
    }

    #[test]
    fn what_answers_otherwise_is_no_proxy() {
        let answered = |answer: &'static str| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let at = listener.local_addr().unwrap();
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = [0; 256];
                let length = stream.read(&mut asked).unwrap();
                assert!(asked[..length].starts_with(b"GET /proxyMode "));
                stream.write_all(answer.as_bytes()).unwrap();
            });
            let mode = ask(at);
            server.join().unwrap();
            mode.ok()
        };
        let said = "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nnftables";
        assert_eq!(answered(said).as_deref(), Some("nftables"));
        assert_eq!(answered("HTTP/1.0 404 Not Found\r\n\r\nnone"), None);
        assert_eq!(answered("HTTP/1.0 200 OK\r\n\r\n<html>"), None);
    }
}
