//! HTTP/3 at the stub's front: whatever HTTP/1.1 and HTTP/2 can do, but for upgrades.

mod support;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h3::error::{Code, StreamError};
use rustix::process::Signal;
use tokio::sync::mpsc;

use support::http1::{Head, within};
use support::http3::{Http3, Http3Answer, quic};
use support::rogue::{dial, enroll, varints};
use support::scene::Scene;
use support::scripted_upstream::{Next, UpstreamConnection};
use support::tunnel::{AgentOptions, CLUSTER, StubOptions, Tunnel};
use support::user::{Answering, User, Version};

const PODS: &str = "/api/v1/namespaces/demo/pods";
const CONFIG_MAPS: &str = "/api/v1/namespaces/demo/configmaps";

fn tunnel() -> (Tunnel, User) {
    let tunnel = Tunnel::start_with(StubOptions::default(), AgentOptions::default());
    let user = User::of(&tunnel.kubeconfig(), tunnel.stub.address);
    (tunnel, user)
}

/// A request with a body, and all of the answer.
async fn send(user: &User, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> support::http1::Answer {
    let mut connection = user.connect_http3().await;
    let mut exchange = connection.send(user.http3_request(method, path, headers)).await.expect("a request is sent");
    exchange.send_data(Bytes::copy_from_slice(body.as_bytes())).await.expect("a body is sent");
    exchange.finish().await.expect("the end is sent");
    Answering::read_http3(exchange).await.rest().await
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_made_listed_changed_watched_and_removed() {
    let (tunnel, user) = tunnel();
    let json = [("content-type", "application/json")];
    let object = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"over-http3"},"data":{"a":"1"}}"#;
    assert_eq!(send(&user, "POST", CONFIG_MAPS, &json, object).await.head.status(), 201);
    let again = send(&user, "POST", CONFIG_MAPS, &json, object).await;
    assert_eq!(again.head.status(), 409, "{}", again.text());

    let list = user.ask_over(Version::Http3, "GET", CONFIG_MAPS).await;
    assert_eq!(list.head.status(), 200);
    assert!(list.text().contains("over-http3"));

    let mut watch = user.begin(Version::Http3, "GET", &format!("{CONFIG_MAPS}?watch=true"), &[]).await;
    assert_eq!(watch.head.status(), 200);
    let path = format!("{CONFIG_MAPS}/over-http3");
    let patched = send(
        &user,
        "PATCH",
        &path,
        &[("content-type", "application/merge-patch+json")],
        r#"{"data":{"a":"changed-over-http3"}}"#,
    )
    .await;
    assert_eq!(patched.head.status(), 200, "{}", patched.text());
    watch.until_contains("changed-over-http3").await;

    let deleted = user.ask_over(Version::Http3, "DELETE", &path).await;
    assert_eq!(deleted.head.status(), 200, "{}", deleted.text());
    watch.until_contains("DELETED").await;
    drop(watch);
    tunnel.wait_until_idle();
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_followed_until_the_client_goes_away() {
    let (tunnel, user) = tunnel();
    let pods = user.ask_over(Version::Http3, "GET", PODS).await.json();
    let pod = &pods["items"][0];
    let (name, container) = (&pod["metadata"]["name"], &pod["spec"]["containers"][0]["name"]);
    let (name, container) = (name.as_str().expect("a pod"), container.as_str().expect("a container"));
    let path = format!("{PODS}/{name}/log?follow=true&container={container}");
    let mut logs = user.begin(Version::Http3, "GET", &path, &[]).await;
    assert_eq!(logs.head.status(), 200);
    logs.until_contains("\n").await;
    assert_eq!(tunnel.stub.open_streams(CLUSTER), 1);
    drop(logs);
    tunnel.wait_until_idle();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_refused_in_the_words_of_kubernetes() {
    let (_tunnel, user) = tunnel();
    let elsewhere = user.with_prefix("/clusters/nowhere");
    elsewhere.ask_over(Version::Http3, "GET", PODS).await.expect_status(404, Some("NotFound"));
    let stranger = user.without_certificate();
    stranger.ask_over(Version::Http3, "GET", PODS).await.expect_status(401, Some("Unauthorized"));
    let headers = [("authorization", "Bearer wrong")];
    let answer = stranger.begin(Version::Http3, "GET", PODS, &headers).await.rest().await;
    answer.expect_status(401, Some("Unauthorized"));
    let exec = format!("{PODS}/web/exec?command=sh&stdout=true");
    let headers = [("connection", "Upgrade"), ("upgrade", "websocket")];
    let message = user.begin(Version::Http3, "GET", &exec, &headers).await.rest().await;
    let message = message.expect_status(400, Some("BadRequest"));
    assert!(message.contains("HTTP/1.1"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_token_authenticates() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("tokens.csv");
    std::fs::write(&file, "secret,tina,u1,\"devs\"\n").expect("a file");
    let options = StubOptions::default().set("authentication", "token_file", file.to_str().expect("a path"));
    let scene =
        Scene::start_with(options, &[], async |_head, connection| connection.answer("200 OK", &[], "fine").await).await;
    let user = scene.user.without_certificate();
    let answer = user.begin(Version::Http3, "GET", PODS, &[("authorization", "Bearer secret")]).await.rest().await;
    assert_eq!(answer.text(), "fine");
}

/// Answers with how long the body was.
async fn measure(head: Head, mut connection: UpstreamConnection) -> Next {
    let (body, whole) = within("a body", connection.wire.request_body(&head)).await;
    connection.answer("200 OK", &[], &format!("{} {whole}", body.len())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_goes_up_and_a_large_one_comes_down() {
    const PIECES: usize = 512;
    const PIECE: usize = 64 * 1024;
    let scene = Scene::start(async |head: Head, mut connection: UpstreamConnection| match head.method() {
        "GET" => {
            connection.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", PIECES * PIECE)).await;
            for _ in 0..PIECES {
                connection.say(vec![b'x'; PIECE]).await;
            }
            Some(connection)
        }
        _ => measure(head, connection).await,
    })
    .await;
    for length in [Some((PIECES * PIECE).to_string()), None] {
        let mut connection = scene.user.connect_http3().await;
        let headers: Vec<_> = length.iter().map(|length| ("content-length", length.as_str())).collect();
        let mut exchange = connection.send(scene.user.http3_request("PUT", PODS, &headers)).await.expect("a request");
        for _ in 0..PIECES {
            let piece = Bytes::from(vec![b'x'; PIECE]);
            within("a piece is sent", exchange.send_data(piece)).await.expect("a piece is sent");
        }
        exchange.finish().await.expect("the end is sent");
        let answer = Answering::read_http3(exchange).await.rest().await;
        assert_eq!(answer.text(), format!("{} true", PIECES * PIECE));
    }
    let answer = scene.user.ask_over(Version::Http3, "GET", PODS).await;
    assert!(answer.complete);
    assert_eq!(answer.body.len(), PIECES * PIECE);
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_never_reaches_the_api_server_whole() {
    let (seen, mut bodies) = mpsc::unbounded_channel();
    let scene = Scene::start(move |head: Head, mut connection: UpstreamConnection| {
        let seen = seen.clone();
        async move {
            seen.send(None).expect("the test listens");
            let (_part, whole) = within("a body", connection.wire.request_body(&head)).await;
            seen.send(Some(whole)).expect("the test listens");
            None
        }
    })
    .await;
    let mut connection = scene.user.connect_http3().await;
    // Cut by a reset, and by an end before the length is reached.
    for is_reset in [true, false] {
        let request = scene.user.http3_request("PUT", PODS, &[("content-length", "1000")]);
        let mut exchange = connection.send(request).await.expect("a request");
        exchange.send_data(Bytes::from_static(b"part")).await.expect("a part");
        assert_eq!(within("the request arrives", bodies.recv()).await, Some(None));
        match is_reset {
            true => exchange.stop_stream(Code::H3_REQUEST_CANCELLED),
            false => exchange.finish().await.expect("the end"),
        }
        assert_eq!(within("its end arrives", bodies.recv()).await, Some(Some(false)));
        assert_eq!(within("an answer", exchange.recv_response()).await.expect("an answer").status(), 504);
    }
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_is_a_reset_and_never_an_end() {
    let (break_off, breaks_off) = tokio::sync::watch::channel(false);
    let scene = Scene::start(move |_head: Head, mut connection: UpstreamConnection| {
        let mut breaks_off = breaks_off.clone();
        async move {
            connection.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n").await;
            within("the test goes on", breaks_off.wait_for(|breaks_off| *breaks_off)).await.expect("it runs");
            connection.reset();
            None
        }
    })
    .await;
    let mut connection = scene.user.connect_http3().await;
    let mut exchange = connection.send(scene.user.http3_request("GET", PODS, &[])).await.expect("a request");
    exchange.finish().await.expect("the end");
    let (head, mut answer) = Http3Answer::begin(exchange, None).await.expect("an answer");
    assert_eq!(head.status(), 200);
    break_off.send(true).expect("the API server listens");
    let error = loop {
        match answer.more().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a clean end"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StreamError::RemoteTerminate { code: Code::H3_INTERNAL_ERROR, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_or_leaves_cancels_its_request_upstream() {
    let (gone, mut ends) = mpsc::unbounded_channel();
    let scene = Scene::start(move |_head: Head, mut connection: UpstreamConnection| {
        let gone = gone.clone();
        async move {
            connection.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n").await;
            within("the agent hangs up", connection.wire.rest()).await;
            gone.send(()).expect("the test listens");
            None
        }
    })
    .await;
    let mut connection = scene.user.connect_http3().await;
    let watch = format!("{PODS}?watch=true");
    for leaves in [false, true] {
        let mut exchange = connection.send(scene.user.http3_request("GET", &watch, &[])).await.expect("a request");
        exchange.finish().await.expect("the end");
        within("an answer", exchange.recv_response()).await.expect("an answer");
        match leaves {
            false => exchange.stop_sending(Code::H3_REQUEST_CANCELLED),
            true => connection.connection.close(0x100_u32.into(), b""),
        }
        within("the request is cancelled", ends.recv()).await.expect("the API server runs");
    }
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_pass_both_ways() {
    let (seen, mut trailers) = mpsc::unbounded_channel();
    let scene = Scene::start(move |_head: Head, mut connection: UpstreamConnection| {
        let seen = seen.clone();
        async move {
            let mut body = String::new();
            while !body.ends_with("\r\n\r\n") {
                let piece = within("a body", connection.wire.some()).await.expect("bytes");
                body.push_str(&String::from_utf8_lossy(&piece));
            }
            seen.send(body).expect("the test listens");
            let answer = "Transfer-Encoding: chunked\r\nTrailer: down\r\n\r\n2\r\nok\r\n0\r\ndown: 2\r\n\r\n";
            connection.say(format!("HTTP/1.1 200 OK\r\n{answer}")).await;
            Some(connection)
        }
    })
    .await;
    let mut connection = scene.user.connect_http3().await;
    let request = scene.user.http3_request("POST", PODS, &[("te", "trailers"), ("trailer", "up")]);
    let mut exchange = connection.send(request).await.expect("a request");
    exchange.send_data(Bytes::from_static(b"body")).await.expect("a body");
    let mut fields = http::HeaderMap::new();
    fields.insert("up", "1".parse().expect("a value"));
    exchange.send_trailers(fields).await.expect("trailers");
    exchange.finish().await.expect("the end");
    let came = within("a request", trailers.recv()).await.expect("the API server runs");
    assert!(came.contains("up: 1") || came.contains("Up: 1"), "{came}");
    let (_, mut answer) = Http3Answer::begin(exchange, None).await.expect("an answer");
    while answer.more().await.expect("a body").is_some() {}
    let trailers = answer.trailers().await.expect("trailers").expect("trailers");
    assert_eq!(trailers["down"], "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_protocol_decides_whose_certificate_it_has_to_be() {
    let (tunnel, user) = tunnel();
    // An agent's certificate makes no user, and is no way around a missing one.
    let agent = enroll(&tunnel.stub, CLUSTER).await;
    let impostor = user.with_certificate(agent.chain().to_vec(), agent.key().clone_key());
    if let Ok(mut connection) = Http3::connect(&impostor).await {
        if let Ok(mut exchange) = connection.send(user.http3_request("GET", PODS, &[])).await {
            let _ = exchange.finish().await;
            assert!(within("the end", exchange.recv_response()).await.is_err(), "an answer");
        }
        let reason = within("the end", connection.connection.closed()).await.to_string();
        assert!(reason.contains("the users' authority does not vouch for the certificate"), "{reason}");
    }
    // A user's certificate opens no tunnel.
    let (connection, _endpoint) = quic(&user, b"qtunnel/1").await.expect("a handshake");
    let reason = within("the end", connection.closed()).await.to_string();
    assert!(reason.contains("the agents' authority does not vouch for the certificate"), "{reason}");
    assert_eq!(tunnel.stub.agents(CLUSTER).len(), 1, "only the real agent");
    // And the real ones work still.
    dial(&tunnel.stub, &agent).await;
    assert_eq!(user.ask_over(Version::Http3, "GET", PODS).await.head.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_by_tcp_tell_of_http3_unless_told_not_to() {
    let (tunnel, user) = tunnel();
    let port = tunnel.stub.address.port();
    for version in [Version::Http1, Version::Http2] {
        let answer = user.ask_over(version, "GET", PODS).await;
        // The settings of the test name the port only once the stub runs.
        assert!(
            answer.head.header("alt-svc").is_some_and(|told| told.starts_with("h3=\":")),
            "{:?} {port}",
            answer.head
        );
    }
    assert_eq!(user.ask_over(Version::Http3, "GET", PODS).await.head.header("alt-svc"), None);

    let quiet = StubOptions::default().set("http3", "advertise", false);
    let scene = Scene::start_with(quiet, &[], async |_head, connection| {
        connection.answer("200 OK", &[("Alt-Svc", "h3=\"elsewhere:443\"")], "fine").await
    })
    .await;
    for version in Version::ALL {
        let answer = scene.user.ask_over(version, "GET", PODS).await;
        assert_eq!((answer.text().as_str(), answer.head.header("alt-svc")), ("fine", None));
    }

    let off = StubOptions::default().set("http3", "enabled", false);
    let scene =
        Scene::start_with(off, &[], async |_head, connection| connection.answer("200 OK", &[], "fine").await).await;
    let answer = scene.user.ask_over(Version::Http2, "GET", PODS).await;
    assert_eq!((answer.text().as_str(), answer.head.header("alt-svc")), ("fine", None));
    assert!(Http3::connect(&scene.user).await.is_err(), "HTTP/3 is off");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stub_that_stops_ends_the_requests_that_it_has_and_takes_no_more() {
    let (release, released) = tokio::sync::watch::channel(false);
    let mut scene = Scene::start(move |_head: Head, mut connection: UpstreamConnection| {
        let mut released = released.clone();
        async move {
            connection.say("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf").await;
            within("the test goes on", released.wait_for(|released| *released)).await.expect("it runs");
            connection.say("half").await;
            Some(connection)
        }
    })
    .await;
    let mut connection = scene.user.connect_http3().await;
    let mut exchange = connection.send(scene.user.http3_request("GET", PODS, &[])).await.expect("a request");
    exchange.finish().await.expect("the end");
    let (_, mut answer) = Http3Answer::begin(exchange, None).await.expect("an answer");
    let mut body = BytesMut::from(&*answer.more().await.expect("a body").expect("a piece"));
    scene.stub.process.signal(Signal::TERM);
    // GOAWAY reaches the client, which makes no more requests then.
    let deadline = tokio::time::Instant::now() + support::DEADLINE;
    loop {
        assert!(tokio::time::Instant::now() < deadline, "no GOAWAY");
        match connection.sender.send_request(scene.user.http3_request("GET", PODS, &[])).await {
            Err(_closing) => break,
            Ok(mut exchange) => {
                let _ = exchange.finish().await;
                if tokio::time::timeout(Duration::from_millis(200), exchange.recv_response())
                    .await
                    .is_ok_and(|head| head.is_err())
                {
                    break;
                }
            }
        }
    }
    release.send(true).expect("the API server listens");
    while let Some(piece) = answer.more().await.expect("the rest of the answer") {
        body.extend_from_slice(&piece);
    }
    assert_eq!(&body[..], b"halfhalf");
    assert!(scene.stub.process.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_without_measure_cost_the_client_its_connection_and_the_stub_nothing() {
    let scene =
        Scene::start(async |_head, connection: UpstreamConnection| connection.answer("200 OK", &[], "fine").await)
            .await;
    assert_eq!(scene.user.ask_over(Version::Http3, "GET", PODS).await.text(), "fine");
    let before = scene.stub.process.resident_memory();
    let stranger = scene.user.without_certificate();
    // Heads, reserved frames and settings that announce a gigabyte.
    for (unidirectional, beginning) in [
        (false, varints(&[0x01, 1 << 30])),
        (false, varints(&[0x21, 1 << 30])),
        (true, varints(&[0x00, 0x04, 1 << 30])),
    ] {
        let (connection, _endpoint) = quic(&stranger, b"h3").await.expect("a connection");
        let mut stream = match unidirectional {
            true => connection.open_uni().await.expect("a stream"),
            false => connection.open_bi().await.expect("a stream").0,
        };
        let flood = async {
            stream.write_all(&beginning).await?;
            for _ in 0..1024 {
                stream.write_all(&[0; 256 * 1024]).await?;
            }
            Ok::<_, quinn::WriteError>(())
        };
        assert!(within("the stub stops it", flood).await.is_err());
    }
    // An end within a DATA frame.
    let (connection, _endpoint) = quic(&scene.user, b"h3").await.expect("a connection");
    let (mut stream, _answer) = connection.open_bi().await.expect("a stream");
    stream.write_all(&varints(&[0x01, 1])).await.expect("a stream");
    stream.finish().expect("a stream");
    assert_eq!(scene.user.ask_over(Version::Http3, "GET", PODS).await.text(), "fine");
    let grown = scene.stub.process.resident_memory().saturating_sub(before);
    assert!(grown < 32 << 20, "the stub has grown by {} MiB", grown >> 20);
    scene.wait_until_settled();
}
