//! Connections and streams as the rest of the program sees them.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::time::sleep_until;
use tokio_util::task::AbortOnDropHandle;

use super::congestion::{Pulse, Work};
use super::gather::{GatheringStream, MAX_PIECE};
use super::heartbeat::{self, KeepAlive, PathState};
use super::quic::{self, QuicEndpoint};
use super::tcp::{self, TcpConnection, TcpRecvStream, TcpSendStream};
use crate::wire::{Carrier, ErrorCode};

/// One connection between a stub and an agent. Clones are handles to the same connection.
#[derive(Debug, Clone)]
pub struct Connection(AnyConnection);

#[derive(Debug, Clone)]
enum AnyConnection {
    Quic {
        connection: quinn::Connection,
        /// Held so that the socket lives as long as the connection that was dialled on it.
        endpoint: QuicEndpoint,
        pulse: Arc<Pulse>,
        path_state: watch::Receiver<PathState>,
        keep_alive: Arc<KeepAlive>,
        /// The heartbeat must not outlive the handles: it holds one of quinn's, which would keep the connection open.
        _heartbeat: Arc<AbortOnDropHandle<()>>,
    },
    Tcp(TcpConnection),
}

/// What is known of the path to the peer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PathStats {
    /// The smoothed round-trip time.
    pub round_trip: Duration,
    /// Packets sent since the connection began, where the carrier knows.
    pub sent_packets: Option<u64>,
    /// Packets declared lost since the connection began, where the carrier knows.
    pub lost_packets: Option<u64>,
    /// Bytes of UDP payload, or of the payload of TLS over TCP, sent.
    pub sent_bytes: u64,
    /// The same, received.
    pub received_bytes: u64,
    /// The congestion window in bytes, where the carrier knows.
    pub congestion_window: Option<u64>,
}

/// Why a connection is no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionEnd {
    /// The peer closed it.
    #[error("closed by the peer ({code:?}): {reason}")]
    ClosedByPeer {
        /// The peer's code.
        code: ErrorCode,
        /// The peer's words.
        reason: String,
    },
    /// This side closed it.
    #[error("closed by this side")]
    ClosedHere,
    /// Nothing came from the peer for the idle timeout.
    #[error("the peer has not been heard of for the idle timeout")]
    TimedOut,
    /// Anything else: TLS refused, versions differ, the socket failed.
    #[error("{0}")]
    Failed(String),
}

/// Why a stream gave no more bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamReadError {
    /// The peer broke the stream off; what came so far is not whole.
    #[error("the peer broke the stream off ({0:?})")]
    Reset(ErrorCode),
    /// The whole connection is gone.
    #[error("the connection is gone: {0}")]
    ConnectionLost(#[from] ConnectionEnd),
}

/// Why a stream took no more bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamWriteError {
    /// The peer does not want the rest.
    #[error("the peer stopped the stream ({0:?})")]
    Stopped(ErrorCode),
    /// The whole connection is gone.
    #[error("the connection is gone: {0}")]
    ConnectionLost(#[from] ConnectionEnd),
}

impl Connection {
    pub(super) fn new(connection: quinn::Connection, endpoint: QuicEndpoint, pulse: Arc<Pulse>) -> Self {
        let state = PathState { remote: connection.remote_address(), suspect_since: None };
        let (publish, path_state) = watch::channel(state);
        let keep_alive = Arc::<KeepAlive>::default();
        let watching = heartbeat::watch_over(connection.clone(), pulse.clone(), keep_alive.clone(), publish);
        let _heartbeat = Arc::new(AbortOnDropHandle::new(tokio::spawn(watching)));
        Self(AnyConnection::Quic { connection, endpoint, pulse, path_state, keep_alive, _heartbeat })
    }

    pub(super) fn over_tcp(connection: TcpConnection) -> Self {
        Self(AnyConnection::Tcp(connection))
    }

    /// What carries the connection.
    pub fn carrier(&self) -> Carrier {
        match &self.0 {
            AnyConnection::Quic { .. } => Carrier::Quic,
            AnyConnection::Tcp(_) => Carrier::Tcp,
        }
    }

    /// Opens a bidirectional stream; waits while the peer permits no more of them.
    ///
    /// The peer learns of the stream with its first byte.
    pub async fn open(&self) -> Result<(SendStream, RecvStream), ConnectionEnd> {
        match &self.0 {
            AnyConnection::Quic { connection, pulse, .. } => Ok(quic_halves(connection.open_bi().await?, pulse)),
            AnyConnection::Tcp(connection) => Ok(tcp_halves(connection.open().await?)),
        }
    }

