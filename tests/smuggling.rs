//! Requests that servers could read in two ways, made at random, through a real stub and a real agent: whatever is sent,
//! the API server sees no identity but the user's, no credential but the agent's, and nothing that was not authorized.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use support::http1::Head;
use support::scene::{Scene, USER};
use support::scripted_upstream::{AGENT_TOKEN, Next, UpstreamConnection};
use support::tunnel::StubOptions;
use support::user::{User, no_body};

/// The only thing that the policy allows.
const ALLOWED: &str = "/api/v1/namespaces/demo/pods";

/// What stands in the path of every request that nobody has made: it is hidden in bodies and headers.
const HIDDEN: &str = "/smuggled";

/// A policy for pods of the namespace demo alone.
const POLICY: &str = "apiVersion: qtunnel.dev/v1
kind: Policy
rules:
- {name: pods, clusters: ['*'], users: ['*'], verbs: ['*'], apiGroups: [''], resources: [pods], namespaces: [demo]}
";

/// How many requests are tried.
const CASES: u32 = 300;

/// How long an answer is waited for, where one may never come.
const PATIENCE: Duration = Duration::from_secs(3);

/// A request in pieces.
#[derive(Debug, Clone)]
struct Odd {
    method: &'static str,
    path: Vec<&'static str>,
    headers: Vec<(String, &'static str)>,
    body: &'static str,
}

fn odd_request() -> impl Strategy<Value = Odd> {
    let methods = ["GET", "GET", "POST", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "CONNECT", "get", "PATCH"];
    let pieces = [
        "/api/v1/namespaces/demo/pods",
        "/api/v1/namespaces/demo/pods",
        "/x",
        "/..",
        "/%2e%2e",
        "/.%2E/",
        "//",
        "%2f",
        "%5c..",
        "\\..",
        "/../secrets",
        "/;/..",
        "?watch=true",
        "?a=/../secrets",
        "#/../secrets",
        "%00",
        "%23",
        "/exec",
        "/../../kube-system/secrets",
    ];
    (select(methods.to_vec()), vec(select(pieces.to_vec()), 1..4), vec(odd_header(), 0..6), select(bodies()))
        .prop_map(|(method, path, headers, body)| Odd { method, path, headers, body })
}

fn bodies() -> Vec<&'static str> {
    vec![
        "",
        "",
        "0\r\n\r\n",
        "GET /smuggled HTTP/1.1\r\nHost: x\r\nImpersonate-User: root\r\n\r\n",
        "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\nImpersonate-User: root\r\n\r\n",
        "5\r\nhello\r\n0\r\nImpersonate-User: root\r\n\r\n",
        "ffffffffffffffff\r\nGET /smuggled HTTP/1.1\r\n\r\n",
    ]
}

fn odd_header() -> impl Strategy<Value = (String, &'static str)> {
    let names = [
        "Connection",
        "Connection",
        "Impersonate-User",
        "Impersonate-Group",
        "Impersonate-Uid",
        "Impersonate-Extra-Scopes",
        "Impersonate_User",
        "Authorization",
        "Proxy-Authorization",
        "X-Remote-User",
        "X-Remote-Group",
        "X-Forwarded-For",
        "Forwarded",
        "Transfer-Encoding",
        "Content-Length",
        "Host",
        "Upgrade",
        "TE",
        "Trailer",
        "Expect",
        "Keep-Alive",
        "Audit-Id",
    ];
    let values = [
        "close",
        "keep-alive",
        "Upgrade",
        "close, Impersonate-User",
        "X-Remote-User, Authorization",
        "Content-Length",
        "xupgrade",
        "chunked",
        "\tchunked",
        "gzip, chunked",
        "identity",
        "0",
        "5",
        "+5",
        "60",
        "root",
        "system:masters",
        "Bearer stolen",
        "websocket",
        "SPDY/3.1",
        "trailers",
        "100-continue",
        "elsewhere.example",
        "x\r\nImpersonate-User: root",
        "",
    ];
    let spellings: [fn(&str) -> String; 6] = [
        str::to_owned,
        str::to_lowercase,
        str::to_uppercase,
        |name| format!("{name} "),
        |name| format!(" {name}"),
        |name| name.replace('-', "_"),
    ];
    (select(names.to_vec()), select(spellings.to_vec()), select(values.to_vec()))
        .prop_map(|(name, spelling, value)| (spelling(name), value))
}

/// What has reached the API server.
type Seen = Arc<Mutex<Vec<Head>>>;

async fn record(head: Head, mut connection: UpstreamConnection, seen: Seen) -> Next {
    seen.lock().expect("no panic while it is locked").push(head.clone());
    if head.header("transfer-encoding").is_some() || head.header("content-length").is_some() {
        connection.wire.request_body(&head).await;
    }
    // The agent may be gone, with its client.
    connection.wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine").await.ok()?;
    Some(connection)
}

