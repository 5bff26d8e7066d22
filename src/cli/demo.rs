//! `qtunnel demo`.

use super::CommandResult;
use super::args::DemoArgs;

/// Runs everything in this process.
pub async fn run(_args: DemoArgs) -> CommandResult {
    anyhow::bail!("not there yet")
}
