//! Where the agent pins what outlives it, in the BPF file system that each lab has for itself.

use std::path::{Path, PathBuf};

use agent_common::maps::LAYOUT_VERSION;

/// The agent's pins, of every version.
pub const PINS: &str = "/sys/fs/bpf/picket";

/// A pin of this version's: a map's name, or `links/` and a link's.
pub fn pinned(name: &str) -> PathBuf {
    pinned_below(Path::new(PINS), name)
}

/// The same below another directory of pins.
pub fn pinned_below(pins: &Path, name: &str) -> PathBuf {
    pins.join(format!("v{LAYOUT_VERSION}")).join(name)
}
