//! Inverted indexes between labels and selectors: which labelled things a selector selects, and
//! which selectors may select a set of labels, without looking at everything there is.

use std::collections::BTreeSet;

use crate::hash::HashMap;
use crate::model::Labels;
use crate::selector::{Operator, Requirement, Selector};

/// Labelled things (pods, namespaces), found by label.
///
/// An id is inserted once and removed with the labels it was inserted with.
#[derive(Clone, Debug)]
pub struct LabelIndex<Id> {
    all: BTreeSet<Id>,
    keys: HashMap<String, KeyEntry<Id>>,
}

#[derive(Clone, Debug)]
struct KeyEntry<Id> {
    present: BTreeSet<Id>,
    values: HashMap<String, BTreeSet<Id>>,
}

impl<Id> Default for LabelIndex<Id> {
    fn default() -> Self {
        Self {
            all: BTreeSet::new(),
            keys: HashMap::default(),
        }
    }
}

impl<Id: Clone + Ord> LabelIndex<Id> {
    /// Adds a thing.
    pub fn insert(&mut self, id: &Id, labels: &Labels) {
        self.all.insert(id.clone());
        for (key, value) in labels {
            // Keys and values repeat a great deal: the string is copied only when it is new.
            if !self.keys.contains_key(key) {
                self.keys.insert(
                    key.clone(),
                    KeyEntry {
                        present: BTreeSet::new(),
                        values: HashMap::default(),
                    },
                );
            }
            if let Some(entry) = self.keys.get_mut(key) {
                entry.present.insert(id.clone());
                match entry.values.get_mut(value) {
                    Some(ids) => {
                        ids.insert(id.clone());
                    }
                    None => {
                        entry
                            .values
                            .insert(value.clone(), BTreeSet::from([id.clone()]));
                    }
                }
            }
        }
    }

    /// Removes a thing; `labels` are those it was inserted with.
    pub fn remove(&mut self, id: &Id, labels: &Labels) {
        self.all.remove(id);
        for (key, value) in labels {
            let Some(entry) = self.keys.get_mut(key) else {
                continue;
            };
            entry.present.remove(id);
            if let Some(ids) = entry.values.get_mut(value) {
                ids.remove(id);
                if ids.is_empty() {
                    entry.values.remove(value);
                }
            }
            if entry.present.is_empty() {
                self.keys.remove(key);
            }
        }
    }

    /// Number of things.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// True when nothing was inserted.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// How many candidates [`Self::candidates`] would give.
    pub fn candidate_count(&self, selector: &Selector) -> usize {
        match self.narrowest(selector) {
            Some(sets) => sets.iter().map(|ids| ids.len()).sum(),
            None => self.all.len(),
        }
    }

    /// Everything the selector may select, found by its narrowest requirement that wants a label
    /// to be present; everything there is when it has none. The caller checks the other
    /// requirements.
    pub fn candidates<'a>(&'a self, selector: &Selector) -> Box<dyn Iterator<Item = &'a Id> + 'a> {
        match self.narrowest(selector) {
            // The sets of different values of one key are disjoint: nothing comes twice.
            Some(sets) => Box::new(sets.into_iter().flatten()),
            None => Box::new(self.all.iter()),
        }
    }

    fn narrowest(&self, selector: &Selector) -> Option<Vec<&BTreeSet<Id>>> {
        selector
            .requirements
            .iter()
            .filter_map(|requirement| self.holders(requirement))
            .min_by_key(|sets| sets.iter().map(|ids| ids.len()).sum::<usize>())
    }

    /// Everything that satisfies one requirement; `None` when it is satisfied by absence.
    fn holders(&self, requirement: &Requirement) -> Option<Vec<&BTreeSet<Id>>> {
        let entry = self.keys.get(&requirement.key);
        match &requirement.operator {
            Operator::In(values) => {
                let distinct: BTreeSet<&String> = values.iter().collect();
                Some(entry.map_or_else(Vec::new, |entry| {
                    distinct
                        .into_iter()
                        .filter_map(|value| entry.values.get(value))
                        .collect()
                }))
            }
            Operator::Exists => Some(entry.map_or_else(Vec::new, |entry| vec![&entry.present])),
            Operator::NotIn(_) | Operator::DoesNotExist => None,
        }
    }
}

/// Selectors (of policies, of rules), found by the labels they may select.
#[derive(Clone, Debug)]
pub struct SelectorIndex<Id> {
    by_value: HashMap<String, HashMap<String, BTreeSet<Id>>>,
    by_key: HashMap<String, BTreeSet<Id>>,
    /// Selectors that no label has to be present for.
    loose: BTreeSet<Id>,
}

impl<Id> Default for SelectorIndex<Id> {
    fn default() -> Self {
        Self {
            by_value: HashMap::default(),
            by_key: HashMap::default(),
            loose: BTreeSet::new(),
        }
    }
}

impl<Id: Clone + Ord> SelectorIndex<Id> {
    /// Adds a selector.
    pub fn insert(&mut self, id: &Id, selector: &Selector) {
        match anchor(selector) {
            Some(Requirement {
                key,
                operator: Operator::In(values),
            }) => {
                let by_value = self.by_value.entry(key.clone()).or_default();
                for value in values {
                    by_value
                        .entry(value.clone())
                        .or_default()
                        .insert(id.clone());
                }
            }
            Some(requirement) => {
                self.by_key
                    .entry(requirement.key.clone())
                    .or_default()
                    .insert(id.clone());
            }
            None => {
                self.loose.insert(id.clone());
            }
        }
    }

    /// Removes a selector; it is the one it was inserted with.
    pub fn remove(&mut self, id: &Id, selector: &Selector) {
        match anchor(selector) {
            Some(Requirement {
                key,
                operator: Operator::In(values),
            }) => {
                if let Some(by_value) = self.by_value.get_mut(key) {
                    for value in values {
                        if let Some(ids) = by_value.get_mut(value) {
                            ids.remove(id);
                            if ids.is_empty() {
                                by_value.remove(value);
                            }
                        }
                    }
                    if by_value.is_empty() {
                        self.by_value.remove(key);
                    }
                }
            }
            Some(requirement) => {
                if let Some(ids) = self.by_key.get_mut(&requirement.key) {
                    ids.remove(id);
                    if ids.is_empty() {
                        self.by_key.remove(&requirement.key);
                    }
                }
            }
            None => {
                self.loose.remove(id);
            }
        }
    }

    /// Every selector that may select these labels, each once. The caller checks the rest.
    pub fn candidates<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a Id> + 'a {
        let anchored = labels.iter().flat_map(|(key, value)| {
            let by_value = self
                .by_value
                .get(key)
                .and_then(|by_value| by_value.get(value));
            by_value.into_iter().chain(self.by_key.get(key)).flatten()
        });
        anchored.chain(&self.loose)
    }
}

/// The requirement a selector is found by: one that wants a label present, the narrowest first.
fn anchor(selector: &Selector) -> Option<&Requirement> {
    selector
        .requirements
        .iter()
        .filter_map(|requirement| match &requirement.operator {
            Operator::In(values) => Some((values.len(), requirement)),
            Operator::Exists => Some((usize::MAX, requirement)),
            Operator::NotIn(_) | Operator::DoesNotExist => None,
        })
        .min_by_key(|(width, _)| *width)
        .map(|(_, requirement)| requirement)
}
