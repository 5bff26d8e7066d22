//! HTTPS clients made from a kubeconfig, for what kubectl cannot be made to do.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use qtunnel::kube::kubeconfig::{Credentials, Kubeconfig, Upstream};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::DEADLINE;

/// How to reach a server on loopback and as whom.
#[derive(Debug, Clone)]
pub struct Access {
    upstream: Upstream,
    address: SocketAddr,
}

/// A request body of the tests.
pub type Body = Full<Bytes>;

impl Access {
    /// What the current context of a kubeconfig says. Whatever the host is called, it is sought on loopback.
    pub fn of(kubeconfig: &Path) -> Self {
        let upstream = Kubeconfig::load(kubeconfig).unwrap().upstream(None).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], upstream.server.port_u16().unwrap()));
        Self { upstream, address }
    }

    /// The same server without any credentials.
    pub fn anonymous(mut self) -> Self {
        self.upstream.credentials = Credentials::Anonymous;
        self
    }

    /// The same server with another certificate.
    pub fn with_credentials(mut self, credentials: Credentials) -> Self {
        self.upstream.credentials = credentials;
        self
    }

    /// The same user at another address.
    pub fn at(mut self, server: &str) -> Self {
        self.upstream.server = server.parse().unwrap();
        self
    }

    /// A TLS connection that speaks `protocol`; an error is the handshake's.
    pub async fn connect(&self, protocol: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let socket = TcpStream::connect(self.address).await?;
        socket.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::new(self.tls(protocol)));
        let name = ServerName::try_from(self.host().to_owned()).unwrap();
        tokio::time::timeout(DEADLINE, connector.connect(name, socket)).await.expect("a handshake in time")
    }

    /// An HTTP/1.1 connection.
    pub async fn http1(&self) -> Client {
        let stream = self.connect("http/1.1").await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Client { access: self.clone(), sender: Sender::Http1(sender) }
    }

    /// An HTTP/2 connection.
    pub async fn http2(&self) -> Client {
        let stream = self.connect("h2").await.unwrap();
        let handshake = http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        Client { access: self.clone(), sender: Sender::Http2(sender) }
    }

    /// One GET on a connection of its own.
    pub async fn get(&self, path: &str) -> Answer {
        self.http1().await.get(path).await
    }

    /// The path that goes before each request's, for example `/clusters/c1`.
    pub fn prefix(&self) -> &str {
        self.upstream.server.path().trim_end_matches('/')
    }

    /// Host and port, as the `Host` header has them.
    pub fn authority(&self) -> &str {
        self.upstream.server.authority().unwrap().as_str()
    }

    fn host(&self) -> &str {
        self.upstream.server.host().unwrap()
    }

    fn tls(&self, protocol: &str) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        let pem = self.upstream.certificate_authority.as_deref().unwrap_or_default();
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).map(Result::unwrap));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let mut config = match &self.upstream.credentials {
            Credentials::ClientCertificate(certificate) => {
                let chain = CertificateDer::pem_slice_iter(&certificate.chain).map(Result::unwrap).collect();
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&certificate.key).unwrap()).unwrap()
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        config
    }

    fn bearer(&self) -> Option<HeaderValue> {
        match &self.upstream.credentials {
            Credentials::Token(token) => Some(format!("Bearer {}", token.reveal()).try_into().unwrap()),
            _ => None,
        }
    }
}

/// One connection to a server.
pub struct Client {
    access: Access,
    sender: Sender,
}

enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

/// An answer that has been read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: http::HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    /// A GET of a path of the API server, not sent yet.
    pub fn request(&self, path: &str) -> Request<Body> {
        let Access { upstream, .. } = &self.access;
        let path = format!("{}{path}", self.access.prefix());
        let mut request = Request::new(Body::default());
        match self.sender {
            Sender::Http1(_) => {
                *request.uri_mut() = path.parse().unwrap();
                request.headers_mut().insert(http::header::HOST, self.access.authority().try_into().unwrap());
            }
            Sender::Http2(_) => {
                let uri = format!("{}://{}{path}", upstream.server.scheme_str().unwrap(), self.access.authority());
                *request.uri_mut() = uri.parse().unwrap();
            }
        }
        if let Some(bearer) = self.access.bearer() {
            request.headers_mut().insert(http::header::AUTHORIZATION, bearer);
        }
        request
    }

    /// Sends a request and waits for the head of the answer.
    pub async fn send(&mut self, request: Request<Body>) -> Response<Incoming> {
        let answer = async {
            match &mut self.sender {
                Sender::Http1(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
                Sender::Http2(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
            }
        };
        tokio::time::timeout(DEADLINE, answer).await.expect("an answer in time").expect("an answer")
    }

    /// Sends a GET and waits for the head of the answer.
    pub async fn open(&mut self, path: &str) -> Response<Incoming> {
        let request = self.request(path);
        self.send(request).await
    }

    /// Sends a GET and reads the whole answer.
    pub async fn get(&mut self, path: &str) -> Answer {
        let response = self.open(path).await;
        read(response).await
    }

    /// Another handle for the same connection; HTTP/2 only.
    pub fn share(&self) -> Self {
        match &self.sender {
            Sender::Http2(sender) => Self { access: self.access.clone(), sender: Sender::Http2(sender.clone()) },
            Sender::Http1(_) => panic!("an HTTP/1.1 connection has one request at a time"),
        }
    }
}

/// One GET over plain HTTP/1.1 at `address`; the whole answer as it came.
pub async fn get_plain(address: &str, path: &str) -> String {
    let exchange = async {
        let mut socket = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    tokio::time::timeout(DEADLINE, exchange).await.expect("an answer in time").unwrap()
}

/// Reads an answer to its end.
pub async fn read(response: Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = tokio::time::timeout(DEADLINE, body.collect()).await.expect("a body in time").expect("a whole body");
    Answer { status: parts.status, headers: parts.headers, body: body.to_bytes() }
}

/// An open answer, line by line.
pub struct Lines {
    body: Incoming,
    pending: Vec<u8>,
}

impl Lines {
    /// The lines of this body.
    pub fn of(body: Incoming) -> Self {
        Self { body, pending: Vec::new() }
    }

    /// The next line, without its end.
    pub async fn next(&mut self) -> String {
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return String::from_utf8_lossy(&line[..end]).into_owned();
            }
            let frame = self.frame().await.expect("the answer goes on").expect("the answer is not broken off");
            self.pending.extend_from_slice(frame.data_ref().expect("data"));
        }
    }

    /// Reads to the end, and says whether it is no clean one.
    pub async fn broken_off(mut self) -> bool {
        loop {
            match self.frame().await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return true,
                None => return false,
            }
        }
    }

    async fn frame(&mut self) -> Option<Result<Frame<Bytes>, hyper::Error>> {
        tokio::time::timeout(DEADLINE, self.body.frame()).await.expect("bytes or an end in time")
    }
}
