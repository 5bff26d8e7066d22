//! `qtunnel stub`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::carrier::CongestionControl;
use crate::pki::HostName;
use crate::threads::Threads;

pub(super) const STUB_EXAMPLES: &str = "\
Examples:
  qtunnel stub init --dir /etc/qtunnel --host stub.example.com
  qtunnel stub --config /etc/qtunnel/stub.toml";

/// `qtunnel stub`.
#[derive(Debug, Args)]
pub struct StubCommand {
    /// `init`, or nothing to run.
    #[command(subcommand)]
    pub action: Option<StubAction>,
    /// How to run.
    #[command(flatten)]
    pub run: StubRunArgs,
}

/// What `qtunnel stub` does besides running.
#[derive(Debug, Subcommand)]
pub enum StubAction {
    /// Make certificate authorities, a server certificate and a settings file.
    Init(StubInitArgs),
}

/// `qtunnel stub init`.
#[derive(Debug, Args)]
pub struct StubInitArgs {
    /// Where to put them. Nothing that is there is replaced.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// The names and addresses that users and agents reach the stub by; the first is written into kubeconfigs.
    #[arg(long, value_name = "NAME_OR_IP", value_delimiter = ',', required = true)]
    pub host: Vec<HostName>,
    /// The port to listen on, TCP and UDP.
    #[arg(long, default_value_t = 8443)]
    pub port: u16,
    /// With it, each cluster also has the host name ID.DOMAIN; point a wildcard DNS record at the stub.
    #[arg(long, value_name = "DOMAIN")]
    pub base_domain: Option<HostName>,
}

/// `qtunnel stub`, to run.
#[derive(Debug, Args)]
pub struct StubRunArgs {
    /// The settings file, as `stub init` made it.
    #[arg(long, env = "QTUNNEL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to listen, TCP and UDP, instead of what the settings file says.
    #[arg(long, env = "QTUNNEL_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// The stub's name, instead of what the settings file says: for several stubs with one settings file.
    #[arg(long, env = "QTUNNEL_STUB_NAME", value_name = "NAME")]
    pub name: Option<String>,
    /// How many threads do the work, instead of what the settings file says.
    #[arg(long, env = "QTUNNEL_THREADS", value_name = "N")]
    pub threads: Option<Threads>,
    /// How congestion on the way to agents is controlled, instead of what the settings file says.
    #[arg(long, env = "QTUNNEL_CONGESTION", value_name = "NAME")]
    pub congestion: Option<CongestionControl>,
    /// A directory in which each connection over QUIC is recorded (qlog), instead of what the settings file says.
    #[arg(long, env = "QTUNNEL_QLOG", value_name = "DIR")]
    pub qlog: Option<PathBuf>,
}
