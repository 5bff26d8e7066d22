//! Connections to the API server.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::{Authority, Scheme};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{UpstreamConfigError, UpstreamError};
use crate::carrier::Disconnect;
use crate::kube::kubeconfig::{Credentials, Upstream as UpstreamConfig};

/// How long a connection may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Dials the API server.
pub struct Connector {
    authority: Authority,
    host: String,
    port: u16,
    tls: Option<Tls>,
}

struct Tls {
    server_name: ServerName<'static>,
    http1: TlsConnector,
    http2: TlsConnector,
}

/// Which versions of HTTP a connection may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocols {
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 if the server has it.
    Http2OrHttp1,
}

/// What a connection came to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

impl Connector {
    /// Prepares TLS.
    pub fn new(config: &UpstreamConfig, scheme: &Scheme, authority: &Authority) -> Result<Self, UpstreamConfigError> {
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let secure = *scheme == Scheme::HTTPS;
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tls = if secure { Some(Tls::new(config, &host)?) } else { None };
        Ok(Self { authority: authority.clone(), host, port, tls })
    }

    /// A new connection.
    pub async fn dial(&self, protocols: Protocols) -> Result<(UpstreamSocket, Spoken), UpstreamError> {
        let unreachable = |why: String| UpstreamError::Unreachable { address: self.authority.clone(), why };
        timeout(CONNECT_TIMEOUT, self.connect(protocols))
            .await
            .map_err(|_elapsed| unreachable(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())))?
            .map_err(|error| unreachable(error.to_string()))
    }

    /// The API server's host and port, as it stands in its address.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    async fn connect(&self, protocols: Protocols) -> io::Result<(UpstreamSocket, Spoken)> {
        let socket = TcpStream::connect((self.host.as_str(), self.port)).await?;
        socket.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            return Ok((UpstreamSocket(Socket::Plain(socket)), Spoken::Http1));
        };
        let connector = match protocols {
            Protocols::Http1 => &tls.http1,
            Protocols::Http2OrHttp1 => &tls.http2,
        };
        let socket = connector.connect(tls.server_name.clone(), socket).await?;
        let spoken = match socket.get_ref().1.alpn_protocol() {
            Some(b"h2") => Spoken::Http2,
            _ => Spoken::Http1,
        };
        Ok((UpstreamSocket(Socket::Tls(Box::new(socket))), spoken))
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("authority", &self.authority).field("tls", &self.tls.is_some()).finish()
    }
}

impl Tls {
    fn new(config: &UpstreamConfig, host: &str) -> Result<Self, UpstreamConfigError> {
        let failed = |why: &dyn std::fmt::Display| UpstreamConfigError::Tls(why.to_string());
        let name = config.server_name.as_deref().unwrap_or(host);
        let server_name =
            ServerName::try_from(name.to_owned()).map_err(|_| failed(&format!("{name:?} is not a host name")))?;
        let http1 = client_config(config)?;
        let mut http2 = http1.clone();
        http2.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { server_name, http1: Arc::new(http1).into(), http2: Arc::new(http2).into() })
    }
}

fn client_config(config: &UpstreamConfig) -> Result<ClientConfig, UpstreamConfigError> {
    let failed = |error: &dyn std::fmt::Display| UpstreamConfigError::Tls(error.to_string());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?;
    let builder = if config.insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
    } else {
        builder.with_root_certificates(roots(config.certificate_authority.as_deref())?)
    };
    let mut client = match &config.credentials {
        Credentials::ClientCertificate(certificate) => {
            let chain = CertificateDer::pem_slice_iter(&certificate.chain).collect::<Result<Vec<_>, _>>();
            let chain = chain.map_err(|error| failed(&format!("the client certificate: {error}")))?;
            let key = PrivateKeyDer::from_pem_slice(&certificate.key);
            let key = key.map_err(|error| failed(&format!("the client key: {error}")))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| failed(&error))?
        }
        _ => builder.with_no_client_auth(),
    };
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(client)
}

/// The authorities of the settings, or else the operating system's.
fn roots(pem: Option<&[u8]>) -> Result<RootCertStore, UpstreamConfigError> {
    let failed = |why: String| UpstreamConfigError::Tls(why);
    let mut roots = RootCertStore::empty();
    match pem {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| failed(format!("the certificate authority: {error}")))?;
                roots.add(certificate).map_err(|error| failed(format!("the certificate authority: {error}")))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    match roots.is_empty() {
        false => Ok(roots),
        true => Err(failed("there is no certificate authority to verify the API server with".to_owned())),
    }
}

/// Accepts any certificate, for `insecure-skip-tls-verify`. Signatures are still verified: the peer owns its key.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A connection to the API server.
#[derive(Debug)]
pub struct UpstreamSocket(Socket);

#[derive(Debug)]
enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Disconnect for UpstreamSocket {
    fn disconnect(&mut self) {
        match &mut self.0 {
            Socket::Plain(socket) => socket.disconnect(),
            Socket::Tls(socket) => socket.get_mut().0.disconnect(),
        }
    }
}

impl AsyncRead for UpstreamSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Socket::Plain(socket) => Pin::new(socket).poll_read(context, buffer),
            Socket::Tls(socket) => Pin::new(socket).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for UpstreamSocket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Socket::Plain(socket) => Pin::new(socket).poll_write(context, data),
            Socket::Tls(socket) => Pin::new(socket).poll_write(context, data),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Socket::Plain(socket) => Pin::new(socket).poll_write_vectored(context, slices),
            Socket::Tls(socket) => Pin::new(socket).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Socket::Plain(socket) => socket.is_write_vectored(),
            Socket::Tls(socket) => socket.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Socket::Plain(socket) => Pin::new(socket).poll_flush(context),
            Socket::Tls(socket) => Pin::new(socket).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Socket::Plain(socket) => Pin::new(socket).poll_shutdown(context),
            Socket::Tls(socket) => Pin::new(socket).poll_shutdown(context),
        }
    }
}
