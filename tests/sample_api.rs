//! Real clients against the sample API: kubectl over WebSocket, kubectl 1.20 over SPDY, and plain HTTP.
//!
//! kubectl is found by `QTUNNEL_KUBECTL` or on the `PATH`; kubectl 1.20 by `QTUNNEL_KUBECTL_SPDY` or in
//! `target/kubectl-1.20`. A test whose kubectl is missing says so and passes.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use qtunnel::demo::api::{Rule, SampleApi};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
};
use tokio_util::sync::{CancellationToken, DropGuard};

const DEADLINE: Duration = Duration::from_secs(60);

struct Server {
    address: SocketAddr,
    url: String,
    certificate: Option<rustls::pki_types::CertificateDer<'static>>,
    api: SampleApi,
    _shutdown: DropGuard,
}

impl Server {
    async fn start() -> Self {
        Self::of(SampleApi::builder().build()).await
    }

    async fn of(api: SampleApi) -> Self {
        Self::with_tls(api, None).await
    }

    /// Over TLS with a certificate of its own, HTTP/2 preferred.
    async fn secure(api: SampleApi) -> Self {
        let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = certified.signing_key.serialize_der().try_into().unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config =
            config.with_no_client_auth().with_single_cert(vec![certified.cert.der().clone()], key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let server = Self::with_tls(api, Some(Arc::new(config))).await;
        Self { certificate: Some(certified.cert.der().clone()), ..server }
    }

    async fn with_tls(api: SampleApi, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let scheme = if tls.is_some() { "https" } else { "http" };
        tokio::spawn(api.clone().serve(listener, tls, shutdown.clone()));
        Self { address, url: format!("{scheme}://{address}"), certificate: None, api, _shutdown: shutdown.drop_guard() }
    }

    /// One HTTP/1.1 exchange on a connection of its own; the whole answer.
    async fn exchange(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap();
        if let Err(error) = read {
            answer.extend_from_slice(format!("[{}]", error.kind()).as_bytes());
        }
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn get(&self, path: &str, headers: &str) -> String {
        self.exchange(&format!("GET {path} HTTP/1.1\r\nHost: sample\r\nConnection: close\r\n{headers}\r\n")).await
    }
}

/// A kubectl with a home of its own.
struct Kubectl {
    program: PathBuf,
    server: String,
    home: TempDir,
}

impl Kubectl {
    /// The newest there is: it streams over WebSocket.
    fn newest(server: &Server) -> Option<Self> {
        let program = std::env::var_os("QTUNNEL_KUBECTL").map(PathBuf::from).or_else(|| {
            std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join("kubectl")).find(|p| p.is_file())
        });
        Self::of(server, program, "kubectl")
    }

    /// Version 1.20: it streams over SPDY, and reads plain discovery and OpenAPI version 2.
    fn spdy(server: &Server) -> Option<Self> {
        let built = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/kubectl-1.20/usr/bin/kubectl");
        let program = std::env::var_os("QTUNNEL_KUBECTL_SPDY").map(PathBuf::from);
        Self::of(server, program.or(Some(built)).filter(|program| program.is_file()), "kubectl 1.20")
    }

    fn of(server: &Server, program: Option<PathBuf>, name: &str) -> Option<Self> {
        let Some(program) = program else {
            println!("skipped: no {name} found");
            return None;
        };
        let home = tempfile::tempdir().unwrap();
        Some(Self { program, server: server.url.clone(), home })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().env("HOME", self.home.path()).env("PATH", "/usr/bin:/bin").current_dir(self.home.path());
        command.arg("--server").arg(&self.server).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Runs to the end.
    async fn run(&self, arguments: &[&str]) -> Output {
        tokio::time::timeout(DEADLINE, self.command(arguments).output()).await.expect("kubectl in time").unwrap()
    }

    /// Runs with this input to the end.
    async fn run_with(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = tokio::spawn(async move {
            stdin.write_all(&input).await.unwrap();
        });
        let output = tokio::time::timeout(DEADLINE, child.wait_with_output()).await.expect("kubectl in time").unwrap();
        writer.await.unwrap();
        output
    }

    /// Runs, must succeed, and gives what it printed.
    async fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs, must fail, and gives what it complained.
    async fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(!output.status.success(), "{arguments:?}: {}", text(&output.stdout));
        text(&output.stderr)
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.home.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The kubectls there are.
fn kubectls(server: &Server) -> Vec<Kubectl> {
    [Kubectl::newest(server), Kubectl::spdy(server)].into_iter().flatten().collect()
}

const CONFIG_MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cap, namespace: demo}\ndata: {a: \"1\"}\n";

#[tokio::test]
async fn kubectl_reads_tables_and_objects() {
    let server = Server::start().await;
    for kubectl in kubectls(&server) {
        let pods = kubectl.ok(&["get", "pods", "-n", "demo"]).await;
        assert!(pods.starts_with("NAME") && pods.contains("web") && pods.contains("3/3"), "{pods}");
        let all = kubectl.ok(&["get", "pods", "-A", "-o", "name"]).await;
        assert!(all.contains("pod/dns"), "{all}");
        let uid = kubectl.ok(&["get", "ns", "kube-system", "-o", "jsonpath={.metadata.uid}"]).await;
        assert_eq!(uid, server.api.cluster_uid());
        assert!(kubectl.ok(&["api-resources"]).await.contains("deployments"));
        assert!(kubectl.ok(&["get", "cm", "-n", "demo", "-l", "app=web"]).await.contains("settings"));
        let missing = kubectl.fails(&["get", "pod", "nope", "-n", "demo"]).await;
        assert!(missing.contains("Error from server (NotFound): pods \"nope\" not found"), "{missing}");
        assert!(kubectl.ok(&["explain", "configmap.data"]).await.contains("configuration data"));
        assert!(kubectl.ok(&["describe", "pod", "web", "-n", "demo"]).await.contains("sidecar"));
    }
}

#[tokio::test]
async fn kubectl_applies_patches_and_deletes() {
    let server = Server::start().await;
    for kubectl in kubectls(&server) {
        let file = kubectl.file("cm.yaml", CONFIG_MAP);
        assert_eq!(kubectl.ok(&["apply", "-f", &file]).await, "configmap/cap created\n");
        kubectl.file("cm.yaml", &CONFIG_MAP.replace("\"1\"", "\"2\""));
        assert_eq!(kubectl.ok(&["apply", "-f", &file]).await, "configmap/cap configured\n");
        assert_eq!(kubectl.ok(&["apply", "-f", &file]).await, "configmap/cap unchanged\n");
        kubectl
            .ok(&[
                "patch",
                "cm",
                "cap",
                "-n",
                "demo",
                "--type=json",
                "-p",
                r#"[{"op":"add","path":"/data/b","value":"x"}]"#,
            ])
            .await;
        kubectl.ok(&["label", "cm", "cap", "-n", "demo", "a=b"]).await;
        let value = kubectl
            .ok(&["get", "cm", "cap", "-n", "demo", "-o", "jsonpath={.data.a}{.data.b}{.metadata.labels.a}"])
            .await;
        assert_eq!(value, "2xb");
        let conflict = kubectl.fails(&["create", "cm", "cap", "-n", "demo"]).await;
        assert!(conflict.contains("configmaps \"cap\" already exists"), "{conflict}");
        kubectl.ok(&["delete", "cm", "cap", "-n", "demo", "--dry-run=server"]).await;
        assert_eq!(kubectl.ok(&["delete", "cm", "cap", "-n", "demo"]).await, "configmap \"cap\" deleted\n");
        let server_side = kubectl.ok(&["apply", "--server-side", "-f", &file]).await;
        assert_eq!(server_side, "configmap/cap serverside-applied\n");
        let bad =
            kubectl.file("bad.yaml", &CONFIG_MAP.replace("a: \"1\"", "\"bad key!\": \"1\"").replace("cap", "bad"));
        assert!(kubectl.fails(&["apply", "-f", &bad]).await.contains("a valid config key must consist of"));
        kubectl.ok(&["delete", "cm", "--all", "-n", "demo"]).await;
        kubectl.ok(&["scale", "deployment", "web", "-n", "demo", "--replicas=3"]).await;
        kubectl.ok(&["rollout", "status", "deployment", "web", "-n", "demo", "--timeout=10s"]).await;
        kubectl.ok(&["create", "namespace", "fresh"]).await;
        kubectl.ok(&["run", "one", "--image=none", "-n", "fresh"]).await;
        kubectl.ok(&["wait", "pod/one", "-n", "fresh", "--for=condition=Ready", "--timeout=10s"]).await;
        kubectl.ok(&["delete", "namespace", "fresh"]).await;
        assert!(kubectl.fails(&["get", "pod", "one", "-n", "fresh"]).await.contains("NotFound"));
    }
}

#[tokio::test]
async fn kubectl_exec_carries_input_output_and_exit_codes() {
    let server = Server::start().await;
    for kubectl in kubectls(&server) {
        let exec = |rest: &[&'static str]| [&["exec", "-n", "demo", "web", "-c", "web"], rest].concat();
        assert_eq!(kubectl.ok(&exec(&["--", "echo", "hi"])).await, "hi\n");
        let output = kubectl.run(&exec(&["--", "sh", "-c", "echo out; echo err >&2; exit 7"])).await;
        assert_eq!((text(&output.stdout), output.status.code()), ("out\n".to_owned(), Some(7)));
        assert!(text(&output.stderr).starts_with("err\n"));
        let input: Vec<u8> = (0..200_000_u32).map(|n| (n * 7 % 251) as u8).collect();
        let output = kubectl.run_with(&exec(&["-i", "--", "cat"]), &input).await;
        assert!(output.stdout == input, "{} bytes came back; {}", output.stdout.len(), text(&output.stderr));
        let output = kubectl.run_with(&exec(&["-i", "--", "wc", "-c"]), &input).await;
        assert_eq!(text(&output.stdout), "200000\n");
        let zeros = kubectl.run(&exec(&["--", "head", "-c", "5000000", "/dev/zero"])).await;
        assert_eq!(zeros.stdout.len(), 5_000_000);
        let missing = kubectl.fails(&exec(&["--", "/no/such/program"])).await;
        assert!(missing.contains("stat /no/such/program: no such file or directory"), "{missing}");
        let unknown = kubectl.fails(&["exec", "-n", "demo", "web", "-c", "nope", "--", "echo"]).await;
        assert!(unknown.contains("container nope is not valid for pod web"), "{unknown}");
    }
}

#[tokio::test]
async fn kubectl_cp_works_both_ways() {
    let server = Server::start().await;
    for kubectl in kubectls(&server) {
        let folder = kubectl.home.path().join("d/sub");
        std::fs::create_dir_all(&folder).unwrap();
        let content: Vec<u8> = (0..100_000_u32).map(|n| (n * 31 % 256) as u8).collect();
        std::fs::write(folder.join("b.bin"), &content).unwrap();
        std::fs::write(kubectl.home.path().join("d").join("a".repeat(120)), "long name").unwrap();
        kubectl.ok(&["cp", "-n", "demo", "d", "web:/tmp/d", "-c", "web"]).await;
        kubectl.ok(&["cp", "-n", "demo", "web:/tmp/d", "back", "-c", "web"]).await;
        assert!(std::fs::read(kubectl.home.path().join("back/sub/b.bin")).unwrap() == content);
        let long = kubectl.home.path().join("back").join("a".repeat(120));
        assert_eq!(std::fs::read_to_string(long).unwrap(), "long name");
        kubectl.ok(&["exec", "-n", "demo", "web", "-c", "web", "--", "rm", "-rf", "/tmp/d"]).await;
    }
}

#[tokio::test]
async fn kubectl_attaches_and_reads_logs() {
    let server = Server::start().await;
    for kubectl in kubectls(&server) {
        let attach = ["attach", "-n", "demo", "web", "-c", "sidecar", "-i"];
        let output = kubectl.run_with(&attach, b"hello attach\n").await;
        assert!(text(&output.stdout).ends_with("hello attach\n"), "{output:?}");
        let tail = kubectl.ok(&["logs", "-n", "demo", "web", "-c", "fast", "--tail=3"]).await;
        assert_eq!(tail.lines().filter(|line| line.starts_with("tick ")).count(), 3);
        let mut follow =
            kubectl.command(&["logs", "-n", "demo", "web", "-c", "fast", "-f", "--tail=1"]).spawn().unwrap();
        let mut stdout = follow.stdout.take().unwrap();
        let mut arrived = String::new();
        while arrived.lines().count() < 20 {
            let mut piece = [0; 1024];
            let count = tokio::time::timeout(DEADLINE, stdout.read(&mut piece)).await.unwrap().unwrap();
            assert!(count > 0, "the log ended: {arrived}");
            arrived.push_str(&text(&piece[..count]));
        }
        follow.kill().await.unwrap();
    }
}

/// A running `kubectl port-forward` and its local port.
async fn forward(kubectl: &Kubectl, port: u16) -> (tokio::process::Child, u16) {
    let mapping = format!(":{port}");
    let arguments = ["port-forward", "-n", "demo", "pod/web", &mapping, "--address", "127.0.0.1"];
    let mut child = kubectl.command(&arguments).spawn().unwrap();
    let mut line = String::new();
    let mut stdout = child.stdout.take().unwrap();
    while !line.contains('\n') {
        let byte = tokio::time::timeout(DEADLINE, stdout.read_u8()).await.unwrap().unwrap();
        line.push(byte as char);
    }
    // Forwarding from 127.0.0.1:40123 -> 80
    let port = line.split("127.0.0.1:").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    tokio::spawn(async move {
        let mut rest = Vec::new();
        let _ = stdout.read_to_end(&mut rest).await;
    });
    (child, port)
}

async fn through(port: u16, sent: &[u8]) -> Vec<u8> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let sent = sent.to_vec();
    let writing = tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut got = Vec::new();
    tokio::time::timeout(DEADLINE, reader.read_to_end(&mut got)).await.expect("an answer in time").unwrap();
    writing.await.unwrap();
    got
}

#[tokio::test]
async fn kubectl_forwards_many_connections_at_once() {
    let server = Server::start().await;
    for kubectl in kubectls(&server) {
        let (_http, http) = forward(&kubectl, 80).await;
        let request = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
        let pages: Vec<_> = (0..20).map(|_| tokio::spawn(through(http, request))).collect();
        for page in pages {
            assert!(text(&page.await.unwrap()).ends_with("hello from web\n"));
        }
        let (_bulk, bulk) = forward(&kubectl, 19).await;
        assert_eq!(through(bulk, b"3000000\n").await.len(), 3_000_000);
        let (_echo, echo) = forward(&kubectl, 7).await;
        let data: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 253) as u8).collect();
        assert!(through(echo, &data).await == data);
        let (_count, count) = forward(&kubectl, 9).await;
        assert_eq!(text(&through(count, &data).await), "1000000\n");
        let (mut closed, port) = forward(&kubectl, 4444).await;
        assert_eq!(through(port, b"").await, b"");
        closed.start_kill().unwrap();
        let complaint = closed.wait_with_output().await.unwrap();
        assert!(text(&complaint.stderr).contains("connection refused"), "{}", text(&complaint.stderr));
    }
}

#[tokio::test]
async fn kubectl_watches_what_changes() {
    let server = Server::start().await;
    for kubectl in kubectls(&server) {
        let watch =
            kubectl.command(&["get", "cm", "-n", "demo", "-w", "-l", "set=watch", "-o", "name"]).spawn().unwrap();
        let mut watch = watch;
        let mut stdout = watch.stdout.take().unwrap();
        let file = kubectl.file("w.yaml", &CONFIG_MAP.replace("name: cap", "name: w1, labels: {set: watch}"));
        let writing = async {
            loop {
                kubectl.ok(&["apply", "-f", &file]).await;
                kubectl.ok(&["delete", "-f", &file]).await;
            }
        };
        let reading = async {
            let mut seen = String::new();
            while !seen.contains("configmap/w1\n") {
                seen.push(stdout.read_u8().await.unwrap() as char);
            }
        };
        tokio::select! {
            () = writing => {}
            done = tokio::time::timeout(DEADLINE, reading) => done.expect("an event in time"),
        }
        watch.kill().await.unwrap();
        kubectl.run(&["delete", "-f", &file]).await;
    }
}

#[tokio::test]
async fn a_watch_ends_in_time_and_says_when_it_starts_too_early() {
    let server = Server::start().await;
    let path = "/api/v1/namespaces/demo/configmaps?watch=true&timeoutSeconds=1";
    let answer = server.get(path, "").await;
    assert!(answer.contains("\"type\":\"ADDED\"") && answer.ends_with("0\r\n\r\n"), "{answer}");
    let answer = server.get(&format!("{path}&resourceVersion=1"), "").await;
    assert!(answer.contains("too old resource version: 1") && answer.contains("\"code\":410"), "{answer}");
}

fn guarded() -> SampleApi {
    let pods = Rule::for_user("alice")
        .verbs(&["get", "list"])
        .resources(&["pods", "pods/log", "pods/exec"])
        .namespaces(&["demo"]);
    SampleApi::builder()
        .token("agent-token", "agent", &[])
        .token("alice-token", "alice", &["devs"])
        .impersonator("agent")
        .rule(pods)
        .build()
}

#[tokio::test]
async fn tokens_rules_and_impersonation_are_enforced() {
    let server = Server::of(guarded()).await;
    let pods = "/api/v1/namespaces/demo/pods";
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    assert!(server.get(pods, &bearer("wrong")).await.starts_with("HTTP/1.1 401"));
    let anonymous = server.get(pods, "").await;
    assert!(
        anonymous.starts_with("HTTP/1.1 403")
            && anonymous.contains(r#"User \"system:anonymous\" cannot list resource"#)
    );
    assert!(server.get(pods, &bearer("alice-token")).await.starts_with("HTTP/1.1 200"));
    let refused = server.get("/api/v1/namespaces/kube-system/secrets", &bearer("alice-token")).await;
    let message = r#""message":"secrets is forbidden: User \"alice\" cannot list resource \"secrets\" in API group \"\" in the namespace \"kube-system\"","reason":"Forbidden","details":{"kind":"secrets"},"code":403}"#;
    assert!(refused.ends_with(message), "{refused}");
    let as_alice = format!("{}Impersonate-User: alice\r\n", bearer("agent-token"));
    assert!(server.get(pods, &as_alice).await.starts_with("HTTP/1.1 200"));
    assert!(server.get("/api/v1/nodes", &as_alice).await.starts_with("HTTP/1.1 403"));
    assert!(server.get("/api/v1/nodes", &bearer("agent-token")).await.starts_with("HTTP/1.1 200"));
    let group_only = format!("{}Impersonate-Group: system:masters\r\n", bearer("agent-token"));
    assert!(server.get(pods, &group_only).await.starts_with("HTTP/1.1 400"));
    let exec = "/api/v1/namespaces/demo/pods/web/exec?command=true&stdout=true&container=web";
    let upgrade = "Upgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n";
    let refused = server.get(exec, &format!("{}{upgrade}", bearer("alice-token"))).await;
    assert!(refused.contains(r#"cannot create resource \"pods/exec\""#), "{refused}");
}

#[tokio::test]
async fn kubectl_auth_asks_who_and_what() {
    let server = Server::secure(guarded()).await;
    for kubectl in kubectls(&server) {
        let as_user = |token: &'static str, rest: &[&'static str]| {
            [&["--insecure-skip-tls-verify", "--token", token], rest].concat()
        };
        let can = kubectl.ok(&as_user("alice-token", &["auth", "can-i", "list", "pods", "-n", "demo"])).await;
        assert_eq!(can, "yes\n");
        let can = kubectl.run(&as_user("alice-token", &["auth", "can-i", "delete", "pods", "-n", "demo"])).await;
        assert!(text(&can.stdout).starts_with("no"), "{can:?}");
        let whoami =
            kubectl.run(&as_user("agent-token", &["auth", "whoami", "--as", "bob", "--as-group", "ops"])).await;
        let whoami = format!("{}{}", text(&whoami.stdout), text(&whoami.stderr));
        // kubectl 1.20 does not know the command.
        assert!(whoami.contains("bob") && whoami.contains("ops") || whoami.contains("unknown"), "{whoami}");
        let exec = ["exec", "-n", "demo", "web", "-c", "web", "--", "hostname"];
        assert_eq!(kubectl.ok(&as_user("agent-token", &exec)).await, "web\n");
        let refused = kubectl.fails(&as_user("alice-token", &exec)).await;
        assert!(refused.contains("cannot create resource \"pods/exec\""), "{refused}");
    }
}

#[tokio::test]
async fn sample_endpoints_serve_benchmarks() {
    let server = Server::start().await;
    let bytes = server.get("/sample/bytes?n=300000", "").await;
    assert!(bytes.contains("content-length: 300000") && bytes.len() > 300_000);
    let cut = server.get("/sample/abort?after=1000", "").await;
    assert!(cut.contains("content-length: ") && cut.ends_with("[connection reset]"), "{}", cut.len());
    let redirect = server.get("/sample/redirect?to=https://elsewhere.example/", "").await;
    assert!(redirect.starts_with("HTTP/1.1 302") && redirect.contains("location: https://elsewhere.example/"));
    let headers = server.get("/sample/headers?a=%2f", "X-Tried: One\r\nX-Tried: Two\r\n").await;
    assert!(headers.contains(r#""x-tried":["One","Two"]"#) && headers.contains("/sample/headers?a=%2f"), "{headers}");
    let audit = server.get("/version", "Audit-ID: given-by-the-client\r\n").await;
    assert!(audit.contains("audit-id: given-by-the-client"), "{audit}");
    let echo = server
        .exchange("POST /sample/echo HTTP/1.1\r\nHost: s\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello")
        .await;
    assert!(echo.ends_with("hello"));
    let stats = server.api.stats();
    assert_eq!(stats.requests, 6);
}

#[tokio::test]
async fn kube_rs_lists_applies_watches_and_streams() {
    use k8s_openapi::api::core::v1::{ConfigMap, Pod};
    use kube::api::{
        Api, AttachParams, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
    };

    let server = Server::start().await;
    let config = kube::Config::new(server.url.parse().unwrap());
    let client = kube::Client::try_from(config).unwrap();
    let (pods, maps): (Api<Pod>, Api<ConfigMap>) =
        (Api::namespaced(client.clone(), "demo"), Api::namespaced(client, "demo"));
    assert_eq!(pods.list(&ListParams::default().labels("app=web")).await.unwrap().items.len(), 1);

    let version = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let watch = maps.watch(&WatchParams::default().timeout(20), &version).await.unwrap();
    let map: ConfigMap = serde_json::from_value(
        serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rs"}, "data": {"a": "1"}}),
    )
    .unwrap();
    let applied = maps.patch("rs", &PatchParams::apply("test"), &Patch::Apply(&map)).await.unwrap();
    let mut stale = applied.clone();
    stale.metadata.resource_version = Some("1".to_owned());
    let conflict = maps.replace("rs", &PostParams::default(), &stale).await.unwrap_err();
    assert!(conflict.to_string().contains("the object has been modified"), "{conflict}");
    maps.delete("rs", &DeleteParams::default()).await.unwrap();
    let mut watch = Box::pin(watch);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let event = futures_util::StreamExt::next(&mut watch).await.unwrap().unwrap();
        seen.push(match event {
            WatchEvent::Added(_) => "added",
            WatchEvent::Deleted(_) => "deleted",
            _ => "other",
        });
    }
    assert_eq!(seen, ["added", "deleted"]);

    let parameters = AttachParams::default().container("web").stdin(true).stderr(false);
    let mut process = pods.exec("web", ["cat"], &parameters).await.unwrap();
    let (mut stdin, mut stdout) = (process.stdin().unwrap(), process.stdout().unwrap());
    stdin.write_all(b"through kube-rs\n").await.unwrap();
    let mut line = vec![0; 16];
    tokio::time::timeout(DEADLINE, stdout.read_exact(&mut line)).await.unwrap().unwrap();
    assert_eq!(line, b"through kube-rs\n");
    process.abort();

    let mut forwarder = pods.portforward("web", &[80, 4444]).await.unwrap();
    let refused = tokio::time::timeout(DEADLINE, forwarder.take_error(4444).unwrap()).await.unwrap().unwrap();
    assert!(refused.contains("connection refused"), "{refused}");
    let mut page = forwarder.take_stream(80).unwrap();
    page.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"hello from web\n") {
        let mut piece = [0; 1024];
        let count = tokio::time::timeout(DEADLINE, page.read(&mut piece)).await.unwrap().unwrap();
        assert!(count > 0, "{}", text(&answer));
        answer.extend_from_slice(&piece[..count]);
    }
}

#[tokio::test]
async fn nothing_stays_open_when_clients_are_gone() {
    let server = Server::start().await;
    for kubectl in kubectls(&server) {
        let mut follow = kubectl.command(&["logs", "-n", "demo", "web", "-c", "web", "-f"]).spawn().unwrap();
        let mut shell =
            kubectl.command(&["exec", "-n", "demo", "web", "-c", "web", "--", "sleep", "1000"]).spawn().unwrap();
        let (forwarding, port) = forward(&kubectl, 7).await;
        let idle = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        until(|| server.api.stats().open_upgrades == 2 && server.api.stats().open_requests >= 1).await;
        follow.kill().await.unwrap();
        shell.kill().await.unwrap();
        drop((forwarding, idle));
        until(|| {
            let stats = server.api.stats();
            (stats.open_requests, stats.open_connections, stats.open_upgrades) == (0, 0, 0)
        })
        .await;
    }
}

async fn until(holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.expect("it comes to hold in time");
}

async fn websocket(server: &Server, path: &str, protocol: &str) -> tokio_tungstenite::WebSocketStream<TcpStream> {
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;

    let mut request = format!("ws://{}{path}", server.address).into_client_request().unwrap();
    if !protocol.is_empty() {
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    }
    let stream = TcpStream::connect(server.address).await.unwrap();
    tokio_tungstenite::client_async(request, stream).await.unwrap().0
}

#[tokio::test]
async fn watches_logs_and_old_exec_protocols_run_over_websocket() {
    use futures_util::StreamExt;

    let server = Server::start().await;
    let mut watch = websocket(&server, "/api/v1/namespaces/demo/configmaps?watch=true", "").await;
    let event = watch.next().await.unwrap().unwrap().into_text().unwrap();
    assert!(event.contains(r#""type":"ADDED""#) && event.ends_with('\n'), "{event}");

    let path = "/api/v1/namespaces/demo/pods/web/log?container=fast&follow=true&tailLines=1";
    let mut log = websocket(&server, path, "binary.k8s.io").await;
    for _ in 0..3 {
        let line = log.next().await.unwrap().unwrap();
        assert!(line.is_binary() && line.into_data().starts_with(b"tick "));
    }
    drop((watch, log));
    until(|| server.api.stats().open_upgrades == 0).await;

    let exec = "/api/v1/namespaces/demo/pods/web/exec?container=web&command=sh&command=-c&command=echo+out%3B+exit+7&stdout=true&stderr=true";
    let messages = |protocol: &'static str| {
        let server = &server;
        async move {
            let mut socket = websocket(server, exec, protocol).await;
            let mut messages = Vec::new();
            while let Some(Ok(message)) = socket.next().await {
                messages.push(message);
            }
            messages
        }
    };
    let old = messages("base64.channel.k8s.io").await;
    let texts: Vec<_> = old.iter().filter(|m| m.is_text()).map(|m| m.to_text().unwrap().to_owned()).collect();
    assert_eq!(texts[..2], ["1", "1b3V0Cg=="]);
    assert!(texts[2].starts_with("3Y29tbWFuZCB0ZXJtaW5hdGVk"), "{texts:?}");
    let new = messages("v5.channel.k8s.io").await;
    assert_eq!(new[1].clone().into_data(), b"\x01out\n".as_slice());
    let status = br#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: command terminated with exit code 7","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
    assert_eq!(new[2].clone().into_data(), [b"\x03".as_slice(), status].concat());
    assert!(new[3].is_close());
}

#[tokio::test]
async fn an_upload_that_is_too_large_is_told_so_over_http2() {
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let server = Server::secure(SampleApi::builder().build()).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(server.certificate.clone().unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = server.address.ip().into();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut client, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    for size in [4_000_000, 40_000_000] {
        let request = http::Request::post(format!("{}/api/v1/namespaces/demo/configmaps", server.url))
            .body(Full::new(bytes::Bytes::from(vec![b' '; size])))
            .unwrap();
        let answer = tokio::time::timeout(DEADLINE, client.send_request(request)).await.unwrap().unwrap();
        assert_eq!(answer.status(), 413);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(text(&body).contains("RequestEntityTooLarge"), "{}", text(&body));
    }
}

#[tokio::test]
async fn odd_bodies_are_bad_requests_and_break_nothing() {
    let server = Server::start().await;
    let collection = "/api/v1/namespaces/demo/secrets";
    let review = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let object = "/api/v1/namespaces/demo/configmaps/settings";
    let scale = "/apis/apps/v1/namespaces/demo/deployments/web/scale";
    let odd =
        ["[]", "\"x\"", "1", "null", "{", r#"{"metadata":"x"}"#, r#"{"spec":"x"}"#, r#"{"metadata":{"labels":[]}}"#];
    let root = r#"[{"op":"replace","path":"","value":[1]}]"#;
    let apply = "application/apply-patch+yaml";
    let mut requests: Vec<(&str, String, &str, &str)> =
        vec![("PATCH", object.to_owned(), "application/json-patch+json", root)];
    for body in odd {
        requests.push(("POST", collection.to_owned(), "application/json", body));
        requests.push(("POST", review.to_owned(), "application/json", body));
        requests.push(("PUT", object.to_owned(), "application/json", body));
        requests.push(("PUT", scale.to_owned(), "application/json", body));
        requests.push(("PATCH", format!("{object}?fieldManager=t"), apply, body));
        if body != "{" {
            requests.push(("PATCH", scale.to_owned(), "application/strategic-merge-patch+json", body));
            requests.push(("PATCH", object.to_owned(), "application/merge-patch+json", body));
        }
    }
    for (method, path, media_type, body) in requests {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: s\r\nConnection: close\r\nContent-Type: {media_type}");
        let answer = server.exchange(&format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
        assert!(answer.starts_with("HTTP/1.1 "), "{method} {path} {body}: {answer}");
        assert!(!answer.starts_with("HTTP/1.1 5"), "{method} {path} {body}: {answer}");
    }
    assert!(server.get(object, "").await.contains("greeting"));
}
