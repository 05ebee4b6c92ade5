//! What every test here needs: objects written as an administrator, and somebody who listens to
//! the source and keeps what it says.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use agent::source::{Access, Batch, OwnNode, watch_api};
use agent_policy::cluster::Cluster;
use agent_policy::model::{Change, ObjectName, Pod};
use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

/// How long anything may take on a machine that does other things, too.
const WITHIN: Duration = Duration::from_mins(1);

/// Pods that were made to see when they are told of.
static MARKS: AtomicU32 = AtomicU32::new(0);

/// Whoever writes objects.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) client: Client,
}

impl Admin {
    pub(crate) async fn namespace(&self, name: &str) -> Result<()> {
        let object = json!({"metadata": {"name": name}});
        let api = Api::<core::Namespace>::all(self.client.clone());
        api.create(&PostParams::default(), &serde_json::from_value(object)?)
            .await
            .with_context(|| format!("creating namespace {name}"))?;
        Ok(())
    }

    /// A pod of namespace `shop` with an address.
    pub(crate) async fn pod(&self, name: &str, app: &str, address: &str) -> Result<()> {
        self.pod_with(name, json!({"app": app}), address).await
    }

    pub(crate) async fn pod_with(&self, name: &str, labels: Value, address: &str) -> Result<()> {
        let object = json!({"metadata": {"name": name, "labels": labels},
            "spec": {"containers": [{"name": "c", "image": "none",
                                     "ports": [{"name": "http", "containerPort": 8080}]}]}});
        self.pods()
            .create(&PostParams::default(), &serde_json::from_value(object)?)
            .await
            .with_context(|| format!("creating pod {name}"))?;
        let status = json!({"status": {"phase": "Running", "podIP": address,
                                       "podIPs": [{"ip": address}]}});
        self.status(name, status).await
    }

    pub(crate) async fn status(&self, name: &str, status: Value) -> Result<()> {
        self.pods()
            .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .with_context(|| format!("patching the status of pod {name}"))?;
        Ok(())
    }

    pub(crate) async fn relabel(&self, name: &str, app: &str) -> Result<()> {
        let labels = json!({"metadata": {"labels": {"app": app}}});
        self.pods()
            .patch(name, &PatchParams::default(), &Patch::Merge(labels))
            .await
            .with_context(|| format!("relabelling pod {name}"))?;
        Ok(())
    }

    pub(crate) async fn delete_pod(&self, name: &str) -> Result<()> {
        self.pods()
            .delete(name, &DeleteParams::default().grace_period(0))
            .await
            .with_context(|| format!("deleting pod {name}"))?;
        Ok(())
    }

    /// Creates or replaces a policy of namespace `shop` that admits pods with a label to all.
    pub(crate) async fn admit(&self, name: &str, app: &str) -> Result<()> {
        let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name}, "spec": {"podSelector": {}, "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]}});
        self.policies()
            .patch(
                name,
                &PatchParams::apply("test").force(),
                &Patch::Apply(object),
            )
            .await
            .with_context(|| format!("writing policy {name}"))?;
        Ok(())
    }

    pub(crate) async fn delete_policy(&self, name: &str) -> Result<()> {
        self.policies()
            .delete(name, &DeleteParams::default())
            .await
            .with_context(|| format!("deleting policy {name}"))?;
        Ok(())
    }

    pub(crate) fn pods(&self) -> Api<core::Pod> {
        Api::namespaced(self.client.clone(), "shop")
    }

    fn policies(&self) -> Api<NetworkPolicy> {
        Api::namespaced(self.client.clone(), "shop")
    }
}

/// Whoever listens to the source.
pub(crate) struct Listener {
    batches: BoxStream<'static, Batch>,
    pub(crate) cluster: Cluster,
    pub(crate) is_complete: bool,
    pub(crate) findings: Vec<String>,
    /// Every change that was told since this was last emptied, in words.
    pub(crate) told: Vec<String>,
    /// Batches that had changes.
    pub(crate) batches_told: usize,
    uids: BTreeMap<String, String>,
}

impl Listener {
    pub(crate) async fn open(kubeconfig: &Path) -> Result<Self> {
        Self::open_on(kubeconfig, None).await
    }

    /// One that listens for the agent of a node.
    pub(crate) async fn open_on(kubeconfig: &Path, own_node: Option<OwnNode>) -> Result<Self> {
        let access = Access::Kubeconfig(kubeconfig.to_owned());
        let state = kubeconfig.with_file_name("state");
        Ok(Self {
            batches: watch_api(access, &state, own_node).await?.boxed(),
            cluster: Cluster::new(),
            is_complete: false,
            findings: Vec::new(),
            told: Vec::new(),
            batches_told: 0,
            uids: BTreeMap::new(),
        })
    }

