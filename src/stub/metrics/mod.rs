//! What the stub counts, for Prometheus.
//!
//! Labels are bounded: a cluster appears once it is known to exist, verbs are a fixed set, and agents are those that are
//! connected.

mod labels;
mod snapshot;

use std::fmt;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

pub use snapshot::Counted;

use super::admin::StubStatus;
use super::limits::Limit;
use super::meter::ClusterBytes;
use super::record::{GivenAnswer, RequestFacts};
use super::registry::AgentLink;
use crate::kube::RequestInfo;
use crate::wire::ClusterId;
use labels::{
    BytesLabels, ClusterLabel, CodeLabel, ConnectionLabels, LatencyLabels, LimitLabel, ReasonLabel, RequestLabels,
};

/// What is counted while the stub runs.
#[derive(Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    refused: Family<CodeLabel, Counter>,
    latency: Family<LatencyLabels, Histogram, fn() -> Histogram>,
    bytes: Family<BytesLabels, Counter>,
    retries: Family<ClusterLabel, Counter>,
    rejected_heads: Family<ReasonLabel, Counter>,
    path_changes: Family<ClusterLabel, Counter>,
    limited: Family<LimitLabel, Counter>,
    /// Connection attempts over QUIC that had to prove their address first.
    pub address_proofs: Counter,
    retries_refused: Family<ClusterLabel, Counter>,
    connections: Family<ConnectionLabels, Counter>,
}

/// Why the head of a request was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectedHead {
    /// It is not HTTP.
    Malformed,
    /// It is longer than a head may be.
    TooLarge,
    /// It did not come in time.
    TooSlow,
}

impl RejectedHead {
    const ALL: [Self; 3] = [Self::Malformed, Self::TooLarge, Self::TooSlow];

    /// What an error of an HTTP connection says of the head; `None` where the error is about something else.
    pub fn of(error: &hyper::Error) -> Option<Self> {
        if error.is_parse_too_large() {
            Some(Self::TooLarge)
        } else if error.is_parse() {
            Some(Self::Malformed)
        } else {
            error.is_timeout().then_some(Self::TooSlow)
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
            Self::TooSlow => "too_slow",
        }
    }
}

impl Default for Metrics {
    /// Nothing counted yet. What can be told beforehand is shown with 0: Prometheus sees no increase in what appears as 1.
    fn default() -> Self {
        let metrics = Self {
            requests: Family::default(),
            refused: Family::default(),
            rejected_heads: Family::default(),
            latency: Family::new_with_constructor(latency_histogram),
            bytes: Family::default(),
            retries: Family::default(),
            path_changes: Family::default(),
            limited: Family::default(),
            address_proofs: Counter::default(),
            retries_refused: Family::default(),
            connections: Family::default(),
        };
        for reason in RejectedHead::ALL {
            drop(metrics.rejected_heads.get_or_create(&reason.into()));
        }
        for limit in Limit::ALL {
            drop(metrics.limited.get_or_create(&limit.into()));
        }
        metrics
    }
}

impl From<RejectedHead> for ReasonLabel {
    fn from(reason: RejectedHead) -> Self {
        Self { reason: reason.as_str() }
    }
}

impl From<Limit> for LimitLabel {
    fn from(limit: Limit) -> Self {
        Self { limit: limit.name() }
    }
}

impl Metrics {
    /// Counts an answer whose head goes to the client.
    pub fn answered(&self, facts: &RequestFacts) {
        let Some(code) = facts.code().map(|code| u32::from(code.as_u16())) else { return };
        if matches!(facts.answer, Some(GivenAnswer::Own(_))) {
            self.refused.get_or_create(&CodeLabel { code }).inc();
        }
        let Some(attributes) = &facts.attributes else { return };
        let (cluster, verb) = (attributes.cluster.clone(), verb_class(&attributes.request));
        self.requests.get_or_create(&RequestLabels { cluster: cluster.clone(), verb, code }).inc();
        self.latency.get_or_create(&LatencyLabels { cluster, verb }).observe(facts.started.elapsed().as_secs_f64());
    }

    /// The counters of bytes of a cluster that is known.
    pub fn bytes(&self, cluster: &ClusterId) -> ClusterBytes {
        let counter = |direction| self.bytes.get_or_create_owned(&BytesLabels { cluster: cluster.clone(), direction });
        ClusterBytes { sent: counter("to_client"), received: counter("from_client") }
    }

    /// The counter of a cluster's requests that were tried at another agent.
    pub fn retries(&self, cluster: &ClusterId) -> Counter {
        self.retries.get_or_create_owned(&ClusterLabel { cluster: cluster.clone() })
    }

    /// Counts an agent of a cluster that is seen at another address than before.
    pub fn path_changed(&self, cluster: &ClusterId) {
        self.path_changes.get_or_create(&ClusterLabel { cluster: cluster.clone() }).inc();
    }

    /// Counts a request head that never became a request.
    pub fn head_rejected(&self, reason: RejectedHead) {
        self.rejected_heads.get_or_create(&reason.into()).inc();
    }

    /// Counts what was refused because of a limit.
    pub fn limited(&self, limit: Limit) {
        self.limited.get_or_create(&limit.into()).inc();
    }

    /// The counter of a cluster's requests that were not tried again because too many had been.
    pub fn retries_refused(&self, cluster: &ClusterId) -> Counter {
        self.retries_refused.get_or_create_owned(&ClusterLabel { cluster: cluster.clone() })
    }

