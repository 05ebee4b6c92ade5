//! What a test has of the cluster: a namespace of its own, which goes with it, and kubectl in it.

use std::env;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{self, Command, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests::api_server::PARTS;
use tests::lab::wait_until;

/// Upstream's test server, which every node has.
pub(crate) const IMAGE: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";

/// What anything in a cluster may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Held for writing by tests that end agents: others would be disturbed.
static AGENTS: RwLock<()> = RwLock::new(());

/// A namespace of this test alone, gone with it.
pub(crate) struct Namespace {
    name: String,
    _agents: Agents,
}

/// What a test may do to the agents while it runs; released as its namespace goes.
enum Agents {
    /// They are everybody's.
    Shared {
        _guard: RwLockReadGuard<'static, ()>,
    },
    /// No other test runs.
    Alone {
        _guard: RwLockWriteGuard<'static, ()>,
    },
}

/// What came of a connection, in agnhost's words.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Fate {
    Connected,
    TimedOut,
    Other(String),
}

impl Namespace {
    pub(crate) fn new(test: &str) -> Result<Self> {
        let guard = AGENTS.read().unwrap_or_else(PoisonError::into_inner);
        Self::with(test, Agents::Shared { _guard: guard })
    }

    /// One for a test that other tests must not run beside.
    pub(crate) fn alone(test: &str) -> Result<Self> {
        let guard = AGENTS.write().unwrap_or_else(PoisonError::into_inner);
        Self::with(test, Agents::Alone { _guard: guard })
    }

    fn with(test: &str, agents: Agents) -> Result<Self> {
        let name = format!("{test}-{}", process::id());
        let namespace = Self {
            name,
            _agents: agents,
        };
        kubectl(&["create", "namespace", &namespace.name], "")?;
        // Pods can only be made where their account is.
        wait_until("the account of pods", PATIENCE, || {
            namespace.kubectl(&["get", "serviceaccount", "default"])
        })?;
        Ok(namespace)
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_with(args, "")
    }

    pub(crate) fn apply(&self, object: &Value) -> Result<()> {
        self.kubectl_with(&["apply", "-f", "-"], &object.to_string())
            .map(drop)
    }

    /// The same, with something to read.
    pub(crate) fn kubectl_with(&self, args: &[&str], input: &str) -> Result<String> {
        let namespace = ["--namespace", self.name.as_str()];
        kubectl(&[&namespace, args].concat(), input)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Several at once.
    pub(crate) fn apply_all(&self, objects: &[Value]) -> Result<()> {
        self.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}))
    }

    /// The pods that have these labels.
    pub(crate) fn pods_with(&self, labels: &str) -> Result<Vec<Value>> {
        let said = self.kubectl(&["get", "pods", "-l", labels, "-o", "json"])?;
        let mut said: Value = serde_json::from_str(&said).context("reading the list of pods")?;
        serde_json::from_value(said["items"].take()).context("reading the list of pods")
    }

    /// Two nodes that pods come to, by name.
    pub(crate) fn two_nodes(&self) -> Result<[String; 2]> {
        let control_plane = "!node-role.kubernetes.io/control-plane";
        let names = "jsonpath={.items[*].metadata.name}";
        let said = self.kubectl(&["get", "nodes", "-l", control_plane, "-o", names])?;
        let mut names = said.split_whitespace().map(str::to_owned);
        let two = names.next().zip(names.next());
        let (one, other) = two.context("these tests need two nodes that pods come to")?;
        Ok([one, other])
    }

    /// A server and a client on every node.
    pub(crate) fn populate(&self) -> Result<()> {
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

    /// Waits until every pod is ready.
    pub(crate) fn all_ready(&self) -> Result<()> {
        let wait = ["wait", "--for=condition=Ready", "pod", "--all"];
        self.kubectl(&[wait.as_slice(), &["--timeout=60s"]].concat())?;
        Ok(())
    }

    /// The pods of an app: name, and addresses as they stand before a port.
    pub(crate) fn pods(&self, app: &str) -> Result<Vec<(String, Vec<String>)>> {
        let pods = self.pods_with(&format!("app={app}"))?;
        let pods = pods.iter().map(|pod| {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let addresses = pod["status"]["podIPs"].as_array().into_iter().flatten();
            let addresses =
                addresses.filter_map(|address| Some(bracketed(address["ip"].as_str()?)));
            (name.to_owned(), addresses.collect())
        });
        Ok(pods.collect())
    }

    /// What comes of a connection from a pod.
    pub(crate) fn connect(&self, pod: &str, to: &str) -> Fate {
        let connect = ["exec", pod, "--", "/agnhost", "connect", "--timeout=1s", to];
        match self.kubectl(&connect) {
            Ok(_) => Fate::Connected,
            Err(error) if error.to_string().contains("TIMEOUT") => Fate::TimedOut,
            Err(error) => Fate::Other(error.to_string()),
        }
    }

    /// From every client to every server's addresses and to the Service, on all nodes.
    pub(crate) fn ways(&self) -> Result<Vec<(String, String)>> {
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
    pub(crate) fn all_become(&self, ways: &[(String, String)], fate: &Fate) -> Result<()> {
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

    pub(crate) fn isolate_servers(&self) -> Result<()> {
        self.policy("isolate", &json!([]))
    }

    pub(crate) fn policy(&self, name: &str, ingress: &Value) -> Result<()> {
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

/// kubectl, as the administrator of the cluster that is tested. It is one of the cluster's parts, or,
/// where the cluster was not made of any, on the PATH.
pub(crate) fn kubectl_command() -> Result<Command> {
    ensure!(
        env::var_os("KUBECONFIG").is_some(),
        "these tests need a cluster: `cargo xtask test e2e` starts one for them"
    );
    let parts = env::var_os(PARTS).map(PathBuf::from).unwrap_or_default();
    Ok(Command::new(parts.join("kubectl")))
}

/// What it prints.
pub(crate) fn kubectl(args: &[&str], input: &str) -> Result<String> {
    let mut child = kubectl_command()?
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

/// An address as it stands before a port.
pub(crate) fn bracketed(address: &str) -> String {
    if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    }
}
