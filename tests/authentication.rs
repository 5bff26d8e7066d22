//! Who users are, and what becomes of their open requests when they are not any more.

mod support;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use qtunnel::kube::kubeconfig::{ClientCertificate, Credentials};
use qtunnel::pki::CertificateAuthority;
use qtunnel::wire::BearerToken;
use rcgen::{CertificateRevocationListParams, Issuer as CertificateIssuer, KeyPair, RevokedCertParams, SerialNumber};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use support::eventually_async;
use support::http::{Access, Lines};
use support::https_service::HttpsService;
use support::issuer::{Issuer, SigningKey};
use support::kubectl::Kubectl;
use support::process::Input;
use support::tunnel::{AgentOptions, CLUSTER, StubOptions, Tunnel, USERS};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PODS: &str = "/api/v1/namespaces/demo/pods";
const WATCH: &str = "/api/v1/namespaces/demo/pods?watch=true";

/// How long a user who is revoked may go on.
const REVOCATION: Duration = Duration::from_secs(10);

fn tunnel(options: StubOptions) -> Tunnel {
    Tunnel::start_with(options, AgentOptions::default())
}

fn with_file(key: &'static str, path: &Path) -> StubOptions {
    StubOptions::default().set("authentication", key, path.to_str().unwrap())
}

/// Whoever bears this token, and has no certificate.
fn bearer(tunnel: &Tunnel, token: &str) -> Access {
    Access::of(&tunnel.kubeconfig()).with_credentials(Credentials::Token(BearerToken::new(token).unwrap()))
}

async fn status(access: &Access) -> u16 {
    access.get(PODS).await.status.as_u16()
}

async fn watch(access: &Access) -> Lines {
    let mut lines = Lines::of(access.http1().await.open(WATCH).await.into_body());
    lines.next().await;
    lines
}

