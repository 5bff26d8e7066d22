//! How much went on, sampled, so that who looks later sees a curve at once.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::latency::Latencies;
use crate::stub::meter::ClusterBytes;
use crate::stub::metrics::Metrics;
use crate::stub::record::{GivenAnswer, RequestFacts};
use crate::wire::ClusterId;

/// The time between two samples.
pub const INTERVAL: Duration = Duration::from_secs(2);

/// The samples that are kept: ten minutes.
const LENGTH: usize = 300;

/// The clusters that have a series of their own: 12 KiB each. Beyond them one that has been idle gives way.
const MAX_CLUSTERS: usize = 1024;

/// The last minutes of a cluster or of all together, oldest sample first. Rates are means over one interval.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Series {
    /// The time between two samples, in milliseconds.
    pub interval_ms: u64,
    /// When the last sample was taken; `None` before the first.
    pub until: Option<Timestamp>,
    /// Answers per second.
    pub requests: Vec<f32>,
    /// Answers per second that were refusals by the stub, or errors (5xx) of the cluster.
    pub failed: Vec<f32>,
    /// Bytes per second to clients.
    pub bytes_to_clients: Vec<f32>,
    /// Bytes per second from clients.
    pub bytes_from_clients: Vec<f32>,
    /// Time to the head of an answer in milliseconds: half of the requests took at most that. Requests that may wait for
    /// an event, such as watches, do not count. `None` for an interval without requests.
    pub p50_ms: Vec<Option<f32>>,
    /// The same of 99 of 100 requests.
    pub p99_ms: Vec<Option<f32>>,
    /// Requests open at the time of the sample.
    pub open: Vec<u32>,
}

/// Every series, and what has come together since the last sample.
#[derive(Debug, Default)]
pub struct History {
    total: Track,
    clusters: HashMap<ClusterId, ClusterTrack>,
    sampled_at: Option<Timestamp>,
}

#[derive(Debug, Default)]
struct Track {
    requests: u32,
    failed: u32,
    latencies: Latencies,
    samples: VecDeque<Sample>,
}

#[derive(Debug)]
struct ClusterTrack {
    track: Track,
    counters: ClusterBytes,
    counted: Bytes,
}

/// Bytes in both directions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Bytes {
    to_clients: u64,
    from_clients: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample {
    requests: f32,
    failed: f32,
    bytes_to_clients: f32,
    bytes_from_clients: f32,
    p50: Option<f32>,
    p99: Option<f32>,
    open: u32,
}

impl History {
    /// Counts an answer whose head goes to the client.
    pub fn answered(&mut self, facts: &RequestFacts, metrics: &Metrics) {
        self.total.answered(facts);
        // Only requests to clusters that exist have attributes.
        let Some(attributes) = &facts.attributes else { return };
        if let Some(cluster) = self.cluster(&attributes.cluster, metrics) {
            cluster.track.answered(facts);
        }
    }

    /// Ends an interval, with the requests that are open now.
    pub fn sample(&mut self, open: &HashMap<ClusterId, usize>) {
        let count = |open: usize| u32::try_from(open).unwrap_or(u32::MAX);
        let mut bytes = Bytes::default();
        for (id, cluster) in &mut self.clusters {
            let passed = cluster.passed();
            bytes = Bytes {
                to_clients: bytes.to_clients + passed.to_clients,
                from_clients: bytes.from_clients + passed.from_clients,
            };
            cluster.track.sample(passed, open.get(id).copied().map_or(0, count));
        }
        self.total.sample(bytes, count(open.values().sum()));
        self.sampled_at = Some(Timestamp::now());
    }

    /// The series of a cluster, or of all together.
    pub fn series(&self, cluster: Option<&ClusterId>) -> Series {
        let track = match cluster {
            None => Some(&self.total),
            Some(id) => self.clusters.get(id).map(|cluster| &cluster.track),
        };
        let samples = || track.into_iter().flat_map(|track| &track.samples);
        Series {
            interval_ms: INTERVAL.as_millis() as u64,
            until: self.sampled_at,
            requests: samples().map(|sample| sample.requests).collect(),
            failed: samples().map(|sample| sample.failed).collect(),
            bytes_to_clients: samples().map(|sample| sample.bytes_to_clients).collect(),
            bytes_from_clients: samples().map(|sample| sample.bytes_from_clients).collect(),
            p50_ms: samples().map(|sample| sample.p50).collect(),
            p99_ms: samples().map(|sample| sample.p99).collect(),
            open: samples().map(|sample| sample.open).collect(),
        }
    }

