//! A user of a stub whose every byte the test decides: HTTP/1.1 written by hand over TLS, or HTTP/2.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use qtunnel::kube::kubeconfig::{Credentials, Kubeconfig};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::http1::{Answer, Wire, within};
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
pub type Http2 = SendRequest<BoxBody<Bytes, std::io::Error>>;

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

    /// A TLS connection for one application protocol.
    pub async fn tls(&self, protocol: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        let builder = rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .expect("protocol versions")
            .with_root_certificates(self.roots.clone());
        let mut config = match &self.certificate {
            Some((chain, key)) => builder.with_client_auth_cert(chain.clone(), key.clone_key()).expect("a certificate"),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        let socket = TcpStream::connect(self.address).await?;
        socket.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::new(config));
        within("a TLS handshake", connector.connect(self.server_name.clone(), socket)).await
    }

    /// A request as bytes: `method` and the path below the cluster, headers besides `Host`, no body.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("{method} {}{path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", self.prefix, self.host).into_bytes()
    }

    /// Sends a request without a body on a connection of its own and waits for all of the answer.
    pub async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut connection = self.connect().await;
        within("sending", connection.write(&self.request(method, path, headers))).await.expect("a request is sent");
        connection.answer(method).await
    }

    /// The URI of a path below the cluster, for HTTP/2.
    pub fn uri(&self, path: &str) -> String {
        format!("https://{}{}{path}", self.host, self.prefix)
    }
}

/// What a client does that vanishes: ends the connection with RST.
pub fn reset(connection: Http1) {
    reset_on_drop(connection.socket.get_ref().0);
}
