//! Pods.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Reader, namespace_or_default, our_annotations, syntax};
use crate::model::{ContainerPort, Finding, ObjectName, Phase, Pod, PodUid, Protocol};

pub(super) fn read(object: &core::Pod) -> (Option<Pod>, Vec<Finding>) {
    let metadata = &object.metadata;
    let given = metadata.name.clone().unwrap_or_default();
    let namespace = metadata.namespace.clone().unwrap_or_default();
    let name = ObjectName::new(
        namespace_or_default(&namespace),
        super::name_or_unnamed(&given),
    );
    let mut reader = Reader::new("pod", &name.to_string());
    if !reader.has_name(&given) || !reader.has_namespace(&name.namespace) {
        return (None, reader.finish());
    }
    reader.check_name(&given, syntax::dns_subdomain(&given));
    let spec = object.spec.clone().unwrap_or_default();
    let status = object.status.clone().unwrap_or_default();
    let host_network = spec.host_network == Some(true);
    let uid = uid(&mut reader, metadata, &name);
    let created = metadata.creation_timestamp.as_ref();
    let pod = Pod {
        uid,
        labels: reader.labels(metadata),
        addresses: addresses(&mut reader, &status, host_network),
        ports: ports(&mut reader, &spec).into(),
        host_network,
        phase: phase(metadata, &status),
        created: created.map_or(0, |time| time.0.as_second()),
        node: spec.node_name.unwrap_or_default().into(),
        workload: workload(metadata, &given).into(),
        annotations: our_annotations(metadata.annotations.as_ref()),
        name,
    };
    (Some(pod), reader.finish())
}

/// The stated identity; without one, the name, which has a slash and so is no other pod's identity.
fn uid(reader: &mut Reader, metadata: &ObjectMeta, name: &ObjectName) -> PodUid {
    let stated = metadata.uid.as_deref().filter(|uid| !uid.is_empty());
    let validity = stated.map_or(Ok(()), syntax::identity);
    if let Err(problem) = validity {
        reader.error(
            "metadata.uid",
            format!("{stated:?}: {problem}; the pod goes by its name instead"),
        );
    }
    match stated.filter(|_| validity.is_ok()) {
        Some(uid) => PodUid(Arc::from(uid)),
        None => PodUid(Arc::from(name.to_string())),
    }
}

fn phase(metadata: &ObjectMeta, status: &core::PodStatus) -> Phase {
    match status.phase.as_deref() {
        Some("Succeeded" | "Failed") => Phase::Completed,
        _ if metadata.deletion_timestamp.is_some() => Phase::Terminating,
        _ => Phase::Live,
    }
}

fn addresses(reader: &mut Reader, status: &core::PodStatus, host_network: bool) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for (index, stated) in status.pod_ips.iter().flatten().enumerate() {
        let field = format!("status.podIPs[{index}].ip");
        reader.address(&mut found, field, &stated.ip);
    }
    if let Some(text) = status.pod_ip.as_deref()
        && found.is_empty()
        && !text.is_empty()
    {
        reader.address(&mut found, "status.podIP".to_owned(), text);
    }
    if found.is_empty() && host_network {
        for (index, stated) in status.host_ips.iter().flatten().enumerate() {
            let field = format!("status.hostIPs[{index}].ip");
            reader.address(&mut found, field, &stated.ip);
        }
        if let Some(text) = status.host_ip.as_deref()
            && found.is_empty()
            && !text.is_empty()
        {
            reader.address(&mut found, "status.hostIP".to_owned(), text);
        }
    }
    // One or two of the four that a vector begins with, and there are many pods.
    found.shrink_to_fit();
    found
}

/// Declared ports, by container. Of the init containers only those that keep running are served
/// from, as Services see it too.
fn ports(reader: &mut Reader, spec: &core::PodSpec) -> Vec<ContainerPort> {
    let sidecars = (0_usize..)
        .zip(spec.init_containers.iter().flatten())
        .filter(|(_, container)| container.restart_policy.as_deref() == Some("Always"))
        .map(|(index, container)| (format!("spec.initContainers[{index}]"), container));
    let containers = (0_usize..)
        .zip(&spec.containers)
        .map(|(index, container)| (format!("spec.containers[{index}]"), container));
    let mut found = Vec::new();
    let mut known = HashSet::new();
    for (field, container) in containers.chain(sidecars) {
        for (index, port) in container.ports.iter().flatten().enumerate() {
            let port = port_of(reader, &format!("{field}.ports[{index}]"), port);
            if let Some(port) = port
                && known.insert(port.clone())
            {
                found.push(port);
            }
        }
    }
    found
}

fn port_of(reader: &mut Reader, field: &str, port: &core::ContainerPort) -> Option<ContainerPort> {
    let number = syntax::port_number(port.container_port);
    if number.is_none() {
        reader.error(
            format!("{field}.containerPort"),
            format!(
                "{}: must be from 1 to 65535; the port is left out",
                port.container_port
            ),
        );
    }
    let protocol = match port.protocol.as_deref() {
        None => Some(Protocol::TCP),
        Some(name) => {
            let protocol = Protocol::from_name(name);
            if protocol.is_none() {
                reader.error(
                    format!("{field}.protocol"),
                    format!("{name:?}: must be TCP, UDP or SCTP; the port is left out"),
                );
            }
            protocol
        }
    };
    let name = port.name.clone().unwrap_or_default();
    if !name.is_empty()
        && let Err(problem) = syntax::port_name(&name)
    {
        reader.warning(
            format!("{field}.name"),
            format!("{name:?}: {problem}; no policy can name it"),
        );
    }
    Some(ContainerPort {
        name,
        protocol: protocol?,
        port: number?,
    })
}

/// The workload that owns the pod, as `Kind/name`: of what a Deployment or CronJob made, the
/// Deployment or CronJob.
fn workload(metadata: &ObjectMeta, pod: &str) -> String {
    let owners = metadata.owner_references.iter().flatten();
    let owner = owners
        .clone()
        .find(|owner| owner.controller == Some(true))
        .or_else(|| owners.clone().next());
    let Some(owner) = owner else {
        return format!("Pod/{pod}");
    };
    let name = owner.name.as_str();
    match owner.kind.as_str() {
        // A static pod is owned by its node and is nobody else's.
        "Node" => format!("Pod/{pod}"),
        "ReplicaSet" => {
            let hash = metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get("pod-template-hash"));
            let deployment = hash
                .and_then(|hash| name.strip_suffix(hash.as_str()))
                .and_then(|name| name.strip_suffix('-'));
            match deployment {
                Some(deployment) => format!("Deployment/{deployment}"),
                None => format!("ReplicaSet/{name}"),
            }
        }
        "Job" => match name.rsplit_once('-') {
            Some((cron_job, schedule)) if is_schedule(schedule) => format!("CronJob/{cron_job}"),
            _ => format!("Job/{name}"),
        },
        kind => format!("{kind}/{name}"),
    }
}

/// True for what a CronJob appends to its name: the scheduled time since 1970, in minutes (before
/// Kubernetes 1.21 in seconds), between the years 2017 and 2084. A date, as 20260131, is less.
fn is_schedule(suffix: &str) -> bool {
    let is_number = suffix.bytes().all(|byte| byte.is_ascii_digit());
    is_number
        && suffix.parse::<u64>().is_ok_and(|time| match suffix.len() {
            8 => (25_000_000..60_000_000).contains(&time),
            10 => (1_500_000_000..3_600_000_000).contains(&time),
            _ => false,
        })
}
