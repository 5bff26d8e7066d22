//! `qtunnel agent`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use http::Uri;
use jiff::SignedDuration;

use crate::agent::{AddressPattern, StubAddress};
use crate::carrier::CongestionControl;
use crate::cli::manifest::{ImageName, ImpersonatedGroup, ImpersonatedUser, Namespace};
use crate::pki::JoinToken;
use crate::threads::Threads;
use crate::trace::OtlpEndpoint;

pub(super) const AGENT_EXAMPLES: &str = "\
Examples:
  qtunnel agent --stub stub.example.com:8443 --token qtj1.... --state-dir /var/lib/qtunnel
  qtunnel agent --stub stub.example.com:8443 --state-dir ./agent --kubeconfig ~/.kube/config
  qtunnel agent --stub stub-1.example.com:8443,stub-2.example.com:8443 --state-dir ./agent --kubeconfig ~/.kube/config
  qtunnel agent --stub stub.example.com:8443 --state-dir ./agent \\
      --upstream https://10.0.0.1:6443 --upstream-ca ca.pem --upstream-token-file token
  qtunnel agent manifest --stub stub.example.com:8443 --token qtj1.... --impersonate-user alice | kubectl apply -f -";

/// `qtunnel agent`.
#[derive(Debug, Args)]
pub struct AgentCommand {
    /// `manifest`, or nothing to run.
    #[command(subcommand)]
    pub action: Option<AgentAction>,
    /// How to run.
    #[command(flatten)]
    pub run: AgentArgs,
}

/// What `qtunnel agent` does besides running.
#[derive(Debug, Subcommand)]
pub enum AgentAction {
    /// Print the Kubernetes objects that run agents in a cluster, for `kubectl apply -f -`.
    #[command(after_help = MANIFEST_EXAMPLES)]
    Manifest(ManifestArgs),
}

const MANIFEST_EXAMPLES: &str = "\
Examples:
  qtunnel agent manifest --stub stub.example.com:8443 --token qtj1.... --impersonate-user alice | kubectl apply -f -
  qtunnel agent manifest --stub stub.example.com:8443 --token qtj1.... --image registry.example.com/qtunnel:1 \\
      --impersonate-user alice --impersonate-user bob --impersonate-group devs";

/// `qtunnel agent manifest`.
#[derive(Debug, Args)]
pub struct ManifestArgs {
    /// The stubs; may be given several times.
    #[arg(long, env = "QTUNNEL_STUB", value_name = "HOST:PORT", value_delimiter = ',', required = true)]
    pub stub: Vec<StubAddress>,
    /// The join token, with as many uses as there are replicas. It is part of what is printed.
    #[arg(long, env = "QTUNNEL_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: JoinToken,
    /// The namespace, which is created.
    #[arg(long, default_value = "qtunnel", value_name = "NAME")]
    pub namespace: Namespace,
    /// A user that the agents may act as; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub impersonate_user: Vec<ImpersonatedUser>,
    /// A group that those users may be in; may be given several times.
    #[arg(long, value_name = "GROUP")]
    pub impersonate_group: Vec<ImpersonatedGroup>,
    /// The image, built with `deploy/Containerfile`, where the cluster can pull it.
    #[arg(long, default_value = concat!("qtunnel:", env!("CARGO_PKG_VERSION")), value_name = "IMAGE")]
    pub image: ImageName,
    /// How many agents, each with an identity of its own.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub replicas: u32,
}

