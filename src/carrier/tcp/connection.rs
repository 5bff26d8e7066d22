//! A connection over TCP and the task that drives it.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Interval, MissedTickBehavior, timeout};
use tokio_rustls::TlsStream;
use tokio_util::sync::CancellationToken;

use super::super::stream::{ConnectionEnd, PathStats};
use super::control::{CONNECTION_STREAM, ControlStream, Heard};
use super::pump::{Pump, PumpEnd};
use super::socket::{Socket, SocketTraffic};
use super::state::StreamState;
use super::stream::{TcpRecvStream, TcpSendStream};
use super::{MAX_INBOUND_DIALLING, MAX_INBOUND_LISTENING, TcpSettings, failed, yamux_config};
use crate::wire::limits::INITIAL_CREDIT;
use crate::wire::{ErrorCode, WireError};

/// A connection over TCP. Clones are handles to the same one; it is closed when the last handle and the last stream are
/// gone.
#[derive(Debug, Clone)]
pub struct TcpConnection(Arc<Handle>);

/// Who dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// This end.
    Dialling,
    /// The peer.
    Listening,
}

/// What keeps a connection open.
#[derive(Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    open: mpsc::Sender<oneshot::Sender<Arc<StreamState>>>,
    accepted: tokio::sync::Mutex<mpsc::Receiver<Arc<StreamState>>>,
    remote_address: SocketAddr,
    peer_chain: Vec<CertificateDer<'static>>,
    protocol: Option<Vec<u8>>,
}

/// What the handles and the connection's task share.
#[derive(Debug)]
struct Shared {
    /// Why this side closes the connection, once it does.
    closing: Mutex<Option<(ErrorCode, String)>>,
    close: Notify,
    end: watch::Sender<Option<ConnectionEnd>>,
    /// Cancelled when the socket is closed too.
    hung_up: CancellationToken,
    /// Whether the peer is known; before that it may send little.
    trusted: AtomicBool,
    /// Microseconds, smoothed; 0 before the first measurement.
    round_trip: AtomicU64,
    traffic: Arc<SocketTraffic>,
}

/// Requests to open a stream that wait for the connection's task.
const OPEN_QUEUE: usize = 64;

/// How long the last word may take to go out, and the peer to hang up after it.
const LAST_WORD_PATIENCE: Duration = Duration::from_secs(2);

impl TcpConnection {
    /// Starts to drive `tls`, whose handshake is complete.
    pub fn new(tls: TlsStream<TcpStream>, settings: &TcpSettings, side: Side) -> Result<Self, ConnectionEnd> {
        let (socket, session) = tls.get_ref();
        let remote_address = socket.peer_addr().map_err(|error| failed("the socket is gone", &error))?;
        let peer_chain = session.peer_certificates().unwrap_or_default();
        let peer_chain = peer_chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let protocol = session.alpn_protocol().map(<[u8]>::to_vec);
        let shared = Arc::new(Shared {
            closing: Mutex::new(None),
            close: Notify::new(),
            end: watch::Sender::new(None),
            hung_up: CancellationToken::new(),
            trusted: AtomicBool::new(side == Side::Dialling),
            round_trip: AtomicU64::new(0),
            traffic: Arc::default(),
        });
        let max_inbound = match side {
            Side::Dialling => MAX_INBOUND_DIALLING,
            Side::Listening => MAX_INBOUND_LISTENING,
        };
        let (open, open_requests) = mpsc::channel(OPEN_QUEUE);
        let (accepting, accepted) = mpsc::channel(max_inbound);
        let driver = Driver::new(tls, settings, side, shared.clone(), open_requests, accepting);
        tokio::spawn(driver.run());
        let accepted = tokio::sync::Mutex::new(accepted);
        Ok(Self(Arc::new(Handle { shared, open, accepted, remote_address, peer_chain, protocol })))
    }

    /// Opens a stream.
    pub async fn open(&self) -> Result<(TcpSendStream, TcpRecvStream), ConnectionEnd> {
        let (reply, opened) = oneshot::channel();
        self.0.open.send(reply).await.map_err(|_| self.end())?;
        Ok(self.halves(opened.await.map_err(|_| self.end())?))
    }

    /// The next stream that the peer opened.
    pub async fn accept(&self) -> Result<(TcpSendStream, TcpRecvStream), ConnectionEnd> {
        let state = self.0.accepted.lock().await.recv().await;
        Ok(self.halves(state.ok_or_else(|| self.end())?))
    }

    /// Closes the connection and with it every stream.
    pub fn close(&self, code: ErrorCode, reason: &str) {
        self.0.shared.close(code, reason);
    }

