//! The agent that has less to do.

use super::{AgentSelector, Candidate, cheaper_of_two};
use crate::wire::ClusterId;

/// The one with fewer open requests of two chosen at random. An agent on a slow machine, whose requests take longer, gets
/// fewer of them.
#[derive(Debug, Clone, Copy, Default)]
pub struct LeastStreams;

impl AgentSelector for LeastStreams {
    fn choose(&self, _cluster: &ClusterId, candidates: &[&dyn Candidate]) -> usize {
        cheaper_of_two(candidates, |candidate| candidate.open_streams())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Given, shares};
    use super::*;

    #[test]
    fn who_has_less_to_do_gets_more() {
        let shares = shares(&LeastStreams, &[Given::new("a", 10, 1), Given::new("b", 0, 1)]);
        // Of four pairs of picks only one is twice the busy one.
        assert!((2_000..3_000).contains(&shares[0]), "{shares:?}");
    }
}
