//! Counting durations in constant memory.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// Durations in a few numbers. All zero where there was none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Quantiles {
    /// Half of them were no longer.
    pub p50: Duration,
    /// 99 of 100 were no longer.
    pub p99: Duration,
    /// None was longer.
    pub max: Duration,
}

impl fmt::Display for Quantiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |duration: Duration| duration.as_micros();
        write!(f, "p50 {} us, p99 {} us, max {} us", micros(self.p50), micros(self.p99), micros(self.max))
    }
}

/// Counts durations in buckets that are at most 1/16 wide, in constant memory.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

/// Buckets for each doubling.
const STEPS: u64 = 16;

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { buckets: vec![0; bucket(u64::MAX) + 1], count: 0, max: 0 }
    }

    pub(crate) fn record(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get_mut(bucket(nanos)) {
            *bucket += 1;
        }
        self.count += 1;
        self.max = self.max.max(nanos);
    }

    pub(crate) fn quantiles(&self) -> Quantiles {
        Quantiles { p50: self.quantile(0.5), p99: self.quantile(0.99), max: Duration::from_nanos(self.max) }
    }

    /// The upper end of the bucket in which this share of all durations is reached.
    fn quantile(&self, share: f64) -> Duration {
        let wanted = (self.count as f64 * share).ceil() as u64;
        let mut seen = 0;
        let reached = self.buckets.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        Duration::from_nanos(reached.map_or(0, upper_end).min(self.max))
    }
}

/// Values below [`STEPS`] have a bucket each; above, each doubling has [`STEPS`] of them.
fn bucket(value: u64) -> usize {
    if value < STEPS {
        return value as usize;
    }
    let doublings = u64::from(value.ilog2() - STEPS.ilog2());
    ((doublings + 1) * STEPS + (value >> doublings) - STEPS) as usize
}

fn upper_end(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let doublings = bucket / STEPS - 1;
    let first = u128::from(bucket % STEPS + STEPS + 1) << doublings;
    u64::try_from(first - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_value_lies_in_its_bucket_and_no_further_than_a_sixteenth_from_its_end(value: u64) {
            let end = upper_end(bucket(value));
            prop_assert!(end >= value);
            prop_assert!(end - value <= value / STEPS);
            prop_assert_eq!(bucket(end), bucket(value));
        }
    }

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let mut histogram = Histogram::new();
        for micros in 1..=1000 {
            histogram.record(Duration::from_micros(micros));
        }
        let quantiles = histogram.quantiles();
        assert!((500..=532).contains(&quantiles.p50.as_micros()), "{quantiles}");
        assert!((990..=1000).contains(&quantiles.p99.as_micros()), "{quantiles}");
        assert_eq!(quantiles.max, Duration::from_millis(1));
    }

    #[test]
    fn without_durations_all_is_zero() {
        assert_eq!(Histogram::new().quantiles(), Quantiles::default());
    }
}
