//! `qtunnel demo` and the sample API by itself.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

pub(super) const DEMO_EXAMPLES: &str = "\
Examples:
  qtunnel demo
  qtunnel demo -- kubectl get pods --all-namespaces
  qtunnel demo --kubeconfig ~/.kube/config --as-user alice --as-group devs
  qtunnel demo --kubeconfig ~/.kube/config --as-user alice -- k9s";

/// `qtunnel demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Put the tunnel in front of a real cluster instead of the sample one.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig, if not its current one.
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    pub context: Option<String>,
    /// The user to be in the real cluster, where its RBAC decides what that user may do.
    #[arg(long, value_name = "NAME", default_value = "qtunnel-demo", requires = "kubeconfig")]
    pub as_user: String,
    /// A group that the user is in; may be given several times.
    #[arg(long, value_name = "GROUP", requires = "kubeconfig")]
    pub as_group: Vec<String>,
    /// The stub's port on loopback; 0 lets the system choose.
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// Instead of checking, run this command with KUBECONFIG set, and exit with its status.
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<std::ffi::OsString>,
}

pub(super) const SAMPLE_API_EXAMPLES: &str = "\
Examples:
  qtunnel sample-api --dir ./sample --listen 127.0.0.1:6443
  kubectl --kubeconfig ./sample/kubeconfig.yaml get pods -n demo";

/// `qtunnel sample-api`.
#[derive(Debug, Args)]
pub struct SampleApiArgs {
    /// Where to listen; loopback only.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// Where to write `ca.pem`, `agent-token` and `kubeconfig.yaml` for it.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
}
