//! A node that boots with the startup taint: no pod comes before policy is in force there, however
//! long its agent takes.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::lab::wait_until;

use super::deployment::{self, Changed};
use super::first_act::{address, servers};
use super::host::{self, Process, join};
use super::namespace::{IMAGE, Namespace, PATIENCE, kubectl};

const PODS: usize = 5;
const TAINT: &str = "picket.dev/agent-not-ready";
/// An option of kubelet.
const REGISTER: &str = "--register-with-taints";

/// A node that is down: no kubelet, no agent, nothing of Picket's in its kernel, and nobody in the
/// cluster knows it. It comes back with the value's end at the latest.
struct Down {
    node: String,
    /// What goes on all the while: containers are its own business.
    runtime: Process,
    kubelet: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    /// Of the `Node`, which nobody would write again.
    ranges: Value,
    is_up: bool,
}

impl Down {
    fn take(node: &str) -> Result<Self> {
        let kubelet = host::kubelet_of(node)?;
        let mut words = kubelet.words("cmdline")?;
        // It may have booted for this test before.
        words.retain(|word| !word.starts_with(REGISTER));
        let ranges = node_object(node)?["spec"]["podCIDRs"].take();
        let down = Self {
            node: node.to_owned(),
            runtime: kubelet.beside("containerd")?,
            kubelet: words,
            environment: kubelet
                .words("environ")?
                .into_iter()
                .filter_map(|pair| {
                    let (name, value) = pair.split_once('=')?;
                    Some((name.to_owned(), value.to_owned()))
                })
                .collect(),
            log: fs::read_link(kubelet.file("fd/1")).context("looking for kubelet's log")?,
            ranges,
            is_up: false,
        };
        let agent = kubelet.beside("picket")?;
        for ended in [kubelet, agent] {
            ended.signal(Signal::SIGKILL)?;
            wait_until("its end", PATIENCE, || {
                ensure!(ended.words("cmdline").is_err(), "it still runs");
                Ok(())
            })?;
        }
        for left in ["/sys/fs/bpf/picket", "/run/picket", "/var/lib/picket"] {
            let removed = down.command().args(["rm", "-rf", left]).status()?;
            ensure!(removed.success(), "{node}: removing {left}: {removed}");
        }
        kubectl(&["delete", "node", node], "")?;
        let of_it = format!("spec.nodeName={node}");
        let forget = [
            "delete",
            "pods",
            "-A",
            "--grace-period=0",
            "--force",
            "--field-selector",
        ];
        kubectl(&[forget.as_slice(), &[of_it.as_str()]].concat(), "")?;
        Ok(down)
    }

    /// One on the node.
    fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args([
                "--target",
                &self.runtime.id(),
                "--mount",
                "--net",
                "--pid",
                "--uts",
            ])
            .args(["--ipc", "--"])
            .stdin(Stdio::null());
        command
    }

    /// Its kubelet starts, and has the node registered with this taint, if any.
    fn boot(&mut self, taint: Option<&str>) -> Result<Child> {
        self.is_up = true;
        let log = OpenOptions::new().append(true).open(&self.log);
        let log = log.with_context(|| format!("opening {}", self.log.display()))?;
        self.command()
            .args(&self.kubelet)
            .args(taint.map(|taint| format!("{REGISTER}={taint}=:NoExecute")))
            .env_clear()
            .envs(self.environment.iter().cloned())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting kubelet")
    }

    /// Waits for its `Node`.
    fn registered(&self) -> Result<()> {
        wait_until("the node to register", PATIENCE, || node_object(&self.node))?;
        let ranges = self.ranges.as_array().and_then(|ranges| ranges.first());
        let patch = json!({"spec": {"podCIDR": ranges, "podCIDRs": self.ranges}}).to_string();
        kubectl(&["patch", "node", &self.node, "--patch", &patch], "").map(drop)
    }
}

impl Drop for Down {
    fn drop(&mut self) {
        if !self.is_up && self.boot(None).is_ok() {
            drop(self.registered());
        }
    }
}

fn node_object(node: &str) -> Result<Value> {
    let said = kubectl(&["get", "node", node, "-o", "json"], "")?;
    serde_json::from_str(&said).context("reading a node")
}

