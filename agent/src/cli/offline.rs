//! Reads manifests for commands that need no agent, and says what is wrong with them.

use std::path::PathBuf;

use agent_policy::cluster::Cluster;
use agent_policy::model::Severity;
use anyhow::Context as _;

use super::Outcome;
use super::output::Terminal;
use crate::source::directory;

/// What manifests hold.
#[derive(Debug)]
pub(super) struct Manifests {
    /// The objects that could be used.
    pub(super) cluster: Cluster,
    /// True when some part could not be used.
    pub(super) is_incomplete: bool,
}

impl Manifests {
    /// Reads every path; findings go to standard error.
    pub(super) fn load(paths: &[PathBuf], terminal: &Terminal) -> anyhow::Result<Self> {
        let mut cluster = Cluster::new();
        let mut is_incomplete = false;
        for path in paths {
            let loaded = directory::load(path)
                .with_context(|| format!("reading manifests from {}", path.display()))?;
            for reported in &loaded.findings {
                let (word, is_error) = match reported.finding.severity {
                    Severity::Error => ("error", true),
                    Severity::Warning => ("warning", false),
                };
                is_incomplete |= is_error;
                terminal.say(&format!("{word}: {reported}"));
            }
            for change in loaded.changes {
                // What an object touches matters to a running agent only.
                drop(cluster.apply(change));
            }
        }
        Ok(Self {
            cluster,
            is_incomplete,
        })
    }

    /// How a command ends that has answered from these manifests.
    pub(super) fn outcome(&self, answered: Outcome) -> Outcome {
        if self.is_incomplete {
            Outcome::Incomplete
        } else {
            answered
        }
    }
}
