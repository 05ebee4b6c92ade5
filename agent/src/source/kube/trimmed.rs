//! Objects as an API server writes them, read no further than policy looks: whatever else is in
//! them is skipped, not stored. What the fields mean is `agent_policy::manifest`'s to say, so each
//! becomes the Kubernetes type that it takes, with all other fields empty. That is also how an object
//! is kept on disk.

use std::collections::BTreeMap;
use std::fmt;

use agent_policy::manifest;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
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

/// A Service.
#[derive(Debug, Deserialize)]
pub(super) struct Service {
    pub(super) metadata: Meta,
    #[serde(default)]
    spec: ServiceSpec,
    #[serde(default)]
    status: Option<ServiceStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ServiceSpec {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    ports: Option<Vec<core::ServicePort>>,
}

#[derive(Debug, Deserialize)]
struct ServiceStatus {
    #[serde(default, rename = "loadBalancer")]
    load_balancer: Option<core::LoadBalancerStatus>,
}

impl From<Service> for core::Service {
    fn from(object: Service) -> Self {
        let spec = object.spec;
        Self {
            metadata: object.metadata.into(),
            spec: Some(core::ServiceSpec {
                type_: spec.kind,
                cluster_ip: spec.cluster_ip,
                cluster_ips: spec.cluster_ips,
                external_ips: spec.external_ips,
                ports: spec.ports,
                ..core::ServiceSpec::default()
            }),
            status: object.status.map(|status| core::ServiceStatus {
                load_balancer: status.load_balancer,
                ..core::ServiceStatus::default()
            }),
        }
    }
}

/// Some of a Service's backends.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointSlice {
    pub(super) metadata: Meta,
    #[serde(default)]
    address_type: String,
    #[serde(default)]
    endpoints: Option<Vec<Endpoint>>,
    #[serde(default)]
    ports: Option<Vec<discovery::EndpointPort>>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    #[serde(default)]
    addresses: Option<Vec<String>>,
    #[serde(default)]
    conditions: Option<discovery::EndpointConditions>,
}

impl From<EndpointSlice> for discovery::EndpointSlice {
    fn from(object: EndpointSlice) -> Self {
        let endpoints = object.endpoints.unwrap_or_default().into_iter();
        Self {
            metadata: object.metadata.into(),
            address_type: object.address_type,
            endpoints: Some(
                endpoints
                    .map(|endpoint| discovery::Endpoint {
                        addresses: endpoint.addresses.unwrap_or_default(),
                        conditions: endpoint.conditions,
                        ..discovery::Endpoint::default()
                    })
                    .collect(),
            ),
            ports: object.ports,
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
    fn of_services_and_their_slices_everything_is_read_that_policy_looks_at() {
        let service = json!({
            "metadata": metadata(),
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1",
                     "clusterIPs": ["10.96.0.1", "fd00::1"], "externalIPs": ["192.0.2.1"],
                     "selector": {"app": "web"}, "sessionAffinity": "ClientIP",
                     "ports": [{"name": "http", "port": 80, "targetPort": "http",
                                "nodePort": 30080}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}},
        });
        let (trimmed, whole) = both::<Service, core::Service, _>(&service, manifest::service);
        assert_eq!(trimmed, whole);
        assert!(trimmed.0.is_some_and(
            |service| service.addresses.len() == 3 && service.external_addresses.len() == 1
        ));
        let mut metadata = metadata();
        metadata["labels"]["kubernetes.io/service-name"] = json!("web");
        let slice = json!({
            "metadata": metadata, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "n1", "zone": "a",
                           "conditions": {"ready": true, "serving": true},
                           "targetRef": {"kind": "Pod", "name": "web-1"}},
                          {"addresses": ["10.0.0.2"], "conditions": {"ready": false}}],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        });
        let (trimmed, whole) =
            both::<EndpointSlice, discovery::EndpointSlice, _>(&slice, manifest::endpoint_slice);
        assert_eq!(trimmed, whole);
        assert!(trimmed.0.is_some_and(|slice| {
            slice.addresses.len() == 1 && &*slice.service == "web" && slice.ports.len() == 1
        }));
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
