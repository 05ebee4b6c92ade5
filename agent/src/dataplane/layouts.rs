//! Which layout version a program belongs to: the one whose pinned maps it reads.
//!
//! Where a link is pinned does not tell: an agent may end between moving a pin and replacing the
//! program behind it, and a filter has no pin.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd as _;

use agent_common::maps::LAYOUT_VERSION;

use super::error::DataplaneError;
use super::pins::{Pins, file};
use super::sys;

/// A map that every version has and both its programs read.
const READ_BY_ALL: &str = "ENDPOINTS";

/// Whose maps a program reads.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Layout {
    /// Those of this agent's version.
    Own,
    /// Those of another version.
    Version(u32),
    /// None that are pinned: somebody has removed the pins.
    Unpinned,
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Own => write!(f, "v{LAYOUT_VERSION}"),
            Self::Version(number) => write!(f, "v{number}"),
            Self::Unpinned => f.write_str("unknown"),
        }
    }
}

/// Layouts by their maps and, as far as asked, by their programs.
#[derive(Debug)]
pub(crate) struct Layouts {
    by_map: HashMap<u32, Layout>,
    by_program: HashMap<u32, Layout>,
}

impl Layouts {
    /// Every layout that is pinned now.
    pub(crate) fn pinned(pins: &Pins) -> Result<Self, DataplaneError> {
        let mut by_map = HashMap::new();
        for version in pins.versions()? {
            let path = version.directory().join(READ_BY_ALL);
            let map = match sys::object_get(&path) {
                Ok(map) => map,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(file("opening pinned map", &path, source)),
            };
            let id = sys::map_id(map.as_fd())
                .map_err(|source| file("asking pinned map", &path, source))?;
            let layout = if version.number() == LAYOUT_VERSION {
                Layout::Own
            } else {
                Layout::Version(version.number())
            };
            by_map.insert(id, layout);
        }
        Ok(Self {
            by_map,
            by_program: HashMap::new(),
        })
    }

    /// The layout of a program, by the program's id.
    pub(crate) fn of_program(&mut self, id: u32) -> io::Result<Layout> {
        if let Some(known) = self.by_program.get(&id) {
            return Ok(*known);
        }
        let maps = sys::maps_of_program(id)?;
        let layout = maps.iter().find_map(|map| self.by_map.get(map));
        let layout = layout.copied().unwrap_or(Layout::Unpinned);
        self.by_program.insert(id, layout);
        Ok(layout)
    }
}
