//! The taint that keeps pods off a node until its agent enforces: the agent takes it off its own
//! node when it is ready, and again whenever the node has it anew. It never puts it there.
//!
//! Each removal names the very entries that were seen (RFC 6902, `test`), so what somebody else has
//! changed meanwhile is refused by the server, not overwritten.

use std::mem::{self, Discriminant};
use std::sync::Arc;
use std::time::Duration;

use agent_policy::model::{Finding, Severity};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{debug, info};

use super::super::object::Kind;
use super::OwnNode;
use super::api::{Access, Api, Failure};
use super::backoff::Backoff;
use super::follow::News;

/// Key of the taint.
const KEY: &str = "picket.dev/agent-not-ready";
/// What grants the right to remove it.
const COMPONENT: &str = "deploy/kustomize/components/startup-taint";
/// A removal is answered within this time.
const PATCH_WITHIN: Duration = Duration::from_secs(10);
/// After a removal, whoever puts the taint back at once does not make it a race.
const REST: Duration = Duration::from_secs(1);
/// So often somebody else's change may come in between before it is said.
const COLLISIONS: u32 = 3;

/// A startup taint and where it stands in the node's list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Taint {
    index: usize,
    /// As the server has written it.
    entry: Value,
}

#[derive(Deserialize)]
struct Node {
    #[serde(default)]
    spec: Option<Spec>,
}

#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    taints: Option<Vec<Value>>,
}

/// The startup taints of a node: one for each effect at most.
pub(super) fn on(node: &[u8]) -> Vec<Taint> {
    // What is wrong with a node's bytes, who reads all of them says.
    let node: Option<Node> = serde_json::from_slice(node).ok();
    let taints = node.and_then(|node| node.spec?.taints).unwrap_or_default();
    let taints = taints.into_iter().enumerate();
    taints
        .filter(|(_, entry)| entry.get("key").is_some_and(|key| key == KEY))
        .map(|(index, entry)| Taint { index, entry })
        .collect()
}

/// The steps that remove taints from where they stand and change nothing else.
fn removal(taints: &[Taint]) -> Value {
    // From the last on, so that the others stay where they are.
    let steps = taints.iter().rev().flat_map(|Taint { index, entry }| {
        let path = format!("/spec/taints/{index}");
        [
            json!({"op": "test", "path": path, "value": entry}),
            json!({"op": "remove", "path": path}),
        ]
    });
    steps.collect()
}

/// The startup taints of our node, as its watch tells them.
#[derive(Debug)]
pub(super) struct Tainted {
    node: Option<Arc<str>>,
    taints: watch::Sender<Vec<Taint>>,
}

impl Tainted {
    pub(super) fn of(node: Option<Arc<str>>) -> (Self, watch::Receiver<Vec<Taint>>) {
        let (taints, told) = watch::channel(Vec::new());
        (Self { node, taints }, told)
    }

    /// Takes in what was heard of a kind.
    pub(super) fn hear(&self, kind: Kind, news: &News) {
        let (Kind::Node, Some(node)) = (kind, &self.node) else {
            return;
        };
        let items = match news {
            News::Listed(items) => items.as_slice(),
            News::Put(item) => std::slice::from_ref(item),
            News::Gone(id) if id.name.name == *node => {
                self.taints.send_replace(Vec::new());
                return;
            }
            News::Gone(_)
            | News::ListBegins
            | News::ListEnds(_)
            | News::Failed(_)
            | News::Works => return,
        };
        // Each time, also when they are what they were: a removal may have been refused meanwhile.
        for item in items.iter().filter(|item| item.id.name.name == *node) {
            self.taints.send_replace(item.startup_taints.clone());
        }
    }
}

/// See the module.
pub(super) struct Keeper {
    access: Access,
    api: Api,
    node: OwnNode,
    taints: watch::Receiver<Vec<Taint>>,
    fault: watch::Sender<Option<Finding>>,
    /// What kind of failure was said last.
    said: Option<Discriminant<Failure>>,
    backoff: Backoff,
    collisions: u32,
}

impl Keeper {
    pub(super) fn new(
        access: Access,
        api: Api,
        node: OwnNode,
        taints: watch::Receiver<Vec<Taint>>,
        fault: watch::Sender<Option<Finding>>,
    ) -> Self {
        Self {
            access,
            api,
            node,
            taints,
            fault,
            said: None,
            backoff: Backoff::default(),
            collisions: 0,
        }
    }

