//! Which agents are connected, and which of them takes the next request.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::time::timeout_at;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::cluster::Cluster;
use super::meter::{Meter, StreamMeter};
use super::select::{AgentSelector, Candidate};
use crate::carrier::{Connection, PathState};
use crate::pki::AgentIdentity;
use crate::wire::{AgentName, ClusterId, ErrorCode, Hello, Report};

/// The agents that are connected now.
#[derive(Debug)]
pub struct Registry {
    /// Every cluster that has had an agent since the start.
    clusters: Mutex<HashMap<ClusterId, Cluster>>,
    /// How many agents all of them have.
    connected: AtomicUsize,
    selector: Arc<dyn AgentSelector>,
    available: Notify,
    started: Instant,
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
    /// Whether it resumed a session with 0-RTT.
    pub is_resumed: bool,
    /// Since when.
    pub connected_at: SystemTime,
    path: watch::Receiver<PathState>,
    path_changes: AtomicU64,
    leaving: CancellationToken,
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
    /// How often it has been asked to report at least.
    report_interval: Duration,
    /// After so long without a report it is late: three intervals, and of those that it has been asked for the longest, because an
    /// agent may not know that the interval can change.
    patience: Duration,
    report: Option<Report>,
    draining: bool,
    /// Whether it is draining because another connection has taken its place.
    set_aside: bool,
    /// Whether it waits until its API server is the cluster's.
    waiting: bool,
}

/// How fit an agent is for the next request, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fitness {
    /// It reports, and its API server answers.
    Healthy,
    /// It reports that its API server does not answer.
    UpstreamDown,
    /// It has not reported for a while, or not yet, although its connection answers.
    Late,
    /// Its connection does not answer: no request goes there until it does.
    Suspect,
}

/// What a new connection means for an older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Succession {
    /// Nothing: they are two agents.
    None,
    /// The agent's process has moved to the other carrier: requests that are open end where they are. Over QUIC they can
    /// wait there for a network that lets no UDP pass for the moment.
    Moved,
    /// The older one is dead, or somebody has copied the agent's key; either way two would not be one agent.
    Superseded,
}

/// Why no agent can take a request now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unavailable {
    /// None is connected that takes requests.
    NoAgent,
    /// The stub has just started, and no agent of the cluster has connected yet.
    NotYet,
    /// There are agents, and none of their connections answers; the one that answered last has not since then.
    AllSuspect(Instant),
}

/// How long after its start a stub waits for agents that it has not seen yet: they are on their way back.
const WARM_UP: Duration = Duration::from_secs(5);

impl Registry {
    /// One without agents, which `selector` chooses among.
    pub fn new(selector: Arc<dyn AgentSelector>) -> Self {
        Self {
            clusters: Mutex::default(),
            connected: AtomicUsize::new(0),
            selector,
            available: Notify::new(),
            started: Instant::now(),
        }
    }

    /// Adds an agent that has resumed a session and whose handshake is not complete; [`add`](Self::add) is to follow. What
    /// it has sent may have been held up on the way by somebody, so it replaces no connection that is there. It has not
    /// reported, and so gets requests only if no other agent can take them.
    pub fn add_early(&self, link: Arc<AgentLink>) {
        self.change(self.lock().entry(link.identity.cluster.clone()).or_default(), |cluster| cluster.add_early(link));
        self.available.notify_waiters();
    }

    /// Adds an agent. A connection that the same agent had before gives way to it: see [`Succession`].
    pub fn add(&self, link: Arc<AgentLink>) {
        let superseded =
            self.change(self.lock().entry(link.identity.cluster.clone()).or_default(), |cluster| cluster.add(link));
        for old in superseded {
            old.connection.close(ErrorCode::Superseded, "the same agent has connected again");
        }
        self.available.notify_waiters();
    }

    /// Notes what an agent tells of itself.
    pub fn report(&self, link: &AgentLink, report: Report) {
        let api_server = link.api_server();
        link.report(report);
        if link.api_server() != api_server {
            self.settle(&link.identity.cluster);
        }
    }

    /// Decides again which agents of `cluster` wait: see [`Cluster::settle`].
    pub fn settle(&self, cluster: &ClusterId) {
        if let Some(cluster) = self.lock().get_mut(cluster) {
            cluster.settle();
        }
        self.available.notify_waiters();
    }

