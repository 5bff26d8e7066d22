//! The public side of the tunnel: where users come in and where agents are connected.
//!
//! `request::serve` is the life of one request from top to bottom. Clients come in at `front`, agents at `tunnel`;
//! the `registry` is where the two meet. What can be replaced has a trait and a place in [`StubBuilder`], which puts a stub
//! together.

pub mod activity;
pub mod admin;
pub mod audit;
pub mod authenticate;
pub mod authorize;
mod body;
mod builder;
mod cache;
mod caller;
mod cluster;
pub mod config;
mod dial;
mod dispatch;
mod drain;
pub mod election;
mod enrollment;
mod event_stream;
mod farewell;
pub mod front;
mod handle;
mod limits;
mod live_settings;
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
mod text_file;
mod tunnel;
mod webhook_file;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use body::{AnswerBody, BrokenAnswer};
pub use builder::StubBuilder;
pub use config::{AdminConfig, AuthorizationConfig, ConfigError, StoreConfig, StubConfig};
pub use dial::DialError;
pub use handle::StubHandle;
pub use open_requests::Ending;
pub use revocation::RevocationError;
pub use shared::KnownClusters;

use crate::carrier::QuicListener;
use crate::kube::ClusterAccessError;
use crate::pki::{StubKeys, StubKeysError, TlsError};
use crate::trace::Exporter;
use admin::Admin;
use audit::AuditWriter;
use authenticate::AuthenticationError;
use authorize::PolicyError;
use front::tcp::TcpFront;
use front::{Door, Front};
use shared::Shared;
use webhook_file::WebhookFileError;

/// A stub that has everything it needs and listens; it answers once it runs.
#[derive(Debug)]
pub struct Stub {
    shared: Arc<Shared>,
    front: TcpFront,
    fronts: Vec<Box<dyn Front>>,
    tunnel: QuicListener,
    admin: UnixListener,
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
    /// The settings file, which is followed.
    #[error(transparent)]
    Settings(#[from] ConfigError),
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
    /// Where connections are to be recorded.
    #[error("cannot make the directory {path}: {source}; `qlog` under [agents] names it")]
    Qlog {
        /// The directory.
        path: PathBuf,
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
    /// Puts a stub together of `config` and of what replaces parts of it.
    pub fn builder(config: StubConfig) -> StubBuilder {
        StubBuilder::new(config)
    }

    /// The stub of `config`, with nothing replaced; see [`StubBuilder::bind`].
    ///
    /// # Errors
    ///
    /// See [`StartError`].
    pub async fn bind(config: StubConfig) -> Result<Self, StartError> {
        Self::builder(config).bind().await
    }

    /// The address that is listened on, TCP and UDP.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.front.listener.local_addr()
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
    /// issuers, webhooks, authorities, revocation lists, its own certificate, and the settings if it follows their file.
    pub fn reload(&self) -> Arc<Notify> {
        self.reload.clone()
    }

    /// Serves until `shutdown`, then lets requests end within the drain delay and the shutdown timeout.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { shared, front, fronts, tunnel, admin, audit_writer, exporter, admin_listener, reload: now } = self;
        let door = Door::new(shared.clone());
        let fronts = join_all(fronts.into_iter().map(|front| serve_at(front, door.clone())));
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
            let serving =
                async { tokio::join!(Box::new(front).run(door), fronts, tunnel::run(shared.clone(), &tunnel)) };
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
            async {
                if let Some(election) = &shared.election {
                    election.campaign(shutdown.clone()).await;
                }
            },
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

async fn serve_at(front: Box<dyn Front>, door: Door) {
    let name = format!("{front:?}");
    front.run(door).await;
    tracing::error!(front = name, "a front has ended: no client comes in there any more");
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
