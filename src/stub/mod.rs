//! The public side of the tunnel: where users come in and where agents are connected.
//!
//! `request::serve` is the life of one request from top to bottom. Clients come in at `front`, agents at `tunnel`;
//! the `registry` is where the two meet. What can be replaced has a trait: [`authorize::Authorizer`], [`audit::AuditSink`],
//! [`select::AgentSelector`], [`sessions::SessionStore`].

pub mod activity;
pub mod admin;
pub mod audit;
pub mod authenticate;
pub mod authorize;
mod body;
mod cache;
mod cluster;
pub mod config;
mod dial;
mod dispatch;
mod drain;
pub mod election;
mod enrollment;
mod event_stream;
mod farewell;
mod front;
mod handle;
mod limits;
mod meter;
mod metrics;
mod open_requests;
mod outbound;
mod record;
mod registry;
mod reload;
mod request;
mod retry_budget;
mod revocation;
mod route;
pub mod select;
mod server_certificate;
pub mod sessions;
mod shared;
mod span;
mod tunnel;
mod webhook_file;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{AdminConfig, AuthorizationConfig, ConfigError, StoreConfig, StubConfig};
pub use dial::DialError;
pub use handle::StubHandle;
pub use revocation::RevocationError;
pub use shared::KnownClusters;

use crate::carrier::{QuicListener, QuicSettings, ResetSecret};
use crate::kube::ClusterAccessError;
use crate::pki::StubKeys;
use crate::pki::{
    PeerAuthorities, StoreError, StubKeysError, TlsError, front_server_config, private_file, shared_quic_server_config,
    tcp_tunnel_server_config, tunnel_server_config,
};
use crate::trace::{Exporter, Tracer};
use admin::Admin;
use audit::{AuditConfig, AuditLog, AuditSink, AuditWriter, FileSink, SinkConfig, StdoutSink, WebhookSink};
use authenticate::{Authentication, AuthenticationError};
use authorize::{AccessWebhook, AllowAll, Authorizer, DenyAll, PolicyError, PolicyFile};
use dispatch::Patience;
use drain::Drain;
use election::{Alone, Election, LeaseElection};
use front::tcp::PortTls;
use limits::Limits;
use open_requests::OpenRequests;
use record::Watchers;
use registry::Registry;
use reload::{Followed, Reload};
use retry_budget::RetryBudgets;
use revocation::RevokedAgents;
use server_certificate::ServerCertificate;
use sessions::{FileSessions, SessionStore};
use shared::Shared;
use webhook_file::WebhookFileError;

/// A stub that has everything it needs and listens; it answers once it runs.
#[derive(Debug)]
pub struct Stub {
    shared: Arc<Shared>,
    front: TcpListener,
    tunnel: QuicListener,
    admin: UnixListener,
    tls: PortTls,
    audit_writer: Option<AuditWriter>,
    exporter: Option<Exporter>,
    admin_listener: Option<TcpListener>,
    reload: Arc<Notify>,
}

