//! The kinds that are watched, and how an object of each is read.

use std::collections::HashSet;
use std::sync::Arc;

use agent_policy::cluster::Shared;
use agent_policy::manifest;
use agent_policy::model::{Change, Finding, ObjectName};
use bytes::Bytes;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::super::object::{self, Key, Kind, Object, Reading};
use super::blocks::Blocks;
use super::taint::{self, Taint};
use super::trimmed;

/// A kind that is watched.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) kind: Kind,
    /// Where all objects of the kind are.
    pub(super) path: &'static str,
    /// The `kind` of a list of them.
    pub(super) list: &'static str,
    /// A server may not have the kind: then there are none. Where every server has it, an answer
    /// that says so is not an API server's.
    pub(super) may_be_absent: bool,
    read: fn(&[u8]) -> serde_json::Result<Read>,
}

/// Every kind that is watched. One that nothing looks at costs bytes and memory for nothing: a kind
/// gets its line here when the engine has a use for it.
pub(super) const WATCHED: [Watched; 6] = [
    Watched {
        kind: Kind::Namespace,
        path: "/api/v1/namespaces",
        list: "NamespaceList",
        may_be_absent: false,
        read: |bytes| {
            typed(bytes, |object: trimmed::Namespace| {
                let object = object.into();
                let (namespace, findings) = manifest::namespace(&object);
                (object, namespace.map(Change::Namespace), findings)
            })
        },
    },
    Watched {
        kind: Kind::Node,
        path: "/api/v1/nodes",
        list: "NodeList",
        may_be_absent: false,
        read: |bytes| {
            typed(bytes, |object: trimmed::Node| {
                let object = object.into();
                let (node, findings) = manifest::node(&object);
                (object, node.map(Change::Node), findings)
            })
        },
    },
    Watched {
        kind: Kind::Pod,
        path: "/api/v1/pods",
        list: "PodList",
        may_be_absent: false,
        read: |bytes| {
            typed(bytes, |object: trimmed::Pod| {
                let object = core::Pod::from(object);
                let (pod, findings) = manifest::pod(&object);
                (object, pod.map(|pod| Change::Pod(Box::new(pod))), findings)
            })
        },
    },
    Watched {
        kind: Kind::NetworkPolicy,
        path: "/apis/networking.k8s.io/v1/networkpolicies",
        list: "NetworkPolicyList",
        may_be_absent: true,
        read: |bytes| {
            let document = Value::from(serde_json::from_slice::<trimmed::NetworkPolicy>(bytes)?);
            let bytes = object::json_bytes(&document);
            if bytes > object::MAX_OBJECT_BYTES {
                return Ok(Read::TooLarge(bytes));
            }
            let (policy, findings) = manifest::network_policy_json(&document);
            let kept = serde_json::to_vec(&document)?;
            let change = Some(Change::Policy(Box::new(policy)));
            Ok(Read::As(change, findings, kept))
        },
    },
    Watched {
        kind: Kind::Service,
        path: "/api/v1/services",
        list: "ServiceList",
        may_be_absent: false,
        read: |bytes| {
            typed(bytes, |object: trimmed::Service| {
                let object = core::Service::from(object);
                let (service, findings) = manifest::service(&object);
                let change = service.map(|service| Change::Service(Box::new(service)));
                (object, change, findings)
            })
        },
    },
    Watched {
        kind: Kind::EndpointSlice,
        path: "/apis/discovery.k8s.io/v1/endpointslices",
        list: "EndpointSliceList",
        may_be_absent: false,
        read: |bytes| {
            typed(bytes, |object: trimmed::EndpointSlice| {
                let object = EndpointSlice::from(object);
                let (slice, findings) = manifest::endpoint_slice(&object);
                let change = slice.map(|slice| Change::EndpointSlice(Box::new(slice)));
                (object, change, findings)
            })
        },
    },
];

impl Watched {
    /// The kind that people call this.
    pub(super) fn by_plural(plural: &str) -> Option<&'static Self> {
        WATCHED.iter().find(|watched| watched.plural() == plural)
    }

    /// What people call the kind: `networkpolicies`.
    pub(super) fn plural(&self) -> &'static str {
        self.path.rsplit('/').next().unwrap_or(self.path)
    }
}

/// What people call objects of a kind.
pub(super) fn plural(kind: Kind) -> &'static str {
    WATCHED
        .iter()
        .find(|watched| watched.kind == kind)
        .map_or("objects", |watched| watched.plural())
}

