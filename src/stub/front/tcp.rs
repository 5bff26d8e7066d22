//! The TCP port: HTTPS with HTTP/1.1 and HTTP/2, and agents that cannot use UDP.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::server::{Acceptor, ClientHello};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::ClientConnection;
use crate::carrier::Disconnect;
use crate::pki::CertificateError;
use crate::stub::limits::Stranger;
use crate::stub::metrics::{Metrics, RejectedHead};
use crate::stub::sessions::ConnectionSessions;
use crate::stub::shared::Shared;
use crate::stub::{request, tunnel};
use crate::wire::limits::{MAX_HEAD_LENGTH, MAX_HEADER_COUNT};
use crate::wire::{ALPN_ENROLLMENT_TCP, ALPN_TUNNEL_TCP};

/// Requests over HTTP/2 that a client may have reset before the stub has looked at them.
const UNSEEN_RESETS: usize = 64;

/// How long a connection is idle before the peer is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// The socket of a client or an agent.
type Socket = TlsStream<TcpStream>;

/// The two TLS configurations of the TCP port. Which one a connection gets, and so which authority vouches for the peer,
/// follows from the application protocols that it offers.
#[derive(Debug, Clone)]
pub struct PortTls {
    /// For clients: the users' authority.
    pub clients: Arc<ServerConfig>,
    /// For agents: the agents' authority.
    pub agents: Arc<ServerConfig>,
}

/// Accepts clients and agents. When the stub is about to stop it tells those who come that it is.
pub async fn run(shared: Arc<Shared>, listener: TcpListener, tls: PortTls) {
    let places = Arc::new(Semaphore::new(shared.config.limits.client_connections as usize));
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((socket, address)) => {
                let Some(stranger) = shared.limits.admit_connection(address.ip()) else {
                    hang_up(&socket);
                    continue;
                };
                let newcomer = Newcomer { address, stranger, place };
                let serving = serve(shared.clone(), socket, newcomer, tls.clone());
                // A stop waits for the requests of those that came in time, and for the others to hear that they did not.
                match shared.drain.is_closing() {
                    true => drop(shared.drain.latecomers().spawn(serving)),
                    false => drop(shared.tasks.spawn(serving)),
                }
            }
            Err(error) => {
                // Mostly a lack of file descriptors: trying again at once would only burn a core.
                tracing::warn!("cannot accept a client: {error}; raise the limit of open files if this goes on");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Ends a connection that nothing was read of: with RST, which leaves nothing behind here.
fn hang_up(socket: &TcpStream) {
    // Without it the peer sees a FIN.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// A connection that was admitted.
struct Newcomer {
    address: SocketAddr,
    stranger: Stranger,
    /// Held for as long as the connection lives.
    place: OwnedSemaphorePermit,
}

async fn serve(shared: Arc<Shared>, socket: TcpStream, newcomer: Newcomer, tls: PortTls) {
    let Newcomer { address, stranger, place } = newcomer;
    match handshake(&shared, socket, &tls).await {
        Ok(Accepted::Client(socket)) => {
            let metrics = shared.watchers.metrics.clone();
            if let Err(error) = serve_client(shared, socket, address, stranger).await {
                error.count(&metrics);
                tracing::debug!(%address, "a client's connection ended: {error}");
            }
            drop(place);
        }
        Ok(Accepted::Agent(socket, sessions)) => {
            // A stop waits for requests, not for agents: they stay to serve them.
            tokio::spawn(async move {
                tunnel::serve_over_tcp(&shared, socket, sessions, stranger, address).await;
                drop(place);
            });
        }
        Err(error) => tracing::debug!(%address, "a connection was not established: {error}"),
    }
}

/// Why a connection ended otherwise than by itself.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("the TLS handshake did not end in time")]
    HandshakeTimeout,
    #[error("nobody has authenticated in time")]
    Stranger,
    #[error("TLS: {0}")]
    Tls(#[from] io::Error),
    #[error("the certificate: {0}")]
    Certificate(#[from] CertificateError),
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
}

impl ConnectionError {
    fn count(&self, metrics: &Metrics) {
        if let Self::Http(error) = self
            && let Some(reason) = RejectedHead::of(error)
        {
            metrics.head_rejected(reason);
        }
    }
}

/// A connection whose TLS handshake is complete.
enum Accepted {
    Client(Socket),
    Agent(Socket, Arc<ConnectionSessions>),
}

async fn handshake(shared: &Shared, socket: TcpStream, tls: &PortTls) -> Result<Accepted, ConnectionError> {
    // Answers go out as they come; waiting for more to send along would delay every watch event.
    socket.set_nodelay(true)?;
    // A client that reads nothing for hours may be paused; one whose host is gone is not there to say so.
    SockRef::from(&socket).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE))?;
    let accepting = async {
        let start = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
        if offers_tunnel(&start.client_hello()) {
            if shared.drain.is_announced() {
                return Err(io::Error::other("the stub is about to stop, and the agent had better try another one"));
            }
            let sessions = ConnectionSessions::new(shared.sessions.clone());
            let mut tls = ServerConfig::clone(&tls.agents);
            tls.session_storage = sessions.clone();
            start.into_stream(Arc::new(tls)).await.map(|socket| Accepted::Agent(socket, sessions))
        } else {
            start.into_stream(tls.clients.clone()).await.map(Accepted::Client)
        }
    };
    let accepted = timeout(shared.config.limits.handshake(), accepting).await;
    Ok(accepted.map_err(|_elapsed| ConnectionError::HandshakeTimeout)??)
}

fn offers_tunnel(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut names| names.any(|name| [ALPN_TUNNEL_TCP, ALPN_ENROLLMENT_TCP].contains(&name)))
}

async fn serve_client(
    shared: Arc<Shared>,
    socket: Socket,
    address: SocketAddr,
    stranger: Stranger,
) -> Result<(), ConnectionError> {
    let connection = Arc::new(client_connection(&socket, address)?.coming_while(&shared.drain));
    let closing = connection.closing(&shared.drain);
    let http2 = socket.get_ref().1.alpn_protocol() == Some(b"h2");
    let limits = shared.config.limits.clone();
    let strange = shared.limits.wait_for_stranger(&connection, stranger);
    let service = service_fn(|request| request::serve(shared.clone(), connection.clone(), request));
    let socket = TokioIo::new(socket);
    if http2 {
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.requests_per_connection)
            .max_header_list_size(MAX_HEAD_LENGTH as u32)
            // Requests that are reset before they were looked at (CVE-2023-44487).
            .max_pending_accept_reset_streams(UNSEEN_RESETS)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(16 << 20)
            .keep_alive_interval(Some(Duration::from_secs(30)))
            .keep_alive_timeout(Duration::from_secs(20));
        let connection = builder.serve_connection(socket, service);
        tokio::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => return Ok(result?),
            () = strange => return Err(ConnectionError::Stranger),
            () = closing => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    } else {
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.handshake())
            .max_buf_size(MAX_HEAD_LENGTH)
            .max_headers(MAX_HEADER_COUNT)
            .title_case_headers(true)
            .serve_connection(socket, service)
            .with_upgrades();
        tokio::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => return Ok(result?),
            () = strange => return Err(ConnectionError::Stranger),
            () = closing => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    }
}

