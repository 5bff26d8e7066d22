//! Each agent in its turn.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::{AgentSelector, Candidate};
use crate::wire::ClusterId;

/// Each agent in its turn, beginning with one chosen at random, so that several stubs do not all begin with the same.
#[derive(Debug, Default)]
pub struct RandomRoundRobin {
    /// Whose turn is next. There are no more clusters than have agents with certificates.
    turns: Mutex<HashMap<ClusterId, usize>>,
}

impl AgentSelector for RandomRoundRobin {
    fn choose(&self, cluster: &ClusterId, candidates: &[&dyn Candidate]) -> usize {
        // Nothing that holds the lock leaves the map half changed.
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = match turns.get_mut(cluster) {
            Some(turn) => turn,
            None => turns.entry(cluster.clone()).or_insert_with(|| usize::from(rand::random::<u16>())),
        };
        *turn = turn.wrapping_add(1);
        *turn % candidates.len().max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Given, shares};
    use super::*;

    #[test]
    fn each_gets_the_same() {
        let agents = [Given::new("a", 9, 9), Given::new("b", 0, 0), Given::new("c", 0, 0), Given::new("d", 0, 0)];
        assert_eq!(shares(&RandomRoundRobin::default(), &agents), [2_500; 4]);
    }

    #[test]
    fn each_cluster_has_its_own_turn() {
        let agents = [Given::new("a", 0, 0), Given::new("b", 0, 0)];
        let candidates: Vec<&dyn Candidate> = agents.iter().map(|agent| agent as &dyn Candidate).collect();
        let selector = RandomRoundRobin::default();
        let choose = |cluster: &str| selector.choose(&cluster.parse().unwrap(), &candidates);
        let chosen: Vec<(usize, usize)> = (0..4).map(|_| (choose("eu"), choose("us"))).collect();
        for pair in chosen.windows(2) {
            assert!(pair[0].0 != pair[1].0 && pair[0].1 != pair[1].1, "{chosen:?}");
        }
    }
}
