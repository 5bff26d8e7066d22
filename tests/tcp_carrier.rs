//! Agents that reach their stub over TCP: because they are told to, because UDP is blocked, or through a proxy.
//!
//! Every other test can be run over TCP too: `QTUNNEL_TEST_CARRIER=tcp cargo test`.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rustix::process::Signal;
use serde_json::Value;
use support::http::{Access, Client};
use support::kubectl::Kubectl;
use support::process::Input;
use support::proxy::ConnectProxy;
use support::relay::Relay;
use support::tunnel::{Agent, AgentOptions, CLUSTER, SampleApi, Stub, StubOptions, Tunnel, USERS};
use support::{DEADLINE, eventually, eventually_async};

const POD: &str = "/api/v1/namespaces/demo/pods/web";
const LOG: &str = "/api/v1/namespaces/demo/pods/web/log?container=fast&follow=true&tailLines=1";
const WATCH: &str = "/api/v1/namespaces/demo/configmaps?watch=true";

fn over(carrier: &str) -> AgentOptions {
    AgentOptions::default().argument(format!("--carrier={carrier}"))
}

fn tunnel_over_tcp() -> Tunnel {
    Tunnel::start_with(StubOptions::default(), over("tcp"))
}

fn carriers(stub: &Stub) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    stub.agents(CLUSTER).iter().map(|agent| (text(&agent["carrier"]), text(&agent["state"]))).collect()
}

fn is_over(stub: &Stub, carrier: &str) -> Option<()> {
    (carriers(stub) == [(carrier.to_owned(), "healthy".to_owned())]).then_some(())
}

/// Reads an open answer until it contains `wanted` more than it did.
async fn wait_for(body: &mut Incoming, wanted: &str) {
    let mut seen = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&seen).contains(wanted) {
            let frame = body.frame().await.expect("the answer goes on").expect("the answer is not broken off");
            seen.extend_from_slice(frame.data_ref().expect("data"));
        }
    };
    assert!(tokio::time::timeout(DEADLINE, reading).await.is_ok(), "no {wanted:?}");
}

#[test]
fn kubectl_works_as_it_does_over_quic() {
    let tunnel = tunnel_over_tcp();
    assert!(is_over(&tunnel.stub, "tcp").is_some(), "{:?}", carriers(&tunnel.stub));
    for kubectl in Kubectl::all(&tunnel.kubeconfig()) {
        let web = ["-n", "demo", "web", "-c", "web"];
        assert!(kubectl.ok(&["get", "pods", "-n", "demo", "-o", "name"]).contains("pod/web"));
        let mut watch = kubectl.start(&["get", "cm", "-n", "kube-public", "-w", "-o", "name"]);
        watch.wait_for_stdout("what was there", |text| text.contains("configmap/cluster-info"));
        let mut logs = kubectl.start(&["logs", "-n", "demo", "web", "-c", "fast", "-f", "--tail=1"]);
        logs.wait_for_stdout("twenty lines", |text| text.lines().count() > 20);
        let script = "cat; echo err >&2; exit 7";
        let input = Input::Bytes(vec![b'x'; 100_000]);
        let finished =
            kubectl.run_with_input(&[&["exec", "-i"], &web[..], &["--", "sh", "-c", script]].concat(), input);
        assert_eq!(finished.code(), 7, "{}: {}", kubectl.name(), finished.stderr);
        assert_eq!((finished.stdout.len(), finished.stderr.contains("err")), (100_000, true), "{}", kubectl.name());
        kubectl.ok(&["create", "cm", "over-tcp", "-n", "kube-public"]);
        watch.wait_for_stdout("the new object", |text| text.contains("configmap/over-tcp"));
        kubectl.ok(&["delete", "cm", "over-tcp", "-n", "kube-public"]);
        for mut running in [watch, logs] {
            running.signal(Signal::TERM);
            running.wait();
        }
    }
    tunnel.wait_until_idle();
}