fn client_connection(socket: &Socket, address: SocketAddr) -> Result<ClientConnection, CertificateError> {
    let (_, tls) = socket.get_ref();
    ClientConnection::new(address, tls.server_name().map(str::to_owned), tls.peer_certificates().unwrap_or_default())
}

/// The socket of a client whose connection has been upgraded, with what had been read of it already.
///
/// Dropped before it was shut down it is disconnected, so that the client can never take a part for the whole.
pub struct ClientSocket {
    socket: Socket,
    read_ahead: Bytes,
    is_shut_down: bool,
}

impl ClientSocket {
    /// Takes the socket back from hyper; `None` for a connection that is not one of this front.
    pub fn new(upgraded: Upgraded) -> Option<Self> {
        let parts = upgraded.downcast::<TokioIo<Socket>>().ok()?;
        Some(Self { socket: parts.io.into_inner(), read_ahead: parts.read_buf, is_shut_down: false })
    }
}

impl Disconnect for ClientSocket {
    /// RST and no close_notify: kubectl over SPDY takes any clean end for success.
    fn disconnect(&mut self) {
        self.socket.get_mut().0.disconnect();
    }
}

impl Drop for ClientSocket {
    fn drop(&mut self) {
        if !self.is_shut_down {
            self.disconnect();
        }
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read_ahead.is_empty() {
            return Pin::new(&mut self.socket).poll_read(context, buffer);
        }
        let length = self.read_ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.read_ahead[..length]);
        self.read_ahead.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.socket).poll_shutdown(context));
        self.is_shut_down = result.is_ok();
        Poll::Ready(result)
    }
}
