//! A document to the objects in it: which kind it is, what it is called, what policy sees of it.

use std::io;

use agent_policy::manifest;
use agent_policy::model::{Change, Finding, Severity};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::core::TypeMeta;
use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// No object larger than this, as JSON, is taken: an API server takes no larger request either, and
/// what one object costs the engine is bounded by it.
pub(super) const MAX_OBJECT_BYTES: u64 = 3 << 20;

/// Kinds that are looked at, in the order in which they are applied.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Kind {
    Namespace,
    Node,
    Pod,
    NetworkPolicy,
    Service,
    EndpointSlice,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::NetworkPolicy,
        Self::Service,
        Self::EndpointSlice,
    ];

    /// `apiVersion` and `kind`.
    fn version_and_kind(self) -> (&'static str, &'static str) {
        const fn of<K: k8s_openapi::Resource>() -> (&'static str, &'static str) {
            (K::API_VERSION, K::KIND)
        }
        match self {
            Self::Namespace => of::<Namespace>(),
            Self::Node => of::<Node>(),
            Self::Pod => of::<Pod>(),
            Self::NetworkPolicy => of::<NetworkPolicy>(),
            Self::Service => of::<Service>(),
            Self::EndpointSlice => of::<EndpointSlice>(),
        }
    }

    pub(super) const fn is_namespaced(self) -> bool {
        match self {
            Self::Namespace | Self::Node => false,
            Self::Pod | Self::NetworkPolicy | Self::Service | Self::EndpointSlice => true,
        }
    }
}

/// What an object is called. Two documents with the same key are the same object twice.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Key {
    pub(crate) kind: Kind,
    /// Empty for kinds that live in no namespace.
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl std::fmt::Display for Key {
    /// As findings name objects: `networkpolicy payments/allow-api`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = self.kind.version_and_kind().1.to_lowercase();
        if self.namespace.is_empty() {
            write!(f, "{kind} {}", self.name)
        } else {
            write!(f, "{kind} {}/{}", self.namespace, self.name)
        }
    }
}

/// An object that was understood, at least in part.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Object {
    pub(crate) key: Key,
    /// What it changes; `None` for kinds that nothing looks at yet.
    pub(crate) change: Option<Change>,
    /// What is wrong with it.
    pub(crate) findings: Vec<Finding>,
}

/// What one object of a document turned out to be.
#[derive(Debug, PartialEq)]
pub(crate) enum Reading {
    /// An object.
    Object(Box<Object>),
    /// An object of a kind that is looked at, with content that the API server would reject.
    Unreadable {
        key: Key,
        finding: Finding,
        /// What takes its place where nobody knows what it was before.
        stand_in: Option<Box<Object>>,
    },
    /// An object of another kind.
    Ignored { kind: String },
    /// No object at all.
    NotAnObject(Finding),
}

/// What a document turned out to be: one object, or those of a list.
#[derive(Debug, PartialEq)]
pub(crate) struct Readings(pub(crate) Vec<Reading>);

impl From<Value> for Readings {
    fn from(document: Value) -> Self {
        Self(read(document))
    }
}

/// Reads a document: one object, or a `List` of them.
fn read(document: Value) -> Vec<Reading> {
    let kind = match TypeMeta::deserialize(&document) {
        Ok(meta) if !meta.kind.is_empty() && !meta.api_version.is_empty() => meta,
        Ok(_) | Err(_) => return vec![not_an_object(&document)],
    };
    if !is_list(&kind, &document) {
        return vec![read_one(&kind, document)];
    }
    // Items of typed lists (`PodList`) may leave their kind out; those of `List` may not.
    let items_meta = TypeMeta {
        kind: kind.kind.trim_end_matches("List").to_owned(),
        ..kind
    };
    items(document)
        .into_iter()
        .map(|item| match TypeMeta::deserialize(&item) {
            Ok(meta) => read_one(&meta, item),
            Err(_) if items_meta.kind.is_empty() => not_an_object(&item),
            Err(_) => read_one(&items_meta, item),
        })
        .collect()
}

fn is_list(meta: &TypeMeta, document: &Value) -> bool {
    meta.kind.ends_with("List") && document.get("items").is_some_and(Value::is_array)
}

fn items(document: Value) -> Vec<Value> {
    match document {
        Value::Object(mut fields) => match fields.remove("items") {
            Some(Value::Array(items)) => items,
            Some(_) | None => Vec::new(),
        },
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Vec::new()
        }
    }
}

