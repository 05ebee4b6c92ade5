//! A cluster of any size on an API server: namespaces, policies and pods that no controller looks
//! after. Some pods are of this node, all have addresses.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

/// Objects written at a time.
const WRITERS: usize = 32;
/// Pods of any other node: what upstream tests nodes with.
const PODS_A_NODE: usize = 110;
/// Workloads that a namespace's pods belong to.
const WORKLOADS: usize = 5;
/// Kinds of policies.
const KINDS: usize = 4;
/// The label that peers are known by in all namespaces, and its value.
const ROLE: (&str, &str) = ("role", "friend");

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// Each has its share of the rest.
    pub namespaces: usize,
    /// A namespace's default deny and what it admits, then the next one's.
    pub policies: usize,
    /// Those of this node are among them, and are the first.
    pub pods: usize,
    /// Pods of this node.
    pub locals: usize,
}

impl Crowd {
    /// Namespace and name of a pod.
    pub fn name(&self, pod: usize) -> (String, String) {
        (
            namespace_name(pod % self.namespaces),
            format!("app-{}-{pod:05}", self.workload(pod)),
        )
    }

    fn workload(&self, pod: usize) -> usize {
        pod / self.namespaces % WORKLOADS
    }

    /// Its address, whose it is alone.
    pub fn address(pod: usize) -> IpAddr {
        let first = u32::from(Ipv4Addr::new(10, 128, 0, 2));
        let offset = u32::try_from(pod).unwrap_or(u32::MAX);
        IpAddr::from(Ipv4Addr::from(first.saturating_add(offset)))
    }

    /// A pod as a deployment's are.
    pub fn pod(&self, pod: usize) -> Value {
        let workload = self.workload(pod);
        let node = if pod < self.locals {
            "here".to_owned()
        } else {
            format!("node-{}", pod / PODS_A_NODE)
        };
        let (namespace, name) = self.name(pod);
        json!({
            "metadata": {"namespace": namespace, "name": name, "labels": {
                "app.kubernetes.io/name": format!("app-{workload}"),
                "app.kubernetes.io/part-of": namespace,
                "pod-template-hash": format!("{:09x}", workload + 7),
                "tier": if workload.is_multiple_of(2) { "backend" } else { "frontend" },
            }},
            "spec": {"nodeName": node, "containers": [{
                "name": "app", "image": "registry.example/app:1",
                "ports": [{"name": "http", "containerPort": 8080}],
                "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
            }]},
        })
    }

