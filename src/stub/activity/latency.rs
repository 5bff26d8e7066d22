//! How long answers took, in buckets: exact enough for a chart, and the same size however many there were.

use std::time::Duration;

/// Buckets for each doubling; a quantile is off by at most a twelfth.
const PER_DOUBLING: f64 = 8.0;

/// The upper bound of the first bucket, in milliseconds.
const FIRST: f64 = 0.1;

/// Up to 0.1 ms · 2^(159/8): 96 s. What took longer counts as that.
const BUCKETS: usize = 160;

/// Counts of answers by how long they took.
#[derive(Debug, Clone)]
pub struct Latencies {
    buckets: Box<[u32; BUCKETS]>,
    count: u32,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { buckets: Box::new([0; BUCKETS]), count: 0 }
    }
}

impl Latencies {
    /// Counts an answer.
    pub fn add(&mut self, latency: Duration) {
        let milliseconds = latency.as_secs_f64() * 1000.0;
        let index = ((milliseconds / FIRST).log2() * PER_DOUBLING).ceil();
        // A cast from a float is bounded: below zero, as for an answer in no time, it gives 0.
        if let Some(bucket) = self.buckets.get_mut((index as usize).min(BUCKETS - 1)) {
            *bucket = bucket.saturating_add(1);
            self.count = self.count.saturating_add(1);
        }
    }

    /// How long the fastest `part` (0 to 1) of the answers took at most, in milliseconds; `None` without any.
    pub fn quantile(&self, part: f64) -> Option<f32> {
        let wanted = ((f64::from(self.count) * part).ceil() as u32).max(1);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Some((FIRST * (index as f64 / PER_DOUBLING).exp2()) as f32);
            }
        }
        None
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.buckets.fill(0);
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_near_what_they_stand_for() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile(0.5), None);
        for milliseconds in 1..=1000 {
            latencies.add(Duration::from_millis(milliseconds));
        }
        for (part, expected) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = latencies.quantile(part).unwrap();
            assert!((expected..expected * 1.1).contains(&found), "{part}: {found}");
        }
        latencies.clear();
        assert_eq!(latencies.quantile(0.5), None);
    }

    #[test]
    fn nothing_is_too_short_or_too_long_to_be_counted() {
        let mut latencies = Latencies::default();
        latencies.add(Duration::ZERO);
        assert_eq!(latencies.quantile(1.0), Some(0.1));
        latencies.add(Duration::from_secs(1 << 40));
        assert!(latencies.quantile(1.0).unwrap() > 90_000.0);
    }
}
