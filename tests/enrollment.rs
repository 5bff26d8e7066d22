//! How agents join and stay, and what is refused: join tokens, certificates, their renewal and their limits.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qtunnel::carrier::{Connection, ConnectionEnd, FrameReceiver, FrameSender, QuicDialer, QuicSettings};
use qtunnel::kube::kubeconfig::{ClientCertificate, Credentials, Kubeconfig};
use qtunnel::pki::{AgentState, tunnel_client_config};
use qtunnel::wire::{ALPN_TUNNEL, AuthMode, ErrorCode, Frame, FrameReader, Hello, StreamKind};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use support::http::Access;
use support::tunnel::{Agent, AgentOptions, CLUSTER, Stub, StubOptions, Tunnel, USERS, Upstream};
use support::{DEADLINE, eventually, eventually_async};

/// An API server that is not there; joining does without.
fn nowhere() -> Upstream {
    Upstream { url: "http://127.0.0.1:9".to_owned(), ca: None, token_file: None }
}

fn with_token(token: &str) -> AgentOptions {
    AgentOptions { token: Some(token.to_owned()), ..AgentOptions::default() }
}

/// Starts an agent with this token; it has to give up, and says why in one line.
fn refused(stub: &Stub, token: &str) -> String {
    let mut agent = Agent::start(stub, CLUSTER, &nowhere(), with_token(token));
    assert!(!agent.process.wait().success());
    let said = agent.process.stderr();
    let error = said.lines().last().unwrap().to_owned();
    assert!(error.starts_with("error: "), "{said}");
    error
}

#[test]
fn a_join_token_is_for_one_agent() {
    let stub = Stub::start(StubOptions::default());
    let token = stub.token(CLUSTER);
    let mut first = Agent::start(&stub, CLUSTER, &nowhere(), with_token(&token));
    first.process.wait_for_log("joined");
    let error = refused(&stub, &token);
    assert!(error.contains("the stub refused to let this agent join"), "{error}");
    first.process.wait_for_log("connected");
}

#[test]
fn a_join_token_can_be_made_for_several_agents() {
    let stub = Stub::start(StubOptions::default());
    let token = stub.token_with(CLUSTER, &["--uses", "2"]);
    let mut agents = [(); 2].map(|()| Agent::start(&stub, CLUSTER, &nowhere(), with_token(&token)));
    for agent in &mut agents {
        agent.process.wait_for_log("joined");
    }
    refused(&stub, &token);
}

#[test]
fn an_expired_join_token_is_refused() {
    let stub = Stub::start(StubOptions::default());
    let token = stub.token_with(CLUSTER, &["--ttl", "1s"]);
    let made = Instant::now();
    eventually("the token's end", || (made.elapsed() > Duration::from_secs(2)).then_some(()));
    let error = refused(&stub, &token);
    assert!(error.contains("the stub refused to let this agent join"), "{error}");
}

#[test]
fn a_stub_that_the_join_token_does_not_name_is_not_trusted() {
    let (stub, other) = (Stub::start(StubOptions::default()), Stub::start(StubOptions::default()));
    let mut agent = Agent::start(&stub, CLUSTER, &nowhere(), with_token(&other.token(CLUSTER)));
    assert!(!agent.process.wait().success(), "trying again is in vain");
    let said = agent.process.stderr();
    let line = said.lines().last().unwrap();
    assert!(line.contains("cannot connect to the stub") && line.contains("fingerprint"), "{line}");
    assert!(agent.process.logged("joined").is_empty());
}

#[test]
fn a_join_token_is_good_while_one_of_several_stubs_may_have_made_it() {
    let (stub, mut other) = (Stub::start(StubOptions::default()), Stub::start(StubOptions::default()));
    let token = other.token(CLUSTER);
    other.process.kill();
    let options = with_token(&token).argument(format!("--stub={}", other.address));
    let mut agent = Agent::start(&stub, CLUSTER, &nowhere(), options);
    agent.process.wait_for_log("trying again in");
    other.restart();
    agent.process.wait_for_log("joined");
}

#[test]
fn an_agent_joins_once_its_stub_can_check_join_tokens_again() {
    let stub = Stub::start(StubOptions::default());
    let token = stub.token(CLUSTER);
    let [tokens, aside] = ["tokens", "tokens.aside"].map(|name| stub.state_dir().join(name));
    std::fs::rename(&tokens, &aside).unwrap();
    // Now they cannot be read, which is something else than that there are none.
    std::fs::write(&tokens, "").unwrap();
    let mut agent = Agent::start(&stub, CLUSTER, &nowhere(), with_token(&token));
    let line = agent.process.wait_for_log("trying again in");
    assert!(line["message"].as_str().unwrap().contains("cannot check join tokens at the moment"), "{line}");
    std::fs::remove_file(&tokens).unwrap();
    std::fs::rename(&aside, &tokens).unwrap();
    agent.process.wait_for_log("joined");
}

