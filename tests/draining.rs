//! What clients see of a stub that stops.

mod support;

use std::time::Duration;

use rustix::process::Signal;

use support::http1::{End, Head, within};
use support::kubectl::Kubectl;
use support::scene::Scene;
use support::scripted_upstream::{Next, UpstreamConnection};
use support::tunnel::{StubOptions, Tunnel, USERS};
use support::user::{Answering, Http1, Version};

const LIST: &str = "/api/v1/namespaces/demo/pods";
const SLOW_LIST: &str = "/api/v1/namespaces/demo/pods?slow";
const WATCH: &str = "/api/v1/namespaces/demo/pods?watch=true";
const HALF_AN_EVENT: &str = "/api/v1/namespaces/demo/services?watch=true";
const EXEC: &str = "/api/v1/namespaces/demo/pods/web/exec?command=sh";

/// A stub whose stop has steps that a test can tell apart.
fn patient() -> StubOptions {
    StubOptions::default().set("limits", "drain_delay", "1s").set("limits", "shutdown_timeout", "3s").set(
        "admin",
        "listen",
        "127.0.0.1:0",
    )
}

/// An API server that answers one kind of list only when the test says so.
async fn api_server(head: Head, mut connection: UpstreamConnection) -> Next {
    let chunked = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    match head.target() {
        WATCH => connection.say([chunked, "8\r\n{\"a\":1}\n\r\n"].concat()).await,
        HALF_AN_EVENT => connection.say([chunked, "4\r\n{\"a\"\r\n"].concat()).await,
        SLOW_LIST => {
            tokio::time::sleep(Duration::from_millis(2500)).await;
            return connection.answer("200 OK", &[], "slow").await;
        }
        EXEC => {
            let upgrade = head.header("upgrade").expect("an upgrade").to_owned();
            connection
                .say(format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n\r\n"))
                .await;
            // A whole WebSocket frame; to SPDY it is nothing.
            connection.say(b"\x82\x03\x01$ ").await;
        }
        _ => return connection.answer("200 OK", &[], "fine").await,
    }
    let _ = connection.wire.rest().await;
    None
}

async fn open_exec(scene: &Scene, protocol: &str) -> Http1 {
    let mut client = scene.user.connect().await;
    let headers = [("Connection", "Upgrade"), ("Upgrade", protocol), ("Content-Length", "0")];
    client.write(&scene.user.request("POST", EXEC, &headers)).await.expect("a request is sent");
    let head = within("the 101", client.head()).await.expect("an answer").expect("an answer");
    assert_eq!(head.status(), 101, "{head:?}");
    assert_eq!(within("the prompt", client.exactly(5)).await.expect("the prompt"), b"\x82\x03\x01$ ");
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_request_has_the_end_that_its_client_understands() {
    let mut scene = Scene::start_with(patient(), &[], api_server).await;
    let user = scene.user.clone();
    let mut over_websocket = open_exec(&scene, "websocket").await;
    let mut over_spdy = open_exec(&scene, "SPDY/3.1").await;
    let (mut watches, mut halves, mut slow) = (Vec::new(), Vec::new(), Vec::new());
    for version in Version::ALL {
        let mut watch = user.begin(version, "GET", WATCH, &[]).await;
        watch.until("{\"a\":1}\n").await;
        watches.push(watch);
        let mut half = user.begin(version, "GET", HALF_AN_EVENT, &[]).await;
        half.until("{\"a\"").await;
        halves.push(half);
    }

    scene.stub.process.signal(Signal::TERM);
    scene.stub.process.wait_for_log("not ready any more");
    for version in Version::ALL {
        let user = user.clone();
        slow.push(tokio::spawn(async move { user.ask_over(version, "GET", SLOW_LIST).await }));
    }
    scene.stub.process.wait_for_log("taking no more requests");

    for watch in watches {
        let answer = watch.rest().await;
        assert!(answer.complete, "a watch ends between two events: {answer:?}");
    }
    for answer in slow {
        let answer = answer.await.expect("no panic");
        assert_eq!((answer.head.status(), answer.text().as_str()), (200, "slow"));
    }
    let log = scene.stub.process.wait_for_log("some requests did not end in time");
    // Two execs, and half an event over each version of HTTP.
    let cut_off = 2 + Version::ALL.len();
    assert_eq!(log["requests"], cut_off, "{log}");
    let (rest, end) = within("the end over WebSocket", over_websocket.rest()).await;
    assert_eq!(rest, b"\x88\x22\x03\xe9the access node is shutting down");
    assert_eq!(end, End::Clean);
    let (rest, end) = within("the end over SPDY", over_spdy.rest()).await;
    assert!(rest.is_empty() && end.is_aborted(), "{end:?} after {rest:?}");
    for half in halves {
        assert!(!half.rest().await.complete, "half an event is not the end of a watch");
    }
    assert!(scene.stub.process.wait().success());
    let ends: Vec<String> = scene
        .stub
        .process
        .logged("request")
        .iter()
        .filter_map(|line| line["end"].as_str().map(str::to_owned))
        .collect();
    for (end, count) in [("handed over", Version::ALL.len()), ("stopped", cut_off)] {
        assert_eq!(ends.iter().filter(|other| *other == end).count(), count, "{end} in {ends:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stub_that_stops_serves_until_load_balancers_know_and_turns_away_who_comes_later() {
    let mut scene = Scene::start_with(patient(), &[], api_server).await;
    let user = scene.user.clone();
    let admin = scene.stub.admin_address().to_string();
    let keeps_it_open = open_exec(&scene, "websocket").await;
    assert!(support::http::get_plain(&admin, "/readyz").await.contains("200 OK"));

    scene.stub.process.signal(Signal::TERM);
    scene.stub.process.wait_for_log("not ready any more");
    scene.agent.process.wait_for_log("the stub is about to stop");
    assert!(support::http::get_plain(&admin, "/readyz").await.contains("503"));
    assert!(support::http::get_plain(&admin, "/healthz").await.contains("200 OK"));
    let served = user.ask("GET", LIST, &[]).await;
    assert_eq!((served.text().as_str(), served.head.header("connection")), ("fine", Some("close")));
    assert_eq!(user.ask_over(Version::Http2, "GET", LIST).await.text(), "fine");

    scene.stub.process.wait_for_log("taking no more requests");
    for version in [Version::Http1, Version::Http2] {
        // Nothing was done, so clients do it again, at another stub.
        let answer = user.ask_over(version, "POST", LIST).await;
        let message = answer.expect_status(429, Some("TooManyRequests"));
        assert!(message.contains("shutting down"), "{message}");
        answer.expect_retry_after(Some("1"));
    }
    drop(keeps_it_open);
    assert!(scene.stub.process.wait().success());
    let mut turned_away = scene.stub.process.logged("request");
    turned_away.retain(|line| line["status"] == 429);
    assert_eq!(turned_away.len(), 2);
    assert!(turned_away.iter().all(|line| line["bytes"].as_u64() > Some(100)), "{turned_away:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stub_that_stops_finishes_the_handshakes_of_those_that_came_last() {
    let mut scene = Scene::start_with(patient(), &[], api_server).await;
    let user = scene.user.clone();
    let keeps_it_open = open_exec(&scene, "websocket").await;
    scene.stub.process.signal(Signal::TERM);
    scene.stub.process.wait_for_log("taking no more requests");
    let socket = user.socket().await.expect("the stub still accepts");
    drop(keeps_it_open);
    scene.stub.process.wait_for_log("request");
    // Nothing else is left to wait for; a stub that did not wait would be gone by then.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let socket = user.tls_on(socket, b"http/1.1").await.expect("a handshake");
    let mut client = Http1::new(socket);
    client.write(&user.request("POST", LIST, &[("Content-Length", "0")])).await.expect("a request is sent");
    let head = within("an answer", client.head()).await.expect("an answer").expect("an answer");
    assert_eq!((head.status(), head.header("retry-after")), (429, Some("1")));
    assert!(scene.stub.process.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_whose_agent_stops_ends_between_two_events() {
    let mut scene = Scene::start_with(StubOptions::default(), &["--drain-timeout", "5s"], api_server).await;
    let mut watches: Vec<Answering> = Vec::new();
    for version in Version::ALL {
        let mut watch = scene.user.begin(version, "GET", WATCH, &[]).await;
        watch.until("{\"a\":1}\n").await;
        watches.push(watch);
    }
    scene.agent.process.signal(Signal::TERM);
    for watch in watches {
        assert!(watch.rest().await.complete);
    }
    // Nothing is left that it would have to wait for.
    assert!(scene.agent.process.wait_at_most(Duration::from_secs(4)).success());
}

/// What people see in their terminal.
#[tokio::test(flavor = "multi_thread")]
async fn kubectl_tells_why_a_session_ended() {
    let options = StubOptions::default().set("limits", "drain_delay", "0s").set("limits", "shutdown_timeout", "500ms");
    let mut tunnel = Tunnel::start_with(options, support::tunnel::AgentOptions::default());
    let Some(kubectl) = Kubectl::newest(&tunnel.stub.kubeconfig("c1", "alice", &[USERS])) else { return };
    tokio::task::block_in_place(|| {
        let exec =
            kubectl.command(&["exec", "-n", "demo", "web", "-c", "web", "--", "sh", "-c", "echo there; sleep 60"]);
        let log = kubectl.command(&["logs", "-f", "-n", "demo", "web", "-c", "fast"]);
        let mut exec = support::process::Process::start("exec", exec, support::process::Input::None);
        let mut log = support::process::Process::start("logs -f", log, support::process::Input::None);
        exec.wait_for_stdout("a prompt", |text| text.contains("there"));
        log.wait_for_stdout("a line", |text| !text.is_empty());
        tunnel.stub.process.signal(Signal::TERM);
        let (exec, log) = (exec.finish(), log.finish());
        println!("exec: {}logs -f: {}", exec.stderr, log.stderr);
        assert!(exec.failed().contains("the access node is shutting down"));
        assert!(!log.failed().is_empty(), "a log that is cut is not over");
        assert!(tunnel.stub.process.wait().success());
    });
}
