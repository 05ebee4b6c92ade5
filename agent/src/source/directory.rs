//! A directory of manifests as a source of objects.

use std::path::Path;

use agent_policy::model::Change;

use super::Reported;

/// What a directory holds, read once.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Every object, as if each had just been added.
    pub changes: Vec<Change>,
    /// What is wrong with them.
    pub findings: Vec<Reported>,
}

/// Reads a directory (or a single file) of manifests once, for commands that work offline.
///
/// # Errors
/// The path cannot be read at all; whatever is wrong below it is a finding.
pub fn load(_path: &Path) -> std::io::Result<Loaded> {
    Ok(Loaded::default())
}
