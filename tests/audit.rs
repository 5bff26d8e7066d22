//! The audit log, written by real stubs.

mod support;

use std::path::Path;

use http::StatusCode;
use rustix::process::Signal;
use serde_json::Value;
use support::http::{Access, Lines};
use support::tunnel::{AgentOptions, CLUSTER, StubOptions, Tunnel, USERS};
use support::{eventually, process::Process};
use tempfile::TempDir;

fn tunnel(options: StubOptions) -> Tunnel {
    Tunnel::start_with(options, AgentOptions::default())
}

fn with_file(path: &Path) -> StubOptions {
    StubOptions::default().set("audit", "sink", "file").set("audit", "path", path.to_str().unwrap()).set(
        "audit",
        "on_failure",
        "block",
    )
}

fn events(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn wait_for_event(path: &Path, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
    eventually(what, || {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // The last line may be half there.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        events(whole).into_iter().find(&condition)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_leaves_its_beginning_and_its_end() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("audit.log");
    let tunnel = tunnel(with_file(&path));
    let access = Access::of(&tunnel.kubeconfig());
    let mut client = access.http1().await;
    let response = client.open("/api/v1/namespaces/demo/pods?watch=true").await;
    let id = response.headers()["audit-id"].to_str().unwrap().to_owned();
    let mut watch = Lines::of(response.into_body());
    watch.next().await;
    let of_watch = |stage: &'static str| {
        let id = id.clone();
        move |event: &Value| event["auditID"] == id.as_str() && event["stage"] == stage
    };
    let started = wait_for_event(&path, "the watch's second event", of_watch("ResponseStarted"));
    assert_eq!(started["responseStatus"]["code"], 200);
    drop((watch, client));
    let ended = wait_for_event(&path, "the watch's last event", of_watch("ResponseComplete"));
    assert_eq!(ended["verb"], "watch");
    assert_eq!(ended["requestURI"], "/api/v1/namespaces/demo/pods?watch=true");
    assert_eq!(ended["user"]["username"], "alice");
    assert_eq!(ended["user"]["groups"][0], USERS);
    assert_eq!(ended["sourceIPs"][0], "127.0.0.1");
    let annotations = &ended["annotations"];
    assert_eq!(annotations["qtunnel.dev/end"], "client gone");
    assert_eq!(annotations["qtunnel.dev/cluster"], CLUSTER);
    assert_eq!(annotations["qtunnel.dev/agent"], tunnel.stub.agents(CLUSTER)[0]["name"]);
    assert!(annotations["qtunnel.dev/bytes-sent"].as_str().unwrap().parse::<u64>().unwrap() > 100, "{annotations}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_known_is_in_the_log_and_no_token_is() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("audit.log");
    let tokens = folder.path().join("tokens.csv");
    std::fs::write(&tokens, format!("right-sesame,carol,c1,\"{USERS}\"\n")).unwrap();
    let options = with_file(&path).set("authentication", "token_file", tokens.to_str().unwrap());
    let tunnel = tunnel(options);
    let anonymous = Access::of(&tunnel.kubeconfig()).anonymous();
    for (token, code) in [("right-sesame", 200), ("wrong-sesame", 401)] {
        let mut client = anonymous.http1().await;
        let mut request = client.request("/api/v1/namespaces/demo/pods?token=query-sesame");
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        assert_eq!(client.send(request).await.status(), code);
    }
    let known = wait_for_event(&path, "carol's event", |event| event["responseStatus"]["code"] == 200);
    assert_eq!(known["user"]["username"], "carol");
    let unknown = wait_for_event(&path, "the stranger's event", |event| event["responseStatus"]["code"] == 401);
    assert_eq!(unknown["user"], serde_json::json!({}));
    assert_eq!(unknown["responseStatus"]["reason"], "Unauthorized");
    let text = std::fs::read_to_string(&path).unwrap() + &tunnel.stub.process.stderr();
    assert!(!text.contains("sesame"), "a secret is in a log");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_on_standard_output_are_complete_at_a_stop() {
    let options = StubOptions::default().set("audit", "sink", "stdout").set("audit", "on_failure", "drop");
    let mut tunnel = tunnel(options);
    let access = Access::of(&tunnel.kubeconfig());
    for _ in 0..20 {
        assert_eq!(access.get("/api/v1/namespaces/demo/pods").await.status, 200);
    }
    let stub: &mut Process = &mut tunnel.stub.process;
    stub.signal(Signal::TERM);
    assert!(stub.wait().success());
    let events = events(&stub.stdout_text());
    let complete = events.iter().filter(|event| event["stage"] == "ResponseComplete").count();
    assert_eq!((events.len(), complete), (40, 20));
}

/// Linux' `/dev/full` (full(4)) is a disk without room.
const FULL: &str = "/dev/full";

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_requests_where_none_may_be_missing() {
    let mut tunnel = tunnel(with_file(Path::new(FULL)).set("audit", "queue_length", 16));
    let access = Access::of(&tunnel.kubeconfig());
    let mut client = access.http2().await;
    let refused = loop {
        let answer = client.get("/api/v1/namespaces/demo/pods").await;
        if answer.status != StatusCode::OK {
            break answer;
        }
    };
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers["retry-after"], "1");
    assert!(refused.text().contains("audit log"), "{}", refused.text());
    let line = tunnel.stub.process.wait_for_log("the audit log cannot be written");
    assert!(line["message"].as_str().unwrap().contains(FULL), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_events_where_requests_are_to_pass_and_says_so() {
    let options = with_file(Path::new(FULL)).set("audit", "on_failure", "drop").set("audit", "queue_length", 16);
    let mut tunnel = tunnel(options);
    let access = Access::of(&tunnel.kubeconfig());
    let mut client = access.http2().await;
    for _ in 0..100 {
        assert_eq!(client.get("/api/v1/namespaces/demo/pods").await.status, StatusCode::OK);
    }
    tunnel.stub.process.wait_for_log("the audit log cannot be written");
    let line = tunnel.stub.process.wait_for_log("audit events were lost");
    assert!(line["lost"].as_u64().unwrap() > 0, "{line}");
}
