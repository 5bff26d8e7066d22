//! What the stub counts, for Prometheus.
//!
//! Labels are bounded: a cluster appears once it is known to exist, verbs are a fixed set, and agents are those that are
//! connected.

use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::admin::{AgentStatus, StubStatus};
use super::meter::ClusterBytes;
use super::record::{GivenAnswer, RequestFacts};
use super::registry::AgentLink;
use crate::kube::RequestInfo;
use crate::wire::ClusterId;

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

/// What other parts of the stub count, as it is now.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counted {
    /// Audit events that were lost.
    pub audit_events_dropped: u64,
    /// Times that the audit sink failed.
    pub audit_failures: u64,
    /// Spans that were lost.
    pub spans_dropped: u64,
    /// The rules in force, and how often the policy file was bad; `None` without a policy file.
    pub policy: Option<(usize, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    cluster: ClusterId,
    verb: &'static str,
    code: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LatencyLabels {
    cluster: ClusterId,
    verb: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BytesLabels {
    cluster: ClusterId,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClusterLabel {
    cluster: ClusterId,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AgentsLabel {
    cluster: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AgentLabels {
    cluster: String,
    agent: String,
    carrier: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConnectionLabels {
    carrier: String,
    handshake: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: String,
}

/// Labels of what is counted for each request have the id itself, which costs nothing to clone.
impl EncodeLabelValue for ClusterId {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}

/// A gauge that takes fractions.
type Fraction = Gauge<f64, AtomicU64>;

impl Default for Metrics {
    /// Nothing counted yet.
    fn default() -> Self {
        Self {
            requests: Family::default(),
            refused: Family::default(),
            rejected_heads: Family::default(),
            latency: Family::new_with_constructor(latency_histogram),
            bytes: Family::default(),
            retries: Family::default(),
            path_changes: Family::default(),
            retries_refused: Family::default(),
            connections: Family::default(),
        }
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
        self.rejected_heads.get_or_create(&ReasonLabel { reason: reason.as_str() }).inc();
    }

    /// The counter of a cluster's requests that were not tried again because too many had been.
    pub fn retries_refused(&self, cluster: &ClusterId) -> Counter {
        self.retries_refused.get_or_create_owned(&ClusterLabel { cluster: cluster.clone() })
    }

    /// Counts a connection that has become an agent's.
    pub fn agent_connected(&self, link: &AgentLink) {
        let carrier = link.connection.carrier().to_string();
        let handshake = if link.is_early { "0-rtt" } else { "complete" };
        self.connections.get_or_create(&ConnectionLabels { carrier, handshake }).inc();
    }

    /// Everything in the text format of OpenMetrics, with what `status` and `counted` say.
    pub fn text(&self, status: &StubStatus, counted: Counted) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("qtunnel");
        self.register(&mut registry);
        register_counted(&mut registry, counted);
        register_agents(&mut registry, status);
        let build: Family<BuildLabels, Gauge> = Family::default();
        build.get_or_create(&BuildLabels { version: status.version.clone() }).set(1);
        registry.register("build_info", "The running version", build);
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

fn register_counted(registry: &mut Registry, counted: Counted) {
    let counter = |value: u64| {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        counter
    };
    let Counted { audit_events_dropped, audit_failures, spans_dropped, policy } = counted;
    registry.register("audit_events_dropped", "Audit events that were lost", counter(audit_events_dropped));
    registry.register("audit_failures", "Times that the audit sink failed", counter(audit_failures));
    registry.register("trace_spans_dropped", "Spans that the collector did not take", counter(spans_dropped));
    if let Some((rules, failures)) = policy {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(rules).unwrap_or(i64::MAX));
        registry.register("policy_rules", "Rules of the policy in force", gauge);
        let help = "Times that the policy file had changed into something that cannot be used";
        registry.register("policy_reload_failures", help, counter(failures));
    }
}

fn register_agents(registry: &mut Registry, status: &StubStatus) {
    let connected: Family<AgentsLabel, Gauge> = Family::default();
    let healthy: Family<AgentsLabel, Gauge> = Family::default();
    let open_streams: Family<AgentLabels, Gauge> = Family::default();
    let round_trip: Family<AgentLabels, Fraction> = Family::default();
    let upstream: Family<AgentLabels, Fraction> = Family::default();
    let loss: Family<AgentLabels, Fraction> = Family::default();
    for cluster in &status.clusters {
        let label = AgentsLabel { cluster: cluster.id.clone() };
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        connected.get_or_create(&label).set(count(cluster.agents.len()));
        let is_healthy = |agent: &&AgentStatus| agent.state == "healthy";
        healthy.get_or_create(&label).set(count(cluster.agents.iter().filter(is_healthy).count()));
        for agent in &cluster.agents {
            let label =
                AgentLabels { cluster: cluster.id.clone(), agent: agent.name.clone(), carrier: agent.carrier.clone() };
            open_streams.get_or_create(&label).set(count(agent.open_streams));
            round_trip.get_or_create(&label).set(agent.rtt_ms / 1000.0);
            upstream.get_or_create(&label).set(agent.upstream_latency_ms / 1000.0);
            if let Some(ratio) = agent.loss {
                loss.get_or_create(&label).set(ratio);
            }
        }
    }
    registry.register("agents", "Connected agents", connected);
    registry.register("agents_healthy", "Agents that report and whose API server answers", healthy);
    registry.register("open_streams", "Requests open now", open_streams);
    let help = "Round trip between stub and agent";
    registry.register_with_unit("agent_round_trip", help, Unit::Seconds, round_trip);
    let help = "Round trip between agent and API server";
    registry.register_with_unit("upstream_round_trip", help, Unit::Seconds, upstream);
    let help = "Packets lost per packet sent to the agent since it connected";
    registry.register("agent_loss_ratio", help, loss);
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

    fn status() -> StubStatus {
        StubStatus {
            stub: "s".to_owned(),
            version: "1.2.3".to_owned(),
            started_at: Timestamp::UNIX_EPOCH,
            election: None,
            clusters: Vec::new(),
        }
    }

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::default();
        let bytes = metrics.bytes(&"eu".parse().unwrap());
        bytes.sent.inc_by(5);
        metrics.retries(&"eu".parse().unwrap()).inc();
        let counted = Counted { audit_events_dropped: 3, policy: Some((7, 1)), ..Counted::default() };
        let text = metrics.text(&status(), counted).unwrap();
        for line in [
            "qtunnel_client_traffic_bytes_total{cluster=\"eu\",direction=\"to_client\"} 5",
            "qtunnel_client_traffic_bytes_total{cluster=\"eu\",direction=\"from_client\"} 0",
            "qtunnel_dispatch_retries_total{cluster=\"eu\"} 1",
            "qtunnel_audit_events_dropped_total 3",
            "qtunnel_policy_rules 7",
            "qtunnel_policy_reload_failures_total 1",
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
