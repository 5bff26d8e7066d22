//! Propagation delay and jitter.

use std::time::{Duration, Instant};

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Decides when a packet that has been sent arrives.
#[derive(Debug)]
pub(super) struct Delay {
    shortest: Duration,
    /// Twice the jitter.
    spread: Duration,
    reorder: bool,
    random: ChaCha8Rng,
    last_arrival: Option<Instant>,
}

impl Delay {
    pub(super) fn new(delay: Duration, jitter: Duration, reorder: bool, random: ChaCha8Rng) -> Self {
        let jitter = jitter.min(delay);
        Self { shortest: delay - jitter, spread: jitter * 2, reorder, random, last_arrival: None }
    }

    pub(super) fn mean(&self) -> Duration {
        self.shortest + self.spread / 2
    }

    pub(super) fn arrival(&mut self, sent: Instant) -> Instant {
        let spread = self.spread.as_nanos().try_into().unwrap_or(u64::MAX);
        let arrival = sent + self.shortest + Duration::from_nanos(self.random.random_range(0..=spread));
        if self.reorder {
            return arrival;
        }
        let in_order = self.last_arrival.map_or(arrival, |last| last.max(arrival));
        self.last_arrival = Some(in_order);
        in_order
    }
}
