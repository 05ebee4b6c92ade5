//! `picket why`: explains a verdict, or the latest refusals at a workload.

use std::io::Write as _;

use super::asking::Asking;
use super::output::Terminal;
use super::{Outcome, explain};
use crate::answer::{self, Reference};
use crate::dto::{DenialList, ExplanationList, VerdictWord};

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
    #[command(flatten)]
    asking: Asking,
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
        let answer =
            self.asking
                .about_pair(terminal, "/v1/why", (from, to), |cluster, namespace| {
                    let items = answer::why(cluster, from, to, namespace)?;
                    Ok(ExplanationList { items })
                })?;
        let items = &answer.document.body.items;
        self.asking.output.print(&answer.document, |out| {
            for (place, explanation) in items.iter().enumerate() {
                if place > 0 {
                    writeln!(out)?;
                }
                explain::write_why(out, terminal, explanation)?;
            }
            Ok(())
        })?;
        let verdicts = || items.iter().map(|item| item.verdict);
        let outcome = if verdicts().any(|verdict| verdict == VerdictWord::Deny) {
            Outcome::No
        } else if verdicts().all(|verdict| verdict == VerdictWord::Allow) {
            Outcome::Yes
        } else {
            Outcome::CannotTell
        };
        Ok(answer.outcome(outcome))
    }

    fn explain_latest(&self, terminal: &Terminal, who: &Reference) -> anyhow::Result<Outcome> {
        let answer = self.asking.agent::<DenialList>("/v1/why", &[("to", who)])?;
        let list = &answer.document.body;
        self.asking.output.print(&answer.document, |out| {
            explain::write_denials(out, terminal, &who.to_string(), list)
        })?;
        explain::say_lost(terminal, list.lost);
        Ok(if list.items.is_empty() {
            Outcome::Yes
        } else {
            Outcome::No
        })
    }
}
