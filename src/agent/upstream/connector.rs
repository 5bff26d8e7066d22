//! Connections to the API server.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::{Authority, Scheme};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{UpstreamConfigError, UpstreamError};
use crate::carrier::Disconnect;
use crate::kube::kubeconfig::{Upstream as UpstreamConfig, client_config};

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
        let name = config.server_name.as_deref().unwrap_or(host);
        let server_name =
            ServerName::try_from(name.to_owned()).map_err(|_| UpstreamConfigError::ServerName(name.to_owned()))?;
        let mut http1 = client_config(config)?;
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut http2 = http1.clone();
        http2.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { server_name, http1: Arc::new(http1).into(), http2: Arc::new(http2).into() })
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
