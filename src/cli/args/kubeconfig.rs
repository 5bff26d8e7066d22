//! `qtunnel kubeconfig`.

use std::path::PathBuf;

use clap::Args;
use jiff::SignedDuration;

use crate::wire::ClusterId;

pub(super) const KUBECONFIG_EXAMPLES: &str = "\
Examples:
  qtunnel kubeconfig --config stub.toml --cluster prod-eu --user alice > alice.yaml
  qtunnel kubeconfig --config stub.toml --cluster prod-eu --user alice --group devs --ttl 24h --out alice.yaml";

/// `qtunnel kubeconfig`.
#[derive(Debug, Args)]
pub struct KubeconfigArgs {
    /// The stub's settings file.
    #[arg(long, env = "QTUNNEL_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    /// The cluster.
    #[arg(long, value_name = "ID")]
    pub cluster: ClusterId,
    /// The user's name in the cluster.
    #[arg(long, value_name = "NAME")]
    pub user: String,
    /// A group the user is in; may be given several times.
    #[arg(long, value_name = "GROUP")]
    pub group: Vec<String>,
    /// How long the certificate is valid.
    #[arg(long, default_value = "8h", value_name = "DURATION")]
    pub ttl: SignedDuration,
    /// Write it to a file (mode 0600) instead of printing it.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}
