//! Pods, namespaces and nodes.

use std::net::IpAddr;

use k8s_openapi::serde_json::{self, json};

use super::super::*;
use crate::model::{ContainerPort, ObjectName, Phase, PodUid, Protocol};
use crate::written;

fn pod_of(yaml: &str) -> (Pod, Vec<Finding>) {
    let object = serde_json::from_value(written::documents(yaml)[0].clone()).unwrap();
    let (pod, findings) = pod(&object);
    (pod.unwrap(), findings)
}

#[test]
fn a_pod_is_trimmed_to_what_policy_needs() {
    let (pod, findings) = pod_of(
        "
metadata:
  namespace: shop
  name: web-5d9f-x
  uid: 0aa3
  creationTimestamp: 2026-01-02T03:04:05Z
  labels: {app: web, pod-template-hash: 5d9f}
  annotations: {picket.dev/allow-source: 10.1.0.0/16, other: x}
  ownerReferences: [{kind: ReplicaSet, name: web-5d9f, controller: true, apiVersion: apps/v1, uid: r}]
spec:
  nodeName: node-1
  initContainers:
  - {name: once, ports: [{containerPort: 1}]}
  - {name: sidecar, restartPolicy: Always, ports: [{name: metrics, containerPort: 9090}]}
  containers:
  - {name: c, ports: [{name: http, containerPort: 80}, {name: dns, containerPort: 53, protocol: UDP}]}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
",
    );
    assert_eq!(findings, []);
    let port = |name: &str, protocol, port| ContainerPort {
        name: name.to_owned(),
        protocol,
        port,
    };
    let words = |pairs: &[(&str, &str)]| -> Labels {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    };
    assert_eq!(
        pod,
        Pod {
            uid: PodUid(Arc::from("0aa3")),
            name: ObjectName::new("shop", "web-5d9f-x"),
            labels: words(&[("app", "web"), ("pod-template-hash", "5d9f")]),
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            ports: Arc::from([
                port("http", Protocol::TCP, 80),
                port("dns", Protocol::UDP, 53),
                port("metrics", Protocol::TCP, 9090),
            ]),
            host_network: false,
            phase: Phase::Live,
            created: 1_767_323_045,
            node: "node-1".into(),
            workload: "Deployment/web".into(),
            annotations: words(&[("picket.dev/allow-source", "10.1.0.0/16")]),
        }
    );
}

#[test]
fn a_pods_phase_says_whether_its_address_is_its_own() {
    for (metadata, status, expected) in [
        ("", "", Phase::Live),
        ("", "phase: Pending", Phase::Live),
        ("", "phase: Unknown", Phase::Live),
        (
            ", deletionTimestamp: 2026-01-01T00:00:00Z",
            "phase: Running",
            Phase::Terminating,
        ),
        ("", "phase: Succeeded", Phase::Completed),
        (
            ", deletionTimestamp: 2026-01-01T00:00:00Z",
            "phase: Failed",
            Phase::Completed,
        ),
    ] {
        let (pod, _) = pod_of(&format!(
            "metadata: {{name: p{metadata}}}\nstatus: {{{status}}}"
        ));
        assert_eq!(pod.phase, expected, "{metadata} {status}");
    }
}

#[test]
fn without_uid_a_pod_is_its_name_and_without_namespace_it_is_in_default() {
    let (pod, findings) = pod_of("metadata: {name: p}");
    assert_eq!(findings, []);
    assert_eq!(pod.uid, PodUid(Arc::from("default/p")));
    assert_eq!(&*pod.workload, "Pod/p");
}

