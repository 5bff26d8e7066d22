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
    AddressError, AddressPattern, Agent, AgentConfig, CarrierChoice, CarrierSettings, ForwardPolicy, ProxySettings,
    StubAddress,
};
use crate::carrier::{CongestionControl, QuicSettings};
use crate::kube::impersonation::{ImpersonationPolicy, Pattern};
use crate::kube::kubeconfig::{Credentials, Kubeconfig, Upstream};
use crate::pki::{JoinToken, private_file};
use crate::wire::AuthMode;

/// Runs an agent.
pub async fn run(args: AgentArgs) -> CommandResult {
    let config = settings(args)?;
    let shutdown = shutdown_on_signal()?;
    Agent::new(config)?.run(shutdown).await?;
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
    congestion: Option<CongestionControl>,
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
fn settings(args: AgentArgs) -> anyhow::Result<AgentConfig> {
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
    let duration = |flag: Option<SignedDuration>, key: Option<SignedDuration>, default: Duration| {
        flag.or(key).map_or(default, |duration| duration.unsigned_abs())
    };
    let quic = QuicSettings::default();
    let carrier = CarrierSettings {
        choice: match args.carrier.or(file.carrier) {
            Some(AgentCarrier::Quic) => CarrierChoice::Quic,
            Some(AgentCarrier::Tcp) => CarrierChoice::Tcp,
            Some(AgentCarrier::Auto) | None => CarrierChoice::Auto,
        },
        probe_interval: duration(args.probe_interval, file.probe_interval, CarrierSettings::default().probe_interval),
        proxy: ProxySettings::from_environment()?,
    };
    Ok(AgentConfig {
        stubs,
        carrier,
        token: args.token.or(token),
        state_dir: args
            .state_dir
            .or(file.state_dir)
            .context("--state-dir DIR is missing: where may the agent keep its key?")?,
        upstream: upstream_of(&upstream)?,
        auth_mode: match args.auth.or(file.auth) {
            Some(AgentAuth::Passthrough) => AuthMode::PassThrough,
            Some(AgentAuth::Impersonate) | None => AuthMode::Impersonate,
        },
        policy,
        forward: ForwardPolicy { allow: args.allow_dial.into_iter().chain(file.allow_dial).collect() },
        drain_timeout: duration(args.drain_timeout, file.drain_timeout, Duration::from_secs(30)),
        response_timeout: duration(args.response_timeout, file.response_timeout, Duration::from_secs(300)),
        quic: QuicSettings {
            idle_timeout: duration(args.idle_timeout, file.idle_timeout, quic.idle_timeout),
            congestion: args.congestion.or(file.congestion).unwrap_or_default(),
            ..quic
        },
    })
}

fn read_file(path: &Path) -> anyhow::Result<AgentFile> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read the settings file {}", path.display()))?;
    let mut file: AgentFile =
        toml::from_str(&text).with_context(|| format!("the settings file {} is not valid", path.display()))?;
    let directory = path.parent().unwrap_or(Path::new(""));
    for path in [&mut file.state_dir, &mut file.kubeconfig, &mut file.upstream_ca, &mut file.upstream_token_file] {
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
