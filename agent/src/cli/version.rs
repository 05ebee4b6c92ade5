//! `picket version`.

use std::io::Write as _;

use agent_common::maps::LAYOUT_VERSION;
use serde::Serialize;

use super::Outcome;
use super::output::Format;
use crate::dto::API_VERSION;

/// Show the version of this binary and of what it shares with the kernel and with clients
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  picket version
  picket version -o json")]
pub(super) struct Args {
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    api_version: &'static str,
    kind: &'static str,
    version: &'static str,
    map_layout: u32,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Outcome> {
        let versions = Versions {
            api_version: API_VERSION,
            kind: "Version",
            version: env!("CARGO_PKG_VERSION"),
            map_layout: LAYOUT_VERSION,
        };
        self.output.print(&versions, |out| {
            writeln!(
                out,
                "picket {} (map layout {}, API {})",
                versions.version, versions.map_layout, versions.api_version
            )
        })?;
        Ok(Outcome::Yes)
    }
}
