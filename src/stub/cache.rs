//! Answers of others that are kept for a while.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Mutex as AsyncMutex;

/// Answers by their questions, each for as long as it says. Whoever asks what somebody else is asking already waits for that
/// answer, so a burst of equal questions is one question.
///
/// It is bounded: beyond the bound the answers that were asked for first are forgotten.
#[derive(Debug)]
pub struct AnswerCache<K, V> {
    bound: usize,
    slots: Mutex<Slots<K, V>>,
}

#[derive(Debug)]
struct Slots<K, V> {
    by_key: HashMap<K, Slot<V>>,
    /// In the order in which they were made.
    order: VecDeque<K>,
}

/// Locked while the answer is on its way.
type Slot<V> = Arc<AsyncMutex<Option<Kept<V>>>>;

#[derive(Debug)]
struct Kept<V> {
    value: V,
    until: Instant,
}

impl<K: Clone + Eq + Hash, V: Clone> AnswerCache<K, V> {
    /// A cache of at most so many answers.
    pub fn new(bound: usize) -> Self {
        Self { bound, slots: Mutex::new(Slots { by_key: HashMap::new(), order: VecDeque::new() }) }
    }

    /// The answer to `key`: the kept one, or what `ask` says, which also says how long to keep it.
    pub async fn get(&self, key: K, ask: impl Future<Output = (V, Duration)>) -> V {
        let slot = self.slot(&key);
        let mut kept = slot.lock().await;
        if let Some(kept) = kept.as_ref().filter(|kept| Instant::now() < kept.until) {
            return kept.value.clone();
        }
        let (value, keep_for) = ask.await;
        // Counted from now on, so that those who waited for a slow answer find it good.
        *kept = Some(Kept { value: value.clone(), until: Instant::now() + keep_for });
        value
    }

    fn slot(&self, key: &K) -> Slot<V> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.by_key.get(key) {
            return slot.clone();
        }
        while slots.order.len() >= self.bound {
            let Some(oldest) = slots.order.pop_front() else { break };
            slots.by_key.remove(&oldest);
        }
        let slot = Slot::default();
        slots.by_key.insert(key.clone(), slot.clone());
        slots.order.push_back(key.clone());
        slot
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_burst_of_equal_questions_is_one_question() {
        let (cache, asked) = (AnswerCache::new(8), AtomicU32::new(0));
        let ask = || async {
            tokio::task::yield_now().await;
            (asked.fetch_add(1, Ordering::Relaxed), LONG)
        };
        let answers = futures_util::future::join_all((0..10).map(|_| cache.get("a", ask()))).await;
        assert_eq!(answers, [0; 10]);
        assert_eq!(cache.get("b", ask()).await, 1);
    }

    #[tokio::test]
    async fn an_answer_is_kept_for_as_long_as_it_says() {
        let cache = AnswerCache::new(8);
        assert_eq!(cache.get("a", async { (1, Duration::ZERO) }).await, 1);
        assert_eq!(cache.get("a", async { (2, LONG) }).await, 2);
        assert_eq!(cache.get("a", async { (3, LONG) }).await, 2);
    }

    #[tokio::test]
    async fn there_are_never_more_than_the_bound() {
        let cache = AnswerCache::new(3);
        for key in 0..100 {
            cache.get(key, async { (key, LONG) }).await;
        }
        assert_eq!(cache.slots.lock().unwrap().by_key.len(), 3);
        assert_eq!(cache.get(99, async { (0, LONG) }).await, 99, "the latest are kept");
        assert_eq!(cache.get(0, async { (7, LONG) }).await, 7);
    }
}
