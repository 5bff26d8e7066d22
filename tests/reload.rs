//! A running stub takes over changed files without dropping a connection.

mod support;

use std::sync::Arc;
use std::time::SystemTime;

use qtunnel::pki::{DirectoryStore, HostName, StubKeys};
use rustix::process::Signal;
use support::eventually_async;
use support::http::{Access, Lines, get_plain};
use support::tunnel::{AgentOptions, StubOptions, Tunnel, USERS};
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
