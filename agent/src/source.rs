//! Where objects come from: one stream of batches, whatever the source. [`directory`] watches
//! manifests; a Kubernetes API's watches feed the same type.
//!
//! A batch is applied whole: what changed together on disk is one plan. The first batch of a
//! stream that is complete is the first complete list of every kind; before it nothing is written
//! anywhere.

mod content;
pub mod directory;
mod documents;
mod kube;
mod object;
mod store;

use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

use agent_policy::manifest::brief;
use agent_policy::model::{Change, Finding};

pub use kube::{Access, AccessError, OwnNode, forget as forget_api, watch as watch_api};

/// What a source has to say at one moment.
#[derive(Debug)]
pub struct Batch {
    /// What changed, in an order in which it may be applied.
    pub changes: Vec<Change>,
    /// False while something that may hold objects cannot be read and never was: then there are no
    /// changes, only findings, and what is in force stays.
    pub is_complete: bool,
    /// Everything that is wrong with the source's objects now, not only what is new.
    pub findings: Vec<Reported>,
    /// When the source first heard of any of it.
    pub noticed: Instant,
}

/// A finding with the place where it can be mended.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Reported {
    /// Where, when the source is made of files.
    pub place: Option<Place>,
    /// What.
    pub finding: Finding,
}

/// A place in a manifest file.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// Which document of the file, from 1; `None` when the file as a whole is meant.
    pub document: Option<usize>,
    /// Line in the file, from 1, when it is known.
    pub line: Option<u64>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A file's name is whatever somebody has made it.
        f.write_str(&brief(&self.file.display().to_string()))?;
        match (self.line, self.document) {
            (Some(line), _) => write!(f, ":{line}"),
            (None, Some(document)) => write!(f, " document {document}"),
            (None, None) => Ok(()),
        }
    }
}

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{place}: {}", self.finding),
            None => write!(f, "{}", self.finding),
        }
    }
}
