//! How a stub is put together: [`StubBuilder`].

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::task::TaskTracker;

use super::audit::{
    AuditConfig, AuditLog, AuditSink, AuditWriter, DEFAULT_QUEUE_LENGTH, FileSink, OnFailure, SinkConfig, StdoutSink,
    WebhookSink,
};
use super::authenticate::{Authentication, Authenticator, ClientCertificates, OwnAuthorities};
use super::authorize::{AccessWebhook, AllowAll, Authorizer, DenyAll, PolicyFile};
use super::config::{AdminConfig, AuthorizationConfig, StoreConfig, StubConfig};
use super::drain::Drain;
use super::election::{Election, LeaseElection};
use super::enrollment::Enrollment;
use super::front::Front;
use super::front::tcp::{PortTls, TcpFront};
use super::limits::Limits;
use super::live_settings::{LiveSettings, SettingsFile};
use super::open_requests::OpenRequests;
use super::record::Watchers;
use super::registry::Registry;
use super::reload::{Followed, Reload};
use super::retry_budget::RetryBudgets;
use super::revocation::{RevocationError, RevokedAgents};
use super::select::AgentSelector;
use super::server_certificate::ServerCertificate;
use super::sessions::{FileSessions, SessionStore};
use super::shared::{KnownClusters, Shared};
use super::{StartError, Stub, admin};
use crate::carrier::{QlogDirectory, QuicListener, QuicSettings, ResetSecret};
use crate::pki::{
    PeerAuthorities, PeerRole, Store, StoreError, StubKeys, StubKeysError, front_server_config, private_file,
    shared_quic_server_config, tcp_tunnel_server_config_verified_by, tunnel_server_config_verified_by,
};
use crate::trace::Tracer;

/// Puts a stub together; made by [`Stub::builder`].
///
/// Every part is what the settings say unless it is replaced here. What is replaced takes precedence: the settings of the part
/// that it replaces are not looked at, and the files that they name are not opened.
#[derive(Debug)]
pub struct StubBuilder {
    config: StubConfig,
    settings_file: Option<PathBuf>,
    parts: Replacements,
}

/// The parts that are not those of the settings.
#[derive(Debug, Default)]
struct Replacements {
    authenticator: Option<Arc<dyn Authenticator>>,
    authorizer: Option<Arc<dyn Authorizer>>,
    audit_sink: Option<(Box<dyn AuditSink>, OnFailure)>,
    selector: Option<Arc<dyn AgentSelector>>,
    session_store: Option<Arc<dyn SessionStore>>,
    store: Option<Arc<dyn Store>>,
    election: Option<Arc<dyn Election>>,
    fronts: Vec<Box<dyn Front>>,
}

impl StubBuilder {
    pub(super) fn new(config: StubConfig) -> Self {
        Self { config, settings_file: None, parts: Replacements::default() }
    }

    /// Follows the settings file at `path`: what it changes of `[limits]` (but for `client_connections` and `quic_handshakes`), of
    /// `peers`, `agents.certificate_ttl` and `agents.report_interval` is in force within three seconds, or at once after
    /// [`Stub::reload`]. The log names what else it changes; that waits for the next start. Default: the settings stay as they
    /// are.
    pub fn settings_file(mut self, path: &Path) -> Self {
        self.settings_file = Some(path.to_owned());
        self
    }

    /// Vouches for users, in the place of every method under `[authentication]` and of `anonymous`. The rest of that section
    /// stays in force: which client certificates TLS accepts, and `revocation_file`.
    pub fn authenticator(mut self, authenticator: impl Authenticator + 'static) -> Self {
        self.parts.authenticator = Some(Arc::new(authenticator));
        self
    }

    /// Decides about requests, in the place of `[authorization]`.
    pub fn authorizer(mut self, authorizer: impl Authorizer + 'static) -> Self {
        self.parts.authorizer = Some(Arc::new(authorizer));
        self
    }

    /// Takes audit events, in the place of `[audit]`: also where the settings want none. The queue has its default length,
    /// 16,384 events.
    pub fn audit_sink(mut self, sink: impl AuditSink + 'static, on_failure: OnFailure) -> Self {
        self.parts.audit_sink = Some((Box::new(sink), on_failure));
        self
    }

    /// Chooses among agents, in the place of `agents.selector`.
    pub fn selector(mut self, selector: impl AgentSelector + 'static) -> Self {
        self.parts.selector = Some(Arc::new(selector));
        self
    }

