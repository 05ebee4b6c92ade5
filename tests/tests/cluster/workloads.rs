//! Pods of every kind of workload, and what reuses names and addresses: each has its own policy from
//! its first act, however many start at once.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::lab::wait_until;

use super::first_act::{actors, address, ended, ends, pod, servers};
use super::host;
use super::namespace::{IMAGE, Namespace, PATIENCE};

/// On each node, of each of two kinds.
const AT_ONCE: usize = 50;
/// For a schedule of once a minute, and the pod it makes.
const NEXT_MINUTE: Duration = Duration::from_mins(3);

/// What a container runs that ends well only when its first act has its role's fate.
fn act(role: &str, to: &str) -> Value {
    let connect = format!("/agnhost connect {to} --timeout=3s 2>&1");
    let script = match role {
        "friend" => connect,
        _ => format!("said=$({connect}); echo \"$said\"; [ \"$said\" = TIMEOUT ]"),
    };
    json!({"name": "act", "image": IMAGE, "command": ["sh", "-c", script]})
}

/// A pod's template: what it does at first, and whether it stays.
fn template(workload: &str, role: &str, to: &str, restart: &str) -> Value {
    let mut template = json!({
        "metadata": {"labels": {"role": role, "workload": workload}},
        "spec": {
            "restartPolicy": restart, "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false, "containers": [act(role, to)],
        },
    });
    if restart == "Always" {
        template["spec"]["initContainers"] = template["spec"]["containers"].take();
        template["spec"]["containers"] =
            json!([{"name": "stay", "image": IMAGE, "args": ["pause"]}]);
    }
    template
}

fn job(role: &str, to: &str) -> Value {
    json!({
        "completions": 6, "parallelism": 3, "backoffLimit": 0,
        "template": template("job", role, to, "Never"),
    })
}

fn stateful_set(role: &str, to: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "set"},
        "spec": {
            "replicas": 3, "serviceName": "set", "podManagementPolicy": "Parallel",
            "updateStrategy": {"rollingUpdate": {"maxUnavailable": 1}},
            "selector": {"matchLabels": {"workload": "set"}},
            "template": template("set", role, to, "Always"),
        },
    })
}

/// Waits until all pods of the set have this role and run, and none had to try again.
fn set_runs(namespace: &Namespace, role: &str) -> Result<()> {
    wait_until("the set's pods", 2 * PATIENCE, || {
        let pods = namespace.pods_with(&format!("workload=set,role={role}"))?;
        for pod in &pods {
            let first = &pod["status"]["initContainerStatuses"][0];
            assert!(first["restartCount"].as_i64() <= Some(0), "{first}");
            ensure!(pod["status"]["phase"] == "Running", "{}", pod["status"]);
        }
        ensure!(pods.len() == 3, "{} pods", pods.len());
        Ok(())
    })
}

#[test]
fn pods_of_jobs_and_sets_and_their_init_containers_have_their_own_policy() -> Result<()> {
    let namespace = Namespace::new("workloads")?;
    let [near, _] = namespace.two_nodes()?;
    servers(&namespace, &near)?;
    let open = format!("{}:8080", address(&namespace, "open")?);
    for role in ["friend", "stranger"] {
        namespace.apply_all(&[
            json!({
                "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": role},
                "spec": job(role, &open),
            }),
            json!({
                "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": role},
                "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": job(role, &open)}},
            }),
        ])?;
    }
    namespace.apply(&stateful_set("friend", &open))?;
    set_runs(&namespace, "friend")?;
    // The same names come again, first as they were, then as somebody else.
    namespace.kubectl(&["delete", "pods", "-l", "workload=set"])?;
    set_runs(&namespace, "friend")?;
    namespace.apply(&stateful_set("stranger", &open))?;
    set_runs(&namespace, "stranger")?;

    wait_until("jobs to be complete", NEXT_MINUTE, || {
        let said = namespace.kubectl(&["get", "jobs", "-o", "json"])?;
        let jobs: Value = serde_json::from_str(&said)?;
        let mut complete = [0; 2];
        for job in jobs["items"].as_array().into_iter().flatten() {
            let status = &job["status"];
            assert!(
                status["failed"].is_null(),
                "{}: {status}",
                job["metadata"]["name"]
            );
            if status["succeeded"] == 6 {
                let is_scheduled = job["metadata"]["ownerReferences"].is_array();
                complete[usize::from(is_scheduled)] += 1;
            }
        }
        ensure!(
            complete[0] == 2 && complete[1] >= 2,
            "{complete:?}: [jobs, scheduled]"
        );
        Ok(())
    })
}

