//! The objects of one kind: which there are, in which state, and what of it was not told yet.
//!
//! Objects themselves are not kept, whoever is told of them has them: of each there is its name and
//! a digest of what was last said of it, enough to know that a list or an event says nothing new.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use agent_policy::model::{Change, Finding, ObjectName, PodUid};
use bytes::Bytes;

use super::super::object::{Kind, Object, Reading};
use super::super::store::uid_of;
use super::kinds::{Id, Item};

/// Objects whose findings are kept; of others it is known that there are some.
const MAX_FAULTY: usize = 1000;

/// See the module.
#[derive(Debug)]
pub(super) struct Table {
    kind: Kind,
    /// Makes digests that nobody outside can aim at.
    digests: RandomState,
    objects: HashMap<ObjectName, Entry>,
    /// What was not told yet, by name.
    untold: BTreeMap<ObjectName, Untold>,
    /// The latest version that a list or an event of the kind had.
    latest: u64,
    /// Which list is under way, or was last.
    list: u32,
    is_listing: bool,
    is_listed: bool,
    faulty: BTreeMap<ObjectName, Vec<Finding>>,
    /// Those with findings that are not kept.
    faulty_besides: HashSet<ObjectName>,
}

/// An object that there is.
#[derive(Debug)]
struct Entry {
    version: u64,
    /// The list that last had it, or during which an event did.
    list: u32,
    /// What was last said of it; `None` while none of it could be read.
    word: Option<Word>,
}

/// What was said of an object.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Word {
    digest: u64,
    /// A pod's, which is how it is taken back.
    uid: Option<PodUid>,
}

/// A difference between what is and what was told.
#[derive(Debug)]
struct Untold {
    /// What was told; `None` when nothing was.
    told: Option<Word>,
    /// What is; `None` when it is gone.
    now: Option<Now>,
}

/// What an object is, to be told and to be kept.
#[derive(Debug)]
struct Now {
    change: Change,
    document: Bytes,
}

/// What was told of an object, for whoever keeps it.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) kind: Kind,
    pub(super) name: ObjectName,
    /// The object as [`Item::document`] has it; `None` when it is gone.
    pub(super) document: Option<Bytes>,
}

/// Changes since somebody asked last.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// What went, to be applied before what came: names and addresses may be the same.
    pub(super) gone: Vec<Change>,
    pub(super) came: Vec<Change>,
    pub(super) told: Vec<Told>,
}

/// An event speaks of an object as it was before events that are known already, and whether that
/// object has gone since cannot be told: only a list can.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub(super) struct Doubt(pub(super) bool);

