//! Claims about reading manifests: whole objects, and spoilt ones.

mod objects;
mod spoilt;

use super::*;
use k8s_openapi::serde_json;

use crate::model::{Peers, PortMatch, Ports, Protocol, Rule};
use crate::selector::Selector;
use crate::written;

fn read(spec: &str) -> (Policy, Vec<Finding>) {
    written::policy(&format!(
        "metadata: {{namespace: payments, name: allow-api}}\nspec: {spec}"
    ))
}

/// Field and message of the only finding.
fn only(findings: &[Finding]) -> (&str, &str) {
    let [finding] = findings else {
        panic!("one finding: {findings:#?}");
    };
    assert_eq!(finding.object, "networkpolicy payments/allow-api");
    (&finding.field, &finding.message)
}

/// The rule is unreadable at a field, for a reason; it keeps its place and admits nothing, the
/// rules around it stand and the policy isolates as it says.
#[track_caller]
fn refuses(rule: &str, field: &str, reason: &str) {
    let whole = "{ports: [{port: 1}]}";
    let (policy, findings) = read(&format!(
        "{{podSelector: {{matchLabels: {{app: api}}}}, ingress: [{whole}, {rule}, {whole}]}}"
    ));
    let (at, message) = only(&findings);
    assert_eq!(at, format!("spec.ingress[1].{field}").trim_end_matches('.'));
    assert_eq!(
        message,
        format!("{reason}; until it is mended this rule allows nothing")
    );
    assert_eq!(findings[0].severity, Severity::Error);
    let [before, unreadable, after] = policy.ingress.as_slice() else {
        panic!("three rules: {policy:?}");
    };
    assert_eq!(*unreadable, Rule::NOTHING);
    assert_ne!(*before, Rule::NOTHING);
    assert_eq!(before, after);
    assert!(policy.isolates_ingress && !policy.isolates_egress);
    assert_eq!(policy.pods.to_string(), "app=api");
}

#[test]
fn unreadable_peers_void_their_rule() {
    refuses(
        "{from: [{}]}",
        "from[0]",
        "names nobody: write podSelector, namespaceSelector or ipBlock",
    );
    refuses(
        "{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}",
        "from[0]",
        "has ipBlock and a selector: make them two items of the list",
    );
    refuses(
        "{from: [{podSelector: {}}, {namespaceSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}",
        "from[1]",
        "has ipBlock and a selector: make them two items of the list",
    );
}

#[test]
fn unreadable_ranges_void_their_rule() {
    for (cidr, reason) in [
        ("10.0.0.0/33", "prefix longer than 32"),
        ("fd00::/129", "prefix longer than 128"),
        ("10.0.0.0/256", "prefix longer than 32"),
        ("10.0.0.1", "prefix length missing, write 10.0.0.1/32"),
        ("fd00::1", "prefix length missing, write fd00::1/128"),
        ("", "not a CIDR, write it like 10.0.0.0/8 or fd00::/8"),
        ("all", "not a CIDR, write it like 10.0.0.0/8 or fd00::/8"),
        (
            "010.0.0.0/8",
            "\"010.0.0.0\" is not an IP address (without leading zeros)",
        ),
        (
            "10.0.0/8",
            "\"10.0.0\" is not an IP address (without leading zeros)",
        ),
        (
            "10.0.0.0/255.0.0.0",
            "prefix length \"255.0.0.0\" is not a number from 0 to 32",
        ),
        (
            "10.0.0.0/",
            "prefix length \"\" is not a number from 0 to 32",
        ),
        (
            "10.0.0.0/+8",
            "prefix length \"+8\" is not a number from 0 to 32",
        ),
        ("::ffff:10.0.0.0/104", "IPv4-mapped, write it as IPv4"),
    ] {
        refuses(
            &format!("{{from: [{{ipBlock: {{cidr: '{cidr}'}}}}]}}"),
            "from[0].ipBlock.cidr",
            &format!("{cidr:?}: {reason}"),
        );
    }
}

#[test]
fn an_exception_must_be_a_smaller_range_inside() {
    for except in ["192.0.2.0/24", "10.0.0.0/8", "0.0.0.0/0", "fd00::/64"] {
        refuses(
            &format!("{{from: [{{ipBlock: {{cidr: 10.0.0.0/8, except: ['{except}']}}}}]}}"),
            "from[0].ipBlock.except[0]",
            &format!("{except:?}: must be inside \"10.0.0.0/8\" and smaller"),
        );
    }
    refuses(
        "{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, ten]}}]}",
        "from[0].ipBlock.except[1]",
        "\"ten\": not a CIDR, write it like 10.0.0.0/8 or fd00::/8",
    );
}

