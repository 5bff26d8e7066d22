//! The API server has a bad day.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use super::support::eventually;
use super::support::http1::{Answer, BodyDecoder, End, Head, within};
use super::support::scene::Scene;
use super::support::scripted_upstream::{Next, UpstreamConnection};
use super::support::tunnel::{Agent, AgentOptions, CLUSTER, Stub, StubOptions, Upstream};
use super::support::user::{User, Version, no_body};
use super::{EXEC, LIST, SPDY, SWITCHED};

/// The same question over HTTP/1.1 and over HTTP/2.
async fn ask_both(user: &User, method: &str, path: &str) -> [Answer; 2] {
    [user.ask_over(Version::Http1, method, path).await, user.ask_over(Version::Http2, method, path).await]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_overloaded_speaks_for_itself() {
    const BODY: &str = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"busy","code":503}"#;
    let headers =
        [("Retry-After", "17"), ("Content-Type", "application/json"), ("X-Kubernetes-Pf-Flowschema-Uid", "x")];
    let scene = Scene::start(move |_head, connection| async move {
        connection.answer("503 Service Unavailable", &headers, BODY).await
    })
    .await;
    for answer in ask_both(&scene.user, "GET", LIST).await {
        assert_eq!((answer.head.status(), answer.text().as_str()), (503, BODY));
        for (name, value) in headers {
            assert_eq!(answer.head.header(name), Some(value));
        }
    }
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_refuses_connections_invites_to_try_again() {
    // The port was free a moment ago, and nobody listens there now.
    let address = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let stub = Stub::start(StubOptions::default());
    let upstream = Upstream { url: format!("http://{address}"), ca: None, token_file: None };
    let _agent = Agent::start(&stub, CLUSTER, &upstream, AgentOptions::default());
    eventually("an agent that reports its API server down", || {
        stub.agents(CLUSTER).iter().any(|agent| agent["state"] == "upstream down").then_some(())
    });
    let user = User::of(&stub.kubeconfig(CLUSTER, "alice", &[]), stub.address);
    for answer in [ask_both(&user, "GET", LIST).await, ask_both(&user, "DELETE", LIST).await].as_flattened() {
        let message = answer.expect_status(503, Some("ServiceUnavailable"));
        assert!(message.contains("did not reach the API server"), "{message}");
        assert!(message.contains(&address.to_string()), "{message}");
        answer.expect_retry_after(Some("1"));
    }
    let upgrade = user.ask("POST", EXEC, &SPDY).await;
    upgrade.expect_status(503, Some("ServiceUnavailable"));
    upgrade.expect_retry_after(Some("1"));
    stub.wait_until_idle(CLUSTER);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_does_not_answer_in_time_may_still_do_the_work() {
    let handler = |_head, mut connection: UpstreamConnection| async move {
        // Nothing is said; the agent has to give up, and to close.
        let (rest, _end) = within("the agent gives up", connection.wire.rest()).await;
        assert!(rest.is_empty());
        Next::None
    };
    let scene = Scene::start_with(StubOptions::default(), &["--response-timeout", "300ms"], handler).await;
    for answer in [ask_both(&scene.user, "GET", LIST).await, ask_both(&scene.user, "POST", LIST).await].as_flattened() {
        let message = answer.expect_status(504, Some("Timeout"));
        assert!(message.contains("may still complete"), "{message}");
        answer.expect_retry_after(None);
    }
    let upgrade = scene.user.ask("POST", EXEC, &SPDY).await;
    upgrade.expect_status(504, Some("Timeout"));
    upgrade.expect_retry_after(None);
    scene.wait_until_settled();
}

/// Beginnings of answers, by path: what is sent, and whether the connection ends with RST or with FIN then.
const BROKEN_BODIES: [(&str, &str, bool); 6] = [
    ("/length-reset", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", true),
    ("/length-end", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", false),
    ("/chunks-reset", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", true),
    ("/chunks-end", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", false),
    ("/within-a-chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nhalf", false),
    ("/no-length-reset", "HTTP/1.1 200 OK\r\n\r\nhalf", true),
];

/// Breaks off as the path says, when a permit says that the client has the first half.
async fn broken_body(path: String, mut connection: UpstreamConnection, permits: Arc<Semaphore>) -> Next {
    let Some((_, bytes, reset)) = BROKEN_BODIES.iter().find(|(of, _, _)| *of == path) else {
        return connection.answer("200 OK", &[], "fine").await;
    };
    connection.say(bytes).await;
    within("the client has the first half", permits.acquire()).await.expect("open").forget();
    if *reset {
        connection.reset();
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_is_never_taken_for_a_whole_one() {
    let permits = Arc::new(Semaphore::new(0));
    let given = permits.clone();
    let handler = move |head: Head, connection| broken_body(head.target().to_owned(), connection, permits.clone());
    let scene = Scene::start(handler).await;
    let http2 = scene.user.connect_http2().await;
    for (path, _, _) in BROKEN_BODIES {
        let over_http1 = scene.user.begin(Version::Http1, "GET", path, &[]).await;
        let over_http2 = scene.user.begin_on(&http2, "GET", path, &[], no_body()).await;
        for mut answer in [over_http1, over_http2] {
            answer.until("half").await;
            given.add_permits(1);
            let answer = answer.rest().await;
            assert!(!answer.complete, "{path}: {answer:?}");
        }
        // Only that stream was reset: its neighbours on the connection go on.
        let next = scene.user.begin_on(&http2, "GET", LIST, &[], no_body()).await.rest().await;
        assert_eq!((next.text().as_str(), next.complete), ("fine", true), "after {path}");
    }
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_at_once_is_never_taken_for_a_whole_one() {
    let permits = Arc::new(Semaphore::new(1000));
    let handler = move |head: Head, connection| broken_body(head.target().to_owned(), connection, permits.clone());
    let scene = Scene::start(handler).await;
    for (path, _, _) in BROKEN_BODIES {
        // The break may overtake the beginning of the answer; then it is as if there had been none.
        if let Ok(answer) = scene.user.try_to_ask(Version::Http2, "GET", path).await {
            assert!(!answer.complete || answer.head.status() == 504, "{path}: {answer:?}");
        }
        let mut client = scene.user.connect().await;
        client.write(&scene.user.request("GET", path, &[("Connection", "close")])).await.expect("a request is sent");
        let (bytes, _end) = within("the end of the connection", client.rest()).await;
        if let Some((head, length)) = Head::parse(&bytes) {
            let mut body = BodyDecoder::new(head.answer_framing("GET"));
            body.feed(&bytes[length..], &mut Vec::new());
            assert!(!body.is_complete() || head.status() == 504, "{path}: {:?}", String::from_utf8_lossy(&bytes));
        }
    }
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_ends_with_its_connection_is_whole() {
    let scene = Scene::start(|_head, mut connection: UpstreamConnection| async move {
        connection.say("HTTP/1.1 200 OK\r\n\r\nall of it").await;
        None
    })
    .await;
    for answer in ask_both(&scene.user, "GET", LIST).await {
        assert_eq!((answer.text().as_str(), answer.complete), ("all of it", true));
    }
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_closes_before_its_answer_may_have_done_the_work() {
    let scene = Scene::start(|head, connection: UpstreamConnection| async move {
        match head.target() {
            "/reset" => connection.reset(),
            "/garbage" => {
                let mut connection = connection;
                connection.say("SSH-2.0-OpenSSH_9.9\r\n\r\n").await;
            }
            _ => {}
        }
        None
    })
    .await;
    for path in ["/end", "/reset", "/garbage"] {
        for method in ["GET", "POST"] {
            for answer in ask_both(&scene.user, method, path).await {
                answer.expect_status(504, Some("Timeout"));
                answer.expect_retry_after(None);
            }
        }
    }
    let upgrade = scene.user.ask("POST", EXEC, &SPDY).await;
    upgrade.expect_status(504, Some("Timeout"));
    upgrade.expect_retry_after(None);
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_closes_idle_connections_is_not_noticed() {
    // Every connection is closed behind its answer, without a word before.
    let scene = Scene::start(|_head, connection: UpstreamConnection| async move {
        drop(connection.answer("200 OK", &[], "fine").await);
        None
    })
    .await;
    let mut connection = scene.user.connect().await;
    for number in 0..50 {
        connection.write(&scene.user.request("GET", LIST, &[])).await.expect("a request is sent");
        let answer = connection.answer("GET").await;
        assert_eq!((answer.head.status(), answer.text().as_str()), (200, "fine"), "request {number}");
    }
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_upgrade_is_relayed_and_its_connection_takes_nothing_more() {
    // CVE-2018-1002105: what a client sends after a refused upgrade must not become a request of the agent's.
    const BODY: &str = r#"{"kind":"Status","status":"Failure","message":"no","reason":"Forbidden","code":403}"#;
    let (seen, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let scene = Scene::start(move |head, connection: UpstreamConnection| {
        let seen = seen.clone();
        async move {
            assert_eq!(head.header("upgrade"), Some("SPDY/3.1"));
            let mut connection = connection.answer("403 Forbidden", &[], BODY).await.expect("the connection");
            seen.send(within("the end of the connection", connection.wire.rest()).await).expect("the test listens");
            None
        }
    })
    .await;
    let mut client = scene.user.connect().await;
    let smuggled = "GET /api/v1/secrets HTTP/1.1\r\nHost: x\r\nImpersonate-User: root\r\n\r\n";
    let request = [scene.user.request("POST", EXEC, &SPDY), smuggled.as_bytes().to_vec()].concat();
    client.write(&request).await.expect("a request is sent");
    let answer = client.answer("POST").await;
    assert_eq!((answer.head.status(), answer.text().as_str()), (403, BODY));
    let (rest, _end) = within("the upstream connection is closed", ends.recv()).await.expect("the handler");
    assert!(rest.is_empty(), "bytes of the client after a refused upgrade: {:?}", String::from_utf8_lossy(&rest));
    // For the stub they are the next request of that connection, judged as such; it names no cluster.
    assert_eq!(client.answer("GET").await.head.status(), 404);
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_to_elsewhere_is_not_passed_on() {
    let scene = Scene::start(|head, connection: UpstreamConnection| async move {
        let host = head.header("host").expect("a host").to_owned();
        let location = match head.target() {
            "/own" => format!("http://{host}/openapi/v3?hash=AB"),
            "/own-path" => "/openapi/v3?hash=AB".to_owned(),
            "/other-port" => format!("http://{host}1/"),
            "/climbing" => "/../../other-cluster/api".to_owned(),
            "/own-network-path" => format!("http://{host}//evil.example/api"),
            "/network-path" => "//evil.example/api".to_owned(),
            "/script" => "javascript:alert(1)".to_owned(),
            _ => "https://evil.example/api".to_owned(),
        };
        connection.answer("307 Temporary Redirect", &[("Location", &location)], "over there").await
    })
    .await;
    for path in ["/elsewhere", "/other-port", "/network-path", "/own-network-path", "/climbing", "/script"] {
        for answer in ask_both(&scene.user, "GET", path).await {
            answer.expect_status(502, None);
            assert_eq!(answer.head.header("location"), None, "{path}");
        }
    }
    let upgrade = scene.user.ask("POST", EXEC, &SPDY).await;
    upgrade.expect_status(502, None);
    for path in ["/own", "/own-path"] {
        for answer in ask_both(&scene.user, "GET", path).await {
            let expected = format!("/clusters/{CLUSTER}/openapi/v3?hash=AB");
            assert_eq!(
                (answer.head.status(), answer.head.header("location")),
                (307, Some(expected.as_str())),
                "{path}"
            );
            assert_eq!(answer.text(), "over there");
        }
    }
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_come_with_the_101_are_the_first_of_the_stream() {
    let scene = Scene::start(|_head, mut connection: UpstreamConnection| async move {
        connection.say([SWITCHED, "early"].concat()).await;
        assert_eq!(within("the client", connection.wire.rest()).await, (b"late".to_vec(), End::Clean));
        None
    })
    .await;
    let mut client = scene.user.connect().await;
    client.write(&scene.user.request("POST", EXEC, &SPDY)).await.expect("a request is sent");
    let head = within("the 101", client.head()).await.expect("an answer").expect("an answer");
    assert_eq!(head.status(), 101);
    assert_eq!(within("the early bytes", client.exactly(5)).await.expect("bytes"), b"early");
    client.write(b"late").await.expect("bytes are sent");
    client.finish().await.expect("the end is sent");
    assert_eq!(within("the end", client.rest()).await, (Vec::new(), End::Clean));
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_nobody_asked_for_is_no_answer() {
    let scene = Scene::start(|_head, mut connection: UpstreamConnection| async move {
        connection.say([SWITCHED, "raw bytes"].concat()).await;
        within("the agent closes", connection.wire.rest()).await;
        None
    })
    .await;
    for answer in ask_both(&scene.user, "GET", LIST).await {
        assert!([502, 504].contains(&answer.head.status()), "{}", answer.text());
        answer.expect_retry_after(None);
    }
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_with_headers_past_the_bounds_is_refused() {
    let scene = Scene::start(|head, mut connection: UpstreamConnection| async move {
        let line = match head.target() {
            "/long" => format!("X-Long: {}\r\n", "x".repeat(140 * 1024)),
            _ => (0..90).map(|number| format!("X-Many-{number}: {}\r\n", "x".repeat(2000))).collect(),
        };
        connection.say(format!("HTTP/1.1 200 OK\r\n{line}Content-Length: 4\r\n\r\nfine")).await;
        None
    })
    .await;
    for path in ["/long", "/many"] {
        for answer in ask_both(&scene.user, "GET", path).await {
            let message = answer.expect_status(502, None);
            assert!(message.contains("head"), "{message}");
        }
    }
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn interim_answers_are_not_the_answer() {
    let scene = Scene::start(|_head, mut connection: UpstreamConnection| async move {
        connection.say("HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n").await;
        connection.answer("200 OK", &[], "fine").await
    })
    .await;
    for answer in ask_both(&scene.user, "GET", LIST).await {
        assert_eq!((answer.head.status(), answer.text().as_str()), (200, "fine"));
    }
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_have_no_body_keep_their_headers() {
    let scene = Scene::start(|head, mut connection: UpstreamConnection| async move {
        match head.method() {
            "HEAD" => connection.say("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n").await,
            _ => connection.say("HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n").await,
        }
        Some(connection)
    })
    .await;
    for answer in ask_both(&scene.user, "HEAD", LIST).await {
        assert_eq!((answer.head.status(), answer.head.header("content-length")), (200, Some("1234")));
        assert!(answer.complete && answer.body.is_empty());
    }
    for answer in ask_both(&scene.user, "GET", LIST).await {
        assert_eq!((answer.head.status(), answer.head.header("etag")), (304, Some("\"x\"")));
        assert!(answer.complete && answer.body.is_empty());
    }
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_body_stays_one() {
    let scene = Scene::start(|head, connection: UpstreamConnection| async move {
        let length = head.header("content-length").unwrap_or("none").to_owned();
        assert_eq!(head.header("transfer-encoding"), None, "{}", head.method());
        connection.answer("200 OK", &[], &length).await
    })
    .await;
    for (method, length) in [("GET", "none"), ("POST", "0"), ("DELETE", "0"), ("PATCH", "0")] {
        for answer in ask_both(&scene.user, method, LIST).await {
            assert_eq!((answer.head.status(), answer.text().as_str()), (200, length), "{method}");
        }
    }
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_answers_before_the_upload_ends_is_heard() {
    static REQUESTS: AtomicUsize = AtomicUsize::new(0);
    let scene = Scene::start(|_head, connection: UpstreamConnection| async move {
        REQUESTS.fetch_add(1, Ordering::SeqCst);
        let mut connection = connection.answer("413 Payload Too Large", &[("Connection", "close")], "too much").await?;
        within("the agent closes", connection.wire.rest()).await;
        None
    })
    .await;
    let mut client = scene.user.connect().await;
    let head = scene.user.request("POST", LIST, &[("Content-Length", "1000000")]);
    client.write(&head).await.expect("a request is sent");
    client.write(&[0; 1000]).await.expect("a part of the body is sent");
    let answer = client.answer("POST").await;
    assert_eq!((answer.head.status(), answer.text().as_str()), (413, "too much"));
    drop(client);
    scene.wait_until_settled();
    assert_eq!(REQUESTS.load(Ordering::SeqCst), 1, "nobody repeats a request with a body");
}
