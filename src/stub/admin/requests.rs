//! The requests that are open now, as JSON.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::stub::activity::Target;
use crate::stub::open_requests::{Entry, OpenRequests};
use crate::wire::{AgentName, ClusterId};

/// The most requests that are listed.
pub const MAX_LIMIT: usize = 1000;

/// How many requests are listed where nobody says.
pub const DEFAULT_LIMIT: usize = 200;

/// The requests that are open now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestList {
    /// How many there are.
    pub total: usize,
    /// The newest of them, newest first.
    pub requests: Vec<RequestStatus>,
}

/// One open request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestStatus {
    /// A number that no other request of the stub's process has.
    pub id: u64,
    /// Its name in every log, the cluster's included.
    pub audit_id: String,
    /// Who makes it.
    pub user: String,
    /// In whose name (`kubectl --as`), if in another's.
    pub requested_user: Option<String>,
    /// Where it came from.
    pub source: String,
    /// The cluster it is for.
    pub cluster: String,
    /// The agent that carries it; `None` while it waits for an agent or an answer.
    pub agent: Option<String>,
    /// What it is about.
    #[serde(flatten)]
    pub target: Target,
    /// When it came.
    pub since: Timestamp,
    /// How long that is ago, in milliseconds.
    pub duration_ms: f64,
    /// Bytes that went to the client.
    pub bytes_to_client: u64,
    /// Bytes that came from the client.
    pub bytes_from_client: u64,
}

/// The open requests of a cluster or of all, up to `limit`.
pub(super) fn list(requests: &OpenRequests, cluster: Option<&ClusterId>, limit: usize) -> RequestList {
    let (total, newest) = requests.newest(cluster, limit.min(MAX_LIMIT));
    RequestList { total, requests: newest.iter().map(|entry| status(entry)).collect() }
}

fn status(entry: &Entry) -> RequestStatus {
    let (attributes, origin) = (entry.attributes(), entry.origin());
    RequestStatus {
        id: entry.id(),
        audit_id: origin.audit_id.clone(),
        user: attributes.user.user.clone(),
        requested_user: attributes.requested.as_ref().map(|identity| identity.user.clone()),
        source: origin.source.to_string(),
        cluster: attributes.cluster.to_string(),
        agent: entry.agent().map(AgentName::to_string),
        target: Target::of(&attributes.request),
        since: origin.received_at,
        duration_ms: origin.started.elapsed().as_secs_f64() * 1000.0,
        bytes_to_client: entry.meter().sent(),
        bytes_from_client: entry.meter().received(),
    }
}
