//! The public side of the tunnel: where users come in and where agents are connected.
//!
//! [`request::serve`] is the life of one request from top to bottom. Clients come in at [`front`], agents at [`tunnel`];
//! the [`registry`] is where the two meet.

mod access_log;
pub mod admin;
mod authenticate;
mod authorize;
mod body;
pub mod config;
mod dispatch;
mod enrollment;
mod front;
mod registry;
mod request;
mod route;
mod shared;
mod tunnel;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use authorize::AuthorizationMode;
pub use config::{ConfigError, StubConfig};
pub use shared::KnownClusters;

use crate::carrier::{QuicListener, QuicSettings, ResetSecret};
use crate::kube::StaticTokens;
use crate::pki::StubKeys;
use crate::pki::StubKeysError;
use crate::pki::{TlsError, front_server_config, tunnel_server_config};
use authenticate::Authenticator;
use dispatch::Patience;
use registry::Registry;
use shared::Shared;

/// A stub that has everything it needs and listens; it answers once it runs.
#[derive(Debug)]
pub struct Stub {
    shared: Arc<Shared>,
    front: TcpListener,
    tunnel: QuicListener,
    admin: UnixListener,
    tls: Arc<rustls::ServerConfig>,
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
    /// The file of static tokens.
    #[error("the token file {path}: {why}")]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
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
    /// The admin socket.
    #[error("cannot make the admin socket {path}: {source}")]
    AdminSocket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// How often the stub looks whether its own certificate is due for renewal.
const RENEWAL_CHECK: Duration = Duration::from_secs(60 * 60);

impl Stub {
    /// Loads the keys, renews the server certificate where that is due, and binds every address. Call it within a tokio
    /// runtime.
    pub async fn bind(config: StubConfig) -> Result<Self, StartError> {
        let keys = Arc::new(StubKeys::load(&config.state_dir, SystemTime::now())?);
        keys.renew_server_certificate_if_due(SystemTime::now())?;
        let tokens = static_tokens(config.authentication.token_file.as_deref())?;
        let user_authority = std::slice::from_ref(keys.user_authority().certificate_der());
        let agent_authority = std::slice::from_ref(keys.agent_authority().certificate_der());
        let tls = Arc::new(front_server_config(keys.server(), user_authority)?);
        let tunnel_tls = Arc::new(tunnel_server_config(keys.server(), agent_authority)?);
        let quic = QuicSettings { reset_secret: Some(ResetSecret::new(keys.reset_secret())), ..config.agents.quic() };
        let (front, tunnel) = bind_both(config.listen, tunnel_tls, &quic).await?;
        let path = config.admin_socket();
        let admin = admin::bind(&path).map_err(|source| StartError::AdminSocket { path, source })?;
        let shared = Arc::new(Shared {
            authenticator: Authenticator::new(tokens),
            registry: Registry::default(),
            clusters: KnownClusters::new(&config.state_dir),
            patience: Patience {
                dispatch: config.limits.dispatch(),
                response: config.limits.response(),
                silence: config.limits.silence(),
            },
            tasks: TaskTracker::new(),
            keys,
            config,
        });
        Ok(Self { shared, front, tunnel, admin, tls })
    }

    /// The address that is listened on, TCP and UDP.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.front.local_addr()
    }

    /// Serves until `shutdown`, then lets requests end within the shutdown timeout.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { shared, front, tunnel, admin, tls } = self;
        let socket = shared.config.admin_socket();
        let acceptor = TlsAcceptor::from(tls);
        tokio::join!(
            front::run(shared.clone(), front, acceptor, shutdown.clone()),
            tunnel::run(shared.clone(), tunnel, shutdown.clone()),
            admin::run(shared.clone(), admin, shutdown.clone()),
            shutdown.run_until_cancelled(renew_server_certificate(shared.keys.clone())),
        );
        // A socket that is left behind is replaced at the next start.
        let _ = std::fs::remove_file(socket);
    }
}

fn static_tokens(file: Option<&Path>) -> Result<StaticTokens, StartError> {
    let Some(path) = file else { return Ok(StaticTokens::default()) };
    let failed = |why: String| StartError::TokenFile { path: path.to_owned(), why };
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    StaticTokens::parse(&text).map_err(|error| failed(error.to_string()))
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
