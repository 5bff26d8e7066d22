//! What every connection of a running stub shares.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use http::HeaderValue;
use tokio_util::task::TaskTracker;

use super::audit::AuditLog;
use super::authenticate::Authenticator;
use super::authorize::{Authorizer, PolicyFile};
use super::config::StubConfig;
use super::drain::Drain;
use super::election::{Election, Leadership};
use super::enrollment::Enrollment;
use super::limits::Limits;
use super::live_settings::LiveSettings;
use super::open_requests::OpenRequests;
use super::record::Watchers;
use super::registry::Registry;
use super::reload::Reload;
use super::retry_budget::RetryBudgets;
use super::revocation::RevokedAgents;
use super::sessions::SessionStore;
use crate::pki::store::{Key, Store, StoreError, Table};
use crate::pki::{PeerAuthorities, StubKeys};
use crate::wire::ClusterId;

/// The shared parts of a running stub.
#[derive(Debug)]
pub struct Shared {
    /// Since when it runs.
    pub started_at: SystemTime,
    /// The settings at the start. What may change since is in [`Shared::live`].
    pub config: StubConfig,
    /// See [`Shared::live`].
    pub live_settings: Arc<ArcSwap<LiveSettings>>,
    /// Made when the process starts: by it agents know whether two addresses lead here.
    pub instance: u64,
    /// Which stub leads; `None` where each does.
    pub election: Option<Arc<dyn Election>>,
    /// Who users are.
    pub authenticator: Arc<dyn Authenticator>,
    /// What users may do.
    pub authorizer: Arc<dyn Authorizer>,
    /// The file that the authorizer follows, if there is one.
    pub policy_file: Option<PolicyFile>,
    /// Files that are read again when they change.
    pub followed_files: Vec<Arc<dyn Reload>>,
    /// Where it is told who did what.
    pub audit: AuditLog,
    /// What anybody may take.
    pub limits: Arc<Limits>,
    /// Who is told of every request.
    pub watchers: Watchers,
    /// The requests that are open now.
    pub open_requests: Arc<OpenRequests>,
    /// Which agents are connected.
    pub registry: Registry,
    /// The TLS sessions that agents may resume.
    pub sessions: Arc<dyn SessionStore>,
    /// The agents that are turned away.
    pub revoked: RevokedAgents,
    /// How many requests may be tried again.
    pub retry_budgets: RetryBudgets,
    /// Who vouches for the peers of the QUIC port.
    pub peers: PeerAuthorities,
    /// What HTTP/3 is advertised with (`Alt-Svc`), if it is.
    pub http3_alternative: Option<HeaderValue>,
    /// The stub's keys.
    pub keys: Arc<StubKeys>,
    /// Where agents get their certificates.
    pub enrollment: Enrollment,
    /// Which clusters exist.
    pub clusters: KnownClusters,
    /// Everything that a stop waits for.
    pub tasks: TaskTracker,
    /// How far a stop has come.
    pub drain: Drain,
}

impl Shared {
    /// The settings that may change while the stub runs, as they are now.
    pub fn live(&self) -> Arc<LiveSettings> {
        self.live_settings.load_full()
    }

    /// Who leads, if there is an election.
    pub fn leadership(&self) -> Option<Leadership> {
        self.election.as_ref().map(|election| election.leadership().borrow().clone())
    }
}

/// The clusters that somebody has made a join token for.
#[derive(Debug)]
pub struct KnownClusters {
    store: Arc<dyn Store>,
    seen: Mutex<HashSet<ClusterId>>,
}

impl KnownClusters {
    /// The clusters in a store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, seen: Mutex::default() }
    }

    /// Notes that `cluster` exists.
    pub fn add(&self, cluster: &ClusterId) -> Result<(), StoreError> {
        // That it is noted already is as good.
        self.store.swap(&Key::cluster(cluster), None, Some(b""))?;
        Ok(())
    }

    /// Notes that `cluster` has an agent, so that it exists, whenever the store will say so.
    pub fn seen(&self, cluster: &ClusterId) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(cluster.clone());
    }

    /// Whether `cluster` exists. Looks into the store for one that has not been seen before, since `qtunnel token create`
    /// runs beside the stub.
    pub async fn contains(&self, cluster: &ClusterId) -> bool {
        if self.seen.lock().unwrap_or_else(PoisonError::into_inner).contains(cluster) {
            return true;
        }
        let (store, key) = (self.store.clone(), Key::cluster(cluster));
        let found = tokio::task::spawn_blocking(move || store.get(&key)).await;
        let exists = matches!(found, Ok(Ok(Some(_))));
        if exists {
            self.seen(cluster);
        }
        exists
    }

    /// Every known cluster as [`all`](Self::all) has them, for a task that must not block: stores do. None where the store fails.
    pub async fn listed(&self) -> Vec<ClusterId> {
        let store = self.store.clone();
        let listing = tokio::task::spawn_blocking(move || listed_in(&*store)).await;
        listing.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// Every known cluster, sorted. It may block.
    pub fn all(&self) -> Result<Vec<ClusterId>, StoreError> {
        listed_in(&*self.store)
    }
}

fn listed_in(store: &dyn Store) -> Result<Vec<ClusterId>, StoreError> {
    let names = store.names(Table::Clusters)?;
    let mut clusters: Vec<ClusterId> = names.iter().filter_map(|name| name.parse().ok()).collect();
    clusters.sort();
    Ok(clusters)
}