    /// Has the agents of `cluster` asked often whether they answer again, as long as what is returned is held.
    fn wait_for_agents(&self, cluster: &ClusterId) -> Vec<impl Send + Sync + use<>> {
        let clusters = self.lock();
        let links = clusters.get(cluster).map(Cluster::links).unwrap_or_default();
        links.iter().filter_map(|link| link.connection.wait_for_peer()).collect()
    }

    /// Which API server serves `cluster`: the UID of its namespace kube-system. `None` while no agent has told it.
    pub fn api_server(&self, cluster: &ClusterId) -> Option<Arc<str>> {
        self.lock().get(cluster)?.api_server().cloned()
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
        let mut waiting = None;
        loop {
            // Made before looking, so that no change in between is missed.
            let changed = self.available.notified();
            let until = match self.choose(cluster, tried, Instant::now()) {
                Err(Unavailable::AllSuspect(_)) => {
                    waiting.get_or_insert_with(|| self.wait_for_agents(cluster));
                    deadline
                }
                Err(Unavailable::NotYet) => deadline.min((self.started + WARM_UP).into()),
                result => return result,
            };
            if timeout_at(until, changed).await.is_err() {
                return self.choose(cluster, tried, Instant::now());
            }
        }
    }

    /// Removes an agent, if it is still this connection of it.
    pub fn remove(&self, link: &Arc<AgentLink>) {
        // A cluster without agents stays known: its agents are gone, and not on their way back.
        if let Some(cluster) = self.lock().get_mut(&link.identity.cluster) {
            self.change(cluster, |cluster| cluster.remove(link));
        }
    }

    /// Whether this process of an agent is connected.
    pub fn has(&self, identity: &AgentIdentity, instance: u64) -> bool {
        let clusters = self.lock();
        let links = clusters.get(&identity.cluster).map(Cluster::links).unwrap_or_default();
        links.iter().any(|link| link.identity == *identity && link.hello.instance == instance)
    }

    /// How many agents are connected.
    pub fn len(&self) -> usize {
        self.connected.load(Ordering::Relaxed)
    }

    /// Every connected agent.
    pub fn all(&self) -> Vec<Arc<AgentLink>> {
        self.lock().values().flat_map(Cluster::links).cloned().collect()
    }