#[test]
fn bits_behind_the_prefix_count_for_nothing_and_are_said() {
    let (policy, findings) =
        read("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/8}}]}]}");
    assert_eq!(
        only(&findings),
        (
            "spec.ingress[0].from[0].ipBlock.cidr",
            "\"10.1.2.3/8\": means 10.0.0.0/8, write 10.0.0.0/8"
        )
    );
    assert_eq!(findings[0].severity, Severity::Warning);
    assert_ne!(policy.ingress, [Rule::NOTHING]);
}

#[test]
fn unreadable_ports_void_their_rule() {
    for (port, field, reason) in [
        ("port: 0", "port", "0: must be from 1 to 65535"),
        ("port: -1", "port", "-1: must be from 1 to 65535"),
        ("port: 65536", "port", "65536: must be from 1 to 65535"),
        (
            "port: 80, endPort: 79",
            "endPort",
            "79: must not be less than port 80",
        ),
        (
            "port: 80, endPort: 65536",
            "endPort",
            "65536: must be from 1 to 65535",
        ),
        (
            "port: http, endPort: 81",
            "endPort",
            "81: cannot stand beside the port name \"http\"",
        ),
        (
            "endPort: 81",
            "endPort",
            "81: needs port, the first of the range",
        ),
        (
            "port: '80'",
            "port",
            "\"80\": a port name needs a letter; for a port number leave the quotes away",
        ),
        (
            "port: ''",
            "port",
            "\"\": a port name has 1 to 15 characters",
        ),
        (
            "port: abcdefghijklmnop",
            "port",
            "\"abcdefghijklmnop\": a port name has 1 to 15 characters",
        ),
        (
            "port: Http",
            "port",
            "\"Http\": a port name must be lower-case letters, digits and single '-', with a \
             letter, and begin and end with a letter or digit",
        ),
        (
            "protocol: tcp",
            "protocol",
            "\"tcp\": must be TCP, UDP or SCTP",
        ),
        ("protocol: ''", "protocol", "\"\": must be TCP, UDP or SCTP"),
        (
            "protocol: ICMP",
            "protocol",
            "\"ICMP\": must be TCP, UDP or SCTP",
        ),
    ] {
        refuses(
            &format!("{{ports: [{{{port}}}]}}"),
            &format!("ports[0].{field}"),
            reason,
        );
    }
}

#[test]
fn unreadable_selectors_void_their_rule() {
    for (selector, field, reason) in [
        (
            "matchExpressions: [{key: app, operator: in, values: [a]}]",
            "matchExpressions[0].operator",
            "\"in\": must be In, NotIn, Exists or DoesNotExist",
        ),
        (
            "matchExpressions: [{key: app, operator: In, values: []}]",
            "matchExpressions[0].values",
            "operator In needs at least one",
        ),
        (
            "matchExpressions: [{key: app, operator: NotIn}]",
            "matchExpressions[0].values",
            "operator NotIn needs at least one",
        ),
        (
            "matchExpressions: [{key: app, operator: Exists, values: [a]}]",
            "matchExpressions[0].values",
            "[\"a\"]: operator Exists takes none",
        ),
        (
            "matchExpressions: [{operator: Exists}]",
            "matchExpressions[0].key",
            "\"\": a label key needs a name of 1 to 63 characters",
        ),
        (
            "matchExpressions: [{key: app, operator: In, values: [a, '-b']}]",
            "matchExpressions[0].values[1]",
            "\"-b\": a label value must be letters, digits, '-', '_' and '.', and begin and end \
             with a letter or digit",
        ),
        (
            "matchLabels: {app: 'a b'}",
            "matchLabels[app]",
            "\"a b\": a label value must be letters, digits, '-', '_' and '.', and begin and end \
             with a letter or digit",
        ),
        (
            "matchLabels: {Example.com/app: a}",
            "matchLabels[Example.com/app]",
            "\"a\": what stands before the '/' of a label key must be a DNS name",
        ),
    ] {
        refuses(
            &format!("{{from: [{{podSelector: {{{selector}}}}}]}}"),
            &format!("from[0].podSelector.{field}"),
            reason,
        );
        refuses(
            &format!("{{from: [{{namespaceSelector: {{{selector}}}}}]}}"),
            &format!("from[0].namespaceSelector.{field}"),
            reason,
        );
    }
}