/// What an object's content turned out to be.
enum Read {
    /// What it says, what is wrong with it, and the JSON that says the same.
    As(Option<Change>, Vec<Finding>, Vec<u8>),
    TooLarge(u64),
}

fn typed<T: DeserializeOwned, K: Serialize>(
    bytes: &[u8],
    convert: impl FnOnce(T) -> (K, Option<Change>, Vec<Finding>),
) -> serde_json::Result<Read> {
    let (object, change, findings) = convert(serde_json::from_slice(bytes)?);
    Ok(Read::As(change, findings, serde_json::to_vec(&object)?))
}

/// An object of a list or an event.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) id: Id,
    pub(super) reading: Reading,
    /// Startup taints, if it is the node that the reader was told of.
    pub(super) startup_taints: Vec<Taint>,
    /// The object as JSON, no longer than policy needs: read again, it says the same.
    pub(super) document: Bytes,
}

/// Which object, and which state of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Id {
    /// Its namespace, empty where the kind has none, and name.
    pub(super) name: ObjectName,
    /// `metadata.resourceVersion`: larger in each later state.
    pub(super) version: u64,
}

/// Bytes of which not even the object's name can be told.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an object of the answer cannot be told by name and resourceVersion: {0}")]
pub(super) struct Nameless(String);

/// Reads objects of one kind; what repeats among them is stored once.
#[derive(Debug)]
pub(super) struct Reader {
    watched: &'static Watched,
    namespaces: Interned,
    /// What pods of the list that is being read have in common.
    common: Shared,
    documents: Blocks,
    own_node: Option<Arc<str>>,
}

impl Reader {
    pub(super) fn new(watched: &'static Watched) -> Self {
        Self {
            watched,
            namespaces: Interned::default(),
            common: Shared::default(),
            documents: Blocks::default(),
            own_node: None,
        }
    }

    /// One that also looks for startup taints on the node of this name.
    pub(super) fn on(self, own_node: Option<Arc<str>>) -> Self {
        Self { own_node, ..self }
    }

    /// Which object it is.
    pub(super) fn identify(&mut self, bytes: &[u8]) -> Result<Id, Nameless> {
        let named: trimmed::Named =
            serde_json::from_slice(bytes).map_err(|error| Nameless(error.to_string()))?;
        let meta = named.metadata;
        let is_namespaced = self.watched.kind.is_namespaced();
        let namespace = if is_namespaced {
            meta.namespace.as_str()
        } else {
            ""
        };
        if is_namespaced && manifest::identity(namespace).is_err() {
            return Err(Nameless(format!("metadata.namespace {namespace:?}")));
        }
        if let Err(problem) = manifest::identity(&meta.name) {
            return Err(Nameless(format!(
                "metadata.name {:?}: {problem}",
                meta.name
            )));
        }
        Ok(Id {
            name: ObjectName::new(self.namespaces.share(namespace), meta.name),
            version: version(&meta.resource_version)?,
        })
    }

    /// Reads one of many objects. They wait until all are here: what they have in common waits once,
    /// and not in as many places as would be holes between what stays.
    pub(super) fn read_listed(&mut self, bytes: &[u8]) -> Result<Item, Nameless> {
        let mut item = self.read(bytes)?;
        if let Reading::Object(object) = &mut item.reading
            && let Some(Change::Pod(pod)) = &mut object.change
        {
            self.common.share(pod);
        }
        Ok(item)
    }

    /// The list has ended, or will not be read on: what was kept for the rest of it goes.
    pub(super) fn end_list(&mut self) {
        self.common = Shared::default();
        self.documents = Blocks::default();
    }

    /// Reads an object as far as it can be read.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<Item, Nameless> {
        let id = self.identify(bytes)?;
        let key = Key {
            kind: self.watched.kind,
            namespace: id.name.namespace.to_string(),
            name: id.name.name.to_string(),
        };
        let (reading, document) = match (self.watched.read)(bytes) {
            Ok(Read::As(mut change, findings, document)) => {
                if let Some(change) = &mut change {
                    share_name(change, &id.name);
                }
                let object = Object {
                    key,
                    change,
                    findings,
                };
                (Reading::Object(Box::new(object)), document)
            }
            Ok(Read::TooLarge(bytes)) => {
                let reading = object::too_large(key, bytes);
                (reading, unreadable_document(&id))
            }
            Err(error) => {
                let reading = object::unreadable(key, "", &error.to_string());
                (reading, unreadable_document(&id))
            }
        };
        let is_own =
            self.watched.kind == Kind::Node && self.own_node.as_ref() == Some(&id.name.name);
        Ok(Item {
            id,
            reading,
            document: self.documents.keep(&document),
            startup_taints: if is_own { taint::on(bytes) } else { Vec::new() },
        })
    }
}

