//! What runs in a new cluster: DNS, and what somebody wants to see there.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::kubectl::Kubectl;
use super::process::{Look, wait_for};

/// How many of the last events explain a failure.
const EVENTS: usize = 12;

/// How often a program may end before it counts as one that does not run.
const RESTARTS: u64 = 3;

/// What is said of an image that can't be had.
const IMAGE_TROUBLE: [&str; 4] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
];

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
    let pods = ["get", "pods", "--all-namespaces"];
    let before = kubectl.json(pods)?;
    kubectl
        .apply(manifests)
        .with_context(|| format!("applying {what}"))?;
    let mut waiting = Vec::new();
    let ready = wait_for("pods that are ready", PATIENCE, || {
        let all = ["get", "deployments,daemonsets", "--all-namespaces"];
        waiting = unready(&kubectl.json(all)?);
        if waiting.is_empty() {
            return Ok(Look::There(()));
        }
        if let Some(pod) = hopeless(&kubectl.json(pods)?, &before) {
            bail!("{pod}");
        }
        let waiting: Vec<String> = waiting.iter().map(Workload::to_string).collect();
        Ok(Look::Missing(waiting.join(", ")))
    });
    ready.map_err(|error| {
        let logs: String = waiting
            .iter()
            .map(|workload| workload.log(kubectl))
            .collect();
        let events = [
            "get",
            "events",
            "--all-namespaces",
            "--sort-by=.lastTimestamp",
        ];
        let events = kubectl.output(events).unwrap_or_default();
        let from = events.lines().count().saturating_sub(EVENTS);
        let events: Vec<&str> = events.lines().skip(from).collect();
        error.context(format!(
            "the last events:\n  {}\n{logs}",
            events.join("\n  ")
        ))
    })
}

/// A Deployment or a `DaemonSet` whose pods are not all there.
#[derive(Debug)]
struct Workload {
    namespace: String,
    kind: String,
    name: String,
    ready: u64,
    wanted: u64,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            namespace,
            name,
            ready,
            wanted,
            ..
        } = self;
        write!(f, "{namespace}/{name}: {ready} of {wanted}")
    }
}

impl Workload {
    /// The end of what one of its pods has said.
    fn log(&self, kubectl: &Kubectl) -> String {
        let object = format!("{}/{}", self.kind.to_lowercase(), self.name);
        let log = ["logs", "--tail=8", "--namespace", &self.namespace, &object];
        let said = kubectl.output(log).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        format!("the log of {object}:\n  {}\n", lines.join("\n  "))
    }
}

fn unready(list: &Value) -> Vec<Workload> {
    items(list).filter_map(waiting).collect()
}

/// What one of them waits for.
fn waiting(item: &Value) -> Option<Workload> {
    let number = |path: &str| item.pointer(path).and_then(Value::as_u64);
    let kind = text(item, "/kind");
    let (wanted, ready, new) = match kind.as_str() {
        "DaemonSet" => (
            "/status/desiredNumberScheduled",
            "/status/numberReady",
            "/status/updatedNumberScheduled",
        ),
        _ => (
            "/spec/replicas",
            "/status/readyReplicas",
            "/status/updatedReplicas",
        ),
    };
    let number_of = |path: &str| number(path).unwrap_or(0);
    // One of an earlier version that is ready will be replaced.
    let (wanted, ready) = (number_of(wanted), number_of(ready).min(number_of(new)));
    // Nothing is known of it before its controller has looked at it.
    let is_known = number("/status/observedGeneration") == number("/metadata/generation");
    (!is_known || ready < wanted).then(|| Workload {
        namespace: text(item, "/metadata/namespace"),
        kind,
        name: text(item, "/metadata/name"),
        ready,
        wanted,
    })
}

/// A pod that won't become ready by waiting: its program ends again and again, or its image is
/// nowhere. One that was there `before` may be of a version that goes.
fn hopeless(list: &Value, before: &Value) -> Option<String> {
    let old: Vec<String> = items(before).map(uid).collect();
    let new = items(list).filter(|pod| !old.contains(&uid(pod)));
    new.into_iter().find_map(|pod| {
        let statuses = pod.pointer("/status/containerStatuses");
        let statuses = statuses.and_then(Value::as_array).into_iter().flatten();
        statuses.into_iter().find_map(|status| {
            let restarts = status.get("restartCount").and_then(Value::as_u64);
            let reason = text(status, "/state/waiting/reason");
            let is_hopeless = match reason.as_str() {
                "CrashLoopBackOff" => restarts.unwrap_or(0) >= RESTARTS,
                reason => IMAGE_TROUBLE.contains(&reason),
            };
            let (namespace, name) = (
                text(pod, "/metadata/namespace"),
                text(pod, "/metadata/name"),
            );
            let message = text(status, "/state/waiting/message");
            is_hopeless.then(|| format!("pod {namespace}/{name}: {reason}: {message}"))
        })
    })
}

fn uid(pod: &Value) -> String {
    text(pod, "/metadata/uid")
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    let items = list.get("items").and_then(Value::as_array);
    items.into_iter().flatten()
}

fn text(item: &Value, path: &str) -> String {
    let text = item.pointer(path).and_then(Value::as_str);
    text.unwrap_or("?").to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn item(kind: &str, spec: &Value, status: &Value) -> Value {
        let metadata = json!({"namespace": "x", "name": kind.to_lowercase(), "generation": 2});
        json!({"kind": kind, "metadata": metadata, "spec": spec, "status": status})
    }

    fn daemon_set(ready: u64, updated: u64) -> Value {
        let status = json!({
            "observedGeneration": 2,
            "desiredNumberScheduled": 2,
            "numberReady": ready,
            "updatedNumberScheduled": updated,
        });
        item("DaemonSet", &json!({}), &status)
    }

    #[test]
    fn what_its_controller_has_not_seen_or_has_too_few_new_pods_is_waited_for() {
        let list = json!({"items": [
            item("Deployment", &json!({"replicas": 1}), &json!({})),
            item(
                "Deployment",
                &json!({"replicas": 1}),
                &json!({"observedGeneration": 2, "readyReplicas": 1, "updatedReplicas": 1}),
            ),
            daemon_set(1, 2),
            daemon_set(2, 1),
            daemon_set(2, 2),
        ]});
        let waiting: Vec<String> = unready(&list).iter().map(Workload::to_string).collect();
        assert_eq!(
            waiting,
            [
                "x/deployment: 0 of 1",
                "x/daemonset: 1 of 2",
                "x/daemonset: 1 of 2"
            ]
        );
    }

    #[test]
    fn a_pod_that_ends_again_and_again_or_has_no_image_is_not_waited_for() {
        let pods = |reason: &str, restarts: u64| {
            json!({"items": [{
                "metadata": {"namespace": "x", "name": "y", "uid": "1"},
                "status": {"containerStatuses": [{
                    "restartCount": restarts,
                    "state": {"waiting": {"reason": reason, "message": "why"}},
                }]},
            }]})
        };
        let (none, ended) = (json!({"items": []}), pods("CrashLoopBackOff", RESTARTS));
        let pod = hopeless(&ended, &none).unwrap();
        assert_eq!(pod, "pod x/y: CrashLoopBackOff: why");
        assert!(hopeless(&ended, &ended).is_none(), "it was there before");
        assert!(hopeless(&pods("ImagePullBackOff", 0), &none).is_some());
        assert!(hopeless(&pods("CrashLoopBackOff", 1), &none).is_none());
        assert!(hopeless(&pods("ContainerCreating", 9), &none).is_none());
    }
}
