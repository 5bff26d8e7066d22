//! Where agents come in: connections over either carrier, what is said on their control streams, and what becomes of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use super::cluster::HOLDS_FOR;
use super::config::{is_worth_asking_for, keep_alive_for};
use super::enrollment::EnrollmentError;
use super::front::http3;
use super::limits::{Admission, Stranger};
use super::registry::AgentLink;
use super::sessions::ConnectionSessions;
use super::shared::Shared;
use crate::carrier::{
    Connection, ConnectionEnd, FrameReceiver, FrameSender, Handshake, IncomingConnection, PathState, QuicListener,
    ReceiveError, SendError, accepted_over_tcp,
};
use crate::pki::{ALPN_HTTP3, AgentIdentity, PeerRole, Validity};
use crate::wire::{
    ALPN_ENROLLMENT, ALPN_ENROLLMENT_TCP, ALPN_TUNNEL, ALPN_TUNNEL_TCP, Carrier, Certificate, Drain, ErrorCode, Frame,
    FrameReader, Hello, Pace, Refused, Renew, Welcome, WireError,
};

/// Why an agent has to go elsewhere.
const SHUTTING_DOWN: &str = "the stub is shutting down";

/// Accepts agents, and clients that speak HTTP/3. A stub that takes no more requests refuses them at once, so that they try
/// another one.
pub async fn run(shared: Arc<Shared>, listener: &QuicListener) {
    while let Some(incoming) = listener.accept().await {
        if shared.drain.is_closing() {
            incoming.refuse();
            continue;
        }
        let Some(attempt) = attempt(&shared, incoming) else { continue };
        let shared = shared.clone();
        tokio::spawn(async move {
            let address = attempt.incoming.remote_address();
            if let Err(refusal) = accept(&shared, attempt).await {
                refusal.log(address);
            }
        });
    }
}

/// Closes every agent's connection, and waits a moment so that they hear of it.
pub async fn hang_up(shared: &Shared, listener: &QuicListener) {
    const PATIENCE: Duration = Duration::from_secs(1);
    // The listener knows the connections over QUIC alone.
    let links = shared.registry.all().into_iter().filter(|link| link.connection.carrier() == Carrier::Tcp);
    let hanging_up = links.map(|link| async move {
        link.connection.close_and_drain(ErrorCode::NoError, SHUTTING_DOWN, PATIENCE).await;
    });
    tokio::join!(join_all(hanging_up), listener.close(SHUTTING_DOWN, PATIENCE));
}

/// Serves a connection of the TCP port that speaks for an agent, to its end.
pub async fn serve_over_tcp(
    shared: &Shared,
    socket: TlsStream<TcpStream>,
    sessions: Arc<ConnectionSessions>,
    stranger: Stranger,
    address: SocketAddr,
) {
    let patience = shared.live().limits.handshake();
    let chain = socket.get_ref().1.peer_certificates().unwrap_or_default();
    let vouched_for = shared.peers.verify(PeerRole::Agent, chain);
    let result = match accepted_over_tcp(socket, &shared.config.agents.tcp()) {
        Ok(connection) => {
            let stranger = Some(stranger);
            let mut newcomer = Newcomer { connection: &connection, handshake: Handshake::done(), sessions, stranger };
            match vouched_for {
                Ok(()) => identified(shared, newcomer).await,
                Err(error) => newcomer.refuse(Refusal::NotVouchedFor(error), patience).await,
            }
        }
        Err(end) => Err(Refusal::from(end)),
    };
    if let Err(refusal) = result {
        refusal.log(address);
    }
}

/// A connection of which it is known by whom it is, if the peer has a certificate.
struct Newcomer<'a> {
    connection: &'a Connection,
    /// What is left of it when a session was resumed.
    handshake: Handshake,
    sessions: Arc<ConnectionSessions>,
    /// Nothing once it is known who it is.
    stranger: Option<Stranger>,
}

impl Newcomer<'_> {
    /// Closes the connection with the reason.
    async fn refuse(&mut self, refusal: Refusal, patience: Duration) -> Result<(), Refusal> {
        self.close(refusal.code(), &refusal.peer_message(), patience).await;
        Err(refusal)
    }

    /// Closes the connection. Before the end of the handshake the peer would not be told why (RFC 9000, section 10.2.3).
    async fn close(&mut self, code: ErrorCode, reason: &str, patience: Duration) {
        let _ = complete(&mut self.handshake, patience).await;
        self.connection.close(code, reason);
    }
}

