//! Which agents are connected, and which of them takes the next request.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::time::timeout_at;

use super::meter::{Meter, StreamMeter};
use crate::carrier::{Connection, PathState};
use crate::pki::AgentIdentity;
use crate::wire::{Carrier, ClusterId, ErrorCode, Hello, Report};

/// The agents that are connected now.
#[derive(Debug, Default)]
pub struct Registry {
    clusters: Mutex<HashMap<ClusterId, Vec<Arc<AgentLink>>>>,
    available: Notify,
}

/// One connected agent.
#[derive(Debug)]
pub struct AgentLink {
    /// Who it is, from its certificate.
    pub identity: AgentIdentity,
    /// What it said of itself.
    pub hello: Hello,
    /// The connection to it.
    pub connection: Connection,
    /// Since when.
    pub connected_at: SystemTime,
    /// How long it may go without a report before it is late.
    patience: Duration,
    path: watch::Receiver<PathState>,
    path_changes: AtomicU64,
    state: Mutex<LinkState>,
    traffic: Arc<Traffic>,
}

/// What one agent's requests add up to.
#[derive(Debug, Default)]
pub struct Traffic {
    open_streams: AtomicUsize,
    requests: AtomicU64,
    bytes_to_clients: AtomicU64,
    bytes_from_clients: AtomicU64,
}

#[derive(Debug)]
struct LinkState {
    heard_at: Instant,
    report: Option<Report>,
    draining: bool,
}

/// How fit an agent is for the next request, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fitness {
    /// It reports, and its API server answers.
    Healthy,
    /// It reports that its API server does not answer.
    UpstreamDown,
    /// It has not reported for a while, although its connection answers.
    Late,
    /// Its connection does not answer: no request goes there until it does.
    Suspect,
}

/// What a new connection means for an older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Succession {
    /// Nothing: they are two agents.
    None,
    /// The agent's process has moved from TCP to QUIC: requests that are open end where they are.
    Moved,
    /// The older one is dead, or somebody has copied the agent's key; either way two would not be one agent. An agent that
    /// falls back from QUIC to TCP has given up the older one too.
    Superseded,
}

/// Why no agent can take a request now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unavailable {
    /// None is connected that takes requests.
    NoAgent,
    /// There are agents, and none of their connections answers; the one that answered last has not since then.
    AllSuspect(Instant),
}

impl Registry {
    /// Adds an agent. A connection that the same agent had before gives way to it: see [`Succession`].
    pub fn add(&self, link: Arc<AgentLink>) {
        let mut superseded = Vec::new();
        let mut clusters = self.lock();
        let links = clusters.entry(link.identity.cluster.clone()).or_default();
        links.retain(|other| match link.succeeds(other) {
            Succession::None => true,
            Succession::Moved => {
                other.drain();
                true
            }
            Succession::Superseded => {
                superseded.push(other.clone());
                false
            }
        });
        links.push(link);
        drop(clusters);
        for old in superseded {
            old.connection.close(ErrorCode::Superseded, "the same agent has connected again");
        }
        self.available.notify_waiters();
    }

    /// Notes that an agent's connection answers again.
    pub fn recovered(&self) {
        self.available.notify_waiters();
    }

