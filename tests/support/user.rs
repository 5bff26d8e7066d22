//! A user of a stub whose every byte the test decides: HTTP/1.1 written by hand over TLS, HTTP/2, or HTTP/3.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use qtunnel::kube::kubeconfig::{Credentials, Kubeconfig};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::http1::{Answer, BodyDecoder, Framing, Head, Wire, within};
use super::http3::{Exchange, Http3, Http3Answer};
use super::scripted_upstream::reset_on_drop;

/// Somebody who can reach a stub, with a certificate or without.
#[derive(Clone)]
pub struct User {
    address: SocketAddr,
    /// What stands before every path: `/clusters/<id>`, or nothing.
    pub prefix: String,
    /// The `Host` of requests.
    pub host: String,
    server_name: ServerName<'static>,
    roots: Arc<RootCertStore>,
    certificate: Option<(Vec<CertificateDer<'static>>, Arc<PrivateKeyDer<'static>>)>,
}

/// A connection that speaks HTTP/1.1.
pub type Http1 = Wire<TlsStream<TcpStream>>;

/// A connection that speaks HTTP/2.
pub type Http2 = SendRequest<Http2Body>;

/// The body of a request over HTTP/2.
pub type Http2Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// No body.
pub fn no_body() -> Http2Body {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
}

impl User {
    /// The user of a kubeconfig file. `address` is where the stub is, whatever host name the file has.
    pub fn of(kubeconfig: &Path, address: SocketAddr) -> Self {
        let upstream = Kubeconfig::load(kubeconfig).expect("a kubeconfig").upstream(None).expect("a cluster");
        let mut roots = RootCertStore::empty();
        let authority = upstream.certificate_authority.expect("an authority");
        roots.add(CertificateDer::from_pem_slice(&authority).expect("a certificate")).expect("an authority");
        let Credentials::ClientCertificate(certificate) = upstream.credentials else { panic!("no certificate") };
        let chain = CertificateDer::pem_slice_iter(&certificate.chain).collect::<Result<_, _>>().expect("a chain");
        let key = PrivateKeyDer::from_pem_slice(&certificate.key).expect("a key");
        let authority = upstream.server.authority().expect("a host").clone();
        let host = authority.host().to_owned();
        Self {
            address,
            prefix: upstream.server.path().trim_end_matches('/').to_owned(),
            host: authority.to_string(),
            server_name: ServerName::try_from(host).expect("a host name"),
            roots: Arc::new(roots),
            certificate: Some((chain, Arc::new(key))),
        }
    }

    /// The same without a certificate.
    pub fn without_certificate(&self) -> Self {
        Self { certificate: None, ..self.clone() }
    }

    /// The same with another certificate.
    pub fn with_certificate(&self, chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Self {
        Self { certificate: Some((chain, Arc::new(key))), ..self.clone() }
    }

    /// The same with something else before every path.
    pub fn with_prefix(&self, prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..self.clone() }
    }

    /// The same asking TLS for another name.
    pub fn with_server_name(&self, name: &str) -> Self {
        Self { server_name: ServerName::try_from(name.to_owned()).expect("a host name"), ..self.clone() }
    }

    /// Connects and speaks HTTP/1.1.
    pub async fn connect(&self) -> Http1 {
        Wire::new(self.tls(b"http/1.1").await.expect("a TLS connection"))
    }

    /// Connects and speaks HTTP/2.
    pub async fn connect_http2(&self) -> Http2 {
        let socket = self.tls(b"h2").await.expect("a TLS connection");
        let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let handshake = builder.handshake(TokioIo::new(socket));
        let (sender, connection) = within("HTTP/2", handshake).await.expect("an HTTP/2 connection");
        // Its errors reach whoever waits for an answer.
        tokio::spawn(connection);
        sender
    }

    /// Connects and speaks HTTP/3.
    pub async fn connect_http3(&self) -> Http3 {
        Http3::connect(self).await.expect("an HTTP/3 connection")
    }

    /// Where the stub is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The name that TLS is asked for.
    pub fn server_name(&self) -> String {
        self.server_name.to_str().into_owned()
    }

