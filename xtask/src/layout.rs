//! The maps' layouts, as committed in `agent-common/layout.txt`.
//!
//! The snapshot and its rule live in agent-common's `layout` test; this task only calls it.

use anyhow::Result;

use crate::step::Step;

/// What to do about a difference.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Write the snapshot anew; a changed layout needs a new `LAYOUT_VERSION` first.
    #[arg(long)]
    bless: bool,
}

/// The task.
pub(crate) fn run(args: &Args) -> Result<()> {
    let test = Step::cargo(["test", "--quiet", "--locked", "-p", "agent-common"]);
    let test = test.args(["--test", "layout"]);
    if args.bless {
        return test.env("PICKET_BLESS", "1").run();
    }
    test.run()
}
