//! Stub, agent and cluster in one process, on loopback.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::cluster::{SampleCluster, SampleClusterError, USERS};
use super::scratch::ScratchDirectory;
use crate::agent::{AddressError, Agent, AgentError};
use crate::kube::kubeconfig::{KubeconfigSpec, Upstream, UserCredentials, render};
use crate::pki::{
    AuthorityError, DirectoryStore, FileError, HostName, StoreError, StubKeys, StubKeysError, TokenError, private_file,
};
use crate::stub::admin::{AdminClient, StatusError};
use crate::stub::{KnownClusters, StartError, Stub, StubConfig};
use crate::wire::ClusterId;

/// A stub, an agent that has joined it, and maybe a sample cluster behind the agent. Everything they keep is in one
/// directory, which is removed with this.
#[derive(Debug)]
pub struct DemoTunnel {
    directory: ScratchDirectory,
    address: SocketAddr,
    admin_address: Option<SocketAddr>,
    admin_socket: PathBuf,
    agent_shutdown: CancellationToken,
    shutdown: CancellationToken,
    /// What runs until it is shut down, each with its name.
    parts: JoinSet<(&'static str, Result<(), DemoError>)>,
}

/// The cluster behind the agent.
#[derive(Debug, Clone)]
pub enum DemoCluster {
    /// The sample cluster, for user `demo`, who may do everything in it.
    Sample,
    /// A real one, for a user who may do there what its RBAC allows.
    Real {
        /// Its API server. The credentials have to be allowed to impersonate.
        upstream: Box<Upstream>,
        /// The user's name.
        user: String,
        /// The user's groups.
        groups: Vec<String>,
    },
}

/// Why there is no demo, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The directory.
    #[error("cannot make a temporary directory: {0}; TMPDIR says where")]
    Directory(io::Error),
    /// The port.
    #[error("cannot listen on {protocol} 127.0.0.1:{port}: {source}; choose another --port, or 0 for any")]
    Port {
        /// TCP or UDP.
        protocol: &'static str,
        /// The port.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// The system refuses what a process usually gets.
    #[error("the system refuses a socket or a file: {0}")]
    System(#[from] io::Error),
    /// A file of the demo.
    #[error(transparent)]
    File(#[from] FileError),
    /// The stub's settings.
    #[error("the demo's settings for its stub: {0}")]
    Settings(#[from] toml::de::Error),
    /// The stub's keys.
    #[error(transparent)]
    Keys(#[from] StubKeysError),
    /// The user's certificate.
    #[error("the user's certificate: {0}")]
    User(#[from] AuthorityError),
    /// The join token.
    #[error("the join token: {0}")]
    Token(#[from] TokenError),
    /// The list of clusters.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stub.
    #[error(transparent)]
    Stub(StartError),
    /// The agent.
    #[error("the agent: {0}")]
    Agent(#[from] AgentError),
    /// The stub's address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The sample cluster.
    #[error(transparent)]
    Cluster(#[from] SampleClusterError),
    /// The stub does not say how it is.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// The agent is not there in time.
    #[error("the agent did not connect within {} s; run again with `--log qtunnel=debug` to see why", CONNECT_TIMEOUT.as_secs())]
    NotConnected,
    /// A part that should run ended.
    #[error("the {0} stopped unexpectedly; run again with `--log qtunnel=debug` to see why")]
    Ended(&'static str),
}

/// How long the user's certificate is valid.
const USER_TTL: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How long the join token is valid; the agent uses it at once.
const TOKEN_TTL: Duration = Duration::from_secs(600);

/// How long the agent may take to join and connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Between looks whether it has.
const CONNECT_INTERVAL: Duration = Duration::from_millis(10);

/// How long open requests may take to end at a stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a stop may take altogether.
const STOP_TIMEOUT: Duration = Duration::from_secs(4);

impl DemoTunnel {
    /// Starts everything, the stub on `port` of loopback (0: the system chooses). The agent may still be joining when this
    /// returns. Call it within a tokio runtime.
    pub async fn start(port: u16, cluster: &DemoCluster) -> Result<Self, DemoError> {
        let directory = ScratchDirectory::create("qtunnel-demo").map_err(DemoError::Directory)?;
        let stub_directory = directory.path().join("stub");
        let loopback = [HostName::Ip(Ipv4Addr::LOCALHOST.into())];
        let keys =
            StubKeys::create(Arc::new(DirectoryStore::new(&stub_directory)), &loopback, None, SystemTime::now())?;
        let token = keys.tokens().create(&cluster_id(), TOKEN_TTL, 1, SystemTime::now())?;
        KnownClusters::new(keys.store().clone()).add(&cluster_id())?;

        let mut config: StubConfig = toml::from_str(&settings(port))?;
        config.state_dir.clone_from(&stub_directory);
        let admin_socket = config.admin_socket();
        let stub = Stub::bind(config).await.map_err(|error| at_port(error, port))?;
        let address = stub.local_address()?;
        let admin_address = stub.admin_address();
        let (agent_shutdown, shutdown) = (CancellationToken::new(), CancellationToken::new());
        let parts = JoinSet::new();
        let mut demo = Self { directory, address, admin_address, admin_socket, agent_shutdown, shutdown, parts };
        private_file::write(&demo.stub_settings(), settings(address.port()).as_bytes())?;
        private_file::write(&demo.kubeconfig(), kubeconfig(&keys, address, cluster)?.as_bytes())?;

        let upstream = match cluster {
            DemoCluster::Sample => demo.start_sample().await?,
            DemoCluster::Real { upstream, .. } => upstream.as_ref().clone(),
        };
        let agent = Agent::builder(vec![address.to_string().parse()?], demo.directory.path().join("agent"), upstream)
            .token(token)
            .drain_timeout(DRAIN_TIMEOUT)
            .build()?;
        let shutdown = demo.agent_shutdown.clone();
        demo.parts.spawn(async move { ("agent", agent.run(shutdown).await.map_err(DemoError::from)) });
        let shutdown = demo.shutdown.clone();
        demo.parts.spawn(async move {
            stub.run(shutdown).await;
            ("stub", Ok(()))
        });
        Ok(demo)
    }

    /// The user's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig.yaml")
    }

    /// The stub's settings file, for `qtunnel status` and its like.
    pub fn stub_settings(&self) -> PathBuf {
        self.directory.path().join("stub").join("stub.toml")
    }

    /// Where the stub listens, TCP and UDP.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the dashboard is.
    pub fn dashboard(&self) -> Option<String> {
        self.admin_address.map(|address| format!("http://{address}/"))
    }

    /// Waits until the agent has joined and connected, or a part has given up.
    pub async fn connected(&mut self) -> Result<(), DemoError> {
        let socket = self.admin_socket.clone();
        tokio::select! {
            connected = timeout(CONNECT_TIMEOUT, agent_connected(&socket)) => {
                connected.unwrap_or(Err(DemoError::NotConnected))
            }
            error = self.failed() => Err(error),
        }
    }

    /// Waits for a part to end by itself, which none should, and says why it did.
    pub async fn failed(&mut self) -> DemoError {
        match self.parts.join_next().await {
            Some(Ok((_, Err(error)))) => error,
            Some(Ok((name, Ok(())))) => DemoError::Ended(name),
            // A panic of a part has been printed.
            Some(Err(_)) | None => DemoError::Ended("demo"),
        }
    }

    /// Ends everything within five seconds and removes the directory.
    pub async fn stop(mut self) {
        let ended = async {
            // First the agent, which would otherwise try to reach a stub that is gone.
            self.agent_shutdown.cancel();
            self.parts.join_next().await;
            self.shutdown.cancel();
            while self.parts.join_next().await.is_some() {}
        };
        if timeout(STOP_TIMEOUT, ended).await.is_err() {
            tracing::warn!("not everything stopped within {} s", STOP_TIMEOUT.as_secs());
        }
    }

    /// Serves a sample cluster; gives the way to it.
    async fn start_sample(&mut self) -> Result<Upstream, DemoError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let cluster = SampleCluster::new(listener.local_addr()?)?;
        let upstream = cluster.upstream();
        let shutdown = self.shutdown.clone();
        self.parts
            .spawn(async move { ("sample cluster", cluster.serve(listener, shutdown).await.map_err(DemoError::from)) });
        Ok(upstream)
    }
}

/// Asks the stub until it has an agent.
async fn agent_connected(admin_socket: &Path) -> Result<(), DemoError> {
    loop {
        let status = AdminClient::new(admin_socket).status().await?;
        if status.clusters.iter().any(|cluster| !cluster.agents.is_empty()) {
            return Ok(());
        }
        tokio::time::sleep(CONNECT_INTERVAL).await;
    }
}

fn cluster_id() -> ClusterId {
    "demo".parse().expect("a DNS label")
}

/// The stub's settings; they go into a file too, so that other commands find the running stub.
fn settings(port: u16) -> String {
    format!(
        r#"listen = "127.0.0.1:{port}"
public_address = "127.0.0.1:{port}"

[authorization]
mode = "allow-all"

[admin]
listen = "127.0.0.1:0"

[limits]
drain_delay = "0s"
shutdown_timeout = "{DRAIN_TIMEOUT:?}"
"#
    )
}

/// What is wrong with the port, in terms of the demo's own flag.
fn at_port(error: StartError, port: u16) -> DemoError {
    match error {
        StartError::Listen { protocol, source, .. } => DemoError::Port { protocol, port, source },
        error => DemoError::Stub(error),
    }
}

fn kubeconfig(keys: &StubKeys, address: SocketAddr, cluster: &DemoCluster) -> Result<String, AuthorityError> {
    let in_sample = [USERS.to_owned()];
    let (user, groups, namespace) = match cluster {
        DemoCluster::Sample => ("demo", in_sample.as_slice(), Some("demo")),
        DemoCluster::Real { user, groups, .. } => (user.as_str(), groups.as_slice(), None),
    };
    let certificate = keys.user_authority().issue_user(user, groups, USER_TTL, SystemTime::now())?;
    let id = cluster_id();
    Ok(render(&KubeconfigSpec {
        cluster: id.as_str(),
        server: &format!("https://{address}/clusters/{id}"),
        certificate_authority: Some(&keys.server_authority().certificate_pem()),
        tls_server_name: None,
        user,
        credentials: UserCredentials::ClientCertificate {
            chain: &certificate.certificate_pem(),
            key: &certificate.key_pem(),
        },
        namespace,
    }))
}