    /// The next bidirectional stream that the peer opened.
    pub async fn accept(&self) -> Result<(SendStream, RecvStream), ConnectionEnd> {
        match &self.0 {
            AnyConnection::Quic { connection, pulse, .. } => Ok(quic_halves(connection.accept_bi().await?, pulse)),
            AnyConnection::Tcp(connection) => Ok(tcp_halves(connection.accept().await?)),
        }
    }

    /// Lets the peer send as much as the windows of its streams allow. A connection that was accepted takes little before.
    pub fn trust(&self) {
        match &self.0 {
            AnyConnection::Quic { connection, .. } => connection.set_receive_window(quinn::VarInt::MAX),
            AnyConnection::Tcp(connection) => connection.trust(),
        }
    }

    /// How many streams of the peer may be open at once. quinn sets memory aside for each; over TCP none is, and the bound
    /// is fixed.
    pub fn permit_streams(&self, count: u32) {
        if let AnyConnection::Quic { connection, .. } = &self.0 {
            connection.set_max_concurrent_bi_streams(count.into());
        }
    }

    /// Closes the connection and with it every stream. Does nothing when it is closed already.
    pub fn close(&self, code: ErrorCode, reason: &str) {
        match &self.0 {
            AnyConnection::Quic { connection, .. } => connection.close(code.value().into(), reason.as_bytes()),
            AnyConnection::Tcp(connection) => connection.close(code, reason),
        }
    }

    /// Closes a connection (over QUIC: one that this end has dialled), and waits until the peer has had the time to hear of it (RFC 9000,
    /// section 10.2), but no longer than `patience`. A process that ends right after [`close`](Self::close) may do so before
    /// the packet has left, and the peer waits for the idle timeout.
    pub async fn close_and_drain(&self, code: ErrorCode, reason: &str, patience: Duration) {
        self.close(code, reason);
        let draining = async {
            match &self.0 {
                AnyConnection::Quic { endpoint, .. } => endpoint.wait_idle().await,
                AnyConnection::Tcp(connection) => connection.hung_up().await,
            }
        };
        let _ = tokio::time::timeout(patience, draining).await;
    }

    /// Waits until the connection is no more.
    pub async fn closed(&self) -> ConnectionEnd {
        match &self.0 {
            AnyConnection::Quic { connection, .. } => connection.closed().await.into(),
            AnyConnection::Tcp(connection) => connection.closed().await,
        }
    }

    /// The peer's address as it is now; it changes when a QUIC connection migrates.
    pub fn remote_address(&self) -> SocketAddr {
        let address = match &self.0 {
            AnyConnection::Quic { connection, .. } => connection.remote_address(),
            AnyConnection::Tcp(connection) => connection.remote_address(),
        };
        // A socket for both families shows IPv4 peers as IPv6 ones.
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }

