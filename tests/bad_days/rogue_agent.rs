//! An agent with real credentials that breaks the protocol. What it breaks is its own stream, or its own connection; the
//! stub goes on, for it and for others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use qtunnel::carrier::{Connection, FrameReceiver, StreamWriteError};
use qtunnel::wire::{Enroll, ErrorCode, Failure, FailureReason, Frame, FrameReader, Trailers};

use super::LIST;
use super::support::http1::within;
use super::support::process::Process;
use super::support::rogue::{
    RogueAgent, closed_with, data, dial, enroll, frames, hello, message, report, response_head, varints, write,
};
use super::support::scene::Scene;
use super::support::tunnel::StubOptions;
use super::support::user::{User, Version};

const ROGUE_CLUSTER: &str = "rogue";

/// What the stub may grow by, in bytes: a window of 16 MiB, twice.
const BOUND: u64 = 32 << 20;

/// How a rogue's answer ends behind its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    Cleanly,
    WithReset(ErrorCode),
    /// It is left open; the stub has to stop it with this code.
    Stopped(ErrorCode),
}

/// What the user sees of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sees {
    /// A failure in the stub's words.
    Status(u16),
    /// An answer that breaks off.
    BreakOff,
    /// One or the other: the break may overtake the head of the answer.
    Nothing,
    /// A whole answer with the body "fine".
    Fine,
}

