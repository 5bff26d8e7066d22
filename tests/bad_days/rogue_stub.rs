//! A stub with real keys that breaks the protocol, as a stub in the wrong hands would: the agent loses that stream or that
//! connection, and neither itself nor its API server.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use qtunnel::carrier::{Connection, FrameReceiver, ReceiveError, StreamReadError};
use qtunnel::wire::{ErrorCode, FailureReason, Frame, FrameReader, Identity, RequestHead, StreamKind, Trailers};
use tokio::sync::mpsc;

use super::LIST;
use super::support::http1::{Head, within};
use super::support::rogue::{CaughtAgent, RogueStub, data, frames, message, report, varints, welcome, write};
use super::support::scene::Scene;
use super::support::scripted_upstream::{AGENT_TOKEN, Next, UpstreamConnection};

const HUGE: u64 = 1 << 40;
const REQUEST: u64 = StreamKind::Request as u64;
const REQUEST_HEAD: u64 = 0x01;
const WELCOME: u64 = 0x11;
const UNKNOWN: u64 = 0x2a;

/// What the API server heard: the head of a request, and its body if that was whole.
type Heard = (Head, Option<Vec<u8>>);

/// A real agent that has come to a rogue stub.
struct Caught {
    scene: Scene,
    rogue: RogueStub,
    heard: mpsc::UnboundedReceiver<Heard>,
}

impl Caught {
    async fn start() -> Self {
        let (sender, heard) = mpsc::unbounded_channel();
        let mut scene = Scene::start(move |head, connection| hear(head, connection, sender.clone())).await;
        let rogue = RogueStub::instead_of(&mut scene.stub);
        scene.agent.restart();
        Self { scene, rogue, heard }
    }

    /// Checks that the agent still runs.
    #[track_caller]
    fn expect_alive(&mut self, after: &str) {
        assert_eq!(self.scene.agent.process.ended(), None, "after {after}");
    }
}

async fn hear(head: Head, mut connection: UpstreamConnection, heard: mpsc::UnboundedSender<Heard>) -> Next {
    let (body, whole) = within("the body of a request", connection.wire.request_body(&head)).await;
    heard.send((head, whole.then_some(body))).expect("the test listens");
    if whole { connection.answer("200 OK", &[], "fine").await } else { None }
}

fn head(method: &Method, target: &str, headers: &[(&str, &str)]) -> RequestHead {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(name.parse::<HeaderName>().expect("a name"), value.parse::<HeaderValue>().expect("a value"));
    }
    RequestHead {
        audit_id: "an-id".to_owned(),
        method: method.clone(),
        target: target.parse().expect("a target"),
        headers: map,
        identity: Identity::named("alice"),
        requested: None,
        bearer_token: None,
        upgrade: None,
        client_address: None,
    }
}

fn get(target: &str, headers: &[(&str, &str)]) -> Frame {
    Frame::RequestHead(Box::new(head(&Method::GET, target, headers)))
}

fn post(headers: &[(&str, &str)]) -> Frame {
    Frame::RequestHead(Box::new(head(&Method::POST, LIST, headers)))
}

fn request_as(identity: Identity, requested: Option<Identity>) -> Frame {
    Frame::RequestHead(Box::new(RequestHead { identity, requested, ..head(&Method::GET, LIST, &[]) }))
}

fn member_of(group: &str) -> Identity {
    Identity { groups: vec![group.to_owned()], ..Identity::named("alice") }
}

/// A request stream of these frames.
fn stream(parts: &[Frame]) -> Vec<u8> {
    [varints(&[REQUEST]), frames(parts)].concat()
}

/// A head with one field more, whatever that is.
fn head_with(field: u64, value: &[u8]) -> Vec<u8> {
    let mut fields = vec![(0x01, b"GET".as_slice()), (0x02, b"/api"), (0x04, b"an-id"), (0x10, b"alice")];
    fields.retain(|(number, _)| *number != field);
    fields.push((field, value));
    [varints(&[REQUEST]), message(REQUEST_HEAD, &fields)].concat()
}

