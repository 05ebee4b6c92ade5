//! The frame of a NetworkPolicy: names, whom it isolates and in which directions.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
    NetworkPolicyPort,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::rules::{self, THIS_RULE};
use super::{Reader, UNNAMED, name_or_unnamed, namespace_or_default, our_annotations, syntax};
use crate::model::{Direction, Finding, Labels, ObjectName, Policy, Rule};
use crate::selector::Selector;

/// Why a part has the wrong form: at which field, and what is wrong.
pub(super) struct Misformed {
    pub(super) field: String,
    pub(super) problem: String,
}

/// A part of a document that has the right form, or not.
pub(super) type Part<T> = Result<T, Vec<Misformed>>;

/// A NetworkPolicy in parts, each with the right form or not; what they say is not yet checked.
pub(super) struct Parts {
    pub(super) namespace: String,
    pub(super) name: String,
    /// Names that are not text.
    pub(super) misnamed: Vec<Misformed>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) has_spec: bool,
    /// Fields of the spec that there are not. Each may stand for one that is absent, which then
    /// is a part of the wrong form.
    pub(super) strangers: Vec<Misformed>,
    pub(super) pod_selector: Part<LabelSelector>,
    pub(super) policy_types: Part<Vec<String>>,
    pub(super) ingress: Part<Vec<Part<RuleParts>>>,
    pub(super) egress: Part<Vec<Part<RuleParts>>>,
}

/// An ingress or egress rule: both have the same parts.
pub(super) struct RuleParts {
    pub(super) peers: Vec<NetworkPolicyPeer>,
    pub(super) ports: Vec<NetworkPolicyPort>,
}

// An absent list and an empty one mean the same everywhere in NetworkPolicy.
impl From<NetworkPolicyIngressRule> for RuleParts {
    fn from(rule: NetworkPolicyIngressRule) -> Self {
        Self {
            peers: rule.from.unwrap_or_default(),
            ports: rule.ports.unwrap_or_default(),
        }
    }
}

impl From<NetworkPolicyEgressRule> for RuleParts {
    fn from(rule: NetworkPolicyEgressRule) -> Self {
        Self {
            peers: rule.to.unwrap_or_default(),
            ports: rule.ports.unwrap_or_default(),
        }
    }
}

impl Parts {
    pub(super) fn from_typed(object: &NetworkPolicy) -> Self {
        let metadata = object.metadata.clone();
        let has_spec = object.spec.is_some();
        let spec = object.spec.clone().unwrap_or_default();
        let ingress = spec.ingress.unwrap_or_default().into_iter();
        let egress = spec.egress.unwrap_or_default().into_iter();
        Self {
            namespace: metadata.namespace.unwrap_or_default(),
            name: metadata.name.unwrap_or_default(),
            misnamed: Vec::new(),
            annotations: metadata.annotations.unwrap_or_default(),
            has_spec,
            strangers: Vec::new(),
            pod_selector: Ok(spec.pod_selector.unwrap_or_default()),
            policy_types: Ok(spec.policy_types.unwrap_or_default()),
            ingress: Ok(ingress.map(|rule| Ok(rule.into())).collect()),
            egress: Ok(egress.map(|rule| Ok(rule.into())).collect()),
        }
    }
}

/// Isolates every pod of the namespace in both directions and admits nothing.
pub(super) fn closed(namespace: &str, name: &str) -> Policy {
    Policy {
        name: ObjectName::new(namespace, name),
        pods: Selector::EVERYTHING,
        isolates_ingress: true,
        isolates_egress: true,
        ingress: Vec::new(),
        egress: Vec::new(),
        annotations: Labels::new(),
    }
}

