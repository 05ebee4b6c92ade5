//! A document to the objects in it: which kind it is, what it is called, what policy sees of it.

use agent_policy::manifest;
use agent_policy::model::{Change, Finding, Severity};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::core::TypeMeta;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

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

    const fn is_namespaced(self) -> bool {
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
    Unreadable { key: Key, finding: Finding },
    /// An object of another kind.
    Ignored { kind: String },
    /// No object at all.
    NotAnObject(Finding),
}

/// Reads a document: one object, or a `List` of them.
pub(crate) fn read(document: Value) -> Vec<Reading> {
    let kind = match TypeMeta::deserialize(&document) {
        Ok(meta) if !meta.kind.is_empty() && !meta.api_version.is_empty() => meta,
        Ok(_) | Err(_) => return vec![not_an_object(&document)],
    };
    match list_of(&kind, &document) {
        Some(item_meta) => items(document)
            .into_iter()
            .flat_map(|item| read_item(item, item_meta.as_ref()))
            .collect(),
        None => vec![read_one(&kind, document)],
    }
}

/// The kind of a list's items, when `document` is a list: `None` inside for `List`, whose items
/// say it themselves.
fn list_of(meta: &TypeMeta, document: &Value) -> Option<Option<TypeMeta>> {
    let of = meta.kind.strip_suffix("List")?;
    document.get("items")?.as_array()?;
    Some((!of.is_empty()).then(|| TypeMeta {
        api_version: meta.api_version.clone(),
        kind: of.to_owned(),
    }))
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

/// Items of typed lists (`PodList`) may leave their kind out. A list in a list is not followed.
fn read_item(item: Value, meta: Option<&TypeMeta>) -> Option<Reading> {
    let own = TypeMeta::deserialize(&item).ok();
    match own.as_ref().or(meta) {
        Some(meta) => Some(read_one(meta, item)),
        None => Some(not_an_object(&item)),
    }
}

fn read_one(meta: &TypeMeta, document: Value) -> Reading {
    let known = Kind::ALL.into_iter().find(|kind| kind.version_and_kind().1 == meta.kind);
    let Some(kind) = known else {
        return Reading::Ignored {
            kind: format!("{} {}", meta.api_version, meta.kind),
        };
    };
    let Some(key) = key(kind, &document) else {
        return Reading::NotAnObject(Finding {
            severity: Severity::Error,
            object: format!("a {}", meta.kind.to_lowercase()),
            field: "metadata.name".to_owned(),
            message: "missing: give the object a name".to_owned(),
        });
    };
    if kind.version_and_kind().0 != meta.api_version {
        return unreadable(
            key,
            "apiVersion",
            format!(
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
        // Nothing looks at these yet; what is wrong with them is said all the same.
        Kind::Service => typed(key, document, |_: &Service| (None, Vec::new())),
        Kind::EndpointSlice => typed(key, document, |_: &EndpointSlice| (None, Vec::new())),
    }
}

/// `metadata.namespace` and `metadata.name`; an object without a namespace is in `default`, where
/// `kubectl apply` puts it.
fn key(kind: Kind, document: &Value) -> Option<Key> {
    let text = |field: &str| document.get("metadata")?.get(field)?.as_str();
    let namespace = match text("namespace") {
        Some(namespace) if kind.is_namespaced() && !namespace.is_empty() => namespace,
        Some(_) | None if kind.is_namespaced() => "default",
        Some(_) | None => "",
    };
    Some(Key {
        kind,
        namespace: namespace.to_owned(),
        name: text("name").filter(|name| !name.is_empty())?.to_owned(),
    })
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
        Err(error) => unreadable(key, "", error.to_string()),
    }
}

fn unreadable(key: Key, field: &str, message: String) -> Reading {
    Reading::Unreadable {
        finding: Finding {
            severity: Severity::Error,
            object: key.to_string(),
            field: field.to_owned(),
            message,
        },
        key,
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
