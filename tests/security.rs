//! The lessons of other proxies' advisories, each a test through a real stub and a real agent.
//!
//! | source | test |
//! | --- | --- |
//! | CVE-2018-1002105 | `a_refused_upgrade_is_relayed_and_its_connection_takes_nothing_more` in `bad_days` |
//! | CVE-2022-3172, CVE-2018-1002102 | `a_redirect_to_elsewhere_is_not_passed_on` in `bad_days` |
//! | CVE-2021-31999, capsule-proxy#188 | [`connection_cannot_take_the_identity_away`], and at random in `smuggling` |
//! | OCM #329, #335 | [`impersonation_headers_in_any_spelling_never_pass_unasked`], [`headers_that_claim_an_identity_end_at_the_tunnel`] |
//! | chisel GHSA-24fp-5v3p-rvpw | `a_watch_that_is_not_allowed_any_more_is_broken_off_over_either_http`, `a_session_that_is_not_allowed_any_more_is_reset` in `policy` |
//! | chisel CVE-2024-43798 | [`a_stub_without_clear_settings_refuses_to_start`] |
//! | frp CVE-2026-40910 | [`a_host_that_is_not_the_connections_is_misdirected`], [`paths_that_servers_read_differently_are_refused`] |
//! | Clusternet CVE-2023-30622, OCM CVE-2024-9779 | `no_rule_is_for_everything_and_no_impersonation_for_everybody` in `deploy`, `an_agent_cannot_serve_another_cluster` in `bad_days` |
//! | OCM CVE-2026-4740 | [`a_renewal_that_names_another_cluster_changes_nothing`] |
//! | Rancher GHSA-9ghh-mmcq-8phc | `a_user_who_loses_the_right_loses_what_is_open` in `policy` |
//! | Teleport CVE-2025-49825 | [`an_agents_certificate_is_no_users`], [`a_users_certificate_is_no_agents`], `the_application_protocol_decides_whose_certificate_it_has_to_be` in `http3` |
//! | CVE-2022-3294, k/k#136550 | [`a_request_never_leads_an_agent_elsewhere`], [`reading_a_nodes_proxy_takes_the_right_to_run`] |
//! | CVE-2023-44487, CVE-2025-8671 | [`streams_that_are_reset_rapidly_leave_the_stub_serving`], `requests_that_are_reset_rapidly_cost_a_client_of_http3_its_connection` in `abuse` |
//! | quinn advisories | [`malformed_packets_leave_the_stub_serving`], `strangers_cannot_fill_the_stubs_memory` in `bad_days`, `while_handshakes_do_not_end_addresses_have_to_be_proven` in `abuse` |
//! | CVE-2026-16242 | [`a_stub_without_clear_settings_refuses_to_start`] |
//! | 0-RTT | `early_data_of_an_agent_that_returns_is_accepted_only_once` in `pki::handshake_tests` |
//! | request smuggling (RFC 9112, section 11.2) | [`lengths_that_can_be_read_in_two_ways_smuggle_nothing`], and at random in `smuggling` |

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use qtunnel::carrier::{QuicDialer, QuicSettings};
use qtunnel::kube::kubeconfig::{Credentials, Kubeconfig};
use qtunnel::pki::AgentIdentity;
use qtunnel::wire::{ALPN_TUNNEL, Frame, Renew};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::mpsc;

use support::http1::{Answer, Head, within};
use support::rogue::{RogueAgent, enroll, frames, write};
use support::scene::{Scene, USER};
use support::scripted_upstream::{AGENT_TOKEN, Next, ScriptedUpstream, UpstreamConnection};
use support::tunnel::{Agent, AgentOptions, CLUSTER, Stub, StubOptions, change_settings, init_stub, run_qtunnel};
use support::user::{User, Version};

const LIST: &str = "/api/v1/namespaces/demo/pods";
const EXEC: &str = "/api/v1/namespaces/demo/pods/web/exec?command=sh&stdout=true";
const ACCESS_REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

/// Unused connections to the API server that an agent keeps at most.
const KEPT_CONNECTIONS: usize = 128;

/// A user whom the scripted API server lets nobody act as.
const FORBIDDEN_USER: &str = "the-boss";

