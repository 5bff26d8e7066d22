//! Windowed maxima.

use std::collections::VecDeque;

use super::delivery::Rate;

/// The highest delivery rate of the current and the previous cycle of bandwidth probing: `BBR.max_bw_filter`
/// (section 5.5.2), whose window is `BBR.MaxBwFilterLen` = 2 cycles.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MaxBandwidth {
    previous_cycle: Rate,
    this_cycle: Rate,
}

impl MaxBandwidth {
    /// The highest rate; 0 while there is none.
    pub(super) fn get(&self) -> Rate {
        self.previous_cycle.max(self.this_cycle)
    }

    pub(super) fn update(&mut self, rate: Rate) {
        self.this_cycle = self.this_cycle.max(rate);
    }

    /// `AdvanceMaxBwFilter`. A cycle without a sample does not count, so that the maximum is never of nothing.
    pub(super) fn advance(&mut self) {
        if self.this_cycle > 0.0 {
            self.previous_cycle = self.this_cycle;
            self.this_cycle = 0.0;
        }
    }
}

/// The highest value of the last rounds.
#[derive(Debug, Clone, Default)]
pub(super) struct RoundMaximum {
    /// Rounds and values; values fall, rounds rise.
    candidates: VecDeque<(u64, u64)>,
}

impl RoundMaximum {
    /// The highest value; 0 while there is none.
    pub(super) fn get(&self) -> u64 {
        self.candidates.front().map_or(0, |&(_, value)| value)
    }

    /// Takes a value of `round` in, and forgets those of `window` rounds ago and before. Holds at most one value per round.
    pub(super) fn update(&mut self, round: u64, value: u64, window: u64) {
        while self.candidates.back().is_some_and(|&(_, last)| last <= value) {
            self.candidates.pop_back();
        }
        // A smaller value of the same round cannot become the maximum.
        if self.candidates.back().is_none_or(|&(last, _)| last < round) {
            self.candidates.push_back((round, value));
        }
        while self.candidates.front().is_some_and(|&(first, _)| first + window <= round) {
            self.candidates.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_is_forgotten_after_two_cycles() {
        let mut filter = MaxBandwidth::default();
        filter.update(5.0);
        filter.update(3.0);
        filter.advance();
        filter.update(2.0);
        assert_eq!(filter.get(), 5.0);
        filter.advance();
        assert_eq!(filter.get(), 2.0);
        filter.advance();
        assert_eq!(filter.get(), 2.0);
    }

    #[test]
    fn a_maximum_is_forgotten_when_its_round_leaves_the_window() {
        let mut filter = RoundMaximum::default();
        for (round, value, maximum) in [(1, 7, 7), (1, 9, 9), (2, 4, 9), (2, 3, 9), (3, 5, 9), (4, 1, 5), (6, 1, 1)] {
            filter.update(round, value, 3);
            assert_eq!(filter.get(), maximum, "in round {round}");
        }
        assert!(filter.candidates.len() <= 3);
    }
}