fn is_tainted(node: &Value) -> bool {
    let mut taints = node["spec"]["taints"].as_array().into_iter().flatten();
    taints.any(|taint| taint["key"] == TAINT)
}

/// What lets an agent start.
const GO: &str = "/run/picket/go";

/// An agent that waits for it, as one may wait for its image.
fn waits_for_go() -> Value {
    json!({
        "op": "add", "path": "/spec/template/spec/initContainers",
        "value": [{
            "name": "waits", "image": IMAGE,
            "command": ["sh", "-c", format!("until [ -e {GO} ]; do sleep 0.1; done")],
            "volumeMounts": [{"name": "run", "mountPath": "/run/picket"}],
        }],
    })
}

fn go(node: &str) -> Result<()> {
    let go = host::kubelet_of(node)?.path(GO);
    fs::write(&go, "").with_context(|| format!("writing {}", go.display()))
}

/// Pods that may speak to nobody, try it once, and stay. `early` ones do not mind the taint.
fn strangers(name: &str, pods: usize, node: &str, to: &str) -> Value {
    let act = format!("/agnhost connect {to} --timeout=900ms && echo REACHED; exec /agnhost pause");
    let tolerations = match name {
        "early" => json!([{"key": TAINT, "operator": "Exists"}]),
        _ => json!([]),
    };
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": pods,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name, "role": "stranger"}},
                "spec": {
                    "nodeSelector": {"kubernetes.io/hostname": node},
                    "tolerations": tolerations,
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "c", "image": IMAGE, "command": ["sh", "-c", act]}],
                },
            },
        },
    })
}

/// What each of them has said of its first act, once all have.
fn first_words(namespace: &Namespace, app: &str, count: usize) -> Result<Vec<String>> {
    wait_until(&format!("{app}: each to have tried"), 2 * PATIENCE, || {
        let pods = namespace.pods_with(&format!("app={app}"))?;
        ensure!(pods.len() == count, "{} pods", pods.len());
        let words = pods.iter().map(|pod| {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let log = namespace.kubectl(&["logs", name])?;
            let first = log.lines().next().map(str::to_owned);
            first.with_context(|| format!("{name} has said nothing yet"))
        });
        words.collect()
    })
}

#[test]
fn no_pod_comes_to_a_node_that_boots_before_policy_is_in_force() -> Result<()> {
    let namespace = Namespace::alone("boot")?;
    let [near, far] = namespace.two_nodes()?;
    servers(&namespace, &near)?;
    let open = format!("{}:8080", address(&namespace, "open")?);
    go(&near)?;
    go(&far)?;
    let changed = Changed::to(&["startup-taint"], &[waits_for_go()])?;
    let mut down = Down::take(&far)?;
    namespace.apply(&strangers("waiting", PODS, &far, &open))?;
    namespace.apply(&strangers("early", 1, &far, &open))?;
    // Nobody waits for it: it ends with the cluster.
    let _kubelet = down.boot(Some(TAINT))?;
    down.registered()?;

    // The node runs pods, and nothing is enforced there yet.
    assert_eq!(first_words(&namespace, "early", 1)?, ["REACHED"]);
    assert_eq!(came(&namespace)?, 0, "pods came before the agent");
    assert!(
        is_tainted(&node_object(&far)?),
        "the taint has gone before the agent came"
    );
    go(&far)?;
    wait_until("the pods that waited", 2 * PATIENCE, || {
        let came = came(&namespace)?;
        let is_tainted = is_tainted(&node_object(&far)?);
        // Looked at later. No error, which would be waited on.
        assert!(
            came == 0 || !is_tainted,
            "{came} pods came before the taint went"
        );
        ensure!(came == PODS, "{came} pods have come");
        Ok(())
    })?;
    join(host::kubelet_of(&far)?.inside(deployment::is_ready)?)?;
    let words = first_words(&namespace, "waiting", PODS)?;
    assert_eq!(words, ["TIMEOUT"; PODS]);
    drop(changed);
    Ok(())
}

/// How many of the pods that wait have been given to the node.
fn came(namespace: &Namespace) -> Result<usize> {
    let pods = namespace.pods_with("app=waiting")?;
    Ok(pods
        .iter()
        .filter(|pod| !pod["spec"]["nodeName"].is_null())
        .count())
}
