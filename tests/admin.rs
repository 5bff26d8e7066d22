//! The admin address: metrics, health and status.

mod support;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::UdpSocket;

use rustix::process::Signal;
use serde_json::Value;
use support::eventually;
use support::http::{Access, Lines, get_plain};
use support::http1::Wire;
use support::kubectl::Kubectl;
use support::process::Input;
use support::tunnel::{AgentOptions, CLUSTER, StubOptions, Tunnel};
use support::user::User;
use tokio::net::TcpStream;

/// A tunnel whose stub has an admin address, and that address.
fn tunnel() -> (Tunnel, String) {
    let options = StubOptions::default().set("admin", "listen", "127.0.0.1:0");
    let mut tunnel = Tunnel::start_with(options, AgentOptions::default());
    let address = tunnel.stub.process.wait_for_log("admin address listens")["address"].as_str().unwrap().to_owned();
    (tunnel, address)
}

/// Code and body of a GET.
async fn get(address: &str, path: &str) -> (u16, String) {
    let answer = get_plain(address, path).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The value of a metric with these labels.
fn metric(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_agents_and_refusals_are_counted() {
    let (tunnel, address) = tunnel();
    let access = Access::of(&tunnel.kubeconfig());
    for _ in 0..3 {
        assert_eq!(access.get("/api/v1/namespaces/demo/pods").await.status, 200);
    }
    assert_eq!(access.get("/api/v1/namespaces/demo/pods/nobody").await.status, 404);
    assert_eq!(access.clone().anonymous().get("/api/v1/namespaces/demo/pods").await.status, 401);
    let (code, metrics) = get(&address, "/metrics").await;
    assert_eq!(code, 200);
    for (name, value) in [
        (r#"qtunnel_requests_total{cluster="c1",verb="list",code="200"}"#, 3.0),
        (r#"qtunnel_requests_total{cluster="c1",verb="get",code="404"}"#, 1.0),
        (r#"qtunnel_requests_refused_total{code="401"}"#, 1.0),
        (r#"qtunnel_response_latency_seconds_count{cluster="c1",verb="list"}"#, 3.0),
        (r#"qtunnel_agents{cluster="c1"}"#, 1.0),
        (r#"qtunnel_agents_healthy{cluster="c1"}"#, 1.0),
        ("qtunnel_audit_events_dropped_total", 0.0),
    ] {
        assert_eq!(metric(&metrics, name), Some(value), "{name} in\n{metrics}");
    }
    let agents = tunnel.stub.agents(CLUSTER);
    let [agent, carrier] = ["name", "carrier"].map(|field| agents[0][field].as_str().unwrap());
    let round_trip = format!(r#"qtunnel_agent_round_trip_seconds{{cluster="c1",agent="{agent}",carrier="{carrier}"}}"#);
    assert!(metric(&metrics, &round_trip).unwrap() > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_does_not_exist_is_no_label() {
    let (tunnel, address) = tunnel();
    let config = std::fs::read_to_string(tunnel.kubeconfig()).unwrap();
    let elsewhere = tunnel.stub.state_dir().join("elsewhere.yaml");
    std::fs::write(&elsewhere, config.replace("/clusters/c1", "/clusters/atlantis")).unwrap();
    assert_eq!(Access::of(&elsewhere).get("/api/v1/pods").await.status, 404);
    let (_, metrics) = get(&address, "/metrics").await;
    assert!(!metrics.contains("atlantis"), "{metrics}");
    assert_eq!(metric(&metrics, r#"qtunnel_requests_refused_total{code="404"}"#), Some(1.0));
}

#[test]
fn bytes_are_counted_while_a_session_goes_on() {
    let (tunnel, address) = tunnel();
    let Some(kubectl) = Kubectl::newest(&tunnel.kubeconfig()) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let count = |direction: &str| {
        let (_, metrics) = runtime.block_on(get(&address, "/metrics"));
        let name = format!(r#"qtunnel_client_traffic_bytes_total{{cluster="c1",direction="{direction}"}}"#);
        metric(&metrics, &name).unwrap_or(0.0)
    };
    let arguments = ["exec", "-i", "-n", "demo", "web", "-c", "web", "--", "cat"];
    let mut session = kubectl.start_with_input(&arguments, Input::Piped);
    let mut stdin = session.take_stdin();
    stdin.write_all(&[b'x'; 100_000]).unwrap();
    session.wait_for_stdout("all of it", |text| text.len() == 100_000);
    for direction in ["from_client", "to_client"] {
        eventually(&format!("the bytes {direction}"), || (count(direction) > 100_000.0).then_some(()));
    }
    assert!(session.ended().is_none(), "the session is still open");
    let (_, metrics) = runtime.block_on(get(&address, "/metrics"));
    let open: f64 = metrics
        .lines()
        .filter(|line| line.starts_with("qtunnel_open_streams{"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert_eq!(open, 1.0);
    drop(stdin);
    assert!(session.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stub_that_is_shutting_down_lives_and_is_not_ready() {
    let (mut tunnel, address) = tunnel();
    assert_eq!(get(&address, "/healthz").await, (200, "ok".to_owned()));
    assert_eq!(get(&address, "/readyz").await, (200, "ok".to_owned()));
    let access = Access::of(&tunnel.kubeconfig());
    let mut client = access.http1().await;
    let mut watch = Lines::of(client.open("/api/v1/namespaces/demo/pods?watch=true").await.into_body());
    watch.next().await;
    tunnel.stub.process.signal(Signal::TERM);
    tunnel.stub.process.wait_for_log("SIGTERM");
    assert_eq!(get(&address, "/readyz").await, (503, "shutting down".to_owned()));
    assert_eq!(get(&address, "/healthz").await.0, 200);
    drop((watch, client));
    assert!(tunnel.stub.process.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_is_there_too_and_nothing_else_is() {
    let (tunnel, address) = tunnel();
    let (code, status) = get(&address, "/api/v1/status").await;
    assert_eq!(code, 200);
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["clusters"][0]["id"], CLUSTER);
    assert_eq!(status["clusters"][0]["agents"][0]["name"], tunnel.stub.agents(CLUSTER)[0]["name"]);
    assert_eq!(get(&address, "/elsewhere").await.0, 404);
}

/// Code and body of a GET with this `Host`.
async fn get_as(address: &str, host: &str, path: &str) -> (u16, String) {
    let mut connection = Wire::new(TcpStream::connect(address).await.unwrap());
    connection.write(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
    let answer = connection.answer("GET").await;
    (answer.head.status(), String::from_utf8_lossy(&answer.body).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_cannot_ask_by_a_name_of_its_own() {
    let options = StubOptions::default().set("admin", "listen", "127.0.0.1:0").set(
        "admin",
        "hosts",
        vec!["stub.internal".to_owned()],
    );
    let mut tunnel = Tunnel::start_with(options, AgentOptions::default());
    let address = tunnel.stub.process.wait_for_log("admin address listens")["address"].as_str().unwrap().to_owned();
    for path in ["/", "/metrics", "/api/v1/requests"] {
        for (host, code) in [("evil.example", 421), ("localhost", 200), ("stub.internal:9443", 200)] {
            assert_eq!(get_as(&address, host, path).await.0, code, "{host}{path}");
        }
    }
    assert_eq!(get_as(&address, "evil.example", "/healthz").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_hosts_get_metrics_and_no_users() {
    // The address by which this host would leave; nothing is sent.
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let Ok(local) = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr()) else {
        println!("skipped: this host has no address but loopback");
        return;
    };
    for (open, code) in [(false, 403), (true, 200)] {
        let options = StubOptions::default().set("admin", "listen", "0.0.0.0:0").set("admin", "remote_dashboard", open);
        let mut tunnel = Tunnel::start_with(options, AgentOptions::default());
        let line = tunnel.stub.process.wait_for_log("admin address listens");
        let port = line["address"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
        tunnel.stub.process.wait_for_log("whoever reaches the admin address");
        let address = format!("{}:{port}", local.ip());
        assert_eq!(get(&address, "/metrics").await.0, 200);
        for path in ["/", "/api/v1/status", "/api/v1/requests", "/api/v1/incidents", "/api/v1/series"] {
            assert_eq!(get(&address, path).await.0, code, "{path}");
            assert_eq!(get(&format!("127.0.0.1:{port}"), path).await.0, 200, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn open_requests_and_refusals_are_told_without_secrets() {
    let (tunnel, address) = tunnel();
    let access = Access::of(&tunnel.kubeconfig());
    let mut client = access.http1().await;
    let mut watch = Lines::of(client.open("/api/v1/namespaces/demo/pods?watch=true&token=sesame").await.into_body());
    watch.next().await;
    assert_eq!(access.clone().anonymous().get("/api/v1/pods?token=sesame").await.status, 401);
    let json = async |path: &str| serde_json::from_str::<Value>(&get(&address, path).await.1).unwrap();
    let requests = json("/api/v1/requests").await;
    let watched = &requests["requests"][0];
    assert_eq!((&requests["total"], &watched["user"], &watched["verb"]), (&1.into(), &"alice".into(), &"watch".into()));
    assert_eq!((&watched["resource"], &watched["namespace"]), (&"pods".into(), &"demo".into()));
    assert_eq!(watched["agent"], tunnel.stub.agents(CLUSTER)[0]["name"]);
    assert!(watched["bytesToClient"].as_u64().unwrap() > 0, "{watched}");
    assert_eq!(json("/api/v1/requests?cluster=c2").await["total"], 0);
    let incidents = json("/api/v1/incidents").await;
    assert_eq!((&incidents[0]["kind"], &incidents[0]["code"]), (&"unauthenticated".into(), &401.into()));
    assert!(!format!("{requests}{incidents}").contains("sesame"), "{requests}{incidents}");
    drop((watch, client));
    support::eventually_async("the watch is gone", async || {
        (json("/api/v1/requests").await["total"] == 0).then_some(())
    })
    .await;
    for wrong in ["/api/v1/requests?limit=x", "/api/v1/series?cluster=A_b", "/api/v1/status?cluster="] {
        assert_eq!(get(&address, wrong).await.0, 400, "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_no_request_is_counted() {
    let (tunnel, address) = tunnel();
    let user = User::of(&tunnel.kubeconfig(), tunnel.stub.address);
    let mut connection = user.connect().await;
    connection.write(b"this is no HTTP\r\n\r\n").await.unwrap();
    support::eventually_async("the count", async || {
        let (_, metrics) = get(&address, "/metrics").await;
        metric(&metrics, r#"qtunnel_rejected_heads_total{reason="malformed"}"#).filter(|count| *count == 1.0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grafana_shows_every_metric_that_there_is_and_no_other() {
    let policy = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&policy, include_str!("../deploy/policy.example.yaml")).unwrap();
    let options = StubOptions::default()
        .set("admin", "listen", "127.0.0.1:0")
        .set("authorization", "mode", "policy")
        .set("authorization", "policy_file", policy.path().to_str().unwrap());
    let mut tunnel = Tunnel::start_with(options, AgentOptions::default());
    let address = tunnel.stub.process.wait_for_log("admin address listens")["address"].as_str().unwrap().to_owned();
    // Of each family that has a member only once something has happened.
    let access = Access::of(&tunnel.kubeconfig());
    access.get("/version").await;
    access.anonymous().get("/version").await;
    let (_, metrics) = get(&address, "/metrics").await;
    let known: BTreeSet<&str> =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let dashboard: Value = serde_json::from_str(include_str!("../deploy/grafana-dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let shown: BTreeSet<&str> = queries.flat_map(|target| families(target["expr"].as_str().unwrap())).collect();
    assert_eq!(shown, known, "what Grafana asks for, and what there is in\n{metrics}");
}

/// The metrics that a query asks for, without what the text format adds to their names.
fn families(query: &str) -> impl Iterator<Item = &str> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = words.filter(|word| word.starts_with("qtunnel_"));
    names.map(|name| name.trim_end_matches("_total").trim_end_matches("_bucket"))
}
