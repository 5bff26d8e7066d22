//! Where a running stub tells what it is doing, over plain HTTP: on a Unix socket in its state directory, which only the
//! owner may open (`qtunnel status` asks there), and on a TCP address where one is configured.
//!
//! - `/`: the dashboard, for people with a browser.
//! - `/metrics`: for Prometheus, in the text format of OpenMetrics.
//! - `/healthz`: the process runs. `/readyz`: it takes new requests; 503 once it is about to stop, and with an election while
//!   another stub leads.
//! - `/api/v1/status`: [`StubStatus`], clusters and agents, as JSON.
//! - `/api/v1/requests`: [`RequestList`], the requests that are open; at most `?limit=` of them.
//! - `/api/v1/incidents`: [`Incident`](super::activity::Incident)s, recent denials and errors.
//! - `/api/v1/series`: [`Series`](super::activity::Series), the last minutes.
//!
//! Each of `/api/v1/` may be asked about one cluster: `?cluster=`.
//!
//! Nobody is authenticated. Callers from other hosts get metrics and health only, unless the settings say otherwise, and
//! no answer holds a credential.

mod answer;
mod caller;
mod client;
mod dashboard;
mod requests;
mod status;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use client::{AdminClient, StatusError};
pub use requests::{RequestList, RequestStatus};
pub use status::{AgentStatus, ClusterStatus, ElectionStatus, Readiness, StubStatus};

use super::config::AdminConfig;
use super::shared::Shared;
use caller::Caller;

const STATUS_PATH: &str = "/api/v1/status";
const REQUESTS_PATH: &str = "/api/v1/requests";
const INCIDENTS_PATH: &str = "/api/v1/incidents";
const SERIES_PATH: &str = "/api/v1/series";

/// How long a request's head may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connections at once on each address.
const CONNECTIONS: usize = 64;

/// What answers.
#[derive(Debug)]
pub struct Admin {
    shared: Arc<Shared>,
}

impl Admin {
    /// Answers for the stub.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Answers on both addresses until `stopped`: also while the stub is shutting down, and says so.
    pub async fn run(self, socket: UnixListener, tcp: Option<TcpListener>, stopped: CancellationToken) {
        let admin = Arc::new(self);
        let on_tcp = async {
            if let Some(tcp) = &tcp {
                accept(&admin, &stopped, tcp).await;
            }
        };
        tokio::join!(accept(&admin, &stopped, &socket), on_tcp);
    }
}

/// Binds the socket at `path` with mode 0600, in place of one that a stub left behind.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Binds the TCP address of the settings, and says who may read there.
pub async fn listen(address: SocketAddr, settings: &AdminConfig) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address).await?;
    match (address.ip().is_loopback(), settings.remote_dashboard) {
        (true, _) => {}
        (false, false) => tracing::warn!(%address, "whoever reaches the admin address may read the metrics"),
        (false, true) => tracing::warn!(
            %address,
            "whoever reaches the admin address may see users and their requests; nobody is authenticated there"
        ),
    }
    Ok(listener)
}

/// Either kind of listener.
trait Listener {
    type Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn next(&self) -> impl Future<Output = io::Result<(Self::Socket, Caller)>> + Send;
}

impl Listener for UnixListener {
    type Socket = UnixStream;

    async fn next(&self) -> io::Result<(UnixStream, Caller)> {
        Ok((self.accept().await?.0, Caller::Owner))
    }
}

impl Listener for TcpListener {
    type Socket = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, Caller)> {
        let (socket, address) = self.accept().await?;
        Ok((socket, Caller::at(address)))
    }
}

async fn accept(admin: &Arc<Admin>, stopped: &CancellationToken, listener: &impl Listener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Some(Ok(place)) = stopped.run_until_cancelled(places.clone().acquire_owned()).await {
        let Some(accepted) = stopped.run_until_cancelled(listener.next()).await else { break };
        let Ok((socket, caller)) = accepted else {
            // Mostly a lack of file descriptors: trying again at once would only burn a core.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let admin = admin.clone();
        tokio::spawn(async move {
            serve(admin, socket, caller).await;
            drop(place);
        });
    }
}

async fn serve(admin: Arc<Admin>, socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, caller: Caller) {
    let service = service_fn(move |request: Request<Incoming>| {
        let admin = admin.clone();
        let (head, _body) = request.into_parts();
        async move { Ok::<_, Infallible>(admin.answer(caller, &head).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(socket), service);
    if let Err(error) = connection.await {
        tracing::debug!("a connection to an admin address ended: {error}");
    }
}
