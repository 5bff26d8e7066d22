//! Kubernetes Secrets as store: one for each table, so that a stub needs rights on four named objects only.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc as thread_mpsc};
use std::time::Duration;

use ::kube::api::{Api, PostParams};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::{Key, PATIENCE, Store, StoreError, Table};
use crate::kube::ClusterAccess;

/// The Secrets `<prefix>-keys`, `<prefix>-tokens`, `<prefix>-clusters` and `<prefix>-revoked` of one namespace, which is where
/// `kubectl create secret generic <prefix>-keys --from-file=DIRECTORY` puts keys that `qtunnel stub init` has made.
///
/// Changes are made by `resourceVersion`: whoever has read an older version than there is has to read again. The list of
/// clusters is kept in memory and read again every 2 s; when the API server is away, stubs go on with what they have.
#[derive(Debug)]
pub struct KubernetesStore {
    names: SecretNames,
    jobs: mpsc::Sender<Job>,
    clusters: Arc<Mutex<BTreeSet<String>>>,
}

/// Where the Secrets are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretNames {
    /// Their namespace. Default: that of the pod or of the kubeconfig.
    pub namespace: Option<String>,
    /// What their names begin with.
    pub prefix: String,
}

/// How often the list of clusters is read again.
const REFRESH: Duration = Duration::from_secs(2);

/// Calls that may wait for the API server.
const QUEUE: usize = 64;

/// Before a change that collided is tried again: at most this, at random.
const COLLISION_WAIT: Duration = Duration::from_millis(50);

impl KubernetesStore {
    /// Connects to the API server of `access`.
    ///
    /// # Errors
    ///
    /// There is no such cluster, it does not answer, or it does not let the stub read the Secrets.
    pub fn connect(access: ClusterAccess, names: SecretNames) -> Result<Self, StoreError> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (tell, ready) = thread_mpsc::sync_channel(1);
        let clusters = Arc::new(Mutex::default());
        let worker = (names.clone(), clusters.clone());
        // A thread and a runtime of its own: calls come from threads with and without one, and block.
        std::thread::Builder::new()
            .name("secrets".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let Ok(runtime) = runtime else { return };
                runtime.block_on(work(access, worker, queue, tell));
            })
            .map_err(|_no_thread| StoreError::Stopped)?;
        ready.recv_timeout(PATIENCE * 2).map_err(|_| StoreError::NoAnswer)??;
        Ok(Self { names, jobs, clusters })
    }

    fn ask(&self, request: Request) -> Result<Answer, StoreError> {
        let (answer, answered) = thread_mpsc::sync_channel(1);
        let path = PathBuf::from(&self.names.prefix);
        self.jobs.try_send(Job { request, answer }).map_err(|_full| StoreError::Busy { path })?;
        // The worker bounds each call; this bounds those that wait for others.
        answered.recv_timeout(PATIENCE * 2).map_err(|_| StoreError::NoAnswer)?
    }

    fn table(&self, table: Table) -> Result<Values, StoreError> {
        match self.ask(Request::Read(table))? {
            Answer::Values(values) => Ok(values),
            Answer::Swapped(_) => Err(StoreError::Stopped),
        }
    }
}

impl Store for KubernetesStore {
    fn get(&self, key: &Key) -> Result<Option<Vec<u8>>, StoreError> {
        if key.table() == Table::Clusters {
            let known = self.clusters.lock().unwrap_or_else(PoisonError::into_inner).contains(key.name());
            return Ok(known.then(Vec::new));
        }
        Ok(self.table(key.table())?.remove(key.name()).map(|value| value.0))
    }

    fn names(&self, table: Table) -> Result<Vec<String>, StoreError> {
        if table == Table::Clusters {
            return Ok(self.clusters.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect());
        }
        Ok(self.table(table)?.into_keys().collect())
    }

    fn swap(&self, key: &Key, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<bool, StoreError> {
        let own = |value: Option<&[u8]>| value.map(|value| ByteString(value.to_vec()));
        match self.ask(Request::Swap { key: key.clone(), old: own(old), new: own(new) })? {
            Answer::Swapped(swapped) => Ok(swapped),
            Answer::Values(_) => Err(StoreError::Stopped),
        }
    }

    fn place(&self, key: &Key) -> PathBuf {
        PathBuf::from(self.names.of(key.table())).join(key.name())
    }
}

type Values = BTreeMap<String, ByteString>;

/// A call, for the worker.
struct Job {
    request: Request,
    answer: thread_mpsc::SyncSender<Result<Answer, StoreError>>,
}

enum Request {
    Read(Table),
    Swap { key: Key, old: Option<ByteString>, new: Option<ByteString> },
}

enum Answer {
    Values(Values),
    Swapped(bool),
}

/// Without the values.
impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Job(...)")
    }
}

impl SecretNames {
    fn of(&self, table: Table) -> String {
        let table = match table {
            Table::Keys => "keys",
            Table::Tokens => "tokens",
            Table::Clusters => "clusters",
            Table::Revoked => "revoked",
        };
        format!("{}-{table}", self.prefix)
    }
}