    /// Lets the peer open more than one stream, with the whole window each.
    pub fn trust(&self) {
        self.0.shared.trusted.store(true, Ordering::Relaxed);
    }

    /// Waits until the connection is no more, the last word has been said, and the socket is closed.
    pub async fn hung_up(&self) {
        self.0.shared.hung_up.cancelled().await;
    }

    /// Waits until the connection is no more.
    pub async fn closed(&self) -> ConnectionEnd {
        let mut end = self.0.shared.end.subscribe();
        // The sender lives as long as this handle.
        let _ = end.wait_for(Option::is_some).await;
        self.end()
    }

    /// The peer's address; a proxy's, if one is in between.
    pub fn remote_address(&self) -> SocketAddr {
        SocketAddr::new(self.0.remote_address.ip().to_canonical(), self.0.remote_address.port())
    }

    /// Every certificate that the peer presented, its own first.
    pub fn peer_chain(&self) -> Vec<CertificateDer<'static>> {
        self.0.peer_chain.clone()
    }

    /// The application protocol that both sides agreed on.
    pub fn protocol(&self) -> Option<Vec<u8>> {
        self.0.protocol.clone()
    }

    /// What is known of the path: TCP keeps what it loses to itself.
    pub fn path(&self) -> PathStats {
        let shared = &self.0.shared;
        PathStats {
            round_trip: Duration::from_micros(shared.round_trip.load(Ordering::Relaxed)),
            sent_packets: None,
            lost_packets: None,
            sent_bytes: shared.traffic.sent.load(Ordering::Relaxed),
            received_bytes: shared.traffic.received.load(Ordering::Relaxed),
            congestion_window: None,
        }
    }

    fn halves(&self, state: Arc<StreamState>) -> (TcpSendStream, TcpRecvStream) {
        (TcpSendStream::new(state.clone(), self.0.clone()), TcpRecvStream::new(state, self.0.clone()))
    }

    fn end(&self) -> ConnectionEnd {
        self.0.shared.end.borrow().clone().unwrap_or(ConnectionEnd::ClosedHere)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close(ErrorCode::NoError, "");
    }
}

impl Shared {
    fn close(&self, code: ErrorCode, reason: &str) {
        let mut closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        closing.get_or_insert_with(|| (code, reason.to_owned()));
        self.close.notify_one();
    }

    /// Waits until this side closes the connection.
    async fn closing(&self) -> (ErrorCode, String) {
        loop {
            if let Some(closing) = self.closing.lock().unwrap_or_else(PoisonError::into_inner).clone() {
                return closing;
            }
            self.close.notified().await;
        }
    }

    /// Takes a measurement of the round-trip time into account, as TCP does (RFC 6298, section 2).
    fn measured(&self, round_trip: Duration) {
        let sample = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX).max(1);
        let smoothed = match self.round_trip.load(Ordering::Relaxed) {
            0 => sample,
            before => before - before / 8 + sample / 8,
        };
        self.round_trip.store(smoothed, Ordering::Relaxed);
    }
}

/// The task of a connection: the one place that touches yamux.
struct Driver {
    yamux: yamux::Connection<Socket>,
    socket: Socket,
    side: Side,
    shared: Arc<Shared>,
    control: Option<ControlStream>,
    pumps: FuturesUnordered<Pump>,
    /// Streams of the peer among the pumps.
    inbound: usize,
    open_requests: mpsc::Receiver<oneshot::Sender<Arc<StreamState>>>,
    /// A request to open a stream that yamux has not granted yet.
    opening: Option<oneshot::Sender<Arc<StreamState>>>,
    accepting: mpsc::Sender<Arc<StreamState>>,
    keep_alive: Interval,
    idle_timeout: Duration,
    window: u64,
}

/// Why a connection is over, and what is to be said about it.
struct Over {
    end: ConnectionEnd,
    last_word: Option<(ErrorCode, String)>,
}

