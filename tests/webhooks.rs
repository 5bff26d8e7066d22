//! Webhooks that decide what users may do, and that are told what they did.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::eventually_async;
use support::http::{Access, Lines};
use support::https_service::HttpsService;
use support::tunnel::{AgentOptions, CLUSTER, IMPERSONATORS, StubOptions, Tunnel, USERS};
use tempfile::TempDir;

const PODS: &str = "/api/v1/namespaces/demo/pods";
const EXEC: &str = "/api/v1/namespaces/demo/pods/web/exec?container=web&command=true&stdout=true";

/// A webhook that gives this status to every review.
async fn access_service(status: impl Fn(&Value) -> Value + Send + Sync + 'static) -> HttpsService {
    HttpsService::start(move |asked| {
        let status = status(&asked.body["spec"]);
        (201, json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "status": status}))
    })
    .await
}

fn with_webhook(kubeconfig: &Path) -> StubOptions {
    let path = kubeconfig.to_str().unwrap();
    StubOptions::default().set("authorization", "mode", "webhook").set("authorization", "kubeconfig", path).set(
        "authorization",
        "authorized_ttl",
        "2s",
    )
}

fn tunnel(options: StubOptions) -> Tunnel {
    Tunnel::start_with(options, AgentOptions::default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_decides_about_what_the_api_server_would_ask() {
    let folder = TempDir::new().unwrap();
    let service = access_service(|spec| {
        let object = &spec["resourceAttributes"];
        match (object["verb"].as_str(), object["namespace"].as_str()) {
            (Some("list"), Some("demo")) => json!({"allowed": true, "reason": "demo is open"}),
            (Some("delete"), _) => json!({"allowed": false, "denied": true, "reason": "nothing is deleted"}),
            _ => json!({"allowed": false}),
        }
    });
    let service = service.await;
    let tunnel = tunnel(with_webhook(&service.kubeconfig(folder.path(), "/authorize")));
    let access = Access::of(&tunnel.stub.kubeconfig(CLUSTER, "alice", &[USERS, IMPERSONATORS]));
    assert_eq!(access.get(PODS).await.status, 200);
    let asked = service.asked();
    assert_eq!(asked[0].path, "/authorize");
    let spec = &asked[0].body["spec"];
    assert_eq!(spec["user"], "alice");
    assert_eq!(spec["groups"], json!([USERS, IMPERSONATORS, "system:authenticated"]));
    assert_eq!(spec["extra"]["qtunnel.dev/cluster"], json!([CLUSTER]));
    assert_eq!(spec["resourceAttributes"]["resource"], "pods");

    let send = async |method: &str, path: &str, headers: &[(&'static str, &str)]| {
        let mut client = access.http1().await;
        let mut request = client.request(path);
        *request.method_mut() = method.parse().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        client.send(request).await
    };
    let deleted = send("DELETE", &format!("{PODS}/web"), &[]).await;
    assert_eq!(deleted.status(), 403);
    // However it is asked for: exec over WebSocket is a GET.
    for method in ["GET", "POST"] {
        assert_eq!(send(method, EXEC, &[]).await.status(), 403);
        let asked = service.asked().pop().unwrap();
        let object = &asked.body["spec"]["resourceAttributes"];
        assert_eq!((&object["verb"], &object["subresource"]), (&"create".into(), &"exec".into()), "{method}");
    }
    let as_bob = send("GET", PODS, &[("impersonate-user", "bob")]).await;
    assert_eq!(as_bob.status(), 403, "acting as another needs a right of its own");
    let asked = service.asked().pop().unwrap();
    assert_eq!(asked.body["spec"]["resourceAttributes"]["verb"], "impersonate");
    assert_eq!(access.get("/version").await.status, 403);
    let asked = service.asked().pop().unwrap();
    assert_eq!(asked.body["spec"]["nonResourceAttributes"], json!({"path": "/version", "verb": "get"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_the_webhook_takes_away_ends_what_is_open() {
    let folder = TempDir::new().unwrap();
    let allows = Arc::new(AtomicBool::new(true));
    let says = allows.clone();
    let service = access_service(move |_| json!({"allowed": says.load(Ordering::Relaxed)})).await;
    let tunnel = tunnel(with_webhook(&service.kubeconfig(folder.path(), "/")));
    let access = Access::of(&tunnel.kubeconfig());
    let mut watch = Lines::of(access.http1().await.open(&format!("{PODS}?watch=true")).await.into_body());
    watch.next().await;
    allows.store(false, Ordering::Relaxed);
    let began = Instant::now();
    assert!(watch.broken_off().await);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_does_not_answer_allows_nothing_by_itself() {
    let folder = TempDir::new().unwrap();
    let service = access_service(|_| json!({"allowed": true})).await;
    let kubeconfig = service.kubeconfig(folder.path(), "/");
    drop(service);
    let closed = tunnel(with_webhook(&kubeconfig));
    let answer = Access::of(&closed.kubeconfig()).get(PODS).await;
    assert_eq!(answer.status, 500);
    assert!(answer.text().contains("cannot decide"), "{}", answer.text());
    drop(closed);

    // Where its silence is no opinion, the policy decides.
    let policy = folder.path().join("policy.yaml");
    let rule = "{name: a, clusters: ['*'], users: [alice], verbs: [list], apiGroups: [''], resources: [pods]}";
    std::fs::write(&policy, format!("apiVersion: qtunnel.dev/v1\nkind: Policy\nrules:\n- {rule}\n")).unwrap();
    let options = with_webhook(&kubeconfig).set("authorization", "failure_policy", "no-opinion").set(
        "authorization",
        "policy_file",
        policy.to_str().unwrap(),
    );
    let open = tunnel(options);
    let access = Access::of(&open.kubeconfig());
    assert_eq!(access.get(PODS).await.status, 200);
    assert_eq!(access.get("/api/v1/namespaces/demo/services").await.status, 403);
}

/// The items of every list that a webhook was sent.
fn items(service: &HttpsService) -> Vec<Value> {
    let lists = service.asked().into_iter().map(|asked| asked.body);
    lists.flat_map(|list| list["items"].as_array().cloned().unwrap_or_default()).collect()
}

fn with_audit(kubeconfig: &Path, on_failure: &'static str) -> StubOptions {
    let path = kubeconfig.to_str().unwrap();
    StubOptions::default().set("audit", "sink", "webhook").set("audit", "kubeconfig", path).set(
        "audit",
        "on_failure",
        on_failure,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_events_go_to_a_webhook_in_lists_and_none_is_lost_while_it_fails() {
    let folder = TempDir::new().unwrap();
    let fails = Arc::new(AtomicBool::new(true));
    let is_failing = fails.clone();
    let service = HttpsService::start(move |_| (if is_failing.load(Ordering::Relaxed) { 503 } else { 200 }, json!({})));
    let service = service.await;
    let tunnel = tunnel(with_audit(&service.kubeconfig(folder.path(), "/events"), "block"));
    let access = Access::of(&tunnel.kubeconfig());
    for _ in 0..20 {
        assert_eq!(access.get(PODS).await.status, 200);
    }
    eventually_async("it was tried", async || (!service.asked().is_empty()).then_some(())).await;
    let failed = items(&service).len();
    fails.store(false, Ordering::Relaxed);
    let complete = |events: &[Value]| {
        let complete = events.iter().filter(|event| event["stage"] == "ResponseComplete");
        complete.map(|event| event["auditID"].to_string()).collect::<std::collections::HashSet<_>>().len()
    };
    eventually_async("all events", async || (complete(&items(&service)) == 20).then_some(())).await;
    let last = service.asked().pop().unwrap();
    assert_eq!((&last.body["kind"], &last.body["apiVersion"]), (&"EventList".into(), &"audit.k8s.io/v1".into()));
    assert_eq!(last.path, "/events");
    assert!(items(&service).len() > failed);
    let lists = service.asked().len();
    assert!(lists < 40, "events gather while one list is on its way: {lists}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_is_gone_loses_events_where_requests_are_to_pass_and_they_are_counted() {
    let folder = TempDir::new().unwrap();
    let service = HttpsService::start(|_| (200, json!({}))).await;
    let kubeconfig = service.kubeconfig(folder.path(), "/");
    drop(service);
    let mut tunnel = tunnel(with_audit(&kubeconfig, "drop"));
    let access = Access::of(&tunnel.kubeconfig());
    for _ in 0..10 {
        assert_eq!(access.get(PODS).await.status, 200);
    }
    let line = tunnel.stub.process.wait_for_log("the audit log cannot be written");
    assert!(line["message"].as_str().unwrap().contains("audit webhook"), "{line}");
    let line = tunnel.stub.process.wait_for_log("audit events were lost");
    assert!(line["lost"].as_u64().unwrap() > 0, "{line}");
}
