//! What the files of a directory hold, by object: which file's word counts for an object that
//! stands in several, what changed since the last look, what is wrong now.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use agent_policy::model::{Change, Finding, PodUid, Severity};

use super::documents::Malformed;
use super::object::{Key, Object};
use super::{Place, Reported};

/// What one file holds.
#[derive(Debug, Default)]
pub(crate) struct Content {
    /// Its objects, with the place of each.
    pub(crate) objects: Vec<(Place, Object)>,
    /// What is wrong beside the objects' own findings: content that could not be read.
    pub(crate) findings: Vec<Reported>,
    /// Taken from a malformed file, for want of anything better.
    pub(crate) is_salvaged: bool,
    /// Objects whose content cannot be read: what they were last time stays, and where there was
    /// no last time, what stands in for them.
    pub(crate) unreadable: BTreeMap<Key, Option<(Place, Object)>>,
}

impl Content {
    /// Somebody knows what these objects were before, or that there were none.
    pub(crate) fn forget_stand_ins(&mut self) {
        for stand_in in self.unreadable.values_mut() {
            *stand_in = None;
        }
    }
}

/// Every file's last good content, and what of it was already told.
#[derive(Debug, Default)]
pub(crate) struct Store {
    files: BTreeMap<Arc<Path>, Content>,
    /// Those of them that something is wrong with: nearly always none, of many.
    faulty: BTreeSet<Arc<Path>>,
    /// Where an object stands; the first place counts.
    holders: HashMap<Key, BTreeSet<(Arc<Path>, usize)>>,
    duplicates: BTreeSet<Key>,
    told: HashMap<Key, Change>,
    /// Which pod was told with which UID.
    uids: HashMap<PodUid, Key>,
    shared_uids: BTreeMap<Key, Reported>,
    touched: BTreeSet<Key>,
}

impl Store {
    /// True when the file was read at least once.
    pub(crate) fn holds(&self, path: &Path) -> bool {
        self.files.contains_key(path)
    }