    /// How TLS is spoken for one application protocol.
    pub fn tls_config(&self, protocol: &[u8]) -> rustls::ClientConfig {
        let builder = rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .expect("protocol versions")
            .with_root_certificates(self.roots.clone());
        let mut config = match &self.certificate {
            Some((chain, key)) => builder.with_client_auth_cert(chain.clone(), key.clone_key()).expect("a certificate"),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        config
    }

    /// A TLS connection for one application protocol.
    pub async fn tls(&self, protocol: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        self.tls_on(self.socket().await?, protocol).await
    }

    /// A TCP connection on which nothing has been said.
    pub async fn socket(&self) -> std::io::Result<TcpStream> {
        let socket = TcpStream::connect(self.address).await?;
        socket.set_nodelay(true)?;
        Ok(socket)
    }

    /// Makes that a TLS connection for one application protocol.
    pub async fn tls_on(&self, socket: TcpStream, protocol: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        let connector = TlsConnector::from(Arc::new(self.tls_config(protocol)));
        within("a TLS handshake", connector.connect(self.server_name.clone(), socket)).await
    }

    /// A request as bytes: `method` and the path below the cluster, headers besides `Host`, no body.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("{method} {}{path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", self.prefix, self.host).into_bytes()
    }

    /// Sends a request without a body on an HTTP/1.1 connection of its own and waits for all of the answer.
    pub async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.begin(Version::Http1, method, path, headers).await.rest().await
    }

    /// Sends a request without a body over a version of HTTP and waits for all of the answer.
    pub async fn ask_over(&self, version: Version, method: &str, path: &str) -> Answer {
        self.begin(version, method, path, &[]).await.rest().await
    }

    /// The same, with the error if the answer breaks off before its head.
    pub async fn try_to_ask(&self, version: Version, method: &str, path: &str) -> Result<Answer, String> {
        let answering = match version {
            Version::Http1 => {
                let mut connection = self.connect().await;
                let request = self.request(method, path, &[]);
                within("sending a request", connection.write(&request)).await.expect("a request is sent");
                Answering::try_to_read_http1(connection, method).await?
            }
            Version::Http2 => {
                let request = self.http2_request(method, path, &[], no_body());
                let answer = self.connect_http2().await.send_request(request).await;
                Answering::read_http2(answer.map_err(|error| error.to_string())?)
            }
            Version::Http3 => self.begin_http3(method, path, &[]).await?,
        };
        Ok(answering.rest().await)
    }

    /// Sends a request without a body on a connection of its own and waits for the head of the answer.
    pub async fn begin(&self, version: Version, method: &str, path: &str, headers: &[(&str, &str)]) -> Answering {
        match version {
            Version::Http1 => {
                let mut connection = self.connect().await;
                let request = self.request(method, path, headers);
                within("sending a request", connection.write(&request)).await.expect("a request is sent");
                Answering::read_http1(connection, method).await
            }
            Version::Http2 => {
                let connection = self.connect_http2().await;
                self.begin_on(&connection, method, path, headers, no_body()).await
            }
            Version::Http3 => self.begin_http3(method, path, headers).await.expect("an answer"),
        }
    }

    async fn begin_http3(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answering, String> {
        let mut connection = Http3::connect(self).await?;
        let request = self.http3_request(method, path, headers);
        let mut exchange = connection.send(request).await.map_err(|error| error.to_string())?;
        // The stub may have answered, and wanted nothing more, before it is said that there is nothing more.
        let _ = exchange.finish().await;
        let beginning = Http3Answer::begin(exchange, Some(connection)).await;
        let (head, answer) = beginning.map_err(|error| error.to_string())?;
        Ok(Answering { head, body: Vec::new(), from: From::Http3(Box::new(answer)) })
    }

    /// The same on a connection that is there.
    pub async fn begin_on(
        &self,
        connection: &Http2,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Http2Body,
    ) -> Answering {
        let answer = connection.clone().send_request(self.http2_request(method, path, headers, body));
        Answering::read_http2(within("the head of an answer", answer).await.expect("an answer"))
    }

    /// A request for HTTP/2.
    pub fn http2_request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Http2Body,
    ) -> http::Request<Http2Body> {
        let mut request = http::Request::builder().method(method).uri(self.uri(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(body).expect("a request")
    }

    /// A request for HTTP/3.
    pub fn http3_request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> http::Request<()> {
        self.http2_request(method, path, headers, no_body()).map(|_body| ())
    }

    /// The URI of a path below the cluster, for HTTP/2 and HTTP/3.
    pub fn uri(&self, path: &str) -> String {
        format!("https://{}{}{path}", self.host, self.prefix)
    }
}

/// A version of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// HTTP/3.
    Http3,
}

impl Version {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::Http3];
}

