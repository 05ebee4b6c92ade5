//! Claims about explanations of what goes to a Service: who is behind it decides.

use super::*;

/// A client that may reach pods with `role: web` at 8080, and a Service with these pods behind it, at
/// 8080 too.
fn shop(behind: &str) -> Explanation {
    let cluster = written::cluster(&format!(
        "
kind: Pod
metadata: {{name: client, labels: {{role: client}}}}
spec: {{containers: [{{name: c}}]}}
status: {{podIP: 10.0.0.1}}
---
kind: Pod
metadata: {{name: web, labels: {{role: web}}}}
spec: {{containers: [{{name: c}}]}}
status: {{podIP: 10.0.0.2}}
---
kind: Pod
metadata: {{name: old, labels: {{role: old}}}}
spec: {{containers: [{{name: c}}]}}
status: {{podIP: 10.0.0.3}}
---
kind: Service
metadata: {{name: web}}
spec: {{clusterIP: 10.96.0.1, ports: [{{port: 80, targetPort: 8080}}]}}
---
kind: EndpointSlice
metadata: {{name: web-x, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
endpoints: [{behind}]
ports: [{{port: 8080}}]
---
kind: NetworkPolicy
metadata: {{name: client}}
spec:
  podSelector: {{matchLabels: {{role: client}}}}
  policyTypes: [Egress]
  egress: [{{to: [{{podSelector: {{matchLabels: {{role: web}}}}}}], ports: [{{port: 8080}}]}}]
"
    ));
    explain(&cluster, &written::tcp("10.0.0.1", "10.96.0.1", 80))
}

const WEB: &str = "{addresses: [10.0.0.2]}";
const OLD: &str = "{addresses: [10.0.0.3]}";

#[test]
fn the_rule_for_the_pods_behind_a_service_admits_to_it() {
    let explained = shop(WEB);
    assert_eq!(explained.egress.decision.reason, Reason::Rule);
    let rule = explained.egress.decision.rule.unwrap();
    assert_eq!(rule.to_string(), "default/client/egress/0");
    let behind: Vec<String> = explained
        .egress
        .behind
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(behind, ["default/web:8080"]);
}

#[test]
fn a_refusal_is_explained_by_the_first_pod_behind_it_that_no_rule_admits_to() {
    for (behind, reason, refused) in [
        (OLD.to_owned(), Reason::ServiceNone, 1),
        (format!("{WEB}, {OLD}"), Reason::ServiceUnseen, 1),
    ] {
        let egress = shop(&behind).egress;
        assert_eq!(egress.decision.reason, reason);
        let denied = egress.behind.iter().filter(|behind| !behind.is_allowed);
        assert_eq!(denied.count(), refused);
        let nearest = &egress.nearest[0];
        assert_eq!(nearest.rule.to_string(), "default/client/egress/0");
        let failed = nearest
            .conditions
            .iter()
            .find(|condition| !condition.is_met);
        let failed = failed.unwrap();
        assert_eq!((&*failed.wants, &*failed.has), ("role=web", "role=old"));
        let addition = egress.addition.unwrap();
        assert!(
            format!("{addition:?}").contains("8080"),
            "the pods' port: {addition:?}"
        );
    }
}

#[test]
fn a_service_without_backends_refuses_by_itself() {
    let explained = shop("");
    assert_eq!(explained.egress.decision.reason, Reason::NoEndpoints);
    assert!(explained.egress.nearest.is_empty());
}

/// A Service of this spec with `web` behind it, or nobody.
fn cluster(spec: &str, behind: &str) -> Cluster {
    written::cluster(&format!(
        "
kind: Service
metadata: {{name: web}}
spec: {spec}
---
kind: EndpointSlice
metadata: {{name: web-x, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
endpoints: [{behind}]
ports: [{{port: 8080}}]
"
    ))
}

fn backends(cluster: &Cluster, address: &str) -> Option<Vec<String>> {
    let backends = cluster.backends(address.parse().unwrap(), Protocol::TCP, 80)?;
    let backends = backends.into_iter();
    Some(backends.map(|(ip, port)| format!("{ip}:{port}")).collect())
}

#[test]
fn an_address_that_a_services_owner_names_has_to_be_allowed_itself() {
    let spec = "{clusterIP: 10.96.0.1, externalIPs: [10.0.0.9], ports: [{port: 80}]}";
    let served = cluster(spec, WEB);
    let both = ["10.0.0.2:8080", "10.0.0.9:80"].map(str::to_owned);
    assert_eq!(backends(&served, "10.0.0.9"), Some(both.to_vec()));
    assert_eq!(backends(&served, "10.96.0.1"), Some(both[..1].to_vec()));
    let nobody = cluster(spec, "");
    assert_eq!(backends(&nobody, "10.0.0.9"), Some(both[1..].to_vec()));
    assert_eq!(backends(&nobody, "10.96.0.1"), Some(Vec::new()));
    // Which no Service proxy takes anywhere.
    let headless = "{clusterIP: None, externalIPs: [10.0.0.9], ports: [{port: 80}]}";
    assert_eq!(backends(&cluster(headless, WEB), "10.0.0.9"), None);
}

#[test]
fn what_stands_in_for_a_service_is_judged_by_itself_when_nobody_is_behind_that() {
    let spec = "{clusterIP: 10.96.0.1, ports: [{port: 80}]}";
    for (behind, expected) in [(WEB, Some(vec!["10.0.0.2:8080".to_owned()])), ("", None)] {
        let mut cluster = cluster(spec, behind);
        let service = ObjectName::new("default", "web");
        let touched = cluster.stand_in("169.254.20.10".parse().unwrap(), service);
        assert_eq!(touched.virtual_addresses.len(), 1);
        assert_eq!(backends(&cluster, "169.254.20.10"), expected);
    }
}
