//! The private side of the tunnel: dials the stub and makes its requests at the cluster's API server.
//!
//! [`Agent::run`] stays connected; [`request::serve`] is the life of one request from top to bottom.

mod access;
mod address;
mod backoff;
mod join;
mod network;
mod network_changes;
mod request;
mod session;
mod shared;
mod upstream;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use address::{AddressError, StubAddress};
pub use join::JoinError;
pub use upstream::UpstreamConfigError;

use crate::carrier::{Connection, QuicDialer, QuicSettings};
use crate::kube::impersonation::ImpersonationPolicy;
use crate::kube::kubeconfig::Upstream as UpstreamConfig;
use crate::pki::{AgentCredentials, AgentState, AgentStateError, JoinToken, TlsError, tunnel_client_config};
use crate::wire::{AuthMode, ErrorCode, Hello, Welcome};
use backoff::Backoff;
use session::{Session, SessionEnd};
use shared::Shared;
use upstream::{Health, Upstream, watch_health};

/// What an agent needs to know.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Where the stub is.
    pub stub: StubAddress,
    /// What the agent joins with. Not needed once it has joined.
    pub token: Option<JoinToken>,
    /// Where the agent keeps its key and certificate.
    pub state_dir: PathBuf,
    /// The API server of its cluster.
    pub upstream: UpstreamConfig,
    /// How it makes requests.
    pub auth_mode: AuthMode,
    /// Whom it acts as.
    pub policy: ImpersonationPolicy,
    /// The QUIC settings.
    pub quic: QuicSettings,
    /// How long requests may take to end when the agent stops.
    pub drain_timeout: Duration,
    /// How long the API server may take to begin an answer, unless the request is long-running.
    pub response_timeout: Duration,
}

/// An agent that is ready to connect.
#[derive(Debug)]
pub struct Agent {
    config: AgentConfig,
    state: AgentState,
    shared: Arc<Shared>,
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
    /// The socket.
    #[error("cannot use QUIC: {0}")]
    Quic(#[from] std::io::Error),
}

/// How long a connection attempt may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a stub does not answer before the agent tries whether it answers on another connection, and between tries.
const ABANDONED_AFTER: Duration = Duration::from_secs(10);

/// How long an old connection has to answer once a new one does: several heartbeats.
const ANSWER_AGAIN: Duration = Duration::from_secs(3);

/// Between attempts: at most half a second at first, at most half a minute later.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// A session that lasted this long was a success: the next attempt comes soon.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// The least wait after the stub took another connection for this agent: two processes with one key would otherwise
/// throw each other out again and again.
const SUPERSEDED_WAIT: Duration = Duration::from_secs(60);

/// The least wait after the stub did not accept the agent's certificate; nothing changes that quickly.
const REJECTED_WAIT: Duration = Duration::from_secs(30);

impl Agent {
    /// Prepares everything; nothing is dialled yet.
    pub fn new(config: AgentConfig) -> Result<Self, AgentError> {
        let state = AgentState::open(&config.state_dir)?;
        let shared = Arc::new(Shared {
            upstream: Arc::new(Upstream::new(&config.upstream)?),
            auth_mode: config.auth_mode,
            policy: config.policy.clone(),
            access: access::AccessCache::default(),
            response_timeout: config.response_timeout,
        });
        Ok(Self { config, state, shared })
    }

