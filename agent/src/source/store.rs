//! What the files of a directory hold, by object: which file's word counts for an object that
//! stands in several, what changed since the last look, what is wrong now.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use agent_policy::model::{Change, Finding, PodUid, Severity};

use super::documents::Malformed;
use super::object::{Key, Kind, Object};
use super::{Place, Reported};

/// What one file holds.
#[derive(Debug, Default)]
pub(crate) struct Content {
    /// Its objects, with the place of each.
    pub(crate) objects: Vec<(Place, Object)>,
    /// What is wrong beside the objects' own findings: content that could not be read.
    pub(crate) findings: Vec<Reported>,
    /// Objects whose content cannot be read; what they were last time stays.
    pub(crate) unreadable: BTreeSet<Key>,
}

/// Every file's last good content, and what of it was already told.
#[derive(Debug, Default)]
pub(crate) struct Store {
    files: BTreeMap<Arc<Path>, Content>,
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
        if let Some(old) = self.files.remove(path) {
            self.forget(path, &old);
            let kept = old
                .objects
                .into_iter()
                .filter(|(_, object)| content.unreadable.contains(&object.key));
            content.objects.extend(kept);
        }
        for (index, (_, object)) in content.objects.iter().enumerate() {
            let holders = self.holders.entry(object.key.clone()).or_default();
            holders.insert((Arc::clone(path), index));
            self.touched.insert(object.key.clone());
        }
        self.files.insert(Arc::clone(path), content);
    }

    /// A file cannot be read: its last good content stays, and the fault is told until mended.
    pub(crate) fn put_malformed(&mut self, path: &Arc<Path>, fault: Malformed) {
        let is_known = self.holds(path);
        let content = self.files.entry(Arc::clone(path)).or_default();
        let consequence = if is_known {
            "what it held before stays in force until it is mended"
        } else {
            "nothing in it is in force until it is mended"
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
                if let Some(uid) = uid_of(old) {
                    self.uids.remove(&uid.clone());
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
        for content in self.files.values() {
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

fn uid_of(change: &Change) -> Option<&PodUid> {
    match change {
        Change::Pod(pod) => Some(&pod.uid),
        Change::PodGone(_)
        | Change::Namespace(_)
        | Change::NamespaceGone(_)
        | Change::Node(_)
        | Change::NodeGone(_)
        | Change::Policy(_)
        | Change::PolicyGone(_) => None,
    }
}

/// What takes an object back.
fn gone(change: &Change) -> Option<Change> {
    match change {
        Change::Pod(pod) => Some(Change::PodGone(pod.uid.clone())),
        Change::Namespace(namespace) => Some(Change::NamespaceGone(Arc::clone(&namespace.name))),
        Change::Node(node) => Some(Change::NodeGone(Arc::clone(&node.name))),
        Change::Policy(policy) => Some(Change::PolicyGone(policy.name.clone())),
        Change::PodGone(_)
        | Change::NamespaceGone(_)
        | Change::NodeGone(_)
        | Change::PolicyGone(_) => None,
    }
}
