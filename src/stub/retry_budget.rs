//! How many requests may be tried again: enough for an agent that goes, too few to make an outage worse.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::wire::ClusterId;

/// The budgets of all clusters. There are no more of them than clusters that exist.
#[derive(Debug, Default)]
pub struct RetryBudgets(Mutex<HashMap<ClusterId, Arc<RetryBudget>>>);

/// The budget of one cluster: a fifth of its requests, and ten more each second.
///
/// Without it, requests that no agent can serve would be made as often as there are attempts, just when the agents have the
/// least to spare (Finagle, "RetryBudget"; linkerd, "Retries").
#[derive(Debug)]
pub struct RetryBudget(Mutex<Balance>);

/// What one retry costs.
const RETRY: u64 = 1_000;

/// What each request adds.
const PER_REQUEST: u64 = RETRY / 5;

/// What each millisecond adds, so that a cluster with few requests can have them tried again as well.
const PER_MILLISECOND: u64 = 10 * RETRY / 1_000;

/// What can be saved up.
const MAX: u64 = 100 * RETRY;

/// What there is at first.
const FIRST: u64 = 10 * RETRY;

impl RetryBudgets {
    /// The budget of `cluster`.
    pub fn of(&self, cluster: &ClusterId) -> Arc<RetryBudget> {
        // Nothing that holds the lock leaves the map half changed.
        let mut budgets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match budgets.get(cluster) {
            Some(budget) => budget.clone(),
            None => {
                budgets.entry(cluster.clone()).or_insert_with(|| Arc::new(RetryBudget::new(Instant::now()))).clone()
            }
        }
    }
}

impl RetryBudget {
    fn new(now: Instant) -> Self {
        Self(Mutex::new(Balance { saved: FIRST, at: now }))
    }

    /// Notes a request that is made for the first time.
    pub fn deposit(&self) {
        self.with(|balance| balance.add(PER_REQUEST));
    }

    /// Takes one retry out, if there is one.
    pub fn withdraw(&self, now: Instant) -> bool {
        self.with(|balance| balance.withdraw(now))
    }

    fn with<T>(&self, change: impl FnOnce(&mut Balance) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Debug)]
struct Balance {
    saved: u64,
    /// Up to when time has been added.
    at: Instant,
}

impl Balance {
    fn add(&mut self, amount: u64) {
        self.saved = self.saved.saturating_add(amount).min(MAX);
    }

    fn withdraw(&mut self, now: Instant) -> bool {
        let passed = u64::try_from(now.saturating_duration_since(self.at).as_millis()).unwrap_or(u64::MAX);
        self.at += Duration::from_millis(passed);
        self.add(passed.saturating_mul(PER_MILLISECOND));
        let left = self.saved.checked_sub(RETRY);
        self.saved = left.unwrap_or(self.saved);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retries(budget: &RetryBudget, now: Instant) -> usize {
        std::iter::repeat_with(|| budget.withdraw(now)).take_while(|enough| *enough).count()
    }

    #[test]
    fn an_outage_is_multiplied_by_no_more_than_a_fifth() {
        let began = Instant::now();
        let budget = RetryBudget::new(began);
        let mut made = 0;
        for _ in 0..1_000 {
            budget.deposit();
            made += usize::from(budget.withdraw(began));
        }
        assert_eq!(made, 210);
    }

    #[test]
    fn a_quiet_cluster_has_a_few_each_second_and_saves_no_more_than_a_hundred() {
        let began = Instant::now();
        let budget = RetryBudget::new(began);
        assert_eq!(retries(&budget, began), 10);
        assert_eq!(retries(&budget, began + Duration::from_secs(2)), 20);
        assert_eq!(retries(&budget, began + Duration::from_secs(3600)), 100);
    }

    #[test]
    fn each_cluster_has_its_own() {
        let budgets = RetryBudgets::default();
        let [eu, us] = ["eu", "us"].map(|id| id.parse().unwrap());
        let now = Instant::now();
        assert!(retries(&budgets.of(&eu), now) >= 10);
        assert!(!budgets.of(&eu).withdraw(now));
        assert!(budgets.of(&us).withdraw(now));
    }
}