/// An answer that is coming. Dropping it is what a client does that vanishes.
pub struct Answering {
    /// Its head.
    pub head: Head,
    /// What has come of its body.
    pub body: Vec<u8>,
    from: From,
}

enum From {
    Http1(Box<Http1>, BodyDecoder, Framing),
    Http2(hyper::body::Incoming),
    Http3(Box<Http3Answer>),
}

/// What came next.
enum Came {
    Bytes,
    End { complete: bool },
}

impl Answering {
    /// The answer to a `method` request.
    pub async fn read_http1(connection: Http1, method: &str) -> Self {
        Self::try_to_read_http1(connection, method).await.expect("an answer")
    }

    async fn try_to_read_http1(mut connection: Http1, method: &str) -> Result<Self, String> {
        let head = within("the head of an answer", connection.head()).await.map_err(|error| error.to_string())?;
        let head = head.ok_or("the connection ended before an answer")?;
        let framing = head.answer_framing(method);
        let from = From::Http1(Box::new(connection), BodyDecoder::new(framing), framing);
        Ok(Self { head, body: Vec::new(), from })
    }

    /// The answer to a request over HTTP/3 that was sent to its end.
    pub async fn read_http3(exchange: Exchange) -> Self {
        let (head, answer) = Http3Answer::begin(exchange, None).await.expect("an answer");
        Self { head, body: Vec::new(), from: From::Http3(Box::new(answer)) }
    }

    /// The answer on an HTTP/2 stream.
    pub fn read_http2(answer: http::Response<hyper::body::Incoming>) -> Self {
        let (head, body) = answer.into_parts();
        let text = |value: &http::HeaderValue| value.to_str().expect("text").to_owned();
        let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let head = Head { first_line: format!("HTTP/2 {}", head.status), headers };
        Self { head, body: Vec::new(), from: From::Http2(body) }
    }

    /// Waits until `text` has come.
    pub async fn until(&mut self, text: &str) {
        while !self.body.ends_with(text.as_bytes()) {
            if let Came::End { .. } = self.more().await {
                panic!("the answer ended before {text:?}: {:?}", String::from_utf8_lossy(&self.body));
            }
        }
    }

    /// Waits until `text` is somewhere in what has come.
    pub async fn until_contains(&mut self, text: &str) {
        while !self.body.windows(text.len()).any(|window| window == text.as_bytes()) {
            if let Came::End { .. } = self.more().await {
                panic!("the answer ended before {text:?}: {:?}", String::from_utf8_lossy(&self.body));
            }
        }
    }

    /// All of it, as far as it comes. A body that breaks off is an answer that is not complete.
    pub async fn rest(mut self) -> Answer {
        loop {
            if let Came::End { complete } = self.more().await {
                return Answer { head: self.head, body: self.body, complete };
            }
        }
    }

    /// The HTTP/1.1 connection behind it, its body left unread.
    pub fn into_http1(self) -> Http1 {
        match self.from {
            From::Http1(connection, ..) => *connection,
            From::Http2(_) | From::Http3(_) => panic!("not an HTTP/1.1 connection"),
        }
    }

    async fn more(&mut self) -> Came {
        match &mut self.from {
            From::Http1(connection, decoder, framing) => {
                match within("the body of an answer", connection.body_piece(decoder, &mut self.body)).await {
                    Ok(true) => Came::Bytes,
                    Ok(false) => Came::End { complete: decoder.is_complete() || *framing == Framing::UntilClose },
                    Err(_aborted) => Came::End { complete: false },
                }
            }
            From::Http2(frames) => match within("the body of an answer", frames.frame()).await {
                None => Came::End { complete: true },
                Some(Err(_reset)) => Came::End { complete: false },
                Some(Ok(frame)) => {
                    self.body.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
                    Came::Bytes
                }
            },
            From::Http3(answer) => match answer.more().await {
                Ok(None) => Came::End { complete: true },
                Err(_reset) => Came::End { complete: false },
                Ok(Some(data)) => {
                    self.body.extend_from_slice(&data);
                    Came::Bytes
                }
            },
        }
    }
}

/// A body that never ends: these bytes, and then whatever comes of `more`.
pub fn body_of(first: &'static [u8], more: impl Stream<Item = Bytes> + Send + 'static) -> Http2Body {
    let pieces = stream::iter([Bytes::from_static(first)]).chain(more);
    StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece)))).boxed_unsync()
}

/// What a client does that vanishes: ends the connection with RST.
pub fn reset(connection: Http1) {
    reset_on_drop(connection.socket.get_ref().0);
}