    /// Keeps the TLS sessions of agents, in the place of the files in `state_dir`.
    pub fn session_store(mut self, sessions: impl SessionStore + 'static) -> Self {
        self.parts.session_store = Some(Arc::new(sessions));
        self
    }

    /// Keeps keys, join tokens and clusters, in the place of `[store]`. It has to hold keys already, made by
    /// [`StubKeys::create`]. A server certificate that somebody else renews there is taken within the hour.
    ///
    /// `qtunnel token create` and its like open the store of the settings; this one is for the program to fill.
    pub fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.parts.store = Some(store);
        self
    }

    /// Says whether this stub leads, in the place of `[election]`.
    pub fn election(mut self, election: impl Election + 'static) -> Self {
        self.parts.election = Some(Arc::new(election));
        self
    }

    /// Lets clients in at another place as well, besides the stub's own ports. It may be called for several.
    pub fn front(mut self, front: impl Front) -> Self {
        self.parts.fronts.push(Box::new(front));
        self
    }

    /// Loads the keys, renews the server certificate where that is due, and binds every address. Call it within a tokio
    /// runtime.
    ///
    /// # Errors
    ///
    /// A file of the settings cannot be used, or an address is not to be had: see [`StartError`].
    pub async fn bind(self) -> Result<Stub, StartError> {
        let Self { config, settings_file, parts } = self;
        let keys_are_in_directory = parts.store.is_none() && matches!(config.store, StoreConfig::Directory { .. });
        let keys = load_keys(&config, parts.store).await?;
        let revoked = revoked_agents(&config, &keys).await?;
        // A directory costs nothing to look into every second.
        let own = match keys_are_in_directory {
            true => OwnAuthorities::followed(keys.clone()),
            false => OwnAuthorities::fixed(keys.clone())?,
        };
        let Authentication { authenticator, certificates, mut files } =
            Authentication::load(&config.authentication, parts.authenticator, own)?;
        let authorization = match parts.authorizer {
            Some(authorizer) => Authorization { authorizer, policy_file: None, files: Vec::new() },
            None => Authorization::new(&config.authorization)?,
        };
        files.extend(authorization.files);
        let (audit, audit_writer) = match parts.audit_sink {
            Some((sink, on_failure)) => {
                let (log, writer) = AuditLog::new(sink, on_failure, DEFAULT_QUEUE_LENGTH);
                (log, Some(writer))
            }
            None => audit_log(&config.audit, &mut files).await?,
        };
        // In another store the check for renewal finds what another stub has put there.
        if keys_are_in_directory {
            files.push(Arc::new(Followed::load(ServerCertificate(keys.clone()))?));
        }
        let (tracer, exporter) =
            config.tracing.otlp_endpoint.clone().map(|endpoint| Tracer::new("qtunnel-stub", endpoint)).unzip();
        let watchers = Watchers { tracer: tracer.unwrap_or_default(), ..Watchers::default() };
        let instance = rand::random();
        let election = match parts.election {
            Some(election) => Some(election),
            None => lease_election(&config, instance).await?,
        };
        let limits = Arc::new(Limits::new(&config.limits, watchers.metrics.clone()));
        let live_settings = Arc::new(ArcSwap::from_pointee(LiveSettings::of(&config)));
        if let Some(path) = settings_file {
            let file = SettingsFile::new(&path, live_settings.clone(), limits.clone());
            files.push(Arc::new(Followed::load(file)?));
        }
        let StubTls { port, quic, peers } = StubTls::new(&keys, &certificates, config.http3.enabled)?;
        let Listeners { front, tunnel, admin, admin_listener } = Listeners::bind(&config, quic, &keys).await?;
        let shared = Arc::new(Shared {
            started_at: SystemTime::now(),
            authenticator,
            authorizer: authorization.authorizer,
            policy_file: authorization.policy_file,
            followed_files: files,
            audit,
            limits,
            watchers,
            open_requests: Arc::new(OpenRequests::default()),
            registry: Registry::new(parts.selector.unwrap_or_else(|| config.agents.selector.selector())),
            retry_budgets: RetryBudgets::default(),
            sessions: parts.session_store.unwrap_or_else(|| file_sessions(&config, &keys)),
            revoked,
            clusters: KnownClusters::new(keys.store().clone()),
            peers,
            http3_alternative: config.http3.alternative(&config.public_address),
            tasks: TaskTracker::new(),
            drain: Drain::default(),
            enrollment: Enrollment::new(keys.clone(), live_settings.clone()),
            live_settings,
            keys,
            instance,
            election,
            config,
        });
        let (front, fronts, reload) = (TcpFront { listener: front, tls: port }, parts.fronts, Arc::default());
        Ok(Stub { shared, front, fronts, tunnel, admin, audit_writer, exporter, admin_listener, reload })
    }
}