    /// The certificate the peer presented and TLS verified, if it presented one.
    pub fn peer_certificate(&self) -> Option<CertificateDer<'static>> {
        self.peer_chain().into_iter().next()
    }

    /// Every certificate that the peer presented, its own first. Empty if it presented none.
    pub fn peer_chain(&self) -> Vec<CertificateDer<'static>> {
        match &self.0 {
            AnyConnection::Quic { connection, .. } => quic::presented_chain(connection),
            AnyConnection::Tcp(connection) => connection.peer_chain(),
        }
    }

    /// The application protocol (ALPN) that both sides agreed on.
    pub fn protocol(&self) -> Option<Vec<u8>> {
        match &self.0 {
            AnyConnection::Quic { connection, .. } => quic::negotiated_protocol(connection),
            AnyConnection::Tcp(connection) => connection.protocol(),
        }
    }

    /// Whether the peer answers, and where it is; follow it for changes. Over TCP nothing ever changes: a connection that
    /// does not answer is given up by its own timeout.
    pub fn path_state(&self) -> watch::Receiver<PathState> {
        match &self.0 {
            AnyConnection::Quic { path_state, .. } => path_state.clone(),
            AnyConnection::Tcp(_) => watch::channel(PathState { remote: self.remote_address(), suspect_since: None }).1,
        }
    }

    /// Waits until the peer has not answered for `patience`. Never ends on a connection that is gone.
    pub async fn silent_for(&self, patience: Duration) {
        let mut state = self.path_state();
        loop {
            let suspect_since = state.borrow_and_update().suspect_since;
            let silent = async {
                match suspect_since {
                    Some(since) => sleep_until((since + patience).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = silent => return,
                changed = state.changed() => if changed.is_err() {
                    std::future::pending().await
                }
            }
        }
    }

    /// Waits until the peer answers.
    pub async fn answers(&self) {
        let mut state = self.path_state();
        if state.wait_for(|state| state.suspect_since.is_none()).await.is_err() {
            std::future::pending().await
        }
    }

    /// Has this end ask whether the peer is still there whenever it has sent nothing for `silence`, where that is less than
    /// [`QuicSettings::keep_alive`](super::QuicSettings::keep_alive). Over TCP the carrier's own keep-alive does.
    pub fn ask_after(&self, silence: Duration) {
        if let AnyConnection::Quic { keep_alive, .. } = &self.0 {
            keep_alive.set(silence);
        }
    }

    /// Says that so many streams are there for as long as the connection, and nobody waits for what comes on them: while there
    /// is no other, a peer that does not answer is asked less often. Default none.
    pub fn set_standing_streams(&self, count: usize) {
        if let AnyConnection::Quic { pulse, .. } = &self.0 {
            pulse.set_standing_streams(count);
        }
    }

    /// Says that somebody waits for the peer, as long as the guard is held: as if a stream were open. Over TCP nothing waits.
    pub fn wait_for_peer(&self) -> Option<impl Send + Sync + use<>> {
        match &self.0 {
            AnyConnection::Quic { pulse, .. } => Some(Work::begin(pulse)),
            AnyConnection::Tcp(_) => None,
        }
    }

    /// Sends a packet now, whatever is in flight: worth it when the network may have come back. TCP does by itself.
    pub fn probe(&self) {
        if let AnyConnection::Quic { connection, pulse, .. } = &self.0 {
            heartbeat::beat(connection, pulse);
        }
    }

    /// Moves a connection that was dialled here to a new socket, and probes: for when the address or route that leads to
    /// the peer has changed. Every stream goes on.
    ///
    /// # Errors
    ///
    /// When no socket is to be had; the connection stays as it was. A TCP connection cannot move.
    pub fn rebind(&self) -> io::Result<()> {
        match &self.0 {
            AnyConnection::Quic { connection, endpoint, .. } => endpoint.rebind(connection.remote_address())?,
            AnyConnection::Tcp(_) => return Err(io::ErrorKind::Unsupported.into()),
        }
        self.probe();
        Ok(())
    }

    /// What is known of the path now.
    pub fn path(&self) -> PathStats {
        match &self.0 {
            AnyConnection::Quic { connection, .. } => {
                let stats = connection.stats();
                PathStats {
                    round_trip: stats.path.rtt,
                    sent_packets: Some(stats.path.sent_packets),
                    lost_packets: Some(stats.path.lost_packets),
                    sent_bytes: stats.udp_tx.bytes,
                    received_bytes: stats.udp_rx.bytes,
                    congestion_window: Some(stats.path.cwnd),
                }
            }
            AnyConnection::Tcp(connection) => connection.path(),
        }
    }
}

pub(super) fn quic_halves(
    (send, recv): (quinn::SendStream, quinn::RecvStream),
    pulse: &Arc<Pulse>,
) -> (SendStream, RecvStream) {
    let send = AnySendStream::Quic { stream: send, _work: Work::begin(pulse) };
    let recv = AnyRecvStream::Quic { stream: GatheringStream::new(recv), _work: Work::begin(pulse) };
    (SendStream::new(send), RecvStream::new(recv))
}

fn tcp_halves((send, recv): (TcpSendStream, TcpRecvStream)) -> (SendStream, RecvStream) {
    (SendStream::new(AnySendStream::Tcp(send)), RecvStream::new(AnyRecvStream::Tcp(recv)))
}

/// The sending half of a stream. Dropped before [`SendStream::finish`] it is reset, so that the peer can never take
/// what it got for the whole (quinn by itself would finish it).
pub struct SendStream {
    stream: AnySendStream,
    ended: bool,
}

enum AnySendStream {
    Quic { stream: quinn::SendStream, _work: Work },
    Tcp(TcpSendStream),
}

impl SendStream {
    fn new(stream: AnySendStream) -> Self {
        Self { stream, ended: false }
    }

    /// Writes all of `chunks`, waiting for the peer's flow control. The chunks are taken, not copied.
    ///
    /// When the future is dropped some of the bytes may have been written.
    pub async fn write(&mut self, chunks: &mut [Bytes]) -> Result<(), StreamWriteError> {
        match &mut self.stream {
            AnySendStream::Quic { stream, .. } => stream.write_all_chunks(chunks).await.map_err(Into::into),
            AnySendStream::Tcp(stream) => stream.write(chunks).await,
        }
    }

    /// Ends the stream cleanly behind what was written.
    pub fn finish(&mut self) {
        self.ended = true;
        match &mut self.stream {
            AnySendStream::Quic { stream, .. } => {
                // Fails only for a stream that the peer has stopped: then there is nothing left to end.
                let _ = stream.finish();
            }
            AnySendStream::Tcp(stream) => stream.finish(),
        }
    }

    /// Breaks the stream off: what the peer has got is not whole.
    pub fn reset(&mut self, code: ErrorCode) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        match &mut self.stream {
            AnySendStream::Quic { stream, .. } => {
                // Fails only for a stream that the peer has stopped: then it knows.
                let _ = stream.reset(code.value().into());
            }
            AnySendStream::Tcp(stream) => stream.reset(code),
        }
    }

    /// Waits until the peer wants no more (its code), or has got everything up to the end (`None`; over TCP: until all of
    /// it is on its way).
    pub fn stopped(&self) -> impl Future<Output = Option<ErrorCode>> + Send + Sync + 'static {
        let stopped = match &self.stream {
            AnySendStream::Quic { stream, .. } => Ok(stream.stopped()),
            AnySendStream::Tcp(stream) => Err(tcp::stopped(stream.state())),
        };
        async move {
            match stopped {
                Ok(quic) => quic.await.map_or(Some(ErrorCode::Internal), |code| code.map(from_varint)),
                Err(tcp) => tcp.await,
            }
        }
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        self.reset(ErrorCode::Cancelled);
    }
}

