//! What the running stub tells `qtunnel status`: JSON over a Unix socket in its state directory, which only the owner
//! may open.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::registry::{AgentLink, Fitness};
use super::shared::Shared;
use crate::wire::AuthMode;

/// The path of the status.
const STATUS_PATH: &str = "/api/v1/status";

/// How long the stub may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest status that is read, in bytes.
const MAX_STATUS: usize = 64 << 20;

/// What a stub is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StubStatus {
    /// The stub's name.
    pub stub: String,
    /// The version of its software.
    pub version: String,
    /// Every known cluster, sorted by id.
    pub clusters: Vec<ClusterStatus>,
}

/// One cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// Its id.
    pub id: String,
    /// Its connected agents, sorted by name.
    pub agents: Vec<AgentStatus>,
}

/// One connected agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// Its name.
    pub name: String,
    /// Where it connects from.
    pub address: String,
    /// Its software.
    pub software: String,
    /// `impersonate` or `passthrough`.
    pub auth_mode: String,
    /// `healthy`, `upstream down`, `late` (with its reports), `suspect` (it does not answer) or `draining`.
    pub state: String,
    /// For how long it has not answered, in milliseconds, if it is suspect.
    pub suspect_for_ms: Option<f64>,
    /// What is wrong with its API server.
    pub upstream_error: String,
    /// Round trip from the agent to its API server, in milliseconds.
    pub upstream_latency_ms: f64,
    /// Since when it is connected.
    pub connected_since: Timestamp,
    /// Round trip between stub and agent, in milliseconds.
    pub rtt_ms: f64,
    /// Packets lost per packet sent, from the stub to the agent, since it connected: 0 to 1.
    pub loss: f64,
    /// Requests open now.
    pub open_streams: usize,
    /// Requests since it connected.
    pub requests: u64,
    /// Bytes of answers since it connected.
    pub bytes_to_clients: u64,
    /// Bytes on upgraded connections from clients since it connected.
    pub bytes_from_clients: u64,
}

/// Answers on the socket at `path` until `shutdown`.
pub async fn run(shared: Arc<Shared>, listener: UnixListener, shutdown: CancellationToken) {
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        let Ok((socket, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(shared.clone(), request));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(socket), service);
            if let Err(error) = connection.await {
                tracing::debug!("a connection to the admin socket ended: {error}");
            }
        });
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

/// Why the status of a stub could not be had.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// Nobody answers on the socket.
    #[error("no stub answers at {path}: {source}; is `qtunnel stub --config` running with the same settings file?")]
    NotRunning {
        /// The socket.
        path: std::path::PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The stub does not answer in time.
    #[error("the stub does not answer within {} s", PATIENCE.as_secs())]
    TimedOut,
    /// The exchange failed.
    #[error("the stub's answer broke off: {0}")]
    Broken(Box<dyn std::error::Error + Send + Sync>),
    /// The answer is not a status.
    #[error("the stub's answer is not a status: {0}")]
    Unreadable(#[from] serde_json::Error),
}

/// Asks the stub behind the socket at `path`.
pub async fn status(path: &Path) -> Result<StubStatus, StatusError> {
    let body = timeout(PATIENCE, get(path, STATUS_PATH)).await.map_err(|_elapsed| StatusError::TimedOut)??;
    Ok(serde_json::from_slice(&body)?)
}

async fn get(socket: &Path, path: &str) -> Result<Bytes, StatusError> {
    let broken = |error: hyper::Error| StatusError::Broken(Box::new(error));
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| StatusError::NotRunning { path: socket.to_owned(), source })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let connection = tokio::spawn(connection);
    let mut request = Request::new(Full::<Bytes>::default());
    *request.uri_mut() = path.parse().unwrap_or_default();
    request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("admin"));
    let response = sender.send_request(request).await.map_err(broken)?;
    let body = Limited::new(response.into_body(), MAX_STATUS).collect().await.map_err(StatusError::Broken)?;
    connection.abort();
    Ok(body.to_bytes())
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::default());
    if request.uri().path() != STATUS_PATH {
        *response.status_mut() = StatusCode::NOT_FOUND;
        return Ok(response);
    }
    match serde_json::to_vec(&status_of(&shared)) {
        Ok(body) => *response.body_mut() = Full::new(body.into()),
        Err(error) => {
            tracing::warn!("cannot write the status: {error}");
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
    }
    Ok(response)
}

fn status_of(shared: &Shared) -> StubStatus {
    let mut links = shared.registry.all();
    links.sort_by(|a, b| a.identity.agent.cmp(&b.identity.agent));
    let mut clusters = shared.clusters.all().unwrap_or_default();
    clusters.extend(links.iter().map(|link| link.identity.cluster.clone()));
    clusters.sort();
    clusters.dedup();
    let clusters = clusters.into_iter().map(|id| ClusterStatus {
        agents: links.iter().filter(|link| link.identity.cluster == id).map(|link| agent_status(link)).collect(),
        id: id.to_string(),
    });
    StubStatus {
        stub: shared.config.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        clusters: clusters.collect(),
    }
}

fn agent_status(link: &AgentLink) -> AgentStatus {
    let path = link.connection.path();
    let report = link.latest_report();
    let (bytes_to_clients, bytes_from_clients) = link.traffic().bytes();
    let state = match link.fitness(Instant::now()) {
        Some(Fitness::Healthy) => "healthy",
        Some(Fitness::UpstreamDown) => "upstream down",
        Some(Fitness::Late) => "late",
        Some(Fitness::Suspect) => "suspect",
        None => "draining",
    };
    AgentStatus {
        name: link.identity.agent.to_string(),
        address: link.connection.remote_address().to_string(),
        software: link.hello.software.clone(),
        auth_mode: match link.hello.auth_mode {
            AuthMode::Impersonate => "impersonate".to_owned(),
            AuthMode::PassThrough => "passthrough".to_owned(),
        },
        state: state.to_owned(),
        suspect_for_ms: link.suspect_since().map(|since| since.elapsed().as_secs_f64() * 1000.0),
        upstream_latency_ms: report.as_ref().map_or(0.0, |report| report.upstream_latency.as_secs_f64() * 1000.0),
        upstream_error: report.map(|report| report.upstream_error).unwrap_or_default(),
        connected_since: timestamp(link.connected_at),
        rtt_ms: path.round_trip.as_secs_f64() * 1000.0,
        loss: path.lost_packets as f64 / (path.sent_packets.max(1)) as f64,
        open_streams: link.traffic().open_streams(),
        requests: link.traffic().requests(),
        bytes_to_clients,
        bytes_from_clients,
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or(Timestamp::MAX)
}