/// What stands on disk for an object that could not be read: a policy without a specification that
/// makes sense isolates and admits nothing, as what stands in for it does.
fn unreadable_document(id: &Id) -> Vec<u8> {
    let metadata = json!({
        "namespace": &*id.name.namespace,
        "name": &*id.name.name,
        "resourceVersion": id.version.to_string(),
    });
    json!({"metadata": metadata, "spec": "left out: it could not be read"})
        .to_string()
        .into_bytes()
}

/// `resourceVersion` of an object or a list.
pub(super) fn version(text: &str) -> Result<u64, Nameless> {
    text.parse()
        .map_err(|_error| Nameless(format!("resourceVersion {text:?}: not a number")))
}

/// The name's bytes are kept once, by whoever refers to the object.
fn share_name(change: &mut Change, name: &ObjectName) {
    let own = match change {
        Change::Pod(pod) => &mut pod.name,
        Change::Policy(policy) => &mut policy.name,
        Change::Service(service) => &mut service.name,
        Change::EndpointSlice(slice) => &mut slice.name,
        Change::Namespace(namespace) if namespace.name == name.name => {
            namespace.name = Arc::clone(&name.name);
            return;
        }
        Change::Node(node) if node.name == name.name => {
            node.name = Arc::clone(&name.name);
            return;
        }
        Change::Namespace(_)
        | Change::Node(_)
        | Change::PodGone(_)
        | Change::NamespaceGone(_)
        | Change::NodeGone(_)
        | Change::PolicyGone(_)
        | Change::ServiceGone(_)
        | Change::EndpointSliceGone(_) => return,
    };
    if own == name {
        *own = name.clone();
    }
}

/// Strings that many objects have, each stored once.
#[derive(Debug, Default)]
struct Interned {
    strings: HashSet<Arc<str>>,
    /// At this size those that nobody has any more are dropped.
    sweep_at: usize,
}

