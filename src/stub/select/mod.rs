//! Which of several agents takes the next request: [`AgentSelector`], and the ones that are built in.

mod least_streams;
mod lowest_latency;
mod random_round_robin;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

pub use least_streams::LeastStreams;
pub use lowest_latency::LowestLatency;
pub use random_round_robin::RandomRoundRobin;

use crate::wire::{AgentName, ClusterId};

/// Chooses among agents that are equally fit: all of them answer, and the API servers of all of them do, or of none.
///
/// It is asked for every request while others wait, so it must not wait for anything itself.
pub trait AgentSelector: Debug + Send + Sync {
    /// The index in `candidates`, of which there is at least one, of the agent that takes the next request to `cluster`. An
    /// index that is too large counts as the last.
    ///
    /// The candidates come in the order in which they have connected; from one request to the next they may be others.
    fn choose(&self, cluster: &ClusterId, candidates: &[&dyn Candidate]) -> usize;
}

/// An agent that can take a request.
pub trait Candidate {
    /// Its name.
    fn name(&self) -> &AgentName;

    /// Requests that this stub has open at it.
    fn open_streams(&self) -> usize;

    /// How long a round trip takes from this stub to its API server: to the agent, as the connection knows it, and from
    /// there, as the agent has reported last.
    fn latency(&self) -> Duration;
}

/// The selectors that settings can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SelectorKind {
    /// [`LeastStreams`].
    #[default]
    LeastStreams,
    /// [`RandomRoundRobin`].
    RandomRoundRobin,
    /// [`LowestLatency`].
    LowestLatency,
}

impl SelectorKind {
    /// The selector of this name.
    pub fn selector(self) -> Arc<dyn AgentSelector> {
        match self {
            Self::LeastStreams => Arc::new(LeastStreams),
            Self::RandomRoundRobin => Arc::new(RandomRoundRobin::default()),
            Self::LowestLatency => Arc::new(LowestLatency),
        }
    }
}

/// The cheaper one of two candidates chosen at random, which may be the same. It does not run after the cheapest, which would
/// flood it with what all others decide at the same time (Mitzenmacher, "The Power of Two Choices in Randomized Load
/// Balancing").
fn cheaper_of_two<C: PartialOrd>(candidates: &[&dyn Candidate], cost: impl Fn(&dyn Candidate) -> C) -> usize {
    let pick = || rand::random_range(0..candidates.len().max(1));
    let (first, second) = (pick(), pick());
    match (candidates.get(first), candidates.get(second)) {
        (Some(one), Some(other)) if cost(*other) < cost(*one) => second,
        _ => first,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A candidate of a test.
    pub struct Given {
        pub name: AgentName,
        pub open_streams: usize,
        pub latency: Duration,
    }

    impl Given {
        pub fn new(name: &str, open_streams: usize, latency_ms: u64) -> Self {
            Self { name: name.parse().unwrap(), open_streams, latency: Duration::from_millis(latency_ms) }
        }
    }

    impl Candidate for Given {
        fn name(&self) -> &AgentName {
            &self.name
        }

        fn open_streams(&self) -> usize {
            self.open_streams
        }

        fn latency(&self) -> Duration {
            self.latency
        }
    }

    /// How many of 10,000 requests each candidate takes.
    pub fn shares(selector: &dyn AgentSelector, candidates: &[Given]) -> Vec<usize> {
        let candidates: Vec<&dyn Candidate> = candidates.iter().map(|given| given as &dyn Candidate).collect();
        let mut shares = vec![0; candidates.len()];
        for _ in 0..10_000 {
            shares[selector.choose(&"eu".parse().unwrap(), &candidates)] += 1;
        }
        shares
    }

    #[test]
    fn every_selector_takes_the_only_one() {
        for kind in [SelectorKind::LeastStreams, SelectorKind::RandomRoundRobin, SelectorKind::LowestLatency] {
            assert_eq!(shares(&*kind.selector(), &[Given::new("a", 7, 7)]), [10_000], "{kind:?}");
        }
    }

    #[test]
    fn settings_name_selectors() {
        let kind = |name: &str| SelectorKind::deserialize(toml::Value::from(name));
        assert_eq!(kind("least-streams").unwrap(), SelectorKind::LeastStreams);
        assert_eq!(kind("random-round-robin").unwrap(), SelectorKind::RandomRoundRobin);
        assert_eq!(kind("lowest-latency").unwrap(), SelectorKind::LowestLatency);
        assert!(kind("first").is_err());
    }
}
