//! `picket can`: may one reach the other?

use super::asking::Asking;
use super::output::Terminal;
use super::{Outcome, explain};
use crate::answer::{self, AnswerError, Reference};
use crate::dto::Explanation;

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
    #[command(flatten)]
    asking: Asking,
}

impl Args {
    pub(super) fn run(&self, terminal: &Terminal) -> anyhow::Result<Outcome> {
        // Said before an agent is looked for: it would say the same.
        if self.to.port.is_none() {
            return Err(AnswerError::PortMissing(self.to.to_string()).into());
        }
        let answer = self.asking.about_pair::<Explanation>(
            terminal,
            "/v1/can",
            (&self.from, &self.to),
            |cluster, namespace| answer::can(cluster, &self.from, &self.to, namespace),
        )?;
        let explanation = &answer.document.body;
        self.asking.output.print(&answer.document, |out| {
            explain::write_can(out, terminal, explanation)
        })?;
        Ok(answer.outcome(explain::outcome(explanation.verdict)))
    }
}
