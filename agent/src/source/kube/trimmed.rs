//! Objects as an API server writes them, read no further than policy looks: whatever else is in
//! them is skipped, not stored. What the fields mean is `agent_policy::manifest`'s to say, so each
//! becomes the Kubernetes type that it takes, with all other fields empty. That is also how an object
//! is kept on disk.

use std::collections::BTreeMap;
use std::fmt;

use agent_policy::manifest;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Value, json};

/// What is read of every object's metadata.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) resource_version: String,
    uid: Option<String>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Ours,
    owner_references: Option<Vec<OwnerReference>>,
}

impl From<Meta> for ObjectMeta {
    fn from(meta: Meta) -> Self {
        Self {
            name: Some(meta.name),
            namespace: Some(meta.namespace).filter(|namespace| !namespace.is_empty()),
            uid: meta.uid,
            resource_version: Some(meta.resource_version),
            creation_timestamp: meta.creation_timestamp,
            deletion_timestamp: meta.deletion_timestamp,
            labels: meta.labels,
            annotations: Some(meta.annotations.0).filter(|ours| !ours.is_empty()),
            owner_references: meta.owner_references,
            ..Self::default()
        }
    }
}

/// Annotations that are ours; others may be long, and there are many.
#[derive(Debug, Default)]
struct Ours(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Ours {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OursOf;

        impl<'de> Visitor<'de> for OursOf {
            type Value = Ours;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("annotations")
            }

            fn visit_unit<E>(self) -> Result<Ours, E> {
                Ok(Ours::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ours, A::Error> {
                let mut ours = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if manifest::is_our_annotation(&key) {
                        ours.insert(key, map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Ours(ours))
            }
        }

        deserializer.deserialize_any(OursOf)
    }
}

/// Just enough of an object that cannot be read to say which one it is.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Named {
    pub(super) metadata: NamedMeta,
}

/// See [`Named`].
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NamedMeta {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) resource_version: String,
}

/// A namespace.
#[derive(Debug, Deserialize)]
pub(super) struct Namespace {
    pub(super) metadata: Meta,
}

impl From<Namespace> for core::Namespace {
    fn from(object: Namespace) -> Self {
        Self {
            metadata: object.metadata.into(),
            ..Self::default()
        }
    }
}

/// A node.
#[derive(Debug, Deserialize)]
pub(super) struct Node {
    pub(super) metadata: Meta,
    #[serde(default)]
    spec: Option<NodeSpec>,
    #[serde(default)]
    status: Option<NodeStatus>,
}

#[derive(Debug, Deserialize)]
struct NodeSpec {
    #[serde(default, rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct NodeStatus {
    #[serde(default)]
    addresses: Option<Vec<core::NodeAddress>>,
}

impl From<Node> for core::Node {
    fn from(object: Node) -> Self {
        Self {
            metadata: object.metadata.into(),
            spec: object.spec.map(|spec| core::NodeSpec {
                pod_cidr: spec.pod_cidr,
                pod_cidrs: spec.pod_cidrs,
                ..core::NodeSpec::default()
            }),
            status: object.status.map(|status| core::NodeStatus {
                addresses: status.addresses,
                ..core::NodeStatus::default()
            }),
        }
    }
}

/// A pod.
#[derive(Debug, Deserialize)]
pub(super) struct Pod {
    pub(super) metadata: Meta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
    node_name: Option<String>,
    host_network: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    ports: Option<Vec<core::ContainerPort>>,
    restart_policy: Option<String>,
}

