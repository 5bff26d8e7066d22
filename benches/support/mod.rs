//! What the benchmarks measure with: the whole tunnel in this process, a client, and the CPU time it all takes.

pub mod cpu;
pub mod run;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use qtunnel::agent::Agent;
use qtunnel::demo::SampleCluster;
use qtunnel::pki::{DirectoryStore, HostName, StubKeys};
use qtunnel::stub::admin::AdminClient;
use qtunnel::stub::{KnownClusters, Stub, StubConfig};
use qtunnel::threads::Threads;
use qtunnel::wire::ClusterId;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

/// What the stub does with a request on its way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Chain {
    /// As little as can be had: users by certificate, everything is allowed, nothing is audited.
    Bare,
    /// Everything: users by token, a policy of [`RULES`] rules, an audit log in a file that may lose nothing.
    Whole,
}

/// The rules of the policy; the last one lets the requests pass.
const RULES: usize = 20;

/// A user's bearer token.
const USER_TOKEN: &str = "a-token-of-the-benchmarks";

impl Chain {
    /// Writes the settings of the stub, and the files that they name.
    fn settings(self, directory: &Path) -> PathBuf {
        let settings = directory.join("stub.toml");
        let listen = "listen = \"127.0.0.1:0\"\npublic_address = \"127.0.0.1:0\"\n";
        let chain = match self {
            Self::Bare => "[authorization]\nmode = \"allow-all\"\n",
            Self::Whole => {
                std::fs::write(directory.join("policy.yaml"), policy()).unwrap();
                let tokens = directory.join("tokens.csv");
                std::fs::write(&tokens, format!("{USER_TOKEN},bench,,\"qtunnel:users\"\n")).unwrap();
                std::fs::set_permissions(&tokens, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
                "[authentication]\ntoken_file = \"tokens.csv\"\n[authorization]\nmode = \"policy\"\npolicy_file = \"policy.yaml\"\n\
                 [audit]\nsink = \"file\"\npath = \"audit.log\"\non_failure = \"block\"\n"
            }
        };
        std::fs::write(&settings, format!("{listen}{chain}")).unwrap();
        settings
    }
}

fn policy() -> String {
    let others = (1..RULES).map(|number| {
        format!(
            "- {{name: other-{number}, clusters: ['*'], users: [user-{number}], verbs: [get], nonResourceURLs: ['*']}}\n"
        )
    });
    let last = "- {name: bench, clusters: ['*'], users: [bench], verbs: [get], nonResourceURLs: ['*']}\n";
    let rules: String = others.chain([last.to_owned()]).collect();
    format!("apiVersion: qtunnel.dev/v1\nkind: Policy\nrules:\n{rules}")
}

/// Stub, agent and sample API in this process.
pub struct Tunnel {
    pub through: Target,
    pub direct: Target,
    _directory: tempfile::TempDir,
    shutdown: CancellationToken,
}

/// Where requests go: the API server itself, or the stub in front of it.
#[derive(Clone)]
pub struct Target {
    address: SocketAddr,
    prefix: String,
    headers: HeaderMap,
    tls: TlsConnector,
    http2: TlsConnector,
}

impl Tunnel {
    pub async fn start(chain: Chain) -> Self {
        let shutdown = CancellationToken::new();
        let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listener = TcpListener::bind(loopback).await.unwrap();
        let api_address = listener.local_addr().unwrap();
        let cluster = Arc::new(SampleCluster::new(api_address).unwrap());
        let upstream = cluster.upstream();
        let (serving, stop) = (cluster.clone(), shutdown.clone());
        tokio::spawn(async move { serving.serve(listener, stop).await });

        let directory = tempfile::tempdir().unwrap();
        let stub_dir = directory.path().join("stub");
        let now = SystemTime::now();
        let keys =
            StubKeys::create(Arc::new(DirectoryStore::new(&stub_dir)), &[HostName::Ip(loopback.ip())], None, now)
                .unwrap();
        let id: ClusterId = "bench".parse().unwrap();
        KnownClusters::new(keys.store().clone()).add(&id).unwrap();
        let config = StubConfig::load(&chain.settings(&stub_dir)).unwrap();
        let admin_socket = config.admin_socket();
        let stub_address = run_stub(config, shutdown.clone()).await;

        let token = keys.tokens().create(&id, Duration::from_secs(600), 1, now).unwrap();
        let stubs = vec![stub_address.to_string().parse().unwrap()];
        let agent = Agent::builder(stubs, directory.path().join("agent"), upstream.clone())
            .token(token)
            .drain_timeout(Duration::ZERO)
            .response_timeout(Duration::from_secs(60))
            .build()
            .unwrap();
        let stop = shutdown.clone();
        on_its_own(Threads::ONE, async move { agent.run(stop).await.unwrap() });
        wait_for_agent(&admin_socket).await;

        let groups = ["qtunnel:users".to_owned()];
        let user = keys.user_authority().issue_user("bench", &groups, Duration::from_secs(3600), now).unwrap();
        let stub_ca = keys.server_authority().certificate_pem();
        let (certificate, key) = (user.certificate_pem(), user.key_pem());
        let certificate = (chain == Chain::Bare).then_some((certificate.as_str(), key.as_str()));
        let through = Target {
            address: stub_address,
            prefix: format!("/clusters/{id}"),
            headers: match chain {
                Chain::Bare => HeaderMap::new(),
                Chain::Whole => bearer(USER_TOKEN),
            },
            tls: connector(&stub_ca, certificate, b"http/1.1"),
            http2: connector(&stub_ca, certificate, b"h2"),
        };
        let ca = String::from_utf8(upstream.certificate_authority.unwrap()).unwrap();
        let direct = Target {
            address: api_address,
            prefix: String::new(),
            headers: bearer(cluster.admin_token()),
            tls: connector(&ca, None, b"http/1.1"),
            http2: connector(&ca, None, b"h2"),
        };
        Self { through, direct, _directory: directory, shutdown }
    }
}

/// Runs a stub as the program does, and tells where it listens.
async fn run_stub(config: StubConfig, shutdown: CancellationToken) -> SocketAddr {
    let (tell, address) = tokio::sync::oneshot::channel();
    on_its_own(config.threads, async move {
        let stub = Stub::bind(config).await.unwrap();
        tell.send(stub.local_address().unwrap()).unwrap();
        stub.run(shutdown).await;
    });
    address.await.unwrap()
}

/// Runs what is a program of its own elsewhere on `threads` of its own.
fn on_its_own(threads: Threads, program: impl Future<Output = ()> + Send + 'static) {
    std::thread::spawn(move || threads.runtime().unwrap().block_on(program));
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn bearer(token: &str) -> HeaderMap {
    let value = HeaderValue::try_from(format!("Bearer {token}")).unwrap();
    HeaderMap::from_iter([(header::AUTHORIZATION, value)])
}

async fn wait_for_agent(admin_socket: &std::path::Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let status = AdminClient::new(admin_socket).status().await;
        if status.is_ok_and(|status| status.clusters.iter().any(|cluster| !cluster.agents.is_empty())) {
            return;
        }
        assert!(Instant::now() < deadline, "the agent did not connect");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn connector(ca: &str, certificate: Option<(&str, &str)>, protocol: &[u8]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match certificate {
        Some((chain, key)) => builder
            .with_client_auth_cert(
                CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().unwrap(),
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    Arc::new(config).into()
}

impl Target {
    async fn connect(&self, tls: &TlsConnector) -> TokioIo<TlsStream<TcpStream>> {
        let socket = TcpStream::connect(self.address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        TokioIo::new(tls.connect(ServerName::from(self.address.ip()), socket).await.unwrap())
    }

    fn request(&self, path: &str) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = format!("https://{}{}{path}", self.address, self.prefix).parse().unwrap();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// One HTTP/1.1 connection of a client.
pub struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    target: Target,
}

impl Connection {
    pub async fn open(target: &Target) -> Self {
        let socket = target.connect(&target.tls).await;
        let (sender, connection) = hyper::client::conn::http1::handshake(socket).await.unwrap();
        tokio::spawn(connection);
        Self { sender, target: target.clone() }
    }

    /// Sends a GET; the answer's body is still on its way.
    pub async fn get(&mut self, path: &str) -> Incoming {
        self.sender.ready().await.unwrap();
        let mut request = self.target.request(path);
        let host = HeaderValue::try_from(self.target.address.to_string()).unwrap();
        request.headers_mut().insert(header::HOST, host);
        *request.uri_mut() = format!("{}{path}", self.target.prefix).parse().unwrap();
        let response = self.sender.send_request(request).await.unwrap();
        assert!(response.status().is_success(), "{path}: {}", response.status());
        response.into_body()
    }

    /// Sends a GET and reads the answer to its end; how many bytes it had.
    pub async fn fetch(&mut self, path: &str) -> u64 {
        read_to_end(self.get(path).await).await
    }
}

async fn read_to_end(mut body: Incoming) -> u64 {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame.unwrap().data_ref().map_or(0, Bytes::len) as u64;
    }
    length
}

/// What kubectl speaks for plain requests: one HTTP/2 connection for all of them.
pub struct SharedConnection {
    sender: http2::SendRequest<Empty<Bytes>>,
    target: Target,
}

impl SharedConnection {
    pub async fn open(target: &Target) -> Self {
        let socket = target.connect(&target.http2).await;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), socket).await.unwrap();
        tokio::spawn(connection);
        Self { sender, target: target.clone() }
    }

    /// Makes `count` small GETs with `in_flight` of them at once.
    pub async fn small_gets(&self, in_flight: usize, count: usize) -> Load {
        let each = count.div_ceil(in_flight);
        let (began, cpu_before) = (Instant::now(), cpu::time());
        let tasks = (0..in_flight).map(|_| {
            let (mut sender, target) = (self.sender.clone(), self.target.clone());
            tokio::spawn(async move {
                let mut latencies = Vec::with_capacity(each);
                for _ in 0..each {
                    let began = Instant::now();
                    let response = sender.send_request(target.request(SMALL_GET)).await.unwrap();
                    assert!(response.status().is_success());
                    read_to_end(response.into_body()).await;
                    latencies.push(began.elapsed());
                }
                latencies
            })
        });
        let mut latencies = Vec::with_capacity(count);
        for task in tasks.collect::<Vec<_>>() {
            latencies.append(&mut task.await.unwrap());
        }
        sorted(Load { elapsed: began.elapsed(), cpu: cpu::time() - cpu_before, latencies })
    }
}

/// A small GET: an answer of 1 KiB.
const SMALL_GET: &str = "/sample/bytes?n=1024";

/// What a number of requests took.
pub struct Load {
    pub elapsed: Duration,
    pub cpu: Duration,
    /// Of each request, sorted.
    pub latencies: Vec<Duration>,
}

impl Load {
    pub fn percentile(&self, percent: usize) -> Duration {
        self.latencies[(self.latencies.len() * percent / 100).min(self.latencies.len() - 1)]
    }
}

/// Makes `count` small GETs on as many connections as are given, one at a time on each.
pub async fn small_gets(connections: Vec<Connection>, count: usize) -> (Load, Vec<Connection>) {
    let each = count.div_ceil(connections.len());
    let (began, cpu_before) = (Instant::now(), cpu::time());
    let tasks = connections.into_iter().map(|mut connection| {
        tokio::spawn(async move {
            let mut latencies = Vec::with_capacity(each);
            for _ in 0..each {
                let began = Instant::now();
                connection.fetch(SMALL_GET).await;
                latencies.push(began.elapsed());
            }
            (latencies, connection)
        })
    });
    let mut latencies = Vec::with_capacity(count);
    let mut connections = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        let (mut of_task, connection) = task.await.unwrap();
        latencies.append(&mut of_task);
        connections.push(connection);
    }
    let load = Load { elapsed: began.elapsed(), cpu: cpu::time() - cpu_before, latencies };
    (sorted(load), connections)
}

fn sorted(mut load: Load) -> Load {
    load.latencies.sort();
    load
}

pub async fn connections(target: &Target, count: usize) -> Vec<Connection> {
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        connections.push(Connection::open(target).await);
    }
    connections
}