type Case = (&'static str, Vec<u8>, Ends, Sees);

const HUGE: u64 = 1 << 40;
const DATA: u64 = 0x00;
const RESPONSE_HEAD: u64 = 0x02;
const TRAILERS: u64 = 0x03;
const UNKNOWN: u64 = 0x2a;
const STATUS_FIELD: u64 = 0x01;
const HEADER_FIELD: u64 = 0x03;

/// A head whose one header is `name` and `value`, whatever they are.
fn head_with(name: &[u8], value: &[u8]) -> Vec<u8> {
    let pair = [&varints(&[name.len() as u64]), name, value].concat();
    message(RESPONSE_HEAD, &[(STATUS_FIELD, &varints(&[200])), (HEADER_FIELD, &pair)])
}

fn no_trailers() -> Frame {
    Frame::Trailers(Trailers(HeaderMap::new()))
}

fn head_with_status(status: u64) -> Vec<u8> {
    message(RESPONSE_HEAD, &[(STATUS_FIELD, &varints(&[status]))])
}

fn cases() -> Vec<Case> {
    use ErrorCode::{LimitExceeded, ProtocolViolation};
    let ok = || response_head(200, &[]);
    let violation = Ends::Stopped(ProtocolViolation);
    let limit = Ends::Stopped(LimitExceeded);
    let failure =
        Frame::Failure(Failure { reason: FailureReason::Internal, dispatched: false, message: "no".to_owned() });
    let begun = |rest: &[u8]| [&frames(&[ok(), data("half")]), rest].concat();
    vec![
        // Before the head.
        ("nothing", vec![], Ends::Cleanly, Sees::Status(504)),
        ("reset", vec![], Ends::WithReset(ErrorCode::Internal), Sees::Status(504)),
        ("not-dispatched", vec![], Ends::WithReset(ErrorCode::NotDispatched), Sees::Status(503)),
        ("data-first", frames(&[data("x")]), violation, Sees::Status(504)),
        ("trailers-first", frames(&[no_trailers()]), violation, Sees::Status(504)),
        ("report", frames(&[report()]), violation, Sees::Status(504)),
        ("garbage", vec![0xff; 1000], limit, Sees::Status(504)),
        ("huge-head", varints(&[RESPONSE_HEAD, HUGE]), limit, Sees::Status(504)),
        ("huge-unknown", varints(&[UNKNOWN, HUGE]), limit, Sees::Status(504)),
        ("head-cut", [varints(&[RESPONSE_HEAD, 1000]), vec![1; 10]].concat(), Ends::Cleanly, Sees::Status(504)),
        ("header-cut", vec![0x80], Ends::Cleanly, Sees::Status(504)),
        ("fields-of-nothing", message(RESPONSE_HEAD, &[]), violation, Sees::Status(504)),
        ("fields-of-garbage", [varints(&[RESPONSE_HEAD, 9]), vec![0xff; 9]].concat(), violation, Sees::Status(504)),
        ("unknown-field", message(RESPONSE_HEAD, &[(0x3f, b"")]), violation, Sees::Status(504)),
        ("interim", head_with_status(100), violation, Sees::Status(504)),
        ("no-status", head_with_status(7), violation, Sees::Status(504)),
        ("unasked-101", frames(&[response_head(101, &[])]), violation, Sees::Status(504)),
        ("bad-name", head_with(b"a b", b"x"), violation, Sees::Status(504)),
        ("split-answer", head_with(b"x", b"1\r\nSet-Cookie: y"), violation, Sees::Status(504)),
        ("connection", head_with(b"connection", b"content-length"), Ends::Cleanly, Sees::Status(502)),
        // After it.
        ("two-heads", begun(&frames(&[ok()])), violation, Sees::Nothing),
        ("failure-behind", begun(&frames(&[failure])), violation, Sees::Nothing),
        ("huge-data", begun(&varints(&[DATA, HUGE])), limit, Sees::Nothing),
        ("huge-trailers", begun(&varints(&[TRAILERS, HUGE])), limit, Sees::Nothing),
        ("data-behind-trailers", begun(&frames(&[no_trailers(), data("more")])), violation, Sees::Nothing),
        ("data-cut", begun(&[&varints(&[DATA, 100]), b"cut".as_slice()].concat()), Ends::Cleanly, Sees::Nothing),
        ("reset-behind", begun(&[]), Ends::WithReset(ErrorCode::UpstreamAborted), Sees::Nothing),
        (
            "shorter-than-said",
            frames(&[response_head(200, &[("content-length", "100")]), data("half")]),
            Ends::Cleanly,
            Sees::BreakOff,
        ),
        (
            "longer-than-said",
            frames(&[response_head(200, &[("content-length", "2")]), data("half")]),
            Ends::Cleanly,
            Sees::Nothing,
        ),
        (
            "two-lengths",
            frames(&[response_head(200, &[("content-length", "4"), ("content-length", "2")]), data("fine")]),
            Ends::Cleanly,
            Sees::Status(502),
        ),
        (
            "no-length",
            frames(&[response_head(200, &[("content-length", "-4")]), data("fine")]),
            Ends::Cleanly,
            Sees::Status(502),
        ),
        // What is allowed.
        (
            "skipped",
            [varints(&[UNKNOWN, 3]), b"abc".to_vec(), frames(&[ok()]), varints(&[UNKNOWN, 0]), frames(&[data("fine")])]
                .concat(),
            Ends::Cleanly,
            Sees::Fine,
        ),
        ("trailers", frames(&[ok(), data("fine"), no_trailers()]), Ends::Cleanly, Sees::Fine),
        (
            "two-framings",
            frames(&[response_head(200, &[("transfer-encoding", "chunked"), ("content-length", "4")]), data("fine")]),
            Ends::Cleanly,
            Sees::Fine,
        ),
    ]
}

/// Answers every request as its target says, until the connection is gone.
async fn misbehave(agent: RogueAgent, cases: Arc<HashMap<String, Case>>) {
    while let Ok((mut send, recv)) = agent.connection.accept().await {
        let cases = cases.clone();
        tokio::spawn(async move {
            let mut frames_in = FrameReceiver::new(recv, FrameReader::for_accepted_stream());
            let head = within("a request", frames_in.next_frame()).await.expect("a frame");
            let Some(Frame::RequestHead(head)) = head else { panic!("not a head: {head:?}") };
            let (name, bytes, ends, _) = &cases[head.target.path()];
            match within("bytes are written", send.write(&mut [Bytes::from(bytes.clone())])).await {
                Ok(()) => {}
                Err(StreamWriteError::Stopped(_)) if matches!(ends, Ends::Stopped(_)) => {}
                Err(error) => panic!("{name}: {error}"),
            }
            match ends {
                Ends::Cleanly => send.finish(),
                Ends::WithReset(code) => send.reset(*code),
                Ends::Stopped(code) => {
                    let stopped = within(&format!("{name} is stopped"), send.stopped()).await;
                    assert_eq!(stopped, Some(*code), "{name}");
                }
            }
            // What the stub says until the end is not looked at.
            while let Ok(Some(_)) = frames_in.next_frame().await {}
        });
    }
}

#[track_caller]
fn expect(name: &str, version: Version, sees: Sees, answer: Result<super::support::http1::Answer, String>) {
    let answer = match (sees, answer) {
        (Sees::Nothing | Sees::BreakOff, Err(_aborted)) => return,
        (_, answer) => answer.unwrap_or_else(|error| panic!("{name} over {version:?}: {error}")),
    };
    let status = answer.head.status();
    let seen = (status, answer.complete, answer.text());
    let as_expected = match sees {
        Sees::Status(expected) => status == expected && answer.complete && answer.json()["kind"] == "Status",
        Sees::BreakOff => !answer.complete,
        Sees::Nothing => !answer.complete || [502, 504].contains(&status),
        Sees::Fine => status == 200 && answer.complete && answer.text() == "fine",
    };
    assert!(as_expected, "{name} over {version:?}: {seen:?} instead of {sees:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_the_protocol_ends_its_own_stream_alone() {
    let scene = Scene::start(|_head, connection| connection_fine(connection)).await;
    let credentials = enroll(&scene.stub, ROGUE_CLUSTER).await;
    let rogue = RogueAgent::connect(&scene.stub, &credentials).await;
    let rogue_connection = rogue.connection.clone();
    let by_target = cases().into_iter().map(|case| (format!("/{}", case.0), case)).collect();
    let rogue = tokio::spawn(misbehave(rogue, Arc::new(by_target)));
    let user = scene.user.with_prefix(&format!("/clusters/{ROGUE_CLUSTER}"));
    let before = scene.stub.process.resident_memory();
    for (name, _, _, sees) in cases() {
        for version in Version::ALL {
            let answer = user.try_to_ask(version, "GET", &format!("/{name}")).await;
            expect(name, version, sees, answer);
            let next = user.ask_over(version, "GET", "/skipped").await;
            assert_eq!(next.text(), "fine", "the same agent, after {name}");
        }
    }
    expect_others_served(&scene.user).await;
    assert!(!rogue.is_finished(), "the rogue's connection lives on");
    scene.stub.wait_until_idle(ROGUE_CLUSTER);
    expect_bounded(&scene.stub.process, before);
    rogue_connection.close(ErrorCode::NoError, "done");
    scene.wait_until_settled();
}

async fn connection_fine(
    connection: super::support::scripted_upstream::UpstreamConnection,
) -> super::support::scripted_upstream::Next {
    connection.answer("200 OK", &[], "fine").await
}

async fn expect_others_served(user: &User) {
    for version in Version::ALL {
        assert_eq!(user.ask_over(version, "GET", LIST).await.text(), "fine");
    }
}

#[track_caller]
fn expect_bounded(process: &Process, before: u64) {
    let grown = process.resident_memory().saturating_sub(before);
    println!("grown by {} KiB", grown >> 10);
    assert!(grown < BOUND, "grown by {} MiB", grown >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_stream_that_breaks_the_protocol_ends_its_own_connection_alone() {
    use ErrorCode::{LimitExceeded, ProtocolViolation, UnknownStreamKind};
    let scene = Scene::start(|_head, connection| connection_fine(connection)).await;
    let credentials = enroll(&scene.stub, ROGUE_CLUSTER).await;
    let hello = hello(&credentials);
    let after = |rest: Vec<u8>| [hello.clone(), rest].concat();
    let before = scene.stub.process.resident_memory();
    let cases: Vec<(&str, Vec<u8>, bool, ErrorCode)> = vec![
        ("another kind", varints(&[0x02]), false, ProtocolViolation),
        ("an unknown kind", varints(&[0x77]), false, UnknownStreamKind),
        ("garbage", vec![0xff; 1000], false, UnknownStreamKind),
        ("an end at once", vec![], true, ProtocolViolation),
        ("no hello", [varints(&[0x01]), frames(&[report()])].concat(), false, ProtocolViolation),
        ("a huge hello", varints(&[0x01, 0x10, HUGE]), false, LimitExceeded),
        ("a cut hello", hello[..hello.len() - 1].to_vec(), true, ProtocolViolation),
        ("two hellos", after(hello[1..].to_vec()), false, ProtocolViolation),
        ("a head", after(varints(&[RESPONSE_HEAD, 0])), false, ProtocolViolation),
        ("data", after(frames(&[data("x")])), false, ProtocolViolation),
        ("a huge report", after(varints(&[0x13, HUGE])), false, LimitExceeded),
        ("a malformed report", after(message(0x13, &[(1, b"xx")])), false, ProtocolViolation),
        ("a huge unknown frame", after(varints(&[UNKNOWN, HUGE])), false, LimitExceeded),
        ("a cut report", after(varints(&[0x13, 10, 1])), true, ProtocolViolation),
        ("an end", after(vec![]), true, ErrorCode::NoError),
    ];
    for (name, bytes, finish, code) in cases {
        let connection = dial(&scene.stub, &credentials).await;
        let (mut send, _recv) = connection.open().await.expect("a stream");
        // The stub may have closed before all is written.
        let _ = send.write(&mut [Bytes::from(bytes)]).await;
        if finish {
            send.finish();
        } else {
            // Held open: the stub has to close by itself.
            tokio::spawn(async move { send.stopped().await });
        }
        assert_eq!(closed_with(&connection).await, code, "{name}");
    }
    expect_others_served(&scene.user).await;
    expect_bounded(&scene.stub.process, before);
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_frames_on_the_control_stream_are_skipped() {
    let scene = Scene::start(|_head, connection| connection_fine(connection)).await;
    let credentials = enroll(&scene.stub, ROGUE_CLUSTER).await;
    let mut agent = RogueAgent::connect(&scene.stub, &credentials).await;
    for _ in 0..1000 {
        write(&mut agent.control, &[varints(&[UNKNOWN, 3]), b"abc".to_vec()].concat()).await;
    }
    let down = message(0x13, &[(1, &varints(&[7])), (2, &varints(&[0])), (0x40, b"down")]);
    write(&mut agent.control, &down).await;
    super::support::eventually("the report behind them", || {
        scene.stub.agents(ROGUE_CLUSTER).iter().any(|agent| agent["upstreamError"] == "down").then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_say_nothing_are_closed_in_time() {
    let options = StubOptions::default().set("limits", "handshake_timeout", "500ms");
    let scene = Scene::start_with(options, &[], |_head, connection| connection_fine(connection)).await;
    let credentials = enroll(&scene.stub, ROGUE_CLUSTER).await;
    let silent = dial(&scene.stub, &credentials).await;
    assert_eq!(closed_with(&silent).await, ErrorCode::HandshakeTimeout);
    let half = dial(&scene.stub, &credentials).await;
    let (mut send, _recv) = half.open().await.expect("a stream");
    write(&mut send, &hello(&credentials)[..3]).await;
    assert_eq!(closed_with(&half).await, ErrorCode::HandshakeTimeout);
    expect_others_served(&scene.user).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_cannot_serve_another_cluster() {
    let scene = Scene::start(|_head, connection| connection_fine(connection)).await;
    let credentials = enroll(&scene.stub, ROGUE_CLUSTER).await;
    let connection = dial(&scene.stub, &credentials).await;
    let (mut send, recv) = connection.open().await.expect("a stream");
    // The name of the cluster is a field of the hello, and as long as the other one is made.
    let claim = message(0x10, &[(1, b"c1"), (2, &[0; 8])]);
    write(&mut send, &[varints(&[0x01]), claim].concat()).await;
    let mut control = FrameReceiver::new(recv, FrameReader::for_opened_control());
    let answer = within("a refusal", control.next_frame()).await.expect("a frame");
    assert!(matches!(answer, Some(Frame::Refused(_))), "{answer:?}");
    connection.close(ErrorCode::NoError, "understood");
    assert!(scene.stub.agents(ROGUE_CLUSTER).is_empty());
    assert_eq!(scene.stub.agents("c1").len(), 1);
    expect_others_served(&scene.user).await;
}

/// Opens as many streams as it may and writes to them as much as it may, `first` before all else.
async fn pour(connection: &Connection, first: &[u8]) {
    let stalled = Duration::from_secs(1);
    let mut streams = Vec::new();
    while let Ok(Ok((mut send, recv))) = tokio::time::timeout(stalled, connection.open()).await {
        // A kind that is known, so that nobody refuses the stream at once.
        let _ = send.write(&mut [Bytes::copy_from_slice(first)]).await;
        streams.push((send, recv));
    }
    let mut poured = 0;
    for (send, _recv) in &mut streams {
        let piece = || [Bytes::from_static(&[0x40; 1 << 16])];
        while let Ok(Ok(())) = tokio::time::timeout(stalled / 4, send.write(&mut piece())).await {
            poured += 1 << 16;
        }
    }
    println!("{} KiB on {} streams", poured >> 10, streams.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn enrolling_takes_one_stream() {
    let scene = Scene::start(|_head, connection| connection_fine(connection)).await;
    let token = scene.stub.token(ROGUE_CLUSTER).parse().expect("a token");
    let connection = super::support::rogue::dial_to_enroll(&scene.stub, &token).await;
    let mut streams = Vec::new();
    for _ in 0..2 {
        let (mut send, recv) = connection.open().await.expect("a stream");
        // The connection may be closed before all is written.
        let _ = send.write(&mut [varints(&[0x01]).into()]).await;
        streams.push((send, recv));
    }
    assert_eq!(closed_with(&connection).await, ErrorCode::ProtocolViolation);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_cannot_fill_the_stubs_memory() {
    let options = StubOptions::default().set("limits", "handshake_timeout", "20s");
    let scene = Scene::start_with(options, &[], |_head, connection| connection_fine(connection)).await;
    let token = scene.stub.token(ROGUE_CLUSTER).parse().expect("a token");
    let enroll = Enroll { token: "no token".to_owned(), request: Bytes::new() };
    let refused_enrolment = [varints(&[0x01]), frames(&[Frame::Enroll(enroll)])].concat();
    let before = scene.stub.process.resident_memory();
    let mut connections = Vec::new();
    for _ in 0..4 {
        let connection = super::support::rogue::dial_to_enroll(&scene.stub, &token).await;
        pour(&connection, &refused_enrolment).await;
        connections.push(connection);
    }
    expect_bounded(&scene.stub.process, before);
    expect_others_served(&scene.user).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_cannot_fill_the_stubs_memory() {
    let scene = Scene::start(|_head, connection| connection_fine(connection)).await;
    let credentials = enroll(&scene.stub, ROGUE_CLUSTER).await;
    let agent = RogueAgent::connect(&scene.stub, &credentials).await;
    let before = scene.stub.process.resident_memory();
    pour(&agent.connection, &[]).await;
    expect_bounded(&scene.stub.process, before);
    expect_others_served(&scene.user).await;
}