    /// Counts a connection that has become an agent's. From then on everything about its cluster is shown.
    pub fn agent_connected(&self, link: &AgentLink) {
        let label = ClusterLabel { cluster: link.identity.cluster.clone() };
        for family in [&self.retries, &self.retries_refused, &self.path_changes] {
            drop(family.get_or_create(&label));
        }
        let carrier = link.connection.carrier().to_string();
        let handshake = if link.is_resumed { "0-rtt" } else { "complete" };
        self.connections.get_or_create(&ConnectionLabels { carrier, handshake }).inc();
    }

    /// Everything in the text format of OpenMetrics, with what `status` and `counted` say.
    pub fn text(&self, status: &StubStatus, counted: Counted) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("qtunnel");
        self.register(&mut registry);
        snapshot::register(&mut registry, status, counted);
        let mut text = String::new();
        text::encode(&mut text, &registry)?;
        Ok(text)
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "requests",
            "Requests to known clusters by verb and code of the answer's head",
            self.requests.clone(),
        );
        registry.register(
            "requests_refused",
            "Answers that the stub gave by itself, without the cluster: 401, 403, 421, 400 and the like",
            self.refused.clone(),
        );
        registry.register_with_unit(
            "response_latency",
            "Time from a request's arrival to the head of its answer",
            Unit::Seconds,
            self.latency.clone(),
        );
        registry.register_with_unit(
            "client_traffic",
            "Bytes of bodies and upgraded connections, counted as they pass",
            Unit::Bytes,
            self.bytes.clone(),
        );
        registry.register(
            "limited",
            "Connections, requests and bodies that were refused because of a limit, by the limit's name in the settings",
            self.limited.clone(),
        );
        registry.register(
            "address_proofs",
            "Connection attempts over QUIC that had to prove their address first",
            self.address_proofs.clone(),
        );
        registry.register(
            "agent_connections",
            "Connections that became an agent's, by whether it spoke before the handshake was complete (0-RTT)",
            self.connections.clone(),
        );
        registry.register("dispatch_retries", "Requests that were tried at another agent", self.retries.clone());
        let help = "Request heads over HTTP/1.1 that never became a request: malformed, too large, too slow";
        registry.register("rejected_heads", help, self.rejected_heads.clone());
        let help = "Times that a connected agent was seen at another address than before";
        registry.register("agent_path_changes", help, self.path_changes.clone());
        registry.register(
            "dispatch_retries_refused",
            "Requests that were not tried at another agent because too many had been",
            self.retries_refused.clone(),
        );
    }
}

/// From 1 ms to 33 s.
fn latency_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

/// The verb of a request, or a word for what has none of its own.
fn verb_class(request: &RequestInfo) -> &'static str {
    if !request.is_resource_request {
        return "path";
    }
    if matches!(request.subresource.as_str(), "exec" | "attach" | "portforward") {
        return "connect";
    }
    let verbs = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "proxy"];
    verbs.into_iter().find(|verb| *verb == request.verb).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::stub::admin::{ElectionStatus, Readiness};
    use crate::stub::reload::ReloadStatus;

    fn status() -> StubStatus {
        StubStatus {
            stub: "s".to_owned(),
            version: "1.2.3".to_owned(),
            started_at: Timestamp::UNIX_EPOCH,
            readiness: Readiness::StandingBy,
            election: Some(ElectionStatus { leads: false, leader: None, since: None }),
            clusters: Vec::new(),
        }
    }

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::default();
        let bytes = metrics.bytes(&"eu".parse().unwrap());
        bytes.sent.inc_by(5);
        metrics.retries(&"eu".parse().unwrap()).inc();
        let files = vec![ReloadStatus { name: "token", reloads: 2, failures: 1, last_success: 1_700_000_000 }];
        let counted = Counted { audit_events_dropped: 3, policy: Some((7, 1)), files, ..Counted::default() };
        let text = metrics.text(&status(), counted).unwrap();
        for line in [
            "qtunnel_client_traffic_bytes_total{cluster=\"eu\",direction=\"to_client\"} 5",
            "qtunnel_client_traffic_bytes_total{cluster=\"eu\",direction=\"from_client\"} 0",
            "qtunnel_dispatch_retries_total{cluster=\"eu\"} 1",
            "qtunnel_audit_events_dropped_total 3",
            "qtunnel_policy_rules 7",
            "qtunnel_config_reloads_total{file=\"token\",result=\"success\"} 2",
            "qtunnel_config_reloads_total{file=\"token\",result=\"failure\"} 1",
            "qtunnel_config_last_reload_success_timestamp_seconds{file=\"token\"} 1700000000",
            "qtunnel_policy_reload_failures_total 1",
            "qtunnel_ready 0",
            "qtunnel_leads 0",
            "qtunnel_build_info{version=\"1.2.3\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn verbs_are_a_fixed_set() {
        let request = |verb: &str, subresource: &str| RequestInfo {
            is_resource_request: true,
            verb: verb.to_owned(),
            subresource: subresource.to_owned(),
            ..RequestInfo::default()
        };
        assert_eq!(verb_class(&request("list", "")), "list");
        assert_eq!(verb_class(&request("get", "exec")), "connect");
        assert_eq!(verb_class(&request("x", "")), "other");
        assert_eq!(verb_class(&RequestInfo::default()), "path");
    }
}
