//! A NetworkPolicy document in parts, each of the right form or not.

use k8s_openapi::api::networking::v1::{NetworkPolicyEgressRule, NetworkPolicyIngressRule};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::serde::de::DeserializeOwned;
use k8s_openapi::serde_json::{Map, Value};

use super::policy::{Misformed, Part, Parts, RuleParts};

/// The fields of an object and what may stand in them. A field that is not listed is misspelt or
/// of an API newer than this program: what it is part of cannot be read.
enum Form {
    /// Anything; its type is checked by deserialization.
    Leaf,
    /// An object with these fields.
    Object(&'static [(&'static str, Self)]),
    /// A list of these.
    List(&'static Self),
}

const SELECTOR: Form = Form::Object(&[
    ("matchLabels", Form::Leaf),
    (
        "matchExpressions",
        Form::List(&Form::Object(&[
            ("key", Form::Leaf),
            ("operator", Form::Leaf),
            ("values", Form::Leaf),
        ])),
    ),
]);
const PEERS: Form = Form::List(&Form::Object(&[
    ("podSelector", SELECTOR),
    ("namespaceSelector", SELECTOR),
    (
        "ipBlock",
        Form::Object(&[("cidr", Form::Leaf), ("except", Form::Leaf)]),
    ),
]));
const PORTS: Form = Form::List(&Form::Object(&[
    ("protocol", Form::Leaf),
    ("port", Form::Leaf),
    ("endPort", Form::Leaf),
]));
const INGRESS: Form = Form::Object(&[("from", PEERS), ("ports", PORTS)]);
const EGRESS: Form = Form::Object(&[("to", PEERS), ("ports", PORTS)]);
const SPEC_FIELDS: [&str; 4] = ["podSelector", "policyTypes", "ingress", "egress"];

/// Takes a document apart.
pub(super) fn parts(document: &Value) -> Parts {
    let metadata = document.get("metadata");
    let mut misnamed = Vec::new();
    let mut text = |field: &str| match metadata.and_then(|metadata| metadata.get(field)) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => {
            let problem = format!("{other}: must be a string, put it in quotes");
            misnamed.push(wrong(format!("metadata.{field}"), problem));
            other.to_string()
        }
    };
    let namespace = text("namespace");
    let name = text("name");
    let annotations = metadata
        .and_then(|metadata| metadata.get("annotations"))
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect();
    let spec = document.get("spec").filter(|spec| !spec.is_null());
    let empty = Map::new();
    let fields = spec.and_then(Value::as_object).unwrap_or(&empty);
    // One of these may be a field that is absent, misspelt.
    let strangers = match spec {
        Some(spec) if !spec.is_object() => {
            vec![wrong("spec", format!("{spec}: must be an object"))]
        }
        _ => fields
            .keys()
            .filter(|key| !SPEC_FIELDS.contains(&key.as_str()))
            .map(|key| wrong(format!("spec.{key}"), unknown(&SPEC_FIELDS)))
            .collect(),
    };
    let field_of = |field: &str| fields.get(field).filter(|value| !value.is_null());
    Parts {
        namespace,
        name,
        misnamed,
        annotations,
        has_spec: spec.is_some(),
        pod_selector: match field_of("podSelector") {
            Some(selector) => typed::<LabelSelector>("spec.podSelector", &SELECTOR, selector),
            None if strangers.is_empty() => Ok(LabelSelector::default()),
            None => Err(Vec::new()),
        },
        policy_types: match field_of("policyTypes") {
            Some(types) => typed("spec.policyTypes", &Form::Leaf, types),
            None if strangers.is_empty() => Ok(Vec::new()),
            None => Err(Vec::new()),
        },
        ingress: rules::<NetworkPolicyIngressRule>("spec.ingress", &INGRESS, field_of("ingress")),
        egress: rules::<NetworkPolicyEgressRule>("spec.egress", &EGRESS, field_of("egress")),
        strangers,
    }
}

fn rules<R: DeserializeOwned + Into<RuleParts>>(
    field: &str,
    form: &Form,
    list: Option<&Value>,
) -> Part<Vec<Part<RuleParts>>> {
    match list {
        None => Ok(Vec::new()),
        Some(Value::Array(rules)) => Ok((0_usize..)
            .zip(rules)
            .map(|(index, rule)| {
                typed::<R>(&format!("{field}[{index}]"), form, rule).map(Into::into)
            })
            .collect()),
        Some(other) => Err(vec![wrong(field, format!("{other}: must be a list"))]),
    }
}

/// Deserializes a part, after a look for fields that are not there in its form.
fn typed<T: DeserializeOwned>(field: &str, form: &Form, value: &Value) -> Part<T> {
    let mut strangers = Vec::new();
    check(field, form, value, &mut strangers);
    if !strangers.is_empty() {
        return Err(strangers);
    }
    T::deserialize(value).map_err(|error| vec![wrong(field, format!("{value}: {error}"))])
}

fn check(field: &str, form: &Form, value: &Value, strangers: &mut Vec<Misformed>) {
    match (form, value) {
        (Form::Object(known), Value::Object(fields)) => {
            for (key, value) in fields {
                let field = format!("{field}.{key}");
                if let Some((_, form)) = known.iter().find(|(name, _)| name == key) {
                    check(&field, form, value, strangers);
                } else {
                    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
                    strangers.push(wrong(field, unknown(&names)));
                }
            }
        }
        (Form::List(form), Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                check(&format!("{field}[{index}]"), form, item, strangers);
            }
        }
        // Deserialization says what is wrong with these.
        (Form::Leaf | Form::Object(_) | Form::List(_), _) => {}
    }
}

fn unknown(known: &[&str]) -> String {
    format!("no such field here, there are {}", known.join(", "))
}

fn wrong(field: impl Into<String>, problem: String) -> Misformed {
    Misformed {
        field: field.into(),
        problem,
    }
}