/// Answers calls, one after the other, until the store is dropped.
async fn work(
    access: ClusterAccess,
    (names, clusters): (SecretNames, Arc<Mutex<BTreeSet<String>>>),
    mut queue: mpsc::Receiver<Job>,
    ready: thread_mpsc::SyncSender<Result<(), StoreError>>,
) {
    let secrets = match Secrets::connect(&access, names).await {
        Ok(secrets) => secrets,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let refreshed = secrets.refresh(&clusters).await;
    let failed = refreshed.is_err();
    if ready.send(refreshed).is_err() || failed {
        return;
    }
    let mut refresh = interval(REFRESH);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut works = true;
    loop {
        tokio::select! {
            job = queue.recv() => {
                let Some(Job { request, answer }) = job else { return };
                let changes_clusters = matches!(&request, Request::Swap { key, .. } if key.table() == Table::Clusters);
                let result = secrets.answer(request).await;
                if changes_clusters && let Err(error) = secrets.refresh(&clusters).await {
                    tracing::warn!("cannot read the list of clusters again: {error}");
                }
                // Whoever asked may have lost patience.
                let _ = answer.send(result);
            }
            _ = refresh.tick() => {
                let result = secrets.refresh(&clusters).await;
                // Said once, not every two seconds.
                match &result {
                    Err(error) if works => tracing::warn!("going on with what is known of clusters and tokens: {error}"),
                    Ok(()) if !works => tracing::info!("the stub's Secrets can be read again"),
                    _ => {}
                }
                works = result.is_ok();
            }
        }
    }
}

/// The Secrets themselves.
struct Secrets {
    api: Api<Secret>,
    names: SecretNames,
}

impl Secrets {
    async fn connect(access: &ClusterAccess, names: SecretNames) -> Result<Self, StoreError> {
        let client = timeout(PATIENCE, access.client()).await.map_err(|_elapsed| StoreError::NoAnswer)??;
        let namespace = names.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
        Ok(Self { api: Api::namespaced(client, &namespace), names })
    }

    async fn answer(&self, request: Request) -> Result<Answer, StoreError> {
        let answering = async {
            match request {
                Request::Read(table) => {
                    Ok(Answer::Values(self.read(table).await?.and_then(|s| s.data).unwrap_or_default()))
                }
                Request::Swap { key, old, new } => self.swap(&key, old.as_ref(), new).await.map(Answer::Swapped),
            }
        };
        timeout(PATIENCE, answering).await.unwrap_or(Err(StoreError::NoAnswer))
    }

    async fn refresh(&self, clusters: &Mutex<BTreeSet<String>>) -> Result<(), StoreError> {
        if let Answer::Values(values) = self.answer(Request::Read(Table::Clusters)).await? {
            *clusters.lock().unwrap_or_else(PoisonError::into_inner) = values.into_keys().collect();
        }
        Ok(())
    }

    async fn read(&self, table: Table) -> Result<Option<Secret>, StoreError> {
        let name = self.names.of(table);
        self.api.get_opt(&name).await.map_err(|error| self.failed(&name, error))
    }

    /// Changes the Secret that was read, and reads again if somebody else was faster: with another value, or with the same
    /// key still as it was, for the Secret has others.
    async fn swap(&self, key: &Key, old: Option<&ByteString>, new: Option<ByteString>) -> Result<bool, StoreError> {
        let name = self.names.of(key.table());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let current = self.read(key.table()).await?;
            let values = current.as_ref().and_then(|secret| secret.data.as_ref());
            if values.and_then(|values| values.get(key.name())) != old {
                return Ok(false);
            }
            match self.write(&name, current, key.name(), new.clone()).await {
                Ok(()) => return Ok(true),
                Err(::kube::Error::Api(status)) if status.code == CONFLICT && Instant::now() < deadline => {
                    sleep(COLLISION_WAIT.mul_f64(rand::random())).await;
                }
                Err(error) => return Err(self.failed(&name, error)),
            }
        }
    }

    /// The version in `current` makes the API server refuse to replace a later one.
    async fn write(
        &self,
        name: &str,
        current: Option<Secret>,
        key: &str,
        value: Option<ByteString>,
    ) -> Result<(), ::kube::Error> {
        let exists = current.is_some();
        let mut secret = current.unwrap_or_else(|| Secret {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            type_: Some("Opaque".to_owned()),
            ..Secret::default()
        });
        let values = secret.data.get_or_insert_default();
        match value {
            Some(value) => values.insert(key.to_owned(), value),
            None => values.remove(key),
        };
        let params = PostParams::default();
        match exists {
            true => self.api.replace(name, &params, &secret).await.map(drop),
            false => self.api.create(&params, &secret).await.map(drop),
        }
    }

    fn failed(&self, name: &str, error: ::kube::Error) -> StoreError {
        StoreError::Secret { secret: name.to_owned(), error: Box::new(error) }
    }
}

/// Somebody else has changed the object (409, `Conflict` or `AlreadyExists`).
const CONFLICT: u16 = 409;