fn read_one(meta: &TypeMeta, document: Value) -> Reading {
    let known = Kind::ALL
        .into_iter()
        .find(|kind| kind.version_and_kind().1 == meta.kind);
    let Some(kind) = known else {
        return Reading::Ignored {
            kind: manifest::brief(&format!("{} {}", meta.api_version, meta.kind)),
        };
    };
    let key = match key(kind, &document) {
        Ok(key) => key,
        Err(field) => {
            return Reading::NotAnObject(Finding {
                severity: Severity::Error,
                object: format!("a {}", meta.kind.to_lowercase()),
                field: field.to_owned(),
                message: "missing, or not a name: write a text of at most 253 characters without \
                          spaces and '/', in quotes if it looks like a number or like yes and no"
                    .to_owned(),
            });
        }
    };
    let bytes = json_bytes(&document);
    if bytes > MAX_OBJECT_BYTES {
        return too_large(key, bytes);
    }
    if kind.version_and_kind().0 != meta.api_version {
        return unreadable(
            key,
            "apiVersion",
            &format!(
                "{:?}: not looked at; write {:?}",
                meta.api_version,
                kind.version_and_kind().0
            ),
        );
    }
    match kind {
        Kind::Namespace => typed(key, document, |object: &Namespace| {
            let (namespace, findings) = manifest::namespace(object);
            (namespace.map(Change::Namespace), findings)
        }),
        Kind::Node => typed(key, document, |object: &Node| {
            let (node, findings) = manifest::node(object);
            (node.map(Change::Node), findings)
        }),
        Kind::Pod => typed(key, document, |object: &Pod| {
            let (pod, findings) = manifest::pod(object);
            (pod.map(|pod| Change::Pod(Box::new(pod))), findings)
        }),
        Kind::NetworkPolicy => {
            // Not by its Kubernetes type: one value of a wrong type must not cost the whole policy.
            let (policy, findings) = manifest::network_policy_json(&document);
            Reading::Object(Box::new(Object {
                key,
                change: Some(Change::Policy(Box::new(policy))),
                findings,
            }))
        }
        Kind::Service => typed(key, document, |object: &Service| {
            let (service, findings) = manifest::service(object);
            (
                service.map(|service| Change::Service(Box::new(service))),
                findings,
            )
        }),
        Kind::EndpointSlice => typed(key, document, |object: &EndpointSlice| {
            let (slice, findings) = manifest::endpoint_slice(object);
            (
                slice.map(|slice| Change::EndpointSlice(Box::new(slice))),
                findings,
            )
        }),
    }
}

/// `metadata.namespace` and `metadata.name`; an object without a namespace is in `default`, where
/// `kubectl apply` puts it.
fn key(kind: Kind, document: &Value) -> Result<Key, &'static str> {
    let field = |field: &str| document.get("metadata")?.get(field);
    let namespace = match field("namespace") {
        Some(Value::String(namespace)) => namespace,
        None | Some(Value::Null) => "",
        // Never guessed: a policy would isolate another namespace's pods.
        Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            return Err("metadata.namespace");
        }
    };
    let namespace = match (kind.is_namespaced(), namespace) {
        (true, "") => "default",
        (true, namespace) => namespace,
        (false, _) => "",
    };
    if kind.is_namespaced() && manifest::identity(namespace).is_err() {
        return Err("metadata.namespace");
    }
    match field("name").and_then(Value::as_str) {
        Some(name) if manifest::identity(name).is_ok() => Ok(Key {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }),
        Some(_) | None => Err("metadata.name"),
    }
}

/// Reads a document as the Kubernetes type, then as what policy needs of it.
fn typed<K: DeserializeOwned>(
    key: Key,
    document: Value,
    convert: impl FnOnce(&K) -> (Option<Change>, Vec<Finding>),
) -> Reading {
    match serde_json::from_value::<K>(document) {
        Ok(object) => {
            let (change, findings) = convert(&object);
            Reading::Object(Box::new(Object {
                key,
                change,
                findings,
            }))
        }
        Err(error) => unreadable(key, "", &error.to_string()),
    }
}

pub(super) fn unreadable(key: Key, field: &str, message: &str) -> Reading {
    Reading::Unreadable {
        finding: fault(&key, field, message),
        key,
        stand_in: None,
    }
}

/// What it was before stays; where nobody knows that, a policy isolates: it may well have.
pub(super) fn too_large(key: Key, bytes: u64) -> Reading {
    let tenths = bytes.saturating_mul(10) >> 20;
    let problem = format!(
        "{}.{} MiB as JSON, of which an API server takes {}; split it",
        tenths / 10,
        tenths % 10,
        MAX_OBJECT_BYTES >> 20
    );
    let stand_in = (key.kind == Kind::NetworkPolicy).then(|| {
        let (policy, finding) = manifest::salvage_policy(&key.namespace, &key.name, &problem);
        Box::new(Object {
            key: key.clone(),
            change: Some(Change::Policy(Box::new(policy))),
            findings: vec![finding],
        })
    });
    let message = format!("{problem}; until then it stays what it was, if that is known");
    Reading::Unreadable {
        finding: fault(&key, "", &message),
        key,
        stand_in,
    }
}