/// A request as it reached the API server.
#[derive(Debug)]
struct Came {
    head: Head,
    body: Vec<u8>,
}

type Requests = mpsc::UnboundedReceiver<Came>;

/// Tells the test of every request, answers it, and allows every impersonation but that of [`FORBIDDEN_USER`].
async fn tell(head: Head, mut connection: UpstreamConnection, came: mpsc::UnboundedSender<Came>) -> Next {
    let (body, _whole) = within("a body", connection.wire.request_body(&head)).await;
    let is_review = head.target() == ACCESS_REVIEWS;
    let allowed = !String::from_utf8_lossy(&body).contains(FORBIDDEN_USER);
    came.send(Came { head, body }).expect("the test listens");
    match is_review {
        true => {
            let review = serde_json::json!({"kind": "SubjectAccessReview", "status": {"allowed": allowed}});
            connection.answer("201 Created", &[], &review.to_string()).await
        }
        false => connection.answer("200 OK", &[], "fine").await,
    }
}

async fn scene() -> (Scene, Requests) {
    scene_with(StubOptions::default(), &[]).await
}

async fn scene_with(stub: StubOptions, agent: &[&str]) -> (Scene, Requests) {
    let (sender, came) = mpsc::unbounded_channel();
    (Scene::start_with(stub, agent, move |head, connection| tell(head, connection, sender.clone())).await, came)
}

/// A request over a version of HTTP with these headers.
async fn ask(user: &User, version: Version, path: &str, headers: &[(&str, &str)]) -> Answer {
    user.begin(version, "GET", path, headers).await.rest().await
}

/// The next request at the API server.
async fn next(came: &mut Requests) -> Came {
    within("a request at the API server", came.recv()).await.expect("it runs")
}

/// Checks that nothing reached the API server: what is sent now is the next thing there.
async fn expect_nothing_came(user: &User, came: &mut Requests, after: &str) {
    ask(user, Version::Http1, "/probe", &[]).await;
    let first = next(came).await.head;
    assert_eq!(first.target(), "/probe", "after {after}");
}