/// The TLS of both ports.
struct StubTls {
    port: PortTls,
    quic: rustls::ServerConfig,
    peers: PeerAuthorities,
}

impl StubTls {
    fn new(keys: &StubKeys, certificates: &ClientCertificates, has_http3: bool) -> Result<Self, StartError> {
        let (users, agents) = (certificates.verifier(PeerRole::User), certificates.verifier(PeerRole::Agent));
        let port = PortTls {
            clients: Arc::new(front_server_config(keys.server(), users.clone())?),
            agents: Arc::new(tcp_tunnel_server_config_verified_by(keys.server(), agents.clone())?),
        };
        let peers = PeerAuthorities::new(agents.clone(), users);
        let quic = match has_http3 {
            true => shared_quic_server_config(keys.server(), &peers)?,
            false => tunnel_server_config_verified_by(keys.server(), agents)?,
        };
        Ok(Self { port, quic, peers })
    }
}

/// Everything that a stub listens on.
struct Listeners {
    front: TcpListener,
    tunnel: QuicListener,
    admin: UnixListener,
    admin_listener: Option<TcpListener>,
}

impl Listeners {
    async fn bind(config: &StubConfig, tls: rustls::ServerConfig, keys: &StubKeys) -> Result<Self, StartError> {
        let qlog = config.agents.qlog.as_deref().map(qlog_directory).transpose()?;
        let reset_secret = Some(ResetSecret::new(keys.reset_secret()));
        let quic = QuicSettings { reset_secret, qlog, ..config.agents.quic() };
        let (front, tunnel) = bind_both(config.listen, Arc::new(tls), &quic).await?;
        let path = config.admin_socket();
        let admin = admin::bind(&path).map_err(|source| StartError::AdminSocket { path, source })?;
        let admin_listener = match config.admin.listen {
            Some(address) => Some(admin_listener(address, &config.admin).await?),
            None => None,
        };
        Ok(Self { front, tunnel, admin, admin_listener })
    }
}

/// The election of the settings. The name of a candidate has to be new with each process: one that was started again must not
/// take the Lease for its own.
async fn lease_election(config: &StubConfig, instance: u64) -> Result<Option<Arc<dyn Election>>, StartError> {
    let Some(election) = &config.election else { return Ok(None) };
    let identity = format!("{}_{instance:016x}", config.name);
    let access = config.kubernetes.access();
    Ok(Some(Arc::new(LeaseElection::new(&access, &election.lease, identity, election.timing()).await?)))
}

/// The keys in `store`, or in that of the settings, with a server certificate that is not about to expire.
async fn load_keys(config: &StubConfig, store: Option<Arc<dyn Store>>) -> Result<Arc<StubKeys>, StartError> {
    private_file::create_directory(&config.state_dir).map_err(StubKeysError::from)?;
    let config = config.clone();
    let loading = tokio::task::spawn_blocking(move || {
        let store = store.map_or_else(|| config.open_store(), Ok)?;
        let keys = StubKeys::load(store, SystemTime::now())?;
        keys.renew_server_certificate_if_due(SystemTime::now())?;
        Ok::<_, StubKeysError>(Arc::new(keys))
    });
    Ok(loading.await.map_err(|_interrupted| StoreError::Stopped).map_err(StubKeysError::from)??)
}

/// Who is revoked, as the store has it.
async fn revoked_agents(config: &StubConfig, keys: &StubKeys) -> Result<RevokedAgents, StartError> {
    let (store, state_dir) = (keys.store().clone(), config.state_dir.clone());
    let loading = tokio::task::spawn_blocking(move || RevokedAgents::load(store, &state_dir));
    Ok(loading.await.map_err(|_interrupted| RevocationError::from(StoreError::Stopped))??)
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
fn file_sessions(config: &StubConfig, keys: &StubKeys) -> Arc<dyn SessionStore> {
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

fn qlog_directory(path: &Path) -> Result<QlogDirectory, StartError> {
    QlogDirectory::new(path).map_err(|source| StartError::Qlog { path: path.into(), source })
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