    /// Runs until the watch or the agent ends.
    pub(super) async fn run(mut self) {
        loop {
            let is_ready = self.node.is_ready.wait_for(|is_ready| *is_ready).await;
            if is_ready.map(drop).is_err() {
                return;
            }
            let taints = self.taints.borrow_and_update().clone();
            let pause = if taints.is_empty() {
                self.is_well();
                None
            } else {
                self.remove(&taints).await
            };
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            } else if self.taints.changed().await.is_err() {
                return;
            }
        }
    }

    /// Tries once; how long to wait before it is tried again if nothing is heard of the node.
    async fn remove(&mut self, taints: &[Taint]) -> Option<Duration> {
        let path = format!("/api/v1/nodes/{}?fieldManager=picket", self.node.name);
        let removal = removal(taints);
        let Err(failure) = self.api.patch(&path, &removal, PATCH_WITHIN).await else {
            info!(node = self.node.name, taint = KEY, "startup taint removed");
            self.is_well();
            tokio::time::sleep(REST).await;
            return None;
        };
        debug!(?failure, "the startup taint cannot be removed");
        let is_collision = matches!(
            failure,
            Failure::Refused {
                code: 409 | 422,
                ..
            }
        );
        self.collisions += u32::from(is_collision);
        if !is_collision || self.collisions > COLLISIONS {
            self.say(&failure);
        }
        if let Failure::Forbidden {
            is_unknown: true, ..
        } = failure
            && let Ok(api) = self.access.open().await
        {
            self.api = api;
        }
        Some(self.backoff.after_failure())
    }

    fn is_well(&mut self) {
        self.backoff.reset();
        self.collisions = 0;
        if self.said.take().is_some() {
            self.fault.send_replace(None);
        }
    }

    fn say(&mut self, failure: &Failure) {
        let (problem, remedy) = match failure {
            // The node's watch says so, too; or there is no such node any more.
            Failure::Unreachable(_) | Failure::Absent => return,
            Failure::Forbidden {
                message,
                is_unknown: false,
            } => (
                message.as_str(),
                format!("apply {COMPONENT}, which grants it (of the chart: startupTaint)"),
            ),
            Failure::Forbidden { message, .. } => {
                (message.as_str(), "renew the credentials".to_owned())
            }
            Failure::Expired => ("no word why", "see the API server's log".to_owned()),
            Failure::Refused { message, .. } | Failure::Garbled(message) => {
                (message.as_str(), "see the API server's log".to_owned())
            }
        };
        let kind = Some(mem::discriminant(failure));
        // The first word is kept: each try may fail with a little different ones.
        if self.said == kind {
            return;
        }
        self.said = kind;
        self.fault.send_replace(Some(Finding {
            severity: Severity::Error,
            object: format!("node {}", self.node.name),
            field: "spec.taints".to_owned(),
            message: format!(
                "{KEY} cannot be removed: {problem}; {remedy}; until then no pod starts here that \
                 does not tolerate it"
            ),
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(taints: &Value) -> Vec<u8> {
        json!({"metadata": {"name": "n1"}, "spec": {"taints": taints}})
            .to_string()
            .into_bytes()
    }

    #[test]
    fn a_removal_names_our_entries_from_the_last_on_and_no_others() {
        let other = json!({"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"});
        let no_execute = json!({"key": KEY, "effect": "NoExecute", "timeAdded": "2026-11-22"});
        let no_schedule = json!({"key": KEY, "value": "x", "effect": "NoSchedule"});
        let taints = on(&node(&json!([no_execute, other, no_schedule])));
        assert_eq!(
            removal(&taints),
            json!([
                {"op": "test", "path": "/spec/taints/2", "value": no_schedule},
                {"op": "remove", "path": "/spec/taints/2"},
                {"op": "test", "path": "/spec/taints/0", "value": no_execute},
                {"op": "remove", "path": "/spec/taints/0"},
            ])
        );
    }

    #[test]
    fn a_node_without_the_taint_has_nothing_to_remove() {
        let others = json!([{"key": "picket.dev/agent-not-ready-yet", "effect": "NoSchedule"}, 5]);
        for bytes in [
            node(&others),
            node(&Value::Null),
            b"{}".to_vec(),
            b"{\"spec\":null}".to_vec(),
            b"{".to_vec(),
        ] {
            assert_eq!(on(&bytes), [], "{}", String::from_utf8_lossy(&bytes));
        }
    }
}
