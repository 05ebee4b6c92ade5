//! Port names that egress rules resolve at the peer, and which of them ask every pod.

use std::collections::BTreeSet;

use super::peer_classes::ClassId;
use super::policy_sets::{NameId, SetId};
use crate::hash::HashMap;
use crate::model::{Pod, Protocol};

/// The (protocol, port name) pairs that rules use.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortNames {
    by_name: HashMap<(Protocol, String), NameId>,
    entries: Vec<Entry>,
    /// Names that rules for everyone use, and how many rules do.
    for_everyone: HashMap<NameId, usize>,
}

#[derive(Clone, Debug)]
struct Entry {
    protocol: Protocol,
    name: String,
    sets: BTreeSet<SetId>,
    classes: BTreeSet<ClassId>,
}

impl PortNames {
    /// The id of a name. There are as many as words in policies: they are never forgotten.
    pub(crate) fn intern(&mut self, protocol: Protocol, name: &str) -> NameId {
        let key = (protocol, name.to_owned());
        if let Some(id) = self.by_name.get(&key) {
            return *id;
        }
        let id = NameId(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
        self.entries.push(Entry {
            protocol,
            name: name.to_owned(),
            sets: BTreeSet::new(),
            classes: BTreeSet::new(),
        });
        self.by_name.insert(key, id);
        id
    }

    /// The protocol of a name.
    pub(crate) fn protocol(&self, id: NameId) -> u8 {
        self.entry(id).map_or(0, |entry| entry.protocol.0)
    }

    /// The ports a pod resolves a name to: as many as it declares with that name.
    pub(crate) fn ports_at<'a>(
        &'a self,
        id: NameId,
        pod: &'a Pod,
    ) -> impl Iterator<Item = u16> + 'a {
        self.entry(id).into_iter().flat_map(|entry| {
            let declared = pod.ports.iter();
            declared
                .filter(|port| port.name == entry.name && port.protocol == entry.protocol)
                .map(|port| port.port)
        })
    }

    /// One more rule for everyone uses the name; true when it is the first.
    pub(crate) fn add_for_everyone(&mut self, id: NameId) -> bool {
        let rules = self.for_everyone.entry(id).or_default();
        *rules += 1;
        *rules == 1
    }

    /// One rule for everyone less uses the name.
    pub(crate) fn remove_for_everyone(&mut self, id: NameId) {
        if let Some(rules) = self.for_everyone.get_mut(&id) {
            *rules -= 1;
            if *rules == 0 {
                self.for_everyone.remove(&id);
            }
        }
    }

    /// Names that rules for everyone use.
    pub(crate) fn for_everyone(&self) -> impl Iterator<Item = NameId> + '_ {
        self.for_everyone.keys().copied()
    }

    /// Live sets with a rule that uses the name.
    pub(crate) fn sets(&self, id: NameId) -> impl Iterator<Item = SetId> + '_ {
        self.entry(id)
            .into_iter()
            .flat_map(|entry| entry.sets.iter().copied())
    }

    /// Classes that resolve the name.
    pub(crate) fn classes(&self, id: NameId) -> impl Iterator<Item = ClassId> + '_ {
        self.entry(id)
            .into_iter()
            .flat_map(|entry| entry.classes.iter().copied())
    }

    /// The sets that use a name.
    pub(crate) fn sets_mut(&mut self, id: NameId) -> Option<&mut BTreeSet<SetId>> {
        self.entries
            .get_mut(id.0 as usize)
            .map(|entry| &mut entry.sets)
    }

    /// The classes that resolve a name.
    pub(crate) fn classes_mut(&mut self, id: NameId) -> Option<&mut BTreeSet<ClassId>> {
        self.entries
            .get_mut(id.0 as usize)
            .map(|entry| &mut entry.classes)
    }

    fn entry(&self, id: NameId) -> Option<&Entry> {
        self.entries.get(id.0 as usize)
    }
}
