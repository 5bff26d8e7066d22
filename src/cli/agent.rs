//! `qtunnel agent`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::SignedDuration;
use serde::Deserialize;

use super::args::{AgentArgs, AgentAuth, AgentCarrier, UpstreamArgs};
use super::{CommandResult, shutdown_on_signal};
use crate::agent::{
    AddressError, AddressPattern, Agent, AgentBuilder, CarrierChoice, CarrierSettings, ForwardPolicy, ProxySettings,
    StubAddress,
};
use crate::carrier::{CongestionControl, QlogDirectory, QuicSettings};
use crate::kube::impersonation::{ImpersonationPolicy, Pattern};
use crate::kube::kubeconfig::{Credentials, Kubeconfig, Upstream};
use crate::pki::{JoinToken, private_file};
use crate::threads::Threads;
use crate::trace::OtlpEndpoint;
use crate::wire::AuthMode;

/// Runs an agent.
pub fn run(args: AgentArgs) -> CommandResult {
    let (settings, threads) = settings(args)?;
    threads.runtime().context("cannot start the threads that do the work")?.block_on(serve(settings))
}

async fn serve(settings: AgentBuilder) -> CommandResult {
    let agent = settings.build()?;
    let shutdown = shutdown_on_signal()?;
    agent.run(shutdown).await?;
    Ok(ExitCode::SUCCESS)
}

/// An agent's settings file: any of the flags, by their names.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct AgentFile {
    stub: StubList,
    token: Option<String>,
    state_dir: Option<PathBuf>,
    auth: Option<AgentAuth>,
    carrier: Option<AgentCarrier>,
    probe_interval: Option<SignedDuration>,
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    upstream: Option<String>,
    upstream_ca: Option<PathBuf>,
    upstream_token_file: Option<PathBuf>,
    deny_user: Vec<Pattern>,
    deny_group: Vec<Pattern>,
    allow_dial: Vec<AddressPattern>,
    drain_timeout: Option<SignedDuration>,
    response_timeout: Option<SignedDuration>,
    idle_timeout: Option<SignedDuration>,
    threads: Option<Threads>,
    congestion: Option<CongestionControl>,
    qlog: Option<PathBuf>,
    otlp_endpoint: Option<OtlpEndpoint>,
}

/// The key `stub`: one address, or a list of them.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum StubList {
    One(String),
    Several(Vec<String>),
}