    fn cluster(&mut self, id: &ClusterId, metrics: &Metrics) -> Option<&mut ClusterTrack> {
        if !self.clusters.contains_key(id) {
            if self.clusters.len() >= MAX_CLUSTERS {
                let idle = self.clusters.iter().find(|(_, cluster)| cluster.track.is_idle())?.0.clone();
                self.clusters.remove(&idle);
            }
            self.clusters.insert(id.clone(), ClusterTrack::new(metrics.bytes(id)));
        }
        self.clusters.get_mut(id)
    }
}

impl ClusterTrack {
    fn new(counters: ClusterBytes) -> Self {
        let counted = Bytes::counted_by(&counters);
        Self { track: Track::default(), counters, counted }
    }

    /// The bytes since the last time.
    fn passed(&mut self) -> Bytes {
        let now = Bytes::counted_by(&self.counters);
        let before = std::mem::replace(&mut self.counted, now);
        Bytes {
            to_clients: now.to_clients.saturating_sub(before.to_clients),
            from_clients: now.from_clients.saturating_sub(before.from_clients),
        }
    }
}

impl Bytes {
    fn counted_by(counters: &ClusterBytes) -> Self {
        Self { to_clients: counters.sent.get(), from_clients: counters.received.get() }
    }
}

impl Track {
    fn answered(&mut self, facts: &RequestFacts) {
        self.requests = self.requests.saturating_add(1);
        let own = matches!(facts.answer, Some(GivenAnswer::Own(_)));
        if own || facts.code().is_some_and(|code| code.is_server_error()) {
            self.failed = self.failed.saturating_add(1);
        }
        let waits = facts.attributes.as_ref().is_some_and(|attributes| attributes.request.is_long_running());
        if !waits {
            self.latencies.add(facts.started.elapsed());
        }
    }

    fn sample(&mut self, bytes: Bytes, open: u32) {
        let rate = |count: f64| (count / INTERVAL.as_secs_f64()) as f32;
        if self.samples.len() == LENGTH {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample {
            requests: rate(f64::from(self.requests)),
            failed: rate(f64::from(self.failed)),
            bytes_to_clients: rate(bytes.to_clients as f64),
            bytes_from_clients: rate(bytes.from_clients as f64),
            p50: self.latencies.quantile(0.5),
            p99: self.latencies.quantile(0.99),
            open,
        });
        (self.requests, self.failed) = (0, 0);
        self.latencies.clear();
    }

    fn is_idle(&self) -> bool {
        let still = |sample: &Sample| sample.requests == 0.0 && sample.bytes_to_clients == 0.0 && sample.open == 0;
        self.requests == 0 && self.samples.iter().all(still)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ClusterId {
        name.parse().unwrap()
    }

    #[test]
    fn bytes_are_told_as_a_rate_and_once() {
        let (mut history, metrics) = (History::default(), Metrics::default());
        let bytes = metrics.bytes(&id("eu"));
        bytes.sent.inc_by(1000);
        history.cluster(&id("eu"), &metrics);
        bytes.sent.inc_by(400);
        bytes.received.inc_by(6);
        let open = HashMap::from([(id("eu"), 3)]);
        history.sample(&open);
        history.sample(&open);
        for series in [history.series(Some(&id("eu"))), history.series(None)] {
            assert_eq!(series.bytes_to_clients, [200.0, 0.0], "what was before does not count");
            assert_eq!(series.bytes_from_clients, [3.0, 0.0]);
            assert_eq!(series.open, [3, 3]);
            assert_eq!(series.p50_ms, [None, None]);
        }
        assert_eq!(history.series(Some(&id("us"))).open, [0; 0]);
    }

    #[test]
    fn old_samples_and_idle_clusters_give_way() {
        let (mut history, metrics) = (History::default(), Metrics::default());
        for number in 0..=MAX_CLUSTERS {
            assert!(history.cluster(&id(&format!("c{number}")), &metrics).is_some());
        }
        assert_eq!(history.clusters.len(), MAX_CLUSTERS);
        for _ in 0..LENGTH + 5 {
            history.sample(&HashMap::new());
        }
        assert_eq!(history.series(None).requests.len(), LENGTH);
    }
}
