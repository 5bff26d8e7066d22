//! Which of several stubs leads.

use std::time::Duration;

use jiff::SignedDuration;
use serde::Deserialize;

use crate::stub::election::{LeaseName, Timing};

/// The `[election]` section: with it, only the stub that leads is ready.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ElectionConfig {
    /// The Lease, `namespace/name`. It is made if it is missing.
    pub lease: LeaseName,
    /// See [`Timing::lease_duration`].
    #[serde(default = "default_lease_duration")]
    pub lease_duration: SignedDuration,
    /// See [`Timing::renew_deadline`].
    #[serde(default = "default_renew_deadline")]
    pub renew_deadline: SignedDuration,
    /// See [`Timing::retry_period`].
    #[serde(default = "default_retry_period")]
    pub retry_period: SignedDuration,
}

impl ElectionConfig {
    /// The durations.
    pub fn timing(&self) -> Timing {
        Timing {
            lease_duration: self.lease_duration.unsigned_abs(),
            renew_deadline: self.renew_deadline.unsigned_abs(),
            retry_period: self.retry_period.unsigned_abs(),
        }
    }

    /// What is wrong with the durations, if something is (`NewLeaderElector` of client-go).
    pub(super) fn problem(&self) -> Option<&'static str> {
        let Timing { lease_duration, renew_deadline, retry_period } = self.timing();
        let positive = [self.lease_duration, self.renew_deadline, self.retry_period].iter().all(|d| d.is_positive());
        if !positive || lease_duration < Duration::from_secs(1) || lease_duration.subsec_nanos() != 0 {
            Some("election.lease_duration has to be whole seconds, and no duration nothing")
        } else if lease_duration <= renew_deadline {
            Some("election.lease_duration has to be longer than election.renew_deadline")
        } else if renew_deadline < retry_period * 2 {
            Some("election.renew_deadline has to be at least twice election.retry_period")
        } else {
            None
        }
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

fn default_lease_duration() -> SignedDuration {
    signed(Timing::default().lease_duration)
}

fn default_renew_deadline() -> SignedDuration {
    signed(Timing::default().renew_deadline)
}

fn default_retry_period() -> SignedDuration {
    signed(Timing::default().retry_period)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> Option<&'static str> {
        toml::from_str::<ElectionConfig>(text).unwrap().problem()
    }

    #[test]
    fn durations_that_would_let_two_lead_are_refused() {
        assert_eq!(problem("lease = 'a/b'"), None);
        assert!(problem("lease = 'a/b'\nlease_duration = '10s'").is_some());
        assert!(problem("lease = 'a/b'\nlease_duration = '15.5s'").is_some());
        assert!(problem("lease = 'a/b'\nretry_period = '6s'").is_some());
        assert!(problem("lease = 'a/b'\nretry_period = '0s'").is_some());
    }
}