#[test]
fn a_name_and_an_address_that_come_again_are_somebody_elses() -> Result<()> {
    let namespace = Namespace::alone("again")?;
    let [near, _] = namespace.two_nodes()?;
    servers(&namespace, &near)?;
    let server = format!("{}:8080", address(&namespace, "server")?);
    let first = ends(&namespace, "friend", &near, &server, 1)?;
    assert_eq!(first, [1, 0], "[connected, not]");
    let friend = wait_until("the pod to be complete", PATIENCE, || {
        let mut friends = namespace.pods_with("role=friend")?;
        let friend = friends.pop().context("a friend")?;
        ensure!(
            friend["status"]["phase"] == "Succeeded",
            "{}",
            friend["status"]
        );
        Ok(friend)
    })?;
    let address = friend["status"]["podIP"].as_str().unwrap_or_default();

    // It has ended, its object stays, and its address is given to the next pod on the node.
    give_next(&near, address)?;
    let other = ends(&namespace, "other", &near, &server, 1)?;
    let others = namespace.pods_with("role=other")?;
    assert_eq!(
        others[0]["status"]["podIP"], address,
        "the address was not given again"
    );
    assert_eq!(other, [0, 1], "[connected, not]");

    // The friend's name, in the next moment.
    let name = friend["metadata"]["name"].as_str().unwrap_or_default();
    namespace.kubectl(&["delete", "pod", name])?;
    let mut same = pod(
        name,
        "other",
        &near,
        &["connect", &server, "--timeout=900ms"],
    );
    same["metadata"]["labels"]["on"] = "again".into();
    namespace.apply(&same)?;
    let again = ended(&namespace, "other", "again", 1, PATIENCE)?;
    assert_eq!(again, [0, 1], "[connected, not]");
    Ok(())
}

/// Has the node give this address to its next pod: the plugin goes on behind the last that it gave.
fn give_next(node: &str, address: &str) -> Result<()> {
    let kubelet = host::kubelet_of(node)?;
    let file = kubelet.path("/var/lib/cni/networks/cluster/last_reserved_ip.0");
    let before = match address.parse()? {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() - 1).to_string(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() - 1).to_string(),
    };
    wait_until("the address to be free", PATIENCE, || {
        let given = kubelet.path(&format!("/var/lib/cni/networks/cluster/{address}"));
        ensure!(!given.exists(), "{} is there", given.display());
        Ok(())
    })?;
    fs::write(&file, before).with_context(|| format!("writing {}", file.display()))
}

#[test]
fn of_two_hundred_pods_that_start_at_once_none_does_what_it_must_not() -> Result<()> {
    let namespace = Namespace::alone("at-once")?;
    let nodes = namespace.two_nodes()?;
    servers(&namespace, &nodes[0])?;
    let [server, open] = ["server", "open"].map(|role| address(&namespace, role));
    let (server, open) = (format!("{}:8080", server?), format!("{}:8080", open?));
    let mut pods = Vec::new();
    for (node, to) in nodes.iter().zip([&server, &open]) {
        // So many may well wait for a core.
        pods.extend(actors("friend", node, to, AT_ONCE, "10s"));
        pods.extend(actors("stranger", node, &open, AT_ONCE, "900ms"));
    }
    namespace.apply_all(&pods)?;
    for node in &nodes {
        let friends = ended(&namespace, "friend", node, AT_ONCE, 5 * PATIENCE)?;
        let strangers = ended(&namespace, "stranger", node, AT_ONCE, 5 * PATIENCE)?;
        assert_eq!(friends, [AT_ONCE, 0], "{node}: [connected, not]");
        assert_eq!(strangers, [0, AT_ONCE], "{node}: [connected, not]");
    }
    Ok(())
}
