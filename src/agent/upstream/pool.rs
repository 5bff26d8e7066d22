//! Connections to the API server that are used again.
//!
//! hyper's own pooled client opens one HTTP/2 connection per host and lets requests wait for its streams, which is a
//! cliff at the server's limit (100 at a kube-apiserver). This pool opens another connection when all are full.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::uri::Authority;
use http::{HeaderValue, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::UpstreamError;
use super::body::{AnswerBody, RequestBody};
use super::connector::{Connector, Protocols, Spoken, UpstreamSocket};

/// Connections that speak the same protocols.
#[derive(Debug)]
pub struct Pool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    connector: Arc<Connector>,
    protocols: Protocols,
    /// HTTP/1.1 connections between two requests, the one used last at the end.
    idle: Mutex<VecDeque<Idle>>,
    /// HTTP/2 connections, in use or not.
    shared: Mutex<Vec<Arc<Shared>>>,
    /// Whether the server was seen to speak HTTP/2. Then requests that find every connection full wait for one dial
    /// instead of dialling each.
    multiplexes: AtomicBool,
    dialling: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
}

#[derive(Debug)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    in_flight: AtomicUsize,
    /// How many streams the server permits now.
    permitted: Arc<AtomicUsize>,
    /// When the last stream ended.
    idle_since: Mutex<Instant>,
}

/// How long an unused connection is kept. kube-apiserver closes idle ones after 90 s; closing first means that no
/// request meets a connection that is just being closed.
const KEEP_IDLE: Duration = Duration::from_secs(45);

/// HTTP/1.1 connections kept for the next request.
const MAX_IDLE: usize = 128;

/// Streams on one HTTP/2 connection, even if the server permits more.
const MAX_STREAMS: usize = 100;

/// What one stream may have in flight towards the agent, in bytes. The connection's window is that of all its streams
/// together, so that readers which have stopped reading take nothing from the others.
const STREAM_WINDOW: u32 = 256 * 1024;

impl Pool {
    /// An empty pool.
    pub fn new(connector: Arc<Connector>, protocols: Protocols) -> Self {
        Self {
            inner: Arc::new(Inner {
                connector,
                protocols,
                idle: Mutex::default(),
                shared: Mutex::default(),
                multiplexes: AtomicBool::new(false),
                dialling: tokio::sync::Mutex::default(),
            }),
        }
    }

    /// Sends a request on a connection that is free, or a new one.
    pub async fn send(&self, mut request: Request<RequestBody>) -> Result<Response<AnswerBody>, UpstreamError> {
        loop {
            let (connection, reused) = match self.free_connection().await {
                Some(connection) => (connection, true),
                None => self.inner.clone().dial().await?,
            };
            match connection.send(request, self.inner.connector.authority()).await {
                Ok((response, lease)) => return Ok(response.map(|body| AnswerBody::new(body, lease))),
                // An idle connection may have been closed a moment ago; a new one that is closed at once tells something.
                Err(Unsent { request: Some(returned), .. }) if reused => request = *returned,
                Err(Unsent { request: Some(_), .. }) => return Err(UpstreamError::NotSent),
                Err(Unsent { request: None, error }) => {
                    return Err(if was_refused(&error) { UpstreamError::NotSent } else { UpstreamError::Lost(error) });
                }
            }
        }
    }

    async fn free_connection(&self) -> Option<Connection> {
        if let Some(shared) = self.inner.reserve_shared() {
            return Some(Connection::Http2(shared));
        }
        while let Some(mut idle) = self.inner.take_idle() {
            if idle.sender.ready().await.is_ok() {
                return Some(Connection::Http1(idle.sender, self.inner.clone()));
            }
        }
        None
    }
}

impl Inner {
    /// A place for one request on a new connection, or on one that another request has just made, and whether it is the
    /// latter.
    async fn dial(self: Arc<Self>) -> Result<(Connection, bool), UpstreamError> {
        let _one_at_a_time = match self.multiplexes.load(Ordering::Relaxed) {
            true => Some(self.dialling.lock().await),
            false => None,
        };
        if let Some(shared) = self.reserve_shared() {
            return Ok((Connection::Http2(shared), true));
        }
        let (socket, spoken) = self.connector.dial(self.protocols).await?;
        self.multiplexes.store(spoken == Spoken::Http2, Ordering::Relaxed);
        match spoken {
            Spoken::Http1 => Ok((Connection::Http1(http1_connection(socket).await?, self.clone()), false)),
            Spoken::Http2 => {
                let shared = Arc::new(http2_connection(socket).await?);
                lock(&self.shared).push(shared.clone());
                Ok((Connection::Http2(Reserved(shared)), false))
            }
        }
    }

    /// A place on an HTTP/2 connection. Connections are filled in order, so that those at the end run empty and can go.
    fn reserve_shared(&self) -> Option<Reserved> {
        let mut connections = lock(&self.shared);
        connections.retain(|shared| !shared.sender.is_closed() && !shared.is_stale());
        let free = connections.iter().find(|shared| shared.reserve())?;
        Some(Reserved(free.clone()))
    }