/// `qtunnel agent`, to run.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// A settings file (TOML) with any of these flags as keys, without the dashes in front: `stub = \"...\"`.
    #[arg(long, env = "QTUNNEL_AGENT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The stubs; may be given several times. The agent is connected to all of them at once, to each address of a name, and
    /// to those that they name.
    #[arg(long, env = "QTUNNEL_STUB", value_name = "HOST:PORT", value_delimiter = ',')]
    pub stub: Vec<StubAddress>,
    /// The join token; needed until the agent has joined.
    #[arg(long, env = "QTUNNEL_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<JoinToken>,
    /// Where the agent keeps its key and its certificate.
    #[arg(long, env = "QTUNNEL_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// How the stub is reached: over QUIC (UDP), over TLS on TCP (through the proxy of HTTPS_PROXY, if there is one), or over QUIC with TCP as fallback [default: auto].
    #[arg(long, env = "QTUNNEL_CARRIER", value_name = "CARRIER")]
    pub carrier: Option<AgentCarrier>,
    /// How often QUIC is tried again while the agent has to do with TCP [default: 60s].
    #[arg(long, env = "QTUNNEL_PROBE_INTERVAL", value_name = "DURATION", hide = true)]
    pub probe_interval: Option<SignedDuration>,
    /// How requests are made: with the agent's ServiceAccount in the user's name, or with the user's own token.
    #[arg(long, env = "QTUNNEL_AUTH", value_name = "MODE")]
    pub auth: Option<AgentAuth>,
    /// The API server.
    #[command(flatten)]
    pub upstream: UpstreamArgs,
    /// Users that the agent does not act as, besides those it never does by default; a `*` at the end stands for anything.
    #[arg(long, env = "QTUNNEL_DENY_USER", value_name = "PATTERN", value_delimiter = ',')]
    pub deny_user: Vec<crate::kube::impersonation::Pattern>,
    /// Groups that the agent does not act as a member of, besides the default ones.
    #[arg(long, env = "QTUNNEL_DENY_GROUP", value_name = "PATTERN", value_delimiter = ',')]
    pub deny_group: Vec<crate::kube::impersonation::Pattern>,
    /// An address that programs at the stub may connect to through this agent; the host may begin with `*.`, the port may be `*`. Default: none.
    #[arg(long, env = "QTUNNEL_ALLOW_DIAL", value_name = "HOST:PORT", value_delimiter = ',')]
    pub allow_dial: Vec<AddressPattern>,
    /// At a stop, how long requests may take to end [default: 30s].
    #[arg(long, env = "QTUNNEL_DRAIN_TIMEOUT", value_name = "DURATION")]
    pub drain_timeout: Option<SignedDuration>,
    /// How long the API server may take to begin an answer, unless it is a watch, a log or the like [default: 5m].
    #[arg(long, env = "QTUNNEL_RESPONSE_TIMEOUT", value_name = "DURATION")]
    pub response_timeout: Option<SignedDuration>,
    /// How long a connection and its streams live without a packet from the stub [default: 5m].
    #[arg(long, env = "QTUNNEL_IDLE_TIMEOUT", value_name = "DURATION")]
    pub idle_timeout: Option<SignedDuration>,
    /// How many threads do the work; more take more CPU time for the same [default: 1].
    #[arg(long, env = "QTUNNEL_THREADS", value_name = "N")]
    pub threads: Option<Threads>,
    /// How congestion on the way to the stub is controlled [default: bbr].
    #[arg(long, env = "QTUNNEL_CONGESTION", value_name = "NAME")]
    pub congestion: Option<CongestionControl>,
    /// A directory in which each connection over QUIC is recorded (qlog) [default: none].
    #[arg(long, env = "QTUNNEL_QLOG", value_name = "DIR")]
    pub qlog: Option<PathBuf>,
    /// An OpenTelemetry collector that takes spans of requests over OTLP/HTTP: http://HOST:4318 [default: none].
    #[arg(long, env = "QTUNNEL_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<OtlpEndpoint>,
}

/// Which carriers an agent uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentCarrier {
    /// QUIC, and TCP while QUIC does not get through.
    Auto,
    /// QUIC only.
    Quic,
    /// TLS over TCP only.
    Tcp,
}

/// How an agent makes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentAuth {
    /// With its own credential, in the user's name.
    Impersonate,
    /// With the user's own token.
    Passthrough,
}

/// Where an agent's API server is. Without any of these: the cluster that the agent runs in.
#[derive(Debug, Args)]
pub struct UpstreamArgs {
    /// Reach the API server as this kubeconfig says.
    #[arg(long, env = "QTUNNEL_KUBECONFIG", value_name = "FILE", conflicts_with_all = ["upstream", "upstream_ca", "upstream_token_file"])]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig, if not its current one.
    #[arg(long, env = "QTUNNEL_CONTEXT", value_name = "NAME", requires = "kubeconfig")]
    pub context: Option<String>,
    /// Reach the API server at this address.
    #[arg(long, env = "QTUNNEL_UPSTREAM", value_name = "URL")]
    pub upstream: Option<Uri>,
    /// The certificate authority of the API server, if not one of the operating system's.
    #[arg(long, env = "QTUNNEL_UPSTREAM_CA", value_name = "FILE", requires = "upstream")]
    pub upstream_ca: Option<PathBuf>,
    /// The agent's token for the API server; read again when it rotates.
    #[arg(long, env = "QTUNNEL_UPSTREAM_TOKEN_FILE", value_name = "FILE", requires = "upstream")]
    pub upstream_token_file: Option<PathBuf>,
}
