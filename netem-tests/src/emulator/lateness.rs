//! How late an emulator was, and whether that spoils the run.

use std::time::Duration;

use crate::histogram::Quantiles;

/// A run in which one packet in a hundred was later than this is invalid.
pub const P99_LATENESS: Duration = Duration::from_millis(1);

/// A run in which any packet was later than this is invalid.
pub const MAX_LATENESS: Duration = Duration::from_millis(25);

/// Whether no packet was too late, and few were late.
pub(super) fn is_acceptable(lateness: &Quantiles) -> bool {
    lateness.p99 <= P99_LATENESS && lateness.max <= MAX_LATENESS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram::Histogram;

    #[test]
    fn one_long_stall_makes_a_run_invalid() {
        let mut histogram = Histogram::new();
        (0..100_000).for_each(|_| histogram.record(Duration::from_micros(10)));
        assert!(is_acceptable(&histogram.quantiles()));
        histogram.record(Duration::from_millis(26));
        assert!(!is_acceptable(&histogram.quantiles()));
    }
}
