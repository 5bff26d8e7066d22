//! The agent from which an answer comes soonest.

use std::time::Duration;

use super::{AgentSelector, Candidate, cheaper_of_two};
use crate::wire::ClusterId;

/// Of two agents chosen at random, the one whose round trip to the API server is shorter, times the requests that it has open:
/// a near agent gets more than a far one, until it has so much more to do that the far one is as good (as Finagle's "peak
/// EWMA" balancer weighs it). Even the farthest gets some, so that it is known when it has become nearer.
#[derive(Debug, Clone, Copy, Default)]
pub struct LowestLatency;

/// Differences below this are noise.
const GRAIN: Duration = Duration::from_millis(1);

impl AgentSelector for LowestLatency {
    fn choose(&self, _cluster: &ClusterId, candidates: &[&dyn Candidate]) -> usize {
        cheaper_of_two(candidates, |candidate| {
            candidate.latency().max(GRAIN).as_secs_f64() * (candidate.open_streams() + 1) as f64
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Given, shares};
    use super::*;

    #[test]
    fn a_near_agent_gets_more_than_a_far_one() {
        let shares = shares(&LowestLatency, &[Given::new("far", 0, 80), Given::new("near", 3, 10)]);
        assert!((2_000..3_000).contains(&shares[0]), "{shares:?}");
    }

    #[test]
    fn a_near_agent_is_not_flooded() {
        let shares = shares(&LowestLatency, &[Given::new("far", 0, 80), Given::new("near", 20, 10)]);
        assert!((7_000..8_000).contains(&shares[0]), "{shares:?}");
    }
}