impl Default for StubList {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

impl StubList {
    fn parse(self) -> Result<Vec<StubAddress>, AddressError> {
        let texts = match self {
            Self::One(text) => vec![text],
            Self::Several(texts) => texts,
        };
        texts.iter().map(|text| text.parse()).collect()
    }
}

/// Flags and environment over the settings file.
fn settings(args: AgentArgs) -> anyhow::Result<(AgentBuilder, Threads)> {
    let file = args.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
    let stubs = if args.stub.is_empty() { file.stub.parse()? } else { args.stub };
    if stubs.is_empty() {
        bail!("--stub HOST:PORT is missing: where is the stub?");
    }
    let token: Option<JoinToken> = file.token.map(|text| text.parse()).transpose()?;
    let upstream = match args.upstream.is_given() {
        true => args.upstream,
        false => UpstreamArgs {
            kubeconfig: file.kubeconfig,
            context: file.context,
            upstream: file.upstream.map(|text| text.parse()).transpose().context("the key `upstream`")?,
            upstream_ca: file.upstream_ca,
            upstream_token_file: file.upstream_token_file,
        },
    };
    let mut policy = ImpersonationPolicy::default();
    policy.users.deny.extend(args.deny_user.into_iter().chain(file.deny_user));
    policy.groups.deny.extend(args.deny_group.into_iter().chain(file.deny_group));
    let carrier = CarrierSettings::default();
    let carrier = CarrierSettings {
        choice: match args.carrier.or(file.carrier) {
            Some(AgentCarrier::Quic) => CarrierChoice::Quic,
            Some(AgentCarrier::Tcp) => CarrierChoice::Tcp,
            Some(AgentCarrier::Auto) => CarrierChoice::Auto,
            None => carrier.choice,
        },
        probe_interval: args.probe_interval.or(file.probe_interval).map_or(carrier.probe_interval, unsigned),
        proxy: ProxySettings::from_environment()?,
    };
    let quic = QuicSettings::default();
    let qlog = args.qlog.or(file.qlog);
    let quic = QuicSettings {
        idle_timeout: args.idle_timeout.or(file.idle_timeout).map_or(quic.idle_timeout, unsigned),
        congestion: args.congestion.or(file.congestion).unwrap_or(quic.congestion),
        qlog: qlog.as_deref().map(qlog_directory).transpose()?,
        ..quic
    };
    let state_dir = args.state_dir.or(file.state_dir);
    let state_dir = state_dir.context("--state-dir DIR is missing: where may the agent keep its key?")?;
    let mut agent = Agent::builder(stubs, state_dir, upstream_of(&upstream)?)
        .policy(policy)
        .forward(ForwardPolicy { allow: args.allow_dial.into_iter().chain(file.allow_dial).collect() })
        .carrier(carrier)
        .quic(quic);
    if let Some(token) = args.token.or(token) {
        agent = agent.token(token);
    }
    if let Some(auth) = args.auth.or(file.auth) {
        agent = agent.auth_mode(auth.into());
    }
    if let Some(timeout) = args.drain_timeout.or(file.drain_timeout) {
        agent = agent.drain_timeout(unsigned(timeout));
    }
    if let Some(timeout) = args.response_timeout.or(file.response_timeout) {
        agent = agent.response_timeout(unsigned(timeout));
    }
    if let Some(endpoint) = args.otlp_endpoint.or(file.otlp_endpoint) {
        agent = agent.otlp_endpoint(endpoint);
    }
    Ok((agent, args.threads.or(file.threads).unwrap_or(Threads::ONE)))
}

impl From<AgentAuth> for AuthMode {
    fn from(auth: AgentAuth) -> Self {
        match auth {
            AgentAuth::Impersonate => Self::Impersonate,
            AgentAuth::Passthrough => Self::PassThrough,
        }
    }
}

fn unsigned(duration: SignedDuration) -> Duration {
    duration.unsigned_abs()
}

fn qlog_directory(path: &Path) -> anyhow::Result<QlogDirectory> {
    QlogDirectory::new(path).with_context(|| format!("cannot make the directory {} for qlog", path.display()))
}

fn read_file(path: &Path) -> anyhow::Result<AgentFile> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read the settings file {}", path.display()))?;
    let mut file: AgentFile =
        toml::from_str(&text).with_context(|| format!("the settings file {} is not valid", path.display()))?;
    let directory = path.parent().unwrap_or(Path::new(""));
    let AgentFile { state_dir, kubeconfig, upstream_ca, upstream_token_file, qlog, .. } = &mut file;
    for path in [state_dir, kubeconfig, upstream_ca, upstream_token_file, qlog] {
        *path = path.take().map(|path| directory.join(path));
    }
    Ok(file)
}

impl UpstreamArgs {
    fn is_given(&self) -> bool {
        self.kubeconfig.is_some() || self.upstream.is_some()
    }
}

/// Where the API server is: the kubeconfig, the address, or the cluster that this process runs in.
fn upstream_of(args: &UpstreamArgs) -> anyhow::Result<Upstream> {
    if let Some(path) = &args.kubeconfig {
        return Ok(Kubeconfig::load(path)?.upstream(args.context.as_deref())?);
    }
    let Some(server) = &args.upstream else {
        if args.upstream_ca.is_some() || args.upstream_token_file.is_some() {
            bail!("`upstream-ca` and `upstream-token-file` need `upstream`");
        }
        return Ok(Upstream::in_cluster()?);
    };
    let certificate_authority = match &args.upstream_ca {
        Some(path) => {
            private_file::read_certificates(path).context("--upstream-ca")?;
            Some(std::fs::read(path).with_context(|| format!("cannot read --upstream-ca {}", path.display()))?)
        }
        None => None,
    };
    Ok(Upstream {
        server: server.clone(),
        certificate_authority,
        server_name: None,
        credentials: args.upstream_token_file.clone().map_or(Credentials::Anonymous, Credentials::TokenFile),
        insecure: false,
    })
}
