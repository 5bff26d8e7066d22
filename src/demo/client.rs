//! A small HTTPS client that takes a kubeconfig and does what kubectl does with it: HTTP/2 for requests, a connection of
//! its own with HTTP/1.1 for an upgrade.
//!
//! It shares no code with stub and agent, so that the checks do not test the tunnel with itself.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, HeaderName};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::kube::kubeconfig::{Credentials, Kubeconfig, KubeconfigError, Upstream};

/// The largest answer that is read as a whole: a list of some ten thousand pods.
const MAX_ANSWER: usize = 64 << 20;

/// The longest line of a watch or a log; an object may have 3 MiB.
const MAX_LINE: usize = 4 << 20;

/// How long a connection may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A client with one HTTP/2 connection.
pub struct Client {
    server: Server,
    requests: http2::SendRequest<Full<Bytes>>,
}

/// Why there is no answer, or not a good one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig.
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    /// What the kubeconfig leads to cannot be dialled.
    #[error("the kubeconfig is of no use: {0}")]
    Unusable(String),
    /// No connection.
    #[error("cannot connect to the stub: {0}")]
    Connect(#[from] std::io::Error),
    /// The connection broke.
    #[error("the request failed: {0}")]
    Http(#[from] hyper::Error),
    /// An answer that is no success.
    #[error("{} {}: {message}", code.as_u16(), code.canonical_reason().unwrap_or_default())]
    Status {
        /// The status code.
        code: StatusCode,
        /// The message of the `Status` object in the body, or the body.
        message: String,
    },
    /// An answer that makes no sense.
    #[error("the answer cannot be read: {0}")]
    Unreadable(String),
}

impl Client {
    /// Connects as the kubeconfig says.
    pub async fn connect(kubeconfig: &Path) -> Result<Self, ClientError> {
        let server = Server::new(Kubeconfig::load(kubeconfig)?.upstream(None)?)?;
        let socket = server.dial(b"h2").await?;
        let (requests, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await?;
        // How the connection ends, each of its requests is told.
        tokio::spawn(connection);
        Ok(Self { server, requests })
    }

    /// The JSON object at `path`.
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        json(self.send(Method::GET, path, None).await?).await
    }

    /// Creates an object.
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value, ClientError> {
        json(self.send(Method::POST, path, Some(object)).await?).await
    }

    /// Deletes an object.
    pub async fn delete(&self, path: &str) -> Result<Value, ClientError> {
        json(self.send(Method::DELETE, path, None).await?).await
    }

    /// The answer at `path` as its bytes come.
    pub async fn body(&self, path: &str) -> Result<Incoming, ClientError> {
        Ok(self.send(Method::GET, path, None).await?.into_body())
    }

    /// The answer at `path` line by line, as the lines come.
    pub async fn lines(&self, path: &str) -> Result<Lines, ClientError> {
        Ok(Lines { body: self.body(path).await?, buffer: BytesMut::new() })
    }

    /// Upgrades to another protocol. What the answer's headers say is the caller's to check.
    pub async fn upgrade(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, &str)],
    ) -> Result<(Response<()>, TokioIo<Upgraded>), ClientError> {
        let socket = self.server.dial(b"http/1.1").await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
        // How the connection ends, the request or the upgraded stream is told.
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder().method(method).uri(self.server.path(path));
        request = request.header(HOST, self.server.authority.as_str());
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let mut response = sender.send_request(request.body(Full::<Bytes>::default()).map_err(unreadable)?).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        let upgraded = hyper::upgrade::on(&mut response).await?;
        Ok((response.map(drop), TokioIo::new(upgraded)))
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder().method(method).uri(self.server.uri(path));
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = request.body(Full::new(body)).map_err(unreadable)?;
        let response = self.requests.clone().send_request(request).await?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }
}

/// An answer that comes line by line.
pub struct Lines {
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    /// The next line without its end; nothing when the answer has ended.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let mut line = self.buffer.split_to(end + 1);
                line.truncate(end);
                return Ok(Some(line.freeze()));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(ClientError::Unreadable(format!("a line is longer than {MAX_LINE} bytes")));
            }
            match self.body.frame().await.transpose()? {
                Some(frame) => self.buffer.extend(frame.into_data().unwrap_or_default()),
                None => return Ok(None),
            }
        }
    }
}

/// Where the kubeconfig leads.
struct Server {
    authority: String,
    host: String,
    port: u16,
    /// What goes before each path.
    base: String,
    name: ServerName<'static>,
    tls: ClientConfig,
}

impl Server {
    fn new(upstream: Upstream) -> Result<Self, ClientError> {
        let unusable = |why: &dyn std::fmt::Display| ClientError::Unusable(why.to_string());
        let authority = upstream.server.authority().ok_or_else(|| unusable(&"its server has no host"))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = upstream.server_name.as_deref().unwrap_or(&host).to_owned();
        let name = ServerName::try_from(name).map_err(|error| unusable(&error))?;
        Ok(Self {
            authority: authority.to_string(),
            port: authority.port_u16().unwrap_or(443),
            host,
            base: upstream.server.path().trim_end_matches('/').to_owned(),
            name,
            tls: tls(&upstream).map_err(|error| unusable(&error))?,
        })
    }

    async fn dial(&self, protocol: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        let mut tls = self.tls.clone();
        tls.alpn_protocols = vec![protocol.to_vec()];
        let connect = async {
            let socket = TcpStream::connect((self.host.as_str(), self.port)).await?;
            socket.set_nodelay(true)?;
            TlsConnector::from(Arc::new(tls)).connect(self.name.clone(), socket).await
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connect).await?
    }

    fn path(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn uri(&self, path: &str) -> String {
        format!("https://{}{}", self.authority, self.path(path))
    }
}

/// The stub's authority and the user's certificate.
fn tls(upstream: &Upstream) -> Result<ClientConfig, Box<dyn std::error::Error + Send + Sync>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(upstream.certificate_authority.as_deref().unwrap_or_default()) {
        roots.add(certificate?)?;
    }
    let Credentials::ClientCertificate(user) = &upstream.credentials else {
        return Err("it has no client certificate".into());
    };
    let chain = CertificateDer::pem_slice_iter(&user.chain).collect::<Result<_, _>>()?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let key = PrivateKeyDer::from_pem_slice(&user.key)?;
    Ok(builder.with_root_certificates(roots).with_client_auth_cert(chain, key)?)
}

async fn json(response: Response<Incoming>) -> Result<Value, ClientError> {
    serde_json::from_slice(&whole(response).await?).map_err(unreadable)
}

async fn whole(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    Ok(Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(unreadable)?.to_bytes())
}

/// An answer that is no success, in the words of its `Status`.
async fn refusal(response: Response<Incoming>) -> ClientError {
    let code = response.status();
    let body = match whole(response).await {
        Ok(body) => body,
        Err(error) => return error,
    };
    let status: Option<Value> = serde_json::from_slice(&body).ok();
    let message = status.as_ref().and_then(|status| status["message"].as_str());
    let message = message.map_or_else(|| String::from_utf8_lossy(&body).trim().to_owned(), str::to_owned);
    ClientError::Status { code, message }
}

fn unreadable(error: impl std::fmt::Display) -> ClientError {
    ClientError::Unreadable(error.to_string())
}
