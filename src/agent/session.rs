//! One connection to a stub, from hello to its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::dial::{DialError, Dialled};
use super::request;
use super::shared::Shared;
use super::target::Target;
use super::upstream::Health;
use crate::carrier::{
    Connection, ConnectionEnd, FrameReceiver, FrameSender, ReceiveError, RecvStream, SendError, SendStream,
    StreamReadError,
};
use crate::pki::{AgentCredentials, AgentKey, AgentState};
use crate::wire::{
    Certificate, Drain, ErrorCode, Frame, FrameReader, Hello, Refused, Renew, Report, StreamKind, Welcome, WireError,
};

/// What one session needs to know.
#[derive(Debug)]
pub struct Session {
    /// What requests share.
    pub shared: Arc<Shared>,
    /// Where the agent's credentials are kept.
    pub state: Arc<AgentState>,
    /// The credentials the connection was made with.
    pub credentials: Arc<AgentCredentials>,
    /// The beginning of the control stream: what the agent says of itself ([`greeting`]).
    pub greeting: Bytes,
    /// How the API server is.
    pub health: watch::Receiver<Health>,
    /// When it is time to stop.
    pub shutdown: CancellationToken,
    /// When a better connection has taken this one's place: no more requests come here, and those that are here end when
    /// they end.
    pub replaced: CancellationToken,
    /// Cancelled when the stub says that it is about to stop.
    pub told_to_leave: CancellationToken,
    /// How long requests may take to end at a stop.
    pub drain_timeout: Duration,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionEnd {
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopped,
    /// A better connection has taken the place of this one, and the last request here has ended.
    #[error("another connection has taken its place")]
    Replaced,
    /// Another link of this agent is connected to the same stub, at the target that is given.
    #[error("the same stub is connected as {0} already")]
    SameStub(Target),
    /// There was no connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection is gone.
    #[error("the connection ended: {0}")]
    Connection(#[from] ConnectionEnd),
    /// The stub did not say welcome in time.
    #[error("the stub did not answer within {} s", HELLO_TIMEOUT.as_secs())]
    Silent,
    /// The stub answers, but not on this connection.
    #[error("the stub has lost the connection")]
    Abandoned,
    /// A refusal in the stub's words.
    #[error("the stub refused this agent: {0}")]
    Refused(String),
    /// The control stream broke.
    #[error("the control stream: {0}")]
    Receive(#[from] ReceiveError),
    /// The control stream broke.
    #[error("the control stream: {0}")]
    Send(#[from] SendError),
    /// The control stream ended.
    #[error("the stub ended the control stream")]
    ControlStreamEnded,
}

impl SessionEnd {
    /// The code with which the stub closed the connection, if it did.
    pub fn closed_by_stub(&self) -> Option<ErrorCode> {
        let end = match self {
            Self::Connection(end) | Self::Dial(DialError::Connection(end)) => end,
            Self::Receive(ReceiveError::Stream(StreamReadError::ConnectionLost(end))) => end,
            _ => return None,
        };
        match end {
            ConnectionEnd::ClosedByPeer { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// How long the stub may take to say welcome.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Beyond two round trips, how long requests may be on their way when the agent says that it takes no more.
const DRAIN_GRACE: Duration = Duration::from_millis(100);

/// How long the stub may take to hear that the connection is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest time until the agent looks again whether its certificate is due for renewal. It looks again instead of
/// sleeping until then, because the clock may be set meanwhile.
const LONGEST_RENEWAL_CHECK: Duration = Duration::from_secs(60);

/// The shortest such time, in which a refused or lost renewal is tried again.
const SHORTEST_RENEWAL_CHECK: Duration = Duration::from_secs(1);

/// Why an agent leaves a connection by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    Stopping,
    Replaced,
}

impl Leaving {
    fn reason(self) -> &'static str {
        match self {
            Self::Stopping => "the agent is stopping",
            Self::Replaced => "the agent has moved to another connection",
        }
    }
}

/// The kind of the control stream and the agent's hello. Repeated, they say the same of the same agent, so they may be early
/// data.
///
/// # Errors
///
/// When the hello goes past a bound of the protocol.
pub fn greeting(hello: Hello) -> Result<Bytes, WireError> {
    let mut bytes = BytesMut::new();
    StreamKind::Control.encode(&mut bytes);
    Frame::Hello(hello).encode(&mut bytes)?;
    Ok(bytes.freeze())
}

impl Session {
    /// Runs the session on a fresh connection. `welcomed` is called when the stub has accepted the agent, and may end it.
    pub async fn run(
        mut self,
        dialled: Dialled,
        welcomed: impl FnOnce(&Welcome) -> Result<(), SessionEnd>,
    ) -> SessionEnd {
        let Dialled { connection, said } = dialled;
        match self.serve(&connection, said, welcomed).await {
            Ok(leaving) => {
                connection.close_and_drain(ErrorCode::NoError, leaving.reason(), CLOSE_TIMEOUT).await;
                match leaving {
                    Leaving::Stopping => SessionEnd::Stopped,
                    Leaving::Replaced => SessionEnd::Replaced,
                }
            }
            Err(end) => {
                let code = match &end {
                    SessionEnd::Receive(ReceiveError::Frame(error)) => error.code(),
                    _ => ErrorCode::NoError,
                };
                connection.close(code, &end.to_string());
                end
            }
        }
    }

    /// Ends well only when the agent leaves by itself.
    async fn serve(
        &mut self,
        connection: &Connection,
        said: Option<(SendStream, RecvStream)>,
        welcomed: impl FnOnce(&Welcome) -> Result<(), SessionEnd>,
    ) -> Result<Leaving, SessionEnd> {
        let (send, recv) = match said {
            Some(stream) => stream,
            None => {
                let (mut send, recv) = connection.open().await?;
                send.write(&mut [self.greeting.clone()]).await.map_err(SendError::from)?;
                (send, recv)
            }
        };
        let mut sender = FrameSender::new(send);
        let mut receiver = FrameReceiver::new(recv, FrameReader::for_opened_control());
        let welcome = match timeout(HELLO_TIMEOUT, receiver.next_frame()).await.map_err(|_| SessionEnd::Silent)?? {
            Some(Frame::Welcome(welcome)) => welcome,
            Some(Frame::Refused(refused)) => return Err(SessionEnd::Refused(refused.reason)),
            _ => return Err(SessionEnd::ControlStreamEnded),
        };
        welcomed(&welcome)?;
        // The control stream.
        connection.set_standing_streams(1);
        let streams = RequestStreams::new(connection.clone(), self.shared.clone());
        let accepting = streams.accept();
        let talking = self.talk(&mut sender, &mut receiver, &streams, welcome.report_interval);
        let leaving = tokio::select! {
            end = accepting => return Err(end.into()),
            leaving = talking => leaving?,
        };
        self.drain(leaving, &mut sender, &streams).await?;
        Ok(leaving)
    }

    /// The control stream, until it is time to stop.
    async fn talk(
        &mut self,
        sender: &mut FrameSender,
        receiver: &mut FrameReceiver,
        streams: &RequestStreams,
        mut report_interval: Duration,
    ) -> Result<Leaving, SessionEnd> {
        let mut report_at = Instant::now();
        let mut renewal = Renewal::of(&self.credentials);
        let mut reported = None;
        let mut renewal_at = Instant::now();
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return Ok(Leaving::Stopping),
                () = self.replaced.cancelled() => return Ok(Leaving::Replaced),
                () = tokio::time::sleep_until(report_at) => {}
                () = changed(&mut self.health, &reported) => {}
                () = tokio::time::sleep_until(renewal_at) => {
                    renewal_at = Instant::now() + renewal.next_check(SystemTime::now());
                    if let Some(renew) = renewal.request_if_due(SystemTime::now()) {
                        sender.send(&Frame::Renew(renew)).await?;
                    }
                    continue;
                }
                frame = receiver.next_frame() => {
                    match frame? {
                        Some(Frame::Certificate(certificate)) => {
                            renewal.complete(certificate, &self.state);
                            renewal_at = Instant::now() + renewal.next_check(SystemTime::now());
                        }
                        Some(Frame::Refused(refused)) => renewal.refused(&refused),
                        Some(Frame::Drain(drain)) => {
                            tracing::info!("the stub is about to stop: {}", drain.reason);
                            self.told_to_leave.cancel();
                        }
                        Some(Frame::Pace(pace)) => {
                            report_interval = pace.report_interval;
                            report_at = Instant::now() + report_interval;
                        }
                        Some(_) => {}
                        None => return Err(SessionEnd::ControlStreamEnded),
                    }
                    continue;
                }
            }
            report_at = Instant::now() + report_interval;
            let report = report(&self.health.borrow_and_update(), streams.open());
            reported = Some((report.upstream_error.clone(), report.api_server.clone()));
            sender.send(&Frame::Report(report)).await?;
        }
    }

    /// Takes no more requests, and lets those that are there end: within the drain timeout at a stop, and in their own time
    /// otherwise.
    async fn drain(
        &self,
        leaving: Leaving,
        sender: &mut FrameSender,
        streams: &RequestStreams,
    ) -> Result<(), SessionEnd> {
        sender.send(&Frame::Drain(Drain { reason: leaving.reason().to_owned() })).await?;
        streams.tasks.close();
        // The stub hears of it only after half a round trip; what it has sent until then is still taken.
        let on_their_way = streams.connection.path().round_trip * 2 + DRAIN_GRACE;
        let ending = async {
            tokio::time::sleep(on_their_way.min(self.drain_timeout)).await;
            streams.tasks.wait().await;
        };
        let limit = async {
            self.shutdown.cancelled().await;
            tokio::time::sleep(self.drain_timeout).await;
        };
        tokio::select! {
            end = streams.accept() => return Err(end.into()),
            () = ending => {}
            () = limit => {
                tracing::warn!(requests = streams.open(), "some requests did not end in time and are cut off");
            }
        }
        Ok(())
    }
}

/// Waits until the API server is worse, better or another than the last report said. Its latency alone is no news.
async fn changed(health: &mut watch::Receiver<Health>, reported: &Option<(String, Option<Arc<str>>)>) {
    let news = |health: &Health| match reported {
        Some((error, uid)) => health.error.as_deref().unwrap_or_default() != error || health.uid != *uid,
        None => true,
    };
    if health.wait_for(news).await.is_err() {
        std::future::pending().await
    }
}

fn report(health: &Health, open_streams: usize) -> Report {
    Report {
        open_streams: open_streams as u64,
        upstream_healthy: health.error.is_none(),
        upstream_latency: health.latency,
        upstream_error: health.error.clone().unwrap_or_default(),
        api_server: health.uid.clone(),
    }
}

/// The request streams of a connection.
struct RequestStreams {
    connection: Connection,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    permitted: AtomicUsize,
}

/// Streams that the stub may have open at first; quinn sets memory aside for each.
const FIRST_PERMITS: usize = 256;

/// Streams that the stub may ever have open.
const MAX_PERMITS: usize = 65_536;

impl RequestStreams {
    fn new(connection: Connection, shared: Arc<Shared>) -> Self {
        Self { connection, shared, tasks: TaskTracker::new(), permitted: AtomicUsize::new(FIRST_PERMITS) }
    }

    /// Serves every request stream in a task of its own, until the connection ends.
    async fn accept(&self) -> ConnectionEnd {
        loop {
            match self.connection.accept().await {
                Ok((send, recv)) => {
                    let (shared, connection) = (self.shared.clone(), self.connection.clone());
                    // In a box: a task is handed on several times before it runs, and this one is large.
                    let serving = Box::pin(request::serve(shared, send, recv));
                    self.tasks.spawn(async move {
                        if let Err(violation) = serving.await {
                            connection.close(violation.code(), &violation.to_string());
                        }
                    });
                    self.permit_more();
                }
                Err(end) => return end,
            }
        }
    }

    fn open(&self) -> usize {
        self.tasks.len()
    }

    /// Doubles what the stub may open when half of it is, so that it never waits for a permit.
    fn permit_more(&self) {
        let permitted = self.permitted.load(Ordering::Relaxed);
        if self.open() * 2 > permitted && permitted < MAX_PERMITS {
            let more = (permitted * 2).min(MAX_PERMITS);
            self.permitted.store(more, Ordering::Relaxed);
            self.connection.permit_streams(more as u32);
        }
    }
}

/// The renewal of the agent's certificate, again and again as long as the connection lives.
#[derive(Debug)]
struct Renewal<'a> {
    /// The credentials of the connection.
    credentials: &'a AgentCredentials,
    /// The latest ones; the next connection uses them.
    renewed: Option<AgentCredentials>,
    /// The key of a request that has not been answered yet.
    requested: Option<AgentKey>,
}

impl<'a> Renewal<'a> {
    fn of(credentials: &'a AgentCredentials) -> Self {
        Self { credentials, renewed: None, requested: None }
    }

    fn latest(&self) -> &AgentCredentials {
        self.renewed.as_ref().unwrap_or(self.credentials)
    }

    /// Soon enough to try several times before the certificate expires, however short its life.
    fn next_check(&self, now: SystemTime) -> Duration {
        let left = self.latest().not_after().duration_since(now).unwrap_or_default();
        (left / 4).clamp(SHORTEST_RENEWAL_CHECK, LONGEST_RENEWAL_CHECK)
    }

    fn request_if_due(&mut self, now: SystemTime) -> Option<Renew> {
        if self.requested.is_some() || !self.latest().renew_due(now) {
            return None;
        }
        let request = AgentKey::generate().and_then(|key| Ok((key.signing_request()?, key)));
        match request {
            Ok((request, key)) => {
                self.requested = Some(key);
                Some(Renew { request: request.to_vec().into() })
            }
            Err(error) => {
                tracing::error!("cannot ask for a new certificate: {error}");
                None
            }
        }
    }

    fn refused(&mut self, refused: &Refused) {
        self.requested = None;
        tracing::warn!("the stub refused to renew the certificate: {}", refused.reason);
    }

    /// Stores the new certificate. The stub lets the connection live on for as long as that is valid.
    fn complete(&mut self, certificate: Certificate, state: &AgentState) {
        let Some(key) = self.requested.take() else { return };
        let chain = certificate.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        match state.store(&key, chain, self.credentials.server_authority().clone()) {
            Ok(renewed) => {
                let valid_until = jiff::Timestamp::try_from(renewed.not_after()).unwrap_or(jiff::Timestamp::MAX);
                tracing::info!(%valid_until, "the agent's certificate has been renewed");
                self.renewed = Some(renewed);
            }
            Err(error) => tracing::error!("the renewed certificate cannot be stored: {error}"),
        }
    }
}
