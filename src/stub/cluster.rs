//! The agents of one cluster, and which API server it is that they serve.

use std::sync::Arc;

use super::registry::{AgentLink, Succession};
use crate::wire::ClusterId;

/// The agents of one cluster, in the order in which they have connected.
///
/// Two agents that serve the API servers of two clusters would answer as one what are two, so only those of one are chosen.
/// Agents of another one wait until every connection of the old one is gone; then the cluster is switched. An agent that does
/// not know its API server's identity counts as one of any.
#[derive(Debug, Default)]
pub struct Cluster {
    links: Vec<Arc<AgentLink>>,
    /// The UID of the namespace kube-system, as agents have told it.
    api_server: Option<Arc<str>>,
}

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

    /// Decides which agents wait. Call it when an agent has come, gone or told which API server is its own.
    pub fn settle(&mut self) {
        let mut known = self.links.iter().filter_map(|link| Some((link, link.api_server()?)));
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

fn log_switch(cluster: &ClusterId, old: &str, new: &str) {
    tracing::warn!(
        %cluster,
        old,
        new,
        "the cluster is served by another API server now; every connection of the old one is gone"
    );
}
