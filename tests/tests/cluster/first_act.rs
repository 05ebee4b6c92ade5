//! What a pod does first: policy is there before it, and nothing that is allowed waits for it.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use tests::lab::wait_until;

use super::namespace::{IMAGE, Namespace, PATIENCE, bracketed};

const PODS: usize = 50;
/// A first segment that is lost is sent again after a second.
const BEFORE_A_RETRANSMIT: &str = "900ms";

/// Servers hear from `role: friend` only; strangers may speak to nobody.
fn policies() -> Value {
    json!([
        {"podSelector": {"matchLabels": {"role": "server"}}, "policyTypes": ["Ingress"],
         "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}]},
        {"podSelector": {"matchLabels": {"role": "stranger"}}, "policyTypes": ["Egress"]},
        {"podSelector": {"matchLabels": {"role": "friend"}}, "policyTypes": ["Egress"],
         "egress": [{"to": [{"podSelector": {"matchExpressions":
             [{"key": "role", "operator": "In", "values": ["server", "open"]}]}}]}]},
    ])
}

pub(crate) fn pod(name: &str, role: &str, node: &str, args: &[&str]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"role": role}},
        "spec": {
            "restartPolicy": "Never",
            "nodeSelector": {"kubernetes.io/hostname": node},
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": IMAGE, "args": args,
                // What it says last is in the pod's status.
                "terminationMessagePolicy": "FallbackToLogsOnError"}],
        },
    })
}

/// Servers on one node: one that policy isolates, one that it does not.
pub(crate) fn servers(namespace: &Namespace, node: &str) -> Result<()> {
    let mut objects = Vec::new();
    for (number, spec) in policies().as_array().into_iter().flatten().enumerate() {
        objects.push(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": format!("p{number}")}, "spec": spec,
        }));
    }
    for role in ["server", "open"] {
        objects.push(pod(role, role, node, &["netexec", "--http-port=8080"]));
    }
    namespace.apply_all(&objects)
}

/// The first address of a server that runs.
pub(crate) fn address(namespace: &Namespace, role: &str) -> Result<String> {
    wait_until(&format!("{role} to be ready"), PATIENCE, || {
        let pods = namespace.pods_with(&format!("role={role}"))?;
        let status = &pods.first().map_or(&Value::Null, |pod| &pod["status"]);
        let is_ready = status["containerStatuses"][0]["ready"] == true;
        let address = status["podIP"].as_str().filter(|_| is_ready).map(bracketed);
        address.map_or_else(|| bail!("{status}"), Ok)
    })
}

/// Pods whose only act is to connect, within this time.
pub(crate) fn actors(role: &str, node: &str, to: &str, count: usize, within: &str) -> Vec<Value> {
    let actors = (0..count).map(|number| {
        let name = format!("{role}-{node}-{number}");
        let timeout = format!("--timeout={within}");
        let mut pod = pod(&name, role, node, &["connect", to, &timeout]);
        pod["metadata"]["labels"]["on"] = node.into();
        pod
    });
    actors.collect()
}

/// How they ended, by the words they left: [connected, not].
pub(crate) fn ended(
    namespace: &Namespace,
    role: &str,
    node: &str,
    count: usize,
    patience: Duration,
) -> Result<[usize; 2]> {
    wait_until("the pods to have ended", patience, || {
        let pods = namespace.pods_with(&format!("role={role},on={node}"))?;
        let mut ended = [0; 2];
        for pod in &pods {
            let container = &pod["status"]["containerStatuses"][0];
            let end = &container["state"]["terminated"];
            match (end["exitCode"].as_i64(), end["message"].as_str()) {
                (Some(0), _) => ended[0] += 1,
                (Some(_), Some("TIMEOUT\n")) => ended[1] += 1,
                _ => bail!("{}: {container}", pod["metadata"]["name"]),
            }
        }
        ensure!(ended.iter().sum::<usize>() == count, "{} pods", pods.len());
        Ok(ended)
    })
}

/// Both, where nothing may wait for a retransmit.
pub(crate) fn ends(
    namespace: &Namespace,
    role: &str,
    node: &str,
    to: &str,
    count: usize,
) -> Result<[usize; 2]> {
    namespace.apply_all(&actors(role, node, to, count, BEFORE_A_RETRANSMIT))?;
    ended(namespace, role, node, count, 2 * PATIENCE)
}

#[test]
fn a_pods_first_connection_is_judged_by_its_own_policy_and_never_waits() -> Result<()> {
    let namespace = Namespace::new("first-act")?;
    let [near, far] = namespace.two_nodes()?;
    servers(&namespace, &near)?;
    let [server, open] = ["server", "open"].map(|role| address(&namespace, role));
    let (server, open) = (format!("{}:8080", server?), format!("{}:8080", open?));

    // Nothing but their own policy forbids it, whoever serves.
    let strangers = ends(&namespace, "stranger", &near, &open, PODS / 2)?;
    let far_strangers = ends(&namespace, "stranger", &far, &open, PODS / 2)?;
    // Peers of one node know each other at once; over the network, a server that is isolated has
    // to hear of the pod first, which its status tells.
    let friends = ends(&namespace, "friend", &near, &server, PODS / 2)?;
    let far_friends = ends(&namespace, "friend", &far, &open, PODS / 2)?;
    assert_eq!(strangers, [0, PODS / 2], "[connected, not]");
    assert_eq!(far_strangers, [0, PODS / 2], "[connected, not]");
    assert_eq!(friends, [PODS / 2, 0], "[connected, not]");
    assert_eq!(far_friends, [PODS / 2, 0], "[connected, not]");
    Ok(())
}