    /// The files that are held, in order.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Arc<Path>> {
        self.files.keys()
    }

    /// A file was read anew.
    pub(crate) fn put(&mut self, path: &Arc<Path>, mut content: Content) {
        let mut stand_ins = std::mem::take(&mut content.unreadable);
        if let Some(old) = self.files.remove(path) {
            self.forget(path, &old);
            let kept = old
                .objects
                .into_iter()
                .filter(|(_, object)| stand_ins.remove(&object.key).is_some());
            content.objects.extend(kept);
        }
        content.objects.extend(stand_ins.into_values().flatten());
        for (index, (_, object)) in content.objects.iter().enumerate() {
            let holders = self.holders.entry(object.key.clone()).or_default();
            holders.insert((Arc::clone(path), index));
            self.touched.insert(object.key.clone());
        }
        let mut objects = content.objects.iter();
        if !content.findings.is_empty() || objects.any(|(_, object)| !object.findings.is_empty()) {
            self.faulty.insert(Arc::clone(path));
        }
        self.files.insert(Arc::clone(path), content);
    }

    /// A file cannot be read: its last good content stays, and the fault is told until mended.
    pub(crate) fn put_malformed(&mut self, path: &Arc<Path>, fault: &Malformed) {
        self.faulty.insert(Arc::clone(path));
        let content = self.files.entry(Arc::clone(path)).or_default();
        let consequence = if content.objects.is_empty() {
            "nothing in it is in force until it is mended"
        } else if content.is_salvaged {
            "until it is mended, what can be read of it is in force"
        } else {
            "until it is mended, what it held before stays in force"
        };
        content.findings = vec![Reported {
            place: Some(Place {
                file: path.to_path_buf(),
                document: None,
                line: fault.line,
            }),
            finding: Finding {
                severity: Severity::Error,
                object: "file".to_owned(),
                field: String::new(),
                message: format!("{}; {consequence}", fault.message),
            },
        }];
    }

    /// A file is gone.
    pub(crate) fn remove(&mut self, path: &Path) {
        if let Some((path, old)) = self.files.remove_entry(path) {
            self.forget(&path, &old);
        }
    }

    fn forget(&mut self, path: &Arc<Path>, content: &Content) {
        self.faulty.remove(path);
        for (index, (_, object)) in content.objects.iter().enumerate() {
            if let Some(holders) = self.holders.get_mut(&object.key) {
                holders.remove(&(Arc::clone(path), index));
                if holders.is_empty() {
                    self.holders.remove(&object.key);
                }
            }
            self.touched.insert(object.key.clone());
        }
    }

    /// What changed since this was last asked: what went first, then what came, each kind after
    /// those it refers to.
    pub(crate) fn take_changes(&mut self) -> Vec<Change> {
        let touched = std::mem::take(&mut self.touched);
        let mut changes = Vec::new();
        for key in &touched {
            let is_duplicate = self.holders.get(key).is_some_and(|all| all.len() > 1);
            if is_duplicate {
                self.duplicates.insert(key.clone());
            } else {
                self.duplicates.remove(key);
            }
            let wanted_uid = self.wanted(key).and_then(uid_of);
            if let Some(old) = self.told.get(key)
                && (self.wanted(key).is_none() || uid_of(old) != wanted_uid)
                && let Some(gone) = gone(old)
            {
                if let Some(uid) = uid_of(old)
                    && self.uids.get(uid) == Some(key)
                {
                    self.uids.remove(uid);
                }
                self.told.remove(key);
                self.shared_uids.remove(key);
                changes.push(gone);
            }
        }
        for key in touched {
            let Some(wanted) = self.wanted(&key).cloned() else {
                continue;
            };
            let wanted = self.with_own_uid(&key, wanted);
            if self.told.get(&key) != Some(&wanted) {
                changes.push(wanted.clone());
                self.told.insert(key, wanted);
            }
        }
        changes
    }

    /// The word that counts for an object.
    fn wanted(&self, key: &Key) -> Option<&Change> {
        let (path, index) = self.holders.get(key)?.first()?;
        let (_, object) = self.files.get(path)?.objects.get(*index)?;
        object.change.as_ref()
    }

    /// Two pods that state one UID would be one pod to everyone else: the second goes by its name.
    fn with_own_uid(&mut self, key: &Key, mut change: Change) -> Change {
        if let Change::Pod(pod) = &mut change {
            match self.uids.get(&pod.uid) {
                Some(owner) if owner != key => {
                    let finding = Finding {
                        severity: Severity::Error,
                        object: key.to_string(),
                        field: "metadata.uid".to_owned(),
                        message: format!(
                            "{:?}: is the uid of {owner} too; the pod goes by its name instead",
                            pod.uid.0
                        ),
                    };
                    let place = self.place(key);
                    self.shared_uids
                        .insert(key.clone(), Reported { place, finding });
                    pod.uid = PodUid(pod.name.to_string().into());
                }
                Some(_) | None => {
                    self.shared_uids.remove(key);
                    self.uids.insert(pod.uid.clone(), key.clone());
                }
            }
        }
        change
    }

    fn place(&self, key: &Key) -> Option<Place> {
        let (path, index) = self.holders.get(key)?.first()?;
        let (place, _) = self.files.get(path)?.objects.get(*index)?;
        Some(place.clone())
    }

    /// Everything that is wrong now, by file.
    pub(crate) fn findings(&self) -> Vec<Reported> {
        let mut findings = Vec::new();
        for content in self.faulty.iter().filter_map(|path| self.files.get(path)) {
            findings.extend(content.findings.iter().cloned());
            for (place, object) in &content.objects {
                findings.extend(object.findings.iter().map(|finding| Reported {
                    place: Some(place.clone()),
                    finding: finding.clone(),
                }));
            }
        }
        findings.extend(self.shared_uids.values().cloned());
        findings.extend(self.duplicates.iter().flat_map(|key| self.duplicate(key)));
        findings
    }

    /// One finding for each place whose word does not count.
    fn duplicate(&self, key: &Key) -> Vec<Reported> {
        let places = self.holders.get(key).into_iter().flatten();
        let places: Vec<&Place> = places
            .filter_map(|(path, index)| self.files.get(path)?.objects.get(*index))
            .map(|(place, _)| place)
            .collect();
        let Some((first, others)) = places.split_first() else {
            return Vec::new();
        };
        others
            .iter()
            .map(|place| Reported {
                place: Some((*place).clone()),
                finding: Finding {
                    severity: Severity::Error,
                    object: key.to_string(),
                    field: String::new(),
                    message: format!(
                        "stands at {first} too, and that one counts; remove one of them"
                    ),
                },
            })
            .collect()
    }
}

