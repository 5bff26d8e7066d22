//! `qtunnel token`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::SignedDuration;

use super::OutputFormat;
use crate::wire::ClusterId;

/// `qtunnel token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a join token for agents of one cluster and print it.
    #[command(after_help = "\
Examples:
  qtunnel token create --config stub.toml --cluster prod-eu
  qtunnel token create --config stub.toml --cluster prod-eu --ttl 24h --uses 3")]
    Create(TokenCreateArgs),
}

/// `qtunnel token create`.
#[derive(Debug, Args)]
pub struct TokenCreateArgs {
    /// The stub's settings file.
    #[arg(long, env = "QTUNNEL_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    /// The cluster. It exists from now on.
    #[arg(long, value_name = "ID")]
    pub cluster: ClusterId,
    /// How long the token is valid.
    #[arg(long, default_value = "1h", value_name = "DURATION")]
    pub ttl: SignedDuration,
    /// How many agents can join with it.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub uses: u32,
    /// How to print it.
    #[arg(long, short, default_value = "table", value_name = "FORMAT")]
    pub output: OutputFormat,
}
