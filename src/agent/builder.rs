//! How an agent is set up: [`AgentBuilder`].

use std::path::PathBuf;
use std::time::Duration;

use super::dial::CarrierSettings;
use super::forward::ForwardPolicy;
use super::{Agent, AgentError, StubAddress};
use crate::carrier::QuicSettings;
use crate::kube::impersonation::ImpersonationPolicy;
use crate::kube::kubeconfig::Upstream;
use crate::pki::JoinToken;
use crate::trace::OtlpEndpoint;
use crate::wire::AuthMode;

/// Sets an agent up; made by [`Agent::builder`]. The defaults are those of `qtunnel agent`.
#[derive(Debug, Clone)]
pub struct AgentBuilder(AgentConfig);

/// What an agent needs to know.
#[derive(Debug, Clone)]
pub(super) struct AgentConfig {
    pub stubs: Vec<StubAddress>,
    pub token: Option<JoinToken>,
    pub state_dir: PathBuf,
    pub upstream: Upstream,
    pub auth_mode: AuthMode,
    pub policy: ImpersonationPolicy,
    pub forward: ForwardPolicy,
    pub carrier: CarrierSettings,
    pub quic: QuicSettings,
    pub drain_timeout: Duration,
    pub response_timeout: Duration,
    pub otlp_endpoint: Option<OtlpEndpoint>,
}

impl AgentBuilder {
    pub(super) fn new(stubs: Vec<StubAddress>, state_dir: PathBuf, upstream: Upstream) -> Self {
        Self(AgentConfig {
            stubs,
            token: None,
            state_dir,
            upstream,
            auth_mode: AuthMode::Impersonate,
            policy: ImpersonationPolicy::default(),
            forward: ForwardPolicy::default(),
            carrier: CarrierSettings::default(),
            quic: QuicSettings::default(),
            drain_timeout: Duration::from_secs(30),
            response_timeout: Duration::from_secs(300),
            otlp_endpoint: None,
        })
    }

    /// What the agent joins with. Not needed once it has joined. Default: none.
    pub fn token(mut self, token: JoinToken) -> Self {
        self.0.token = Some(token);
        self
    }

    /// How it makes requests. Default: [`AuthMode::Impersonate`].
    pub fn auth_mode(mut self, mode: AuthMode) -> Self {
        self.0.auth_mode = mode;
        self
    }

    /// Whom it acts as. Default: [`ImpersonationPolicy::default`].
    pub fn policy(mut self, policy: ImpersonationPolicy) -> Self {
        self.0.policy = policy;
        self
    }

    /// Where it connects to besides its API server. Default: nowhere.
    pub fn forward(mut self, policy: ForwardPolicy) -> Self {
        self.0.forward = policy;
        self
    }

    /// How it chooses its carrier. Default: [`CarrierSettings::default`], without a proxy.
    pub fn carrier(mut self, settings: CarrierSettings) -> Self {
        self.0.carrier = settings;
        self
    }

    /// The QUIC settings; connections over TCP are set up alike. Default: [`QuicSettings::default`].
    pub fn quic(mut self, settings: QuicSettings) -> Self {
        self.0.quic = settings;
        self
    }

    /// How long requests may take to end when the agent stops. Default 30 s.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.0.drain_timeout = timeout;
        self
    }

    /// How long the API server may take to begin an answer, unless the request is long-running. Default 5 min.
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.0.response_timeout = timeout;
        self
    }

    /// The OpenTelemetry collector that takes spans of requests. Default: none.
    pub fn otlp_endpoint(mut self, endpoint: OtlpEndpoint) -> Self {
        self.0.otlp_endpoint = Some(endpoint);
        self
    }

    /// Prepares everything; nothing is dialled yet.
    ///
    /// # Errors
    ///
    /// The state directory, or what `upstream` names, cannot be used.
    pub fn build(self) -> Result<Agent, AgentError> {
        Agent::new(self.0)
    }
}