    fn status(pod: usize) -> Value {
        let address = Self::address(pod);
        let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"];
        let conditions = conditions.map(|each| json!({"type": each, "status": "True"}));
        json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                          "hostIP": "192.0.2.1", "conditions": conditions}})
    }

    /// Default deny; a workload to another; whoever has the role, from anywhere; the way out.
    pub fn policy(&self, number: usize) -> Value {
        let turn = number / KINDS;
        let spec = match number % KINDS {
            0 => json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
            1 => json!({"podSelector": workload(turn), "ingress": [
                {"from": [{"podSelector": workload(turn + 1)}],
                 "ports": [{"port": "http"}]}]}),
            2 => json!({"podSelector": {}, "ingress": [
                {"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {(ROLE.0): ROLE.1}}}],
                 "ports": [{"port": 8000 + turn}]}]}),
            _ => json!({"podSelector": workload(turn), "policyTypes": ["Egress"], "egress": [
                {"to": [{"namespaceSelector": {"matchLabels": {"team": format!("team-{}", number % 10)}}}]},
                {"to": [{"ipBlock": {"cidr": format!("192.0.{}.0/24", number % 256)}}],
                 "ports": [{"port": 443}]},
                {"ports": [{"port": 53, "protocol": "UDP"}]}]}),
        };
        json!({
            "metadata": {"namespace": self.namespace_of(number),
                         "name": format!("policy-{number}")},
            "spec": spec,
        })
    }

    /// The kinds of one turn are one namespace's.
    fn namespace_of(&self, policy: usize) -> String {
        namespace_name(policy / KINDS % self.namespaces)
    }

    /// A namespace with a label that policies select by.
    pub fn namespace(number: usize) -> Value {
        let team = format!("team-{}", number % 10);
        json!({"metadata": {"name": namespace_name(number), "labels": {"team": team}}})
    }

    /// Nothing, in as many namespaces.
    #[must_use]
    pub fn none(&self) -> Self {
        Self {
            policies: 0,
            pods: 0,
            locals: 0,
            ..*self
        }
    }

    /// Writes its namespaces.
    pub async fn prepare(&self, client: &Client) -> Result<()> {
        all(0..self.namespaces, |n| async move {
            let api = Api::<Namespace>::all(client.clone());
            let object = serde_json::from_value(Self::namespace(n))?;
            api.create(&PostParams::default(), &object).await?;
            Ok(())
        })
        .await
        .context("writing namespaces")
    }

    /// Writes what it has and another, in the same namespaces, has not.
    pub async fn outgrow(&self, other: &Self, client: &Client) -> Result<()> {
        let crowd = *self;
        all(other.policies..self.policies, |n| async move {
            let namespace = crowd.namespace_of(n);
            let api = Api::<NetworkPolicy>::namespaced(client.clone(), &namespace);
            let object = serde_json::from_value(crowd.policy(n))?;
            api.create(&PostParams::default(), &object).await?;
            Ok(())
        })
        .await
        .context("writing policies")?;
        all(other.pods..self.pods, |n| async move {
            crowd.come(client, n).await
        })
        .await
        .context("writing pods")
    }

    /// A pod that starts.
    pub async fn come(&self, client: &Client, pod: usize) -> Result<()> {
        let (namespace, name) = self.name(pod);
        let api = Api::<Pod>::namespaced(client.clone(), &namespace);
        let object = serde_json::from_value(self.pod(pod))?;
        api.create(&PostParams::default(), &object).await?;
        let status = Patch::Merge(Self::status(pod));
        api.patch_status(&name, &PatchParams::default(), &status)
            .await?;
        Ok(())
    }

    /// A pod that ends.
    pub async fn go(&self, client: &Client, pod: usize) -> Result<()> {
        let (namespace, name) = self.name(pod);
        let api = Api::<Pod>::namespaced(client.clone(), &namespace);
        api.delete(&name, &DeleteParams::default().grace_period(0))
            .await?;
        Ok(())
    }

    /// A pod gets the role that policies admit, or loses it.
    pub async fn befriend(&self, client: &Client, pod: usize, is_friend: bool) -> Result<()> {
        let (namespace, name) = self.name(pod);
        let api = Api::<Pod>::namespaced(client.clone(), &namespace);
        let role = is_friend.then_some(ROLE.1);
        let labels = Patch::Merge(json!({"metadata": {"labels": {(ROLE.0): role}}}));
        api.patch(&name, &PatchParams::default(), &labels).await?;
        Ok(())
    }

    /// A policy's rules are written anew, with one more port or without it.
    pub async fn vary(&self, client: &Client, number: usize, turn: usize) -> Result<()> {
        let mut object = self.policy(number);
        let namespace = self.namespace_of(number);
        let api = Api::<NetworkPolicy>::namespaced(client.clone(), &namespace);
        let port = json!({"ports": [{"port": 9000 + turn % 16}]});
        let spec = object.get_mut("spec").context("a policy has a spec")?;
        if let Some(rules) = spec.get_mut("ingress").and_then(Value::as_array_mut) {
            rules.push(port);
        }
        let patch = Patch::Merge(json!({"spec": spec}));
        api.patch(&format!("policy-{number}"), &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }
}

fn namespace_name(number: usize) -> String {
    format!("team-{number:03}")
}

fn workload(number: usize) -> Value {
    let name = format!("app-{}", number % WORKLOADS);
    json!({"matchLabels": {"app.kubernetes.io/name": name}})
}

/// Does the same to all of them, several at a time.
async fn all<F: Future<Output = Result<()>>>(
    numbers: std::ops::Range<usize>,
    work: impl Fn(usize) -> F,
) -> Result<()> {
    stream::iter(numbers)
        .map(work)
        .buffer_unordered(WRITERS)
        .try_collect()
        .await
}