/// Waits until an open request is broken off, which has to be soon.
async fn ends_in_time(watch: Lines) {
    let began = Instant::now();
    assert!(watch.broken_off().await, "a clean end would look like a watch that has timed out");
    assert!(began.elapsed() < REVOCATION, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_an_issuer_names_a_user() {
    let folder = TempDir::new().unwrap();
    let (rsa, curve) = (SigningKey::rsa("k1"), SigningKey::elliptic_curve("k2"));
    let issuer = Issuer::start(&[&rsa, &curve]).await;
    let tunnel = tunnel(with_file("jwt_file", &issuer.configuration(folder.path())));
    let good = issuer.claims("alice@example.com", &[USERS], 600);
    for key in [&rsa, &curve] {
        assert_eq!(status(&bearer(&tunnel, &key.sign(&good))).await, 200);
    }
    let changed = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    let unsigned = {
        let token = rsa.sign(&good);
        let (_, payload) = token.split_once('.').unwrap();
        // {"alg":"none"}
        format!("eyJhbGciOiJub25lIn0.{}.", payload.split('.').next().unwrap())
    };
    let stranger = SigningKey::rsa("k1");
    for (why, token) in [
        ("another audience", rsa.sign(&changed("aud", json!("others")))),
        ("it has expired", rsa.sign(&changed("exp", json!(1_700_000_000)))),
        ("another issuer", rsa.sign(&changed("iss", json!("https://elsewhere.example.com")))),
        ("another key under the same name", stranger.sign(&good)),
        ("no signature", unsigned),
        ("a group above all rights", rsa.sign(&changed("groups", json!([USERS, "system:masters"])))),
        ("no token at all", "nonsense".to_owned()),
    ] {
        assert_eq!(status(&bearer(&tunnel, &token)).await, 401, "{why}");
    }
    assert_eq!(issuer.fetches(), 1, "the keys are kept");
    let stderr = tunnel.stub.process.stderr();
    assert!(!stderr.contains(&rsa.sign(&good)), "no token is in the log");
    assert!(stderr.contains("system:masters"), "but the reason is");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_an_issuer_exchanges_are_fetched() {
    let folder = TempDir::new().unwrap();
    let (old, new) = (SigningKey::rsa("old"), SigningKey::rsa("new"));
    let issuer = Issuer::start(&[&old]).await;
    let tunnel = tunnel(with_file("jwt_file", &issuer.configuration(folder.path())));
    let claims = issuer.claims("alice", &[USERS], 600);
    let (old_token, new_token) = (old.sign(&claims), new.sign(&claims));
    assert_eq!(status(&bearer(&tunnel, &old_token)).await, 200);
    let open = watch(&bearer(&tunnel, &old_token)).await;
    issuer.publish(&[&new]);
    eventually_async("the new key is known", async || {
        (status(&bearer(&tunnel, &new_token)).await == 200).then_some(())
    })
    .await;
    // The verdict about a token is kept for ten seconds.
    assert!(open.broken_off().await, "the old key is gone, and what was opened with it");
    assert_eq!(status(&bearer(&tunnel, &old_token)).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_ends_what_is_open() {
    let folder = TempDir::new().unwrap();
    let key = SigningKey::elliptic_curve("k");
    let issuer = Issuer::start(&[&key]).await;
    let tunnel = tunnel(with_file("jwt_file", &issuer.configuration(folder.path())));
    let token = key.sign(&issuer.claims("alice", &[USERS], 5));
    let longer = key.sign(&issuer.claims("alice", &[USERS], 600));
    let (short, long) = (watch(&bearer(&tunnel, &token)).await, watch(&bearer(&tunnel, &longer)).await);
    ends_in_time(short).await;
    assert_eq!(status(&bearer(&tunnel, &token)).await, 401);
    let goes_on = tokio::time::timeout(Duration::from_secs(3), long.broken_off()).await;
    assert!(goes_on.is_err(), "a token that is still good keeps what it opened");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_cannot_be_asked_is_no_refusal() {
    let folder = TempDir::new().unwrap();
    let key = SigningKey::elliptic_curve("k");
    let issuer = Issuer::start(&[&key]).await;
    let file = issuer.configuration(folder.path());
    let token = key.sign(&issuer.claims("alice", &[USERS], 600));
    drop(issuer);
    let tunnel = tunnel(with_file("jwt_file", &file));
    let answer = bearer(&tunnel, &token).get(PODS).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(status(&Access::of(&tunnel.kubeconfig())).await, 200, "others are not concerned");
}

/// A webhook that knows the tokens of a list.
async fn review_service(users: Arc<Mutex<Vec<(String, Value)>>>) -> HttpsService {
    HttpsService::start(move |asked| {
        let token = asked.body["spec"]["token"].as_str().unwrap_or_default();
        let known = users.lock().unwrap().iter().find(|(other, _)| other == token).map(|(_, user)| user.clone());
        let status = match known {
            Some(user) => {
                json!({"authenticated": true, "user": user, "audiences": [asked.body["spec"]["audiences"][0]]})
            }
            None => json!({"authenticated": false}),
        };
        (201, json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status}))
    })
    .await
}

fn with_webhook(kubeconfig: &Path) -> StubOptions {
    let mut webhook = toml::Table::new();
    webhook.insert("kubeconfig".to_owned(), kubeconfig.to_str().unwrap().into());
    webhook.insert("authenticated_ttl".to_owned(), "2s".into());
    webhook.insert("audiences".to_owned(), vec!["stub"].into());
    StubOptions::default().set("authentication", "token_webhook", webhook)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_knows_tokens_until_it_does_not() {
    let folder = TempDir::new().unwrap();
    let users = Arc::new(Mutex::new(vec![
        ("sesame".to_owned(), json!({"username": "alice", "groups": [USERS, "system:authenticated"]})),
        ("robot".to_owned(), json!({"username": "system:serviceaccount:ci:robot", "groups": [USERS]})),
        ("admin".to_owned(), json!({"username": "eve", "groups": ["system:masters"]})),
    ]));
    let service = review_service(users.clone()).await;
    let tunnel = tunnel(with_webhook(&service.kubeconfig(folder.path(), "/review")));
    let alice = bearer(&tunnel, "sesame");
    assert_eq!(status(&alice).await, 200);
    for token in ["robot", "admin", "unknown"] {
        assert_eq!(status(&bearer(&tunnel, token)).await, 401, "{token}");
    }
    let asked = service.asked();
    assert_eq!(asked[0].path, "/review");
    assert_eq!(asked[0].body["apiVersion"], "authentication.k8s.io/v1");
    assert_eq!(asked[0].body["spec"], json!({"token": "sesame", "audiences": ["stub"]}));
    for _ in 0..20 {
        assert_eq!(status(&alice).await, 200);
    }
    let questions = service.asked().iter().filter(|asked| asked.body["spec"]["token"] == "sesame").count();
    assert!(questions < 20, "answers are kept for a while: {questions}");

    let open = watch(&alice).await;
    users.lock().unwrap().clear();
    ends_in_time(open).await;
    assert_eq!(status(&alice).await, 401);
    assert!(!tunnel.stub.process.stderr().contains("sesame"), "no token is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_is_gone_keeps_new_requests_out_and_open_ones_for_a_while() {
    let folder = TempDir::new().unwrap();
    let users = Arc::new(Mutex::new(vec![("sesame".to_owned(), json!({"username": "alice", "groups": [USERS]}))]));
    let service = review_service(users).await;
    let mut tunnel = tunnel(with_webhook(&service.kubeconfig(folder.path(), "/")));
    let alice = bearer(&tunnel, "sesame");
    let open = watch(&alice).await;
    drop(service);
    eventually_async("a new request is refused", async || (status(&alice).await == 503).then_some(())).await;
    tunnel.stub.process.wait_for_log("a user could not be authenticated");
    // Longer than two looks at open requests take.
    let goes_on = tokio::time::timeout(Duration::from_secs(5), open.broken_off()).await;
    assert!(goes_on.is_err(), "an outage of the webhook does not end what is open at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_is_taken_out_of_the_token_file_loses_what_is_open() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("tokens.csv");
    let line = |token: &str, user: &str| format!("{token},{user},,\"{USERS}\"\n");
    std::fs::write(&file, line("t-alice", "alice") + &line("t-bob", "bob")).unwrap();
    let tunnel = tunnel(with_file("token_file", &file));
    let (alice, bob) = (bearer(&tunnel, "t-alice"), bearer(&tunnel, "t-bob"));
    let (hers, his) = (watch(&alice).await, watch(&bob).await);
    std::fs::write(&file, line("t-bob", "bob")).unwrap();
    ends_in_time(hers).await;
    assert_eq!((status(&alice).await, status(&bob).await), (401, 200));
    let goes_on = tokio::time::timeout(Duration::from_secs(3), his.broken_off()).await;
    assert!(goes_on.is_err(), "bob has lost nothing");
}

/// The certificate in a kubeconfig.
fn certificate_of(kubeconfig: &Path) -> CertificateDer<'static> {
    let upstream = qtunnel::kube::kubeconfig::Kubeconfig::load(kubeconfig).unwrap().upstream(None).unwrap();
    let Credentials::ClientCertificate(certificate) = upstream.credentials else { panic!("no certificate") };
    CertificateDer::from_pem_slice(&certificate.chain).unwrap()
}

/// A list of the user authority of a stub that revokes these certificates.
fn revocation_list(state: &Path, revoked: &[CertificateDer<'_>]) -> String {
    let read = |name: &str| std::fs::read_to_string(state.join(name)).unwrap();
    let key = KeyPair::from_pem(&read("user-ca-key.pem")).unwrap();
    let issuer = CertificateIssuer::from_ca_cert_pem(&read("user-ca.pem"), key).unwrap();
    let now = rcgen::date_time_ymd(2020, 1, 1);
    let revoked = revoked.iter().map(|certificate| RevokedCertParams {
        serial_number: SerialNumber::from_slice(&qtunnel::pki::serial_number(certificate).unwrap()),
        revocation_time: now,
        reason_code: None,
        invalidity_date: None,
    });
    let list = CertificateRevocationListParams {
        this_update: now,
        next_update: rcgen::date_time_ymd(2100, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    list.signed_by(&issuer).unwrap().pem().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_certificate_ends_a_watch_and_an_exec() {
    let folder = TempDir::new().unwrap();
    let list = folder.path().join("users.crl");
    let mut tunnel = tunnel(StubOptions::default());
    let state = tunnel.stub.state_dir();
    std::fs::write(&list, revocation_list(&state, &[])).unwrap();
    let files = vec![list.to_str().unwrap()];
    support::tunnel::change_settings(&tunnel.stub.config(), &[("authentication", "crl_files", files.into())]);
    tunnel.stub.restart();
    tunnel.stub.wait_for_agents(CLUSTER, 1);
    let kubeconfig = |user| tunnel.stub.kubeconfig(CLUSTER, user, &[USERS]);
    let (alice, bob) = (kubeconfig("alice"), kubeconfig("bob"));
    let (hers, his) = (watch(&Access::of(&alice)).await, watch(&Access::of(&bob)).await);
    let mut kept = Access::of(&alice).http2().await;
    assert_eq!(kept.get(PODS).await.status, 200);
    let session = Kubectl::newest(&alice).map(|kubectl| {
        let mut session =
            kubectl.start_with_input(&["exec", "-i", "-n", "demo", "web", "-c", "web", "--", "cat"], Input::Piped);
        let mut stdin = session.take_stdin();
        std::io::Write::write_all(&mut stdin, b"hello\n").unwrap();
        session.wait_for_stdout("the echo", |text| text == "hello\n");
        (session, stdin)
    });

    std::fs::write(&list, revocation_list(&state, &[certificate_of(&alice)])).unwrap();
    ends_in_time(hers).await;
    if let Some((mut session, _stdin)) = session {
        assert!(!session.wait_at_most(REVOCATION).success());
    }
    assert_eq!(kept.get(PODS).await.status, 401, "a connection from before is not trusted any more");
    let refused = refused_in_handshake_or_after(&Access::of(&alice)).await;
    assert!(refused, "nor is a new one");
    assert_eq!(status(&Access::of(&bob)).await, 200);
    let goes_on = tokio::time::timeout(Duration::from_secs(3), his.broken_off()).await;
    assert!(goes_on.is_err(), "bob has lost nothing");
}

/// In TLS 1.3 a client learns only after its own handshake that its certificate was refused.
async fn refused_in_handshake_or_after(access: &Access) -> bool {
    use tokio::io::AsyncReadExt;
    match access.connect("http/1.1").await {
        Err(_) => true,
        Ok(mut socket) => socket.read(&mut [0; 1]).await.is_err(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_user_is_out_however_they_are_known() {
    let folder = TempDir::new().unwrap();
    let (list, tokens) = (folder.path().join("revoked.txt"), folder.path().join("tokens.csv"));
    std::fs::write(&list, "# nobody yet\n").unwrap();
    std::fs::write(&tokens, format!("t-alice,alice,,\"{USERS}\"\n")).unwrap();
    let options = with_file("token_file", &tokens).set("authentication", "revocation_file", list.to_str().unwrap());
    let tunnel = tunnel(options);
    let by_certificate = Access::of(&tunnel.kubeconfig());
    let by_token = bearer(&tunnel, "t-alice");
    let open = [watch(&by_certificate).await, watch(&by_token).await];
    std::fs::write(&list, "user alice\n").unwrap();
    for watch in open {
        ends_in_time(watch).await;
    }
    assert_eq!((status(&by_certificate).await, status(&by_token).await), (401, 401));
}

/// A certificate of this authority as credentials.
fn credentials(authority: &CertificateAuthority, user: &str, groups: &[&str]) -> Credentials {
    let groups: Vec<_> = groups.iter().map(|group| (*group).to_owned()).collect();
    let issued = authority.issue_user(user, &groups, Duration::from_secs(600), std::time::SystemTime::now()).unwrap();
    let (chain, key) = (issued.certificate_pem(), issued.key_pem());
    Credentials::ClientCertificate(ClientCertificate { chain: chain.to_string().into(), key: key.to_string().into() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_authority_names_users_but_no_administrators() {
    let folder = TempDir::new().unwrap();
    let authority = CertificateAuthority::create("another", std::time::SystemTime::now()).unwrap();
    let file: PathBuf = folder.path().join("ca.pem");
    std::fs::write(&file, authority.certificate_pem()).unwrap();
    let files = vec![file.to_str().unwrap()];
    let tunnel = tunnel(StubOptions::default().set("authentication", "client_ca_files", files));
    let own = Access::of(&tunnel.kubeconfig());
    let with = |user, groups: &[&str]| own.clone().with_credentials(credentials(&authority, user, groups));
    assert_eq!(status(&own).await, 200);
    assert_eq!(status(&with("carol", &[USERS])).await, 200);
    assert_eq!(status(&with("carol", &["system:masters"])).await, 401);
    assert_eq!(status(&with("system:admin", &[USERS])).await, 401);

    let open = watch(&with("carol", &[USERS])).await;
    let other = CertificateAuthority::create("yet another", std::time::SystemTime::now()).unwrap();
    std::fs::write(&file, other.certificate_pem()).unwrap();
    ends_in_time(open).await;
    assert_eq!(status(&own).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_another_authority_are_accepted_while_that_stands_beside_the_own() {
    let tunnel = tunnel(StubOptions::default());
    let file = tunnel.stub.state_dir().join("user-ca.pem");
    let own_file = std::fs::read_to_string(&file).unwrap();
    let next = CertificateAuthority::create("next", std::time::SystemTime::now()).unwrap();
    let own = Access::of(&tunnel.kubeconfig());
    let by_next = own.clone().with_credentials(credentials(&next, "carol", &[USERS]));
    assert!(!is_accepted(&by_next).await, "nobody knows that authority yet");

    std::fs::write(&file, own_file.clone() + &next.certificate_pem()).unwrap();
    tunnel.stub.process.signal(rustix::process::Signal::HUP);
    eventually_async("carol", async || is_accepted(&by_next).await.then_some(())).await;
    let open = watch(&by_next).await;
    std::fs::write(&file, own_file).unwrap();
    ends_in_time(open).await;
    assert!(!is_accepted(&by_next).await);
    assert!(is_accepted(&own).await);
}

/// Whether the stub answers, and does not end the handshake.
async fn is_accepted(access: &Access) -> bool {
    let (prefix, host) = (access.prefix(), access.authority());
    let request = format!("GET {prefix}{PODS} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    let exchange = async {
        let mut socket = access.connect("http/1.1").await?;
        socket.write_all(request.as_bytes()).await?;
        socket.read_to_string(&mut answer).await
    };
    exchange.await.is_ok() && answer.starts_with("HTTP/1.1 200")
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_presents_nothing_is_nobody_unless_somebody_says_so() {
    let closed = tunnel(StubOptions::default());
    let nobody = |tunnel: &Tunnel| Access::of(&tunnel.kubeconfig()).anonymous();
    assert_eq!(nobody(&closed).get("/version").await.status, 401);
    drop(closed);
    let open = tunnel(StubOptions::default().set("authentication", "anonymous", true));
    assert_eq!(nobody(&open).get("/version").await.status, 200);
    let forbidden = nobody(&open).get(PODS).await;
    assert_eq!(forbidden.status, 403);
    assert!(forbidden.text().contains("system:anonymous"), "{}", forbidden.text());
    assert_eq!(status(&bearer(&open, "wrong")).await, 401, "a wrong token is not taken for none");
}

#[tokio::test]
async fn a_stub_whose_users_cannot_be_known_does_not_start() {
    let mut stub = support::tunnel::Stub::start(StubOptions::default());
    stub.process.kill();
    let file = stub.state_dir().join("authentication.yaml");
    let path = |path: &Path| toml::Value::from(path.to_str().unwrap());
    for (key, value, content, part) in [
        ("jwt_file", path(&file), "kind: AuthenticationConfiguration", "authentication configuration"),
        ("token_file", path(&file), "no token\n", "line 1"),
        ("revocation_file", path(&file), "alice\n", "line 1"),
        ("crl_files", vec![path(&file)].into(), "nothing", "revocation list"),
        ("client_ca_files", vec![path(&stub.state_dir().join("agent-ca.pem"))].into(), "", "agents"),
    ] {
        std::fs::write(&file, content).unwrap();
        let settings = std::fs::read_to_string(stub.config()).unwrap();
        support::tunnel::change_settings(&stub.config(), &[("authentication", key, value)]);
        let why = support::tunnel::start_stub(&stub.config()).finish().failed();
        assert!(why.contains(part), "{key}: {why}");
        std::fs::write(stub.config(), settings).unwrap();
    }
}
