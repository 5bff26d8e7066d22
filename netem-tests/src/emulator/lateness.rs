//! How late an emulator was, and whether that spoils the run.

use std::fmt;
use std::time::Duration;

/// A run in which one packet in a hundred was later than this is invalid.
pub const P99_LATENESS: Duration = Duration::from_millis(1);

/// A run in which any packet was later than this is invalid.
pub const MAX_LATENESS: Duration = Duration::from_millis(25);

/// How much later than the model said packets were delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lateness {
    /// Half of the packets were no later.
    pub p50: Duration,
    /// 99 of 100 packets were no later.
    pub p99: Duration,
    /// No packet was later.
    pub max: Duration,
}

impl Lateness {
    /// Whether no packet was too late, and few were late.
    pub fn is_acceptable(&self) -> bool {
        self.p99 <= P99_LATENESS && self.max <= MAX_LATENESS
    }
}

impl fmt::Display for Lateness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |duration: Duration| duration.as_micros();
        write!(f, "p50 {} us, p99 {} us, max {} us", micros(self.p50), micros(self.p99), micros(self.max))
    }
}

/// Counts durations in buckets that are at most 1/16 wide, in constant memory.
#[derive(Debug)]
pub(super) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

/// Buckets for each doubling.
const STEPS: u64 = 16;

impl Histogram {
    pub(super) fn new() -> Self {
        Self { buckets: vec![0; bucket(u64::MAX) + 1], count: 0, max: 0 }
    }

    pub(super) fn record(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get_mut(bucket(nanos)) {
            *bucket += 1;
        }
        self.count += 1;
        self.max = self.max.max(nanos);
    }

    pub(super) fn lateness(&self) -> Lateness {
        Lateness { p50: self.quantile(0.5), p99: self.quantile(0.99), max: Duration::from_nanos(self.max) }
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
        let lateness = histogram.lateness();
        assert!((500..=532).contains(&lateness.p50.as_micros()), "{lateness}");
        assert!((990..=1000).contains(&lateness.p99.as_micros()), "{lateness}");
        assert_eq!(lateness.max, Duration::from_millis(1));
        assert!(lateness.is_acceptable());
    }

    #[test]
    fn a_run_without_packets_was_not_late() {
        assert_eq!(Histogram::new().lateness(), Lateness::default());
    }

    #[test]
    fn one_long_stall_makes_a_run_invalid() {
        let mut histogram = Histogram::new();
        (0..100_000).for_each(|_| histogram.record(Duration::from_micros(10)));
        histogram.record(Duration::from_millis(26));
        assert!(!histogram.lateness().is_acceptable());
    }
}