    /// Joins if need be, connects, and stays connected until `shutdown`.
    ///
    /// # Errors
    ///
    /// Only what trying again cannot mend: no token, a token that is refused, files that cannot be used.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), AgentError> {
        let (health, health_seen) = watch::channel(Health { latency: Duration::ZERO, error: None });
        let checks = tokio::spawn(watch_health(self.shared.upstream.clone(), health));
        let result = shutdown.run_until_cancelled(self.joined()).await;
        let result = match result {
            None => Ok(()),
            Some(Err(error)) => Err(error),
            Some(Ok(credentials)) => self.stay_connected(credentials, health_seen, shutdown).await,
        };
        checks.abort();
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
            match join::join(&self.config.stub, token, &self.state).await {
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

    async fn stay_connected(
        &self,
        mut credentials: AgentCredentials,
        health: watch::Receiver<Health>,
        shutdown: CancellationToken,
    ) -> Result<(), AgentError> {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let instance = rand::random();
        loop {
            let began = Instant::now();
            let attempt = self.session(&credentials, instance, health.clone(), shutdown.clone());
            let least_wait = match attempt.await? {
                SessionEnd::Stopped => return Ok(()),
                end => {
                    tracing::warn!(stub = %self.config.stub, "disconnected: {end}");
                    least_wait(&end)
                }
            };
            if began.elapsed() > STABLE_AFTER {
                backoff.reset();
            }
            let wait = least_wait + backoff.next_wait(rand::random());
            tracing::info!("connecting again in {} ms", wait.as_millis());
            if shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return Ok(());
            }
            // A renewed certificate is used from the next connection on.
            if let Some(renewed) = self.state.load()? {
                credentials = renewed;
            }
            if is_expired(&credentials) {
                return Err(AgentError::Expired);
            }
        }
    }

    async fn session(
        &self,
        credentials: &AgentCredentials,
        instance: u64,
        health: watch::Receiver<Health>,
        shutdown: CancellationToken,
    ) -> Result<SessionEnd, AgentError> {
        let dialer = QuicDialer::new(Arc::new(tunnel_client_config(credentials)?), self.config.quic.clone())?;
        let dialled = match shutdown.run_until_cancelled(self.config.stub.dial(&dialer, DIAL_TIMEOUT)).await {
            None => return Ok(SessionEnd::Stopped),
            Some(Ok(dialled)) => dialled,
            // A name that is unknown now may be known later.
            Some(Err(error)) => return Ok(SessionEnd::Refused(error.to_string())),
        };
        let connection = match dialled {
            Ok(connection) => connection,
            Err(end) => return Ok(SessionEnd::Connection(end)),
        };
        let identity = credentials.identity();
        let hello = Hello {
            cluster: identity.cluster.clone(),
            instance,
            software: concat!("qtunnel/", env!("CARGO_PKG_VERSION")).to_owned(),
            auth_mode: self.config.auth_mode,
        };
        let session = Session {
            shared: &self.shared,
            state: &self.state,
            credentials,
            hello,
            health,
            shutdown,
            drain_timeout: self.config.drain_timeout,
        };
        let welcomed = |welcome: &Welcome| {
            tracing::info!(
                stub = %welcome.stub,
                address = %connection.remote_address(),
                cluster = %identity.cluster,
                agent = %identity.agent,
                "connected"
            );
        };
        tokio::select! {
            end = session.run(&connection, welcomed) => Ok(end),
            never = network::follow(&connection) => match never {},
            end = self.abandoned(&connection, &dialer) => Ok(end),
        }
    }

    /// Waits until the stub does not answer on `connection`, and does answer on a new one: then it knows nothing of
    /// `connection` any more, and no patience brings it back.
    async fn abandoned(&self, connection: &Connection, dialer: &QuicDialer) -> SessionEnd {
        let mut silence = ABANDONED_AFTER;
        loop {
            connection.silent_for(silence).await;
            let attempt = self.config.stub.dial(dialer, DIAL_TIMEOUT).await;
            // The network may have come back only now, for both connections.
            if matches!(attempt, Ok(Ok(_))) && timeout(ANSWER_AGAIN, connection.answers()).await.is_err() {
                return SessionEnd::Abandoned;
            }
            silence += ABANDONED_AFTER;
        }
    }
}

/// Whether the stub will not accept them any more.
fn is_expired(credentials: &AgentCredentials) -> bool {
    SystemTime::now() > credentials.not_after()
}

fn least_wait(end: &SessionEnd) -> Duration {
    match end.closed_by_stub() {
        Some(ErrorCode::Superseded) => SUPERSEDED_WAIT,
        Some(ErrorCode::IdentityRejected) => REJECTED_WAIT,
        _ => Duration::ZERO,
    }
}
