//! The tables: their columns, and the rows that they make of what the stub says.

use std::cmp::Ordering;
use std::time::Duration;

use super::app::{Snapshot, Sorting};
use crate::cli::units::{age, bytes, duration, milliseconds};
use crate::stub::activity::{Incident, Target};
use crate::stub::admin::{AgentStatus, ClusterStatus, RequestStatus};

/// A table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Clusters.
    Clusters,
    /// Agents.
    Agents,
    /// Open requests.
    Requests,
    /// Denials and errors.
    Incidents,
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its title.
    pub title: &'static str,
    /// Whether numbers stand in it, which the eye compares from the right.
    pub numeric: bool,
    /// How wide it is at least, in cells.
    pub width: u16,
}

/// A row of a table: a cell for each column.
#[derive(Debug)]
pub struct Row {
    /// The cells.
    pub cells: Vec<Cell>,
    /// How it is to be taken.
    pub tone: Tone,
}

/// A cell of a table.
#[derive(Debug)]
pub struct Cell {
    /// What stands in it.
    pub text: String,
    /// What it is sorted by, if not by its text.
    number: Option<f64>,
}

/// How something is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// Worth a look.
    Warning,
    /// Not as it should be.
    Bad,
}

const fn text(title: &'static str, width: u16) -> Column {
    Column { title, numeric: false, width }
}

const fn number(title: &'static str, width: u16) -> Column {
    Column { title, numeric: true, width }
}

// What matters most comes first: what does not fit a narrow terminal is left out.
const CLUSTERS: [Column; 7] = [
    text("CLUSTER", 16),
    text("STATE", 10),
    number("AGENTS", 7),
    number("OPEN", 6),
    number("REQUESTS", 9),
    number("CARRIED", 11),
    text("API SERVER (UID OF KUBE-SYSTEM)", 36),
];

const AGENTS: [Column; 13] = [
    text("AGENT", 18),
    text("CLUSTER", 12),
    text("STATE", 13),
    text("CARRIER", 11),
    number("RTT", 9),
    number("LOSS", 6),
    number("MOVED", 5),
    number("OPEN", 5),
    number("REQUESTS", 9),
    number("CARRIED", 11),
    number("API SERVER", 10),
    number("CONNECTED", 9),
    text("ADDRESS", 21),
];

const REQUESTS: [Column; 9] = [
    text("USER", 16),
    text("VERB", 7),
    text("RESOURCE", 16),
    text("OBJECT", 20),
    number("FOR", 8),
    number("TO CLIENT", 11),
    number("FROM CLIENT", 11),
    text("CLUSTER", 12),
    text("AGENT", 18),
];

const INCIDENTS: [Column; 9] = [
    number("AT", 8),
    text("WHAT", 20),
    text("USER", 16),
    text("VERB", 7),
    text("RESOURCE", 16),
    text("CLUSTER", 12),
    number("CODE", 4),
    number("TIMES", 5),
    text("WHY", 30),
];

impl View {
    /// All of them, as they are shown.
    pub const ALL: [Self; 4] = [Self::Clusters, Self::Agents, Self::Requests, Self::Incidents];

    /// Its name.
    pub fn title(self) -> &'static str {
        match self {
            Self::Clusters => "Clusters",
            Self::Agents => "Agents",
            Self::Requests => "Requests",
            Self::Incidents => "Denials and errors",
        }
    }

    /// Its columns.
    pub fn columns(self) -> &'static [Column] {
        match self {
            Self::Clusters => &CLUSTERS,
            Self::Agents => &AGENTS,
            Self::Requests => &REQUESTS,
            Self::Incidents => &INCIDENTS,
        }
    }

    /// How it is sorted at first: by name, or what began or happened last.
    pub fn sorting(self) -> Sorting {
        match self {
            Self::Clusters | Self::Agents => Sorting { column: 0, descending: false },
            Self::Requests => Sorting { column: 4, descending: true },
            Self::Incidents => Sorting { column: 0, descending: true },
        }
    }

    /// Its rows.
    pub fn rows(self, snapshot: &Snapshot) -> Vec<Row> {
        let Snapshot { status, requests, incidents, .. } = snapshot;
        let clusters = &status.clusters;
        match self {
            Self::Clusters => clusters.iter().map(cluster).collect(),
            Self::Agents => {
                clusters.iter().flat_map(|cluster| cluster.agents.iter().map(|each| agent(&cluster.id, each))).collect()
            }
            Self::Requests => requests.requests.iter().map(request).collect(),
            Self::Incidents => incidents.iter().map(incident).collect(),
        }
    }
}

impl Row {
    /// Whether a word, in lower case, stands in it.
    pub fn contains(&self, word: &str) -> bool {
        self.cells.iter().any(|cell| cell.text.to_lowercase().contains(word))
    }

