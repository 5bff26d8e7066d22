//! The API server: how it is reached, and with whose credential.
//!
//! Plain requests travel on HTTP/1.1 connections that are kept for the next, long-running ones share HTTP/2 connections,
//! and each upgrade has a connection of its own. So none of the three can starve another, and no limit of streams per
//! connection is a limit of watches.

mod body;
mod connector;
mod credential;
mod health;
mod identity;
mod pool;

use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderValue;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use tokio::time::timeout;

pub use body::{AnswerBody, RequestBody};
pub use connector::UpstreamSocket;
pub use credential::bearer;
pub use health::{Health, watch_health};

use crate::kube::kubeconfig::Upstream as UpstreamConfig;
use connector::{Connector, Protocols};
use credential::Credential;
use pool::Pool;

/// The API server of the agent's cluster.
#[derive(Debug)]
pub struct Upstream {
    scheme: Scheme,
    /// What goes before every path: empty, or a path without a slash at its end.
    base_path: String,
    credential: Credential,
    connector: Arc<Connector>,
    short: Pool,
    long_running: Pool,
}

/// Why the settings of an API server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamConfigError {
    /// The address.
    #[error("the address of the API server, {0}, is not usable: it has to be http:// or https:// with a host")]
    Address(Uri),
    /// The certificates or the key.
    #[error("TLS to the API server: {0}")]
    Tls(String),
    /// The token file.
    #[error(transparent)]
    Credential(#[from] credential::CredentialError),
}

/// Why the API server gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection. The request was not sent.
    #[error("cannot connect to the API server at {address}: {why}")]
    Unreachable {
        /// Where it should be.
        address: Authority,
        /// What the system or TLS said.
        why: String,
    },
    /// The connection was closing before the request went out.
    #[error("the API server closed the connection before the request was sent")]
    NotSent,
    /// The connection broke when the request was on its way.
    #[error("the connection to the API server broke before its answer: {0}")]
    Lost(hyper::Error),
    /// The answer took too long to begin.
    #[error("the API server did not begin to answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The agent's own credential.
    #[error(transparent)]
    Credential(#[from] credential::CredentialError),
    /// The request cannot be written.
    #[error("the request cannot be sent to the API server: {0}")]
    Unsendable(http::Error),
}

impl UpstreamError {
    /// Whether the API server may have seen the request.
    pub fn dispatched(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::TimedOut(_))
    }
}

/// Which connections a request travels on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// It ends soon.
    Short,
    /// It may go on for days: a watch, a log.
    LongRunning,
}

impl Upstream {
    /// Prepares everything; nothing is dialled yet.
    pub fn new(config: &UpstreamConfig) -> Result<Self, UpstreamConfigError> {
        let address = || UpstreamConfigError::Address(config.server.clone());
        let scheme = config.server.scheme().cloned().ok_or_else(address)?;
        let authority = config.server.authority().cloned().ok_or_else(address)?;
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return Err(address());
        }
        let connector = Arc::new(Connector::new(config, &scheme, &authority)?);
        Ok(Self {
            base_path: config.server.path().trim_end_matches('/').to_owned(),
            credential: Credential::new(&config.credentials)?,
            short: Pool::new(connector.clone(), Protocols::Http1),
            long_running: Pool::new(connector.clone(), Protocols::Http2OrHttp1),
            connector,
            scheme,
        })
    }

    /// The API server's host and port, as it stands in its address.
    pub fn authority(&self) -> &Authority {
        self.connector.authority()
    }

    /// The agent's own `Authorization`, if it authenticates with one.
    pub async fn authorization(&self) -> Result<Option<HeaderValue>, UpstreamError> {
        Ok(self.credential.authorization().await?)
    }

    /// Notes that the API server did not accept the agent's own credential: it is read again before its time.
    pub fn credential_was_refused(&self) {
        self.credential.forget();
    }

    /// Where a request for `target` goes, the path of the API server's address included.
    pub fn uri(&self, target: &PathAndQuery) -> Result<Uri, UpstreamError> {
        let path = match self.base_path.as_str() {
            "" => target.clone(),
            base => PathAndQuery::try_from(format!("{base}{target}"))
                .map_err(|error| UpstreamError::Unsendable(error.into()))?,
        };
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority().clone())
            .path_and_query(path)
            .build()
            .map_err(UpstreamError::Unsendable)
    }

    /// Sends a plain request; the future is ready when the head of the answer is there. `patience` bounds that wait.
    pub async fn send(
        &self,
        request: Request<RequestBody>,
        lane: Lane,
        patience: Option<Duration>,
    ) -> Result<Response<AnswerBody>, UpstreamError> {
        let pool = match lane {
            Lane::Short => &self.short,
            Lane::LongRunning => &self.long_running,
        };
        let answer = pool.send(request);
        match patience {
            Some(patience) => timeout(patience, answer).await.unwrap_or(Err(UpstreamError::TimedOut(patience))),
            None => answer.await,
        }
    }

    /// Sends a request that asks for an upgrade, on a connection of its own that is used for nothing else afterwards:
    /// whatever the answer, no later request can follow on it (CVE-2018-1002105).
    pub async fn upgrade(
        &self,
        mut request: Request<RequestBody>,
        patience: Duration,
    ) -> Result<Response<Incoming>, UpstreamError> {
        pool::make_origin_form(&mut request, self.authority());
        let socket = self.connector.dial(Protocols::Http1).await?.0;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .title_case_headers(true)
            .handshake(hyper_util::rt::TokioIo::new(socket))
            .await
            .map_err(UpstreamError::Lost)?;
        tokio::spawn(connection.with_upgrades());
        timeout(patience, sender.send_request(request))
            .await
            .map_err(|_elapsed| UpstreamError::TimedOut(patience))?
            .map_err(UpstreamError::Lost)
    }
}
