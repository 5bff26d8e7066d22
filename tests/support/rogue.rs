//! Peers that have real credentials and bad intentions: bytes on streams, made by hand.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use qtunnel::carrier::{
    Connection, ConnectionEnd, FrameReceiver, FrameSender, QuicDialer, QuicListener, QuicSettings, SendStream,
};
use qtunnel::pki::{
    AgentCredentials, AgentKey, AgentState, DirectoryStore, JoinToken, StubKeys, enrollment_client_config, find_pinned,
    tunnel_client_config, tunnel_server_config,
};
use qtunnel::wire::{
    AuthMode, Enroll, ErrorCode, Frame, FrameReader, Hello, Report, ResponseHead, StreamKind, Welcome, write_varint,
};

use super::http1::within;
use super::tunnel::Stub;

/// The name in the certificate of a stub of the tests.
const STUB_NAME: &str = "127.0.0.1";

/// The bytes of well-made frames.
pub fn frames(frames: &[Frame]) -> Vec<u8> {
    let mut out = BytesMut::new();
    for frame in frames {
        frame.encode(&mut out).expect("a frame within the bounds");
    }
    out.to_vec()
}

/// Numbers as they travel.
pub fn varints(numbers: &[u64]) -> Vec<u8> {
    let mut out = BytesMut::new();
    for number in numbers {
        write_varint(*number, &mut out);
    }
    out.to_vec()
}

/// A frame that is a message of these fields.
pub fn message(frame_type: u64, fields: &[(u64, &[u8])]) -> Vec<u8> {
    let field = |(number, value): &(u64, &[u8])| [&varints(&[*number, value.len() as u64]), *value].concat();
    let payload: Vec<u8> = fields.iter().flat_map(field).collect();
    [varints(&[frame_type, payload.len() as u64]), payload].concat()
}

/// The head of an answer.
pub fn response_head(status: u16, headers: &[(&str, &str)]) -> Frame {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(name.parse::<HeaderName>().expect("a name"), value.parse::<HeaderValue>().expect("a value"));
    }
    let status = StatusCode::from_u16(status).expect("a status");
    Frame::ResponseHead(Box::new(ResponseHead { status, headers: map }))
}

/// A piece of a body.
pub fn data(text: &str) -> Frame {
    Frame::Data(Bytes::copy_from_slice(text.as_bytes()))
}

/// Writes bytes as they are.
pub async fn write(stream: &mut SendStream, bytes: &[u8]) {
    within("bytes are written", stream.write(&mut [Bytes::copy_from_slice(bytes)])).await.expect("a stream");
}

/// How the peer ended a connection.
pub async fn closed_with(connection: &Connection) -> ErrorCode {
    match within("the peer closes the connection", connection.closed()).await {
        ConnectionEnd::ClosedByPeer { code, .. } => code,
        other => panic!("not closed by the peer: {other}"),
    }
}

/// Joins as an agent does, and keeps the credentials.
pub async fn enroll(stub: &Stub, cluster: &str) -> AgentCredentials {
    let token: JoinToken = stub.token(cluster).parse().expect("a token");
    let key = AgentKey::generate().expect("a key");
    let connection = dial_to_enroll(stub, &token).await;
    let (send, recv) = connection.open().await.expect("a stream");
    let mut sender = FrameSender::open(send, StreamKind::Control);
    let request = key.signing_request().expect("a request").to_vec().into();
    sender.send(&Frame::Enroll(Enroll { token: token.to_string(), request })).await.expect("an enrolment");
    let mut receiver = FrameReceiver::new(recv, FrameReader::for_opened_enrollment());
    let Some(Frame::Certificate(certificate)) = within("a certificate", receiver.next_frame()).await.expect("a frame")
    else {
        panic!("no certificate");
    };
    let chain = certificate.chain.iter().map(|der| der.to_vec().into()).collect();
    let authority = find_pinned(&connection.peer_chain(), &token.authority()).expect("the pinned authority").clone();
    let dir = tempfile::tempdir().expect("a folder");
    AgentState::open(dir.path()).expect("a folder").store(&key, chain, authority).expect("credentials")
}

/// A connection of somebody who has no more than a token, as far as anybody can tell.
pub async fn dial_to_enroll(stub: &Stub, token: &JoinToken) -> Connection {
    let tls = enrollment_client_config(token.authority()).expect("TLS");
    let dialer = QuicDialer::new(Arc::new(tls), QuicSettings::default()).expect("QUIC");
    within("a connection", dialer.dial(stub.address, STUB_NAME)).await.expect("a connection")
}

