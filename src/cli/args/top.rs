//! `qtunnel top`.

use std::path::PathBuf;

use clap::Args;

pub(super) const TOP_EXAMPLES: &str = "\
Examples:
  qtunnel top --config stub.toml
  ssh -t stub.example.com qtunnel top --config /etc/qtunnel/stub.toml

Keys: Tab, 1-4 view; arrows, j, k, PgUp, PgDn row; s, S sort; r reverse; / filter; Esc clear; q quit";

/// `qtunnel top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// The stub's settings file.
    #[arg(long, env = "QTUNNEL_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
}
