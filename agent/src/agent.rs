//! Wiring: who is started with what, and the order of shutdown. No decisions.

use crate::config::Config;

/// Runs the agent until SIGTERM or SIGINT. Enforcement stays as it is afterwards.
///
/// # Errors
/// The agent cannot start, or its kernel side is lost.
pub fn run(_config: Config) -> anyhow::Result<()> {
    anyhow::bail!("the agent's loop is not wired yet")
}
