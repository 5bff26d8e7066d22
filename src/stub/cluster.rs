//! The agents of one cluster, and which API server it is that they serve.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::registry::{AgentLink, Succession};
use crate::wire::ClusterId;

/// The agents of one cluster, in the order in which they have connected.
///
/// Two agents that serve the API servers of two clusters would answer as one what are two, so only those of one are chosen.
/// Agents of another one wait until every connection of the old one is gone or has been silent for [`HOLDS_FOR`]; then the
/// cluster is switched. An agent that does not know its API server's identity counts as one of any.
#[derive(Debug, Default)]
pub struct Cluster {
    links: Vec<Arc<AgentLink>>,
    /// The UID of the namespace kube-system, as agents have told it.
    api_server: Option<Arc<str>>,
}

/// For how long an agent whose connection does not answer holds the cluster for its API server.
///
/// One that was killed leaves a connection behind that lives for minutes, until its idle timeout, and that takes no requests. By now
/// those that it had are refused as well (`silence_timeout`, by default as long), so that nobody is served while newcomers wait. One
/// that answers again after this waits in its turn; what is open on it goes on.
pub const HOLDS_FOR: Duration = Duration::from_secs(30);

/// The most connections of one agent: one for new requests, and those on which older ones end. An agent that goes to and fro
/// between carriers has no more.
const MAX_CONNECTIONS: usize = 4;

impl Cluster {
    /// Adds an agent whose handshake is not complete, if the same agent has no connection.
    pub fn add_early(&mut self, link: Arc<AgentLink>) {
        if self.links.iter().all(|other| link.succeeds(other) == Succession::None) {
            self.links.push(link);
        }
    }

    /// Adds an agent, and gives the connections that it takes the place of: see [`Succession`].
    pub fn add(&mut self, link: Arc<AgentLink>) -> Vec<Arc<AgentLink>> {
        // It may have been added early.
        self.links.retain(|other| !Arc::ptr_eq(other, &link));
        let mut superseded = Vec::new();
        let mut left = self.links.iter().filter(|other| link.succeeds(other) == Succession::Moved).count();
        self.links.retain(|other| match link.succeeds(other) {
            Succession::None => true,
            Succession::Moved if left < MAX_CONNECTIONS => {
                other.set_aside();
                true
            }
            Succession::Moved | Succession::Superseded => {
                left = left.saturating_sub(1);
                superseded.push(other.clone());
                false
            }
        });
        self.links.push(link);
        self.settle();
        superseded
    }

    /// Removes an agent, if it is still this connection of it.
    pub fn remove(&mut self, link: &Arc<AgentLink>) {
        self.links.retain(|other| !Arc::ptr_eq(other, link));
        self.settle();
    }

    /// Every connected agent.
    pub fn links(&self) -> &[Arc<AgentLink>] {
        &self.links
    }

    /// Which API server serves the cluster, if that is known.
    pub fn api_server(&self) -> Option<&Arc<str>> {
        self.api_server.as_ref()
    }

    /// Decides which agents wait. Call it when an agent has come, gone or told which API server is its own, when one has been
    /// silent for [`HOLDS_FOR`], and when it answers again.
    pub fn settle(&mut self) {
        let now = Instant::now();
        let answering = self.links.iter().filter(|link| holds(link.suspect_since(), now));
        let mut known = answering.filter_map(|link| Some((link, link.api_server()?)));
        let is_served = known.clone().any(|(_, api_server)| Some(&api_server) == self.api_server.as_ref());
        if !is_served
            && let Some((link, new)) = known.next()
            && let Some(old) = self.api_server.replace(new.clone())
        {
            log_switch(&link.identity.cluster, &old, &new);
        }
        for link in &self.links {
            link.wait(link.api_server().filter(|own| Some(own) != self.api_server.as_ref()));
        }
    }
}

/// Whether an agent that is suspect since then, if it is, still holds the cluster.
fn holds(suspect_since: Option<Instant>, now: Instant) -> bool {
    suspect_since.is_none_or(|since| now.saturating_duration_since(since) < HOLDS_FOR)
}

fn log_switch(cluster: &ClusterId, old: &str, new: &str) {
    tracing::warn!(
        %cluster,
        old,
        new,
        "the cluster is served by another API server now; every connection of the old one is gone or silent"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_holds_its_cluster_until_it_has_been_silent_for_a_while() {
        let suspect_since = Instant::now();
        assert!(holds(None, suspect_since));
        assert!(holds(Some(suspect_since), suspect_since + HOLDS_FOR - Duration::from_millis(1)));
        assert!(!holds(Some(suspect_since), suspect_since + HOLDS_FOR));
    }
}