#[test]
fn a_forwarded_connection_ends_in_each_direction_by_itself() {
    let tunnel = tunnel_over_tcp();
    for kubectl in Kubectl::all(&tunnel.kubeconfig()) {
        let arguments = ["port-forward", "-n", "demo", "pod/web", ":9", "--address", "127.0.0.1"];
        let mut forward = kubectl.start(&arguments);
        let said = forward.wait_for_stdout("the local port", |text| text.contains("->"));
        let port: u16 = said.split("127.0.0.1:").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.write_all(&vec![7; 1_000_000]).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut counted = String::new();
        socket.read_to_string(&mut counted).unwrap();
        // It counts until its input ends, and only then answers.
        assert_eq!(counted, "1000000\n", "{}", kubectl.name());
    }
    tunnel.wait_until_idle();
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_open_requests_hinder_nobody() {
    const MANY: usize = 300;
    let tunnel = tunnel_over_tcp();
    let access = Access::of(&tunnel.kubeconfig());
    let shared = access.http2().await;
    let open = async |mut client: Client| client.open(WATCH).await;
    let watches = join_all((0..MANY).map(|_| open(shared.share()))).await;
    assert!(watches.iter().all(|watch| watch.status() == StatusCode::OK));
    assert_eq!(tunnel.stub.open_streams(CLUSTER), MANY as u64);
    let mut small = access.http2().await;
    for _ in 0..20 {
        let began = Instant::now();
        assert_eq!(small.get(POD).await.status, StatusCode::OK);
        assert!(began.elapsed() < Duration::from_secs(2), "a small GET took {:?}", began.elapsed());
    }
    let answers = join_all((0..MANY).map(async |_| shared.share().get(POD).await.status)).await;
    assert!(answers.iter().all(|status| *status == StatusCode::OK));
    drop(watches);
    tunnel.wait_until_idle();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_within_an_answer_breaks_the_answer_off() {
    let mut tunnel = tunnel_over_tcp();
    let access = Access::of(&tunnel.kubeconfig());
    for mut client in [access.http1().await, access.http2().await] {
        let mut body = client.open(LOG).await.into_body();
        wait_for(&mut body, "tick ").await;
        tunnel.agent.process.kill();
        let end = tokio::time::timeout(DEADLINE, body.collect()).await.expect("an end in time");
        assert!(end.is_err(), "the answer ended as if it were whole");
        tunnel.agent.restart();
        tunnel.stub.wait_for_agents(CLUSTER, 1);
    }
}

#[test]
fn an_agent_of_another_stub_gets_no_connection() {
    let (api, ours, other) =
        (SampleApi::start(), Stub::start(StubOptions::default()), Stub::start(StubOptions::default()));
    let token = other.token(CLUSTER);
    ours.token(CLUSTER);
    // Its token pins the other stub's authority, so it never sends the token here.
    let options = AgentOptions { token: Some(token), ..over("tcp") };
    let mut agent = Agent::start(&ours, CLUSTER, &api.upstream(), options);
    let line = agent.process.wait_for_log("cannot connect to the stub");
    assert!(line["message"].as_str().unwrap().contains("TLS"), "{line}");
    assert!(ours.agents(CLUSTER).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_no_agents_whatever_they_say() {
    let tunnel = tunnel_over_tcp();
    let access = Access::of(&tunnel.kubeconfig());
    // The port takes the agents' authority for this protocol: a user's certificate is refused, in TLS 1.3 with the first read.
    for protocol in ["qtunnel-tcp/1", "qtunnel-tcp-enroll/1"] {
        if let Ok(mut stream) = access.connect(protocol).await {
            let mut buffer = [0];
            let read = tokio::io::AsyncReadExt::read(&mut stream, &mut buffer);
            let read = tokio::time::timeout(DEADLINE, read).await.expect("an answer in time");
            assert!(read.is_err(), "{protocol}: {read:?}");
        }
    }
    assert!(is_over(&tunnel.stub, "tcp").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_udp_an_agent_falls_back_to_tcp_and_returns_when_udp_passes() {
    let (api, stub) = (SampleApi::start(), Stub::start(StubOptions::default()));
    let relay = Relay::without_udp(stub.address);
    let options = AgentOptions { stub: Some(relay.address), ..over("auto").argument("--probe-interval=1s") };
    let token = stub.token(CLUSTER);
    let began = Instant::now();
    let _agent = Agent::start(&stub, CLUSTER, &api.upstream(), AgentOptions { token: Some(token), ..options });
    eventually("the agent over TCP", || is_over(&stub, "tcp"));
    // Once to join and once to connect, QUIC has three seconds.
    println!("over TCP after {:?}", began.elapsed());
    assert!(began.elapsed() > Duration::from_secs(5), "TCP did not wait for QUIC");
    assert!(began.elapsed() < Duration::from_secs(12), "it took {:?}", began.elapsed());

    let access = Access::of(&stub.kubeconfig(CLUSTER, "alice", &[USERS]));
    let mut log_client = access.http1().await;
    let mut log = log_client.open(LOG).await.into_body();
    wait_for(&mut log, "tick ").await;
    relay.let_udp_pass(true);
    let passing = Instant::now();
    let mut small = access.http2().await;
    eventually_async("the agent over QUIC", async || {
        // No request is lost while it moves.
        assert_eq!(small.get(POD).await.status, StatusCode::OK);
        carriers(&stub).contains(&("quic".to_owned(), "healthy".to_owned())).then_some(())
    })
    .await;
    println!("over QUIC {:?} after UDP passed", passing.elapsed());
    for _ in 0..50 {
        assert_eq!(small.get(POD).await.status, StatusCode::OK);
    }
    assert_eq!(carriers(&stub).len(), 2, "the log is still where it was");
    assert!(carriers(&stub).contains(&("tcp".to_owned(), "draining".to_owned())), "{:?}", carriers(&stub));
    wait_for(&mut log, "tick ").await;
    drop((log, log_client));
    eventually("the end of the TCP connection", || is_over(&stub, "quic"));
    assert_eq!(small.get(POD).await.status, StatusCode::OK);
}

#[test]
fn a_proxy_leads_to_the_stub_for_those_who_may_use_it() {
    let (api, stub) = (SampleApi::start(), Stub::start(StubOptions::default()));
    // alice:s3cret
    let proxy = ConnectProxy::start_with_authorization(stub.address, Some("Basic YWxpY2U6czNjcmV0"));
    let with_proxy = |credentials: &str, exceptions: &str| {
        let url = format!("http://{credentials}{}", proxy.address);
        let environment = [("HTTPS_PROXY", url.as_str()), ("NO_PROXY", exceptions)];
        AgentOptions {
            environment: environment.map(|(name, value)| (name.into(), value.into())).to_vec(),
            ..over("tcp")
        }
    };
    let mut refused = Agent::start(&stub, CLUSTER, &api.upstream(), with_proxy("alice:guess@", ""));
    let line = refused.process.wait_for_log("does not accept the credentials");
    assert!(!line.to_string().contains("guess"), "{line}");
    drop(refused);
    assert_eq!(proxy.served(), 0);

    let agent = Agent::start(&stub, CLUSTER, &api.upstream(), with_proxy("alice:s3cret@", "10.0.0.0/8,.internal"));
    eventually("the agent through the proxy", || is_over(&stub, "tcp"));
    assert_eq!(proxy.served(), 2, "once to join, once to connect");
    drop(agent);

    let _direct = Agent::start(&stub, CLUSTER, &api.upstream(), with_proxy("", "127.0.0.1"));
    eventually("the agent without the proxy", || is_over(&stub, "tcp"));
    assert_eq!(proxy.served(), 2);
}

#[test]
fn a_stub_that_stops_lets_requests_over_tcp_end() {
    let mut tunnel = tunnel_over_tcp();
    tunnel.stub.process.signal(Signal::TERM);
    assert!(tunnel.stub.process.wait_at_most(Duration::from_secs(8)).success());
    tunnel.agent.process.wait_for_log("disconnected");
    tunnel.stub.restart();
    tunnel.stub.wait_for_agents(CLUSTER, 1);
    tunnel.agent.process.signal(Signal::TERM);
    assert!(tunnel.agent.process.wait_at_most(Duration::from_secs(8)).success());
    eventually("no agent", || tunnel.stub.agents(CLUSTER).is_empty().then_some(()));
}
