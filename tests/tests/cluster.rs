//! Picket in a real cluster: pods that a kubelet starts, policies that an API server takes, traffic
//! between nodes. `cargo xtask test e2e` runs these.

use std::env;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{self, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests::lab::wait_until;

/// Upstream's test server, which every node has.
const IMAGE: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";

/// What anything in a cluster may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// How often a refused connection is tried again: it must never succeed.
const TRIES: usize = 2;

/// A namespace of this test alone, gone with it.
struct Namespace {
    name: String,
}

/// What came of a connection, in agnhost's words.
#[derive(Debug, Eq, PartialEq)]
enum Fate {
    Connected,
    TimedOut,
    Other(String),
}

impl Namespace {
    fn new(test: &str) -> Result<Self> {
        let name = format!("{test}-{}", process::id());
        let namespace = Self { name };
        kubectl(&["create", "namespace", &namespace.name], "")?;
        // Pods can only be made where their account is.
        wait_until("the account of pods", PATIENCE, || {
            namespace.kubectl(&["get", "serviceaccount", "default"])
        })?;
        Ok(namespace)
    }

    fn kubectl(&self, args: &[&str]) -> Result<String> {
        let namespace = ["--namespace", self.name.as_str()];
        kubectl(&[&namespace, args].concat(), "")
    }

    fn apply(&self, object: &Value) -> Result<()> {
        let apply = ["--namespace", self.name.as_str(), "apply", "-f", "-"];
        kubectl(&apply, &object.to_string()).map(drop)
    }

    /// A server and a client on every node.
    fn populate(&self) -> Result<()> {
        let server = ["netexec", "--http-port=8080"];
        let ready = json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1});
        for (name, args, probe) in [
            ("server", server.as_slice(), ready),
            ("client", &["pause"], Value::Null),
        ] {
            self.apply(&json!({
                "apiVersion": "apps/v1",
                "kind": "DaemonSet",
                "metadata": {"name": name},
                "spec": {
                    "selector": {"matchLabels": {"app": name}},
                    "template": {
                        "metadata": {"labels": {"app": name}},
                        "spec": {
                            "terminationGracePeriodSeconds": 0,
                            "containers": [{
                                "name": "it",
                                "image": IMAGE,
                                "args": args,
                                "readinessProbe": probe,
                            }],
                        },
                    },
                },
            }))?;
        }
        self.apply(&json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "server"},
            "spec": {
                "selector": {"app": "server"},
                "ipFamilyPolicy": "PreferDualStack",
                "ports": [{"port": 80, "targetPort": 8080}],
            },
        }))?;
        for name in ["server", "client"] {
            let set = format!("daemonset/{name}");
            self.kubectl(&["rollout", "status", &set, "--timeout=60s"])?;
        }
        Ok(())
    }

    /// The pods of an app: name, and addresses as they stand before a port.
    fn pods(&self, app: &str) -> Result<Vec<(String, Vec<String>)>> {
        let selector = format!("app={app}");
        let list = self.kubectl(&["get", "pods", "-l", &selector, "-o", "json"])?;
        let list: Value = serde_json::from_str(&list).context("reading the list of pods")?;
        let items = list.get("items").and_then(Value::as_array);
        let items = items.context("a list without items")?;
        let pods = items.iter().map(|pod| {
            let name = pod.pointer("/metadata/name").and_then(Value::as_str);
            let name = name.unwrap_or_default();
            let addresses = pod.pointer("/status/podIPs").and_then(Value::as_array);
            let addresses = addresses.into_iter().flatten();
            let addresses = addresses.filter_map(|address| {
                let address = address.get("ip")?.as_str()?;
                Some(if address.contains(':') {
                    format!("[{address}]")
                } else {
                    address.to_owned()
                })
            });
            (name.to_owned(), addresses.collect())
        });
        Ok(pods.collect())
    }

    /// What comes of a connection from a pod.
    fn connect(&self, pod: &str, to: &str) -> Fate {
        let connect = ["exec", pod, "--", "/agnhost", "connect", "--timeout=1s", to];
        match self.kubectl(&connect) {
            Ok(_) => Fate::Connected,
            Err(error) if error.to_string().contains("TIMEOUT") => Fate::TimedOut,
            Err(error) => Fate::Other(error.to_string()),
        }
    }

    /// From every client to every server's addresses and to the Service, on all nodes.
    fn ways(&self) -> Result<Vec<(String, String)>> {
        let mut targets = vec!["server:80".to_owned()];
        for (_, addresses) in self.pods("server")? {
            targets.extend(addresses.iter().map(|address| format!("{address}:8080")));
        }
        let mut ways = Vec::new();
        for (client, _) in self.pods("client")? {
            ways.extend(targets.iter().map(|to| (client.clone(), to.clone())));
        }
        ensure!(ways.len() >= 6, "two nodes at least: {ways:?}");
        Ok(ways)
    }

    /// Waits until each way has this fate.
    fn all_become(&self, ways: &[(String, String)], fate: &Fate) -> Result<()> {
        for (client, to) in ways {
            let what = format!("{client} to {to}: {fate:?}");
            wait_until(&what, PATIENCE, || {
                let now = self.connect(client, to);
                ensure!(now == *fate, "{now:?}");
                Ok(())
            })?;
        }
        Ok(())
    }

    fn isolate_servers(&self) -> Result<()> {
        self.policy("isolate", &json!([]))
    }

    fn policy(&self, name: &str, ingress: &Value) -> Result<()> {
        self.apply(&json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name},
            "spec": {
                "podSelector": {"matchLabels": {"app": "server"}},
                "policyTypes": ["Ingress"],
                "ingress": ingress,
            },
        }))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(kubectl(
            &["delete", "namespace", &self.name, "--wait=false"],
            "",
        ));
    }
}

