//! The cluster that the stub itself runs in, or that keeps its state: not one of those behind agents.

use std::path::PathBuf;
use std::time::Duration;

use ::kube::config::{KubeConfigOptions, Kubeconfig};
use ::kube::{Client, Config};

/// How to reach the Kubernetes API that keeps a stub's Secrets and Leases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterAccess {
    /// A kubeconfig, whose current context counts. Default: the ServiceAccount of the pod that this process runs in.
    pub kubeconfig: Option<PathBuf>,
}

/// Why that API cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClusterAccessError {
    /// Not in a pod, and no kubeconfig.
    #[error(
        "cannot use the Kubernetes API of the cluster that this process runs in: {0}; outside of one, name a kubeconfig under [kubernetes]"
    )]
    NotInCluster(#[from] ::kube::config::InClusterError),
    /// The kubeconfig.
    #[error("the kubeconfig {}: {error}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: Box<::kube::config::KubeconfigError>,
    },
    /// What TLS makes of it.
    #[error("cannot make a client of the Kubernetes API: {0}")]
    Client(#[from] Box<::kube::Error>),
}

/// How long the API server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl ClusterAccess {
    /// A client. Call it within a tokio runtime, which then drives its connections; nothing is sent yet.
    pub async fn client(&self) -> Result<Client, ClusterAccessError> {
        let mut config = match &self.kubeconfig {
            None => Config::incluster()?,
            Some(path) => self.read(path).await?,
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        Ok(Client::try_from(config).map_err(Box::new)?)
    }

    async fn read(&self, path: &std::path::Path) -> Result<Config, ClusterAccessError> {
        let failed = |error| ClusterAccessError::Kubeconfig { path: path.to_owned(), error: Box::new(error) };
        let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)
    }
}