pub(super) fn read(parts: Parts) -> (Policy, Vec<Finding>) {
    let name = ObjectName::new(
        namespace_or_default(&parts.namespace),
        name_or_unnamed(&parts.name),
    );
    let mut reader = Reader::new("networkpolicy", &name.to_string());
    if parts.name.is_empty() {
        // Two policies without a name would replace each other: what stands for them must be
        // the same for all.
        reader.error(
            "metadata.name",
            format!(
                "missing: name it; until then {UNNAMED} isolates every pod of namespace {:?} in \
                 both directions and allows nothing",
                &*name.namespace
            ),
        );
        return (closed(&name.namespace, &name.name), reader.finish());
    }
    let mut misnamed = parts.misnamed;
    for (field, given) in [("namespace", &name.namespace), ("name", &name.name)] {
        if let Err(problem) = syntax::identity(given) {
            misnamed.push(Misformed {
                field: format!("metadata.{field}"),
                problem: format!("{given:?}: {problem}"),
            });
        }
    }
    if !misnamed.is_empty() {
        report(&mut reader, misnamed, EVERY_POD);
        let usable = |given| syntax::identity(given).map_or(UNNAMED, |()| given);
        let policy = closed(usable(&name.namespace), usable(&name.name));
        return (policy, reader.finish());
    }
    reader.check_name(&parts.name, syntax::dns_subdomain(&parts.name));
    if !parts.has_spec {
        reader.warning(
            "spec",
            "missing: read as empty, which isolates every pod of the namespace for ingress and \
             allows nothing; write it out",
        );
    }
    report(&mut reader, parts.strangers, STRANGER);
    let types = Types::read(
        &mut reader,
        parts.policy_types,
        !matches!(&parts.egress, Ok(rules) if rules.is_empty()),
    );
    let pods = read_pod_selector(&mut reader, parts.pod_selector);
    let is_pod_selector_readable = pods.is_some();
    let mut rules_of = |direction: Direction, rules: Part<Vec<Part<RuleParts>>>| {
        let mut rules = read_rules(&mut reader, direction, rules);
        // A rule must not admit anything for pods or directions it may not have been meant for.
        if !is_pod_selector_readable || !(types.is_readable || types.is_named(direction)) {
            rules.fill(Rule::NOTHING);
        }
        rules
    };
    let policy = Policy {
        ingress: rules_of(Direction::Ingress, parts.ingress),
        egress: rules_of(Direction::Egress, parts.egress),
        name,
        pods: pods.unwrap_or(Selector::EVERYTHING),
        isolates_ingress: types.isolates(Direction::Ingress),
        isolates_egress: types.isolates(Direction::Egress),
        annotations: our_annotations(Some(&parts.annotations)),
    };
    (policy, reader.finish())
}

/// `policyTypes` after defaulting.
struct Types {
    ingress: bool,
    egress: bool,
    is_readable: bool,
}

impl Types {
    /// Defaults as the API server does: ingress always, egress when there are egress rules.
    fn read(reader: &mut Reader, types: Part<Vec<String>>, has_egress: bool) -> Self {
        let types = match types {
            Ok(types) => types,
            Err(problems) => {
                report(reader, problems, BOTH_WAYS);
                return Self {
                    ingress: false,
                    egress: false,
                    is_readable: false,
                };
            }
        };
        if types.is_empty() {
            return Self {
                ingress: true,
                egress: has_egress,
                is_readable: true,
            };
        }
        let mut read = Self {
            ingress: false,
            egress: false,
            is_readable: true,
        };
        if types.len() > 2 {
            reader.error(
                "spec.policyTypes",
                format!("{types:?}: at most two, Ingress and Egress; {BOTH_WAYS}"),
            );
            read.is_readable = false;
        }
        for (index, word) in types.iter().enumerate() {
            match word.as_str() {
                "Ingress" => read.ingress = true,
                "Egress" => read.egress = true,
                other => {
                    reader.error(
                        format!("spec.policyTypes[{index}]"),
                        format!("{other:?}: must be Ingress or Egress; {BOTH_WAYS}"),
                    );
                    read.is_readable = false;
                }
            }
        }
        read
    }

    /// True when the policy certainly speaks of the direction.
    fn is_named(&self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    fn isolates(&self, direction: Direction) -> bool {
        !self.is_readable || self.is_named(direction)
    }
}

const BOTH_WAYS: &str = "until it is mended the policy isolates in both directions, and only \
                         rules of a direction that is named allow anything";
const EVERY_POD: &str = "until it is mended the policy isolates every pod of its namespace and \
                         allows nothing";
const STRANGER: &str = "until it is mended an absent podSelector selects every pod, absent \
                        policyTypes isolate in both directions, and either allows nothing";

fn read_pod_selector(reader: &mut Reader, selector: Part<LabelSelector>) -> Option<Selector> {
    match selector {
        Ok(selector) => rules::selector(reader, "spec.podSelector", &selector, EVERY_POD),
        Err(problems) => {
            report(reader, problems, EVERY_POD);
            None
        }
    }
}

fn read_rules(
    reader: &mut Reader,
    direction: Direction,
    rules: Part<Vec<Part<RuleParts>>>,
) -> Vec<Rule> {
    let rules = match rules {
        Ok(rules) => rules,
        Err(problems) => {
            let consequence = format!("until it is mended the policy allows no {direction} at all");
            report(reader, problems, &consequence);
            return Vec::new();
        }
    };
    rules
        .into_iter()
        .enumerate()
        .map(|(index, rule)| match rule {
            Ok(rule) => {
                let field = format!("spec.{direction}[{index}]");
                rules::rule(reader, direction, &field, &rule)
            }
            Err(problems) => {
                report(reader, problems, THIS_RULE);
                Rule::NOTHING
            }
        })
        .collect()
}

fn report(reader: &mut Reader, problems: Vec<Misformed>, consequence: &str) {
    for Misformed { field, problem } in problems {
        reader.error(field, format!("{problem}; {consequence}"));
    }
}
