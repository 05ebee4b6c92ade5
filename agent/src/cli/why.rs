//! `picket why`: explains a verdict, or the latest refusals at a workload.

use std::io::Write as _;
use std::path::PathBuf;

use super::client::Socket;
use super::offline::Manifests;
use super::output::{self, Format, Terminal};
use super::{Outcome, explain};
use crate::answer::{self, Reference};
use crate::dto::{DenialList, ExplanationList, Kind as _, VerdictWord};

/// Why may FROM reach TO, or not? Isolating policies, deciding rule or nearest miss
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without a port, the ports on which the agent saw refusals are explained, or else the ports that
TO declares. Without -f the running agent answers and says how often it refused, and when last.

Exit codes: 0 all allowed, or nothing refused · 1 something is refused · 2 error, or manifests
that could not all be used · 3 cannot tell.

Examples:
  picket why shop/deploy/web shop/deploy/api:8080
  picket why shop/deploy/web shop/sts/db -f manifests/
  picket why --to shop/deploy/api
  picket why --to shop/deploy/api -o json | jq '.items[].from'")]
pub(super) struct Args {
    /// Who opens the connection
    #[arg(
        value_name = "FROM",
        required_unless_present = "latest",
        requires = "to"
    )]
    from: Option<Reference>,
    /// To whom, with or without a port
    #[arg(value_name = "TO[:PORT]")]
    to: Option<Reference>,
    /// Explain the latest refusals of connections to and from this one instead
    #[arg(long = "to", value_name = "WHO", conflicts_with_all = ["from", "filename"])]
    latest: Option<Reference>,
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
    output: Format,
}

impl Args {
    pub(super) fn run(&self, terminal: &Terminal) -> anyhow::Result<Outcome> {
        match (&self.latest, &self.from, &self.to) {
            (Some(latest), ..) => self.explain_latest(terminal, latest),
            (None, Some(from), Some(to)) => self.explain_pair(terminal, from, to),
            (None, ..) => anyhow::bail!("name FROM and TO, or --to WHO"),
        }
    }

    fn explain_pair(
        &self,
        terminal: &Terminal,
        from: &Reference,
        to: &Reference,
    ) -> anyhow::Result<Outcome> {
        let (list, manifests) = if self.filename.is_empty() {
            let query = [
                ("from", from.to_string()),
                ("to", to.to_string()),
                ("namespace", self.namespace.clone()),
            ];
            (
                self.socket.get::<ExplanationList>("/v1/why", &query)?.body,
                None,
            )
        } else {
            let manifests = Manifests::load(&self.filename, terminal)?;
            let items = answer::why(&manifests.cluster, from, to, &self.namespace)?;
            (ExplanationList { items }, Some(manifests))
        };
        let mut out = output::stdout();
        match self.output {
            Format::Json => output::write_json(&mut out, &list.clone().into_document())?,
            Format::Table => {
                for (place, explanation) in list.items.iter().enumerate() {
                    if place > 0 {
                        writeln!(out)?;
                    }
                    explain::write_why(&mut out, terminal, explanation)?;
                }
            }
        }
        out.flush()?;
        let verdicts = || list.items.iter().map(|item| item.verdict);
        let outcome = if verdicts().any(|verdict| verdict == VerdictWord::Deny) {
            Outcome::No
        } else if verdicts().all(|verdict| verdict == VerdictWord::Allow) {
            Outcome::Yes
        } else {
            Outcome::CannotTell
        };
        Ok(manifests.map_or(outcome, |manifests| manifests.outcome(outcome)))
    }

    fn explain_latest(&self, terminal: &Terminal, who: &Reference) -> anyhow::Result<Outcome> {
        let query = [
            ("to", who.to_string()),
            ("namespace", self.namespace.clone()),
        ];
        let list = self.socket.get::<DenialList>("/v1/why", &query)?.body;
        let mut out = output::stdout();
        match self.output {
            Format::Json => output::write_json(&mut out, &list.clone().into_document())?,
            Format::Table => explain::write_denials(&mut out, terminal, &who.to_string(), &list)?,
        }
        out.flush()?;
        Ok(if list.items.is_empty() {
            Outcome::Yes
        } else {
            Outcome::No
        })
    }
}
