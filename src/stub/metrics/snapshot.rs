//! What is not counted by the metrics themselves: it is as it is when somebody asks.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::stub::admin::{AgentStatus, Readiness, StubStatus};
use crate::stub::reload::ReloadStatus;

/// What other parts of the stub count, as it is now.
#[derive(Debug, Clone, Default)]
pub struct Counted {
    /// Audit events that were lost.
    pub audit_events_dropped: u64,
    /// Times that the audit sink failed.
    pub audit_failures: u64,
    /// Spans that were lost.
    pub spans_dropped: u64,
    /// The rules in force, and how often the policy file was bad; `None` without a policy file.
    pub policy: Option<(usize, u64)>,
    /// Files that are read again when they change.
    pub files: Vec<ReloadStatus>,
}

/// Registers everything that `status` and `counted` say.
pub fn register(registry: &mut Registry, status: &StubStatus, counted: Counted) {
    register_stub(registry, status);
    register_counted(registry, counted);
    register_agents(registry, status);
}

fn register_stub(registry: &mut Registry, status: &StubStatus) {
    let build: Family<BuildLabels, Gauge> = Family::default();
    build.get_or_create(&BuildLabels { version: status.version.clone() }).set(1);
    registry.register("build_info", "The running version", build);
    let flag = |value: bool| {
        let gauge: Gauge = Gauge::default();
        gauge.set(value.into());
        gauge
    };
    let help = "Whether the stub takes new requests, as /readyz says";
    registry.register("ready", help, flag(status.readiness == Readiness::Ready));
    let leads = status.election.as_ref().is_none_or(|election| election.leads);
    registry.register("leads", "Whether the stub leads; always, where there is no election", flag(leads));
}

fn register_counted(registry: &mut Registry, counted: Counted) {
    let counter = |value: u64| {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        counter
    };
    let Counted { audit_events_dropped, audit_failures, spans_dropped, policy, files } = counted;
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
    register_files(registry, &files);
}

fn register_files(registry: &mut Registry, files: &[ReloadStatus]) {
    let reloads: Family<ReloadLabels, Counter> = Family::default();
    let last_success: Family<FileLabel, Gauge> = Family::default();
    for ReloadStatus { name: file, reloads: changed, failures, last_success: at } in files {
        for (result, count) in [("success", changed), ("failure", failures)] {
            reloads.get_or_create(&ReloadLabels { file, result }).inc_by(*count);
        }
        last_success.get_or_create(&FileLabel { file }).set(*at);
    }
    registry.register("config_reloads", "Changes of files that came into force, or could not be used", reloads);
    let help = "When what is in force was read";
    registry.register_with_unit("config_last_reload_success_timestamp", help, Unit::Seconds, last_success);
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

/// A gauge that takes fractions.
type Fraction = Gauge<f64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AgentsLabel {
    cluster: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FileLabel {
    file: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    file: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AgentLabels {
    cluster: String,
    agent: String,
    carrier: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: String,
}
