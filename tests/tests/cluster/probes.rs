//! The kubelet's probes: what the node asks of its own pods is answered, whatever policy says.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::lab::wait_until;

use super::namespace::{Fate, IMAGE, Namespace, PATIENCE, bracketed};

/// Each pod asks to be probed in one way, and is ready while it answers.
fn pod(name: &str, node: &str, args: &[&str], probe: &Value) -> Value {
    let with = |extra: Value| {
        let mut probe = probe.clone();
        for (key, value) in extra.as_object().into_iter().flatten() {
            probe[key] = value.clone();
        }
        probe
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("{name}-{node}"), "labels": {"app": "probed"}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "c", "image": IMAGE, "args": args,
                "startupProbe": with(json!({"periodSeconds": 1, "failureThreshold": 60})),
                "readinessProbe": with(json!({"periodSeconds": 1, "timeoutSeconds": 5})),
                "livenessProbe": with(json!({"periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 3})),
            }],
        },
    })
}

#[test]
fn probes_of_every_kind_are_answered_under_default_deny() -> Result<()> {
    let namespace = Namespace::new("probes")?;
    namespace.apply(&json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "default-deny"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
    }))?;
    let web = ["netexec", "--http-port=8080"];
    let kinds: [(&str, &[&str], Value); 4] = [
        (
            "http",
            &web,
            json!({"httpGet": {"path": "/hostname", "port": 8080}}),
        ),
        ("tcp", &web, json!({"tcpSocket": {"port": 8080}})),
        (
            "grpc",
            &["grpc-health-checking"],
            json!({"grpc": {"port": 5000}}),
        ),
        (
            "exec",
            &web,
            json!({"exec": {"command": ["/agnhost", "--help"]}}),
        ),
    ];
    let nodes = namespace.two_nodes()?;
    let pods = nodes.iter().map(|node| {
        let pods = kinds.iter();
        pods.map(move |(name, args, probe)| pod(name, node, args, probe))
    });
    namespace.apply_all(&pods.flatten().collect::<Vec<_>>())?;
    wait_until("every pod to be ready", PATIENCE, || {
        let pods = namespace.pods_with("app=probed")?;
        for pod in &pods {
            let container = &pod["status"]["containerStatuses"][0];
            ensure!(
                container["ready"] == true,
                "{}: {container}",
                pod["metadata"]["name"]
            );
            ensure!(
                container["restartCount"] == 0,
                "{}",
                pod["metadata"]["name"]
            );
        }
        ensure!(pods.len() == 8, "{} pods", pods.len());
        Ok(())
    })?;
    // Policy is in force all the same.
    let pods = namespace.pods_with("app=probed")?;
    let of = |name: &str| pods.iter().find(|pod| pod["metadata"]["name"] == name);
    let address =
        of(&format!("http-{}", nodes[0])).map_or(&Value::Null, |pod| &pod["status"]["podIP"]);
    let to = format!("{}:8080", bracketed(address.as_str().unwrap_or_default()));
    assert_eq!(
        namespace.connect(&format!("tcp-{}", nodes[0]), &to),
        Fate::TimedOut
    );
    Ok(())
}
