//! The port functions in use, each once, and the rows of PORTS that long ones need.

use std::sync::Arc;

use agent_common::maps::{IdKind, PortFunction, PortKey, PortVerdict};

use super::Function;
use crate::compile::ids::Ids;
use crate::hash::HashMap;

/// A function in use; only within this process.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct FunctionId(u32);

/// What a function passes and drops, rules forgotten.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct ShapeId(u64);

/// The functions in use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Functions {
    by_content: HashMap<Arc<Function>, FunctionId>,
    entries: Vec<Option<Entry>>,
    free: Vec<FunctionId>,
    shapes: HashMap<Function, (ShapeId, usize)>,
    next_shape: u64,
    unwritten: Vec<FunctionId>,
    long: usize,
    port_rows: usize,
}

#[derive(Clone, Debug)]
struct Entry {
    content: Arc<Function>,
    shape: ShapeId,
    holders: usize,
    /// Id in PORTS; 0 for inline functions.
    number: u32,
    is_written: bool,
}

impl Functions {
    /// Takes hold of a function, which is made when nobody has it yet.
    pub(crate) fn hold(&mut self, function: Function, ids: &mut Ids) -> FunctionId {
        if let Some(id) = self.by_content.get(&function) {
            let id = *id;
            self.hold_again(id);
            return id;
        }
        let shape = self.hold_shape(function.shape());
        let number = if function.is_long() {
            self.long += 1;
            ids.take(IdKind::Function)
        } else {
            0
        };
        if number != 0 {
            self.port_rows += function.port_rows(number).len();
        }
        let content = Arc::new(function);
        let entry = Entry {
            content: Arc::clone(&content),
            shape,
            holders: 1,
            number,
            is_written: false,
        };
        let id = self.place(entry);
        self.by_content.insert(content, id);
        if number != 0 {
            self.unwritten.push(id);
        }
        id
    }

    /// One more holder of a function that somebody holds.
    pub(crate) fn hold_again(&mut self, id: FunctionId) {
        if let Some(entry) = self.entry_mut(id) {
            entry.holders += 1;
        }
    }

    /// Lets go of a function; the rows of PORTS to delete when it was the last holder.
    pub(crate) fn release(&mut self, id: FunctionId) -> Vec<PortKey> {
        let Some(place) = self.entries.get_mut(id.0 as usize) else {
            return Vec::new();
        };
        let Some(entry) = place else {
            return Vec::new();
        };
        entry.holders -= 1;
        if entry.holders > 0 {
            return Vec::new();
        }
        let entry = entry.clone();
        *place = None;
        self.free.push(id);
        self.by_content.remove(&entry.content);
        self.release_shape(&entry.content.shape());
        if entry.number == 0 {
            return Vec::new();
        }
        self.unwritten.retain(|unwritten| *unwritten != id);
        let rows = entry.content.port_rows(entry.number);
        self.long -= 1;
        self.port_rows -= rows.len();
        if entry.is_written {
            rows.into_iter().map(|(key, _)| key).collect()
        } else {
            Vec::new()
        }
    }

    /// The function's row of VERDICTS.
    pub(crate) fn row(&self, id: FunctionId) -> PortFunction {
        self.entry(id)
            .map(|entry| entry.content.row(entry.number))
            .unwrap_or_default()
    }

    /// True when the function passes what is sent to a port.
    pub(crate) fn passes(&self, id: FunctionId, protocol: u8, port: u16) -> bool {
        self.entry(id)
            .is_some_and(|entry| entry.content.passes(protocol, port))
    }

    /// What the function passes and drops.
    pub(crate) fn shape(&self, id: FunctionId) -> Option<ShapeId> {
        self.entry(id).map(|entry| entry.shape)
    }

    /// The rows of PORTS that have to be there before any row of VERDICTS made since the last
    /// call.
    pub(crate) fn port_rows_to_write(&mut self) -> Vec<(PortKey, PortVerdict)> {
        let mut rows = Vec::new();
        for id in std::mem::take(&mut self.unwritten) {
            if let Some(entry) = self.entry_mut(id) {
                entry.is_written = true;
                rows.extend(entry.content.port_rows(entry.number));
            }
        }
        rows
    }

    /// Distinct functions, long functions, rows of PORTS.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        (self.by_content.len(), self.long, self.port_rows)
    }

    fn entry(&self, id: FunctionId) -> Option<&Entry> {
        self.entries.get(id.0 as usize)?.as_ref()
    }

    fn entry_mut(&mut self, id: FunctionId) -> Option<&mut Entry> {
        self.entries.get_mut(id.0 as usize)?.as_mut()
    }

    fn place(&mut self, entry: Entry) -> FunctionId {
        if let Some(id) = self.free.pop()
            && let Some(place) = self.entries.get_mut(id.0 as usize)
        {
            *place = Some(entry);
            return id;
        }
        let id = FunctionId(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
        self.entries.push(Some(entry));
        id
    }

    fn hold_shape(&mut self, shape: Function) -> ShapeId {
        let next = ShapeId(self.next_shape);
        let (id, holders) = self.shapes.entry(shape).or_insert((next, 0));
        *holders += 1;
        if *id == next {
            self.next_shape += 1;
        }
        *id
    }

    fn release_shape(&mut self, shape: &Function) {
        if let Some((_, holders)) = self.shapes.get_mut(shape) {
            *holders -= 1;
            if *holders == 0 {
                self.shapes.remove(shape);
            }
        }
    }
}