fn fault(key: &Key, field: &str, message: &str) -> Finding {
    Finding {
        severity: Severity::Error,
        object: key.to_string(),
        field: field.to_owned(),
        message: manifest::brief(message),
    }
}

/// How long a value is as JSON without spaces.
pub(super) fn json_bytes(value: &Value) -> u64 {
    struct Count(u64);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    match serde_json::to_writer(&mut count, value) {
        Ok(()) => count.0,
        // Neither a value nor counting can fail; what could not be measured is too large.
        Err(_) => u64::MAX,
    }
}

fn not_an_object(document: &Value) -> Reading {
    let missing = |field: &str| document.get(field).is_none();
    let message = if !document.is_object() {
        "not a mapping: every document is one Kubernetes object"
    } else if missing("kind") {
        "has no kind: write which kind of object it is"
    } else {
        "has no apiVersion: write which version its kind has"
    };
    Reading::NotAnObject(Finding {
        severity: Severity::Error,
        object: "document".to_owned(),
        field: String::new(),
        message: message.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What a document was read as, in words.
    fn words(document: Value) -> Vec<String> {
        let one = |reading: Reading| match reading {
            Reading::Object(object) => {
                let change = object.change.map_or("kept", |_| "change");
                format!("{} {change}", object.key)
            }
            Reading::Unreadable { finding, .. } => format!("unreadable {finding}"),
            Reading::Ignored { kind } => format!("ignored {kind}"),
            Reading::NotAnObject(finding) => format!("no object: {finding}"),
        };
        read(document).into_iter().map(one).collect()
    }

    #[test]
    fn every_kind_that_policy_needs_is_read() {
        let object = |version: &str, kind: &str| {
            json!({"apiVersion": version, "kind": kind, "metadata": {"name": "n"},
                   "spec": {"containers": []}, "addressType": "IPv4", "endpoints": []})
        };
        let read = [
            ("v1", "Namespace", "namespace n change"),
            ("v1", "Node", "node n change"),
            ("v1", "Pod", "pod default/n change"),
            (
                "networking.k8s.io/v1",
                "NetworkPolicy",
                "networkpolicy default/n change",
            ),
            ("v1", "Service", "service default/n change"),
            (
                "discovery.k8s.io/v1",
                "EndpointSlice",
                "endpointslice default/n change",
            ),
            ("apps/v1", "Deployment", "ignored apps/v1 Deployment"),
        ];
        for (version, kind, expected) in read {
            assert_eq!(words(object(version, kind)), [expected]);
        }
    }

    #[test]
    fn lists_are_opened_whether_their_items_say_their_kind_or_not() {
        let items = json!([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}]);
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        assert_eq!(words(list), ["namespace a change"]);
        let list = json!({"apiVersion": "v1", "kind": "NamespaceList",
                          "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]});
        assert_eq!(words(list), ["namespace a change", "namespace b change"]);
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [{"metadata": {}}]});
        assert!(
            words(list)
                .iter()
                .all(|words| words.starts_with("no object"))
        );
    }

    #[test]
    fn a_known_kind_of_another_version_is_reported_not_silently_left_out() {
        let policy = json!({"apiVersion": "extensions/v1beta1", "kind": "NetworkPolicy",
                            "metadata": {"name": "n"}});
        assert_eq!(
            words(policy),
            [
                "unreadable networkpolicy default/n: apiVersion \"extensions/v1beta1\": not looked \
              at; write \"networking.k8s.io/v1\""
            ]
        );
    }

    #[test]
    fn what_has_no_kind_or_no_name_is_no_object() {
        for document in [
            json!("text"),
            json!([1]),
            json!({"apiVersion": "v1"}),
            json!({"kind": "Pod"}),
            json!({"apiVersion": "v1", "kind": "Pod"}),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": 5}}),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": 5}}),
        ] {
            let words = words(document.clone());
            assert!(
                words.iter().all(|words| words.starts_with("no object")),
                "{document}: {words:?}"
            );
        }
    }

    #[test]
    fn a_policy_with_a_value_of_the_wrong_type_still_isolates() {
        let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                            "metadata": {"name": "n", "namespace": "shop"},
                            "spec": {"podSelector": {}, "ingress": "everyone"}});
        let Some(Reading::Object(object)) = read(policy).pop() else {
            panic!("no object");
        };
        let Some(Change::Policy(policy)) = object.change else {
            panic!("no policy");
        };
        assert!(policy.isolates_ingress);
        assert!(!object.findings.is_empty());
    }
}
