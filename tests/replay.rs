//! Recorded conversations between real kubectls and a real API server, played again through a stub and an agent.
//!
//! A scripted API server says what the real one said, a scripted client what kubectl said, each in step with the other:
//! nobody sends the next piece before the last one has come through. So a tunnel that changes, cuts, gathers or loses a
//! byte fails here.

mod support;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use support::capture::{self, How, Side};
use support::conversation::{AnswerBody, Exchange, Rest, Step, exchanges};
use support::http1::{BodyDecoder, End, Head, Wire, within};
use support::scripted_upstream::{AGENT_TOKEN, Next, ScriptedUpstream, UpstreamConnection};
use support::tunnel::{Agent, AgentOptions, CLUSTER, Stub, StubOptions};
use support::user::{Http1, Http2, User};

/// Names an exchange at the scripted API server. To the tunnel it is a header like any other.
const EXCHANGE: &str = "X-Replayed-Exchange";

/// Who plays kubectl.
const USER: &str = "dora";
const GROUPS: [&str; 2] = ["devs", "on-call"];

/// The question whether an impersonation is allowed, which the agent asks.
const ACCESS_REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

/// Cases that are played at the same time.
const AT_ONCE: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn recorded_conversations_come_through_byte_for_byte_over_http1() {
    let scene = Scene::start().await;
    scene.replay(|_| None, play_over_http1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_plain_requests_come_through_over_http2() {
    let scene = Scene::start().await;
    let not_applicable = |exchange: &Exchange| exchange.asks_for_upgrade().then_some("an upgrade needs HTTP/1.1");
    scene.replay(not_applicable, play_over_http2).await;
}

/// An exchange while it is played.
struct Played {
    exchange: Exchange,
    /// How far the client has come: 1 for the head of the answer, and 1 for each byte of its body.
    progress: watch::Sender<usize>,
    /// Whether the API server has seen all of it, its end included.
    served: watch::Sender<bool>,
}

type Script = Arc<HashMap<String, Arc<Played>>>;

struct Scene {
    stub: Stub,
    _agent: Agent,
    upstream: ScriptedUpstream,
    user: User,
    /// For each case and each of its connections the exchanges.
    cases: Vec<(String, Vec<Vec<Arc<Played>>>)>,
}

impl Scene {
    async fn start() -> Self {
        let played = |exchange| Arc::new(Played::new(exchange));
        let connections = |capture: &capture::Capture| {
            let connections = exchanges(capture).into_iter();
            connections.map(|exchanges| exchanges.into_iter().map(played).collect()).collect()
        };
        let cases: Vec<(String, Vec<Vec<Arc<Played>>>)> =
            capture::load_all().iter().map(|capture| (capture.case.clone(), connections(capture))).collect();
        let all = cases.iter().flat_map(|(_, connections)| connections).flatten();
        let script: Script = Arc::new(all.map(|played| (played.exchange.id.clone(), played.clone())).collect());
        let upstream = ScriptedUpstream::start(move |head, connection| answer(script.clone(), head, connection)).await;
        let stub = Stub::start(StubOptions::default());
        let agent = Agent::start(&stub, CLUSTER, &upstream.upstream(), AgentOptions::default());
        stub.wait_for_agents(CLUSTER, 1);
        let user = User::of(&stub.kubeconfig(CLUSTER, USER, &GROUPS), stub.address);
        Self { stub, _agent: agent, upstream, user, cases }
    }

    /// Plays every case and prints what became of it. A case with an exchange that is `not_applicable` is played without it.
    async fn replay<P, F>(self, not_applicable: impl Fn(&Exchange) -> Option<&'static str>, play: P)
    where
        P: Fn(User, Vec<Arc<Played>>) -> F + Copy + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        assert!(self.cases.len() > 130, "only {} cases", self.cases.len());
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut running = JoinSet::new();
        let mut rows = BTreeMap::new();
        for (case, connections) in &self.cases {
            let mut row = Row::default();
            for exchanges in connections {
                let mut to_play = exchanges.clone();
                to_play.retain(|played| {
                    let why_not = not_applicable(&played.exchange);
                    row.why_not = row.why_not.or(why_not);
                    why_not.is_none()
                });
                row.played += to_play.len();
                row.upgrades += to_play.iter().filter(|played| played.is_upgrade()).count();
                if to_play.is_empty() {
                    continue;
                }
                let (user, places) = (self.user.clone(), places.clone());
                running.spawn(async move {
                    let _place = places.acquire().await.expect("open");
                    play(user, to_play).await;
                });
            }
            rows.insert(case, row);
        }
        while let Some(result) = running.join_next().await {
            if let Err(failure) = result {
                self.upstream.check();
                std::panic::resume_unwind(failure.into_panic());
            }
        }
        self.upstream.check();
        print_table(&rows);
        self.stub.wait_until_idle(CLUSTER);
    }
}

#[derive(Default)]
struct Row {
    played: usize,
    upgrades: usize,
    why_not: Option<&'static str>,
}

fn print_table(rows: &BTreeMap<&String, Row>) {
    println!("{:42} {:>9} {:>9}  left out", "case", "exchanges", "upgrades");
    for (case, Row { played, upgrades, why_not }) in rows {
        println!("{case:42} {played:9} {upgrades:9}  {}", why_not.unwrap_or_default());
    }
    let exchanges: usize = rows.values().map(|row| row.played).sum();
    let upgrades: usize = rows.values().map(|row| row.upgrades).sum();
    println!("{:42} {exchanges:9} {upgrades:9}", format!("{} cases", rows.len()));
}

impl Played {
    fn new(exchange: Exchange) -> Self {
        Self { exchange, progress: watch::Sender::new(0), served: watch::Sender::new(false) }
    }

    async fn wait_until_served(&self) {
        let mut served = self.served.subscribe();
        let what = format!("{}: the end of the exchange at the API server", self.exchange.id);
        within(&what, served.wait_for(|served| *served)).await.expect("the exchange lives");
    }

    fn is_upgrade(&self) -> bool {
        matches!(self.exchange.rest, Rest::Upgraded(_))
    }

    /// The request as it is sent to the stub.
    fn request(&self, user: &User) -> Head {
        let Head { first_line, headers } = &self.exchange.request;
        let (method, rest) = first_line.split_once(' ').expect("a request line");
        let mut request = Head { first_line: format!("{method} {}{rest}", user.prefix), headers: headers.clone() };
        for (name, value) in &mut request.headers {
            if name == "Host" {
                *value = user.host.clone();
            }
        }
        request.headers.push((EXCHANGE.to_owned(), self.exchange.id.clone()));
        request
    }
}

/// The client's side of a connection, over HTTP/1.1.
async fn play_over_http1(user: User, exchanges: Vec<Arc<Played>>) {
    play_in_order_over_http1(&user, &exchanges).await;
    for played in exchanges {
        played.wait_until_served().await;
    }
}

async fn play_in_order_over_http1(user: &User, exchanges: &[Arc<Played>]) {
    let mut connection = user.connect().await;
    for played in exchanges {
        let Exchange { id, request, body, rest, .. } = &played.exchange;
        let bytes = [played.request(user).to_bytes(), body.clone()].concat();
        within(id, connection.write(&bytes)).await.expect("the request is sent");
        let head = within(id, connection.head()).await.expect("an answer").expect("an answer");
        compare_answer_head(&played.exchange, &head);
        match rest {
            Rest::Body(recorded) => {
                let mut decoder = BodyDecoder::new(head.answer_framing(request.method()));
                let mut body = Vec::new();
                played.progress.send_replace(1);
                while !decoder.is_complete() && (recorded.complete || body.len() < recorded.body.len()) {
                    let more = within(id, connection.body_piece(&mut decoder, &mut body)).await;
                    assert!(more.unwrap_or_else(|error| panic!("{id}: {error}")), "{id}: the answer ended early");
                    played.progress.send_replace(1 + body.len());
                }
                assert_eq!(decoder.is_complete(), recorded.complete, "{id}: the end of the answer");
                assert!(body == recorded.body, "{id}: the body differs");
            }
            // Nothing can follow an upgrade on its connection.
            Rest::Upgraded(steps) => return play_steps(Side::Client, steps, connection, id).await,
        }
    }
}

/// The client's side of the plain requests of a connection, over HTTP/2.
async fn play_over_http2(user: User, exchanges: Vec<Arc<Played>>) {
    let connection = user.connect_http2().await;
    for played in exchanges {
        play_one_over_http2(&user, connection.clone(), &played).await;
        played.wait_until_served().await;
    }
}

async fn play_one_over_http2(user: &User, mut connection: Http2, played: &Played) {
    let Exchange { id, body, .. } = &played.exchange;
    let Rest::Body(recorded) = &played.exchange.rest else { panic!("{id}: not a plain request") };
    let head = played.request(user);
    let mut request = http::Request::builder().method(head.method()).uri(user.uri(played.exchange.request.target()));
    for (name, value) in head.without(|name| name == "host" || name == "connection").headers {
        request = request.header(name, value);
    }
    let body = Full::new(Bytes::from(body.clone())).map_err(|never| match never {}).boxed_unsync();
    let answer = connection.send_request(request.body(body).expect("a request"));
    let (head, mut answer) = within(id, answer).await.unwrap_or_else(|error| panic!("{id}: {error}")).into_parts();
    let lines = head.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned()));
    let head = Head { first_line: format!("HTTP/2 {}", head.status), headers: lines.collect() };
    compare_answer_head(&played.exchange, &head);
    played.progress.send_replace(1);
    let mut body = Vec::new();
    while recorded.complete || body.len() < recorded.body.len() {
        let Some(frame) = within(id, answer.frame()).await else { break };
        body.extend_from_slice(&frame.unwrap_or_else(|error| panic!("{id}: {error}")).into_data().expect("data"));
        played.progress.send_replace(1 + body.len());
    }
    assert!(body == recorded.body, "{id}: the body differs");
}

