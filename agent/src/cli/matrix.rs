//! `picket matrix`: every pair of pods and external addresses, as policy judges it.

use std::net::IpAddr;
use std::path::PathBuf;

use super::Outcome;
use super::output::{StreamFormat, Terminal};
use crate::answer::PortArg;

/// Who reaches whom: every pair of pods, judged offline from manifests
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Judges every ordered pair of distinct pods and external addresses on the destination's declared
container ports, or on exactly the ports given. An external destination needs --port.

Exit codes: 0 · 2 when part of the manifests could not be used (the rest is judged and printed).

Examples:
  picket matrix -f manifests/
  picket matrix -f manifests/ --port TCP/8080 --port UDP/53
  picket matrix -f manifests/ --endpoint 203.0.113.7 --port TCP/443
  picket matrix -f manifests/ -o jsonl | jq -r 'select(.verdict == \"allow\") | \"\\(.from) \\(.to)\"'")]
pub(super) struct Args {
    /// Directory (or file) of manifests, read with everything below it
    #[arg(short, long, value_name = "DIR", required = true)]
    filename: Vec<PathBuf>,
    /// Port to judge instead of the declared ones, as TCP/80; may be given again
    #[arg(long = "port", value_name = "PROTO/PORT")]
    ports: Vec<PortArg>,
    /// Address outside the cluster to judge as well; may be given again
    #[arg(long = "endpoint", value_name = "IP")]
    endpoints: Vec<IpAddr>,
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: StreamFormat,
}

impl Args {
    pub(super) fn run(&self, terminal: &Terminal) -> anyhow::Result<Outcome> {
        let _ = (
            terminal,
            &self.filename,
            &self.ports,
            &self.endpoints,
            self.output,
        );
        anyhow::bail!("matrix is not there yet")
    }
}
