//! The way through a pod's own node, under default deny: port-forward, exec and logs bring what they
//! bring elsewhere, and the node's own processes reach the pod. Another node's are judged by address.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::lab::wait_until;

use super::host::{self, Process, join};
use super::namespace::{Fate, IMAGE, Namespace, PATIENCE, bracketed, kubectl_command};

/// More than any buffer on the way holds.
const BYTES: usize = 512 << 10;
/// What a connection may take that nothing forbids.
const TIMEOUT: Duration = Duration::from_secs(2);

fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "c", "image": IMAGE, "args": ["netexec", "--http-port=8080"],
                "readinessProbe":
                    {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1},
            }],
        },
    })
}

/// Two isolated pods on the first node, ready; the addresses of the one that serves.
fn isolated(namespace: &Namespace, node: &str) -> Result<Vec<SocketAddr>> {
    namespace.apply(&json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "default-deny"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
    }))?;
    namespace.apply_all(&[pod("server", node), pod("stranger", node)])?;
    namespace.all_ready()?;
    let pods = namespace.pods("server")?;
    let (_, addresses) = pods.first().context("the server")?;
    let addresses = addresses.iter().map(|address| format!("{address}:8080"));
    let addresses: Vec<SocketAddr> = addresses.map(|at| at.parse()).collect::<Result<_, _>>()?;
    // Policy is in force: nothing that follows is a matter of luck.
    for address in &addresses {
        let refused = namespace.connect("stranger", &address.to_string());
        assert_eq!(refused, Fate::TimedOut, "stranger to {address}");
    }
    Ok(addresses)
}

/// A forwarded port, until the value goes.
struct Forward {
    kubectl: Child,
    /// It says each connection, and ends where nobody listens.
    said: BufReader<ChildStdout>,
    at: SocketAddr,
}

impl Forward {
    fn begin(namespace: &Namespace, pod: &str, port: u16) -> Result<Self> {
        let mut kubectl = kubectl_command()?
            .args(["--namespace", namespace.name(), "port-forward"])
            .args([
                "--address=127.0.0.1",
                &format!("pod/{pod}"),
                &format!(":{port}"),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting kubectl port-forward")?;
        let stdout = kubectl.stdout.take().context("kubectl has no stdout")?;
        // Killed from here on, whatever it says.
        let mut forward = Self {
            kubectl,
            said: BufReader::new(stdout),
            at: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        };
        let mut line = String::new();
        forward.said.read_line(&mut line)?;
        let port = line.split_whitespace().find_map(|word| {
            let (_, port) = word.split_once("127.0.0.1:")?;
            port.parse().ok()
        });
        let port = port.with_context(|| format!("kubectl port-forward: {line}"))?;
        forward.at.set_port(port);
        Ok(forward)
    }

    /// What a server behind it answers.
    fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.at)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        ensure!(head.starts_with("HTTP/1.0 200"), "{path}: {answer}");
        Ok(body.to_owned())
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        drop(self.kubectl.kill());
        drop(self.kubectl.wait());
    }
}

#[test]
fn port_forward_exec_and_logs_bring_real_bytes_from_an_isolated_pod() -> Result<()> {
    let namespace = Namespace::new("through-node")?;
    let [node, _] = namespace.two_nodes()?;
    isolated(&namespace, &node)?;

    let forward = Forward::begin(&namespace, "server", 8080)?;
    assert_eq!(forward.get("/hostname")?, "server");
    let bytes = "a".repeat(BYTES);
    let answer = forward.get(&format!("/echo?msg={bytes}"))?;
    assert_eq!(answer.len(), bytes.len());

    let count = ["exec", "-i", "server", "--", "wc", "-c"];
    let counted = namespace.kubectl_with(&count, &bytes)?;
    assert_eq!(counted.trim(), BYTES.to_string());
    let say = format!("head -c {BYTES} /dev/zero | sed 's/./a/g'");
    let said = namespace.kubectl(&["exec", "server", "--", "sh", "-c", &say])?;
    assert_eq!(said.len(), BYTES);

    let log = namespace.kubectl(&["logs", "server"])?;
    // The server logs what it is asked.
    assert!(log.contains("GET /hostname"), "{log}");
    let long = log.lines().map(str::len).max().unwrap_or_default();
    assert!(long > BYTES, "the longest line has {long} bytes");
    Ok(())
}

fn connects(from: Process, to: SocketAddr) -> Result<()> {
    join(from.inside(move || {
        TcpStream::connect_timeout(&to, TIMEOUT)
            .map(drop)
            .with_context(|| format!("connecting to {to}"))
    })?)
}

#[test]
fn the_pods_own_node_reaches_it_and_another_only_as_policy_says() -> Result<()> {
    let namespace = Namespace::new("own-node")?;
    let [near, far] = namespace.two_nodes()?;
    let server = isolated(&namespace, &near)?;
    let (own, other) = (host::kubelet_of(&near)?, host::kubelet_of(&far)?);
    for &to in &server {
        connects(own, to)?;
        let refused = connects(other, to);
        assert!(refused.is_err(), "{far} reached {to}");
    }
    // The addresses that it comes from.
    let blocks = server.iter().map(|&to| {
        let ip = other.address_towards(to)?.ip();
        let length = if ip.is_ipv4() { 32 } else { 128 };
        Ok(json!({"ipBlock": {"cidr": format!("{ip}/{length}")}}))
    });
    let blocks = blocks.collect::<Result<Vec<Value>>>()?;
    namespace.policy("admit", &json!([{"from": blocks}]))?;
    for &to in &server {
        wait_until("the other node to be admitted", PATIENCE, || {
            connects(other, to)
        })?;
        let refused = namespace.connect(
            "stranger",
            &format!("{}:8080", bracketed(&to.ip().to_string())),
        );
        assert_eq!(refused, Fate::TimedOut, "stranger to {to}");
    }
    Ok(())
}
