//! Asking a running stub on this machine what it is doing.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::requests::MAX_LIMIT;
use super::{INCIDENTS_PATH, REQUESTS_PATH, RequestList, SERIES_PATH, STATUS_PATH, StubStatus};
use crate::stub::activity::{Incident, Series};

/// How long the stub may take to answer: far longer than it needs, for a machine that is short of processors or of disk just when
/// somebody has to know.
const PATIENCE: Duration = Duration::from_secs(15);

/// The longest status that is read, in bytes.
const MAX_STATUS: usize = 64 << 20;

/// Asks a running stub through its admin socket.
#[derive(Debug, Clone)]
pub struct AdminClient {
    socket: PathBuf,
}

impl AdminClient {
    /// Asks the stub behind the socket at `path`.
    pub fn new(path: &Path) -> Self {
        Self { socket: path.to_owned() }
    }

    /// Its clusters and agents.
    pub async fn status(&self) -> Result<StubStatus, StatusError> {
        self.ask(STATUS_PATH).await
    }

    /// Its open requests.
    pub async fn requests(&self) -> Result<RequestList, StatusError> {
        self.ask(&format!("{REQUESTS_PATH}?limit={MAX_LIMIT}")).await
    }

    /// Its recent denials and errors.
    pub async fn incidents(&self) -> Result<Vec<Incident>, StatusError> {
        self.ask(INCIDENTS_PATH).await
    }

    /// The last minutes of all clusters together.
    pub async fn series(&self) -> Result<Series, StatusError> {
        self.ask(SERIES_PATH).await
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, StatusError> {
        let body = timeout(PATIENCE, get(&self.socket, path)).await.map_err(|_elapsed| StatusError::TimedOut)??;
        Ok(serde_json::from_slice(&body)?)
    }
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