#[test]
fn values_of_the_wrong_type_and_unknown_fields_void_their_rule() {
    let known = "no such field here, there are";
    for (rule, field, reason) in [
        ("{form: []}", "form", format!("{known} from, ports")),
        ("{to: []}", "to", format!("{known} from, ports")),
        (
            "{from: [{podselector: {}}]}",
            "from[0].podselector",
            format!("{known} podSelector, namespaceSelector, ipBlock"),
        ),
        (
            "{from: [{podSelector: {matchLabel: {}}}]}",
            "from[0].podSelector.matchLabel",
            format!("{known} matchLabels, matchExpressions"),
        ),
        (
            "{from: [{ipBlock: {cidr: 10.0.0.0/8, excepts: []}}]}",
            "from[0].ipBlock.excepts",
            format!("{known} cidr, except"),
        ),
        (
            "{ports: [{port: 80, endport: 81}]}",
            "ports[0].endport",
            format!("{known} protocol, port, endPort"),
        ),
        (
            "{ports: [{port: 80, endPort: '81'}]}",
            "",
            "{\"ports\":[{\"endPort\":\"81\",\"port\":80}]}: invalid type: string \"81\", \
             expected i32"
                .to_owned(),
        ),
        (
            "{from: {podSelector: {}}}",
            "",
            "{\"from\":{\"podSelector\":{}}}: invalid type: map, expected a sequence".to_owned(),
        ),
    ] {
        refuses(rule, field, &reason);
    }
}

#[test]
fn every_fault_of_a_rule_is_found_at_once() {
    let (_, findings) = read(
        "{podSelector: {}, ingress: [{from: [{}, {ipBlock: {cidr: ten}}], ports: [{port: 0}]}]}",
    );
    let fields: Vec<&str> = findings.iter().map(|finding| &*finding.field).collect();
    assert_eq!(
        fields,
        [
            "spec.ingress[0].from[0]",
            "spec.ingress[0].from[1].ipBlock.cidr",
            "spec.ingress[0].ports[0].port",
        ]
    );
}

#[test]
fn a_finding_reads_as_object_field_value_and_remedy() {
    let (_, findings) =
        read("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]}");
    assert_eq!(
        findings[0].to_string(),
        "networkpolicy payments/allow-api: spec.ingress[0].from[0].ipBlock.cidr \"10.0.0.0/33\": \
         prefix longer than 32; until it is mended this rule allows nothing"
    );
}

#[test]
fn policy_types_default_as_the_api_server_does() {
    for (spec, ingress, egress) in [
        ("{}", true, false),
        ("{podSelector: {}}", true, false),
        ("{policyTypes: []}", true, false),
        ("{policyTypes: null, egress: [{}]}", true, true),
        ("{egress: [{}]}", true, true),
        ("{egress: []}", true, false),
        ("{ingress: [{}], egress: [{}]}", true, true),
        ("{policyTypes: [Egress]}", false, true),
        ("{policyTypes: [Ingress], egress: [{}]}", true, false),
        ("{policyTypes: [Egress, Ingress]}", true, true),
        ("{policyTypes: [Egress, Egress]}", false, true),
    ] {
        let (policy, findings) = read(spec);
        assert_eq!(findings, [], "{spec}");
        let isolates = (policy.isolates_ingress, policy.isolates_egress);
        assert_eq!(isolates, (ingress, egress), "{spec}");
    }
}

#[test]
fn unreadable_policy_types_isolate_both_ways_and_admit_only_what_is_named() {
    for (types, field) in [
        ("[Ingress, Egres]", "spec.policyTypes[1]"),
        ("[Ingress, ingress]", "spec.policyTypes[1]"),
        ("[Ingress, Ingress, Ingress]", "spec.policyTypes"),
    ] {
        let (policy, findings) = read(&format!(
            "{{policyTypes: {types}, ingress: [{{}}], egress: [{{}}]}}"
        ));
        assert_eq!(only(&findings).0, field);
        assert!(policy.isolates_ingress && policy.isolates_egress);
        assert_ne!(policy.ingress, [Rule::NOTHING]);
        assert_eq!(policy.egress, [Rule::NOTHING]);
    }
    let (policy, findings) = read("{policyTypes: Ingress, ingress: [{}], egress: [{}]}");
    assert_eq!(only(&findings).0, "spec.policyTypes");
    assert!(policy.isolates_ingress && policy.isolates_egress);
    assert_eq!(policy.ingress, [Rule::NOTHING]);
    assert_eq!(policy.egress, [Rule::NOTHING]);
}

#[test]
fn an_unreadable_pod_selector_isolates_every_pod_and_admits_nothing() {
    for (selector, field) in [
        (
            "{matchLabels: {app: '-'}}",
            "spec.podSelector.matchLabels[app]",
        ),
        ("{matchLables: {app: a}}", "spec.podSelector.matchLables"),
        ("all", "spec.podSelector"),
    ] {
        let (policy, findings) = read(&format!("{{podSelector: {selector}, ingress: [{{}}]}}"));
        let (at, message) = only(&findings);
        assert_eq!(at, field);
        assert!(
            message.ends_with(
                "until it is mended the policy isolates every pod of its namespace and allows \
                 nothing"
            ),
            "{message}"
        );
        assert_eq!(policy.pods, Selector::EVERYTHING);
        assert!(policy.isolates_ingress);
        assert_eq!(policy.ingress, [Rule::NOTHING]);
    }
}

