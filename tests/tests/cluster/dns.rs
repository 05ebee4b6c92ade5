//! Names, by the rule that everybody writes: to the cluster's DNS pods. At the DNS Service's address,
//! and at a cache on each node, as `NodeLocal DNSCache` is one: it answers at a link-local address and,
//! in the DNS Service's place, at that one's.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::lab::wait_until;

use super::host::{self, Process, join};
use super::namespace::{IMAGE, Namespace, PATIENCE, kubectl};

/// How long the cache waits for a question, or for the answer to one.
const LOOK: Duration = Duration::from_millis(500);
const NAME: &str = "kubernetes.default.svc.cluster.local";
/// What the cache has the node's netfilter leave alone, as upstream's does.
const TABLE: &str = "picket-test-dns";

/// A stand-in on one node, gone with the value: it keeps nothing, and asks the cluster's DNS.
struct Cache {
    kubelet: Process,
    addresses: Vec<IpAddr>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Cache {
    fn start(node: &str, addresses: &[IpAddr], server: SocketAddr) -> Result<Self> {
        let mut cache = Self {
            kubelet: host::kubelet_of(node)?,
            addresses: addresses.to_vec(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for address in addresses {
            cache.on_node(&[
                "ip",
                "address",
                "replace",
                &host_prefix(*address),
                "dev",
                "lo",
            ])?;
        }
        cache.on_node(&["nft", &untracked(addresses)])?;
        for &address in addresses {
            let stop = Arc::clone(&cache.stop);
            cache.threads.push(cache.kubelet.inside(move || {
                let at = SocketAddr::new(address, 53);
                let asked = UdpSocket::bind(at).with_context(|| format!("binding {at}"))?;
                let any = if server.is_ipv4() {
                    "0.0.0.0:0"
                } else {
                    "[::]:0"
                };
                let asks = UdpSocket::bind(any)?;
                asks.connect(server)?;
                for socket in [&asked, &asks] {
                    socket.set_read_timeout(Some(LOOK))?;
                }
                forward(&asked, &asks, &stop)
            })?);
        }
        Ok(cache)
    }

    /// Runs a command in the node's network.
    fn on_node(&self, words: &[&str]) -> Result<()> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.kubelet.id()));
        let output = command.args(words).stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {said}", words.join(" "));
        Ok(())
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // What stopped it, the test's questions have shown.
            drop(join(thread));
        }
        drop(self.on_node(&["nft", &format!("delete table inet {TABLE}")]));
        for address in &self.addresses {
            let gone = [
                "ip",
                "address",
                "delete",
                &host_prefix(*address),
                "dev",
                "lo",
            ];
            drop(self.on_node(&gone));
        }
    }
}

/// Hands on each question, and its answer.
fn forward(asked: &UdpSocket, asks: &UdpSocket, stop: &AtomicBool) -> Result<()> {
    let mut bytes = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        // None in time, or somebody's question that went unanswered.
        let Ok((length, from)) = asked.recv_from(&mut bytes) else {
            continue;
        };
        asks.send(bytes.get(..length).unwrap_or_default())?;
        if let Ok(length) = asks.recv(&mut bytes) {
            asked.send_to(bytes.get(..length).unwrap_or_default(), from)?;
        }
    }
    Ok(())
}

fn host_prefix(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

/// Neither tracked nor translated: what is for the Service stays on the node.
fn untracked(addresses: &[IpAddr]) -> String {
    let rules = |side: &str, port: &str| -> String {
        let rules = addresses.iter().map(|address| {
            let family = if address.is_ipv4() { "ip" } else { "ip6" };
            format!("{family} {side} {address} udp {port} 53 notrack; ")
        });
        rules.collect()
    };
    let (to, from) = (rules("daddr", "dport"), rules("saddr", "sport"));
    format!(
        "table inet {TABLE} {{ \
         chain to {{ type filter hook prerouting priority raw; {to} }}; \
         chain from {{ type filter hook output priority raw; {from} }}; }}"
    )
}

fn said(args: &[&str]) -> Result<IpAddr> {
    let said = kubectl(args, "")?;
    said.parse()
        .with_context(|| format!("{}: {said:?}", args.join(" ")))
}

/// A pod whose resolver is the cache at this address.
fn pod(role: &str, place: usize, cache: IpAddr, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("{role}-{place}"), "labels": {"role": role}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            "dnsPolicy": "None", "dnsConfig": {"nameservers": [cache]},
            "containers": [{"name": "c", "image": IMAGE, "args": ["pause"]}],
        },
    })
}

