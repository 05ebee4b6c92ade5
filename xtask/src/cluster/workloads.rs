//! What runs in a new cluster: DNS, and what somebody wants to see there.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::kubectl::Kubectl;
use super::process::{Look, wait_for};

/// How many of the last events explain a failure.
const EVENTS: usize = 12;

/// What pods may take to run; their images are on the nodes.
const PATIENCE: Duration = Duration::from_mins(2);

/// Waits until pods can be made: for their account, which a controller makes.
pub(super) fn can_be_made(kubectl: &Kubectl) -> Result<()> {
    wait_for("the account of pods", PATIENCE, || {
        Ok(match kubectl.output(["get", "serviceaccount", "default"]) {
            Ok(_) => Look::There(()),
            Err(error) => Look::Missing(format!("{error:#}")),
        })
    })
}

/// Applies manifests and waits until every pod of the cluster is ready. The error says what came of
/// them last.
pub(super) fn apply(kubectl: &Kubectl, what: &str, manifests: &str) -> Result<()> {
    kubectl
        .apply(manifests)
        .with_context(|| format!("applying {what}"))?;
    let ready = wait_for("pods that are ready", PATIENCE, || {
        let all = ["get", "deployments,daemonsets", "--all-namespaces"];
        let waiting = unready(&kubectl.json(all)?);
        Ok(if waiting.is_empty() {
            Look::There(())
        } else {
            Look::Missing(waiting.join(", "))
        })
    });
    ready.map_err(|error| {
        let events = [
            "get",
            "events",
            "--all-namespaces",
            "--sort-by=.lastTimestamp",
        ];
        let events = kubectl.output(events).unwrap_or_default();
        let from = events.lines().count().saturating_sub(EVENTS);
        let last: Vec<&str> = events.lines().skip(from).collect();
        error.context(format!("the last events:\n  {}\n", last.join("\n  ")))
    })
}

/// Deployments and `DaemonSet`s whose pods are not all there.
fn unready(list: &Value) -> Vec<String> {
    let items = list.get("items").and_then(Value::as_array);
    items.into_iter().flatten().filter_map(waiting).collect()
}

/// What one of them waits for.
fn waiting(item: &Value) -> Option<String> {
    let number = |path: &str| item.pointer(path).and_then(Value::as_u64);
    let text = |path: &str| item.pointer(path).and_then(Value::as_str).unwrap_or("?");
    let (wanted, ready) = match text("/kind") {
        "DaemonSet" => ("/status/desiredNumberScheduled", "/status/numberReady"),
        _ => ("/spec/replicas", "/status/readyReplicas"),
    };
    let (wanted, ready) = (number(wanted).unwrap_or(0), number(ready).unwrap_or(0));
    // Nothing is known of it before its controller has looked at it.
    let is_known = number("/status/observedGeneration") == number("/metadata/generation");
    let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
    (!is_known || ready < wanted).then(|| format!("{namespace}/{name}: {ready} of {wanted}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn item(kind: &str, spec: &Value, status: &Value) -> Value {
        let metadata = json!({"namespace": "x", "name": kind.to_lowercase(), "generation": 2});
        json!({"kind": kind, "metadata": metadata, "spec": spec, "status": status})
    }

    #[test]
    fn what_its_controller_has_not_seen_or_has_too_few_pods_is_waited_for() {
        let list = json!({"items": [
            item("Deployment", &json!({"replicas": 1}), &json!({})),
            item(
                "Deployment",
                &json!({"replicas": 1}),
                &json!({"observedGeneration": 2, "readyReplicas": 1}),
            ),
            item(
                "DaemonSet",
                &json!({}),
                &json!({"observedGeneration": 2, "desiredNumberScheduled": 2, "numberReady": 1}),
            ),
            item(
                "DaemonSet",
                &json!({}),
                &json!({"observedGeneration": 2, "desiredNumberScheduled": 2, "numberReady": 2}),
            ),
        ]});
        assert_eq!(
            unready(&list),
            ["x/deployment: 0 of 1", "x/daemonset: 1 of 2"]
        );
    }
}