/// The identity of a pod that a change is about.
pub(super) fn uid_of(change: &Change) -> Option<&PodUid> {
    match change {
        Change::Pod(pod) => Some(&pod.uid),
        Change::PodGone(_)
        | Change::Namespace(_)
        | Change::NamespaceGone(_)
        | Change::Node(_)
        | Change::NodeGone(_)
        | Change::Policy(_)
        | Change::PolicyGone(_)
        | Change::Service(_)
        | Change::ServiceGone(_)
        | Change::EndpointSlice(_)
        | Change::EndpointSliceGone(_) => None,
    }
}

/// What takes an object back.
fn gone(change: &Change) -> Option<Change> {
    match change {
        Change::Pod(pod) => Some(Change::PodGone(pod.uid.clone())),
        Change::Namespace(namespace) => Some(Change::NamespaceGone(Arc::clone(&namespace.name))),
        Change::Node(node) => Some(Change::NodeGone(Arc::clone(&node.name))),
        Change::Policy(policy) => Some(Change::PolicyGone(policy.name.clone())),
        Change::Service(service) => Some(Change::ServiceGone(service.name.clone())),
        Change::EndpointSlice(slice) => Some(Change::EndpointSliceGone(slice.name.clone())),
        Change::PodGone(_)
        | Change::NamespaceGone(_)
        | Change::NodeGone(_)
        | Change::ServiceGone(_)
        | Change::EndpointSliceGone(_)
        | Change::PolicyGone(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::content;

    /// Puts a file into the store and returns what changed, in words.
    fn put(store: &mut Store, file: &str, text: &str) -> Vec<String> {
        let path: Arc<Path> = Arc::from(Path::new(file));
        match content::read(&path, text.as_bytes()) {
            Ok(content) => store.put(&path, content),
            Err(fault) => store.put_malformed(&path, &fault),
        }
        changes(store)
    }

    fn changes(store: &mut Store) -> Vec<String> {
        let words = |change: Change| match change {
            Change::Pod(pod) => format!("pod {} {} {:?}", pod.name, pod.uid.0, pod.labels),
            Change::PodGone(uid) => format!("pod {} gone", uid.0),
            Change::Namespace(namespace) => format!("namespace {}", namespace.name),
            Change::NamespaceGone(name) => format!("namespace {name} gone"),
            Change::Node(node) => format!("node {}", node.name),
            Change::NodeGone(name) => format!("node {name} gone"),
            Change::Policy(policy) => {
                let rules = policy.ingress.len() + policy.egress.len();
                format!("policy {} {rules} rules", policy.name)
            }
            Change::PolicyGone(name) => format!("policy {name} gone"),
            Change::Service(service) => format!("service {}", service.name),
            Change::ServiceGone(name) => format!("service {name} gone"),
            Change::EndpointSlice(slice) => format!("endpointslice {}", slice.name),
            Change::EndpointSliceGone(name) => format!("endpointslice {name} gone"),
        };
        store.take_changes().into_iter().map(words).collect()
    }

    fn said(store: &Store) -> Vec<String> {
        store.findings().iter().map(ToString::to_string).collect()
    }

    fn namespaces(names: &[&str]) -> String {
        let one = |name: &&str| {
            format!("---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n")
        };
        names.iter().map(one).collect()
    }

    fn pod(name: &str, uid: &str, label: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: {uid}, \
             labels: {{app: {label}}}}}\nspec: {{containers: [{{name: c}}]}}\n"
        )
    }

    #[test]
    fn only_what_differs_is_told() {
        let mut store = Store::default();
        assert_eq!(
            put(&mut store, "a.yaml", &namespaces(&["one", "two"])),
            ["namespace one", "namespace two"]
        );
        assert!(put(&mut store, "a.yaml", &namespaces(&["two", "one"])).is_empty());
        assert_eq!(
            put(&mut store, "a.yaml", &namespaces(&["two", "three"])),
            ["namespace one gone", "namespace three"]
        );
        store.remove(Path::new("a.yaml"));
        assert_eq!(
            changes(&mut store),
            ["namespace three gone", "namespace two gone"]
        );
    }

    #[test]
    fn an_object_in_two_files_is_taken_from_the_first_path_and_reported() {
        let mut store = Store::default();
        put(&mut store, "b.yaml", &pod("web", "u1", "b"));
        assert!(said(&store).is_empty());
        assert_eq!(
            put(&mut store, "a.yaml", &pod("web", "u1", "a")),
            [r#"pod shop/web u1 {"app": "a"}"#]
        );
        assert_eq!(
            said(&store),
            [
                "b.yaml:2: pod shop/web: stands at a.yaml:2 too, and that one counts; remove one of them"
            ]
        );
        store.remove(Path::new("a.yaml"));
        assert_eq!(changes(&mut store), [r#"pod shop/web u1 {"app": "b"}"#]);
        assert!(said(&store).is_empty());
    }

    #[test]
    fn an_object_that_moves_to_another_file_is_not_told_as_gone() {
        let mut store = Store::default();
        put(&mut store, "a.yaml", &namespaces(&["one"]));
        assert!(put(&mut store, "b.yaml", &namespaces(&["one"])).is_empty());
        store.remove(Path::new("a.yaml"));
        assert!(changes(&mut store).is_empty());
    }

    #[test]
    fn a_pod_with_another_uid_is_another_pod() {
        let mut store = Store::default();
        put(&mut store, "a.yaml", &pod("web", "u1", "a"));
        assert_eq!(
            put(&mut store, "a.yaml", &pod("web", "u2", "a")),
            ["pod u1 gone", r#"pod shop/web u2 {"app": "a"}"#]
        );
    }

    #[test]
    fn two_pods_with_one_uid_stay_two_pods_and_are_reported() {
        let mut store = Store::default();
        let both = pod("a", "u1", "x") + &pod("b", "u1", "x");
        assert_eq!(
            put(&mut store, "a.yaml", &both),
            [
                r#"pod shop/a u1 {"app": "x"}"#,
                r#"pod shop/b shop/b {"app": "x"}"#
            ]
        );
        assert_eq!(said(&store).len(), 1);
        assert_eq!(
            put(&mut store, "a.yaml", &pod("a", "u1", "x")),
            ["pod shop/b gone"]
        );
        assert!(said(&store).is_empty());
    }

    #[test]
    fn a_malformed_file_keeps_its_last_good_content_and_is_reported_until_mended() {
        let mut store = Store::default();
        put(&mut store, "a.yaml", &namespaces(&["one"]));
        for broken in [
            "a: [",
            "just words",
            "kind: Namespace",
            "apiVersion: v1\nkind: Pod\n",
        ] {
            assert!(put(&mut store, "a.yaml", broken).is_empty(), "{broken}");
            let said = said(&store);
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(
                said.iter().all(|said| said.starts_with("a.yaml:1: file: ")
                    && said.ends_with("what it held before stays in force")),
                "{said:?}"
            );
        }
        assert_eq!(
            put(&mut store, "a.yaml", &namespaces(&["two"])),
            ["namespace one gone", "namespace two"]
        );
        assert!(said(&store).is_empty());
    }

    #[test]
    fn an_object_that_cannot_be_read_keeps_its_last_good_content() {
        let mut store = Store::default();
        put(
            &mut store,
            "a.yaml",
            &(pod("web", "u1", "a") + &namespaces(&["one"])),
        );
        // A number is no label: the API server would refuse it.
        let broken = pod("web", "u1", "1") + &namespaces(&["one", "two"]);
        assert_eq!(put(&mut store, "a.yaml", &broken), ["namespace two"]);
        let said = said(&store);
        assert!(
            said.iter()
                .any(|said| said.starts_with("a.yaml:2: pod shop/web: ")),
            "{said:?}"
        );
    }
}