#[test]
fn a_text_that_is_no_join_token_is_refused_at_once() {
    let stub = Stub::start(StubOptions::default());
    let whole = stub.token(CLUSTER);
    for token in ["", "rubbish", "qtj1.", &whole[..whole.len() - 1], &format!("{whole}A")] {
        let mut agent = Agent::start(&stub, CLUSTER, &nowhere(), with_token(token));
        assert_eq!(agent.process.wait().code(), Some(2), "{token}");
        let said = agent.process.stderr();
        assert!(said.contains("--token") && said.lines().count() <= 4, "{said}");
    }
}

#[test]
fn an_agent_without_a_join_token_says_how_to_get_one() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["agent", "--stub", "127.0.0.1:9", "--upstream", "http://127.0.0.1:9", "--state-dir"];
    let state = dir.path().join("agent");
    let error = support::tunnel::run_qtunnel(arguments.iter().copied().chain([state.to_str().unwrap()])).failed();
    assert!(error.contains("has not joined yet") && error.contains("qtunnel token create"), "{error}");
}

#[test]
fn an_agent_that_has_joined_needs_no_token_again() {
    let mut tunnel = Tunnel::start();
    let name = tunnel.stub.agents(CLUSTER)[0]["name"].clone();
    tunnel.agent.restart();
    tunnel.agent.process.wait_for_log("connected");
    tunnel.stub.wait_for_agents(CLUSTER, 1);
    assert_eq!(tunnel.stub.agents(CLUSTER)[0]["name"], name);
}

#[test]
fn agents_come_back_at_once_to_a_stub_that_was_killed() {
    let mut tunnel = Tunnel::start();
    tunnel.stub.restart();
    let began = Instant::now();
    tunnel.stub.wait_for_agents(CLUSTER, 1);
    // It has told them that it knows them no more; the idle timeout would be 30 s.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn private_files_are_for_their_owner_only() {
    let tunnel = Tunnel::start();
    let kubeconfig = tunnel.kubeconfig();
    assert_eq!(mode(&kubeconfig), 0o600);
    for directory in [tunnel.stub.state_dir(), tunnel.agent.state_dir()] {
        assert_owner_only(&directory);
    }
}

fn assert_owner_only(directory: &Path) {
    assert_eq!(mode(directory), 0o700, "{}", directory.display());
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => assert_owner_only(&path),
            false => assert_eq!(mode(&path), 0o600, "{}", path.display()),
        }
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_while_a_log_is_followed() {
    let life = Duration::from_secs(8);
    let options = StubOptions::default().set("agents", "certificate_ttl", "8s");
    let tunnel = Tunnel::start_with(options, AgentOptions::default());
    let began = Instant::now();
    let mut client = Access::of(&tunnel.kubeconfig()).http2().await;
    let response = client.open("/api/v1/namespaces/demo/pods/web/log?container=web&follow=true&tailLines=1").await;
    let mut log = support::http::Lines::of(response.into_body());
    // Beyond the life of the first certificate, and of the first renewed one.
    let mut last = log.next().await;
    while began.elapsed() < life * 2 {
        let line = log.next().await;
        assert_eq!(tick(&line), tick(&last) + 1, "every line, once");
        last = line;
    }
    assert!(tunnel.agent.process.logged("has been renewed").len() >= 2);
    assert_eq!(tunnel.agent.process.logged("connected").len(), 1, "the connection is the first one");
}

fn tick(line: &str) -> u64 {
    line.split(' ').nth(1).and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{line:?} is no tick"))
}

#[test]
fn an_agent_that_was_away_for_too_long_joins_again() {
    let options = StubOptions::default().set("agents", "certificate_ttl", "2s");
    let mut tunnel = Tunnel::start_with(options, AgentOptions::default());
    tunnel.agent.process.kill();
    let killed = Instant::now();
    eventually("the certificate's end", || (killed.elapsed() > Duration::from_secs(4)).then_some(()));
    tunnel.agent.restart();
    assert!(!tunnel.agent.process.wait().success());
    let said = tunnel.agent.process.stderr();
    assert!(said.contains("certificate has expired") && said.contains("qtunnel token create"), "{said}");
    let token = tunnel.stub.token(CLUSTER);
    tunnel.agent.restart_with_token(&token);
    tunnel.stub.wait_for_agents(CLUSTER, 1);
}

