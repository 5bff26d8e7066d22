//! Where a running stub tells what it is doing, over plain HTTP: on a Unix socket in its state directory, which only the
//! owner may open (`qtunnel status` asks there), and on a TCP address where one is configured.
//!
//! - `/metrics`: for Prometheus, in the text format of OpenMetrics.
//! - `/healthz`: the process runs. `/readyz`: it takes new requests; 503 once it is about to stop, and with an election while
//!   another stub leads.
//! - `/api/v1/status`: [`StubStatus`] as JSON.
//!
//! Nobody is authenticated: whoever reaches the address may read all of it. It tells of clusters, agents and numbers, never
//! of users or requests.

mod client;
mod status;

use std::convert::Infallible;
use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use client::{StatusError, status};
pub use status::{AgentStatus, ClusterStatus, ElectionStatus, StubStatus};

use super::metrics::Counted;
use super::shared::Shared;
use status::status_of;

/// The path of the status.
const STATUS_PATH: &str = "/api/v1/status";

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

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if *request.method() != Method::GET && *request.method() != Method::HEAD {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET is possible here");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok"),
            "/readyz" if self.shared.drain.is_announced() => text(StatusCode::SERVICE_UNAVAILABLE, "shutting down"),
            "/readyz" if !self.shared.election.leadership().borrow().leads => {
                text(StatusCode::SERVICE_UNAVAILABLE, "standing by: this stub does not lead")
            }
            "/readyz" => text(StatusCode::OK, "ok"),
            "/metrics" => content(
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                self.shared.metrics.text(&status_of(&self.shared), self.counted()),
            ),
            STATUS_PATH => content("application/json", serde_json::to_vec(&status_of(&self.shared))),
            _ => text(StatusCode::NOT_FOUND, "there are /metrics, /healthz, /readyz and /api/v1/status"),
        }
    }

    fn counted(&self) -> Counted {
        let Shared { audit, policy_file, .. } = &*self.shared;
        Counted {
            audit_events_dropped: audit.dropped(),
            audit_failures: audit.failures(),
            policy: policy_file.as_ref().map(|file| (file.rule_count(), file.failures())),
        }
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

/// Binds the TCP address.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address).await?;
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "whoever reaches the admin address may read metrics and status; nobody is authenticated there");
    }
    Ok(listener)
}

/// Either kind of listener.
trait Listener {
    type Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn next(&self) -> impl Future<Output = io::Result<Self::Socket>> + Send;
}

impl Listener for UnixListener {
    type Socket = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }
}

impl Listener for TcpListener {
    type Socket = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        Ok(self.accept().await?.0)
    }
}

async fn accept(admin: &Arc<Admin>, stopped: &CancellationToken, listener: &impl Listener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Some(Ok(place)) = stopped.run_until_cancelled(places.clone().acquire_owned()).await {
        let Some(accepted) = stopped.run_until_cancelled(listener.next()).await else { break };
        let Ok(socket) = accepted else {
            // Mostly a lack of file descriptors: trying again at once would only burn a core.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let admin = admin.clone();
        tokio::spawn(async move {
            serve(admin, socket).await;
            drop(place);
        });
    }
}

async fn serve(admin: Arc<Admin>, socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let service = service_fn(move |request| {
        let response = admin.answer(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(socket), service);
    if let Err(error) = connection.await {
        tracing::debug!("a connection to an admin address ended: {error}");
    }
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn content(kind: &'static str, body: Result<impl Into<Bytes>, impl Display>) -> Response<Full<Bytes>> {
    match body {
        Ok(body) => {
            let mut response = Response::new(Full::new(body.into()));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            response
        }
        Err(error) => {
            tracing::warn!("cannot write an answer of the admin address: {error}");
            text(StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be written; the log says why")
        }
    }
}