    /// The agent for the next request to `cluster`, other than those in `tried`: one of the fittest, as the selector chooses.
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
        let Some(links) = clusters.get(cluster).map(Cluster::links) else {
            let is_warming_up = now.saturating_duration_since(self.started) < WARM_UP;
            return Err(if is_warming_up { Unavailable::NotYet } else { Unavailable::NoAgent });
        };
        let usable = || {
            links
                .iter()
                .filter(|link| !tried.iter().any(|other| Arc::ptr_eq(other, link)))
                .filter_map(|link| link.fitness(now).map(|fitness| (fitness, link)))
        };
        let best = usable().map(|(fitness, _)| fitness).min().ok_or(Unavailable::NoAgent)?;
        if best == Fitness::Suspect {
            let since = usable().filter_map(|(_, link)| link.suspect_since()).max();
            return Err(Unavailable::AllSuspect(since.unwrap_or(now)));
        }
        let fittest: Vec<&Arc<AgentLink>> =
            usable().filter(|(fitness, _)| *fitness == best).map(|(_, link)| link).collect();
        let candidates: Vec<&dyn Candidate> = fittest.iter().map(|link| &***link as &dyn Candidate).collect();
        let chosen = fittest.get(self.selector.choose(cluster, &candidates)).or(fittest.last());
        chosen.map(|link| Arc::clone(link)).ok_or(Unavailable::NoAgent)
    }

    /// Changes which agents a cluster has.
    fn change<T>(&self, cluster: &mut Cluster, change: impl FnOnce(&mut Cluster) -> T) -> T {
        let before = cluster.links().len();
        let result = change(cluster);
        // What there are fewer of now wraps around, and so does the sum.
        self.connected.fetch_add(cluster.links().len().wrapping_sub(before), Ordering::Relaxed);
        result
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClusterId, Cluster>> {
        // Nothing that holds the lock leaves the map half changed, so a panic elsewhere does not spoil it.
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AgentLink {
    /// An agent that has just said hello and reports every `report_interval`.
    pub fn new(
        identity: AgentIdentity,
        hello: Hello,
        connection: Connection,
        report_interval: Duration,
        is_resumed: bool,
    ) -> Self {
        Self {
            identity,
            hello,
            path: connection.path_state(),
            connection,
            is_resumed,
            connected_at: SystemTime::now(),
            path_changes: AtomicU64::new(0),
            leaving: CancellationToken::new(),
            state: Mutex::new(LinkState {
                heard_at: Instant::now(),
                report_interval,
                patience: report_interval * 3,
                report: None,
                draining: false,
                set_aside: false,
                waiting: false,
            }),
            traffic: Arc::default(),
        }
    }

    /// Notes what the agent tells of itself. Tell the registry instead.
    fn report(&self, report: Report) {
        let mut state = self.state();
        state.heard_at = Instant::now();
        state.report = Some(report);
    }

    /// How often the agent has been asked to report at least.
    pub fn report_interval(&self) -> Duration {
        self.state().report_interval
    }

    /// Notes that the agent has been asked to report at another interval.
    pub fn report_every(&self, interval: Duration) {
        let mut state = self.state();
        state.report_interval = interval;
        state.patience = state.patience.max(interval * 3);
    }

    /// Notes that the agent takes no new requests, because it is about to stop.
    pub fn leave(&self) {
        // A connection that another one of the same agent has replaced is not an agent that stops.
        if !std::mem::replace(&mut self.state().draining, true) {
            self.leaving.cancel();
        }
    }

    /// Ready once the agent is about to stop.
    pub fn leaving(&self) -> WaitForCancellationFutureOwned {
        self.leaving.clone().cancelled_owned()
    }

    /// Notes that another connection of the same agent takes the new requests.
    pub fn set_aside(&self) {
        let mut state = self.state();
        state.draining = true;
        state.set_aside = true;
    }

    fn is_set_aside(&self) -> bool {
        self.state().set_aside
    }

    /// The UID of the namespace kube-system of its API server, if it has told that.
    pub fn api_server(&self) -> Option<Arc<str>> {
        self.state().report.as_ref()?.api_server.clone()
    }

    /// Notes whether it has to wait, because `other` than the cluster's is its API server.
    pub fn wait(&self, other: Option<Arc<str>>) {
        let before = std::mem::replace(&mut self.state().waiting, other.is_some());
        let AgentIdentity { cluster, agent } = &self.identity;
        match other {
            Some(api_server) if !before => tracing::warn!(
                %cluster,
                %agent,
                %api_server,
                "agent serves another API server than the cluster's other agents: it gets no requests while those are connected"
            ),
            None if before => tracing::info!(%cluster, %agent, "agent waits no longer"),
            _ => {}
        }
    }

    /// Whether it waits until its API server is the cluster's.
    pub fn is_waiting(&self) -> bool {
        self.state().waiting
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
        if state.draining || state.waiting {
            None
        } else if self.suspect_since().is_some() {
            Some(Fitness::Suspect)
        } else if now.saturating_duration_since(state.heard_at) > state.patience {
            Some(Fitness::Late)
        } else {
            match &state.report {
                // It says so within a moment; until then others do as well.
                None => Some(Fitness::Late),
                Some(report) if !report.upstream_healthy => Some(Fitness::UpstreamDown),
                Some(_) => Some(Fitness::Healthy),
            }
        }
    }

    /// What becomes of `older` when this connection comes.
    pub fn succeeds(&self, older: &Self) -> Succession {
        let other_carrier = older.connection.carrier() != self.connection.carrier();
        if older.identity.agent != self.identity.agent {
            Succession::None
        } else if older.hello.instance == self.hello.instance && (other_carrier || older.is_set_aside()) {
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

impl Candidate for AgentLink {
    fn name(&self) -> &AgentName {
        &self.identity.agent
    }

    fn open_streams(&self) -> usize {
        self.traffic.open_streams()
    }

    fn latency(&self) -> Duration {
        let upstream = self.state().report.as_ref().map_or(Duration::ZERO, |report| report.upstream_latency);
        self.connection.path().round_trip + upstream
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
