//! Hundreds of open streams at once. Each hop has a limit of its own that could let the next request hang: 100 streams on a
//! QUIC connection by default, 250 on one HTTP/2 connection of an API server.

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use support::http::{Access, Client};
use support::tunnel::{CLUSTER, Tunnel};
use support::{DEADLINE, eventually_async};

/// More than any limit on the way.
const MANY: usize = 300;

/// A small request that takes longer is one that hung for a while; without load it takes a few milliseconds.
const SMALL: Duration = Duration::from_secs(2);

const WATCH: &str = "/api/v1/namespaces/demo/configmaps?watch=true&labelSelector=set%3Dmany";
const LOG: &str = "/api/v1/namespaces/demo/pods/web/log?container=web&follow=true&tailLines=1";

/// What the sample API is busy with, asked without the tunnel.
async fn sample_counts(tunnel: &Tunnel) -> Value {
    Access::of(&tunnel.api.kubeconfig()).get("/sample/requests").await.json()
}

/// Waits for bytes of an open answer until they contain `wanted`.
async fn wait_for(body: &mut Incoming, wanted: &str) {
    let mut seen = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&seen).contains(wanted) {
            let frame = body.frame().await.expect("the answer goes on").expect("the answer is not broken off");
            seen.extend_from_slice(frame.data_ref().expect("data"));
        }
    };
    let in_time = tokio::time::timeout(DEADLINE, reading).await;
    assert!(in_time.is_ok(), "no {wanted:?} in {:?}", String::from_utf8_lossy(&seen));
}

async fn opened(mut client: Client, path: &str) -> (Client, Incoming) {
    let response = client.open(path).await;
    assert_eq!(response.status(), StatusCode::OK);
    (client, response.into_body())
}

async fn small_gets_are_fast(client: &mut Client) {
    for _ in 0..20 {
        let began = Instant::now();
        assert_eq!(client.get("/api/v1/namespaces/demo/pods/web").await.status, StatusCode::OK);
        assert!(began.elapsed() < SMALL, "a small GET took {:?}", began.elapsed());
    }
}

async fn create_config_map(client: &mut Client, name: &str) {
    let mut request = client.request("/api/v1/namespaces/demo/configmaps");
    *request.method_mut() = Method::POST;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let object =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"set": "many"}}});
    *request.body_mut() = Full::new(Bytes::from(object.to_string()));
    assert_eq!(client.send(request).await.status(), StatusCode::CREATED);
}

/// The sessions are all open, serve, and leave nothing behind.
async fn sessions_live_and_end(
    tunnel: &Tunnel,
    mut sessions: Vec<(Client, Incoming)>,
    wanted: &str,
    small: &mut Client,
) {
    assert_eq!(tunnel.stub.open_streams(CLUSTER), MANY as u64);
    small_gets_are_fast(small).await;
    create_config_map(small, "new").await;
    join_all(sessions.iter_mut().map(|(_, body)| wait_for(body, wanted))).await;
    small_gets_are_fast(small).await;
    assert_eq!(tunnel.stub.open_streams(CLUSTER), MANY as u64);
    drop(sessions);
    tunnel.wait_until_idle();
    eventually_async("the sample API having no request but this one", async || {
        (sample_counts(tunnel).await["openRequests"].as_u64() <= Some(1)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_watches_share_one_http2_connection() {
    let tunnel = Tunnel::start();
    let access = Access::of(&tunnel.kubeconfig());
    let shared = access.http2().await;
    let watches = join_all((0..MANY).map(|_| opened(shared.share(), WATCH))).await;
    sessions_live_and_end(&tunnel, watches, "\"name\":\"new\"", &mut shared.share()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_watches_have_a_connection_each() {
    let tunnel = Tunnel::start();
    let access = Access::of(&tunnel.kubeconfig());
    let watches = join_all((0..MANY).map(async |_| opened(access.http1().await, WATCH).await)).await;
    sessions_live_and_end(&tunnel, watches, "\"name\":\"new\"", &mut access.http1().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_logs_are_followed_at_once() {
    let tunnel = Tunnel::start();
    let access = Access::of(&tunnel.kubeconfig());
    let shared = access.http2().await;
    let logs = join_all((0..MANY).map(|_| opened(shared.share(), LOG))).await;
    let next = "\ntick ";
    sessions_live_and_end(&tunnel, logs, next, &mut access.http1().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_requests_at_once_are_all_answered() {
    let tunnel = Tunnel::start();
    let shared = Access::of(&tunnel.kubeconfig()).http2().await;
    let answers = join_all((0..MANY).map(async |_| shared.share().get("/api/v1/namespaces/demo/pods/web").await));
    let answers = tokio::time::timeout(DEADLINE, answers).await.expect("all answers in time");
    assert!(answers.iter().all(|answer| answer.status == StatusCode::OK && answer.json()["metadata"]["name"] == "web"));
    tunnel.wait_until_idle();
}
