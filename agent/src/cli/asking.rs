//! What `can` and `why` share: who is asked, the running agent or manifests, and how it is printed.

use std::path::PathBuf;

use agent_policy::cluster::Cluster;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Outcome;
use super::client::Socket;
use super::offline::Manifests;
use super::output::{Format, Terminal};
use crate::answer::{AnswerError, Reference};
use crate::dto::{Document, Kind};

/// Options of a question about policy.
#[derive(Debug, clap::Args)]
pub(super) struct Asking {
    /// Judge these manifests instead of asking the agent
    #[arg(short, long, value_name = "DIR")]
    filename: Vec<PathBuf>,
    /// Namespace of names that say none
    #[arg(short, long, value_name = "NS", default_value = "default")]
    namespace: String,
    #[command(flatten)]
    socket: Socket,
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub(super) output: Format,
}

/// What was answered.
pub(super) struct Answer<T> {
    /// As it leaves the process.
    pub(super) document: Document<T>,
    manifests: Option<Manifests>,
}

impl<T> Answer<T> {
    /// How the command ends: manifests that could not all be used are no clean answer.
    pub(super) fn outcome(&self, answered: Outcome) -> Outcome {
        let manifests = self.manifests.as_ref();
        manifests.map_or(answered, |manifests| manifests.outcome(answered))
    }
}

impl Asking {
    /// Asks about a pair: the agent at `path`, or, where manifests are given, `judge`.
    pub(super) fn about_pair<T: Kind + DeserializeOwned + Serialize>(
        &self,
        terminal: &Terminal,
        path: &str,
        (from, to): (&Reference, &Reference),
        judge: impl FnOnce(&Cluster, &str) -> Result<T, AnswerError>,
    ) -> anyhow::Result<Answer<T>> {
        if self.filename.is_empty() {
            return self.agent(path, &[("from", from), ("to", to)]);
        }
        let manifests = Manifests::load(&self.filename, terminal)?;
        Ok(Answer {
            document: judge(&manifests.cluster, &self.namespace)?.into_document(),
            manifests: Some(manifests),
        })
    }

    /// Asks the agent.
    pub(super) fn agent<T: DeserializeOwned>(
        &self,
        path: &str,
        about: &[(&'static str, &Reference)],
    ) -> anyhow::Result<Answer<T>> {
        let mut query: Vec<(&str, String)> = about
            .iter()
            .map(|(name, reference)| (*name, reference.to_string()))
            .collect();
        query.push(("namespace", self.namespace.clone()));
        Ok(Answer {
            document: self.socket.get(path, &query)?,
            manifests: None,
        })
    }
}
