//! What the examples share: keys and settings in a temporary directory, and a cluster with an agent in front of it.

// Each example is a program of its own and uses a part of this.
#![allow(dead_code)]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::bail;
use qtunnel::agent::{Agent, AgentBuilder};
use qtunnel::demo::SampleCluster;
use qtunnel::demo::client::Client;
use qtunnel::kube::kubeconfig::{KubeconfigSpec, UserCredentials, render};
use qtunnel::pki::{DirectoryStore, HostName, Store, StubKeys};
use qtunnel::stub::admin::{AdminClient, StubStatus};
use qtunnel::stub::{KnownClusters, Stub, StubConfig, StubHandle};
use qtunnel::wire::{ClusterId, Identity};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What a user of the examples asks for: the pods of the sample cluster's namespace demo.
pub const PODS: &str = "/api/v1/namespaces/demo/pods";

/// The group whose members may do everything in the sample cluster.
const USERS: &str = "qtunnel:users";

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(20);

/// The one cluster of the examples.
pub fn cluster() -> ClusterId {
    "demo".parse().expect("a DNS label")
}

/// A user who may do everything in the sample cluster.
pub fn identity(user: &str) -> Identity {
    Identity { groups: vec![USERS.to_owned()], ..Identity::named(user) }
}

/// The keys and settings of a stub that does not run yet.
pub struct Site {
    directory: TempDir,
    keys: StubKeys,
}

impl Site {
    /// With keys in a directory, as `qtunnel stub init` makes them.
    pub fn new() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let store = Arc::new(DirectoryStore::new(&directory.path().join("stub")));
        Self::in_store(directory, store)
    }

    /// With keys in `store`.
    pub fn with_store(store: Arc<dyn Store>) -> anyhow::Result<Self> {
        Self::in_store(tempfile::tempdir()?, store)
    }

    fn in_store(directory: TempDir, store: Arc<dyn Store>) -> anyhow::Result<Self> {
        let keys = StubKeys::create(store, &[HostName::Ip(Ipv4Addr::LOCALHOST.into())], None, SystemTime::now())?;
        KnownClusters::new(keys.store().clone()).add(&cluster())?;
        Ok(Self { directory, keys })
    }

    /// The settings: any port of loopback, and everybody who is known may do everything.
    pub fn config(&self) -> anyhow::Result<StubConfig> {
        let mut config: StubConfig = toml::from_str(
            r#"
            listen = "127.0.0.1:0"
            public_address = "127.0.0.1:0"
            authorization = { mode = "allow-all" }
            limits = { drain_delay = "0s", shutdown_timeout = "1s" }
            "#,
        )?;
        config.state_dir = self.directory.path().join("stub");
        Ok(config)
    }

    /// Runs `stub` with one agent in front of the sample cluster.
    pub async fn run(self, stub: Stub) -> anyhow::Result<Tunnel> {
        self.run_with(stub, 1, |agent| agent).await
    }

    /// Runs `stub` with `count` agents in front of the sample cluster, each as `set_up` says.
    pub async fn run_with(
        self,
        stub: Stub,
        count: u32,
        set_up: impl Fn(AgentBuilder) -> AgentBuilder,
    ) -> anyhow::Result<Tunnel> {
        let (shutdown, mut parts) = (CancellationToken::new(), JoinSet::new());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let sample = SampleCluster::new(listener.local_addr()?)?;
        let (address, handle, upstream) = (stub.local_address()?, stub.handle(), sample.upstream());
        let token = self.keys.tokens().create(&cluster(), PATIENCE, count, SystemTime::now())?;

        let stop = shutdown.clone();
        parts.spawn(async move { Ok(sample.serve(listener, stop).await?) });
        let stop = shutdown.clone();
        parts.spawn(async move {
            stub.run(stop).await;
            Ok(())
        });
        for number in 0..count {
            let state_dir = self.directory.path().join(format!("agent-{number}"));
            let agent = Agent::builder(vec![address.to_string().parse()?], state_dir, upstream.clone());
            let agent = set_up(agent.token(token.clone()).drain_timeout(Duration::ZERO)).build()?;
            let stop = shutdown.clone();
            parts.spawn(async move { Ok(agent.run(stop).await?) });
        }
        let admin = AdminClient::new(&self.config()?.admin_socket());
        let tunnel = Tunnel { site: self, address, admin, handle, shutdown, parts };
        tokio::time::timeout(PATIENCE, tunnel.connected(count as usize)).await??;
        Ok(tunnel)
    }
}

/// A stub, agents and the sample cluster, all in this process.
pub struct Tunnel {
    site: Site,
    address: SocketAddr,
    admin: AdminClient,
    handle: StubHandle,
    shutdown: CancellationToken,
    parts: JoinSet<anyhow::Result<()>>,
}

impl Tunnel {
    /// The running stub.
    pub fn stub(&self) -> &StubHandle {
        &self.handle
    }

    /// What the stub says of itself.
    pub async fn status(&self) -> anyhow::Result<StubStatus> {
        Ok(self.admin.status().await?)
    }

    /// A client of the stub with a client certificate for `user`.
    pub async fn client_of(&self, user: &str) -> anyhow::Result<Client> {
        let authority = self.site.keys.user_authority();
        let certificate = authority.issue_user(user, &[USERS.to_owned()], PATIENCE, SystemTime::now())?;
        let (chain, key) = (certificate.certificate_pem(), certificate.key_pem());
        let kubeconfig = render(&KubeconfigSpec {
            cluster: "demo",
            server: &format!("https://{}/clusters/{}", self.address, cluster()),
            certificate_authority: Some(&self.site.keys.server_authority().certificate_pem()),
            tls_server_name: None,
            user,
            credentials: UserCredentials::ClientCertificate { chain: &chain, key: &key },
            namespace: None,
        });
        let path: PathBuf = self.site.directory.path().join("kubeconfig.yaml");
        std::fs::write(&path, kubeconfig)?;
        Ok(Client::connect(&path).await?)
    }

    /// Ends everything, so that the audit log is whole.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        while let Some(ended) = self.parts.join_next().await {
            ended??;
        }
        Ok(())
    }

    async fn connected(&self, agents: usize) -> anyhow::Result<()> {
        loop {
            // The admin socket is there before it is answered at.
            if let Ok(status) = self.admin.status().await
                && status.clusters.iter().any(|cluster| cluster.agents.len() >= agents)
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// How many pods a list holds.
pub fn count_of_items(list: &serde_json::Value) -> anyhow::Result<usize> {
    match list["items"].as_array() {
        Some(items) => Ok(items.len()),
        None => bail!("{list} is no list"),
    }
}