impl Interned {
    fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.strings.get(text) {
            return Arc::clone(known);
        }
        if self.strings.len() >= self.sweep_at {
            self.strings.retain(|known| Arc::strong_count(known) > 1);
            self.sweep_at = (self.strings.len() * 2).max(64);
        }
        let new: Arc<str> = Arc::from(text);
        self.strings.insert(Arc::clone(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reader(kind: Kind) -> Reader {
        let watched = WATCHED.iter().find(|watched| watched.kind == kind);
        Reader::new(watched.unwrap())
    }

    fn words(item: Item) -> String {
        match item.reading {
            Reading::Object(object) => {
                let (kind, name) = match object.change.unwrap() {
                    Change::Namespace(namespace) => ("namespace", namespace.name.to_string()),
                    Change::Node(node) => ("node", node.name.to_string()),
                    Change::Pod(pod) => ("pod", pod.name.to_string()),
                    Change::Policy(policy) => ("networkpolicy", policy.name.to_string()),
                    Change::Service(service) => ("service", service.name.to_string()),
                    Change::EndpointSlice(slice) => ("endpointslice", slice.name.to_string()),
                    gone @ (Change::NamespaceGone(_)
                    | Change::NodeGone(_)
                    | Change::PodGone(_)
                    | Change::PolicyGone(_)
                    | Change::ServiceGone(_)
                    | Change::EndpointSliceGone(_)) => panic!("{gone:?}"),
                };
                format!("{kind} {name} at {}", item.id.version)
            }
            Reading::Unreadable { finding, .. } => format!("unreadable {finding}"),
            Reading::Ignored { .. } | Reading::NotAnObject(_) => panic!("no object"),
        }
    }

    #[test]
    fn every_watched_kind_is_read_by_its_own_line() {
        for (kind, expected) in [
            (Kind::Namespace, "namespace a at 7"),
            (Kind::Node, "node a at 7"),
            (Kind::Pod, "pod shop/a at 7"),
            (Kind::NetworkPolicy, "networkpolicy shop/a at 7"),
            (Kind::Service, "service shop/a at 7"),
            (Kind::EndpointSlice, "endpointslice shop/a at 7"),
        ] {
            let object =
                json!({"metadata": {"name": "a", "namespace": "shop", "resourceVersion": "7"}});
            let item = reader(kind).read(object.to_string().as_bytes()).unwrap();
            assert_eq!(words(item), expected);
        }
    }

    #[test]
    fn what_has_no_name_or_no_version_is_nobody() {
        for metadata in [
            json!({"namespace": "shop", "resourceVersion": "7"}),
            json!({"name": "a", "resourceVersion": "7"}),
            json!({"name": "a/b", "namespace": "shop", "resourceVersion": "7"}),
            json!({"name": 5, "namespace": "shop", "resourceVersion": "7"}),
            json!({"name": "a", "namespace": "shop", "resourceVersion": "latest"}),
            json!({"name": "a", "namespace": "shop"}),
        ] {
            let object = json!({"metadata": metadata}).to_string();
            let read = reader(Kind::Pod).read(object.as_bytes());
            assert!(read.is_err(), "{object}: {read:?}");
        }
        assert!(reader(Kind::Pod).read(b"{\"metadata\":").is_err());
    }

    #[test]
    fn an_object_with_a_value_of_the_wrong_type_is_unreadable_by_name() {
        let pod = json!({"metadata": {"name": "a", "namespace": "shop", "resourceVersion": "7",
                                      "labels": {"app": 1}}});
        let item = reader(Kind::Pod).read(pod.to_string().as_bytes()).unwrap();
        let said = words(item);
        assert!(said.starts_with("unreadable pod shop/a: "), "{said}");
    }

    #[test]
    fn a_policy_larger_than_any_that_a_server_takes_is_stood_in_for() {
        let rules: Vec<Value> = (0..4000)
            .map(|n| json!({"from": [{"ipBlock": {"cidr": format!("{n:01000}")}}]}))
            .collect();
        let policy = json!({
            "metadata": {"name": "a", "namespace": "shop", "resourceVersion": "7"},
            "spec": {"podSelector": {}, "ingress": rules},
        });
        let item = reader(Kind::NetworkPolicy).read(policy.to_string().as_bytes());
        let Reading::Unreadable { stand_in, .. } = item.unwrap().reading else {
            panic!("it was read");
        };
        let change = stand_in.unwrap().change;
        assert!(
            matches!(&change, Some(Change::Policy(policy))
                if policy.isolates_ingress && policy.isolates_egress && policy.ingress.is_empty()),
            "{change:?}"
        );
    }

    #[test]
    fn pods_of_one_namespace_share_its_name_and_their_own_with_their_key() {
        let mut reader = reader(Kind::Pod);
        let mut read = |name: &str| {
            let pod =
                json!({"metadata": {"name": name, "namespace": "shop", "resourceVersion": "7"}});
            let item = reader.read(pod.to_string().as_bytes()).unwrap();
            let Reading::Object(object) = item.reading else {
                panic!("not read");
            };
            let Some(Change::Pod(pod)) = object.change else {
                panic!("no pod");
            };
            (item.id.name, pod.name)
        };
        let (a_key, a) = read("a");
        let (_, b) = read("b");
        assert!(Arc::ptr_eq(&a.namespace, &b.namespace));
        assert!(Arc::ptr_eq(&a_key.name, &a.name));
    }

    #[test]
    fn pods_of_a_list_have_what_is_equal_in_common_until_it_ends() {
        let mut reader = reader(Kind::Pod);
        let node = |reader: &mut Reader, name: &str| {
            let pod = json!({
                "metadata": {"name": name, "namespace": "shop", "resourceVersion": "7"},
                "spec": {"nodeName": "node-a"},
            });
            let item = reader.read_listed(pod.to_string().as_bytes()).unwrap();
            let Reading::Object(object) = item.reading else {
                panic!("not read");
            };
            let Some(Change::Pod(pod)) = object.change else {
                panic!("no pod");
            };
            pod.node
        };
        let first = node(&mut reader, "a");
        assert!(Arc::ptr_eq(&first, &node(&mut reader, "b")));
        reader.end_list();
        assert_eq!(Arc::strong_count(&first), 1);
    }

    #[test]
    fn strings_that_nobody_has_any_more_are_dropped() {
        let mut interned = Interned::default();
        let kept = interned.share("kept");
        for n in 0..10_000 {
            interned.share(&n.to_string());
        }
        assert!(interned.strings.len() <= 130, "{}", interned.strings.len());
        assert!(Arc::ptr_eq(&kept, &interned.share("kept")));
    }
}
