//! What is known of one request, and the places it is told to: the access log, the audit log, the metrics, and those who
//! watch.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::header::{HeaderMap, USER_AGENT};
use http::{Method, StatusCode};
use jiff::Timestamp;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::activity::Activity;
use super::audit::Trail;
use super::authorize::{Decision, OwnedAttributes};
use super::limits::RequestPlace;
use super::meter::Meter;
use super::metrics::Metrics;
use super::open_requests::{Ending, OpenRequest};
use super::span;
use crate::kube::{Status, without_secrets};
use crate::trace::{ActiveSpan, SpanKind, Tracer};
use crate::wire::{AgentName, ClusterId, Identity};

/// The longest `User-Agent` that is kept, in characters (`maxUserAgentLength` in `apiserver/pkg/audit/request.go`).
const MAX_USER_AGENT: usize = 1024;

/// The facts about a request as they become known. The end is told when the record is dropped, so no way out can forget
/// it.
#[derive(Debug)]
pub struct RequestRecord {
    facts: RequestFacts,
    trail: Trail,
    watchers: Watchers,
    /// Held for as long as the request goes on.
    place: Option<RequestPlace>,
    /// Held likewise, where a stop would not wait for the request otherwise.
    task: Option<TaskTrackerToken>,
}

/// Those who are told of every request.
#[derive(Debug, Clone, Default)]
pub struct Watchers {
    /// What counts for ever.
    pub metrics: Arc<Metrics>,
    /// What remembers the last minutes.
    pub activity: Arc<Activity>,
    /// What tells of spans.
    pub tracer: Tracer,
}

/// What is known of a request.
#[derive(Debug)]
pub struct RequestFacts {
    /// Its name in every log, the cluster's included.
    pub audit_id: String,
    /// When it came, by the clock.
    pub received_at: Timestamp,
    /// When it came, to measure how long it takes.
    pub started: Instant,
    /// Its method.
    pub method: Method,
    /// Path and query: as the cluster gets them once that is known, without the values that are secrets.
    pub uri: String,
    /// Where it came from.
    pub source: IpAddr,
    /// The client's software.
    pub user_agent: Option<String>,
    /// Who makes it.
    pub user: Option<Identity>,
    /// The cluster that it names, which may not exist.
    pub cluster: Option<ClusterId>,
    /// What it is about. Only requests to clusters that exist get so far.
    pub attributes: Option<Arc<OwnedAttributes>>,
    /// Whether it may be made.
    pub decision: Option<Decision>,
    /// Who passed it on to the API server.
    pub agent: Option<AgentName>,
    /// What it is answered with.
    pub answer: Option<GivenAnswer>,
    /// How much was carried.
    pub meter: Meter,
    /// How it ended.
    pub end: End,
    /// Its span, where somebody collects spans.
    pub span: Option<ActiveSpan>,
}

/// The head of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GivenAnswer {
    /// The cluster's.
    Passed(StatusCode),
    /// The stub's own.
    Own(Status),
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client went away, unless something else is noted.
    ClientGone,
    /// The client has got all of the answer.
    Complete,
    /// The answer broke off on the way to here.
    BrokenOff,
    /// It was broken off here, because the user has lost the right to it.
    Revoked,
    /// It was ended here, because the stub stops.
    Stopped,
    /// A watch was ended where its client resumes it elsewhere.
    HandedOver,
    /// A fault of the stub itself has ended it.
    Panicked,
}

impl RequestRecord {
    /// A request that has just come from `source`. Nothing is told to the audit log before [`RequestRecord::audit`].
    pub fn new<B>(request: &http::Request<B>, source: IpAddr, watchers: &Watchers) -> Self {
        let facts = RequestFacts {
            audit_id: new_audit_id(),
            received_at: Timestamp::now(),
            started: Instant::now(),
            method: request.method().clone(),
            uri: without_secrets(request.uri().path_and_query().map_or("/", |target| target.as_str())),
            source,
            user_agent: user_agent(request.headers()),
            user: None,
            cluster: None,
            attributes: None,
            decision: None,
            agent: None,
            answer: None,
            meter: Meter::default(),
            end: End::ClientGone,
            span: watchers.tracer.begin(SpanKind::Server, request.headers()),
        };
        Self { facts, trail: Trail::default(), watchers: watchers.clone(), place: None, task: None }
    }

    /// What is known so far.
    pub fn facts(&self) -> &RequestFacts {
        &self.facts
    }

    /// Where in the audit log it is told.
    pub fn audit(&mut self, trail: Trail) {
        self.trail = trail;
    }

    /// Who makes it.
    pub fn set_user(&mut self, identity: &Identity) {
        self.facts.user = Some(identity.clone());
    }

    /// The cluster that it names, and its path and query there.
    pub fn set_target(&mut self, cluster: &ClusterId, target: &str) {
        self.facts.cluster = Some(cluster.clone());
        self.facts.uri = without_secrets(target);
    }