impl From<Container> for core::Container {
    fn from(container: Container) -> Self {
        Self {
            ports: container.ports,
            restart_policy: container.restart_policy,
            ..Self::default()
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<core::PodIP>>,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
    #[serde(rename = "hostIPs")]
    host_ips: Option<Vec<core::HostIP>>,
}

impl From<Pod> for core::Pod {
    fn from(object: Pod) -> Self {
        let containers = |list: Vec<Container>| list.into_iter().map(Into::into).collect();
        Self {
            metadata: object.metadata.into(),
            spec: Some(core::PodSpec {
                containers: containers(object.spec.containers.unwrap_or_default()),
                init_containers: object.spec.init_containers.map(containers),
                node_name: object.spec.node_name,
                host_network: object.spec.host_network,
                ..core::PodSpec::default()
            }),
            status: Some(core::PodStatus {
                phase: object.status.phase,
                pod_ip: object.status.pod_ip,
                pod_ips: object.status.pod_ips,
                host_ip: object.status.host_ip,
                host_ips: object.status.host_ips,
                ..core::PodStatus::default()
            }),
        }
    }
}

/// A network policy: its specification as a whole, because one value of a wrong type or a field
/// that is new must not cost the rest.
#[derive(Debug, Deserialize)]
pub(super) struct NetworkPolicy {
    pub(super) metadata: Meta,
    #[serde(default)]
    spec: Value,
}

impl From<NetworkPolicy> for Value {
    fn from(object: NetworkPolicy) -> Self {
        json!({
            "metadata": {
                "namespace": object.metadata.namespace,
                "name": object.metadata.name,
                "resourceVersion": object.metadata.resource_version,
                "annotations": object.metadata.annotations.0,
            },
            "spec": object.spec,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::*;

    /// What is read of the trimmed object and of the whole one.
    fn both<T: DeserializeOwned, K: DeserializeOwned + From<T>, R>(
        document: &Value,
        read: impl Fn(&K) -> R,
    ) -> (R, R) {
        let trimmed: T = serde_json::from_value(document.clone()).unwrap();
        let whole: K = serde_json::from_value(document.clone()).unwrap();
        (read(&trimmed.into()), read(&whole))
    }

    fn metadata() -> Value {
        json!({
            "name": "web-5d-x", "generateName": "web-5d-", "namespace": "shop", "uid": "u-1",
            "resourceVersion": "812", "generation": 3,
            "creationTimestamp": "2026-11-22T10:00:00Z",
            "deletionTimestamp": "2026-11-22T11:00:00Z", "deletionGracePeriodSeconds": 30,
            "labels": {"app": "web", "pod-template-hash": "5d"},
            "annotations": {"picket.dev/mode": "audit", "other/long": "x".repeat(100)},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d",
                                 "uid": "u-0", "controller": true}],
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}]
        })
    }

    #[test]
    fn of_a_pod_everything_is_read_that_policy_looks_at() {
        let container = |restart: &str, port: i32| {
            json!({"name": "c", "image": "i", "env": [{"name": "A", "value": "b"}],
                   "restartPolicy": restart,
                   "ports": [{"name": "http", "containerPort": port, "protocol": "UDP"}]})
        };
        for host_network in [false, true] {
            for phase in ["Pending", "Running", "Succeeded"] {
                for addresses in [
                    json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}),
                    json!({"podIP": "10.0.0.2"}),
                    json!({"hostIP": "192.0.2.1", "hostIPs": [{"ip": "192.0.2.1"}]}),
                    json!({"hostIP": "192.0.2.2"}),
                    json!({"podIPs": [{"ip": "none"}]}),
                ] {
                    let mut status = addresses;
                    status["phase"] = json!(phase);
                    status["conditions"] = json!([{"type": "Ready", "status": "True"}]);
                    let pod = json!({
                        "metadata": metadata(),
                        "spec": {"containers": [container("Never", 80)],
                                 "initContainers": [container("Always", 81), container("No", 82)],
                                 "nodeName": "n1", "hostNetwork": host_network,
                                 "volumes": [{"name": "v", "emptyDir": {}}]},
                        "status": status,
                    });
                    let (trimmed, whole) = both::<Pod, core::Pod, _>(&pod, manifest::pod);
                    assert_eq!(trimmed, whole, "{pod}");
                    assert!(trimmed.0.is_some_and(|pod| pod.ports.len() == 2));
                }
            }
        }
    }

    #[test]
    fn of_namespaces_and_nodes_everything_is_read_that_policy_looks_at() {
        let namespace = json!({"metadata": metadata(), "spec": {"finalizers": ["kubernetes"]},
                               "status": {"phase": "Active"}});
        let (trimmed, whole) =
            both::<Namespace, core::Namespace, _>(&namespace, manifest::namespace);
        assert_eq!(trimmed, whole);
        let node = json!({
            "metadata": metadata(),
            "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24", "fd00::/64", "x"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"},
                                     {"type": "Hostname", "address": "n1"}],
                       "images": [{"names": ["a"], "sizeBytes": 5}]},
        });
        let (trimmed, whole) = both::<Node, core::Node, _>(&node, manifest::node);
        assert_eq!(trimmed, whole);
        assert_eq!(trimmed.0.map(|node| node.pod_cidrs.len()), Some(2));
    }

    #[test]
    fn of_a_policy_everything_is_read_that_policy_looks_at() {
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata(),
            "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
                     "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80}]},
                                 {"from": "everyone"}],
                     "newerField": 5},
        });
        let trimmed: NetworkPolicy = serde_json::from_value(policy.clone()).unwrap();
        assert_eq!(
            manifest::network_policy_json(&trimmed.into()),
            manifest::network_policy_json(&policy)
        );
    }

    #[test]
    fn absent_and_null_fields_mean_the_same() {
        for text in [
            r#"{"metadata":{"name":"a"}}"#,
            r#"{"metadata":{"name":"a","labels":null,"annotations":null,"creationTimestamp":null,
                "ownerReferences":null},"spec":{"containers":null},"status":{}}"#,
        ] {
            let pod: Pod = serde_json::from_str(text).unwrap();
            let (pod, findings) = manifest::pod(&pod.into());
            assert!(pod.is_some() && findings.is_empty(), "{text}");
        }
    }
}