/// Why a stub cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The keys.
    #[error(transparent)]
    Keys(#[from] StubKeysError),
    /// What TLS makes of the keys.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A file that users are known by.
    #[error(transparent)]
    Authentication(#[from] AuthenticationError),
    /// The election.
    #[error(transparent)]
    Election(#[from] ClusterAccessError),
    /// The policy file.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The file of a webhook.
    #[error(transparent)]
    Webhook(#[from] WebhookFileError),
    /// The list of revoked agents.
    #[error(transparent)]
    Revocation(#[from] RevocationError),
    /// The audit log.
    #[error("cannot write the audit log {path}: {source}; `path` under [audit] names it")]
    AuditLog {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A port is not to be had.
    #[error(
        "cannot listen on {protocol} {address}: {source}; choose another address with `listen` in the settings file"
    )]
    Listen {
        /// TCP or UDP.
        protocol: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The admin address.
    #[error("cannot listen on the admin address {address}: {source}; `listen` under [admin] names it")]
    AdminAddress {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The admin socket.
    #[error("cannot make the admin socket {path}: {source}")]
    AdminSocket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// How often the stub looks whether its own certificate is due for renewal, or another stub has renewed it.
const RENEWAL_CHECK: Duration = Duration::from_secs(60 * 60);

/// At a stop, how long it may take to write the last audit events.
const AUDIT_FLUSH: Duration = Duration::from_secs(5);

impl Stub {
    /// Loads the keys, renews the server certificate where that is due, and binds every address. Call it within a tokio
    /// runtime.
    pub async fn bind(config: StubConfig) -> Result<Self, StartError> {
        let keys = load_keys(&config).await?;
        let Authorization { authorizer, policy_file, files } = Authorization::new(&config.authorization)?;
        let mut followed_files = files;
        let (audit, audit_writer) = audit_log(&config.audit, &mut followed_files).await?;
        let (tracer, exporter) =
            config.tracing.otlp_endpoint.clone().map(|endpoint| Tracer::new("qtunnel-stub", endpoint)).unzip();
        let tracer = tracer.unwrap_or_default();
        let (users, agents) = (keys.user_authority().certificate_der(), keys.agent_authority().certificate_der());
        let Authentication { chain, verifier, files } = Authentication::load(&config.authentication, users, agents)?;
        followed_files.extend(files);
        followed_files.extend(server_certificate(&config.store, &keys)?);
        let agent_authority = std::slice::from_ref(agents);
        let tls = PortTls {
            clients: Arc::new(front_server_config(keys.server(), verifier.clone())?),
            agents: Arc::new(tcp_tunnel_server_config(keys.server(), agent_authority)?),
        };
        let peers = PeerAuthorities::new(agent_authority, verifier)?;
        let quic_tls = match config.http3.enabled {
            true => shared_quic_server_config(keys.server(), &peers)?,
            false => tunnel_server_config(keys.server(), agent_authority)?,
        };
        let quic = QuicSettings { reset_secret: Some(ResetSecret::new(keys.reset_secret())), ..config.agents.quic() };
        let (front, tunnel) = bind_both(config.listen, Arc::new(quic_tls), &quic).await?;
        let path = config.admin_socket();
        let admin = admin::bind(&path).map_err(|source| StartError::AdminSocket { path, source })?;
        let admin_listener = match config.admin.listen {
            Some(address) => Some(admin_listener(address, &config.admin).await?),
            None => None,
        };
        let watchers = Watchers { tracer, ..Watchers::default() };
        let instance = rand::random();
        let election = election_of(&config, instance).await?;
        let shared = Arc::new(Shared {
            started_at: SystemTime::now(),
            authenticator: chain,
            authorizer,
            policy_file,
            followed_files,
            audit,
            limits: Limits::new(&config.limits, watchers.metrics.clone()),
            watchers,
            open_requests: Arc::new(OpenRequests::default()),
            registry: Registry::new(config.agents.selector.selector()),
            retry_budgets: RetryBudgets::default(),
            sessions: session_store(&config, &keys),
            revoked: RevokedAgents::load(&config.state_dir)?,
            clusters: KnownClusters::new(keys.store().clone()),
            peers,
            http3_alternative: config.http3.alternative(&config.public_address),
            patience: Patience {
                dispatch: config.limits.dispatch(),
                response: config.limits.response(),
                silence: config.limits.silence(),
            },
            tasks: TaskTracker::new(),
            drain: Drain::default(),
            keys,
            instance,
            election,
            config,
        });
        Ok(Self { shared, front, tunnel, admin, tls, audit_writer, exporter, admin_listener, reload: Arc::default() })
    }

    /// The address that is listened on, TCP and UDP.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.front.local_addr()
    }

    /// The admin address, where the dashboard is; `None` where none is configured.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_listener.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// What this program can do with the stub while it runs.
    pub fn handle(&self) -> StubHandle {
        StubHandle::new(self.shared.clone())
    }

    /// Notified, it makes the running stub read at once what it otherwise reads again when it sees a change: policy, tokens,
    /// issuers, webhooks, authorities, revocation lists, and its own certificate.
    pub fn reload(&self) -> Arc<Notify> {
        self.reload.clone()
    }

    /// Serves until `shutdown`, then lets requests end within the drain delay and the shutdown timeout.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { shared, front, tunnel, admin, tls, audit_writer, exporter, admin_listener, reload: now } = self;
        let socket = shared.config.admin_socket();
        // What goes on until the last request has ended.
        let stopped = CancellationToken::new();
        let admin = Admin::new(shared.clone()).run(admin, admin_listener, stopped.clone());
        let revocations = shared.open_requests.clone().follow(shared.authenticator.clone(), shared.authorizer.clone());
        let traffic = async {
            let draining = async {
                shutdown.cancelled().await;
                drain::run(&shared).await;
            };
            // Both go on while the stub drains, and tell those who come that it does.
            let serving = async {
                tokio::join!(front::tcp::run(shared.clone(), front, tls), tunnel::run(shared.clone(), &tunnel))
            };
            tokio::select! {
                _ = serving => {}
                () = draining => {}
            }
            tunnel::hang_up(&shared, &tunnel).await;
            stopped.cancel();
        };
        tokio::join!(
            traffic,
            admin,
            shared.election.campaign(shutdown.clone()),
            stopped.run_until_cancelled(renew_server_certificate(shared.keys.clone())),
            stopped.run_until_cancelled(reload::follow(shared.followed_files.clone(), &now)),
            stopped.run_until_cancelled(revocations),
            stopped.run_until_cancelled(shared.watchers.activity.sample(&shared.registry)),
            stopped.run_until_cancelled(shared.revoked.follow(&shared.registry)),
            write_audit_log(audit_writer, &stopped),
            async {
                if let Some(exporter) = exporter {
                    exporter.run(stopped.clone()).await;
                }
            },
        );
        // A socket that is left behind is replaced at the next start.
        let _ = std::fs::remove_file(socket);
    }
}

/// The election of the settings. The name of a candidate has to be new with each process: one that was started again must not
/// take the Lease for its own.
async fn election_of(config: &StubConfig, instance: u64) -> Result<Arc<dyn Election>, StartError> {
    let Some(election) = &config.election else { return Ok(Arc::new(Alone::default())) };
    let identity = format!("{}_{instance:016x}", config.name);
    let access = config.kubernetes.access();
    Ok(Arc::new(LeaseElection::new(&access, &election.lease, identity, election.timing()).await?))
}

/// The keys of the store, with a server certificate that is not about to expire.
async fn load_keys(config: &StubConfig) -> Result<Arc<StubKeys>, StartError> {
    private_file::create_directory(&config.state_dir).map_err(StubKeysError::from)?;
    let config = config.clone();
    let loading = tokio::task::spawn_blocking(move || {
        let keys = StubKeys::load(config.open_store()?, SystemTime::now())?;
        keys.renew_server_certificate_if_due(SystemTime::now())?;
        Ok::<_, StubKeysError>(Arc::new(keys))
    });
    Ok(loading.await.map_err(|_interrupted| StoreError::Stopped).map_err(StubKeysError::from)??)
}

/// The server certificate, where it can be followed: a directory costs nothing to look into every second. In another store
/// the check for renewal finds what another stub has put there.
fn server_certificate(store: &StoreConfig, keys: &Arc<StubKeys>) -> Result<Option<Arc<dyn Reload>>, StubKeysError> {
    match store {
        StoreConfig::Directory { .. } => Ok(Some(Arc::new(Followed::load(ServerCertificate(keys.clone()))?))),
        StoreConfig::Kubernetes { .. } => Ok(None),
    }
}

/// An authorizer, and the files that it has to follow.
struct Authorization {
    authorizer: Arc<dyn Authorizer>,
    policy_file: Option<PolicyFile>,
    files: Vec<Arc<dyn Reload>>,
}

impl Authorization {
    fn new(config: &AuthorizationConfig) -> Result<Self, StartError> {
        let (authorizer, policy_file, webhook): (Arc<dyn Authorizer>, _, _) = match config {
            AuthorizationConfig::AllowAll {} => (Arc::new(AllowAll), None, None),
            AuthorizationConfig::DenyAll {} => (Arc::new(DenyAll), None, None),
            AuthorizationConfig::Policy { policy_file } => {
                let file = PolicyFile::load(policy_file)?;
                (Arc::new(file.clone()), Some(file), None)
            }
            AuthorizationConfig::Webhook(config) => {
                let file = config.policy_file.as_deref().map(PolicyFile::load).transpose()?;
                let webhook = AccessWebhook::load(config.settings(), file.clone())?;
                let webhook_file = webhook.file();
                (Arc::new(webhook), file, Some(webhook_file))
            }
        };
        let files = policy_file.iter().map(PolicyFile::file).chain(webhook).collect();
        Ok(Self { authorizer, policy_file, files })
    }
}

/// The audit log of the settings, and what writes it. Files that it has to follow are added to `files`.
async fn audit_log(
    config: &AuditConfig,
    files: &mut Vec<Arc<dyn Reload>>,
) -> Result<(AuditLog, Option<AuditWriter>), StartError> {
    let AuditConfig::Events { sink, on_failure, queue_length } = config else { return Ok((AuditLog::default(), None)) };
    let sink: Box<dyn AuditSink> = match sink {
        SinkConfig::Stdout => Box::new(StdoutSink::default()),
        SinkConfig::Webhook { kubeconfig, timeout } => {
            let sink = WebhookSink::load(kubeconfig, *timeout)?;
            files.push(sink.file());
            Box::new(sink)
        }
        SinkConfig::File { path, max_length, keep } => {
            let sink = FileSink::open(path, *max_length, *keep).await;
            Box::new(sink.map_err(|source| StartError::AuditLog { path: path.clone(), source })?)
        }
    };
    let (log, writer) = AuditLog::new(sink, *on_failure, *queue_length);
    Ok((log, Some(writer)))
}

/// The sessions of the state directory. Without them agents only reconnect a round trip slower.
fn session_store(config: &StubConfig, keys: &StubKeys) -> Arc<dyn SessionStore> {
    let authorities = [keys.agent_authority().fingerprint(), keys.server_authority().fingerprint()];
    let store = FileSessions::open(&config.state_dir.join("sessions"), authorities, SystemTime::now());
    Arc::new(store.unwrap_or_else(|error| {
        tracing::warn!("{error}; agents cannot resume their sessions after a restart of this stub");
        FileSessions::in_memory()
    }))
}

async fn admin_listener(address: SocketAddr, settings: &AdminConfig) -> Result<TcpListener, StartError> {
    let listener =
        admin::listen(address, settings).await.map_err(|source| StartError::AdminAddress { address, source })?;
    // Where port 0 was asked for, people have to learn which one it is.
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "admin address listens, with the dashboard at http://{address}/");
    }
    Ok(listener)
}

async fn write_audit_log(writer: Option<AuditWriter>, stopped: &CancellationToken) {
    let Some(writer) = writer else { return };
    let mut writing = pin!(writer.run(stopped.clone()));
    tokio::select! {
        () = &mut writing => return,
        () = stopped.cancelled() => {}
    }
    if timeout(AUDIT_FLUSH, writing).await.is_err() {
        tracing::error!("some audit events could not be written before the stop and are lost");
    }
}

/// TCP and UDP on the same port. With port 0 the system chooses one for TCP that may be taken for UDP: then it is asked
/// again.
async fn bind_both(
    address: SocketAddr,
    tls: Arc<rustls::ServerConfig>,
    quic: &QuicSettings,
) -> Result<(TcpListener, QuicListener), StartError> {
    const ATTEMPTS: usize = 16;
    let failed = |protocol, source| StartError::Listen { protocol, address, source };
    let mut attempt = 0;
    loop {
        attempt += 1;
        let front = bind_tcp(address).await.map_err(|source| failed("TCP", source))?;
        let chosen = front.local_addr().map_err(|source| failed("TCP", source))?;
        match QuicListener::bind(chosen, tls.clone(), quic) {
            Ok(tunnel) => return Ok((front, tunnel)),
            Err(_taken) if address.port() == 0 && attempt < ATTEMPTS => {}
            Err(source) => return Err(failed("UDP", source)),
        }
    }
}

/// `[::]` is every address of both families, except on a host without IPv6: there it is every IPv4 address.
async fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(_no_ipv6) if address.ip() == Ipv6Addr::UNSPECIFIED && UdpSocket::bind("[::1]:0").is_err() => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

async fn renew_server_certificate(keys: Arc<StubKeys>) {
    loop {
        tokio::time::sleep(RENEWAL_CHECK).await;
        let keys = keys.clone();
        let renewed = tokio::task::spawn_blocking(move || keys.renew_server_certificate_if_due(SystemTime::now()));
        match renewed.await {
            Ok(Ok(true)) => tracing::info!("renewed the stub's server certificate"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::error!("cannot renew the stub's server certificate: {error}"),
            Err(_interrupted) => return,
        }
    }
}
