//! The private side of the tunnel: dials the stubs and makes their requests at the cluster's API server.
//!
//! [`Agent::run`] stays connected to all of them; `request::serve` is the life of one request from top to bottom.

mod access;
mod address;
mod backoff;
mod builder;
mod dial;
mod forward;
mod join;
mod known_stubs;
mod link;
mod network;
mod network_changes;
mod presence;
mod proxy;
mod request;
mod session;
mod shared;
mod stubs;
mod target;
mod upstream;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use address::{AddressError, StubAddress};
pub use builder::AgentBuilder;
pub use dial::{CarrierChoice, CarrierSettings, DialError};
pub use forward::{AddressPattern, ForwardPolicy, InvalidAddressPattern};
pub use join::JoinError;
pub use proxy::{Proxy, ProxyError, ProxySettings};
pub use upstream::UpstreamConfigError;

use crate::kube::kubeconfig::Upstream as UpstreamConfig;
use crate::pki::{AgentCredentials, AgentState, AgentStateError, JoinToken, TlsError};
use crate::trace::{Exporter, Tracer};
use crate::wire::WireError;
use backoff::Backoff;
use builder::AgentConfig;
use link::LinkContext;
use shared::Shared;
use stubs::Stubs;
use upstream::{Health, Upstream, watch_health};

/// An agent that is ready to connect.
#[derive(Debug)]
pub struct Agent {
    config: AgentConfig,
    state: Arc<AgentState>,
    shared: Arc<Shared>,
    exporter: Option<Exporter>,
}

/// Why an agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its state directory.
    #[error(transparent)]
    State(#[from] AgentStateError),
    /// Its API server.
    #[error(transparent)]
    Upstream(#[from] UpstreamConfigError),
    /// Its join token was refused.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// It has neither joined nor a token.
    #[error(
        "this agent has not joined yet: give it a join token with --token; `qtunnel token create` at the stub makes one"
    )]
    NoToken,
    /// Its certificate has expired, because it was not connected for too long, and it has no token to join again with.
    #[error(
        "this agent's certificate has expired, so it has to join again: give it a join token with --token; `qtunnel token create` at the stub makes one"
    )]
    Expired,
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// What it says of itself.
    #[error("cannot introduce itself to a stub: {0}")]
    Hello(#[from] WireError),
    /// The socket.
    #[error("cannot use QUIC: {0}")]
    Quic(#[from] std::io::Error),
}

/// Between attempts: at most half a second at first, at most half a minute later.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

impl Agent {
    /// Sets up an agent that is connected to `stubs` (they may name others), keeps its key and certificate in `state_dir`, and
    /// makes requests at the API server `upstream`.
    pub fn builder(stubs: Vec<StubAddress>, state_dir: impl Into<PathBuf>, upstream: UpstreamConfig) -> AgentBuilder {
        AgentBuilder::new(stubs, state_dir.into(), upstream)
    }

    fn new(config: AgentConfig) -> Result<Self, AgentError> {
        let state = Arc::new(AgentState::open(&config.state_dir)?);
        let (tracer, exporter) =
            config.otlp_endpoint.clone().map(|endpoint| Tracer::new("qtunnel-agent", endpoint)).unzip();
        let shared = Arc::new(Shared {
            upstream: Arc::new(Upstream::new(&config.upstream)?),
            auth_mode: config.auth_mode,
            policy: config.policy.clone(),
            forward: config.forward.clone(),
            access: access::AccessCache::default(),
            response_timeout: config.response_timeout,
            tracer: tracer.unwrap_or_default(),
        });
        Ok(Self { config, state, shared, exporter })
    }

    /// Joins if need be, connects, and stays connected until `shutdown`.
    ///
    /// # Errors
    ///
    /// Only what trying again cannot mend: no token, a token that is refused, files that cannot be used.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), AgentError> {
        let stopped = CancellationToken::new();
        let exporting = self.exporter.take().map(|exporter| tokio::spawn(exporter.run(stopped.clone())));
        let (health, health_seen) = watch::channel(Health { latency: Duration::ZERO, error: None, uid: None });
        let checks = tokio::spawn(watch_health(self.shared.upstream.clone(), health));
        let result = shutdown.run_until_cancelled(self.joined()).await;
        let result = match result {
            None => Ok(()),
            Some(Err(error)) => Err(error),
            Some(Ok(credentials)) => {
                Stubs::new(LinkContext::new(&self, credentials, health_seen, shutdown)).stay_connected().await
            }
        };
        checks.abort();
        stopped.cancel();
        if let Some(exporting) = exporting {
            // It bounds its own patience; a panic of it has been printed.
            let _ = exporting.await;
        }
        result
    }

    /// The agent's credentials; joins if there are none that are still valid.
    async fn joined(&self) -> Result<AgentCredentials, AgentError> {
        let stored = self.state.load()?;
        let without_token = if stored.is_some() { AgentError::Expired } else { AgentError::NoToken };
        if let Some(credentials) = stored.filter(|credentials| !is_expired(credentials)) {
            return Ok(credentials);
        }
        let token = self.config.token.as_ref().ok_or(without_token)?;
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            match self.join_at_any(token).await {
                Ok(credentials) => {
                    let identity = credentials.identity();
                    tracing::info!(cluster = %identity.cluster, agent = %identity.agent, "joined");
                    return Ok(credentials);
                }
                Err(error) if error.is_temporary() => {
                    let wait = backoff.next_wait(rand::random());
                    tracing::warn!("{error}; trying again in {} ms", wait.as_millis());
                    tokio::time::sleep(wait).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Any stub will do. One that has not made the token is passed over: it is in vain only where none of them has.
    async fn join_at_any(&self, token: &JoinToken) -> Result<AgentCredentials, JoinError> {
        let mut failure = JoinError::NoStub;
        for stub in &self.config.stubs {
            match join::join(stub, &self.config.carrier, token, &self.state).await {
                Err(error) if error.is_temporary() || matches!(error, JoinError::OtherStub { .. }) => {
                    tracing::debug!(%stub, "{error}");
                    if error.is_temporary() || !failure.is_temporary() {
                        failure = error;
                    }
                }
                result => return result,
            }
        }
        Err(failure)
    }
}

/// Whether the stub will not accept them any more.
fn is_expired(credentials: &AgentCredentials) -> bool {
    SystemTime::now() > credentials.not_after()
}