/// The certificate and key of an agent that has joined, as PEM.
fn agent_certificate(agent: &Agent) -> ClientCertificate {
    let pem = std::fs::read(agent.state_dir().join("agent.pem")).unwrap();
    ClientCertificate { chain: pem.clone(), key: pem }
}

fn user_certificate(kubeconfig: &Path) -> ClientCertificate {
    match Kubeconfig::load(kubeconfig).unwrap().upstream(None).unwrap().credentials {
        Credentials::ClientCertificate(certificate) => certificate,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_certificate_is_no_users() {
    let tunnel = Tunnel::start();
    let access = Access::of(&tunnel.kubeconfig());
    let impostor = access.clone().with_credentials(Credentials::ClientCertificate(agent_certificate(&tunnel.agent)));
    for protocol in ["h2", "http/1.1"] {
        // With TLS 1.3 the client learns of the refusal when it reads.
        let outcome = match impostor.connect(protocol).await {
            Ok(mut stream) => tokio::io::AsyncReadExt::read(&mut stream, &mut [0]).await,
            Err(error) => Err(error),
        };
        assert!(outcome.is_err(), "{protocol}: the connection was accepted");
    }
    assert_eq!(access.get("/version").await.status, 200);
}

/// Dials the tunnel of `stub` with a certificate.
async fn dial(stub: &Stub, certificate: &ClientCertificate) -> Result<Connection, ConnectionEnd> {
    let authority = CertificateDer::from_pem_file(stub.state_dir().join("server-ca.pem")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority).unwrap();
    let chain = CertificateDer::pem_slice_iter(&certificate.chain).map(Result::unwrap).collect();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::from_pem_slice(&certificate.key).unwrap();
    let mut tls = builder.with_root_certificates(roots).with_client_auth_cert(chain, key).unwrap();
    tls.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
    let dialer = QuicDialer::new(Arc::new(tls), QuicSettings::default()).unwrap();
    tokio::time::timeout(DEADLINE, dialer.dial(stub.address, "127.0.0.1")).await.expect("a handshake in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_certificate_is_no_agents() {
    let stub = Stub::start(StubOptions::default());
    stub.token(CLUSTER);
    let certificate = user_certificate(&stub.kubeconfig(CLUSTER, "alice", &[USERS]));
    let end = match dial(&stub, &certificate).await {
        // With TLS 1.3 the client learns of the refusal after its handshake.
        Ok(connection) => tokio::time::timeout(DEADLINE, connection.closed()).await.expect("the end in time"),
        Err(end) => end,
    };
    // The port takes users' certificates too, over HTTP/3; for the tunnel they are no proof.
    assert!(matches!(&end, ConnectionEnd::ClosedByPeer { code: ErrorCode::IdentityRejected, .. }), "{end:?}");
    assert_eq!(stub.agents(CLUSTER).len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_serves_its_own_cluster_only() {
    let stub = Stub::start(StubOptions::default());
    stub.token("other");
    let mut agent = Agent::start(&stub, CLUSTER, &nowhere(), AgentOptions::default());
    agent.process.wait_for_log("connected");
    agent.process.kill();

    let credentials = AgentState::open(&agent.state_dir()).unwrap().load().unwrap().unwrap();
    let tls = tunnel_client_config(&credentials).unwrap();
    let dialer = QuicDialer::new(Arc::new(tls), QuicSettings::default()).unwrap();
    let connection = dialer.dial(stub.address, "127.0.0.1").await.unwrap();
    let (send, receive) = connection.open().await.unwrap();
    let mut sender = FrameSender::open(send, StreamKind::Control);
    let mut receiver = FrameReceiver::new(receive, FrameReader::for_opened_control());
    let hello = Hello {
        cluster: "other".parse().unwrap(),
        instance: 1,
        software: "an impostor".to_owned(),
        auth_mode: AuthMode::Impersonate,
        connected_stubs: Vec::new(),
    };
    sender.send(&Frame::Hello(hello)).await.unwrap();
    let end = tokio::time::timeout(DEADLINE, async {
        match receiver.next_frame().await {
            Ok(Some(Frame::Refused(refused))) => assert!(refused.reason.contains(CLUSTER), "{}", refused.reason),
            Ok(other) => panic!("{other:?}"),
            // The connection's end may be faster than the words.
            Err(_closed) => {}
        }
        connection.closed().await
    });
    let end = end.await.expect("the end in time");
    assert!(matches!(end, ConnectionEnd::ClosedByPeer { code: ErrorCode::IdentityRejected, .. }), "{end:?}");
    eventually_async("no agent of the other cluster", async || stub.agents("other").is_empty().then_some(())).await;
}