impl Driver {
    fn new(
        tls: TlsStream<TcpStream>,
        settings: &TcpSettings,
        side: Side,
        shared: Arc<Shared>,
        open_requests: mpsc::Receiver<oneshot::Sender<Arc<StreamState>>>,
        accepting: mpsc::Sender<Arc<StreamState>>,
    ) -> Self {
        let socket = Socket::new(tls, shared.traffic.clone());
        let mode = match side {
            Side::Dialling => yamux::Mode::Client,
            Side::Listening => yamux::Mode::Server,
        };
        // Often enough to notice the end of the idle timeout not long after it.
        let period = settings.keep_alive.min(settings.idle_timeout / 2).max(Duration::from_millis(1));
        let mut keep_alive = tokio::time::interval(period);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            yamux: yamux::Connection::new(socket.clone(), yamux_config(settings), mode),
            socket,
            side,
            shared,
            control: None,
            pumps: FuturesUnordered::new(),
            inbound: 0,
            open_requests,
            opening: None,
            accepting,
            keep_alive,
            idle_timeout: settings.idle_timeout,
            window: settings.stream_window.into(),
        }
    }

    async fn run(mut self) {
        let shared = self.shared.clone();
        let over = {
            let closing = pin!(shared.closing());
            tokio::select! {
                biased;
                closing = closing => Over { end: ConnectionEnd::ClosedHere, last_word: Some(closing) },
                over = std::future::poll_fn(|context| self.poll(context)) => over,
            }
        };
        self.shared.end.send_replace(Some(over.end.clone()));
        for pump in &self.pumps {
            pump.state.lose(&over.end);
        }
        // What has arrived is handed on all the same.
        std::future::poll_fn(|context| {
            while self.pumps.poll_next_unpin(context).map(|end| end.is_some()) == Poll::Ready(true) {}
            Poll::Ready(())
        })
        .await;
        self.hang_up(over.last_word).await;
        shared.hung_up.cancel();
    }

    /// Does whatever can be done now; ready when the connection is over.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Over> {
        let result = self.poll_all(context);
        match result {
            Ok(()) => match self.socket.poll_send(context) {
                Poll::Ready(Err(error)) => Poll::Ready(Over::broken(&error)),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            },
            Err(over) => Poll::Ready(over),
        }
    }

    fn poll_all(&mut self, context: &mut Context<'_>) -> Result<(), Over> {
        loop {
            let progress = self.poll_keep_alive(context)?
                | self.poll_control(context)?
                | self.poll_open(context)?
                | self.poll_pumps(context)?
                | self.poll_yamux(context)?;
            if !progress {
                return Ok(());
            }
        }
    }

    fn poll_keep_alive(&mut self, context: &mut Context<'_>) -> Result<bool, Over> {
        if self.keep_alive.poll_tick(context).is_pending() {
            return Ok(false);
        }
        if self.socket.received_at().elapsed() >= self.idle_timeout {
            return Err(Over { end: ConnectionEnd::TimedOut, last_word: None });
        }
        if let Some(control) = &mut self.control {
            control.ask();
        }
        Ok(true)
    }

    fn poll_control(&mut self, context: &mut Context<'_>) -> Result<bool, Over> {
        let Some(control) = &mut self.control else {
            return if self.side == Side::Dialling { self.poll_open_control(context) } else { Ok(false) };
        };
        match control.poll(context) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(Heard::RoundTrip(round_trip))) => {
                self.shared.measured(round_trip);
                Ok(true)
            }
            Poll::Ready(Ok(Heard::Close(code, reason))) => {
                Err(Over { end: ConnectionEnd::ClosedByPeer { code, reason }, last_word: None })
            }
            Poll::Ready(Ok(Heard::End)) => Err(Over::hung_up()),
            Poll::Ready(Err(error)) => Err(Over::refused(&error)),
        }
    }

    /// The connection stream comes before every other one, so that both ends know it by its number.
    fn poll_open_control(&mut self, context: &mut Context<'_>) -> Result<bool, Over> {
        match self.yamux.poll_new_outbound(context) {
            Poll::Ready(Ok(stream)) => {
                let mut control = ControlStream::new(stream);
                control.ask();
                self.control = Some(control);
                Ok(true)
            }
            Poll::Ready(Err(error)) => Err(Over::broken(&error)),
            Poll::Pending => Ok(false),
        }
    }

    fn poll_open(&mut self, context: &mut Context<'_>) -> Result<bool, Over> {
        if self.opening.is_none() {
            match self.open_requests.poll_recv(context) {
                Poll::Ready(Some(request)) => self.opening = Some(request),
                // The last handle is gone; that closes the connection by itself.
                Poll::Ready(None) | Poll::Pending => return Ok(false),
            }
        }
        let Some(reply) = self.opening.take_if(|reply| !reply.is_closed()) else {
            self.opening = None;
            return Ok(true);
        };
        match self.yamux.poll_new_outbound(context) {
            Poll::Ready(Ok(stream)) => {
                let pump = Pump::outbound(stream, self.window);
                let state = pump.state.clone();
                self.pumps.push(pump);
                if let Err(unwanted) = reply.send(state) {
                    unwanted.abandon();
                }
                Ok(true)
            }
            Poll::Ready(Err(error)) => Err(Over::broken(&error)),
            Poll::Pending => {
                self.opening = Some(reply);
                Ok(false)
            }
        }
    }

    fn poll_pumps(&mut self, context: &mut Context<'_>) -> Result<bool, Over> {
        match self.pumps.poll_next_unpin(context) {
            Poll::Ready(Some(PumpEnd { inbound, result })) => {
                self.inbound -= usize::from(inbound);
                result.map_err(|error| Over::refused(&error))?;
                Ok(true)
            }
            Poll::Ready(None) | Poll::Pending => Ok(false),
        }
    }

    fn poll_yamux(&mut self, context: &mut Context<'_>) -> Result<bool, Over> {
        match self.yamux.poll_next_inbound(context) {
            Poll::Ready(Some(Ok(stream))) => self.take_in(stream).map(|()| true),
            Poll::Ready(Some(Err(yamux::ConnectionError::Closed)) | None) => {
                // The reason may have come just before the end.
                while self.poll_control(context)? {}
                Err(Over::hung_up())
            }
            Poll::Ready(Some(Err(error))) if is_end(&error) => Err(Over::hung_up()),
            Poll::Ready(Some(Err(error))) => Err(Over::broken(&error)),
            Poll::Pending => Ok(false),
        }
    }

    /// A stream that the peer has opened.
    fn take_in(&mut self, stream: yamux::Stream) -> Result<(), Over> {
        if self.control.is_none() && self.side == Side::Listening && stream.id().val() == CONNECTION_STREAM {
            let mut control = ControlStream::new(stream);
            control.ask();
            self.control = Some(control);
            return Ok(());
        }
        // Strangers get by with one stream, and the credit that every stream begins with.
        let (limit, window) = match self.shared.trusted.load(Ordering::Relaxed) {
            true => (self.accepting.max_capacity(), self.window),
            false => (1, INITIAL_CREDIT),
        };
        let pump = Pump::inbound(stream, window);
        // The queue has room for as many as may be open; it is only fuller if the peer ends what nobody has accepted yet.
        if self.inbound >= limit || self.accepting.try_send(pump.state.clone()).is_err() {
            return Err(Over::refused(&WireError::TooMany { what: "the streams of one connection", limit }));
        }
        self.inbound += 1;
        self.pumps.push(pump);
        Ok(())
    }

    /// Says the last word and closes the socket so that it arrives: a socket that is closed with unread bytes in it
    /// throws away what it has sent (RFC 1122, section 4.2.2.13).
    async fn hang_up(mut self, last_word: Option<(ErrorCode, String)>) {
        let saying = async {
            if let (Some(control), Some((code, reason))) = (&mut self.control, last_word) {
                control.close(code, &reason);
                let queued = std::future::poll_fn(|context| match control.poll_write(context) {
                    // Room comes only while yamux is driven.
                    Poll::Pending => match self.yamux.poll_next_inbound(context) {
                        Poll::Ready(Some(Ok(_late))) => {
                            context.waker().wake_by_ref();
                            Poll::Pending
                        }
                        Poll::Ready(Some(Err(_)) | None) => Poll::Ready(Ok(())),
                        Poll::Pending => self.socket.poll_send(context).map(|_| Ok(())),
                    },
                    ready => ready,
                });
                let _ = queued.await;
            }
            let _ = std::future::poll_fn(|context| self.yamux.poll_close(context)).await;
            std::future::poll_fn(|context| self.socket.poll_drain(context)).await;
        };
        let _ = timeout(LAST_WORD_PATIENCE, saying).await;
    }
}

impl Over {
    fn hung_up() -> Self {
        Self { end: ConnectionEnd::Failed("the peer hung up without a word".to_owned()), last_word: None }
    }

    fn broken(error: &dyn std::fmt::Display) -> Self {
        Self { end: failed("the TCP connection broke", error), last_word: None }
    }

    fn refused(error: &WireError) -> Self {
        let last_word = Some((error.code(), error.to_string()));
        Self { end: failed("the peer broke the protocol", error), last_word }
    }
}

/// Whether the peer's end of the socket was closed without TLS's goodbye: its process has died.
fn is_end(error: &yamux::ConnectionError) -> bool {
    use yamux::{ConnectionError, FrameDecodeError};
    match error {
        ConnectionError::Io(error) | ConnectionError::Decode(FrameDecodeError::Io(error)) => {
            error.kind() == std::io::ErrorKind::UnexpectedEof
        }
        _ => false,
    }
}
