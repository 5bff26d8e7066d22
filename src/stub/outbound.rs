//! Questions that the stub asks others over HTTPS: webhooks, and the keys of token issuers.
//!
//! Every question has a deadline, every answer a bound, and only so many are asked at once.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use crate::kube::kubeconfig::{Credential, CredentialError, TlsConfigError, Upstream, client_config};

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// Questions to one server at once; more of them wait, within their deadline.
const CONCURRENCY: usize = 64;

/// Idle connections that are kept for later questions.
const IDLE: usize = 8;

/// A server that may be asked, over HTTP/1.1 connections that are kept for the next question.
pub struct Outbound {
    scheme: Scheme,
    authority: Authority,
    path: PathAndQuery,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    credential: Credential,
    timeout: Duration,
    idle: Mutex<Vec<Sender>>,
    places: Semaphore,
}

type Sender = SendRequest<Full<Bytes>>;

/// A connection of either kind.
trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

impl Outbound {
    /// Prepares to ask `server`; nothing is dialled yet. A question may take as long as `timeout`, connecting included.
    ///
    /// # Errors
    /// The address has no host or is neither `http` nor `https`, or TLS cannot be set up.
    pub fn new(server: &Upstream, timeout: Duration) -> Result<Self, OutboundConfigError> {
        let address = || OutboundConfigError::Address(server.server.clone());
        let scheme = server.server.scheme().cloned().ok_or_else(address)?;
        let authority = server.server.authority().cloned().ok_or_else(address)?;
        let tls = if scheme == Scheme::HTTPS {
            let name = server.server_name.as_deref().unwrap_or_else(|| host(&authority));
            let name = ServerName::try_from(name.to_owned()).map_err(|_| address())?;
            let mut config = client_config(server)?;
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Some((TlsConnector::from(Arc::new(config)), name))
        } else if scheme == Scheme::HTTP {
            None
        } else {
            return Err(address());
        };
        Ok(Self {
            path: server.server.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")),
            credential: Credential::new(&server.credentials)?,
            idle: Mutex::default(),
            places: Semaphore::new(CONCURRENCY),
            scheme,
            authority,
            tls,
            timeout,
        })
    }

    /// POSTs `question` as JSON and reads the JSON of the answer.
    ///
    /// # Errors
    /// See [`OutboundError`].
    pub async fn ask<Q: Serialize, A: DeserializeOwned>(&self, question: &Q) -> Result<A, OutboundError> {
        let body = serde_json::to_vec(question).map_err(|error| self.failed(Failure::Question(error)))?;
        self.json(Method::POST, body.into()).await
    }

    /// GETs the JSON that is there.
    ///
    /// # Errors
    /// See [`OutboundError`].
    pub async fn get<A: DeserializeOwned>(&self) -> Result<A, OutboundError> {
        self.json(Method::GET, Bytes::new()).await
    }

    /// POSTs JSON that has been written already. What the answer says besides that all is well does not matter.
    ///
    /// # Errors
    /// See [`OutboundError`].
    pub async fn post(&self, body: Bytes) -> Result<(), OutboundError> {
        self.within_deadline(Method::POST, body).await.map(drop)
    }

    async fn json<A: DeserializeOwned>(&self, method: Method, body: Bytes) -> Result<A, OutboundError> {
        let answer = self.within_deadline(method, body).await?;
        serde_json::from_slice(&answer).map_err(|error| self.failed(Failure::Answer(error)))
    }

    async fn within_deadline(&self, method: Method, body: Bytes) -> Result<Bytes, OutboundError> {
        let answer = tokio::time::timeout(self.timeout, self.exchange(method, body)).await;
        answer.unwrap_or(Err(Failure::Deadline(self.timeout))).map_err(|failure| self.failed(failure))
    }