/// A connection as an agent, on which nothing has been said.
pub async fn dial(stub: &Stub, credentials: &AgentCredentials) -> Connection {
    let tls = tunnel_client_config(credentials).expect("TLS");
    let dialer = QuicDialer::new(Arc::new(tls), QuicSettings::default()).expect("QUIC");
    within("a connection", dialer.dial(stub.address, STUB_NAME)).await.expect("a connection")
}

/// The kind of a control stream and a good hello.
pub fn hello(credentials: &AgentCredentials) -> Vec<u8> {
    let hello = Hello {
        cluster: credentials.identity().cluster.clone(),
        instance: 1,
        software: "rogue".to_owned(),
        auth_mode: AuthMode::Impersonate,
        connected_stubs: Vec::new(),
    };
    [varints(&[StreamKind::Control as u64]), frames(&[Frame::Hello(hello)])].concat()
}

/// A good report.
pub fn report() -> Frame {
    Frame::Report(Report {
        open_streams: 0,
        upstream_healthy: true,
        upstream_latency: Duration::from_millis(1),
        upstream_error: String::new(),
        api_server: None,
    })
}

/// An agent that has been welcomed.
pub struct RogueAgent {
    /// The connection to the stub.
    pub connection: Connection,
    /// What goes to the stub.
    pub control: SendStream,
    /// What comes from the stub. Its welcome has been read.
    pub control_frames: FrameReceiver,
}

impl RogueAgent {
    /// Connects, says hello and is welcomed.
    pub async fn connect(stub: &Stub, credentials: &AgentCredentials) -> Self {
        let connection = dial(stub, credentials).await;
        let (mut control, recv) = connection.open().await.expect("a stream");
        write(&mut control, &[hello(credentials), frames(&[report()])].concat()).await;
        let mut control_frames = FrameReceiver::new(recv, FrameReader::for_opened_control());
        let welcome = within("a welcome", control_frames.next_frame()).await.expect("a frame");
        assert!(matches!(welcome, Some(Frame::Welcome(_))), "{welcome:?}");
        Self { connection, control, control_frames }
    }
}

/// A stub with the keys of a real one that is no more.
pub struct RogueStub {
    listener: QuicListener,
}

/// A real agent that has come to a rogue stub.
pub struct CaughtAgent {
    /// The connection from the agent.
    pub connection: Connection,
    /// What goes to the agent.
    pub control: SendStream,
    /// What comes from the agent. Its hello has been read.
    pub control_frames: FrameReceiver,
}

impl RogueStub {
    /// Takes the place of `stub`, which is killed.
    pub fn instead_of(stub: &mut Stub) -> Self {
        stub.process.kill();
        let keys = StubKeys::load(Arc::new(DirectoryStore::new(&stub.state_dir())), std::time::SystemTime::now())
            .expect("keys");
        let authority = std::slice::from_ref(keys.agent_authority().certificate_der());
        let tls = tunnel_server_config(keys.server(), authority).expect("TLS");
        let listener = QuicListener::bind(stub.address, Arc::new(tls), &QuicSettings::default()).expect("a port");
        Self { listener }
    }

    /// The next agent that says hello. It is not welcomed yet.
    pub async fn catch(&self) -> CaughtAgent {
        let incoming = within("an agent dials", self.listener.accept()).await.expect("it listens");
        let connection = within("a handshake", incoming.handshake()).await.expect("a connection").into_tunnel();
        let (control, recv) = within("a control stream", connection.accept()).await.expect("a stream");
        let mut control_frames = FrameReceiver::new(recv, FrameReader::for_accepted_control());
        let hello = within("a hello", control_frames.next_frame()).await.expect("a frame");
        assert!(matches!(hello, Some(Frame::Hello(_))), "{hello:?}");
        CaughtAgent { connection, control, control_frames }
    }

    /// The same, welcomed.
    pub async fn catch_and_welcome(&self) -> CaughtAgent {
        let mut agent = self.catch().await;
        write(&mut agent.control, &frames(&[Frame::Welcome(welcome())])).await;
        agent
    }
}

/// A good welcome.
pub fn welcome() -> Welcome {
    Welcome {
        stub: "rogue".to_owned(),
        report_interval: Duration::from_millis(200),
        other_stubs: Vec::new(),
        instance: None,
    }
}
