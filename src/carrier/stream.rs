//! Connections and streams as the rest of the program sees them.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::time::sleep_until;
use tokio_util::io::poll_read_buf;
use tokio_util::task::AbortOnDropHandle;

use super::congestion::Pulse;
use super::heartbeat::{self, PathState};
use super::quic::QuicEndpoint;
use crate::wire::ErrorCode;

/// One connection between a stub and an agent. Clones are handles to the same connection.
#[derive(Debug, Clone)]
pub struct Connection {
    connection: quinn::Connection,
    /// Held so that the socket lives as long as the connection that was dialled on it.
    endpoint: QuicEndpoint,
    pulse: Arc<Pulse>,
    path_state: watch::Receiver<PathState>,
    /// The heartbeat must not outlive the handles: it holds one of quinn's, which would keep the connection open.
    _heartbeat: Arc<AbortOnDropHandle<()>>,
}

/// What is known of the path to the peer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PathStats {
    /// The smoothed round-trip time.
    pub round_trip: Duration,
    /// Packets sent since the connection began.
    pub sent_packets: u64,
    /// Packets declared lost since the connection began.
    pub lost_packets: u64,
    /// Bytes of UDP payload sent.
    pub sent_bytes: u64,
    /// Bytes of UDP payload received.
    pub received_bytes: u64,
    /// The congestion window in bytes.
    pub congestion_window: u64,
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
        let heartbeat = tokio::spawn(heartbeat::watch_over(connection.clone(), pulse.clone(), publish));
        let heartbeat = Arc::new(AbortOnDropHandle::new(heartbeat));
        Self { connection, endpoint, pulse, path_state, _heartbeat: heartbeat }
    }

    /// Opens a bidirectional stream; waits while the peer permits no more of them.
    ///
    /// The peer learns of the stream with its first byte.
    pub async fn open(&self) -> Result<(SendStream, RecvStream), ConnectionEnd> {
        let (send, recv) = self.connection.open_bi().await?;
        Ok((SendStream::new(send), RecvStream::new(recv)))
    }

    /// The next bidirectional stream that the peer opened.
    pub async fn accept(&self) -> Result<(SendStream, RecvStream), ConnectionEnd> {
        let (send, recv) = self.connection.accept_bi().await?;
        Ok((SendStream::new(send), RecvStream::new(recv)))
    }

    /// Lets the peer send as much as the windows of its streams allow. A connection that was accepted takes little before.
    pub fn trust(&self) {
        self.connection.set_receive_window(quinn::VarInt::MAX);
    }

    /// How many streams of the peer may be open at once. quinn sets memory aside for each.
    pub fn permit_streams(&self, count: u32) {
        self.connection.set_max_concurrent_bi_streams(count.into());
    }

    /// Closes the connection and with it every stream. Does nothing when it is closed already.
    pub fn close(&self, code: ErrorCode, reason: &str) {
        self.connection.close(code.value().into(), reason.as_bytes());
    }

    /// Closes a connection that this end has dialled, and waits until the peer has had the time to hear of it (RFC 9000,
    /// section 10.2), but no longer than `patience`. A process that ends right after [`close`](Self::close) may do so before
    /// the packet has left, and the peer waits for the idle timeout.
    pub async fn close_and_drain(&self, code: ErrorCode, reason: &str, patience: Duration) {
        self.close(code, reason);
        let _ = tokio::time::timeout(patience, self.endpoint.wait_idle()).await;
    }

    /// Waits until the connection is no more.
    pub async fn closed(&self) -> ConnectionEnd {
        self.connection.closed().await.into()
    }

    /// The peer's address as it is now; it changes when the connection migrates.
    pub fn remote_address(&self) -> SocketAddr {
        let address = self.connection.remote_address();
        // A socket for both families shows IPv4 peers as IPv6 ones.
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }

    /// The certificate the peer presented and TLS verified, if it presented one.
    pub fn peer_certificate(&self) -> Option<CertificateDer<'static>> {
        self.peer_chain().into_iter().next()
    }

    /// Every certificate that the peer presented, its own first. Empty if it presented none.
    pub fn peer_chain(&self) -> Vec<CertificateDer<'static>> {
        let identity = self.connection.peer_identity();
        let chain = identity.and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
        chain.map(|chain| *chain).unwrap_or_default()
    }

    /// The application protocol (ALPN) that both sides agreed on.
    pub fn protocol(&self) -> Option<Vec<u8>> {
        let data = self.connection.handshake_data()?;
        data.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?.protocol
    }

    /// Whether the peer answers, and where it is; follow it for changes.
    pub fn path_state(&self) -> watch::Receiver<PathState> {
        self.path_state.clone()
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

    /// Sends a packet now, whatever is in flight: worth it when the network may have come back.
    pub fn probe(&self) {
        heartbeat::beat(&self.connection, &self.pulse);
    }

    /// Moves a connection that was dialled here to a new socket, and probes: for when the address or route that leads to
    /// the peer has changed. Every stream goes on.
    ///
    /// # Errors
    ///
    /// When no socket is to be had; the connection stays as it was.
    pub fn rebind(&self) -> io::Result<()> {
        self.endpoint.rebind(self.connection.remote_address())?;
        self.probe();
        Ok(())
    }

    /// What is known of the path now.
    pub fn path(&self) -> PathStats {
        let stats = self.connection.stats();
        PathStats {
            round_trip: stats.path.rtt,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            congestion_window: stats.path.cwnd,
        }
    }
}