fn policy(role: &str, egress: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": role},
        "spec": {
            "podSelector": {"matchLabels": {"role": role}},
            "policyTypes": ["Ingress", "Egress"], "egress": egress,
        },
    })
}

#[test]
fn names_are_for_whom_policy_lets_reach_the_dns_pods_with_a_cache_on_the_node_and_without()
-> Result<()> {
    let namespace = Namespace::new("dns-cache")?;
    let [node, _] = namespace.two_nodes()?;
    let dns = ["--namespace", "kube-system", "get"];
    let of_service = ["service", "kube-dns", "-o", "jsonpath={.spec.clusterIP}"];
    let of_pod = [
        "pod",
        "-l",
        "k8s-app=kube-dns",
        "-o",
        "jsonpath={.items[0].status.podIP}",
    ];
    let service = said(&[dns.as_slice(), &of_service].concat())?;
    let server = SocketAddr::new(said(&[dns.as_slice(), &of_pod].concat())?, 53);
    let of_api = [
        "get",
        "service",
        "kubernetes",
        "-o",
        "jsonpath={.spec.clusterIP}",
    ];
    let api = said(&of_api)?.to_string();
    // Upstream's default, which agents know; IPv6 has none.
    let mut caches = vec![service];
    if service.is_ipv4() {
        caches.push("169.254.20.10".parse()?);
    }
    let block = json!([{"ipBlock": {"cidr": host_prefix(service)}}]);
    let pods = json!([{
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    }]);
    let to = |peers: &Value, port: u16| json!([{"to": peers, "ports": [{"protocol": "UDP", "port": port}]}]);
    let roles = [
        ("open", Value::Null, true),
        ("closed", json!([]), false),
        ("admitted", to(&pods, 53), true),
        ("elsewhere", to(&pods, 5353), false),
        // The Service is who is behind it, not its address.
        ("by-address", to(&block, 53), false),
    ];
    let mut objects = Vec::new();
    for (role, egress, _) in &roles {
        if !egress.is_null() {
            objects.push(policy(role, egress));
        }
        let pods = caches.iter().enumerate();
        objects.extend(pods.map(|(place, cache)| pod(role, place, *cache, &node)));
    }
    namespace.apply_all(&objects)?;
    namespace.all_ready()?;
    let cached = Cache::start(&node, &caches, server)?;
    ask_all(&namespace, &roles, &caches, &api)?;
    // Without it the Service's address is its proxy's again.
    drop(cached);
    ask_all(&namespace, &roles, &caches[..1], &api)
}

/// Has each role's pods ask each resolver.
fn ask_all(
    namespace: &Namespace,
    roles: &[(&str, Value, bool)],
    resolvers: &[IpAddr],
    api: &str,
) -> Result<()> {
    let type_of = if api.contains(':') {
        "-type=aaaa"
    } else {
        "-type=a"
    };
    let question = ["timeout", "3", "nslookup", type_of, NAME];
    let asks = |role: &str, place: usize| {
        let pod = format!("{role}-{place}");
        let answer = namespace.kubectl(&[&["exec", &pod, "--"], question.as_slice()].concat())?;
        ensure!(answer.contains(api), "{pod}: {answer}");
        Ok(())
    };
    for (role, _, is_answered) in roles {
        for (place, cache) in resolvers.iter().enumerate() {
            if *is_answered {
                wait_until(&format!("an answer of {cache} to {role}"), PATIENCE, || {
                    asks(role, place)
                })?;
            } else {
                let answer = asks(role, place);
                assert!(answer.is_err(), "{cache} has answered {role}");
            }
        }
    }
    Ok(())
}
