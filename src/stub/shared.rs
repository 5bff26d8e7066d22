//! What every connection of a running stub shares.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderValue;
use tokio_util::task::TaskTracker;

use super::audit::AuditLog;
use super::authenticate::Authenticator;
use super::authorize::{Authorizer, PolicyFile};
use super::config::StubConfig;
use super::dispatch::Patience;
use super::limits::Limits;
use super::metrics::Metrics;
use super::open_requests::OpenRequests;
use super::registry::Registry;
use crate::pki::{FileError, PeerAuthorities, StubKeys, private_file};
use crate::wire::ClusterId;

/// The shared parts of a running stub.
#[derive(Debug)]
pub struct Shared {
    /// The settings.
    pub config: StubConfig,
    /// Who users are.
    pub authenticator: Authenticator,
    /// What users may do.
    pub authorizer: Arc<dyn Authorizer>,
    /// The file that the authorizer follows, if there is one.
    pub policy_file: Option<Arc<PolicyFile>>,
    /// Where it is told who did what.
    pub audit: AuditLog,
    /// What anybody may take.
    pub limits: Limits,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The requests that are open now.
    pub open_requests: Arc<OpenRequests>,
    /// Which agents are connected.
    pub registry: Registry,
    /// Who vouches for the peers of the QUIC port.
    pub peers: PeerAuthorities,
    /// What HTTP/3 is advertised with (`Alt-Svc`), if it is.
    pub http3_alternative: Option<HeaderValue>,
    /// The stub's keys.
    pub keys: Arc<StubKeys>,
    /// Which clusters exist.
    pub clusters: KnownClusters,
    /// How patient dispatching is.
    pub patience: Patience,
    /// Everything that a stop waits for.
    pub tasks: TaskTracker,
}

/// The clusters that somebody has made a join token for: a file for each in the state directory.
#[derive(Debug)]
pub struct KnownClusters {
    directory: PathBuf,
    seen: Mutex<HashSet<ClusterId>>,
}

impl KnownClusters {
    /// The clusters of a state directory.
    pub fn new(state_dir: &std::path::Path) -> Self {
        Self { directory: state_dir.join("clusters"), seen: Mutex::default() }
    }

    /// Notes that `cluster` exists.
    pub fn add(&self, cluster: &ClusterId) -> Result<(), FileError> {
        private_file::create_directory(&self.directory)?;
        private_file::write(&self.file(cluster), b"")
    }

    /// Whether `cluster` exists. Looks at the disk for one that has not been seen before, since `qtunnel token create`
    /// runs beside the stub.
    pub async fn contains(&self, cluster: &ClusterId) -> bool {
        if self.seen.lock().unwrap_or_else(PoisonError::into_inner).contains(cluster) {
            return true;
        }
        let exists = tokio::fs::try_exists(self.file(cluster)).await.unwrap_or(false);
        if exists {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(cluster.clone());
        }
        exists
    }

    /// Every known cluster, sorted.
    pub fn all(&self) -> std::io::Result<Vec<ClusterId>> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut clusters = Vec::new();
        for entry in entries {
            clusters.extend(entry?.file_name().to_str().and_then(|name| name.parse::<ClusterId>().ok()));
        }
        clusters.sort();
        Ok(clusters)
    }

    /// A cluster id is a DNS label, so it is also a safe file name.
    fn file(&self, cluster: &ClusterId) -> PathBuf {
        self.directory.join(cluster.as_str())
    }
}