/// Everything that reaches the API server.
async fn answer(script: Script, head: Head, mut connection: UpstreamConnection) -> Next {
    let (body, complete) = within("the body of a request", connection.wire.request_body(&head)).await;
    assert!(complete, "the body of {} broke off", head.first_line);
    if head.target() == ACCESS_REVIEWS {
        return allow(&body, connection).await;
    }
    let id = head.header(EXCHANGE).unwrap_or_else(|| panic!("not a recorded request: {head:?}"));
    let played = script.get(id).unwrap_or_else(|| panic!("not a recorded exchange: {id}"));
    compare_request(&played.exchange, &head, &body);
    let next = match &played.exchange.rest {
        Rest::Body(recorded) => say(recorded, played, connection).await,
        Rest::Upgraded(steps) => {
            let mut bytes = played.exchange.answer.to_bytes();
            let mut steps = steps.as_slice();
            // What came together with the head goes out together with it.
            if let [Step::Bytes(Side::Server, early), rest @ ..] = steps {
                bytes.extend_from_slice(early);
                steps = rest;
            }
            within(id, connection.wire.write(&bytes)).await.expect("the 101 is sent");
            play_steps(Side::Server, steps, connection.wire, id).await;
            None
        }
    };
    played.served.send_replace(true);
    next
}