    /// Which of the two comes first by that column.
    pub fn compare(&self, other: &Self, column: usize) -> Ordering {
        match (self.cells.get(column), other.cells.get(column)) {
            (Some(Cell { number: Some(a), .. }), Some(Cell { number: Some(b), .. })) => a.total_cmp(b),
            (Some(a), Some(b)) => a.text.cmp(&b.text),
            (a, b) => a.is_some().cmp(&b.is_some()),
        }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, number: None }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl Cell {
    fn of(number: f64, text: impl FnOnce(f64) -> String) -> Self {
        Self { text: text(number), number: Some(number) }
    }

    fn count(number: u64) -> Self {
        Self::of(number as f64, |_| number.to_string())
    }
}

fn cluster(cluster: &ClusterStatus) -> Row {
    let agents = &cluster.agents;
    let healthy = agents.iter().filter(|agent| tone_of(agent) == Tone::Good).count();
    let (state, tone) = match (agents.len(), healthy) {
        (0, _) => ("no agent", Tone::Bad),
        (_, 0) => ("down", Tone::Bad),
        (all, healthy) if all == healthy => ("healthy", Tone::Good),
        _ => ("degraded", Tone::Warning),
    };
    let sum = |of: fn(&AgentStatus) -> u64| agents.iter().map(of).sum::<u64>();
    let cells = vec![
        cluster.id.as_str().into(),
        state.into(),
        Cell::count(agents.len() as u64),
        Cell::count(sum(|agent| agent.open_streams as u64)),
        Cell::count(sum(|agent| agent.requests)),
        Cell::of(sum(carried) as f64, bytes),
        cluster.api_server.as_deref().unwrap_or("-").into(),
    ];
    Row { cells, tone }
}

fn agent(cluster: &str, agent: &AgentStatus) -> Row {
    let state = match agent.suspect_for_ms {
        Some(since) => format!("{} {}", agent.state, duration(Duration::from_secs_f64(since / 1000.0))),
        None => agent.state.clone(),
    };
    let upstream = match agent.upstream_error.is_empty() {
        true => Cell::of(agent.upstream_latency_ms, milliseconds),
        false => Cell { text: agent.upstream_error.clone(), number: Some(f64::INFINITY) },
    };
    let connected = age(agent.connected_since);
    let cells = vec![
        agent.name.as_str().into(),
        cluster.into(),
        state.into(),
        if agent.resumed_with_0rtt { format!("{}, 0-RTT", agent.carrier) } else { agent.carrier.clone() }.into(),
        Cell::of(agent.rtt_ms, milliseconds),
        Cell::of(
            agent.loss.unwrap_or(-1.0),
            |loss| if loss < 0.0 { "-".to_owned() } else { format!("{:.1}%", loss * 100.0) },
        ),
        Cell::count(agent.path_changes),
        Cell::count(agent.open_streams as u64),
        Cell::count(agent.requests),
        Cell::of(carried(agent) as f64, bytes),
        upstream,
        Cell::of(connected.as_secs_f64(), |_| duration(connected)),
        agent.address.as_str().into(),
    ];
    Row { cells, tone: tone_of(agent) }
}

fn tone_of(agent: &AgentStatus) -> Tone {
    match agent.state.as_str() {
        "healthy" => Tone::Good,
        "late" | "draining" | "waiting" => Tone::Warning,
        _ => Tone::Bad,
    }
}

fn carried(agent: &AgentStatus) -> u64 {
    agent.bytes_to_clients + agent.bytes_from_clients
}

fn request(request: &RequestStatus) -> Row {
    let Target { verb, resource, .. } = &request.target;
    let age = Duration::try_from_secs_f64(request.duration_ms / 1000.0).unwrap_or_default();
    let cells = vec![
        person(&request.user, request.requested_user.as_deref()),
        verb.as_str().into(),
        resource.as_str().into(),
        object(&request.target).into(),
        Cell::of(age.as_secs_f64(), |_| duration(age)),
        Cell::of(request.bytes_to_client as f64, bytes),
        Cell::of(request.bytes_from_client as f64, bytes),
        request.cluster.as_str().into(),
        request.agent.as_deref().unwrap_or("waiting").into(),
    ];
    Row { cells, tone: if request.agent.is_some() { Tone::Good } else { Tone::Warning } }
}

fn incident(incident: &Incident) -> Row {
    let user = if incident.user.is_empty() { "nobody known" } else { &incident.user };
    let cells = vec![
        Cell { text: incident.at.strftime("%H:%M:%S").to_string(), number: Some(incident.at.as_millisecond() as f64) },
        incident.kind.to_string().into(),
        person(user, incident.requested_user.as_deref()),
        incident.target.verb.as_str().into(),
        incident.target.resource.as_str().into(),
        incident.cluster.as_str().into(),
        Cell::count(incident.code.into()),
        Cell::count(incident.count),
        incident.message.as_str().into(),
    ];
    Row { cells, tone: if incident.code >= 500 { Tone::Bad } else { Tone::Warning } }
}

fn person(user: &str, requested: Option<&str>) -> Cell {
    match requested {
        Some(requested) => format!("{user} as {requested}").into(),
        None => user.into(),
    }
}

fn object(target: &Target) -> String {
    match (target.namespace.as_str(), target.name.as_str()) {
        ("", "") => "-".to_owned(),
        ("", name) => name.to_owned(),
        (namespace, "") => format!("{namespace}/*"),
        (namespace, name) => format!("{namespace}/{name}"),
    }
}
