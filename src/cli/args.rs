//! Every command and flag, in one place.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};
use http::Uri;
use jiff::SignedDuration;

use super::manifest::{ImageName, ImpersonatedGroup, ImpersonatedUser, Namespace};
use crate::agent::StubAddress;
use crate::carrier::CongestionControl;
use crate::pki::{HostName, JoinToken};
use crate::wire::ClusterId;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// kubectl to clusters in private networks, through a QUIC tunnel that an agent inside opens to the outside.
#[derive(Debug, Parser)]
#[command(name = "qtunnel", version, styles = STYLES, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// How log lines look.
    #[arg(long, global = true, env = "QTUNNEL_LOG_FORMAT", default_value = "human", value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or a filter such as `info,qtunnel::access=off`
    /// [default: info; for `demo`: warn].
    #[arg(long, global = true, env = "QTUNNEL_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    Human,
    /// One JSON object for each line.
    Json,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A table for people.
    Table,
    /// JSON for scripts.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the public side of the tunnel, or set it up with `stub init`.
    #[command(args_conflicts_with_subcommands = true, after_help = STUB_EXAMPLES)]
    Stub(StubCommand),
    /// Make join tokens for agents.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Run the private side of the tunnel, in or near a cluster, or print it as Kubernetes objects with `agent manifest`.
    #[command(args_conflicts_with_subcommands = true, after_help = AGENT_EXAMPLES)]
    Agent(Box<AgentCommand>),
    /// Issue a user's certificate and print a kubeconfig with it.
    #[command(after_help = KUBECONFIG_EXAMPLES)]
    Kubeconfig(KubeconfigArgs),
    /// Ask what the stub's policy allows.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Show clusters, agents and their connections at a running stub.
    #[command(after_help = STATUS_EXAMPLES)]
    Status(StatusArgs),
    /// Run stub, agent and a sample Kubernetes API in this process, check them, and stay up.
    #[command(after_help = DEMO_EXAMPLES)]
    Demo(DemoArgs),
    /// Serve the sample Kubernetes API that the demo and the tests use.
    #[command(after_help = SAMPLE_API_EXAMPLES)]
    SampleApi(SampleApiArgs),
    /// Print a completion script for a shell.
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// What is logged where nobody says: what the demo prints should not drown in log lines.
    pub fn default_log(&self) -> &'static str {
        match self {
            Self::Demo(_) => "warn",
            _ => "info",
        }
    }
}

const STUB_EXAMPLES: &str = "\
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
    /// How congestion on the way to agents is controlled, instead of what the settings file says.
    #[arg(long, env = "QTUNNEL_CONGESTION", value_name = "NAME")]
    pub congestion: Option<CongestionControl>,
}

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

const AGENT_EXAMPLES: &str = "\
Examples:
  qtunnel agent --stub stub.example.com:8443 --token qtj1.... --state-dir /var/lib/qtunnel
  qtunnel agent --stub stub.example.com:8443 --state-dir ./agent --kubeconfig ~/.kube/config
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
    /// The stub.
    #[arg(long, env = "QTUNNEL_STUB", value_name = "HOST:PORT")]
    pub stub: StubAddress,
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
    /// The stub.
    #[arg(long, env = "QTUNNEL_STUB", value_name = "HOST:PORT")]
    pub stub: Option<StubAddress>,
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
    /// At a stop, how long requests may take to end [default: 30s].
    #[arg(long, env = "QTUNNEL_DRAIN_TIMEOUT", value_name = "DURATION")]
    pub drain_timeout: Option<SignedDuration>,
    /// How long the API server may take to begin an answer, unless it is a watch, a log or the like [default: 5m].
    #[arg(long, env = "QTUNNEL_RESPONSE_TIMEOUT", value_name = "DURATION")]
    pub response_timeout: Option<SignedDuration>,
    /// How long a connection and its streams live without a packet from the stub [default: 5m].
    #[arg(long, env = "QTUNNEL_IDLE_TIMEOUT", value_name = "DURATION")]
    pub idle_timeout: Option<SignedDuration>,
    /// How congestion on the way to the stub is controlled [default: cubic].
    #[arg(long, env = "QTUNNEL_CONGESTION", value_name = "NAME")]
    pub congestion: Option<CongestionControl>,
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