    /// One that has heard the first whole list.
    pub(crate) async fn complete(kubeconfig: &Path) -> Result<Self> {
        let mut listener = Self::open(kubeconfig).await?;
        listener
            .until("a whole list", |seen| seen.is_complete)
            .await?;
        Ok(listener)
    }

    /// Listens until something is so.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        mut is_so: impl FnMut(&Self) -> bool,
    ) -> Result<()> {
        let end = Instant::now() + WITHIN;
        while !is_so(self) {
            let left = end.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.batches.next()).await {
                Ok(Some(batch)) => self.take(batch),
                Ok(None) => bail!("the source has ended"),
                Err(_) => bail!(
                    "waited for {what}; complete {}, findings {:?}, told {:?}",
                    self.is_complete,
                    self.findings,
                    self.told
                ),
            }
        }
        Ok(())
    }

    /// Listens until everything that was done to pods before this is told.
    pub(crate) async fn catch_up(&mut self, admin: &Admin) -> Result<()> {
        // Another listener's stay where they are.
        let mark = format!("mark-{}", MARKS.fetch_add(1, Ordering::Relaxed));
        admin.pod(&mark, "mark", "10.255.0.1").await?;
        let name = ObjectName::new("shop", mark.as_str());
        self.until(&mark, |seen| {
            seen.cluster
                .pod_named(&name)
                .is_some_and(|pod| !pod.addresses.is_empty())
        })
        .await?;
        self.told.retain(|told| !told.contains("mark-"));
        Ok(())
    }

    fn take(&mut self, batch: Batch) {
        assert!(
            batch.is_complete || batch.changes.is_empty(),
            "half-knowledge was told: {batch:?}"
        );
        self.is_complete = batch.is_complete;
        self.findings = batch.findings.iter().map(ToString::to_string).collect();
        let (own, others): (Vec<Change>, Vec<Change>) =
            batch.changes.into_iter().partition(is_the_servers_own);
        self.batches_told += usize::from(!others.is_empty());
        for change in own {
            drop(self.cluster.apply(change));
        }
        for change in others {
            let words = self.words(&change);
            self.told.push(words);
            // What it touches matters to an engine only.
            drop(self.cluster.apply(change));
        }
    }

    fn words(&mut self, change: &Change) -> String {
        match change {
            Change::Pod(pod) => {
                let uid = pod.uid.0.to_string();
                self.uids.insert(uid, pod.name.to_string());
                format!("{} {}", pod.name, app(pod))
            }
            Change::PodGone(uid) => {
                let name = self.uids.get(&*uid.0);
                format!("{} gone", name.map_or(&*uid.0, String::as_str))
            }
            Change::Namespace(namespace) => format!("namespace {}", namespace.name),
            Change::NamespaceGone(name) => format!("namespace {name} gone"),
            Change::Node(node) => format!("node {}", node.name),
            Change::NodeGone(name) => format!("node {name} gone"),
            Change::Policy(policy) => format!("policy {}", policy.name),
            Change::PolicyGone(name) => format!("policy {name} gone"),
            Change::Service(service) => format!("service {}", service.name),
            Change::ServiceGone(name) => format!("service {name} gone"),
            Change::EndpointSlice(slice) => format!("endpointslice {}", slice.name),
            Change::EndpointSliceGone(name) => format!("endpointslice {name} gone"),
        }
    }

    /// What was told, in order of words.
    pub(crate) fn take_told(&mut self) -> Vec<String> {
        let mut told = std::mem::take(&mut self.told);
        told.sort();
        told
    }

    /// The label of a pod of `shop`, if there is such a pod.
    pub(crate) fn app(&self, name: &str) -> Option<String> {
        let pod = self.cluster.pod_named(&ObjectName::new("shop", name))?;
        Some(app(pod).to_owned())
    }

    pub(crate) fn has_finding(&self, parts: &[&str]) -> bool {
        self.findings
            .iter()
            .any(|finding| parts.iter().all(|part| finding.contains(part)))
    }
}

fn app(pod: &Pod) -> &str {
    pod.labels.get("app").map_or("", String::as_str)
}

/// True for the Service that an API server makes for itself when it gets to it, and for what is behind
/// that.
fn is_the_servers_own(change: &Change) -> bool {
    let own = ObjectName::new("default", "kubernetes");
    match change {
        Change::Service(service) => service.name == own,
        Change::EndpointSlice(slice) => slice.name == own,
        Change::ServiceGone(name) | Change::EndpointSliceGone(name) => *name == own,
        Change::Pod(_)
        | Change::PodGone(_)
        | Change::Namespace(_)
        | Change::NamespaceGone(_)
        | Change::Node(_)
        | Change::NodeGone(_)
        | Change::Policy(_)
        | Change::PolicyGone(_) => false,
    }
}
