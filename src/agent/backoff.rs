//! How long to wait before the next attempt.

use std::time::Duration;

/// Exponential backoff with full jitter: each wait is random between nothing and a bound that doubles.
///
/// Jitter matters more than the bound: when a stub restarts, its thousands of agents must not come back as one herd
/// (Brooker, "Exponential Backoff And Jitter").
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    bound: Duration,
}

impl Backoff {
    /// Waits at most `first` before the second attempt, and never longer than `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, bound: first }
    }

    /// How long to wait now. `random` is uniform in 0 to 1.
    pub fn next_wait(&mut self, random: f64) -> Duration {
        let wait = self.bound.mul_f64(random.clamp(0.0, 1.0));
        self.bound = (self.bound * 2).min(self.longest);
        wait
    }

    /// The attempt was a success: the next wait is short again.
    pub fn reset(&mut self) {
        self.bound = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        let longest: Vec<_> = (0..5).map(|_| backoff.next_wait(1.0).as_secs()).collect();
        assert_eq!(longest, [1, 2, 4, 5, 5]);
        backoff.reset();
        assert_eq!(backoff.next_wait(1.0), Duration::from_secs(1));
    }

    #[test]
    fn a_wait_is_anywhere_up_to_its_bound() {
        let mut backoff = Backoff::new(Duration::from_secs(4), Duration::from_secs(4));
        assert_eq!(backoff.next_wait(0.0), Duration::ZERO);
        assert_eq!(backoff.next_wait(0.5), Duration::from_secs(2));
    }
}