const KUBECONFIG_EXAMPLES: &str = "\
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

/// `qtunnel policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Say whether the stub would let a request pass, and which rule decides. Exits with 1 if it would not.
    #[command(after_help = "\
Examples:
  qtunnel policy check --config stub.toml --cluster prod-eu --user alice --verb create --resource pods/exec --namespace demo
  qtunnel policy check --config stub.toml --cluster prod-eu --user bob --group devs --verb list --resource deployments.apps
  qtunnel policy check --config stub.toml --cluster prod-eu --user bob --verb get --path /version --output json")]
    Check(PolicyCheckArgs),
}

/// `qtunnel policy check`.
#[derive(Debug, Args)]
pub struct PolicyCheckArgs {
    /// The stub's settings file.
    #[arg(long, env = "QTUNNEL_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    /// The cluster.
    #[arg(long, value_name = "ID")]
    pub cluster: ClusterId,
    /// The user.
    #[arg(long, value_name = "NAME")]
    pub user: String,
    /// A group the user is in; may be given several times. Every user is in system:authenticated.
    #[arg(long, value_name = "GROUP")]
    pub group: Vec<String>,
    /// Whom the user acts as, as with `kubectl --as`.
    #[arg(long = "as", value_name = "NAME")]
    pub act_as: Option<String>,
    /// A group the user acts as a member of; may be given several times.
    #[arg(long = "as-group", value_name = "GROUP", requires = "act_as")]
    pub act_as_group: Vec<String>,
    /// get, list, watch, create, update, patch, delete or deletecollection; for a path an HTTP method in lower case.
    #[arg(long, value_name = "VERB")]
    pub verb: String,
    /// What for.
    #[command(flatten)]
    pub object: CheckedObject,
    /// The namespace; without it every namespace, and what is in none.
    #[arg(long, short, value_name = "NAMESPACE", requires = "resource")]
    pub namespace: Option<String>,
    /// The object's name.
    #[arg(long, value_name = "NAME", requires = "resource")]
    pub name: Option<String>,
    /// How to print it.
    #[arg(long, short, default_value = "table", value_name = "FORMAT")]
    pub output: OutputFormat,
}

/// What a request is for: one of the two.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct CheckedObject {
    /// The resource in the plural, as kubectl writes it: pods, pods/exec, deployments.apps, deployments.apps/scale.
    #[arg(long, value_name = "RESOURCE[.GROUP][/SUBRESOURCE]")]
    pub resource: Option<CheckedResource>,
    /// A path that is no resource, such as /version.
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
}

/// A resource as kubectl writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedResource {
    /// In the plural.
    pub resource: String,
    /// Empty for the core group.
    pub api_group: String,
    /// Empty for the resource itself.
    pub subresource: String,
}

impl std::str::FromStr for CheckedResource {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (object, subresource) = text.split_once('/').unwrap_or((text, ""));
        let (resource, api_group) = object.split_once('.').unwrap_or((object, ""));
        let owned = str::to_owned;
        Ok(Self { resource: owned(resource), api_group: owned(api_group), subresource: owned(subresource) })
    }
}

const STATUS_EXAMPLES: &str = "\
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

const DEMO_EXAMPLES: &str = "\
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

const SAMPLE_API_EXAMPLES: &str = "\
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

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  qtunnel completions bash > /etc/bash_completion.d/qtunnel
  qtunnel completions zsh > \"${fpath[1]}/_qtunnel\"";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn a_resource_is_read_as_kubectl_writes_it() {
        for (text, resource, api_group, subresource) in [
            ("pods", "pods", "", ""),
            ("pods/exec", "pods", "", "exec"),
            ("deployments.apps", "deployments", "apps", ""),
            ("roles.rbac.authorization.k8s.io/x", "roles", "rbac.authorization.k8s.io", "x"),
        ] {
            let CheckedResource { resource: r, api_group: g, subresource: s } = text.parse().unwrap();
            assert_eq!((r.as_str(), g.as_str(), s.as_str()), (resource, api_group, subresource), "{text}");
        }
    }

    #[test]
    fn the_commands_and_flags_are_consistent() {
        Cli::command().debug_assert();
    }
}