    /// Like [`Registry::choose`], and waits for up to `patience` while there are agents whose connections do not answer:
    /// most outages are short.
    pub async fn choose_patiently(
        &self,
        cluster: &ClusterId,
        tried: &[Arc<AgentLink>],
        patience: Duration,
    ) -> Result<Arc<AgentLink>, Unavailable> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            // Made before looking, so that no change in between is missed.
            let changed = self.available.notified();
            match self.choose(cluster, tried, Instant::now()) {
                Err(Unavailable::AllSuspect(_)) if timeout_at(deadline, changed).await.is_ok() => {}
                result => return result,
            }
        }
    }

    /// Removes an agent, if it is still this connection of it.
    pub fn remove(&self, link: &Arc<AgentLink>) {
        let mut clusters = self.lock();
        if let Some(links) = clusters.get_mut(&link.identity.cluster) {
            links.retain(|other| !Arc::ptr_eq(other, link));
            if links.is_empty() {
                clusters.remove(&link.identity.cluster);
            }
        }
    }

    /// Whether this process of an agent is connected.
    pub fn has(&self, identity: &AgentIdentity, instance: u64) -> bool {
        let clusters = self.lock();
        let links = clusters.get(&identity.cluster).into_iter().flatten();
        links.into_iter().any(|link| link.identity == *identity && link.hello.instance == instance)
    }

    /// Every connected agent.
    pub fn all(&self) -> Vec<Arc<AgentLink>> {
        self.lock().values().flatten().cloned().collect()
    }

    /// The agent for the next request to `cluster`, other than those in `tried`: among the fittest, the one with fewer
    /// open streams of two chosen at random (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing").
    ///
    /// # Errors
    ///
    /// When there is none, or none whose connection answers.
    pub fn choose(
        &self,
        cluster: &ClusterId,
        tried: &[Arc<AgentLink>],
        now: Instant,
    ) -> Result<Arc<AgentLink>, Unavailable> {
        let clusters = self.lock();
        let usable = || {
            clusters
                .get(cluster)
                .into_iter()
                .flatten()
                .filter(|link| !tried.iter().any(|other| Arc::ptr_eq(other, link)))
                .filter_map(|link| link.fitness(now).map(|fitness| (fitness, link)))
        };
        let best = usable().map(|(fitness, _)| fitness).min().ok_or(Unavailable::NoAgent)?;
        if best == Fitness::Suspect {
            let since = usable().filter_map(|(_, link)| link.suspect_since()).max();
            return Err(Unavailable::AllSuspect(since.unwrap_or(now)));
        }
        let fittest = || usable().filter(|(fitness, _)| *fitness == best).map(|(_, link)| link);
        let count = fittest().count();
        let first = fittest().nth(rand::random_range(0..count));
        let second = fittest().nth(rand::random_range(0..count));
        let fewest = first.into_iter().chain(second).min_by_key(|link| link.traffic.open_streams());
        fewest.cloned().ok_or(Unavailable::NoAgent)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClusterId, Vec<Arc<AgentLink>>>> {
        // Nothing that holds the lock leaves the map half changed, so a panic elsewhere does not spoil it.
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AgentLink {
    /// An agent that has just said hello and reports every `report_interval`.
    pub fn new(identity: AgentIdentity, hello: Hello, connection: Connection, report_interval: Duration) -> Self {
        Self {
            identity,
            hello,
            path: connection.path_state(),
            connection,
            connected_at: SystemTime::now(),
            patience: report_interval * 3,
            path_changes: AtomicU64::new(0),
            state: Mutex::new(LinkState { heard_at: Instant::now(), report: None, draining: false }),
            traffic: Arc::default(),
        }
    }

    /// Notes what the agent tells of itself.
    pub fn report(&self, report: Report) {
        let mut state = self.state();
        state.heard_at = Instant::now();
        state.report = Some(report);
    }

    /// Notes that the agent takes no new requests.
    pub fn drain(&self) {
        self.state().draining = true;
    }

    /// Notes that the agent is seen at another address than before.
    pub fn moved(&self) {
        self.path_changes.fetch_add(1, Ordering::Relaxed);
    }

    /// How often it was.
    pub fn path_changes(&self) -> u64 {
        self.path_changes.load(Ordering::Relaxed)
    }

    /// The agent's latest report.
    pub fn latest_report(&self) -> Option<Report> {
        self.state().report.clone()
    }

    /// Since when the connection does not answer; `None` while it does.
    pub fn suspect_since(&self) -> Option<Instant> {
        self.path.borrow().suspect_since
    }

    /// How fit the agent is; `None` when it takes no requests.
    pub fn fitness(&self, now: Instant) -> Option<Fitness> {
        let state = self.state();
        if state.draining {
            None
        } else if self.suspect_since().is_some() {
            Some(Fitness::Suspect)
        } else if now.saturating_duration_since(state.heard_at) > self.patience {
            Some(Fitness::Late)
        } else if state.report.as_ref().is_some_and(|report| !report.upstream_healthy) {
            Some(Fitness::UpstreamDown)
        } else {
            Some(Fitness::Healthy)
        }
    }

    /// What becomes of `older` when this connection comes.
    fn succeeds(&self, older: &Self) -> Succession {
        let carriers = (older.connection.carrier(), self.connection.carrier());
        if older.identity.agent != self.identity.agent {
            Succession::None
        } else if older.hello.instance == self.hello.instance && carriers == (Carrier::Tcp, Carrier::Quic) {
            Succession::Moved
        } else {
            Succession::Superseded
        }
    }

    /// What its requests add up to.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    fn state(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one open stream for as long as it lives, and the bytes on it.
#[derive(Debug)]
pub struct OpenStream {
    agent: Arc<Traffic>,
    meter: StreamMeter,
}

impl Traffic {
    /// Counts a request and its open stream.
    pub fn open_stream(self: &Arc<Self>, request: Meter) -> OpenStream {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.open_streams.fetch_add(1, Ordering::Relaxed);
        OpenStream { agent: self.clone(), meter: StreamMeter::new(request, self.clone()) }
    }

    /// Streams open now.
    pub fn open_streams(&self) -> usize {
        self.open_streams.load(Ordering::Relaxed)
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes of bodies and upgraded connections that went to clients, and that came from them.
    pub fn bytes(&self) -> (u64, u64) {
        (self.bytes_to_clients.load(Ordering::Relaxed), self.bytes_from_clients.load(Ordering::Relaxed))
    }

    /// Counts bytes that go to a client.
    pub fn count_to_client(&self, bytes: u64) {
        self.bytes_to_clients.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that come from a client.
    pub fn count_from_client(&self, bytes: u64) {
        self.bytes_from_clients.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl OpenStream {
    /// What counts the bytes.
    pub fn meter(&self) -> &StreamMeter {
        &self.meter
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.agent.open_streams.fetch_sub(1, Ordering::Relaxed);
    }
}