/// The sending half of a stream. Dropped before [`SendStream::finish`] it is reset, so that the peer can never take
/// what it got for the whole (quinn by itself would finish it).
pub struct SendStream {
    stream: quinn::SendStream,
    ended: bool,
}

impl SendStream {
    fn new(stream: quinn::SendStream) -> Self {
        Self { stream, ended: false }
    }

    /// Writes all of `chunks`, waiting for the peer's flow control. The chunks are taken, not copied.
    ///
    /// When the future is dropped some of the bytes may have been written.
    pub async fn write(&mut self, chunks: &mut [Bytes]) -> Result<(), StreamWriteError> {
        self.stream.write_all_chunks(chunks).await.map_err(Into::into)
    }

    /// Ends the stream cleanly behind what was written.
    pub fn finish(&mut self) {
        self.ended = true;
        // Fails only for a stream that the peer has stopped: then there is nothing left to end.
        let _ = self.stream.finish();
    }

    /// Breaks the stream off: what the peer has got is not whole.
    pub fn reset(&mut self, code: ErrorCode) {
        if !std::mem::replace(&mut self.ended, true) {
            // Fails only for a stream that the peer has stopped: then it knows.
            let _ = self.stream.reset(code.value().into());
        }
    }

    /// Waits until the peer wants no more (its code), or has got everything up to the end (`None`).
    pub fn stopped(&self) -> impl Future<Output = Option<ErrorCode>> + Send + Sync + 'static {
        let stopped = self.stream.stopped();
        async move {
            match stopped.await {
                Ok(code) => code.map(from_varint),
                Err(_) => Some(ErrorCode::Internal),
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
        f.debug_struct("SendStream").field("id", &self.stream.id()).field("ended", &self.ended).finish()
    }
}

/// The receiving half of a stream. Dropped before its end it tells the peer to stop.
pub struct RecvStream {
    stream: quinn::RecvStream,
    ended: bool,
    /// How many bytes to gather into one piece, as the stream has shown to be worth it.
    batch: usize,
    /// An error that was met behind a piece that had to be given out first.
    failed: Option<StreamReadError>,
}

impl RecvStream {
    /// The most bytes taken at once: enough to keep the cost of each piece small, little enough that streams take turns.
    const MAX_PIECE: usize = 64 * 1024;

    /// Where gathering begins.
    const MIN_PIECE: usize = 8 * 1024;

    /// A piece shorter than this is not a full packet's: there is nothing behind it to gather.
    const FULL_PACKET: usize = 1000;

    fn new(stream: quinn::RecvStream) -> Self {
        Self { stream, ended: false, batch: Self::MIN_PIECE, failed: None }
    }

    /// The next piece in order; `None` at the clean end.
    ///
    /// quinn hands out what one packet carried at a time. Behind a full one there is mostly more: gathering that here is
    /// cheaper than to carry each packet's part through the layers above by itself.
    pub fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamReadError>> {
        if let Some(error) = self.failed.take() {
            self.ended = true;
            return Poll::Ready(Err(error));
        }
        // The future keeps nothing between polls, so one may be made for each.
        let read = pin!(self.stream.read_chunk(Self::MAX_PIECE, true)).poll(context);
        read.map(|result| match result {
            Ok(Some(chunk)) if chunk.bytes.len() < Self::FULL_PACKET => Ok(Some(chunk.bytes)),
            Ok(Some(chunk)) => Ok(Some(self.gather(&chunk.bytes, context))),
            Ok(None) => {
                self.ended = true;
                Ok(None)
            }
            Err(error) => {
                self.ended = true;
                Err(error.into())
            }
        })
    }

    /// `first` and whatever else is there already.
    fn gather(&mut self, first: &[u8], context: &mut Context<'_>) -> Bytes {
        let mut batch = BytesMut::with_capacity(self.batch.max(first.len()));
        batch.extend_from_slice(first);
        while batch.len() < self.batch {
            match poll_read_buf(Pin::new(&mut self.stream), context, &mut batch) {
                // The end is met again by the next read.
                Poll::Ready(Ok(0)) | Poll::Pending => break,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => {
                    self.failed = Some(error.into());
                    break;
                }
            }
        }
        let worth_more = batch.len() >= self.batch;
        let next = if worth_more { self.batch * 2 } else { self.batch / 2 };
        self.batch = next.clamp(Self::MIN_PIECE, Self::MAX_PIECE);
        batch.freeze()
    }

    /// Tells the peer that the rest is not wanted.
    pub fn stop(&mut self, code: ErrorCode) {
        if !std::mem::replace(&mut self.ended, true) {
            // Fails only for a stream that has ended by itself.
            let _ = self.stream.stop(code.value().into());
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
        f.debug_struct("RecvStream").field("id", &self.stream.id()).field("ended", &self.ended).finish()
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
