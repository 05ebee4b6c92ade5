//! The rows of `VERDICTS`: which function holds for a set and a class. A row never changes: sets
//! and classes are what their content is, so rows only come and go.

use agent_common::maps::VerdictKey;

use crate::hash::HashMap;

use super::peer_classes::ClassId;
use super::policy_sets::SetId;
use super::port_functions::FunctionId;

#[derive(Clone, Copy, Debug)]
struct Row {
    function: FunctionId,
    is_written: bool,
}

/// A row that was taken out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Removed {
    /// Where it was.
    pub(crate) key: VerdictKey,
    /// Its function, which the taker now holds.
    pub(crate) function: FunctionId,
    /// True when it is in the map: it has to rest, then to be deleted there.
    pub(crate) is_written: bool,
}

/// The rows. Those for class 0 hold for every class without a row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    by_key: HashMap<(SetId, ClassId), Row>,
    unwritten: Vec<(SetId, ClassId)>,
}

/// The key of a row.
pub(crate) const fn key(set: SetId, class: ClassId) -> VerdictKey {
    VerdictKey {
        set: set.0,
        class: class.0,
    }
}

impl Rows {
    /// Adds a row; it holds the function.
    pub(crate) fn insert(&mut self, set: SetId, class: ClassId, function: FunctionId) {
        let row = Row {
            function,
            is_written: false,
        };
        self.by_key.insert((set, class), row);
        self.unwritten.push((set, class));
    }

    /// Takes a row out.
    pub(crate) fn remove(&mut self, set: SetId, class: ClassId) -> Option<Removed> {
        self.by_key.remove(&(set, class)).map(|row| Removed {
            key: key(set, class),
            function: row.function,
            is_written: row.is_written,
        })
    }

    /// The function that holds for a set and class; `None` when there is no such set.
    pub(crate) fn function(&self, set: SetId, class: ClassId) -> Option<FunctionId> {
        let row = self.by_key.get(&(set, class));
        row.or_else(|| self.by_key.get(&(set, ClassId::NOTHING)))
            .map(|row| row.function)
    }

    /// The rows to write, those for class 0 first; from now on they count as written.
    pub(crate) fn take_unwritten(&mut self) -> Vec<(VerdictKey, FunctionId)> {
        let mut rows = Vec::new();
        for (set, class) in std::mem::take(&mut self.unwritten) {
            if let Some(row) = self.by_key.get_mut(&(set, class))
                && !row.is_written
            {
                row.is_written = true;
                rows.push((key(set, class), row.function));
            }
        }
        rows.sort_by_key(|(key, _)| key.class != 0);
        rows
    }

    /// True when no row waits to be written.
    pub(crate) fn is_settled(&self) -> bool {
        self.unwritten.is_empty()
    }

    /// Rows.
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }
}
