//! A running stub takes over changed files without dropping a connection.

mod support;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use qtunnel::pki::{
    AgentCredentials, AgentIdentity, AgentKey, AgentState, CertificateAuthority, DirectoryStore, HostName, StubKeys,
};
use qtunnel::wire::{Frame, Pace, Welcome};
use rustix::process::Signal;
use support::eventually_async;
use support::http::{Access, Lines, get_plain};
use support::http1::within;
use support::rogue::{RogueAgent, RogueStub, enroll, frames, report, welcome, write};
use support::tunnel::{AgentOptions, CLUSTER, StubOptions, Tunnel, USERS, change_settings};
use support::user::User;
use tempfile::TempDir;

const PODS: &str = "/api/v1/namespaces/demo/pods";

#[tokio::test(flavor = "multi_thread")]
async fn a_server_certificate_is_exchanged_and_no_connection_ends() {
    let tunnel = Tunnel::start();
    let state = tunnel.stub.state_dir();
    let access = Access::of(&tunnel.kubeconfig());
    let mut client = access.http2().await;
    let mut watch = Lines::of(client.open(&format!("{PODS}?watch=true")).await.into_body());
    watch.next().await;
    let user = User::of(&tunnel.kubeconfig(), tunnel.stub.address);
    let presented = async || {
        let socket = user.tls(b"http/1.1").await.unwrap();
        socket.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let before = presented().await;

    let other = TempDir::new().unwrap();
    let hosts = ["127.0.0.1", "localhost"].map(|host| host.parse::<HostName>().unwrap());
    let store = Arc::new(DirectoryStore::new(&other.path().join("keys")));
    StubKeys::create(store, &hosts, None, SystemTime::now()).unwrap();
    let good = std::fs::read(state.join("server.pem")).unwrap();

    // A certificate of another authority changes nothing.
    std::fs::copy(other.path().join("keys/server.pem"), state.join("server.pem")).unwrap();
    tunnel.stub.process.signal(Signal::HUP);
    eventually_async("the complaint", async || {
        let complaints = tunnel.stub.process.logged("the server certificate stays as it was");
        (!complaints.is_empty()).then_some(())
    })
    .await;
    assert_eq!(presented().await, before);
    std::fs::write(state.join("server.pem"), good).unwrap();

    let renewed = renewed_certificate(&state);
    tunnel.stub.process.signal(Signal::HUP);
    eventually_async("the new certificate", async || (presented().await == renewed).then_some(())).await;
    assert_eq!(client.get(PODS).await.status, 200, "the connection goes on");
    assert_eq!(tunnel.stub.agents("c1").len(), 1, "and so does the agent's");
    assert!(tunnel.stub.process.logged("agent disconnected").is_empty());
    drop(watch);
}

/// Issues another certificate for the same key and names, writes it into the directory, and gives it.
fn renewed_certificate(state: &std::path::Path) -> rustls::pki_types::CertificateDer<'static> {
    let now = SystemTime::now();
    let keys = StubKeys::load(Arc::new(DirectoryStore::new(state)), now).unwrap();
    let key = rcgen::KeyPair::from_pem(&std::fs::read_to_string(state.join("server-key.pem")).unwrap()).unwrap();
    let hosts = ["127.0.0.1", "localhost"].map(|host| host.parse::<HostName>().unwrap());
    let certificate = keys.server_authority().issue_server(&hosts, &key, now).unwrap();
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &certificate);
    let pem = format!("-----BEGIN CERTIFICATE-----\n{encoded}\n-----END CERTIFICATE-----\n");
    std::fs::write(state.join("server.pem"), pem).unwrap();
    certificate
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_keeps_what_was_is_said_once_and_shows_in_the_metrics() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("tokens.csv");
    std::fs::write(&file, format!("t-alice,alice,,\"{USERS}\"\n")).unwrap();
    let options = StubOptions::default().set("authentication", "token_file", file.to_str().unwrap()).set(
        "admin",
        "listen",
        "127.0.0.1:0",
    );
    let mut tunnel = Tunnel::start_with(options, AgentOptions::default());
    let address = tunnel.stub.process.wait_for_log("admin address listens")["address"].as_str().unwrap().to_owned();
    let token = qtunnel::wire::BearerToken::new("t-alice").unwrap();
    let access =
        Access::of(&tunnel.kubeconfig()).with_credentials(qtunnel::kube::kubeconfig::Credentials::Token(token));
    assert_eq!(access.get(PODS).await.status, 200);
    let shows = async |line: &str| get_plain(&address, "/metrics").await.lines().any(|other| other == line);
    assert!(shows("qtunnel_config_reloads_total{file=\"token\",result=\"failure\"} 0").await);

    std::fs::write(&file, "t-alice\n").unwrap();
    eventually_async("the failure in the metrics", async || {
        shows("qtunnel_config_reloads_total{file=\"token\",result=\"failure\"} 1").await.then_some(())
    })
    .await;
    assert_eq!(access.get(PODS).await.status, 200, "what was in force stays");
    let complaints = tunnel.stub.process.logged("the token stays as it was");
    assert_eq!(complaints.len(), 1);
    let message = complaints[0]["message"].as_str().unwrap();
    assert!(message.contains("tokens.csv") && message.contains("line 1") && !message.contains("t-alice"), "{message}");

    std::fs::write(&file, "t-bob,bob,,\n").unwrap();
    eventually_async("the success in the metrics", async || {
        shows("qtunnel_config_reloads_total{file=\"token\",result=\"success\"} 1").await.then_some(())
    })
    .await;
    assert_eq!(access.get(PODS).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_changes_and_no_connection_ends() {
    let tunnel = Tunnel::start();
    let mut client = Access::of(&tunnel.kubeconfig()).http2().await;
    let post = |client: &support::http::Client| {
        let mut request = client.request("/api/v1/namespaces/demo/pods?dryRun=All");
        *request.method_mut() = http::Method::POST;
        *request.body_mut() = vec![b' '; 2000].into();
        request
    };
    let status = async |client: &mut support::http::Client| {
        let request = post(client);
        client.send(request).await.status().as_u16()
    };
    assert_ne!(status(&mut client).await, 413);
    change_settings(
        &tunnel.stub.config(),
        &[("limits", "request_body_length", 1000.into()), ("agents", "selector", "lowest-latency".into())],
    );
    tunnel.stub.process.signal(Signal::HUP);
    eventually_async("the new limit", async || (status(&mut client.share()).await == 413).then_some(())).await;
    // The port that the system chose is written into the file after the start, and may be named before.
    let waiting = tunnel.stub.process.logged("the stub has to be started again");
    let named = |key: &str| waiting.iter().any(|line| line["message"].as_str().unwrap().contains(key));
    assert!(named("agents.selector") && !named("request_body_length"), "{waiting:?}");

    change_settings(&tunnel.stub.config(), &[("limits", "requests_per_user", 0.into())]);
    tunnel.stub.process.signal(Signal::HUP);
    eventually_async("the complaint", async || {
        let complaints = tunnel.stub.process.logged("the configuration stays as it was");
        complaints.first().filter(|line| line["message"].as_str().unwrap().contains("requests_per_user")).map(|_| ())
    })
    .await;
    assert_eq!(client.get(PODS).await.status, 200);
    assert!(tunnel.stub.process.logged("agent disconnected").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_are_connected_are_asked_for_another_report_interval() {
    let tunnel = Tunnel::start();
    let credentials = enroll(&tunnel.stub, CLUSTER).await;
    let mut agent = RogueAgent::connect(&tunnel.stub, &credentials).await;
    change_settings(&tunnel.stub.config(), &[("agents", "report_interval", "20s".into())]);
    tunnel.stub.process.signal(Signal::HUP);
    let mut reports = tokio::time::interval(Duration::from_millis(50));
    let asked = within("another interval", async {
        loop {
            tokio::select! {
                frame = agent.control_frames.next_frame() => break frame.unwrap(),
                _ = reports.tick() => write(&mut agent.control, &frames(&[report()])).await,
            }
        }
    });
    assert_eq!(asked.await, Some(Frame::Pace(Pace { report_interval: Duration::from_secs(20) })));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_reports_as_often_as_the_stub_asks_it_to_by_now() {
    let mut tunnel = Tunnel::start();
    let stub = RogueStub::instead_of(&mut tunnel.stub);
    tunnel.agent.restart();
    let mut agent = stub.catch().await;
    let once_an_hour = Welcome { report_interval: Duration::from_secs(3600), ..welcome() };
    let pace = Pace { report_interval: Duration::from_millis(10) };
    write(&mut agent.control, &frames(&[Frame::Welcome(once_an_hour), Frame::Pace(pace)])).await;
    for _ in 0..20 {
        let frame = within("a report", agent.control_frames.next_frame()).await.unwrap();
        assert!(matches!(frame, Some(Frame::Report(_))), "{frame:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_another_authority_is_accepted_while_that_stands_beside_the_own() {
    let tunnel = Tunnel::start();
    let (state, process, user) = (tunnel.stub.state_dir(), &tunnel.stub.process, Access::of(&tunnel.kubeconfig()));
    let file = state.join("agent-ca.pem");
    let own = std::fs::read_to_string(&file).unwrap();
    let keys = StubKeys::load(Arc::new(DirectoryStore::new(&state)), SystemTime::now()).unwrap();
    let next = CertificateAuthority::create("next", SystemTime::now()).unwrap();
    let agent = issued_by(&next, keys.server_authority());
    let change = async |text: String, times: usize| {
        std::fs::write(&file, text).unwrap();
        process.signal(Signal::HUP);
        eventually_async("the change", async || {
            (process.logged("the client authority file has changed").len() == times).then_some(())
        })
        .await;
    };

    change(own.clone() + &next.certificate_pem(), 1).await;
    let rogue = RogueAgent::connect(&tunnel.stub, &agent).await;
    assert_eq!(tunnel.stub.agents(CLUSTER).len(), 2);
    change(own.clone(), 2).await;
    assert_eq!(tunnel.stub.agents(CLUSTER).len(), 2, "what is connected stays");
    drop(rogue);
    tunnel.stub.wait_for_agents(CLUSTER, 1);
    let tls = Arc::new(qtunnel::pki::tunnel_client_config(&agent).unwrap());
    let dialer = qtunnel::carrier::QuicDialer::new(tls, qtunnel::carrier::QuicSettings::default()).unwrap();
    if let Ok(connection) = dialer.dial(tunnel.stub.address, "127.0.0.1").await {
        // The client's end of the handshake is complete before the stub has looked at its certificate.
        tokio::time::timeout(support::DEADLINE, connection.closed()).await.expect("a refusal");
    }
    assert_eq!(tunnel.stub.agents(CLUSTER).len(), 1);

    std::fs::write(&file, next.certificate_pem()).unwrap();
    process.signal(Signal::HUP);
    eventually_async("the complaint", async || {
        let complaints = process.logged("the client authority stays as it was");
        complaints.first().filter(|line| line["message"].as_str().unwrap().contains("agent-ca.pem")).map(|_| ())
    })
    .await;
    assert_eq!(user.get(PODS).await.status, 200);
}

/// An agent of the tunnel's cluster, of which `authority` says so.
fn issued_by(authority: &CertificateAuthority, server: &CertificateAuthority) -> AgentCredentials {
    let key = AgentKey::generate().unwrap();
    let identity = AgentIdentity { cluster: CLUSTER.parse().unwrap(), agent: "next".parse().unwrap() };
    let request = key.signing_request().unwrap();
    let certificate = authority.issue_agent(&request, &identity, Duration::from_secs(600), SystemTime::now()).unwrap();
    let folder = TempDir::new().unwrap();
    let state = AgentState::open(folder.path()).unwrap();
    state.store(&key, vec![certificate], server.certificate_der().clone()).unwrap()
}