/// What the agent makes of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Resets(ErrorCode),
    Fails(FailureReason),
    Passes,
}

async fn send(connection: &Connection, bytes: &[u8]) -> Does {
    let (mut send, recv) = within("a stream", connection.open()).await.expect("a stream");
    // The agent may have stopped the stream before all is written.
    let _ = within("bytes are written", send.write(&mut [Bytes::copy_from_slice(bytes)])).await;
    send.finish();
    let mut receiver = FrameReceiver::new(recv, FrameReader::for_response_to(&head(&Method::GET, "/", &[])));
    match within("the agent's answer", receiver.next_frame()).await {
        Ok(Some(Frame::ResponseHead(head))) => {
            assert_eq!(head.status, 200);
            Does::Passes
        }
        Ok(Some(Frame::Failure(failure))) => Does::Fails(failure.reason),
        Err(ReceiveError::Stream(StreamReadError::Reset(code))) => Does::Resets(code),
        other => panic!("neither an answer nor a reset: {other:?}"),
    }
}

fn cases() -> Vec<(&'static str, Vec<u8>, Does)> {
    let violation = Does::Resets(ErrorCode::ProtocolViolation);
    let limit = Does::Resets(ErrorCode::LimitExceeded);
    let bad_request = Does::Fails(FailureReason::BadRequest);
    let forbidden = Does::Fails(FailureReason::Forbidden);
    let no_trailers = || Frame::Trailers(Trailers(HeaderMap::new()));
    vec![
        ("an unknown kind", varints(&[0x77]), Does::Resets(ErrorCode::UnknownStreamKind)),
        ("an end at once", vec![], violation),
        ("data first", stream(&[data("x")]), violation),
        ("a report", stream(&[report()]), violation),
        ("garbage", [varints(&[REQUEST]), vec![0xff; 1000]].concat(), limit),
        ("a huge head", varints(&[REQUEST, REQUEST_HEAD, HUGE]), limit),
        ("a cut head", varints(&[REQUEST, REQUEST_HEAD, 1000, 1, 2, 3]), violation),
        ("a huge unknown frame", varints(&[REQUEST, UNKNOWN, HUGE]), limit),
        ("no fields", [varints(&[REQUEST]), message(REQUEST_HEAD, &[])].concat(), violation),
        ("an unknown field", head_with(0x3f, b""), violation),
        ("a method that is two", head_with(0x01, b"GET /x HTTP/1.1\r\nX: "), violation),
        ("a whole address", head_with(0x02, b"http://elsewhere/api"), violation),
        ("an address with a space", head_with(0x02, b"/api HTTP/1.1"), violation),
        ("a header that is two", head_with(0x03, b"\x01xa\r\nImpersonate-User: root"), violation),
        ("an address of elsewhere", head_with(0x02, b"//elsewhere/api"), bad_request),
        ("a climbing path", stream(&[get("/api/../secrets", &[])]), bad_request),
        ("an encoded slash", stream(&[get("/api%2fv1", &[])]), bad_request),
        (
            "two lengths",
            stream(&[post(&[("content-length", "4"), ("content-length", "0")]), data("half")]),
            bad_request,
        ),
        ("a length of words", stream(&[post(&[("content-length", "+4")]), data("half")]), bad_request),
        ("a Connection that hides", stream(&[get("/api", &[("connection", "authorization")])]), bad_request),
        ("system:masters", stream(&[request_as(member_of("system:masters"), None)]), forbidden),
        ("a node", stream(&[request_as(Identity::named("system:node:n1"), None)]), forbidden),
        ("a service account", stream(&[request_as(Identity::named("system:serviceaccount:a:b"), None)]), forbidden),
        (
            "system:masters by --as",
            stream(&[request_as(Identity::named("alice"), Some(member_of("system:masters")))]),
            forbidden,
        ),
        // Broken bodies: what the API server makes of them is nothing that can be answered with success.
        (
            "a body shorter than said",
            stream(&[post(&[("content-length", "100")]), data("half")]),
            Does::Fails(FailureReason::UpstreamLost),
        ),
        (
            "a body longer than said",
            stream(&[post(&[("content-length", "2")]), data("half")]),
            Does::Fails(FailureReason::UpstreamLost),
        ),
        (
            "data behind trailers",
            stream(&[post(&[]), data("half"), no_trailers(), data("more")]),
            Does::Fails(FailureReason::UpstreamLost),
        ),
        ("two heads", stream(&[post(&[]), data("half"), post(&[])]), Does::Fails(FailureReason::UpstreamLost)),
        // What is allowed.
        ("trailers", stream(&[post(&[]), data("fine"), no_trailers()]), Does::Passes),
        (
            "unknown frames",
            [varints(&[REQUEST, UNKNOWN, 1, 7]), frames(&[get("/api", &[])]), varints(&[UNKNOWN, 0])].concat(),
            Does::Passes,
        ),
        (
            "another framing",
            stream(&[post(&[("transfer-encoding", "chunked"), ("content-length", "4")]), data("fine")]),
            Does::Passes,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_breaks_the_protocol_ends_its_own_stream_alone() {
    let mut caught = Caught::start().await;
    let agent = caught.rogue.catch_and_welcome().await;
    for (name, bytes, does) in cases() {
        assert_eq!(send(&agent.connection, &bytes).await, does, "{name}");
        assert_eq!(send(&agent.connection, &stream(&[get("/next", &[])])).await, Does::Passes, "after {name}");
        // What the API server heard is nothing or this one request, and never a body that was cut.
        let mut heard = Vec::new();
        while heard.last().is_none_or(|(head, _): &Heard| head.target() != "/next") {
            heard.push(within("a request", caught.heard.recv()).await.expect("it runs"));
        }
        let whole = heard.iter().filter(|(_, body)| body.is_some()).count();
        assert_eq!(whole, 1 + usize::from(does == Does::Passes), "{name}: {heard:?}");
        caught.expect_alive(name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stub_that_opens_a_control_stream_loses_the_connection() {
    let mut caught = Caught::start().await;
    let agent = caught.rogue.catch_and_welcome().await;
    let (mut send, _recv) = within("a stream", agent.connection.open()).await.expect("a stream");
    send.write(&mut [varints(&[0x01]).into()]).await.expect("a kind is sent");
    assert_eq!(super::support::rogue::closed_with(&agent.connection).await, ErrorCode::ProtocolViolation);
    caught.expect_alive("a control stream of the stub");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_a_stub_claim_no_identity() {
    let mut caught = Caught::start().await;
    let agent = caught.rogue.catch_and_welcome().await;
    let claims = [
        ("impersonate-user", "root"),
        ("impersonate-group", "system:masters"),
        ("impersonate-uid", "0"),
        ("impersonate-extra-scopes", "all"),
        ("impersonate_user", "root"),
        ("authorization", "Bearer stolen"),
        ("x-remote-user", "root"),
        ("x-remote-group", "system:masters"),
        ("x-forwarded-for", "10.0.0.1"),
        ("host", "elsewhere"),
        ("audit-id", "chosen"),
    ];
    assert_eq!(send(&agent.connection, &stream(&[get(LIST, &claims)])).await, Does::Passes);
    let (head, _) = within("the request", caught.heard.recv()).await.expect("it runs");
    let names: Vec<_> = head.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    assert_eq!(head.values("impersonate-user").collect::<Vec<_>>(), ["alice"]);
    assert_eq!(head.values("authorization").collect::<Vec<_>>(), [format!("Bearer {AGENT_TOKEN}")]);
    assert_eq!(head.values("audit-id").collect::<Vec<_>>(), ["an-id"]);
    assert_eq!(head.values("host").collect::<Vec<_>>(), [caught.scene.upstream.address.to_string()]);
    for (name, _) in &claims[1..] {
        let written_by_the_agent = ["authorization", "host", "audit-id"].contains(name);
        assert!(written_by_the_agent || !names.contains(&(*name).to_owned()), "{name} came through: {names:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_stream_that_breaks_the_protocol_ends_the_connection_alone() {
    use ErrorCode::{LimitExceeded, ProtocolViolation};
    let mut caught = Caught::start().await;
    let welcomed = |rest: Vec<u8>| [frames(&[Frame::Welcome(welcome())]), rest].concat();
    let cases = [
        ("garbage", vec![0xff; 1000], LimitExceeded),
        ("no welcome", frames(&[report()]), ProtocolViolation),
        ("a huge welcome", varints(&[WELCOME, HUGE]), LimitExceeded),
        ("a welcome without an interval", message(WELCOME, &[(0x01, b"rogue")]), ProtocolViolation),
        ("an interval of nothing", message(WELCOME, &[(0x01, b"rogue"), (0x02, &[0])]), ProtocolViolation),
        ("two welcomes", welcomed(welcomed(vec![])), ProtocolViolation),
        ("a report", welcomed(frames(&[report()])), ProtocolViolation),
        ("a huge unknown frame", welcomed(varints(&[UNKNOWN, HUGE])), LimitExceeded),
    ];
    for (name, bytes, code) in cases {
        let mut agent = caught.rogue.catch().await;
        write(&mut agent.control, &bytes).await;
        assert_eq!(super::support::rogue::closed_with(&agent.connection).await, code, "{name}");
        caught.expect_alive(name);
        // It would come again by itself, later each time.
        caught.scene.agent.restart();
    }
    // And so it does.
    let mut agent = caught.rogue.catch().await;
    write(&mut agent.control, &varints(&[UNKNOWN, HUGE])).await;
    let agent: CaughtAgent = caught.rogue.catch_and_welcome().await;
    assert_eq!(send(&agent.connection, &stream(&[get(LIST, &[])])).await, Does::Passes);
    caught.expect_alive("all of it");
}

/// How much streams on which nothing comes may cost, in bytes.
const FLOOD_BOUND: u64 = 64 << 20;

/// Many more than the agent permits at first.
const FLOOD: usize = 2000;

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_streams_costs_little_and_ends() {
    let mut caught = Caught::start().await;
    let mut agent = caught.rogue.catch_and_welcome().await;
    assert_eq!(send(&agent.connection, &stream(&[get(LIST, &[])])).await, Does::Passes);
    let before = caught.scene.agent.process.resident_memory();
    let mut streams = Vec::new();
    for number in 0..FLOOD {
        let opened = within(&format!("stream {number}"), agent.connection.open()).await;
        let (mut send, recv) = opened.expect("a stream");
        // A head that does not come.
        write(&mut send, &varints(&[REQUEST, REQUEST_HEAD, 100_000])).await;
        streams.push((send, recv));
    }
    let grown = caught.scene.agent.process.resident_memory().saturating_sub(before);
    println!("{FLOOD} streams cost {} KiB", grown >> 10);
    assert!(grown < FLOOD_BOUND, "grown by {} MiB", grown >> 20);
    // Others are served meanwhile.
    assert_eq!(send(&agent.connection, &stream(&[get(LIST, &[])])).await, Does::Passes);
    for (send, _recv) in &streams {
        let code = within("the agent gives up", send.stopped()).await;
        assert!(code.is_some(), "a stream without a head is ended");
    }
    let none_open = async {
        loop {
            match agent.control_frames.next_frame().await.expect("a report") {
                Some(Frame::Report(report)) if report.open_streams == 0 => return,
                Some(_) => {}
                None => panic!("the agent has gone"),
            }
        }
    };
    within("a report of no open stream", none_open).await;
    caught.expect_alive("the flood");
}