/// Why a connection did not become an agent's.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the connection failed: {0}")]
    Handshake(#[from] ConnectionEnd),
    #[error("the peer was silent for too long")]
    Silent,
    #[error("no certificate was presented; an agent without one has to enrol with a join token")]
    NoCertificate,
    #[error("the agents' authority does not vouch for the certificate: {0}")]
    NotVouchedFor(rustls::Error),
    #[error("the certificate is not an agent's: {0}")]
    Certificate(#[from] crate::pki::CertificateError),
    #[error("the certificate of {0} has expired")]
    Expired(AgentIdentity),
    #[error("{0} has been revoked")]
    Revoked(AgentIdentity),
    #[error("{identity} says that it serves cluster \"{claimed}\"")]
    OtherCluster { identity: AgentIdentity, claimed: crate::wire::ClusterId },
    #[error("the control stream: {0}")]
    Receive(#[from] ReceiveError),
    #[error("the control stream: {0}")]
    Send(#[from] SendError),
    #[error("the first message was not what it has to be")]
    UnexpectedMessage,
    #[error(transparent)]
    Enrollment(#[from] EnrollmentError),
}

impl Refusal {
    fn log(&self, address: SocketAddr) {
        match self {
            Self::Handshake(ConnectionEnd::ClosedByPeer { code: ErrorCode::NoError, .. }) => {
                tracing::debug!(%address, "a connection to the tunnel ended without a word");
            }
            _ => tracing::warn!(%address, "refused a connection to the tunnel: {self}"),
        }
    }

    fn code(&self) -> ErrorCode {
        match self {
            Self::Silent => ErrorCode::HandshakeTimeout,
            Self::NoCertificate
            | Self::NotVouchedFor(_)
            | Self::Certificate(_)
            | Self::Expired(_)
            | Self::Revoked(_)
            | Self::OtherCluster { .. } => ErrorCode::IdentityRejected,
            Self::Receive(ReceiveError::Frame(error)) => error.code(),
            Self::UnexpectedMessage => ErrorCode::ProtocolViolation,
            Self::Enrollment(error) if !error.is_temporary() => ErrorCode::EnrollmentRefused,
            Self::Handshake(_) | Self::Receive(_) | Self::Send(_) | Self::Enrollment(_) => ErrorCode::Internal,
        }
    }

    /// What the peer may know.
    fn peer_message(&self) -> String {
        match self {
            // Not what is wrong with a token, nor where it is kept.
            Self::Enrollment(error) => error.peer_message(),
            refusal => refusal.to_string(),
        }
    }
}

/// A connection attempt over QUIC whose handshake may begin.
struct Attempt {
    incoming: IncomingConnection,
    stranger: Stranger,
    /// Held for as long as it takes to know who it is.
    permit: OwnedSemaphorePermit,
}

/// The attempt, if it may go on now.
fn attempt(shared: &Shared, incoming: IncomingConnection) -> Option<Attempt> {
    match shared.limits.admit_handshake(&incoming) {
        Admission::Handshake(stranger, permit) => return Some(Attempt { incoming, stranger, permit }),
        Admission::ProveAddress => incoming.demand_proof(),
        Admission::Refused => incoming.refuse(),
    }
    None
}

/// One connection over QUIC, from its handshake to its end. What only a part of its life needs is in a box, which is gone
/// afterwards: thousands of agents are connected for weeks.
async fn accept(shared: &Arc<Shared>, attempt: Attempt) -> Result<(), Refusal> {
    let Attempt { incoming, stranger, permit } = attempt;
    let patience = shared.live().limits.handshake();
    let sessions = ConnectionSessions::new(shared.sessions.clone());
    let identifying = Box::pin(incoming.with_sessions(sessions.clone())?.identify());
    let (connection, mut handshake) = timeout(patience, identifying).await.map_err(|_elapsed| Refusal::Silent)??;
    drop(permit);
    if connection.protocol().as_deref() == Some(ALPN_HTTP3) {
        complete(&mut handshake, patience).await?;
        // A stop waits for the requests of clients.
        let serving = Box::pin(http3::serve(shared.clone(), connection.into_quic(), stranger));
        shared.tasks.track_future(serving).await;
        return Ok(());
    }
    let vouched_for = shared.peers.verify(PeerRole::Agent, &connection.peer_chain());
    let connection = connection.into_tunnel();
    let mut newcomer = Newcomer { connection: &connection, handshake, sessions, stranger: Some(stranger) };
    match vouched_for {
        Ok(()) if shared.drain.is_announced() => {
            // It had better try another stub. What it may resume of this connection it takes to the next start of this one.
            if let Ok((identity, _)) = admitted(shared, &connection) {
                newcomer.sessions.belong_to(&identity);
            }
            newcomer.close(ErrorCode::NoError, SHUTTING_DOWN, patience).await;
            Ok(())
        }
        Ok(()) => identified(shared, newcomer).await,
        Err(error) => newcomer.refuse(Refusal::NotVouchedFor(error), patience).await,
    }
}

/// What follows, whatever carries the connection.
async fn identified(shared: &Shared, mut newcomer: Newcomer<'_>) -> Result<(), Refusal> {
    let patience = shared.live().limits.handshake();
    let result = match newcomer.connection.protocol().as_deref() {
        Some(ALPN_TUNNEL | ALPN_TUNNEL_TCP) => serve_agent(shared, &mut newcomer).await,
        Some(ALPN_ENROLLMENT | ALPN_ENROLLMENT_TCP) => Box::pin(enroll(shared, &mut newcomer, patience)).await,
        // TLS agrees only on a protocol that was offered.
        _ => Err(Refusal::UnexpectedMessage),
    };
    if let Err(refusal) = &result {
        // One that was silent has had its time.
        let patience = if matches!(refusal, Refusal::Silent) { Duration::ZERO } else { patience };
        newcomer.close(refusal.code(), &refusal.peer_message(), patience).await;
    }
    result
}

async fn complete(handshake: &mut Handshake, patience: Duration) -> Result<(), Refusal> {
    Ok(timeout(patience, handshake.complete()).await.map_err(|_elapsed| Refusal::Silent)??)
}

async fn enroll(shared: &Shared, newcomer: &mut Newcomer<'_>, patience: Duration) -> Result<(), Refusal> {
    // A token is never early data.
    complete(&mut newcomer.handshake, patience).await?;
    let connection = newcomer.connection;
    let ControlStream { sender, receiver, .. } =
        control_stream(connection, FrameReader::for_accepted_enrollment(), patience).await?;
    tokio::select! {
        result = answer_enrollment(shared, connection, sender, receiver, patience) => result,
        // Enrolling takes one stream (proto-spec/qtunnel-1.md, section 11).
        () = another_stream(connection) => Err(Refusal::UnexpectedMessage),
    }
}

async fn answer_enrollment(
    shared: &Shared,
    connection: &Connection,
    mut sender: FrameSender,
    mut receiver: FrameReceiver,
    patience: Duration,
) -> Result<(), Refusal> {
    let Some(Frame::Enroll(request)) = next_within(&mut receiver, patience).await? else {
        return Err(Refusal::UnexpectedMessage);
    };
    match shared.enrollment.enroll(&request, connection.remote_address()).await {
        Ok(certificate) => last_word(connection, &mut sender, Frame::Certificate(certificate), patience).await,
        // Closed without REFUSED, which is final, the agent tries again (proto-spec/qtunnel-1.md, section 11).
        Err(error) if error.is_temporary() => Err(error.into()),
        Err(error) => {
            let refused = Frame::Refused(Refused { reason: error.peer_message() });
            last_word(connection, &mut sender, refused, patience).await?;
            Err(error.into())
        }
    }
}

/// Waits for another stream of the peer.
async fn another_stream(connection: &Connection) {
    if connection.accept().await.is_err() {
        // What became of the connection is told elsewhere.
        std::future::pending().await
    }
}

/// Says the last thing on a connection and leaves it to the agent to close it: closing it here could overtake the word.
async fn last_word(
    connection: &Connection,
    sender: &mut FrameSender,
    frame: Frame,
    patience: Duration,
) -> Result<(), Refusal> {
    sender.send(&frame).await?;
    sender.finish().await.map_err(SendError::from)?;
    let _ = timeout(patience, connection.closed()).await;
    Ok(())
}

/// Whose connection it is, and for how long, if that agent may come in.
fn admitted(shared: &Shared, connection: &Connection) -> Result<(AgentIdentity, Validity), Refusal> {
    let certificate = connection.peer_certificate().ok_or(Refusal::NoCertificate)?;
    let identity = AgentIdentity::from_certificate(&certificate)?;
    // A resumed session is not verified again by TLS.
    let validity = Validity::of(&certificate)?;
    if validity.is_expired(SystemTime::now()) {
        return Err(Refusal::Expired(identity));
    }
    if shared.revoked.contains(&identity) {
        return Err(Refusal::Revoked(identity));
    }
    Ok((identity, validity))
}

async fn serve_agent(shared: &Shared, newcomer: &mut Newcomer<'_>) -> Result<(), Refusal> {
    let Some(Greeted { link, expires, sender, receiver }) = Box::pin(greet(shared, newcomer)).await? else {
        return Ok(());
    };
    log_connected(&link);
    shared.watchers.metrics.agent_connected(&link);
    shared.registry.add(link.clone());
    let session = Session { shared, link: &link, expires, told_to_leave: false };
    let end = session.run(sender, receiver).await;
    shared.registry.remove(&link);
    newcomer.connection.close(end.code(), &end.to_string());
    tracing::info!(cluster = %link.identity.cluster, agent = %link.identity.agent, "agent disconnected: {end}");
    Ok(())
}

/// An agent that has said hello, and has been told welcome.
struct Greeted {
    link: Arc<AgentLink>,
    expires: Instant,
    sender: FrameSender,
    receiver: FrameReceiver,
}

/// Lets an agent in, unless it has come here by another address already.
async fn greet(shared: &Shared, newcomer: &mut Newcomer<'_>) -> Result<Option<Greeted>, Refusal> {
    let Newcomer { connection, handshake, sessions, stranger } = newcomer;
    let connection = *connection;
    let patience = shared.live().limits.handshake();
    let (identity, validity) = admitted(shared, connection)?;
    sessions.belong_to(&identity);
    let ControlStream { mut sender, mut receiver, is_early } =
        control_stream(connection, FrameReader::for_accepted_control(), patience).await?;
    let Some(Frame::Hello(hello)) = next_within(&mut receiver, patience).await? else {
        return Err(Refusal::UnexpectedMessage);
    };
    if hello.cluster != identity.cluster {
        let reason = format!("your certificate is for cluster \"{}\"", identity.cluster);
        last_word(connection, &mut sender, Frame::Refused(Refused { reason }), patience).await?;
        return Err(Refusal::OtherCluster { identity, claimed: hello.cluster });
    }
    let report_interval = shared.live().report_interval_beside(shared.registry.len());
    // The agent has come here by another address of this stub without knowing, and is better served by what it has.
    if hello.connected_stubs.contains(&shared.instance) && shared.registry.has(&identity, hello.instance) {
        let welcome = Frame::Welcome(welcome(shared, report_interval));
        last_word(connection, &mut sender, welcome, patience).await?;
        return Ok(None);
    }
    sender.send(&Frame::Welcome(welcome(shared, report_interval))).await?;
    // The control stream.
    connection.set_standing_streams(1);
    connection.ask_after(keep_alive_for(report_interval));

    // An agent that resumes a session over QUIC has said hello with its first packet. A stub that was busy finds the handshake
    // complete when it gets there, and has no early data to take special care of.
    let is_resumed = connection.carrier() == Carrier::Quic && sessions.has_resumed();
    let link = Arc::new(AgentLink::new(identity, hello, connection.clone(), report_interval, is_resumed));
    shared.clusters.seen(&link.identity.cluster);
    if is_early {
        // Requests may go out with the stub's first packets: only who has the agent's session can read them.
        shared.registry.add_early(link.clone());
    }
    if let Err(refusal) = complete(handshake, patience).await {
        shared.registry.remove(&link);
        return Err(refusal);
    }
    connection.trust();
    *stranger = None;
    Ok(Some(Greeted { link, expires: expiry(validity.not_after), sender, receiver }))
}

fn welcome(shared: &Shared, report_interval: Duration) -> Welcome {
    Welcome {
        stub: shared.config.name.clone(),
        report_interval,
        other_stubs: shared.live().peers.clone(),
        instance: Some(shared.instance),
    }
}

fn log_connected(link: &AgentLink) {
    let Hello { software, .. } = &link.hello;
    tracing::info!(
        cluster = %link.identity.cluster,
        agent = %link.identity.agent,
        address = %link.connection.remote_address(),
        carrier = %link.connection.carrier(),
        software,
        "agent connected{}",
        if link.is_resumed { ", resumed with 0-RTT" } else { "" }
    );
}

/// The stream that the agent opens.
struct ControlStream {
    sender: FrameSender,
    receiver: FrameReceiver,
    /// Whether it came before the handshake was complete.
    is_early: bool,
}

async fn control_stream(
    connection: &Connection,
    reader: FrameReader,
    patience: Duration,
) -> Result<ControlStream, Refusal> {
    let (send, recv) = timeout(patience, connection.accept()).await.map_err(|_elapsed| Refusal::Silent)??;
    let is_early = recv.is_early();
    Ok(ControlStream { sender: FrameSender::new(send), receiver: FrameReceiver::new(recv, reader), is_early })
}

async fn next_within(receiver: &mut FrameReceiver, patience: Duration) -> Result<Option<Frame>, Refusal> {
    Ok(timeout(patience, receiver.next_frame()).await.map_err(|_elapsed| Refusal::Silent)??)
}

/// Why an agent's session ended.
#[derive(Debug, thiserror::Error)]
enum SessionEnd {
    #[error("{0}")]
    Connection(ConnectionEnd),
    #[error("its control stream ended")]
    ControlStreamEnded,
    #[error("its control stream: {0}")]
    Receive(ReceiveError),
    #[error("its control stream: {0}")]
    Send(#[from] SendError),
    #[error("it sent what an agent must not send")]
    UnexpectedMessage,
    #[error("its certificate has expired without having been renewed")]
    CertificateExpired,
}

impl SessionEnd {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Connection(_) | Self::ControlStreamEnded => ErrorCode::NoError,
            Self::Receive(ReceiveError::Frame(error)) => error.code(),
            Self::Receive(_) | Self::Send(_) => ErrorCode::Internal,
            Self::UnexpectedMessage => ErrorCode::ProtocolViolation,
            Self::CertificateExpired => ErrorCode::IdentityRejected,
        }
    }
}

/// A connected agent's control stream.
struct Session<'a> {
    shared: &'a Shared,
    link: &'a AgentLink,
    expires: Instant,
    told_to_leave: bool,
}

impl Session<'_> {
    async fn run(mut self, mut sender: FrameSender, mut receiver: FrameReceiver) -> SessionEnd {
        let refusing = refuse_streams(self.link.connection.clone(), self.shared.live().limits.handshake());
        tokio::pin!(refusing);
        let mut path = self.link.connection.path_state();
        let mut before = *path.borrow_and_update();
        let mut gives_way_at = None;
        loop {
            tokio::select! {
                end = self.link.connection.closed() => return SessionEnd::Connection(end),
                end = &mut refusing => return end,
                Ok(()) = path.changed() => {
                    let now = *path.borrow_and_update();
                    self.path_changed(std::mem::replace(&mut before, now), now);
                    gives_way_at = now.suspect_since.map(|since| since + HOLDS_FOR);
                }
                () = reached(gives_way_at) => {
                    gives_way_at = None;
                    self.shared.registry.settle(&self.link.identity.cluster);
                }
                () = tokio::time::sleep_until(self.expires.into()) => return SessionEnd::CertificateExpired,
                () = self.shared.drain.announced(), if !self.told_to_leave => {
                    self.told_to_leave = true;
                    let drain = Drain { reason: SHUTTING_DOWN.to_owned() };
                    if let Err(error) = sender.send(&Frame::Drain(drain)).await {
                        return error.into();
                    }
                }
                frame = receiver.next_frame() => match frame {
                    Ok(Some(frame)) => {
                        if let Err(end) = self.heard(frame, &mut sender).await {
                            return end;
                        }
                    }
                    Ok(None) => return SessionEnd::ControlStreamEnded,
                    Err(error) => return SessionEnd::Receive(error),
                },
            }
        }
    }

    fn path_changed(&self, before: PathState, now: PathState) {
        let AgentIdentity { cluster, agent } = &self.link.identity;
        if before.remote != now.remote {
            self.shared.watchers.metrics.path_changed(cluster);
            self.link.moved();
            tracing::info!(%cluster, %agent, "agent's path changed from {} to {}", before.remote, now.remote);
        }
        match (before.suspect_since, now.suspect_since) {
            (None, Some(_)) => tracing::warn!(
                %cluster,
                %agent,
                "agent does not answer: it gets no new requests, and those it has wait"
            ),
            (Some(since), None) => {
                tracing::info!(%cluster, %agent, "agent answers again after {:.1} s", since.elapsed().as_secs_f64());
                self.shared.registry.settle(cluster);
            }
            _ => {}
        }
    }

    async fn heard(&mut self, frame: Frame, sender: &mut FrameSender) -> Result<(), SessionEnd> {
        match frame {
            Frame::Report(report) => {
                self.shared.registry.report(self.link, report);
                self.keep_pace(sender).await?;
            }
            Frame::Drain(drain) => {
                tracing::info!(
                    cluster = %self.link.identity.cluster,
                    agent = %self.link.identity.agent,
                    "agent takes no more requests: {}",
                    drain.reason
                );
                self.link.leave();
            }
            Frame::Renew(renew) => {
                let answer = self.renew(renew).await;
                sender.send(&answer).await?;
            }
            _ => return Err(SessionEnd::UnexpectedMessage),
        }
        Ok(())
    }

    /// Asks for reports at another interval when there are far more agents by now, or fewer.
    async fn keep_pace(&self, sender: &mut FrameSender) -> Result<(), SendError> {
        let others = self.shared.registry.len().saturating_sub(1);
        let report_interval = self.shared.live().report_interval_beside(others);
        if !is_worth_asking_for(report_interval, self.link.report_interval()) {
            return Ok(());
        }
        self.link.report_every(report_interval);
        self.link.connection.ask_after(keep_alive_for(report_interval));
        sender.send(&Frame::Pace(Pace { report_interval })).await
    }

    /// A new certificate for the identity that the old one has; nothing in the request can change it.
    async fn renew(&mut self, renew: Renew) -> Frame {
        let issued = self.shared.enrollment.issue(renew.request, self.link.identity.clone()).await;
        match issued {
            Ok(issued) => {
                tracing::info!(
                    cluster = %self.link.identity.cluster,
                    agent = %self.link.identity.agent,
                    "renewed the agent's certificate"
                );
                self.expires = expiry(issued.not_after);
                Frame::Certificate(Certificate { chain: issued.chain })
            }
            Err(error) => {
                tracing::warn!(agent = %self.link.identity, "refused to renew a certificate: {error}");
                Frame::Refused(Refused { reason: error.peer_message() })
            }
        }
    }
}

/// An agent opens no stream but the control stream. One of a kind that a later version may know is refused by itself,
/// anything else ends the session (proto-spec/qtunnel-1.md, section 3.2).
async fn refuse_streams(connection: Connection, patience: Duration) -> SessionEnd {
    loop {
        let (mut send, recv) = match connection.accept().await {
            Ok(stream) => stream,
            Err(end) => return SessionEnd::Connection(end),
        };
        let mut receiver = FrameReceiver::new(recv, FrameReader::for_accepted_control());
        match timeout(patience, receiver.next_frame()).await {
            Ok(Err(ReceiveError::Frame(error @ WireError::UnknownStreamKind(_)))) => send.reset(error.code()),
            Ok(Err(ReceiveError::Stream(_))) => {}
            _ => return SessionEnd::UnexpectedMessage,
        }
    }
}

/// Waits until `moment`, and for ever without one.
async fn reached(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// The moment as a timer understands it.
fn expiry(not_after: SystemTime) -> Instant {
    let left = not_after.duration_since(SystemTime::now()).unwrap_or_default();
    // Far enough away for any timer, should a certificate be valid for longer than the clock can count.
    Instant::now() + left.min(Duration::from_secs(365 * 24 * 60 * 60))
}
