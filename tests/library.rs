//! The stub and the agent as parts of another program.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::Empty;
use qtunnel::agent::{Agent, CarrierChoice, CarrierSettings, ForwardPolicy};
use qtunnel::kube::Status;
use qtunnel::kube::kubeconfig::{Credentials, Upstream};
use qtunnel::pki::{DirectoryStore, HostName, StubKeys};
use qtunnel::stub::{DialError, KnownClusters, Stub, StubConfig, StubHandle};
use qtunnel::wire::{ClusterId, Identity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_program_connects_through_an_agent_and_each_direction_ends_by_itself() {
    for carrier in [CarrierChoice::Quic, CarrierChoice::Tcp] {
        let (listener, address) = server().await;
        let tunnel = Tunnel::start(carrier, &[&address]).await;
        let (dialled, accepted) = tokio::join!(tunnel.dial(&address), accept(&listener));
        let (mut client, mut server) = (dialled.unwrap(), accepted);

        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        within(server.read_to_string(&mut question)).await.unwrap();
        assert_eq!(question, "question");

        // More than any buffer on the way holds.
        let answer = vec![7; 8 << 20];
        let answering = async {
            server.write_all(&answer).await.unwrap();
            server.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let ((), read) = tokio::join!(answering, within(client.read_to_end(&mut received)));
        read.unwrap();
        assert!(received == answer, "{} bytes came", received.len());
        assert!(client.write_all(b"more").await.is_err(), "its direction was shut down");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_is_an_error_and_never_a_clean_end() {
    let (listener, address) = server().await;
    let tunnel = Tunnel::start(CarrierChoice::Quic, &[&address]).await;
    let (client, server) = tokio::join!(tunnel.dial(&address), accept(&listener));
    let (mut client, mut server) = (client.unwrap(), server);
    server.write_all(b"part").await.unwrap();
    let mut part = [0; 4];
    within(client.read_exact(&mut part)).await.unwrap();
    server.set_zero_linger().unwrap();
    drop(server);
    let error = within(client.read(&mut part)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");

    let (client, server) = tokio::join!(tunnel.dial(&address), accept(&listener));
    let mut server = server;
    drop(client.unwrap());
    let error = within(server.read(&mut part)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
}

#[tokio::test]
async fn an_agent_connects_only_where_its_own_policy_allows_it() {
    let (_listener, address) = server().await;
    let (_other, elsewhere) = server().await;
    let tunnel = Tunnel::start(CarrierChoice::Quic, &[&address]).await;
    let error = tunnel.dial(&elsewhere).await.unwrap_err();
    assert!(matches!(error, DialError::NotAllowed(_)) && error.to_string().contains(&elsewhere), "{error}");
    let error = tunnel.handle.dial(&"other".parse().unwrap(), "tcp", &address).await.unwrap_err();
    assert!(matches!(error, DialError::NoAgent(_)), "{error}");
    let error = tunnel.handle.dial(&tunnel.cluster, "udp", &address).await.unwrap_err();
    assert!(matches!(error, DialError::Network(_)), "{error}");
}

#[tokio::test]
async fn where_nobody_listens_the_program_is_told() {
    let (listener, address) = server().await;
    drop(listener);
    let tunnel = Tunnel::start(CarrierChoice::Quic, &[&address]).await;
    let error = tunnel.dial(&address).await.unwrap_err();
    assert!(matches!(error, DialError::Unreachable(_)) && error.to_string().contains(&address), "{error}");
}

#[tokio::test]
async fn a_request_of_the_program_is_authorized_like_that_of_a_client() {
    let tunnel = Tunnel::start(CarrierChoice::Quic, &[]).await;
    let refused = tunnel.request(&tunnel.cluster, get("/api/v1/pods")).await;
    assert_eq!(refused.code(), StatusCode::FORBIDDEN);
    assert!(refused.message().contains("User \"alice\" cannot list resource \"pods\""), "{refused}");
    let unknown = tunnel.request(&"other".parse().unwrap(), get("/api/v1/pods")).await;
    assert_eq!(unknown.code(), StatusCode::NOT_FOUND, "{unknown}");
    let ambiguous = tunnel.request(&tunnel.cluster, get("/api/../apis")).await;
    assert_eq!(ambiguous.code(), StatusCode::BAD_REQUEST, "{ambiguous}");
}

#[tokio::test]
async fn a_program_cannot_upgrade_a_request() {
    let tunnel = Tunnel::start(CarrierChoice::Quic, &[]).await;
    let mut exec = get("/api/v1/namespaces/demo/pods/web/exec?command=sh");
    exec.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    exec.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    let refused = tunnel.request(&tunnel.cluster, exec).await;
    assert_eq!(refused.code(), StatusCode::BAD_REQUEST, "{refused}");
}

/// A stub and an agent in this process.
struct Tunnel {
    handle: StubHandle,
    cluster: ClusterId,
    _directory: tempfile::TempDir,
    _running: DropGuard,
}

impl Tunnel {
    /// With an agent that connects to `allowed`.
    async fn start(carrier: CarrierChoice, allowed: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let cluster: ClusterId = "prod".parse().unwrap();
        let (stub, keys) = stub(&directory.path().join("stub"), &cluster).await;
        let token = keys.tokens().create(&cluster, Duration::from_secs(600), 1, SystemTime::now()).unwrap();
        let stubs = vec![stub.local_address().unwrap().to_string().parse().unwrap()];
        let agent = Agent::builder(stubs, directory.path().join("agent"), nowhere())
            .token(token)
            .forward(ForwardPolicy { allow: allowed.iter().map(|pattern| pattern.parse().unwrap()).collect() })
            .carrier(CarrierSettings { choice: carrier, ..CarrierSettings::default() })
            .drain_timeout(Duration::ZERO)
            .response_timeout(PATIENCE)
            .build();
        let (handle, shutdown) = (stub.handle(), CancellationToken::new());
        tokio::spawn(stub.run(shutdown.clone()));
        tokio::spawn(agent.unwrap().run(shutdown.clone()));
        let tunnel = Self { handle, cluster, _directory: directory, _running: shutdown.drop_guard() };
        timeout(PATIENCE, tunnel.connected()).await.expect("the agent connects in time");
        tunnel
    }

    async fn connected(&self) {
        while let Err(DialError::NoAgent(_)) = self.dial("nowhere.invalid:1").await {
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn dial(&self, address: &str) -> Result<qtunnel::carrier::StreamSocket, DialError> {
        within(self.handle.dial(&self.cluster, "tcp", address)).await
    }

    /// Makes a request in alice's name that the stub refuses.
    async fn request(&self, cluster: &ClusterId, request: Request<Empty<Bytes>>) -> Status {
        within(self.handle.request(cluster, Identity::named("alice"), request)).await.unwrap_err()
    }
}

async fn stub(directory: &Path, cluster: &ClusterId) -> (Stub, StubKeys) {
    let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let store = Arc::new(DirectoryStore::new(directory));
    let keys = StubKeys::create(store.clone(), &[HostName::Ip(loopback.ip())], None, SystemTime::now()).unwrap();
    KnownClusters::new(store).add(cluster).unwrap();
    let settings = directory.join("stub.toml");
    let text = "listen = '127.0.0.1:0'\npublic_address = '127.0.0.1:0'\nauthorization = { mode = 'deny-all' }\n";
    std::fs::write(&settings, text).unwrap();
    (Stub::bind(StubConfig::load(&settings).unwrap()).await.unwrap(), keys)
}

fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(path).body(Empty::new()).unwrap()
}

/// An API server that is not there: nothing here needs one.
fn nowhere() -> Upstream {
    Upstream {
        server: "http://127.0.0.1:9".parse().unwrap(),
        certificate_authority: None,
        server_name: None,
        credentials: Credentials::Anonymous,
        insecure: false,
    }
}

async fn server() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

async fn accept(listener: &TcpListener) -> TcpStream {
    within(listener.accept()).await.unwrap().0
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it happens in time")
}