/// Says a recorded answer, no piece before the client has all of the last one.
async fn say(recorded: &AnswerBody, played: &Played, mut connection: UpstreamConnection) -> Next {
    let Exchange { id, answer, request, .. } = &played.exchange;
    let mut progress = played.progress.subscribe();
    let mut said = Vec::new();
    for piece in &recorded.pieces {
        within(id, connection.wire.write(piece)).await.unwrap_or_else(|error| panic!("{id}: {error}"));
        said.extend_from_slice(piece);
        let Some((_, head_length)) = Head::parse(&said) else { continue };
        let mut available = Vec::new();
        BodyDecoder::new(answer.answer_framing(request.method())).feed(&said[head_length..], &mut available);
        let what = format!("{id}: {} bytes of the answer's body at the client", available.len());
        within(&what, progress.wait_for(|come| *come > available.len())).await.expect("the exchange lives");
    }
    let used_up = played.exchange.asks_for_upgrade() || !recorded.complete;
    if !used_up {
        return Some(connection);
    }
    // A refused upgrade is never pooled, and a client that has gone cancels its request.
    let (rest, _end) = within(&format!("{id}: the end of the connection"), connection.wire.rest()).await;
    assert!(rest.is_empty(), "{id}: {} bytes after the request", rest.len());
    None
}

