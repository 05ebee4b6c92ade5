//! Services and `EndpointSlice`s to the model.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::reader::Reader;
use super::{namespace_or_default, syntax};
use crate::model::{
    BackendPort, EndpointSlice, Finding, ObjectName, Protocol, Service, ServicePort,
};

/// The label that tells which Service a slice is of (Kubernetes documentation, `EndpointSlices`).
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Endpoints of one slice: the API server takes no more.
const MAX_ENDPOINTS: usize = 1000;
/// The label of a Service that another proxy than the cluster's serves.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Ports of addresses of one Service: the room of all is the node's.
const MAX_FRONTENDS: usize = 4096;
/// What stands in `clusterIP` of a headless Service.
const HEADLESS: &str = "None";

/// The object's name, if it can go by it, and what is wrong with it.
fn named(kind: &str, metadata: &ObjectMeta) -> (Option<ObjectName>, Reader) {
    let name = metadata.name.clone().unwrap_or_default();
    let namespace = namespace_or_default(metadata.namespace.as_deref().unwrap_or_default());
    let mut reader = Reader::new(kind, &format!("{namespace}/{name}"));
    if !reader.has_name(&name) || !reader.has_namespace(namespace) {
        return (None, reader);
    }
    (Some(ObjectName::new(namespace, name)), reader)
}

/// See [`super::service`].
pub(super) fn service(object: &core::Service) -> (Option<Service>, Vec<Finding>) {
    let (name, mut reader) = named("service", &object.metadata);
    let Some(name) = name else {
        return (None, reader.finish());
    };
    let spec = object.spec.clone().unwrap_or_default();
    let mut addresses = Vec::new();
    let mut external_addresses = Vec::new();
    if is_served(object, &spec) {
        cluster_addresses(&mut reader, &spec, &mut addresses);
        let families: Vec<bool> = addresses.iter().map(IpAddr::is_ipv4).collect();
        balancer_addresses(&mut reader, object, &mut addresses);
        for (index, text) in spec.external_ips.iter().flatten().enumerate() {
            let field = format!("spec.externalIPs[{index}]");
            reader.address(&mut external_addresses, field, text);
        }
        // A Service proxy serves a family by its cluster IP: without one it looks at nothing else.
        for found in [&mut addresses, &mut external_addresses] {
            found.retain(|address| families.contains(&address.is_ipv4()));
        }
    }
    let mut ports: Vec<ServicePort> = Vec::new();
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let field = format!("spec.ports[{index}]");
        let number = port_number(&mut reader, &format!("{field}.port"), port.port);
        let protocol = protocol(&mut reader, &field, port.protocol.as_deref());
        if let (Some(port_number), Some(protocol)) = (number, protocol) {
            ports.push(ServicePort {
                name: port.name.clone().unwrap_or_default(),
                protocol,
                port: port_number,
            });
        }
    }
    let most = MAX_FRONTENDS / (addresses.len() + external_addresses.len()).max(1);
    if ports.len() > most {
        reader.error(
            "spec.ports",
            format!(
                "{}: with so many addresses at most {most}; those after it are left out, and judged \
                 by the address",
                ports.len()
            ),
        );
        ports.truncate(most);
    }
    let service = Service {
        name,
        addresses,
        external_addresses,
        ports: ports.into(),
    };
    (Some(service), reader.finish())
}

/// True for a Service that Service proxies take traffic of. Not for a name that DNS answers, nor where
/// another proxy is named (Kubernetes documentation, well-known labels).
fn is_served(object: &core::Service, spec: &core::ServiceSpec) -> bool {
    let labels = object.metadata.labels.iter().flatten();
    let is_others = labels.into_iter().any(|(key, _)| key == PROXY_NAME_LABEL);
    !is_others && spec.type_.as_deref() != Some("ExternalName")
}

fn cluster_addresses(reader: &mut Reader, spec: &core::ServiceSpec, addresses: &mut Vec<IpAddr>) {
    let single = spec.cluster_ip.iter();
    let all = spec.cluster_ips.iter().flatten();
    let stated = all
        .chain(single)
        .filter(|text| !text.is_empty() && *text != HEADLESS);
    for text in stated {
        reader.address(addresses, "spec.clusterIPs".to_owned(), text);
    }
}

fn balancer_addresses(reader: &mut Reader, object: &core::Service, addresses: &mut Vec<IpAddr>) {
    let status = object.status.as_ref();
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref());
    for (index, ingress) in ingress.into_iter().flatten().enumerate() {
        // In mode Proxy the load balancer itself is sent to (KEP-1860).
        if let Some(text) = &ingress.ip
            && ingress.ip_mode.as_deref() != Some("Proxy")
        {
            let field = format!("status.loadBalancer.ingress[{index}].ip");
            reader.address(addresses, field, text);
        }
    }
}

