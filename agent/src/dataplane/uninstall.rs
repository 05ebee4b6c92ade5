//! Takes everything of Picket out of the kernel: a deed of its own, never done in passing.

use std::path::Path;

use super::attach;
use super::error::DataplaneError;
use super::pins::{self, Pins};

/// What [`uninstall()`] found and removed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Uninstalled {
    /// Interfaces that had programs of ours.
    pub interfaces: usize,
    /// Versioned directories of pins.
    pub versions: usize,
}

/// Takes every program off and removes every pin of every layout version. Traffic is then judged
/// by nobody. Doing it again finds nothing and is no error.
///
/// # Errors
/// The directory is no place for pins, another agent holds it, or something could not be removed;
/// the rest stays then, and may be removed by calling again.
pub fn uninstall(root: &Path) -> Result<Uninstalled, DataplaneError> {
    let mut done = Uninstalled::default();
    if !root.exists() {
        return Ok(done);
    }
    if !pins::is_bpf_fs(root) {
        return Err(DataplaneError::NotPins {
            path: root.to_owned(),
        });
    }
    let pins = Pins::hold_existing(root)?;
    done.interfaces = attach::detach_all(&pins)?;
    for version in pins.versions()? {
        pins::remove_version(version.directory())?;
        done.versions += 1;
    }
    pins::remove_directory(root)?;
    Ok(done)
}