impl Odd {
    /// As HTTP/1.1 by hand: nothing is left out that a library would refuse to send.
    fn to_bytes(&self, user: &User) -> Vec<u8> {
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let Self { method, body, .. } = self;
        let (prefix, path, host) = (&user.prefix, self.path.concat(), &user.host);
        format!("{method} {prefix}{path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n{body}").into_bytes()
    }

    /// For HTTP/2, as far as its library lets it pass.
    fn to_http2(&self, user: &User) -> Option<http::Request<support::user::Http2Body>> {
        let mut request = http::Request::builder().method(self.method).uri(user.uri(&self.path.concat()));
        for (name, value) in &self.headers {
            request = request.header(name.trim(), *value);
        }
        request.body(no_body()).ok()
    }

    async fn send(&self, user: &User) {
        let mut connection = user.connect().await;
        if connection.write(&self.to_bytes(user)).await.is_ok() {
            let _ = connection.finish().await;
            let _ = tokio::time::timeout(PATIENCE, connection.rest()).await;
        }
        if let Some(request) = self.to_http2(user) {
            let _ = tokio::time::timeout(PATIENCE, user.connect_http2().await.send_request(request)).await;
        }
    }
}

/// Why a request must not have reached the API server as it did.
fn fault(head: &Head) -> Option<String> {
    let values = |name| head.values(name).collect::<Vec<_>>();
    if values("impersonate-user") != [USER] || values("impersonate-group") != ["devs"] {
        return Some("another identity".to_owned());
    }
    if values("authorization") != [format!("Bearer {AGENT_TOKEN}")] {
        return Some("another credential".to_owned());
    }
    let claims = ["impersonate-uid", "impersonate-extra", "x-remote-", "forwarded", "proxy-authorization"];
    let claimed = head.headers.iter().map(|(name, _)| name.to_ascii_lowercase().replace('_', "-"));
    if let Some(name) = claimed.into_iter().find(|name| claims.iter().any(|claim| name.starts_with(claim))) {
        return Some(format!("the header {name}"));
    }
    if values("x-forwarded-for") != ["127.0.0.1"] {
        return Some("another origin".to_owned());
    }
    let path = head.target().split('?').next().unwrap_or_default();
    let rest = path.strip_prefix(ALLOWED);
    let is_allowed = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    // `..#` is a name like any other: only a whole segment of dots leads elsewhere.
    let is_plain = !path.split('/').any(|segment| segment == "." || segment == "..");
    let is_plain = is_plain && !["//", "\\", "#"].iter().any(|odd| path.contains(odd));
    let lower = path.to_ascii_lowercase();
    let is_plain = is_plain && !["%2e", "%2f", "%5c", "%00"].iter().any(|escape| lower.contains(escape));
    if !is_allowed || !is_plain || head.target().contains(HIDDEN) {
        return Some("another path".to_owned());
    }
    (values("content-length").len() + values("transfer-encoding").len() > 1).then(|| "two lengths".to_owned())
}

#[test]
fn whatever_is_sent_nothing_arrives_but_what_was_authorized() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let policy = folder.path().join("policy.yaml");
    std::fs::write(&policy, POLICY).expect("a file");
    let options = StubOptions::default()
        .set("authorization", "mode", "policy")
        .set("authorization", "policy_file", policy.to_str().expect("a path"))
        .set("limits", "connections_per_second", 10_000)
        .set("limits", "handshake_timeout", "1s");
    let seen = Seen::default();
    let recording = seen.clone();
    let handler = move |head, connection| record(head, connection, recording.clone());
    let scene = runtime.block_on(Scene::start_with(options, &[], handler));

    let config = Config { cases: CASES, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let mut arrived = 0;
    let tried = TestRunner::new(config).run(&odd_request(), |odd| {
        runtime.block_on(odd.send(&scene.user));
        let heads = std::mem::take(&mut *seen.lock().expect("no panic while it is locked"));
        let faults: Vec<_> = heads.iter().filter_map(|head| Some((fault(head)?, head))).collect();
        prop_assert!(faults.is_empty(), "{:?}", faults);
        // One over each version of HTTP, and none that was hidden in another.
        prop_assert!(heads.len() <= 2, "{} requests", heads.len());
        Ok(())
    });
    tried.expect("nothing but what was authorized");
    // The recording works: a plain request arrives.
    runtime.block_on(async {
        let answer = scene.user.ask("GET", ALLOWED, &[]).await;
        assert_eq!(answer.text(), "fine");
    });
    arrived += seen.lock().expect("no panic while it is locked").len();
    assert_eq!(arrived, 1);
    // And what checks it finds fault with a request that should not have passed.
    let forged = Head::new(&format!("GET {ALLOWED} HTTP/1.1"), &[("Impersonate-User", "root")]);
    assert!(fault(&forged).is_some());
    drop(scene);
}