    /// What it is about. It is told to the audit log.
    ///
    /// # Errors
    /// The audit log takes nothing at the moment, and may lose nothing.
    pub async fn understood(&mut self, open: &OpenRequest) -> Result<(), Status> {
        self.facts.meter = open.meter().clone();
        self.facts.attributes = Some(open.attributes().clone());
        self.trail.received(&self.facts).await
    }

    /// It takes a place among those that its user and its cluster may have, and gives it back at its end.
    pub fn admitted(&mut self, place: RequestPlace) {
        self.place = Some(place);
    }

    /// A stop waits for its end.
    pub fn waited_for(&mut self, task: TaskTrackerToken) {
        self.task = Some(task);
    }

    /// Whether it may be made.
    pub fn decided(&mut self, decision: Decision) {
        self.facts.decision = Some(decision);
    }

    /// The head of the answer, and which agent it comes from. Of a long-running request it is told to the audit log.
    pub fn answered(&mut self, answer: GivenAnswer, agent: Option<AgentName>) {
        self.facts.answer = Some(answer);
        self.facts.agent = agent;
        let Watchers { metrics, activity, .. } = &self.watchers;
        metrics.answered(&self.facts);
        activity.answered(&self.facts, metrics);
        self.trail.response_started(&self.facts);
    }

    /// The answer is whole. That does not change what the end of a request was that had to end.
    pub fn complete(&mut self) {
        if !matches!(self.facts.end, End::Revoked | End::Stopped) {
            self.facts.end = End::Complete;
        }
    }

    /// It had to end.
    pub fn ended_by(&mut self, ending: &Ending) {
        self.facts.end = match ending {
            Ending::Revoked(_) => End::Revoked,
            Ending::Stopping => End::Stopped,
        };
    }

    /// It is a watch, and was ended between two events.
    pub fn handed_over(&mut self) {
        self.facts.end = End::HandedOver;
    }

    /// The answer breaks off.
    pub fn broken_off(&mut self, why: &dyn std::fmt::Display) {
        self.facts.end = End::BrokenOff;
        let audit_id = &self.facts.audit_id;
        tracing::warn!(%audit_id, "an answer broke off, the client's transfer is aborted: {why}");
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.facts.end = End::Panicked;
        }
        self.facts.log();
        self.trail.complete(&self.facts);
        self.watchers.activity.ended(&self.facts);
        span::describe(&mut self.facts);
    }
}

impl RequestFacts {
    /// The line in the access log. It has the path without the query, in which commands stand.
    fn log(&self) {
        let requested = self.attributes.as_ref().and_then(|attributes| attributes.requested.as_ref());
        tracing::info!(
            target: "qtunnel::access",
            audit_id = %self.audit_id,
            user = self.user.as_ref().map_or("", |identity| &identity.user),
            requested_user = requested.map_or("", |identity| &identity.user),
            cluster = self.cluster.as_ref().map_or("", ClusterId::as_str),
            method = %self.method,
            path = self.uri.split('?').next().unwrap_or_default(),
            status = self.code().map_or(0, |code| code.as_u16()),
            bytes = self.meter.sent(),
            milliseconds = self.started.elapsed().as_millis() as u64,
            end = self.end.as_str(),
            "request"
        );
    }

    /// The status code of the answer.
    pub fn code(&self) -> Option<StatusCode> {
        match self.answer.as_ref()? {
            GivenAnswer::Passed(code) => Some(*code),
            GivenAnswer::Own(status) => Some(status.code()),
        }
    }
}

impl End {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientGone => "client gone",
            Self::Complete => "complete",
            Self::BrokenOff => "broken off",
            Self::Revoked => "revoked",
            Self::Stopped => "stopped",
            Self::HandedOver => "handed over",
            Self::Panicked => "panicked",
        }
    }
}

fn user_agent(headers: &HeaderMap) -> Option<String> {
    const CUT: &str = "...TRUNCATED";
    let text = String::from_utf8_lossy(headers.get(USER_AGENT)?.as_bytes()).into_owned();
    Some(match text.char_indices().nth(MAX_USER_AGENT) {
        Some((end, _)) => text.split_at(end).0.to_owned() + CUT,
        None => text,
    })
}

pub fn new_audit_id() -> String {
    // The form of a UUID of version 4 (RFC 9562, section 5.4), like the API server's own.
    let random = rand::random::<u128>();
    let id = (random & !(0xf << 76) & !(0b11 << 62)) | (0x4 << 76) | (0b10 << 62);
    let hex = format!("{id:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_user_agent_is_cut_as_the_api_server_does() {
        let mut headers = HeaderMap::new();
        assert_eq!(user_agent(&headers), None);
        headers.insert(USER_AGENT, "kubectl/v1.33".parse().unwrap());
        assert_eq!(user_agent(&headers).unwrap(), "kubectl/v1.33");
        headers.insert(USER_AGENT, "a".repeat(2000).parse().unwrap());
        assert_eq!(user_agent(&headers).unwrap(), format!("{}...TRUNCATED", "a".repeat(1024)));
    }
}