#[test]
fn an_unknown_field_of_spec_may_be_any_that_is_absent() {
    let (policy, findings) = read("{podSelectors: {matchLabels: {app: a}}, ingress: [{}]}");
    assert_eq!(only(&findings).0, "spec.podSelectors");
    assert_eq!(policy.pods, Selector::EVERYTHING);
    assert!(policy.isolates_ingress && policy.isolates_egress);
    assert_eq!(policy.ingress, [Rule::NOTHING]);
    let (policy, findings) =
        read("{podSelector: {}, policyTypes: [Ingress], ingress: [{}], ingres: []}");
    assert_eq!(only(&findings).0, "spec.ingres");
    assert_ne!(
        policy.ingress,
        [Rule::NOTHING],
        "what is written out stands"
    );
}

#[test]
fn a_rule_list_that_is_no_list_admits_nothing_in_its_direction() {
    let (policy, findings) = read("{podSelector: {}, ingress: [{}], egress: {to: []}}");
    assert_eq!(only(&findings).0, "spec.egress");
    assert!(
        policy.isolates_egress,
        "there is egress, so it defaults to it"
    );
    assert_eq!(policy.egress, []);
    assert_eq!(policy.ingress.len(), 1);
}

#[test]
fn a_policy_without_name_isolates_everything_so_that_two_of_them_do_not_differ() {
    let (policy, findings) =
        written::policy("metadata: {namespace: payments}\nspec: {ingress: [{}]}");
    assert_eq!(policy, salvage_policy("payments", "", "").0);
    assert_eq!(findings[0].field, "metadata.name");
    assert_eq!(findings[0].object, "networkpolicy payments/(unnamed)");
}

#[test]
fn names_that_are_no_text_are_found() {
    let (policy, findings) =
        written::policy("metadata: {namespace: 7, name: p}\nspec: {ingress: [{}]}");
    assert_eq!(policy, salvage_policy("7", "p", "").0);
    assert_eq!(findings[0].field, "metadata.namespace");
}

#[test]
fn no_spec_is_the_empty_one_and_is_said() {
    let (policy, findings) = written::policy("metadata: {namespace: payments, name: allow-api}");
    assert_eq!(only(&findings).0, "spec");
    assert!(policy.isolates_ingress && !policy.isolates_egress);
    assert_eq!(policy.pods, Selector::EVERYTHING);
}

#[test]
fn salvage_isolates_both_ways_and_says_why() {
    let (policy, finding) = salvage_policy("", "p", "line 3: not YAML");
    assert_eq!(policy.name.to_string(), "default/p");
    assert!(policy.isolates_ingress && policy.isolates_egress);
    assert_eq!(policy.pods, Selector::EVERYTHING);
    assert!(policy.ingress.is_empty() && policy.egress.is_empty());
    assert!(finding.message.contains("line 3: not YAML"), "{finding}");
}

#[test]
fn ports_default_to_tcp_and_absent_lists_to_everything() {
    let (policy, findings) = read(
        "{podSelector: {}, ingress: [{ports: [{port: 80}, {port: 80, endPort: 80}, {}, \
         {port: http, protocol: UDP}]}, {}]}",
    );
    assert_eq!(findings, []);
    let http = PortMatch::Range {
        protocol: Protocol::TCP,
        first: 80,
        last: 80,
    };
    let expected = Ports::Any(vec![
        http.clone(),
        http,
        PortMatch::Protocol(Protocol::TCP),
        PortMatch::Named {
            protocol: Protocol::UDP,
            name: "http".to_owned(),
        },
    ]);
    assert_eq!(policy.ingress[0].ports, expected);
    assert_eq!(policy.ingress[1].ports, Ports::All);
    assert_eq!(policy.ingress[1].peers, Peers::All);
}

#[test]
fn a_range_as_long_as_a_book_is_refused_and_not_quoted() {
    let zeros = "0".repeat(1 << 20);
    let (policy, findings) = read(&format!(
        "{{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: 10.0.0.0/{zeros}8}}}}]}}]}}"
    ));
    assert_eq!(policy.ingress, [Rule::NOTHING]);
    let (_, message) = only(&findings);
    assert!(message.len() < 2000, "{} bytes are said", message.len());
}

#[test]
fn what_is_no_object_is_not_quoted_whole() {
    let spec = Value::from(vec!["word"; 100_000]);
    let metadata = serde_json::json!({"namespace": "payments", "name": "allow-api"});
    let document = serde_json::json!({"metadata": metadata, "spec": spec});
    let (_, findings) = network_policy_json(&document);
    assert!(findings.iter().all(|finding| finding.message.len() < 2000));
}