impl fmt::Debug for SendStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = match &self.stream {
            AnySendStream::Quic { stream, .. } => Some(stream.id()),
            AnySendStream::Tcp(_) => None,
        };
        f.debug_struct("SendStream").field("quic_id", &id).field("ended", &self.ended).finish()
    }
}

/// The receiving half of a stream. Dropped before its end it tells the peer to stop.
pub struct RecvStream {
    stream: AnyRecvStream,
    ended: bool,
}

enum AnyRecvStream {
    Quic { stream: GatheringStream, _work: Work },
    Tcp(TcpRecvStream),
}

impl RecvStream {
    fn new(stream: AnyRecvStream) -> Self {
        Self { stream, ended: false }
    }

    /// The next piece in order; `None` at the clean end.
    pub fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamReadError>> {
        let read = match &mut self.stream {
            AnyRecvStream::Quic { stream, .. } => stream.poll_read(context),
            AnyRecvStream::Tcp(stream) => stream.poll_read(context, MAX_PIECE),
        };
        if matches!(read, Poll::Ready(Ok(None) | Err(_))) {
            self.ended = true;
        }
        read
    }

    /// Whether the peer opened the stream before the handshake was complete. What it says then may be a recording.
    pub fn is_early(&self) -> bool {
        match &self.stream {
            AnyRecvStream::Quic { stream, .. } => stream.is_early(),
            AnyRecvStream::Tcp(_) => false,
        }
    }

    /// Tells the peer that the rest is not wanted.
    pub fn stop(&mut self, code: ErrorCode) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        match &mut self.stream {
            AnyRecvStream::Quic { stream, .. } => stream.stop(code),
            AnyRecvStream::Tcp(stream) => stream.stop(code),
        }
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        self.stop(ErrorCode::Cancelled);
    }
}

impl fmt::Debug for RecvStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = match &self.stream {
            AnyRecvStream::Quic { stream, .. } => Some(stream.id()),
            AnyRecvStream::Tcp(_) => None,
        };
        f.debug_struct("RecvStream").field("quic_id", &id).field("ended", &self.ended).finish()
    }
}

fn from_varint(code: quinn::VarInt) -> ErrorCode {
    ErrorCode::from_value(code.into_inner())
}

impl From<quinn::ConnectionError> for ConnectionEnd {
    fn from(error: quinn::ConnectionError) -> Self {
        match error {
            quinn::ConnectionError::ApplicationClosed(close) => Self::ClosedByPeer {
                code: from_varint(close.error_code),
                reason: String::from_utf8_lossy(&close.reason).into_owned(),
            },
            quinn::ConnectionError::LocallyClosed => Self::ClosedHere,
            quinn::ConnectionError::TimedOut => Self::TimedOut,
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<quinn::ReadError> for StreamReadError {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::Reset(code) => Self::Reset(from_varint(code)),
            quinn::ReadError::ConnectionLost(error) => Self::ConnectionLost(error.into()),
            other => Self::ConnectionLost(ConnectionEnd::Failed(other.to_string())),
        }
    }
}

impl From<std::io::Error> for StreamReadError {
    fn from(error: std::io::Error) -> Self {
        match error.downcast::<quinn::ReadError>() {
            Ok(error) => error.into(),
            Err(other) => Self::ConnectionLost(ConnectionEnd::Failed(other.to_string())),
        }
    }
}

impl From<quinn::WriteError> for StreamWriteError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::Stopped(code) => Self::Stopped(from_varint(code)),
            quinn::WriteError::ConnectionLost(error) => Self::ConnectionLost(error.into()),
            other => Self::ConnectionLost(ConnectionEnd::Failed(other.to_string())),
        }
    }
}