async fn allow(review: &[u8], mut connection: UpstreamConnection) -> Next {
    let review: serde_json::Value = serde_json::from_slice(review).expect("a review");
    assert_eq!(review["spec"]["user"], USER);
    let body = r#"{"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1","status":{"allowed":true}}"#;
    let head =
        format!("HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    within("a review", connection.wire.write(&[head.as_bytes(), body.as_bytes()].concat())).await.expect("an answer");
    Some(connection)
}

/// Plays one side of an upgraded connection: says what is its own, and wants to hear the other's, in the recorded order.
async fn play_steps<S: Ending>(me: Side, steps: &[Step], mut wire: Wire<S>, id: &str) {
    for (number, step) in steps.iter().enumerate() {
        let id = format!("{id}, step {number} of {}, {me:?}", steps.len());
        match step {
            Step::Bytes(side, bytes) if *side == me => {
                within(&id, wire.write(bytes)).await.unwrap_or_else(|error| panic!("{id}: {error}"));
            }
            Step::Bytes(_, bytes) => {
                let heard =
                    within(&id, wire.exactly(bytes.len())).await.unwrap_or_else(|error| panic!("{id}: {error}"));
                assert!(heard == *bytes, "{id}: other bytes than recorded");
            }
            Step::End(side, How::Eof) if *side == me => {
                within(&id, wire.finish()).await.unwrap_or_else(|error| panic!("{id}: {error}"));
            }
            Step::End(side, How::Reset) if *side == me => return S::reset(wire),
            Step::End(_, how) => {
                let (rest, end) = within(&id, wire.rest()).await;
                assert!(rest.is_empty(), "{id}: {} more bytes than recorded", rest.len());
                assert_eq!(end == End::Clean, *how == How::Eof, "{id}: recorded {how:?}, came {end:?}");
            }
        }
    }
}

/// A socket that can be ended with RST.
trait Ending: AsyncRead + AsyncWrite + Unpin + Sized {
    fn reset(wire: Wire<Self>);
}

impl Ending for tokio::net::TcpStream {
    fn reset(wire: Wire<Self>) {
        support::scripted_upstream::reset_on_drop(&wire.socket);
    }
}

impl Ending for tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    fn reset(wire: Http1) {
        support::user::reset(wire);
    }
}

/// Headers between client and API server that the tunnel has to replace.
fn is_replaced(name: &str) -> bool {
    matches!(name, "host" | "authorization" | "audit-id" | "x-forwarded-for") || name.starts_with("impersonate-")
}

fn compare_request(exchange: &Exchange, head: &Head, body: &[u8]) {
    let Exchange { id, request, .. } = exchange;
    assert_eq!(head.first_line, request.first_line, "{id}");
    assert!(body == exchange.body, "{id}: the request's body differs");

    let exchange_id = EXCHANGE.to_ascii_lowercase();
    let came = head.without(|name| is_replaced(name) || name == exchange_id).multimap();
    assert_eq!(came, request.without(is_replaced).multimap(), "{id}: the request's headers");

    let values = |name| head.values(name).collect::<Vec<_>>();
    assert_eq!(values("authorization"), [format!("Bearer {AGENT_TOKEN}")], "{id}");
    assert_eq!(values("x-forwarded-for"), ["127.0.0.1"], "{id}");
    assert_eq!(values("audit-id").iter().map(|id| id.len()).collect::<Vec<_>>(), [36], "{id}");
    assert_eq!(values("host").len(), 1, "{id}");
    let extra = values("impersonate-extra-qtunnel.dev%2foriginal-user");
    match request.header("impersonate-user") {
        Some(requested) => {
            assert_eq!(values("impersonate-user"), [requested], "{id}");
            let requested_groups: Vec<_> = request.values("impersonate-group").collect();
            assert_eq!(values("impersonate-group"), requested_groups, "{id}");
            assert_eq!(extra, [USER], "{id}");
        }
        None => {
            assert_eq!(values("impersonate-user"), [USER], "{id}");
            assert_eq!(values("impersonate-group"), GROUPS, "{id}");
            assert!(extra.is_empty(), "{id}");
        }
    }
}

fn compare_answer_head(exchange: &Exchange, head: &Head) {
    let Exchange { id, answer, .. } = exchange;
    assert_eq!(head.status(), answer.status(), "{id}");
    // Of one connection only, unless it is the upgrade itself; and the framing that belongs to it.
    let of_the_connection =
        |name: &str| answer.status() != 101 && matches!(name, "connection" | "transfer-encoding" | "upgrade");
    let expected = answer.without(of_the_connection).multimap();
    let mut came = head.without(of_the_connection).multimap();
    // The front has a clock, names every request, and offers HTTP/3.
    for added in ["date", "audit-id", "alt-svc"] {
        if !expected.contains_key(added) {
            came.remove(added);
        }
    }
    assert_eq!(came, expected, "{id}: the answer's headers");
}
