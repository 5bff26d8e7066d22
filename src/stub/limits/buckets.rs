//! How often something may happen: token buckets, one for each key, in a table that does not grow without a bound.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The most keys that have a bucket of their own.
const MAX_KEYS: usize = 65_536;

/// When the table is full, how long until it is looked through again for buckets that are full, and so need no place.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Buckets that hold `burst` tokens and gain `rate` of them a second. With neither nothing is bounded.
#[derive(Debug)]
pub struct TokenBuckets<K> {
    table: Mutex<Table<K>>,
}

#[derive(Debug)]
struct Table<K> {
    pace: Pace,
    buckets: HashMap<K, Bucket>,
    /// What keys share that find no place in the table.
    rest: Bucket,
    swept: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Pace {
    rate: f64,
    burst: f64,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Pace {
    fn new(rate: u32, burst: u32) -> Self {
        Self { rate: f64::from(rate), burst: f64::from(burst) }
    }
}

impl Bucket {
    fn refilled(self, pace: Pace, now: Instant) -> Self {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * pace.rate;
        Self { tokens: (self.tokens + gained).min(pace.burst), at: now }
    }
}

impl<K: Hash + Eq> TokenBuckets<K> {
    /// Full buckets.
    pub fn new(rate: u32, burst: u32, now: Instant) -> Self {
        let pace = Pace::new(rate, burst);
        let rest = Bucket { tokens: pace.burst, at: now };
        Self { table: Mutex::new(Table { pace, buckets: HashMap::new(), rest, swept: now }) }
    }

    /// Another rate, and buckets of another size, from now on.
    pub fn change(&self, rate: u32, burst: u32) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).pace = Pace::new(rate, burst);
    }

    /// Takes a token; false if there is none.
    pub fn take(&self, key: K, now: Instant) -> bool {
        self.take_above(key, 0.0, now)
    }

    /// Takes a token from a bucket that is more than half full; false, and nothing taken, from another.
    pub fn take_from_upper_half(&self, key: K, now: Instant) -> bool {
        self.take_above(key, 0.5, now)
    }

    /// Takes a token if at least `part` of a full bucket is left then.
    fn take_above(&self, key: K, part: f64, now: Instant) -> bool {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let pace = table.pace;
        if pace.burst == 0.0 {
            return true;
        }
        table.make_room(now);
        let has_room = table.buckets.len() < MAX_KEYS || table.buckets.contains_key(&key);
        let bucket = match has_room {
            true => table.buckets.entry(key).or_insert(Bucket { tokens: pace.burst, at: now }),
            false => &mut table.rest,
        };
        *bucket = bucket.refilled(pace, now);
        let taken = bucket.tokens >= pace.burst * part + 1.0;
        if taken {
            bucket.tokens -= 1.0;
        }
        taken
    }
}

impl<K: Hash + Eq> Table<K> {
    /// Forgets the buckets that are full again: a new one is just the same.
    fn make_room(&mut self, now: Instant) {
        if self.buckets.len() >= MAX_KEYS && now.saturating_duration_since(self.swept) >= SWEEP_EVERY {
            self.swept = now;
            let pace = self.pace;
            self.buckets.retain(|_, bucket| bucket.refilled(pace, now).tokens < pace.burst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_bucket_gives_what_it_holds_and_then_what_it_gains() {
        let start = Instant::now();
        let buckets = TokenBuckets::new(2, 3, start);
        assert_eq!((0..5).filter(|_| buckets.take("a", start)).count(), 3);
        assert!(buckets.take("b", start), "the bucket of another");
        assert_eq!((0..5).filter(|_| buckets.take("a", start + SECOND)).count(), 2);
        assert_eq!((0..5).filter(|_| buckets.take("a", start + 60 * SECOND)).count(), 3, "never more than it holds");
    }

    #[test]
    fn the_lower_half_of_a_bucket_can_be_kept_back() {
        let start = Instant::now();
        let buckets = TokenBuckets::new(1, 10, start);
        assert_eq!((0..20).filter(|_| buckets.take_from_upper_half("a", start)).count(), 5);
        assert_eq!((0..20).filter(|_| buckets.take("a", start)).count(), 5);
    }

    #[test]
    fn another_pace_counts_at_once() {
        let start = Instant::now();
        let buckets = TokenBuckets::new(1, 10, start);
        assert!(buckets.take("a", start));
        buckets.change(1, 2);
        assert_eq!((0..5).filter(|_| buckets.take("a", start)).count(), 2);
        buckets.change(0, 0);
        assert_eq!((0..50).filter(|_| buckets.take("a", start)).count(), 50, "nothing is bounded");
    }

    #[test]
    fn the_table_is_bounded_and_makes_room_for_new_keys() {
        let start = Instant::now();
        let buckets = TokenBuckets::new(1, 2, start);
        for key in 0..MAX_KEYS {
            assert!(buckets.take(key, start));
        }
        // What all others share.
        assert_eq!((MAX_KEYS..MAX_KEYS + 10).filter(|key| buckets.take(*key, start)).count(), 2);
        assert_eq!(buckets.table.lock().unwrap().buckets.len(), MAX_KEYS);
        let later = start + 10 * SECOND;
        assert_eq!((MAX_KEYS..MAX_KEYS + 10).filter(|key| buckets.take(*key, later)).count(), 10);
        assert!(buckets.table.lock().unwrap().buckets.len() <= 10);
    }
}