fn values<'a>(came: &'a Came, name: &'a str) -> Vec<&'a str> {
    came.head.values(name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_cannot_take_the_identity_away() {
    let (scene, mut came) = scene().await;
    for named in ["Impersonate-User, Authorization", "close, impersonate-group", "X-Remote-User", "Audit-Id", "Host"] {
        let answer = ask(&scene.user, Version::Http1, LIST, &[("Connection", named)]).await;
        answer.expect_status(400, Some("BadRequest"));
        expect_nothing_came(&scene.user, &mut came, named).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn impersonation_headers_in_any_spelling_never_pass_unasked() {
    let (scene, mut came) = scene().await;
    // A group, uid or extra without a user is refused, as the API server does.
    for name in
        ["Impersonate-Group", "impersonate-group", "IMPERSONATE-GROUP", "Impersonate-Uid", "Impersonate-Extra-x"]
    {
        for version in Version::ALL {
            let name = if version != Version::Http1 { name.to_ascii_lowercase() } else { name.to_owned() };
            let answer = ask(&scene.user, version, LIST, &[(name.as_str(), "system:masters")]).await;
            answer.expect_status(400, Some("BadRequest"));
            expect_nothing_came(&scene.user, &mut came, &name).await;
        }
    }
    // With a user it is kubectl --as, which the agent's own policy refuses for these, whatever the cluster would say.
    for (name, value) in [("impersonate-group", "system:masters"), ("Impersonate-Group", "system:nodes")] {
        let headers = [("impersonate-user", "bob"), (name, value)];
        let answer = ask(&scene.user, Version::Http1, LIST, &headers).await;
        answer.expect_status(403, Some("Forbidden"));
        expect_nothing_came(&scene.user, &mut came, value).await;
    }
    // Some servers read an underscore as a hyphen.
    for version in Version::ALL {
        ask(&scene.user, version, LIST, &[("impersonate_user", "root"), ("impersonate_group", "system:masters")]).await;
        let came = next(&mut came).await;
        assert_eq!(values(&came, "impersonate-user"), [USER]);
        assert!(came.head.headers.iter().all(|(name, _)| !name.contains('_')), "{:?}", came.head);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_claim_an_identity_end_at_the_tunnel() {
    let (scene, mut came) = scene().await;
    let claims = [
        ("x-remote-user", "root"),
        ("x-remote-group", "system:masters"),
        ("x-remote-extra-scopes", "all"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("forwarded", "for=10.0.0.1"),
        ("x-real-ip", "10.0.0.1"),
        ("proxy-authorization", "Basic x"),
    ];
    for version in Version::ALL {
        assert_eq!(ask(&scene.user, version, LIST, &claims).await.text(), "fine");
        let came = next(&mut came).await;
        for (name, _) in claims {
            let expected: &[&str] = if name == "x-forwarded-for" { &["127.0.0.1"] } else { &[] };
            assert_eq!(values(&came, name), expected, "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_id_is_the_stubs_to_give() {
    let (scene, mut came) = scene().await;
    for version in Version::ALL {
        let answer = ask(&scene.user, version, LIST, &[("audit-id", "chosen-by-the-client")]).await;
        let came = next(&mut came).await;
        let id = answer.head.header("audit-id").expect("an id").to_owned();
        assert_ne!(id, "chosen-by-the-client");
        assert_eq!(values(&came, "audit-id"), [id]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_not_the_connections_is_misdirected() {
    let (scene, mut came) = scene_with(StubOptions::default().base_domain("k8s.test"), &[]).await;
    let mut right = scene.user.with_server_name("c1.k8s.test").with_prefix("");
    right.host = "c1.k8s.test".to_owned();
    let mut other_cluster = right.clone();
    other_cluster.host = "c2.k8s.test".to_owned();
    let mut by_path = right.with_prefix("/clusters/c1");
    by_path.host = "localhost".to_owned();
    for version in Version::ALL {
        assert_eq!(ask(&right, version, LIST, &[]).await.text(), "fine");
        assert_eq!(next(&mut came).await.head.target(), LIST);
        for wrong in [&other_cluster, &by_path] {
            ask(wrong, version, LIST, &[]).await.expect_status(421, None);
            expect_nothing_came(&right, &mut came, &wrong.host).await;
        }
    }
    // Two hosts in one HTTP/1.1 request.
    let mut client = right.connect().await;
    let request = format!("GET https://c2.k8s.test{LIST} HTTP/1.1\r\nHost: c1.k8s.test\r\n\r\n");
    client.write(request.as_bytes()).await.expect("a request is sent");
    let status = client.answer("GET").await.head.status();
    assert!([400, 421].contains(&status), "{status}");
    expect_nothing_came(&right, &mut came, "two hosts").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_servers_read_differently_are_refused() {
    let (scene, mut came) = scene().await;
    for path in [
        "/api/v1/../../clusters/c2/api",
        "/api/v1/namespaces/demo/pods/%2e%2e/secrets",
        "/api//v1/pods",
        "/api/v1/namespaces/demo%2fpods",
        "/api/v1/namespaces/demo%5cpods",
        "/./api",
        "/api/v1/%zz",
    ] {
        for version in Version::ALL {
            let status = ask(&scene.user, version, path, &[]).await.head.status();
            assert_eq!(status, 400, "{path} over {version:?}");
            expect_nothing_came(&scene.user, &mut came, path).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_certificate_is_no_users() {
    let (scene, mut came) = scene().await;
    let agent = enroll(&scene.stub, CLUSTER).await;
    let user = scene.user.with_certificate(agent.chain().to_vec(), agent.key().clone_key());
    // In TLS 1.3 a client learns only after its own handshake that its certificate is not accepted.
    if let Ok(socket) = user.tls(b"http/1.1").await {
        let mut connection = support::http1::Wire::new(socket);
        let _ = connection.write(&user.request("GET", LIST, &[])).await;
        let (answer, end) = within("the end", connection.rest()).await;
        assert!(answer.is_empty() && end.is_aborted(), "{end:?}: {}", String::from_utf8_lossy(&answer));
    }
    expect_nothing_came(&scene.user, &mut came, "an agent's certificate").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_certificate_is_no_agents() {
    let (scene, mut came) = scene().await;
    let kubeconfig = scene.stub.kubeconfig(CLUSTER, "mallory", &[]);
    let upstream = Kubeconfig::load(&kubeconfig).expect("a kubeconfig").upstream(None).expect("a cluster");
    let Credentials::ClientCertificate(certificate) = upstream.credentials else { panic!("no certificate") };
    let mut roots = RootCertStore::empty();
    let authority = upstream.certificate_authority.expect("an authority");
    roots.add(CertificateDer::from_pem_slice(&authority).expect("a certificate")).expect("an authority");
    let chain = CertificateDer::pem_slice_iter(&certificate.chain).collect::<Result<_, _>>().expect("a chain");
    let mut tls = rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&certificate.key).expect("a key"))
        .expect("a certificate");
    tls.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
    let dialer = QuicDialer::new(Arc::new(tls), QuicSettings::default()).expect("QUIC");
    if let Ok(connection) = within("a connection", dialer.dial(scene.stub.address, "127.0.0.1")).await {
        within("the stub closes the connection", connection.closed()).await;
    }
    assert_eq!(scene.stub.agents(CLUSTER).len(), 1, "only the real agent");
    expect_nothing_came(&scene.user, &mut came, "a user's certificate").await;
}

/// A static token of the stub's, as the users' file has it, and whom it stands for.
const STATIC_TOKEN: &str = "static-secret";
const STATIC_USER: &str = "tina";

fn with_static_tokens(dir: &tempfile::TempDir) -> StubOptions {
    let file = dir.path().join("tokens.csv");
    std::fs::write(&file, format!("{STATIC_TOKEN},{STATIC_USER},u1,\"devs,ops\"\n")).expect("a file");
    StubOptions::default().set("authentication", "token_file", file.to_str().expect("a path"))
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_token_ends_at_the_stub() {
    let dir = tempfile::tempdir().expect("a folder");
    let (scene, mut came) = scene_with(with_static_tokens(&dir), &[]).await;
    let user = scene.user.without_certificate();
    for version in Version::ALL {
        let answer = ask(&user, version, LIST, &[("authorization", &bearer(STATIC_TOKEN))]).await;
        assert_eq!(answer.text(), "fine");
        let came = next(&mut came).await;
        assert_eq!(values(&came, "authorization"), [bearer(AGENT_TOKEN)]);
        assert_eq!(values(&came, "impersonate-user"), [STATIC_USER]);
        assert_eq!(values(&came, "impersonate-group"), ["devs", "ops"]);
        assert!(!format!("{came:?}").contains(STATIC_TOKEN));
        ask(&user, version, LIST, &[("authorization", &bearer("wrong"))])
            .await
            .expect_status(401, Some("Unauthorized"));
        ask(&user, version, LIST, &[]).await.expect_status(401, Some("Unauthorized"));
    }
    expect_nothing_came(&scene.user, &mut came, "wrong tokens").await;
    for log in [scene.stub.process.stderr(), scene.agent.process.stderr()] {
        assert!(!log.contains(STATIC_TOKEN) && !log.contains(AGENT_TOKEN), "a secret in a log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browsers_token_ends_at_the_stub() {
    let dir = tempfile::tempdir().expect("a folder");
    let (scene, mut came) = scene_with(with_static_tokens(&dir), &[]).await;
    // The base64url of the static token.
    let protocols = "base64url.bearer.authorization.k8s.io.c3RhdGljLXNlY3JldA, v5.channel.k8s.io";
    let headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Protocol", protocols),
    ];
    let answer = ask(&scene.user.without_certificate(), Version::Http1, EXEC, &headers).await;
    assert_eq!(answer.text(), "fine", "the refusal of the API server");
    let came = next(&mut came).await;
    assert_eq!(values(&came, "impersonate-user"), [STATIC_USER]);
    assert_eq!(values(&came, "sec-websocket-protocol"), ["v5.channel.k8s.io"]);
    assert_eq!(values(&came, "authorization"), [bearer(AGENT_TOKEN)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pass_through_forwards_the_users_own_token_and_impersonates_nobody() {
    let dir = tempfile::tempdir().expect("a folder");
    let (scene, mut came) = scene_with(with_static_tokens(&dir), &["--auth", "passthrough"]).await;
    for version in Version::ALL {
        let answer = ask(&scene.user, version, LIST, &[("authorization", &bearer("for-the-cluster"))]).await;
        assert_eq!(answer.text(), "fine");
        let first = next(&mut came).await;
        assert_eq!(values(&first, "authorization"), [bearer("for-the-cluster")]);
        let impersonates =
            first.head.headers.iter().any(|(name, _)| name.to_ascii_lowercase().starts_with("impersonate"));
        assert!(!impersonates, "{:?}", first.head);
        // --as: the API server itself decides what the user's token may do.
        let headers = [("authorization", &*bearer("for-the-cluster")), ("impersonate-user", "bob")];
        assert_eq!(ask(&scene.user, version, LIST, &headers).await.text(), "fine");
        let second = next(&mut came).await;
        assert_eq!(values(&second, "impersonate-user"), ["bob"]);
        assert_eq!(values(&second, "authorization"), [bearer("for-the-cluster")]);

        // Neither the agent's own token nor one that is the stub's takes its place.
        ask(&scene.user, version, LIST, &[]).await.expect_status(401, Some("Unauthorized"));
        let stranger = scene.user.without_certificate();
        let answer = ask(&stranger, version, LIST, &[("authorization", &bearer(STATIC_TOKEN))]).await;
        answer.expect_status(401, Some("Unauthorized"));
    }
    scene.wait_until_settled();
    assert!(came.try_recv().is_err(), "nothing else came");
}

#[tokio::test(flavor = "multi_thread")]
async fn acting_as_another_is_the_clusters_to_allow() {
    let (scene, mut came) = scene().await;
    let headers = [("Impersonate-User", "bob"), ("Impersonate-Group", "ops"), ("Impersonate-Extra-Scopes", "all")];
    assert_eq!(ask(&scene.user, Version::Http1, LIST, &headers).await.text(), "fine");
    let mut asked = Vec::new();
    let request = loop {
        let came = next(&mut came).await;
        if came.head.target() != ACCESS_REVIEWS {
            break came;
        }
        let review: serde_json::Value = serde_json::from_slice(&came.body).expect("a review");
        assert_eq!((&review["spec"]["user"], &review["spec"]["groups"][0]), (&USER.into(), &"devs".into()));
        assert_eq!(values(&came, "authorization"), [bearer(AGENT_TOKEN)]);
        assert!(values(&came, "impersonate-user").is_empty(), "the agent asks for itself");
        let attributes = &review["spec"]["resourceAttributes"];
        assert_eq!(attributes["verb"], "impersonate");
        asked.push(format!("{} {}", attributes["resource"], attributes["name"]));
    };
    assert_eq!(asked, [r#""users" "bob""#, r#""groups" "ops""#, r#""userextras" "all""#]);
    assert_eq!(values(&request, "impersonate-user"), ["bob"]);
    assert_eq!(values(&request, "impersonate-group"), ["ops"]);
    assert_eq!(values(&request, "impersonate-extra-scopes"), ["all"]);
    assert_eq!(values(&request, "impersonate-extra-qtunnel.dev%2foriginal-user"), [USER]);
    assert_eq!(values(&request, "impersonate-extra-qtunnel.dev%2foriginal-groups"), ["devs"]);

    for version in Version::ALL {
        let refused = ask(&scene.user, version, LIST, &[("impersonate-user", FORBIDDEN_USER)]).await;
        let message = refused.expect_status(403, Some("Forbidden"));
        assert!(message.contains(USER) && message.contains(FORBIDDEN_USER), "{message}");
        assert_eq!(next(&mut came).await.head.target(), ACCESS_REVIEWS);
        expect_nothing_came(&scene.user, &mut came, "a refused impersonation").await;
    }
    // Only the tunnel may name the original user.
    let forged = [("Impersonate-User", "bob"), ("Impersonate-Extra-Qtunnel.dev%2foriginal-User", "root")];
    ask(&scene.user, Version::Http1, LIST, &forged).await.expect_status(400, Some("BadRequest"));
    expect_nothing_came(&scene.user, &mut came, "a forged original user").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_reset_rapidly_leave_the_stub_serving() {
    let (scene, mut came) = scene().await;
    let drained = tokio::spawn(async move { while came.recv().await.is_some() {} });
    assert_eq!(ask(&scene.user, Version::Http2, LIST, &[]).await.text(), "fine");
    let before = scene.stub.process.resident_memory();
    for user in [scene.user.clone(), scene.user.without_certificate()] {
        for _ in 0..4 {
            let socket = user.tls(b"h2").await.expect("a connection");
            let (client, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
            let connection = tokio::spawn(connection);
            let mut client = within("HTTP/2", client.ready()).await.expect("HTTP/2");
            for _ in 0..5000 {
                let request = http::Request::builder().uri(user.uri(LIST)).body(()).expect("a request");
                // The stub may close the connection of such a client.
                let Ok((_answer, mut stream)) = client.send_request(request, false) else { break };
                stream.send_reset(h2::Reason::CANCEL);
                client = match tokio::time::timeout(Duration::from_secs(5), client.ready()).await {
                    Ok(Ok(client)) => client,
                    _ => break,
                };
            }
            connection.abort();
        }
        assert_eq!(ask(&scene.user, Version::Http2, LIST, &[]).await.text(), "fine");
        assert_eq!(ask(&scene.user, Version::Http1, LIST, &[]).await.text(), "fine");
    }
    scene.stub.wait_until_idle(CLUSTER);
    // Requests that were answered before their reset leave connections for later ones, as many as the agent keeps.
    scene.upstream.wait_for_connections(KEPT_CONNECTIONS);
    let grown = scene.stub.process.resident_memory().saturating_sub(before);
    println!("the stub has grown by {} KiB", grown >> 10);
    assert!(grown < 64 << 20, "the stub has grown by {} MiB", grown >> 20);
    drained.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_packets_leave_the_stub_serving() {
    let (scene, mut came) = scene().await;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let versions: [[u8; 4]; 3] = [[0, 0, 0, 1], [0, 0, 0, 0], [0x0a, 0x1a, 0x2a, 0x3a]];
    for number in 0..3000_usize {
        // Long headers with plausible beginnings and nonsense behind them (RFC 9000, section 17.2).
        let mut packet = vec![0xc0 | (number % 64) as u8];
        packet.extend_from_slice(&versions[number % versions.len()]);
        packet.extend((0..number % 1400).map(|index| (index * 31 + number * 7) as u8));
        socket.send_to(&packet, scene.stub.address).await.expect("a packet is sent");
    }
    expect_nothing_came(&scene.user, &mut came, "packets").await;
    // Agents still get in.
    let _second = Agent::start(&scene.stub, CLUSTER, &scene.upstream.upstream(), AgentOptions::default());
    scene.stub.wait_for_agents(CLUSTER, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stub_without_clear_settings_refuses_to_start() {
    for (section, key, value) in [
        ("authorization", "mode", toml::Value::from("allow-most")),
        ("authorization", "modes", "allow-all".into()),
        ("authentication", "token_file", "missing.csv".into()),
        ("authentication", "client_certificates", "required".into()),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let config = dir.path().join("stub/stub.toml");
        init_stub(&dir.path().join("stub"), None).ok();
        change_settings(&config, &[("", "listen", "127.0.0.1:0".into()), (section, key, value)]);
        let said = run_qtunnel(["stub", "--config", config.to_str().expect("a path")]).failed();
        assert!(said.contains("token_file") || said.contains("token file") || said.contains(key), "{key}: {said}");
    }
    for file in ["user-ca.pem", "agent-ca.pem"] {
        let dir = tempfile::tempdir().expect("a folder");
        let config = dir.path().join("stub/stub.toml");
        init_stub(&dir.path().join("stub"), None).ok();
        change_settings(&config, &[("", "listen", "127.0.0.1:0".into())]);
        std::fs::remove_file(dir.path().join("stub").join(file)).expect("the authority's file");
        let said = run_qtunnel(["stub", "--config", config.to_str().expect("a path")]).failed();
        assert!(said.contains(file), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_that_can_be_read_in_two_ways_smuggle_nothing() {
    const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: x\r\nImpersonate-User: root\r\n\r\n";
    let (scene, mut came) = scene().await;
    let length = SMUGGLED.len().to_string();
    let (plus, zeros, list) = (format!("+{length}"), format!("00{length}"), format!("{length}, 0"));
    let lengths: [&[&str]; 8] =
        [&[&length, "0"], &["0", &length], &[&length, &length], &[&plus], &[&zeros], &[&list], &["0x3a"], &[]];
    for lengths in lengths {
        for method in ["POST", "GET", "DELETE"] {
            let socket = scene.user.tls(b"h2").await.expect("a connection");
            let (mut client, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
            tokio::spawn(connection);
            let mut request = http::Request::builder().method(method).uri(scene.user.uri(LIST));
            for length in lengths {
                request = request.header("content-length", *length);
            }
            let request = request.body(()).expect("a request");
            let (answer, mut body) = client.send_request(request, false).expect("a request is sent");
            // The stub may have refused it already.
            let _ = body.send_data(Bytes::from_static(SMUGGLED.as_bytes()), true);
            let _ = within("an answer or a reset", answer).await;
            expect_no_smuggled_request(&scene.user, &mut came, &format!("{method} with {lengths:?}")).await;
        }
    }
    for headers in [
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {length}"),
        "Transfer-Encoding: xchunked".to_owned(),
        "Transfer-Encoding: chunked, identity".to_owned(),
        "Transfer-Encoding: identity, chunked".to_owned(),
        "Transfer-Encoding : chunked".to_owned(),
        "Transfer-Encoding:\u{b}chunked".to_owned(),
        format!("Content-Length: 0\r\nContent-Length: {length}"),
        format!("Content-Length: {length}\r\n Content-Length: 0"),
    ] {
        let mut client = scene.user.connect().await;
        let first_line = format!("POST {}{LIST} HTTP/1.1\r\nHost: {}", scene.user.prefix, scene.user.host);
        let request = format!("{first_line}\r\n{headers}\r\n\r\n0\r\n\r\n{SMUGGLED}");
        client.write(request.as_bytes()).await.expect("a request is sent");
        client.finish().await.expect("the end is sent");
        within("the end", client.rest()).await;
        expect_no_smuggled_request(&scene.user, &mut came, &headers).await;
    }
}

/// Checks that only the requests that were sent have reached the API server, each made in the user's name.
async fn expect_no_smuggled_request(user: &User, came: &mut Requests, after: &str) {
    ask(user, Version::Http1, "/probe", &[]).await;
    loop {
        let came = next(came).await;
        assert_eq!(values(&came, "impersonate-user"), [USER], "after {after}: {came:?}");
        assert!(values(&came, "content-length").len() <= 1, "after {after}: {came:?}");
        match came.head.target() {
            "/probe" => return,
            target => assert_eq!(target, LIST, "after {after}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stub_that_impersonates_needs_no_credential_of_the_cluster() {
    // What the stub has in its directory opens no API server: the agent's token is nowhere in it.
    let (sender, mut came) = mpsc::unbounded_channel();
    let upstream = ScriptedUpstream::start(move |head, connection| tell(head, connection, sender.clone())).await;
    let stub = Stub::start(StubOptions::default());
    let _agent = Agent::start(&stub, CLUSTER, &upstream.upstream(), AgentOptions::default());
    stub.wait_for_agents(CLUSTER, 1);
    let user = User::of(&stub.kubeconfig(CLUSTER, USER, &["devs"]), stub.address);
    assert_eq!(ask(&user, Version::Http2, LIST, &[]).await.text(), "fine");
    assert_eq!(values(&next(&mut came).await, "authorization"), [bearer(AGENT_TOKEN)]);
    for entry in std::fs::read_dir(stub.state_dir()).expect("a folder") {
        let path = entry.expect("an entry").path();
        // Sockets cannot be read, and folders hold no more than names.
        if let Ok(content) = std::fs::read(&path) {
            let found = content.windows(AGENT_TOKEN.len()).any(|window| window == AGENT_TOKEN.as_bytes());
            assert!(!found, "the agent's token in {}", path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_that_names_another_cluster_changes_nothing() {
    let stub = Stub::start(StubOptions::default());
    stub.token("c2");
    let credentials = enroll(&stub, CLUSTER).await;
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut wanted = rcgen::CertificateParams::default();
    let name = rcgen::string::Ia5String::try_from("qtunnel://c2/agent/other").expect("text");
    wanted.subject_alt_names = vec![rcgen::SanType::URI(name)];
    wanted.distinguished_name.push(rcgen::DnType::CommonName, "admin");
    let request = wanted.serialize_request(&key).expect("a request").der().to_vec().into();
    let mut agent = RogueAgent::connect(&stub, &credentials).await;
    write(&mut agent.control, &frames(&[Frame::Renew(Renew { request })])).await;
    match within("an answer", agent.control_frames.next_frame()).await.expect("a frame") {
        Some(Frame::Refused(_)) => {}
        Some(Frame::Certificate(certificate)) => {
            let issued = CertificateDer::from(certificate.chain[0].to_vec());
            let identity = AgentIdentity::from_certificate(&issued).expect("an agent's certificate");
            assert_eq!(&identity, credentials.identity());
            assert!(qtunnel::pki::user_identity(&issued).is_err(), "it makes no user");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_never_leads_an_agent_elsewhere() {
    let (scene, mut came) = scene().await;
    let elsewhere = ScriptedUpstream::start(async |_head, _connection| panic!("somebody came")).await;
    let (address, prefix, host) = (elsewhere.address, &scene.user.prefix, &scene.user.host);
    for request in [
        format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n\r\n"),
        format!("GET http://{address}/ HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        format!("GET {prefix}@{address}/ HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        format!("GET {prefix}//{address}/ HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    ] {
        let mut client = scene.user.connect().await;
        client.write(request.as_bytes()).await.expect("a request is sent");
        let head = within("an answer", client.head()).await.expect("an answer").expect("an answer");
        assert!([400, 404, 421].contains(&head.status()), "{request}: {head:?}");
        expect_nothing_came(&scene.user, &mut came, &request).await;
    }
    // The absolute form names a server too (RFC 9112, section 3.2.2); all the same it is the cluster's own that is asked.
    let mut client = scene.user.connect().await;
    let request = format!("GET http://{address}{prefix}{LIST} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    client.write(request.as_bytes()).await.expect("a request is sent");
    assert_eq!(client.answer("GET").await.text(), "fine");
    assert_eq!(next(&mut came).await.head.target(), LIST);
    // A node's address is for the API server to dial, not for the agent.
    let path = format!("/api/v1/nodes/{}:{}/proxy/metrics", address.ip(), address.port());
    assert_eq!(ask(&scene.user, Version::Http2, &path, &[]).await.text(), "fine");
    assert_eq!(next(&mut came).await.head.target(), path);
    assert_eq!(elsewhere.accepted_connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_a_nodes_proxy_takes_the_right_to_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let policy = folder.path().join("policy.yaml");
    let rule =
        "{name: read, clusters: ['*'], users: ['*'], verbs: [get, list, watch], apiGroups: ['*'], resources: ['*']}";
    std::fs::write(&policy, format!("apiVersion: qtunnel.dev/v1\nkind: Policy\nrules:\n- {rule}\n")).expect("a file");
    let options = StubOptions::default().set("authorization", "mode", "policy");
    let options = options.set("authorization", "policy_file", policy.to_str().expect("a path"));
    let (scene, mut came) = scene_with(options, &[]).await;
    for version in Version::ALL {
        assert_eq!(ask(&scene.user, version, "/api/v1/nodes/n1", &[]).await.text(), "fine");
        assert_eq!(next(&mut came).await.head.target(), "/api/v1/nodes/n1");
        for path in ["/api/v1/nodes/n1/proxy/run/demo/web/sh", "/api/v1/nodes/n1/proxy", EXEC] {
            ask(&scene.user, version, path, &[]).await.expect_status(403, Some("Forbidden"));
        }
    }
    assert!(came.try_recv().is_err(), "nothing else came");
}