    /// The connection that was used last, and so has the best chance to be open still.
    fn take_idle(&self) -> Option<Idle> {
        let mut idle = lock(&self.idle);
        let now = Instant::now();
        while idle.front().is_some_and(|oldest| now.duration_since(oldest.since) >= KEEP_IDLE) {
            idle.pop_front();
        }
        idle.pop_back()
    }

    fn put_idle(&self, sender: http1::SendRequest<RequestBody>) {
        let mut idle = lock(&self.idle);
        if idle.len() < MAX_IDLE && !sender.is_closed() {
            idle.push_back(Idle { sender, since: Instant::now() });
        }
    }
}

impl Shared {
    fn reserve(&self) -> bool {
        let permitted = self.permitted.load(Ordering::Relaxed).min(MAX_STREAMS);
        let reserve = |taken: usize| (taken < permitted).then_some(taken + 1);
        self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, reserve).is_ok()
    }

    fn is_stale(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0 && lock(&self.idle_since).elapsed() >= KEEP_IDLE
    }
}

/// A connection with a place for one request.
enum Connection {
    Http1(http1::SendRequest<RequestBody>, Arc<Inner>),
    Http2(Reserved),
}

/// A place on an HTTP/2 connection.
#[derive(Debug)]
struct Reserved(Arc<Shared>);

impl Drop for Reserved {
    fn drop(&mut self) {
        *lock(&self.0.idle_since) = Instant::now();
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What an answer holds of its connection until it ends.
#[derive(Debug)]
pub struct Lease(Held);

#[derive(Debug)]
enum Held {
    Http1(http1::SendRequest<RequestBody>, Arc<Inner>),
    Http2(#[expect(dead_code, reason = "held for its drop")] Reserved),
}

impl Lease {
    /// The answer ended cleanly: the connection can be used again. A lease that is dropped instead closes an HTTP/1.1
    /// connection, because what is left of the answer is still in it.
    pub fn give_back(self) {
        if let Held::Http1(sender, pool) = self.0 {
            pool.put_idle(sender);
        }
    }
}

/// Why a request got no answer, and the request if it was certainly not sent.
struct Unsent {
    error: hyper::Error,
    request: Option<Box<Request<RequestBody>>>,
}

impl From<TrySendError<Request<RequestBody>>> for Unsent {
    fn from(mut error: TrySendError<Request<RequestBody>>) -> Self {
        Self { request: error.take_message().map(Box::new), error: error.into_error() }
    }
}

impl Connection {
    async fn send(
        self,
        mut request: Request<RequestBody>,
        authority: &Authority,
    ) -> Result<(Response<Incoming>, Lease), Unsent> {
        match self {
            Self::Http1(mut sender, pool) => {
                make_origin_form(&mut request, authority);
                let response = sender.try_send_request(request).await?;
                Ok((response, Lease(Held::Http1(sender, pool))))
            }
            Self::Http2(reserved) => {
                let response = reserved.0.sender.clone().try_send_request(request).await?;
                Ok((response, Lease(Held::Http2(reserved))))
            }
        }
    }
}

/// HTTP/1.1 has the path in the request line and the host in a header (RFC 9112, section 3.2.1).
pub fn make_origin_form(request: &mut Request<RequestBody>, authority: &Authority) {
    if let Ok(host) = HeaderValue::try_from(authority.as_str()) {
        request.headers_mut().insert(http::header::HOST, host);
    }
    if let Some(target) = request.uri().path_and_query().cloned() {
        *request.uri_mut() = Uri::from(target);
    }
}

async fn http1_connection(socket: UpstreamSocket) -> Result<http1::SendRequest<RequestBody>, UpstreamError> {
    let (sender, connection) = http1::Builder::new()
        .title_case_headers(true)
        .handshake(TokioIo::new(socket))
        .await
        .map_err(UpstreamError::Lost)?;
    // Its errors reach whoever waits for an answer.
    tokio::spawn(connection);
    Ok(sender)
}

async fn http2_connection(socket: UpstreamSocket) -> Result<Shared, UpstreamError> {
    let (sender, mut connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW * MAX_STREAMS as u32)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(15))
        .handshake(TokioIo::new(socket))
        .await
        .map_err(UpstreamError::Lost)?;
    let permitted = Arc::new(AtomicUsize::new(connection.current_max_send_streams()));
    let noted = permitted.clone();
    tokio::spawn(std::future::poll_fn(move |context| {
        let end = std::pin::Pin::new(&mut connection).poll(context);
        noted.store(connection.current_max_send_streams(), Ordering::Relaxed);
        end
    }));
    let idle_since = Mutex::new(Instant::now());
    Ok(Shared { sender, in_flight: AtomicUsize::new(1), permitted, idle_since })
}

/// Whether the server said that it has not looked at the request: REFUSED_STREAM, or GOAWAY before it (RFC 9113,
/// section 8.7). A GOAWAY of our own says nothing of the kind.
fn was_refused(error: &hyper::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM));
        }
        source = error.source();
    }
    false
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks half way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
