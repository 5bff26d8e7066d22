//! What goes on at the stub and what went on in the last minutes, for those who watch: the dashboard and `qtunnel top`.
//!
//! Everything here is bounded and in memory alone. What has to last is told to the audit log and to the metrics.

mod incidents;
mod latency;
mod series;
mod target;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::time::{MissedTickBehavior, interval};

pub use incidents::{Incident, IncidentKind};
pub use series::Series;
pub use target::Target;

use super::metrics::Metrics;
use super::record::RequestFacts;
use super::registry::Registry;
use crate::wire::ClusterId;
use incidents::Incidents;
use series::{History, INTERVAL};

/// What went on in the last minutes.
#[derive(Debug, Default)]
pub struct Activity {
    incidents: Mutex<Incidents>,
    history: Mutex<History>,
}

impl Activity {
    /// Notes an answer whose head goes to the client.
    pub fn answered(&self, facts: &RequestFacts, metrics: &Metrics) {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).answered(facts, metrics);
    }

    /// Notes the end of a request.
    pub fn ended(&self, facts: &RequestFacts) {
        if let Some(incident) = Incident::of(facts) {
            self.incidents.lock().unwrap_or_else(PoisonError::into_inner).add(incident, facts.user.is_some());
        }
    }

    /// Recent denials and errors, newest first.
    pub fn incidents(&self) -> Vec<Incident> {
        self.incidents.lock().unwrap_or_else(PoisonError::into_inner).newest_first()
    }

    /// The last minutes of a cluster, or of all together. A cluster without requests meanwhile has an empty series.
    pub fn series(&self, cluster: Option<&ClusterId>) -> Series {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).series(cluster)
    }

    /// Takes a sample every `INTERVAL`; never ends.
    pub async fn sample(&self, registry: &Registry) {
        let mut ticks = interval(INTERVAL);
        // After a pause of the whole process one sample tells of it, not a burst of them.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let open = open_streams(registry);
            self.history.lock().unwrap_or_else(PoisonError::into_inner).sample(&open);
        }
    }
}

fn open_streams(registry: &Registry) -> HashMap<ClusterId, usize> {
    let mut open = HashMap::new();
    for link in registry.all() {
        *open.entry(link.identity.cluster.clone()).or_default() += link.traffic().open_streams();
    }
    open
}
