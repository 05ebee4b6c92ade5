//! Directories of the node that the agent works in: the same options for every command that knows them.

use std::path::PathBuf;

use crate::config::{DEFAULT_PINS, DEFAULT_STATE};
use crate::endpoints::DEFAULT_CNI_RESULTS;
use crate::plugin::{DEFAULT_BIN_DIR, DEFAULT_CONF_DIR};

#[derive(Debug, clap::Args)]
pub(super) struct Directories {
    /// Directory of a BPF file system that programs and maps are pinned under
    #[arg(long, value_name = "DIR", env = "PICKET_PINS", default_value = DEFAULT_PINS)]
    pub(super) pins: PathBuf,
    /// Directory in which what the API server said is kept, for an agent that starts while it does
    /// not answer; of no use after the machine has booted
    #[arg(long, value_name = "DIR", env = "PICKET_STATE", default_value = DEFAULT_STATE)]
    pub(super) state: PathBuf,
    /// Directory of the container runtime's CNI results, which say whose an interface is before the
    /// pod's first packet; where there is none, addresses in pods' status say it
    #[arg(long, value_name = "DIR", env = "PICKET_CNI_RESULTS", default_value = DEFAULT_CNI_RESULTS)]
    pub(super) cni_results: PathBuf,
    /// Directory of the container runtime's networks
    #[arg(long, value_name = "DIR", env = "PICKET_CNI_CONF_DIR", default_value = DEFAULT_CONF_DIR)]
    pub(super) cni_conf_dir: PathBuf,
    /// Directory of the container runtime's plugins
    #[arg(long, value_name = "DIR", env = "PICKET_CNI_BIN_DIR", default_value = DEFAULT_BIN_DIR)]
    pub(super) cni_bin_dir: PathBuf,
}