impl Table {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            digests: RandomState::new(),
            objects: HashMap::new(),
            untold: BTreeMap::new(),
            latest: 0,
            list: 0,
            is_listing: false,
            is_listed: false,
            faulty: BTreeMap::new(),
            faulty_besides: HashSet::new(),
        }
    }

    /// True when a whole list was here, or the kind was found not to exist, and no other is under
    /// way: everything that is known can be told.
    pub(super) fn is_settled(&self) -> bool {
        self.is_listed && !self.is_listing
    }

    /// A list begins, perhaps in the place of one that has failed: until its end, nothing is told.
    pub(super) fn begin_list(&mut self) {
        self.is_listing = true;
        self.list = self.list.wrapping_add(1);
    }

    /// An object of the list. A list counts whatever was known: only it can say that a server has
    /// gone back in time.
    pub(super) fn put_listed(&mut self, item: Item) {
        self.put(item);
    }

    /// The list has ended; what it did not have is gone.
    pub(super) fn end_list(&mut self, version: u64) {
        let list = self.list;
        let gone = self.objects.iter().filter(|(_, entry)| entry.list != list);
        let gone: Vec<ObjectName> = gone.map(|(name, _)| name.clone()).collect();
        for name in gone {
            self.remove(&name);
        }
        self.latest = version;
        self.is_listing = false;
        self.is_listed = true;
    }

    /// The server does not have the kind: there are no objects, unless some are known. Then it is
    /// an answer to be doubted, and false is returned.
    pub(super) fn take_as_absent(&mut self) -> bool {
        if !self.objects.is_empty() {
            return false;
        }
        self.is_listing = false;
        self.is_listed = true;
        true
    }

    /// An event says what an object is now.
    pub(super) fn put_event(&mut self, item: Item) -> Doubt {
        let known = self.objects.get(&item.id.name);
        let is_late = item.id.version <= self.latest;
        match known {
            Some(entry) if item.id.version <= entry.version => return Doubt(false),
            None if is_late => return Doubt(true),
            Some(_) | None => {}
        }
        self.latest = self.latest.max(item.id.version);
        self.put(item);
        Doubt(false)
    }

    /// An event says that an object is gone.
    pub(super) fn remove_by_event(&mut self, id: &Id) {
        self.latest = self.latest.max(id.version);
        let known = self.objects.get(&id.name);
        if known.is_some_and(|entry| id.version >= entry.version) {
            self.remove(&id.name);
        }
    }

    fn put(&mut self, item: Item) {
        let Item {
            id,
            reading,
            document,
            startup_taints: _,
        } = item;
        match reading {
            Reading::Object(object) => self.put_object(id, *object, document),
            Reading::Unreadable {
                finding, stand_in, ..
            } => {
                let is_known = self
                    .objects
                    .get(&id.name)
                    .is_some_and(|entry| entry.word.is_some());
                match stand_in {
                    Some(stand_in) if !is_known => {
                        self.put_object(id.clone(), *stand_in, document);
                    }
                    Some(_) | None => self.keep(&id),
                }
                self.find(&id.name, vec![finding]);
            }
            // The reader makes neither: it knows the kind.
            Reading::Ignored { .. } | Reading::NotAnObject(_) => {}
        }
    }

    /// It is what it was, if that is known.
    fn keep(&mut self, id: &Id) {
        let list = self.list;
        let entry = self
            .objects
            .entry(id.name.clone())
            .or_insert_with(|| Entry {
                version: id.version,
                list,
                word: None,
            });
        entry.version = id.version;
        entry.list = list;
    }

    fn put_object(&mut self, id: Id, object: Object, document: Bytes) {
        self.find(&id.name, object.findings);
        let Some(change) = object.change else {
            self.keep(&id);
            return;
        };
        let word = Word {
            digest: self.digests.hash_one(&change),
            uid: uid_of(&change).cloned(),
        };
        let before = self
            .objects
            .get(&id.name)
            .and_then(|known| known.word.as_ref());
        let told = match self.untold.remove(&id.name) {
            Some(untold) => untold.told,
            None => before.cloned(),
        };
        if told.as_ref() != Some(&word) {
            let now = Some(Now { change, document });
            self.untold.insert(id.name.clone(), Untold { told, now });
        }
        let entry = Entry {
            version: id.version,
            list: self.list,
            word: Some(word),
        };
        self.objects.insert(id.name, entry);
    }

    fn remove(&mut self, name: &ObjectName) {
        self.faulty.remove(name);
        self.faulty_besides.remove(name);
        let Some(entry) = self.objects.remove(name) else {
            return;
        };
        let told = match self.untold.remove(name) {
            Some(untold) => untold.told,
            None => entry.word,
        };
        if told.is_some() {
            self.untold.insert(name.clone(), Untold { told, now: None });
        }
    }

    fn find(&mut self, name: &ObjectName, findings: Vec<Finding>) {
        self.faulty_besides.remove(name);
        if findings.is_empty() {
            self.faulty.remove(name);
        } else if self.faulty.len() < MAX_FAULTY || self.faulty.contains_key(name) {
            self.faulty.insert(name.clone(), findings);
        } else {
            self.faulty_besides.insert(name.clone());
        }
    }

    /// How many objects are faulty besides those whose findings are kept.
    pub(super) fn faulty_besides(&self) -> usize {
        self.faulty_besides.len()
    }

    /// What is wrong with objects now.
    pub(super) fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.faulty.values().flatten()
    }

    /// The latest version that is known of: the next list shall not be older.
    pub(super) fn latest(&self) -> u64 {
        self.latest
    }

    /// True when this object was told of: a namespace with its labels.
    pub(super) fn has_told(&self, name: &ObjectName) -> bool {
        self.objects.contains_key(name) && !self.untold.contains_key(name)
    }

    /// Namespaces of objects that were not told yet.
    pub(super) fn untold_namespaces(&self) -> BTreeSet<&Arc<str>> {
        self.untold.keys().map(|name| &name.namespace).collect()
    }

    /// What changed since this was last asked, but for what came in the namespaces `held`. Nothing
    /// while a list is under way: what it leaves out is not known yet.
    pub(super) fn take_changes(&mut self, held: &BTreeSet<Arc<str>>, changes: &mut Changes) {
        if self.is_listing {
            return;
        }
        for (name, untold) in std::mem::take(&mut self.untold) {
            if untold.now.is_some() && held.contains(&name.namespace) {
                self.untold.insert(name, untold);
                continue;
            }
            let uid_now = match &untold.now {
                Some(Now {
                    change: Change::Pod(pod),
                    ..
                }) => Some(&pod.uid),
                Some(_) | None => None,
            };
            if let Some(told) = untold.told
                && (untold.now.is_none() || told.uid.as_ref() != uid_now)
            {
                changes.gone.extend(self.taken_back(&name, told.uid));
            }
            let document = untold.now.map(|now| {
                changes.came.push(now.change);
                now.document
            });
            changes.told.push(Told {
                kind: self.kind,
                name,
                document,
            });
        }
    }

    fn taken_back(&self, name: &ObjectName, uid: Option<PodUid>) -> Option<Change> {
        match self.kind {
            Kind::Namespace => Some(Change::NamespaceGone(Arc::clone(&name.name))),
            Kind::Node => Some(Change::NodeGone(Arc::clone(&name.name))),
            Kind::Pod => uid.map(Change::PodGone),
            Kind::NetworkPolicy => Some(Change::PolicyGone(name.clone())),
            Kind::Service => Some(Change::ServiceGone(name.clone())),
            Kind::EndpointSlice => Some(Change::EndpointSliceGone(name.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::kinds::{Reader, WATCHED};
    use super::*;

    fn read(kind: Kind, object: &Value) -> Item {
        let watched = WATCHED.iter().find(|watched| watched.kind == kind).unwrap();
        let bytes = object.to_string();
        Reader::new(watched).read(bytes.as_bytes()).unwrap()
    }

    fn pod(name: &str, version: u64, uid: &str, app: &str) -> Item {
        let object = json!({"metadata": {"name": name, "namespace": "shop", "uid": uid,
            "resourceVersion": version.to_string(), "labels": {"app": app}}});
        read(Kind::Pod, &object)
    }

    fn unreadable(name: &str, version: u64) -> Item {
        let object = json!({"metadata": {"name": name, "namespace": "shop", "labels": {"app": 1},
            "resourceVersion": version.to_string()}});
        read(Kind::Pod, &object)
    }

    fn changes(table: &mut Table) -> Vec<String> {
        let mut changes = Changes::default();
        table.take_changes(&BTreeSet::new(), &mut changes);
        let words = |change: Change| match change {
            Change::Pod(pod) => format!("{} {} {:?}", pod.name, pod.uid.0, pod.labels),
            Change::PodGone(uid) => format!("{} gone", uid.0),
            Change::Namespace(_)
            | Change::NamespaceGone(_)
            | Change::Node(_)
            | Change::NodeGone(_)
            | Change::Policy(_)
            | Change::PolicyGone(_)
            | Change::Service(_)
            | Change::ServiceGone(_)
            | Change::EndpointSlice(_)
            | Change::EndpointSliceGone(_) => panic!("no pod's: {change:?}"),
        };
        changes
            .gone
            .into_iter()
            .chain(changes.came)
            .map(words)
            .collect()
    }

    fn list(table: &mut Table, version: u64, items: Vec<Item>) {
        table.begin_list();
        for item in items {
            table.put_listed(item);
        }
        table.end_list(version);
    }

    fn listed(items: Vec<Item>) -> Table {
        let mut table = Table::new(Kind::Pod);
        list(&mut table, 10, items);
        table
    }

    const NOTHING: [&str; 0] = [];

    #[test]
    fn a_list_that_says_nothing_new_changes_nothing() {
        let mut table = listed(vec![pod("a", 1, "u1", "x"), pod("b", 2, "u2", "x")]);
        assert_eq!(changes(&mut table).len(), 2);
        // Another version, as a change of the status makes one.
        list(
            &mut table,
            20,
            vec![pod("b", 15, "u2", "x"), pod("a", 1, "u1", "x")],
        );
        assert_eq!(changes(&mut table), NOTHING);
    }

    #[test]
    fn of_a_list_only_the_difference_is_told_and_only_at_its_end() {
        let mut table = listed(vec![
            pod("a", 1, "u1", "x"),
            pod("b", 2, "u2", "x"),
            pod("c", 3, "u3", "x"),
        ]);
        changes(&mut table);
        table.begin_list();
        table.put_listed(pod("b", 12, "u2", "y"));
        table.put_listed(pod("c", 3, "u3", "x"));
        table.put_listed(pod("d", 13, "u4", "x"));
        assert_eq!(changes(&mut table), NOTHING, "the list is not whole");
        table.end_list(20);
        assert_eq!(
            changes(&mut table),
            [
                "u1 gone",
                r#"shop/b u2 {"app": "y"}"#,
                r#"shop/d u4 {"app": "x"}"#
            ]
        );
    }

    #[test]
    fn a_list_that_fails_in_its_middle_takes_nothing_away() {
        let mut table = listed(vec![pod("a", 1, "u1", "x"), pod("b", 2, "u2", "x")]);
        changes(&mut table);
        table.begin_list();
        table.put_listed(pod("a", 1, "u1", "x"));
        list(
            &mut table,
            20,
            vec![pod("b", 2, "u2", "x"), pod("a", 1, "u1", "x")],
        );
        assert_eq!(changes(&mut table), NOTHING);
    }

    #[test]
    fn events_repeated_or_late_never_bring_a_state_back() {
        let mut table = listed(vec![pod("a", 1, "u1", "x")]);
        changes(&mut table);
        assert_eq!(table.put_event(pod("a", 12, "u1", "y")), Doubt(false));
        assert_eq!(table.put_event(pod("a", 11, "u1", "z")), Doubt(false));
        assert_eq!(table.put_event(pod("a", 12, "u1", "z")), Doubt(false));
        assert_eq!(changes(&mut table), [r#"shop/a u1 {"app": "y"}"#]);
        table.remove_by_event(&pod("a", 5, "u1", "x").id);
        assert_eq!(
            changes(&mut table),
            NOTHING,
            "that end was an earlier one's"
        );
        table.remove_by_event(&pod("a", 13, "u1", "y").id);
        assert_eq!(changes(&mut table), ["u1 gone"]);
        assert_eq!(table.put_event(pod("a", 12, "u1", "y")), Doubt(true));
        assert_eq!(changes(&mut table), NOTHING, "it does not come back");
        assert_eq!(table.put_event(pod("a", 14, "u2", "y")), Doubt(false));
        assert_eq!(changes(&mut table), [r#"shop/a u2 {"app": "y"}"#]);
    }

    #[test]
    fn a_late_event_of_another_object_is_still_news_of_that() {
        let mut table = listed(vec![pod("a", 1, "u1", "x"), pod("b", 2, "u2", "x")]);
        changes(&mut table);
        assert_eq!(table.put_event(pod("a", 12, "u1", "y")), Doubt(false));
        assert_eq!(table.put_event(pod("b", 11, "u2", "y")), Doubt(false));
        assert_eq!(changes(&mut table).len(), 2);
    }

    #[test]
    fn a_pod_of_the_same_name_is_another_pod() {
        let mut table = listed(vec![pod("a", 1, "u1", "x")]);
        changes(&mut table);
        table.remove_by_event(&pod("a", 11, "u1", "x").id);
        assert_eq!(table.put_event(pod("a", 12, "u2", "x")), Doubt(false));
        let replaced = ["u1 gone", r#"shop/a u2 {"app": "x"}"#];
        assert_eq!(changes(&mut table), replaced);
        // The same, between two lists.
        list(&mut table, 20, vec![pod("a", 15, "u3", "x")]);
        let replaced = ["u2 gone", r#"shop/a u3 {"app": "x"}"#];
        assert_eq!(changes(&mut table), replaced);
    }

    #[test]
    fn what_comes_and_goes_between_two_looks_is_not_told() {
        let mut table = listed(vec![pod("a", 1, "u1", "x")]);
        changes(&mut table);
        assert_eq!(table.put_event(pod("b", 11, "u2", "x")), Doubt(false));
        table.remove_by_event(&pod("b", 12, "u2", "x").id);
        assert_eq!(table.put_event(pod("a", 13, "u1", "y")), Doubt(false));
        assert_eq!(table.put_event(pod("a", 14, "u1", "x")), Doubt(false));
        assert_eq!(changes(&mut table), NOTHING);
        table.remove_by_event(&pod("a", 15, "u1", "x").id);
        assert_eq!(table.put_event(pod("a", 16, "u1", "x")), Doubt(false));
        assert_eq!(changes(&mut table), NOTHING, "it is what was told");
    }

    #[test]
    fn a_server_that_has_gone_back_in_time_is_believed_when_it_lists() {
        let mut table = listed(vec![pod("a", 9, "u1", "x"), pod("b", 10, "u2", "x")]);
        changes(&mut table);
        list(&mut table, 5, vec![pod("a", 4, "u1", "old")]);
        assert_eq!(
            changes(&mut table),
            ["u2 gone", r#"shop/a u1 {"app": "old"}"#]
        );
        assert_eq!(table.put_event(pod("a", 6, "u1", "new")), Doubt(false));
        let unknown = table.put_event(pod("c", 7, "u3", "new"));
        assert_eq!(unknown, Doubt(false), "7 is later than the list was");
        assert_eq!(changes(&mut table).len(), 2);
    }

    #[test]
    fn what_cannot_be_read_stays_what_it_was_and_is_reported_until_it_can() {
        let mut table = listed(vec![pod("a", 1, "u1", "x"), unreadable("b", 2)]);
        assert_eq!(changes(&mut table), [r#"shop/a u1 {"app": "x"}"#]);
        assert_eq!(table.put_event(unreadable("a", 11)), Doubt(false));
        assert_eq!(changes(&mut table), NOTHING);
        assert_eq!(table.findings().count(), 2);
        list(
            &mut table,
            20,
            vec![unreadable("a", 11), unreadable("b", 2)],
        );
        assert_eq!(changes(&mut table), NOTHING);
        assert_eq!(table.put_event(pod("a", 21, "u1", "y")), Doubt(false));
        table.remove_by_event(&unreadable("b", 22).id);
        assert_eq!(changes(&mut table), [r#"shop/a u1 {"app": "y"}"#]);
        assert_eq!(table.findings().count(), 0);
    }

    #[test]
    fn a_kind_that_is_not_there_is_empty_unless_objects_of_it_are_known() {
        let mut table = Table::new(Kind::Pod);
        assert!(!table.is_settled());
        assert!(table.take_as_absent() && table.is_settled());
        list(&mut table, 20, vec![pod("a", 11, "u1", "x")]);
        assert_eq!(changes(&mut table).len(), 1);
        assert!(!table.take_as_absent());
        assert_eq!(changes(&mut table), NOTHING);
    }
}