/// kubectl of the cluster that `cargo xtask test e2e` has started.
fn kubectl(args: &[&str], input: &str) -> Result<String> {
    let parts = env::var_os("PICKET_CLUSTER_PARTS").map(PathBuf::from);
    let (Some(parts), Some(_)) = (parts, env::var_os("KUBECONFIG")) else {
        bail!("these tests need a cluster: `cargo xtask test e2e` starts one for them");
    };
    let mut child = Command::new(parts.join("kubectl"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting kubectl")?;
    let mut stdin = child.stdin.take().context("kubectl has no stdin")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    bail!("kubectl {}: {said}{complaint}", args.join(" "))
}

#[test]
#[ignore = "needs a cluster: cargo xtask test e2e"]
fn without_policy_all_pods_reach_all_pods_and_services() -> Result<()> {
    let namespace = Namespace::new("open")?;
    namespace.populate()?;
    namespace.all_become(&namespace.ways()?, &Fate::Connected)
}

#[test]
#[ignore = "needs a cluster: cargo xtask test e2e"]
fn a_policy_holds_between_all_nodes_until_it_goes() -> Result<()> {
    let namespace = Namespace::new("policy")?;
    namespace.populate()?;
    let ways = namespace.ways()?;
    namespace.all_become(&ways, &Fate::Connected)?;
    namespace.isolate_servers()?;
    namespace.all_become(&ways, &Fate::TimedOut)?;
    for _ in 0..TRIES {
        for (client, to) in &ways {
            assert_eq!(
                namespace.connect(client, to),
                Fate::TimedOut,
                "{client} to {to}"
            );
        }
    }
    let from_clients = json!([{
        "from": [{"podSelector": {"matchLabels": {"app": "client"}}}],
        "ports": [{"port": 8080}],
    }]);
    namespace.policy("admit", &from_clients)?;
    namespace.all_become(&ways, &Fate::Connected)?;
    namespace.kubectl(&["delete", "networkpolicy", "admit"])?;
    namespace.all_become(&ways, &Fate::TimedOut)?;
    namespace.kubectl(&["delete", "networkpolicy", "isolate"])?;
    namespace.all_become(&ways, &Fate::Connected)
}

#[test]
#[ignore = "needs a cluster: cargo xtask test e2e"]
fn isolated_pods_stay_ready_and_answer_exec_and_logs() -> Result<()> {
    let namespace = Namespace::new("node")?;
    namespace.isolate_servers()?;
    // Their first probe comes when the policy is in force: no probe, no readiness.
    namespace.populate()?;
    let ways = namespace.ways()?;
    namespace.all_become(&ways, &Fate::TimedOut)?;
    for (server, _) in namespace.pods("server")? {
        let said = namespace.kubectl(&["exec", &server, "--", "hostname"])?;
        assert_eq!(said.trim(), server);
        let probes = || -> Result<usize> {
            let log = namespace.kubectl(&["logs", &server])?;
            Ok(log.matches("GET /healthz").count())
        };
        let before = probes()?;
        wait_until("further probes", PATIENCE, || {
            let now = probes()?;
            ensure!(now > before + 2, "{now} after {before}");
            Ok(())
        })?;
        let ready = [
            "get",
            "pod",
            &server,
            "-o",
            "jsonpath={.status.containerStatuses[0].ready}",
        ];
        assert_eq!(namespace.kubectl(&ready)?, "true", "{server}");
    }
    Ok(())
}
