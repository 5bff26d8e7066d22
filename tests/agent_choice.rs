//! Which agent gets a request: selectors, agents of another cluster, retries, and a carrier that stops working.

mod support;

use std::time::{Duration, Instant};

use http::StatusCode;
use rustix::process::Signal;
use serde_json::Value;
use tokio::task::block_in_place;

use support::http::{Access, Lines, get_plain};
use support::relay::Relay;
use support::tunnel::{Agent, AgentOptions, CLUSTER, SampleApi, Stub, StubOptions, USERS, run_qtunnel};
use support::{eventually, eventually_async};

const PODS: &str = "/api/v1/namespaces/demo/pods";
const LOG: &str = "/api/v1/namespaces/demo/pods/web/log?container=fast&follow=true&tailLines=1";

fn access(stub: &Stub) -> Access {
    Access::of(&stub.kubeconfig(CLUSTER, "alice", &[USERS]))
}

fn requests(stub: &Stub) -> Vec<u64> {
    stub.agents(CLUSTER).iter().map(|agent| agent["requests"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_agent_has_its_turn_where_the_settings_say_so() {
    let options = StubOptions::default().set("agents", "selector", "random-round-robin");
    let (api, stub) = (SampleApi::start(), Stub::start(options));
    let _agents: Vec<Agent> =
        (0..3).map(|_| Agent::start(&stub, CLUSTER, &api.upstream(), AgentOptions::default())).collect();
    stub.wait_for_agents(CLUSTER, 3);
    let mut client = access(&stub).http2().await;
    for _ in 0..30 {
        assert_eq!(client.get(PODS).await.status, StatusCode::OK);
    }
    assert_eq!(requests(&stub), [10, 10, 10]);
}

#[test]
fn a_selector_that_does_not_exist_is_refused() {
    let stub = Stub::start(StubOptions::default());
    support::tunnel::change_settings(&stub.config(), &[("agents", "selector", "fastest".into())]);
    let error = support::tunnel::start_stub(&stub.config()).finish().failed();
    assert!(error.contains("fastest") && error.contains("least-streams"), "{error}");
}

/// The UID of kube-system, as the cluster itself tells it.
async fn uid(api: &SampleApi) -> Value {
    let namespace = Access::of(&api.kubeconfig()).get("/api/v1/namespaces/kube-system").await.json();
    namespace["metadata"]["uid"].clone()
}

fn cluster_of(stub: &Stub) -> Value {
    stub.status()["clusters"][0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_of_another_cluster_wait_until_the_last_one_of_the_old_cluster_has_gone() {
    let (old, new) = (SampleApi::start(), SampleApi::start());
    let mut stub = Stub::start(StubOptions::default());
    let start = |api: &SampleApi| Agent::start(&stub, CLUSTER, &api.upstream(), AgentOptions::default());
    let first = start(&old);
    let served_by = |api: Value| {
        let stub = &stub;
        eventually("the API server of the cluster", move || (cluster_of(stub)["apiServer"] == api).then_some(()));
    };
    let (old_uid, new_uid) = (uid(&old).await, uid(&new).await);
    assert_ne!(old_uid, new_uid);
    block_in_place(|| served_by(old_uid.clone()));

    let _newcomers = [start(&new), start(&new)];
    let waiting = || {
        let agents = stub.agents(CLUSTER);
        (agents.len() == 3 && agents.iter().filter(|agent| agent["state"] == "waiting").count() == 2).then_some(())
    };
    block_in_place(|| eventually("two agents that wait", waiting));
    let config = stub.config();
    let table = block_in_place(|| run_qtunnel(["status", "--config", config.to_str().unwrap()]).ok());
    let told = |line: &&str| line.contains("another API server") && line.contains(new_uid.as_str().unwrap());
    assert_eq!(table.lines().filter(told).count(), 2, "{table}");
    let mut client = access(&stub).http2().await;
    for _ in 0..30 {
        let settings = client.get("/api/v1/namespaces/kube-system").await.json();
        assert_eq!(settings["metadata"]["uid"], old_uid, "one cluster's requests go to one API server");
    }

    block_in_place(|| {
        first.process.signal(Signal::TERM);
        served_by(new_uid.clone());
        stub.wait_for_agents(CLUSTER, 2);
    });
    for _ in 0..30 {
        assert_eq!(client.get("/api/v1/namespaces/kube-system").await.json()["metadata"]["uid"], new_uid);
    }
    let log = stub.process.wait_for_log("served by another API server now");
    assert_eq!((&log["old"], &log["new"]), (&old_uid, &new_uid));
    assert_eq!(stub.process.logged("served by another API server now").len(), 1);
    assert_eq!(stub.process.logged("serves another API server than").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_does_not_hold_back_those_of_another_cluster_for_long() {
    let (old, new) = (SampleApi::start(), SampleApi::start());
    let stub = Stub::start(StubOptions::default());
    let start = |api: &SampleApi| Agent::start(&stub, CLUSTER, &api.upstream(), AgentOptions::default());
    let mut first = start(&old);
    let new_uid = uid(&new).await;
    block_in_place(|| {
        stub.wait_for_agents(CLUSTER, 1);
        let _newcomer = start(&new);
        let has = |state: &str| stub.agents(CLUSTER).iter().any(|agent| agent["state"] == state).then_some(());
        eventually("an agent that waits", || has("waiting"));
        first.process.kill();
        let killed = Instant::now();
        eventually("an agent that is suspect", || has("suspect"));
        assert!(has("waiting").is_some(), "a short outage changes nothing");
        // Two seconds or so until it is suspect and half a minute from there; its connection lives for five minutes.
        let switched = || cluster_of(&stub)["apiServer"] == new_uid;
        while !switched() {
            assert!(killed.elapsed() < Duration::from_secs(120), "the newcomer still waits");
            std::thread::sleep(Duration::from_millis(200));
        }
        println!("switched {:.1} s after the old agent was killed", killed.elapsed().as_secs_f64());
        assert!(killed.elapsed() > Duration::from_secs(30));
        eventually("the newcomer serves", || has("healthy"));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_not_multiplied_by_retries() {
    let options = StubOptions::default().set("admin", "listen", "127.0.0.1:0");
    let (mut api, mut stub) = (SampleApi::start(), Stub::start(options));
    let _agents: Vec<Agent> =
        (0..3).map(|_| Agent::start(&stub, CLUSTER, &api.upstream(), AgentOptions::default())).collect();
    block_in_place(|| stub.wait_for_agents(CLUSTER, 3));
    let admin = stub.admin_address().to_string();
    let mut client = access(&stub).http2().await;
    assert_eq!(client.get(PODS).await.status, StatusCode::OK);
    api.process.kill();
    const REQUESTS: usize = 400;
    let began = Instant::now();
    for _ in 0..REQUESTS {
        let answer = client.get(PODS).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text());
    }
    let seconds = began.elapsed().as_secs_f64();
    let metrics = get_plain(&admin, "/metrics").await;
    let number = |name: &str| -> f64 {
        let line = metrics.lines().find(|line| line.starts_with(&format!("qtunnel_{name}_total{{cluster=\"c1\"}} ")));
        line.unwrap_or_else(|| panic!("no {name} in {metrics}")).rsplit(' ').next().unwrap().parse().unwrap()
    };
    let (made, refused) = (number("dispatch_retries"), number("dispatch_retries_refused"));
    println!("{REQUESTS} requests in {seconds:.1} s: {made} retries made, {refused} refused");
    // A fifth of the requests, ten each second, and what there was at first.
    assert!(made <= REQUESTS as f64 * 0.2 + seconds.ceil() * 10.0 + 11.0, "{made}");
    assert!(made > 0.0 && refused > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_udp_stops_passing_new_requests_go_over_tcp_and_what_is_open_waits_for_udp() {
    let (api, stub) = (SampleApi::start(), Stub::start(StubOptions::default()));
    let relay = Relay::without_udp(stub.address);
    relay.let_udp_pass(true);
    let options = AgentOptions { stub: Some(relay.address), ..AgentOptions::default() };
    let options = options.argument("--carrier=auto").argument("--probe-interval=2s");
    let mut agent = Agent::start(&stub, CLUSTER, &api.upstream(), options);
    block_in_place(|| stub.wait_for_agents(CLUSTER, 1));
    assert_eq!(stub.agents(CLUSTER)[0]["carrier"], "quic");
    let access = access(&stub);
    let mut log = Lines::of(access.http1().await.open(LOG).await.into_body());
    log.next().await;

    relay.let_udp_pass(false);
    let blocked = Instant::now();
    let mut client = access.http2().await;
    eventually_async("an agent over TCP", async || {
        let agents = stub.agents(CLUSTER);
        agents.iter().any(|agent| agent["carrier"] == "tcp" && agent["state"] == "healthy").then_some(())
    })
    .await;
    println!("new requests over TCP {:?} after UDP was blocked", blocked.elapsed());
    for _ in 0..20 {
        assert_eq!(client.get(PODS).await.status, StatusCode::OK);
    }
    assert_eq!(stub.agents(CLUSTER).len(), 2, "what is open waits on the old connection");
    agent.process.wait_for_log("QUIC does not get through any more; moved to TCP");

    relay.let_udp_pass(true);
    let back = Instant::now();
    // What has been read ahead first.
    let lines_to_come = 100 * (blocked.elapsed().as_secs() as usize + 2);
    for _ in 0..lines_to_come {
        log.next().await;
    }
    println!("a log went on, {:?} after UDP passed again it has told of everything", back.elapsed());
    eventually_async("new requests over QUIC", async || {
        assert_eq!(client.get(PODS).await.status, StatusCode::OK);
        let agents = stub.agents(CLUSTER);
        agents.iter().any(|agent| agent["carrier"] == "quic" && agent["state"] == "healthy").then_some(())
    })
    .await;
    log.next().await;
    drop(log);
    eventually_async("the old connections end", async || (stub.agents(CLUSTER).len() == 1).then_some(())).await;
    assert!(blocked.elapsed() < Duration::from_secs(60));
}