#[test]
fn a_host_network_pod_without_own_addresses_takes_its_hosts() {
    let (pod, _) = pod_of(
        "metadata: {name: p}\nspec: {hostNetwork: true, containers: []}\nstatus: {hostIP: 192.0.2.1}",
    );
    assert_eq!(pod.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    let (pod, _) = pod_of("metadata: {name: p}\nstatus: {hostIP: 192.0.2.1}");
    assert_eq!(pod.addresses, [] as [IpAddr; 0]);
}

#[test]
fn what_a_cron_job_made_belongs_to_the_cron_job() {
    for (kind, owner, expected) in [
        ("Job", "backup-29401440", "CronJob/backup"),
        ("Job", "backup-1700000000", "CronJob/backup"),
        ("Job", "migrate-20260131", "Job/migrate-20260131"),
        ("Job", "migrate", "Job/migrate"),
        ("StatefulSet", "db", "StatefulSet/db"),
        ("ReplicaSet", "web-5d9f", "ReplicaSet/web-5d9f"),
        ("Node", "node-1", "Pod/p"),
    ] {
        let (pod, _) = pod_of(&format!(
            "metadata: {{name: p, ownerReferences: [{{kind: {kind}, name: {owner}, apiVersion: v1, \
             uid: u}}]}}"
        ));
        assert_eq!(&*pod.workload, expected, "{kind} {owner}");
    }
}

#[test]
fn unreadable_parts_of_a_pod_are_left_out_and_said() {
    let (pod, findings) = pod_of(
        "
metadata: {name: p, labels: {app: a b}}
spec:
  containers:
  - name: c
    ports: [{containerPort: 0}, {containerPort: 1, protocol: tcp}, {containerPort: 80, name: '80'}]
status: {podIPs: [{ip: 10.0.0.300}, {ip: 10.0.0.3}]}
",
    );
    let fields: Vec<&str> = findings.iter().map(|it| &*it.field).collect();
    assert_eq!(
        fields,
        [
            "metadata.labels[app]",
            "status.podIPs[0].ip",
            "spec.containers[0].ports[0].containerPort",
            "spec.containers[0].ports[1].protocol",
            "spec.containers[0].ports[2].name",
        ]
    );
    assert_eq!(pod.addresses, ["10.0.0.3".parse::<IpAddr>().unwrap()]);
    assert_eq!(pod.ports.len(), 1);
}

#[test]
fn objects_without_a_name_are_left_out_and_said() {
    let (pod, findings) = pod(&core::Pod::default());
    assert_eq!((pod, findings[0].field.as_str()), (None, "metadata.name"));
    let (namespace, findings) = namespace(&core::Namespace::default());
    assert_eq!(
        (namespace, findings[0].field.as_str()),
        (None, "metadata.name")
    );
    let (node, findings) = node(&core::Node::default());
    assert_eq!((node, findings[0].field.as_str()), (None, "metadata.name"));
}

#[test]
fn a_namespace_always_has_its_name_as_a_label() {
    let named = |labels: serde_json::Value| {
        let object = json!({ "metadata": { "name": "shop", "labels": labels } });
        namespace(&serde_json::from_value(object).unwrap())
    };
    let (plain, findings) = named(json!({}));
    assert_eq!(findings, []);
    assert_eq!(plain.unwrap().labels[NAMESPACE_NAME_LABEL], "shop");
    let (lying, findings) = named(json!({ NAMESPACE_NAME_LABEL: "other" }));
    assert_eq!(findings.len(), 1);
    assert_eq!(lying.unwrap().labels[NAMESPACE_NAME_LABEL], "shop");
}

#[test]
fn a_node_has_its_internal_and_external_addresses() {
    let object = json!({
        "metadata": { "name": "node-1" },
        "spec": { "podCIDRs": ["10.0.0.0/24", "bad"] },
        "status": { "addresses": [
            { "type": "InternalIP", "address": "192.0.2.1" },
            { "type": "Hostname", "address": "node-1" },
        ] },
    });
    let (node, findings) = node(&serde_json::from_value(object).unwrap());
    let node = node.unwrap();
    assert_eq!(node.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(node.pod_cidrs, ["10.0.0.0/24".parse().unwrap()]);
    assert_eq!(findings[0].field, "spec.podCIDRs[1]");
}

#[test]
fn names_with_separators_pass_for_no_other_object() {
    // Each would be `a/b/c`, as a name or as an identity, in a reference or in the kernel's NAMES.
    for metadata in [
        "{namespace: a, name: b/c}",
        "{namespace: a/b, name: c}",
        "{namespace: a, name: \"b c\"}",
        "{namespace: \"a\\n\", name: c}",
        "{namespace: a, name: \"c\\u202e\"}",
    ] {
        let text = format!("metadata: {metadata}");
        let object = serde_json::from_value(written::documents(&text)[0].clone()).unwrap();
        let (pod, findings) = pod(&object);
        assert!(
            pod.is_none() && findings.len() == 1,
            "{metadata}: {findings:?}"
        );
        let (policy, findings) = written::policy(&text);
        assert_eq!(findings.len(), 1, "{metadata}: {findings:?}");
        assert!(!policy.name.to_string().contains("a/b/c"), "{metadata}");
        assert!(
            policy.isolates_ingress && policy.isolates_egress,
            "{metadata}"
        );
    }
    let (other, findings) = pod_of("metadata: {namespace: a, name: b, uid: shop/web}");
    assert_eq!(other.uid, PodUid(Arc::from("a/b")), "{findings:?}");
    assert_eq!(findings.len(), 1);
    let (pod, _) = pod_of(&format!("metadata: {{name: p, uid: {}}}", "u".repeat(400)));
    assert_eq!(
        pod.uid,
        PodUid(Arc::from("default/p")),
        "NAMES would cut it"
    );
}

#[test]
fn many_addresses_ports_and_faults_are_read_in_no_time() {
    let list =
        |item: &dyn Fn(usize) -> String| (0..100_000).map(item).collect::<Vec<_>>().join(", ");
    let addresses =
        list(&|index| format!("{{ip: \"fd00::{:x}:{:x}\"}}", index >> 16, index & 0xffff));
    let ports = list(&|index| format!("{{containerPort: {}}}", 1 + index % 65_535));
    let yaml = format!(
        "{{metadata: {{name: p}}, spec: {{containers: [{{name: c, ports: [{ports}]}}]}}, \
         status: {{podIPs: [{addresses}]}}}}"
    );
    let object: k8s_openapi::api::core::v1::Pod =
        serde_json::from_value(serde_saphyr_value(&yaml)).unwrap();
    let (pod, findings) = pod(&object);
    let pod = pod.unwrap();
    assert_eq!((pod.addresses.len(), pod.ports.len()), (256, 65_535));
    assert_eq!(findings.len(), 33, "of 99 744, and a word on the others");
}

/// A document of more nodes than the parser takes of a stranger.
fn serde_saphyr_value(yaml: &str) -> serde_json::Value {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: 10_000_000,
            max_events: 20_000_000,
        },
    };
    serde_saphyr::from_str_with_options(yaml, options).unwrap()
}
