//! `qtunnel status`.

use std::path::PathBuf;

use clap::Args;

use super::OutputFormat;

pub(super) const STATUS_EXAMPLES: &str = "\
Examples:
  qtunnel status --config stub.toml
  qtunnel status --config stub.toml --output json | jq '.clusters[].agents[].rttMs'";

/// `qtunnel status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The stub's settings file.
    #[arg(long, env = "QTUNNEL_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    /// How to print it.
    #[arg(long, short, default_value = "table", value_name = "FORMAT")]
    pub output: OutputFormat,
}
