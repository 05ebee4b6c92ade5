//! Peer classes: what an address is to the policies of this node, interned to small integers.

use std::collections::BTreeSet;
use std::sync::Arc;

use agent_common::maps::IdKind;

use crate::hash::HashMap;

use super::atoms::AtomId;
use super::ids::Ids;
use super::policy_sets::{NameId, SetId};

/// A peer class as the kernel knows it. Never used twice.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct ClassId(pub(crate) u32);

impl ClassId {
    /// Matches no atom.
    pub(crate) const NOTHING: Self = Self(0);
}

/// One thing that is true of every address of a class.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Token {
    /// The atom has it.
    Atom(AtomId),
    /// It resolves a port name to this port.
    Port(NameId, u16),
}

/// A class in use.
#[derive(Clone, Debug)]
pub(crate) struct Class {
    /// Sorted; what the class is.
    pub(crate) tokens: Arc<[Token]>,
    /// Keys of the peer maps that are to carry it, and those that do.
    holders: usize,
    /// Keys of the peer maps that do.
    present: usize,
    /// Sets that may have a row for it.
    pub(crate) rows: BTreeSet<SetId>,
}

/// The classes in use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Classes {
    by_tokens: HashMap<Arc<[Token]>, ClassId>,
    by_id: HashMap<ClassId, Class>,
    /// Keys in the maps that say "class 0" in so many words.
    present_nothing: usize,
}

impl Classes {
    /// The class with exactly these tokens (sorted, each once), and whether it is new.
    pub(crate) fn intern(&mut self, tokens: &[Token], ids: &mut Ids) -> (ClassId, bool) {
        if tokens.is_empty() {
            return (ClassId::NOTHING, false);
        }
        if let Some(id) = self.by_tokens.get(tokens) {
            return (*id, false);
        }
        let id = ClassId(ids.take(IdKind::Class));
        let tokens: Arc<[Token]> = tokens.into();
        self.by_tokens.insert(Arc::clone(&tokens), id);
        let class = Class {
            tokens,
            holders: 0,
            present: 0,
            rows: BTreeSet::new(),
        };
        self.by_id.insert(id, class);
        (id, true)
    }

    /// A class by id; `None` for class 0 and for those of an earlier agent.
    pub(crate) fn get(&self, id: ClassId) -> Option<&Class> {
        self.by_id.get(&id)
    }

    /// See [`Self::get`].
    pub(crate) fn get_mut(&mut self, id: ClassId) -> Option<&mut Class> {
        self.by_id.get_mut(&id)
    }

    /// The tokens of a class; none for class 0.
    pub(crate) fn tokens(&self, id: ClassId) -> &[Token] {
        self.by_id.get(&id).map_or(&[], |class| &class.tokens)
    }

    /// One more key carries it.
    pub(crate) fn hold(&mut self, id: ClassId) {
        if let Some(class) = self.by_id.get_mut(&id) {
            class.holders += 1;
        }
    }

    /// One key less carries it; the class itself when that was the last one: it is forgotten.
    pub(crate) fn release(&mut self, id: ClassId) -> Option<Class> {
        let class = self.by_id.get_mut(&id)?;
        class.holders = class.holders.saturating_sub(1);
        if class.holders > 0 {
            return None;
        }
        let class = self.by_id.remove(&id)?;
        self.by_tokens.remove(&class.tokens);
        Some(class)
    }

    /// One more key in the maps carries it.
    pub(crate) fn hold_present(&mut self, id: ClassId) {
        if id == ClassId::NOTHING {
            self.present_nothing += 1;
        } else if let Some(class) = self.by_id.get_mut(&id) {
            class.holders += 1;
            class.present += 1;
        }
    }

    /// One key less in the maps carries it; see [`Self::release`].
    pub(crate) fn release_present(&mut self, id: ClassId) -> Option<Class> {
        if id == ClassId::NOTHING {
            self.present_nothing = self.present_nothing.saturating_sub(1);
        } else if let Some(class) = self.by_id.get_mut(&id) {
            class.present = class.present.saturating_sub(1);
        }
        self.release(id)
    }

    /// How many keys in the maps carry it.
    pub(crate) fn present(&self, id: ClassId) -> usize {
        if id == ClassId::NOTHING {
            return self.present_nothing;
        }
        self.by_id.get(&id).map_or(0, |class| class.present)
    }

    /// Every class in use but class 0.
    pub(crate) fn ids(&self) -> impl Iterator<Item = ClassId> + '_ {
        self.by_id.keys().copied()
    }

    /// Classes in use, class 0 not counted.
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }
}
