//! `picket can`: may one reach the other?

use std::io::Write as _;
use std::path::PathBuf;

use super::client::Socket;
use super::offline::Manifests;
use super::output::{self, Format, Terminal};
use super::{Outcome, explain};
use crate::answer::{self, Reference};
use crate::dto::{Explanation, Kind as _};

/// May FROM open a connection to TO? By which rule, or what is missing
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without -f the running agent answers, from the objects it enforces.

Exit codes: 0 yes · 1 no, or not every pod · 2 error, or manifests that could not all be used
· 3 cannot tell.

Examples:
  picket can shop/deploy/web shop/deploy/api:8080
  picket can shop/web-7d4f9 kube-system/deploy/coredns:53/UDP -f manifests/
  picket can shop/deploy/web 203.0.113.7:443 -o json")]
pub(super) struct Args {
    /// Who opens the connection
    #[arg(value_name = "FROM")]
    from: Reference,
    /// To whom, with a port
    #[arg(value_name = "TO:PORT")]
    to: Reference,
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
        let (explanation, manifests) = if self.filename.is_empty() {
            let query = [
                ("from", self.from.to_string()),
                ("to", self.to.to_string()),
                ("namespace", self.namespace.clone()),
            ];
            (
                self.socket.get::<Explanation>("/v1/can", &query)?.body,
                None,
            )
        } else {
            let manifests = Manifests::load(&self.filename, terminal)?;
            let explanation =
                answer::can(&manifests.cluster, &self.from, &self.to, &self.namespace)?;
            (explanation, Some(manifests))
        };
        let mut out = output::stdout();
        match self.output {
            Format::Table => explain::write_can(&mut out, terminal, &explanation)?,
            Format::Json => output::write_json(&mut out, &explanation.clone().into_document())?,
        }
        out.flush()?;
        let outcome = explain::outcome(explanation.verdict);
        Ok(manifests.map_or(outcome, |manifests| manifests.outcome(outcome)))
    }
}
