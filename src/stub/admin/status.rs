//! What a stub is doing.

use std::fmt;
use std::time::{Instant, SystemTime};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::stub::election::Leadership;
use crate::stub::registry::{AgentLink, Fitness};
use crate::stub::shared::Shared;
use crate::wire::{AuthMode, ClusterId};

/// What a stub is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StubStatus {
    /// The stub's name.
    pub stub: String,
    /// The version of its software.
    pub version: String,
    /// Since when it runs.
    pub started_at: Timestamp,
    /// Whether it takes new requests.
    pub readiness: Readiness,
    /// Who leads, if there is an election.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub election: Option<ElectionStatus>,
    /// Every known cluster, sorted by id.
    pub clusters: Vec<ClusterStatus>,
}

/// Whether a stub takes new requests, and why not: what `/readyz` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Readiness {
    /// It does.
    Ready,
    /// Another stub leads.
    StandingBy,
    /// It is about to stop. What still comes is served, until clients have noticed.
    ShuttingDown,
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::StandingBy => "standing by",
            Self::ShuttingDown => "shutting down",
        })
    }
}

/// An election.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ElectionStatus {
    /// Whether this stub leads.
    pub leads: bool,
    /// Who leads, as far as this stub knows: the stub's name and a number that its process has chosen.
    pub leader: Option<String>,
    /// Since when, by the leader's clock, if that is known.
    #[serde(default)]
    pub since: Option<Timestamp>,
}

/// One cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// Its id.
    pub id: String,
    /// Which API server serves it: the UID of the namespace kube-system there. `None` while no agent has told it.
    pub api_server: Option<String>,
    /// Its connected agents, sorted by name.
    pub agents: Vec<AgentStatus>,
}

/// One connected agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// Its name.
    pub name: String,
    /// Where it connects from.
    pub address: String,
    /// `quic` or `tcp`.
    pub carrier: String,
    /// Its software.
    pub software: String,
    /// `impersonate` or `passthrough`.
    pub auth_mode: String,
    /// `healthy`, `upstream down`, `late` (with its reports), `suspect` (it does not answer), `draining`, or `waiting`
    /// (it serves another API server than the cluster's other agents).
    pub state: String,
    /// For how long it has not answered, in milliseconds, if it is suspect.
    pub suspect_for_ms: Option<f64>,
    /// Which API server it serves: the UID of the namespace kube-system there, if it has told that.
    pub api_server: Option<String>,
    /// What is wrong with its API server.
    pub upstream_error: String,
    /// Round trip from the agent to its API server, in milliseconds.
    pub upstream_latency_ms: f64,
    /// Since when it is connected.
    pub connected_since: Timestamp,
    /// Whether it resumed a session with 0-RTT when it connected.
    pub resumed_with_0rtt: bool,
    /// Round trip between stub and agent, in milliseconds.
    pub rtt_ms: f64,
    /// Packets lost per packet sent, from the stub to the agent, since it connected: 0 to 1. Unknown over TCP.
    pub loss: Option<f64>,
    /// How often it was seen at another address since it connected.
    pub path_changes: u64,
    /// Requests open now.
    pub open_streams: usize,
    /// Requests since it connected.
    pub requests: u64,
    /// Bytes of answers since it connected.
    pub bytes_to_clients: u64,
    /// Bytes on upgraded connections from clients since it connected.
    pub bytes_from_clients: u64,
}

impl Readiness {
    pub(super) fn of(shared: &Shared) -> Self {
        if shared.drain.is_announced() {
            Self::ShuttingDown
        } else if shared.leadership().is_some_and(|leadership| !leadership.leads) {
            Self::StandingBy
        } else {
            Self::Ready
        }
    }
}

/// What the stub is doing now: with every cluster, or only with one.
pub(super) async fn status_of(shared: &Shared, only: Option<&ClusterId>) -> StubStatus {
    let mut clusters = shared.clusters.listed().await;
    let mut links = shared.registry.all();
    links.sort_by(|a, b| a.identity.agent.cmp(&b.identity.agent));
    clusters.extend(links.iter().map(|link| link.identity.cluster.clone()));
    clusters.sort();
    clusters.dedup();
    clusters.retain(|id| only.is_none_or(|only| only == id));
    let clusters = clusters.into_iter().map(|id| ClusterStatus {
        api_server: shared.registry.api_server(&id).map(|uid| uid.to_string()),
        agents: links.iter().filter(|link| link.identity.cluster == id).map(|link| agent_status(link)).collect(),
        id: id.to_string(),
    });
    StubStatus {
        stub: shared.config.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: timestamp(shared.started_at),
        readiness: Readiness::of(shared),
        election: shared.leadership().map(|Leadership { leads, leader, since }| ElectionStatus {
            leads,
            leader,
            since,
        }),
        clusters: clusters.collect(),
    }
}

fn agent_status(link: &AgentLink) -> AgentStatus {
    let path = link.connection.path();
    let report = link.latest_report();
    let (bytes_to_clients, bytes_from_clients) = link.traffic().bytes();
    let state = match link.fitness(Instant::now()) {
        Some(Fitness::Healthy) => "healthy",
        Some(Fitness::UpstreamDown) => "upstream down",
        Some(Fitness::Late) => "late",
        Some(Fitness::Suspect) => "suspect",
        None if link.is_waiting() => "waiting",
        None => "draining",
    };
    AgentStatus {
        name: link.identity.agent.to_string(),
        address: link.connection.remote_address().to_string(),
        carrier: link.connection.carrier().to_string(),
        software: link.hello.software.clone(),
        auth_mode: match link.hello.auth_mode {
            AuthMode::Impersonate => "impersonate".to_owned(),
            AuthMode::PassThrough => "passthrough".to_owned(),
        },
        state: state.to_owned(),
        api_server: link.api_server().map(|uid| uid.to_string()),
        suspect_for_ms: link.suspect_since().map(|since| since.elapsed().as_secs_f64() * 1000.0),
        upstream_latency_ms: report.as_ref().map_or(0.0, |report| report.upstream_latency.as_secs_f64() * 1000.0),
        upstream_error: report.map(|report| report.upstream_error).unwrap_or_default(),
        connected_since: timestamp(link.connected_at),
        resumed_with_0rtt: link.is_resumed,
        rtt_ms: path.round_trip.as_secs_f64() * 1000.0,
        loss: path.lost_packets.zip(path.sent_packets).map(|(lost, sent)| lost as f64 / sent.max(1) as f64),
        path_changes: link.path_changes(),
        open_streams: link.traffic().open_streams(),
        requests: link.traffic().requests(),
        bytes_to_clients,
        bytes_from_clients,
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or(Timestamp::MAX)
}