    async fn exchange(&self, method: Method, body: Bytes) -> Result<Bytes, Failure> {
        // It is never closed.
        let _place = self.places.acquire().await.map_err(|_| Failure::Deadline(self.timeout))?;
        let request = self.request(method, body).await?;
        let (sender, answer) = match self.kept() {
            // The server may close a kept connection at any moment. Whatever is asked here may be asked twice.
            Some(sender) => match send(sender, request.clone()).await {
                Err(Failure::Http(_)) => send(self.connect().await?, request).await?,
                result => result?,
            },
            None => send(self.connect().await?, request).await?,
        };
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(Failure::of_body)?.to_bytes();
        self.keep(sender);
        match head.status.is_success() {
            true => Ok(body),
            false => {
                // A token file may have been replaced.
                self.credential.forget();
                Err(Failure::Status(head.status))
            }
        }
    }

    async fn request(&self, method: Method, body: Bytes) -> Result<Request<Full<Bytes>>, Failure> {
        let has_body = method == Method::POST;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        // Origin form (RFC 9112, section 3.2.1).
        *request.uri_mut() = Uri::from(self.path.clone());
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::try_from(self.authority.as_str()).map_err(|_| Failure::Host)?);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("qtunnel/", env!("CARGO_PKG_VERSION"))));
        if has_body {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(authorization) = self.credential.authorization().await? {
            headers.insert(AUTHORIZATION, authorization);
        }
        Ok(request)
    }

    async fn connect(&self) -> Result<Sender, Failure> {
        let default_port = if self.tls.is_some() { 443 } else { 80 };
        let port = self.authority.port_u16().unwrap_or(default_port);
        let socket = TcpStream::connect((host(&self.authority), port)).await.map_err(Failure::Connect)?;
        socket.set_nodelay(true).map_err(Failure::Connect)?;
        let socket: Box<dyn Socket> = match &self.tls {
            Some((tls, name)) => Box::new(tls.connect(name.clone(), socket).await.map_err(Failure::Connect)?),
            None => Box::new(socket),
        };
        let (sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(Failure::Http)?;
        // It ends with its sender; its errors reach whoever waits for an answer.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn kept(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| idle.pop()).find(|sender| sender.is_ready())
    }

    fn keep(&self, sender: Sender) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE && !sender.is_closed() {
            idle.push(sender);
        }
    }

    fn failed(&self, failure: Failure) -> OutboundError {
        OutboundError { server: format!("{}://{}", self.scheme, self.authority), failure }
    }
}

async fn send(
    mut sender: Sender,
    request: Request<Full<Bytes>>,
) -> Result<(Sender, http::Response<hyper::body::Incoming>), Failure> {
    sender.ready().await.map_err(Failure::Http)?;
    let answer = sender.send_request(request).await.map_err(Failure::Http)?;
    Ok((sender, answer))
}

/// The host without the brackets of an IPv6 address.
fn host(authority: &Authority) -> &str {
    authority.host().trim_start_matches('[').trim_end_matches(']')
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound").field("authority", &self.authority).finish_non_exhaustive()
    }
}

/// Why a server cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum OutboundConfigError {
    /// The address.
    #[error("{0} is not usable as an address: it has to be http:// or https:// with a host")]
    Address(Uri),
    /// The certificates or the key.
    #[error("TLS: {0}")]
    Tls(#[from] TlsConfigError),
    /// The token file.
    #[error(transparent)]
    Credential(#[from] CredentialError),
}

/// A question that got no usable answer. It holds neither the question nor the answer, which may be secrets.
#[derive(Debug, thiserror::Error)]
#[error("{server}: {failure}")]
pub struct OutboundError {
    server: String,
    failure: Failure,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no answer within {} ms", .0.as_millis())]
    Deadline(Duration),
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("{0}")]
    Http(hyper::Error),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("its answer has more than {MAX_ANSWER} bytes")]
    TooLong,
    #[error("its answer broke off: {0}")]
    BrokenOff(Box<dyn std::error::Error + Send + Sync>),
    #[error("its answer is not what it has to be: {0}")]
    Answer(serde_json::Error),
    #[error("the question cannot be written: {0}")]
    Question(serde_json::Error),
    #[error("its host cannot be a header value")]
    Host,
    #[error(transparent)]
    Credential(#[from] CredentialError),
}

impl Failure {
    fn of_body(error: Box<dyn std::error::Error + Send + Sync>) -> Self {
        if error.is::<LengthLimitError>() { Self::TooLong } else { Self::BrokenOff(error) }
    }
}