/// See [`super::endpoint_slice`].
pub(super) fn endpoint_slice(
    object: &discovery::EndpointSlice,
) -> (Option<EndpointSlice>, Vec<Finding>) {
    let (name, mut reader) = named("endpointslice", &object.metadata);
    let Some(name) = name else {
        return (None, reader.finish());
    };
    let labels = object.metadata.labels.as_ref();
    let service = labels.and_then(|labels| labels.get(SERVICE_NAME_LABEL));
    let mut addresses: Vec<IpAddr> = Vec::new();
    let is_by_address = matches!(object.address_type.as_str(), "IPv4" | "IPv6");
    for (index, endpoint) in object.endpoints.iter().flatten().enumerate() {
        if !is_by_address || !may_be_chosen(endpoint) {
            continue;
        }
        let field = format!("endpoints[{index}].addresses[0]");
        if addresses.len() == MAX_ENDPOINTS {
            reader.error(
                field,
                format!("one more than {MAX_ENDPOINTS}; it and those after it are left out"),
            );
            break;
        }
        // "All endpoints are fungible": consumers use the first (EndpointSlice's documentation).
        match endpoint
            .addresses
            .first()
            .map(|text| text.parse::<IpAddr>())
        {
            Some(Ok(address)) => addresses.push(address.to_canonical()),
            Some(Err(_)) => reader.error(
                field,
                format!(
                    "{:?}: not an IP address; it is left out",
                    endpoint.addresses
                ),
            ),
            None => {}
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    let mut ports = Vec::new();
    for (index, port) in object.ports.iter().flatten().enumerate() {
        let field = format!("ports[{index}]");
        // Without a number it is of no use to a Service's proxy.
        let Some(number) = port.port else { continue };
        let number = port_number(&mut reader, &format!("{field}.port"), number);
        let protocol = protocol(&mut reader, &field, port.protocol.as_deref());
        if let (Some(port_number), Some(protocol)) = (number, protocol) {
            ports.push(BackendPort {
                name: port.name.clone().unwrap_or_default(),
                protocol,
                port: port_number,
            });
        }
    }
    let slice = EndpointSlice {
        name,
        service: service.map(String::as_str).unwrap_or_default().into(),
        addresses: addresses.into(),
        ports: ports.into(),
    };
    (Some(slice), reader.finish())
}

/// True for an endpoint that a Service proxy may choose: a ready one (unknown is ready), or one that
/// still serves on its way out, to which proxies turn when no other is left (KEP-1669).
fn may_be_chosen(endpoint: &discovery::Endpoint) -> bool {
    let Some(conditions) = &endpoint.conditions else {
        return true;
    };
    conditions.ready.unwrap_or(true) || conditions.serving.unwrap_or_default()
}

fn port_number(reader: &mut Reader, field: &str, number: i32) -> Option<u16> {
    let valid = syntax::port_number(number);
    if valid.is_none() {
        reader.error(
            field,
            format!("{number}: must be from 1 to 65535; the port is left out"),
        );
    }
    valid
}

fn protocol(reader: &mut Reader, field: &str, name: Option<&str>) -> Option<Protocol> {
    let Some(name) = name else {
        return Some(Protocol::TCP);
    };
    let protocol = Protocol::from_name(name);
    if protocol.is_none() {
        reader.error(
            format!("{field}.protocol"),
            format!("{name:?}: must be TCP, UDP or SCTP; the port is left out"),
        );
    }
    protocol
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde_json::{Value, from_value, json};

    use super::*;

    fn read(document: Value) -> Service {
        let (service, findings) = service(&from_value(document).unwrap());
        assert_eq!(findings, []);
        service.unwrap()
    }

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_service_is_at_each_address_that_its_proxy_serves() {
        let service = read(json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
                     "externalIPs": ["192.0.2.1"],
                     "ports": [{"port": 80, "targetPort": "http"},
                               {"name": "dns", "port": 53, "protocol": "UDP"}]},
            "status": {"loadBalancer": {"ingress": [
                {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "Proxy"},
                {"hostname": "lb.example"}, {"ip": "203.0.113.3", "ipMode": "VIP"}]}},
        }));
        let expected = ["10.96.0.1", "fd00::1", "203.0.113.1", "203.0.113.3"];
        assert_eq!(service.addresses, addresses(&expected));
        assert_eq!(service.external_addresses, addresses(&["192.0.2.1"]));
        let ports: Vec<_> = service
            .ports
            .iter()
            .map(|port| (port.protocol, port.port))
            .collect();
        assert_eq!(ports, [(Protocol::TCP, 80), (Protocol::UDP, 53)]);
    }

    #[test]
    fn what_no_service_proxy_serves_is_nowhere() {
        for (labels, spec) in [
            (
                json!({}),
                json!({"clusterIP": "None", "clusterIPs": ["None"],
                               "externalIPs": ["192.0.2.1"], "ports": [{"port": 80}]}),
            ),
            (
                json!({}),
                json!({"clusterIP": "", "externalIPs": ["192.0.2.1"]}),
            ),
            (
                json!({}),
                json!({"clusterIP": "10.96.0.1", "externalIPs": ["fd00::1"]}),
            ),
            (
                json!({}),
                json!({"type": "ExternalName", "externalName": "a.example",
                               "externalIPs": ["192.0.2.1"]}),
            ),
            (
                json!({"service.kubernetes.io/service-proxy-name": "other"}),
                json!({"clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.1"]}),
            ),
        ] {
            let metadata = json!({"name": "web", "labels": labels});
            let service = read(json!({"metadata": metadata, "spec": spec}));
            assert_eq!(service.external_addresses, [] as [IpAddr; 0], "{spec}");
            let is_virtual = service.addresses == addresses(&["10.96.0.1"]);
            assert!(service.addresses.is_empty() || is_virtual, "{spec}");
        }
    }

    #[test]
    fn one_service_takes_no_more_than_its_share_of_the_room() {
        let ports: Vec<_> = (1..=5000)
            .map(|port| json!({"name": format!("p{port}"), "port": port}))
            .collect();
        let document = json!({"metadata": {"name": "web", "namespace": "shop"},
            "spec": {"clusterIPs": ["10.96.0.1", "fd00::1"], "ports": ports}});
        let (service, findings) = service(&from_value(document).unwrap());
        assert_eq!(service.unwrap().ports.len(), 2048);
        assert!(
            findings[0].to_string().contains("at most 2048"),
            "{findings:?}"
        );
    }

    fn slice(address_type: &str, endpoints: &Value) -> EndpointSlice {
        let document = json!({
            "metadata": {"name": "web-x", "namespace": "shop",
                         "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": address_type, "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080}, {"name": "any"}],
        });
        let (slice, findings) = endpoint_slice(&from_value(document).unwrap());
        assert_eq!(findings, []);
        slice.unwrap()
    }

    #[test]
    fn who_is_ready_or_still_serves_is_behind_a_service() {
        let slice = slice(
            "IPv4",
            &json!([
                {"addresses": ["10.0.0.1"]},
                {"addresses": ["10.0.0.2", "10.0.0.9"], "conditions": {"ready": true}},
                {"addresses": ["10.0.0.3"], "conditions": {"ready": false}},
                {"addresses": ["10.0.0.4"],
                 "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["10.0.0.5"],
                 "conditions": {"ready": false, "serving": false, "terminating": true}},
            ]),
        );
        let expected = addresses(&["10.0.0.1", "10.0.0.2", "10.0.0.4"]);
        assert_eq!(slice.addresses.to_vec(), expected);
        assert_eq!(&*slice.service, "web");
        assert_eq!(slice.ports.len(), 1);
    }

    #[test]
    fn a_slice_of_names_has_nobody() {
        let slice = slice("FQDN", &json!([{"addresses": ["a.example"]}]));
        assert!(slice.addresses.is_empty());
    }

    #[test]
    fn what_a_service_cannot_mean_is_said() {
        let service_of = |spec: Value| {
            let document = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec});
            let (service, findings) = service(&from_value(document).unwrap());
            let said: Vec<String> = findings.iter().map(ToString::to_string).collect();
            (service.unwrap(), said)
        };
        let (service, said) = service_of(json!({
            "clusterIP": "ten", "ports": [{"port": 0}, {"port": 80, "protocol": "tcp"}]}));
        assert!(service.addresses.is_empty() && service.ports.is_empty());
        assert_eq!(
            said,
            [
                "service shop/web: spec.clusterIPs \"ten\": not an IP address; it is left out",
                "service shop/web: spec.ports[0].port 0: must be from 1 to 65535; the port is \
                 left out",
                "service shop/web: spec.ports[1].protocol \"tcp\": must be TCP, UDP or SCTP; the \
                 port is left out",
            ]
        );
    }
}
