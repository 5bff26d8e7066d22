//! How much of something there may be at once: places, so many for each key.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Places, `limit` of them for each key. A key without anything in its places takes up nothing.
#[derive(Debug)]
pub struct Places<K: Hash + Eq> {
    limit: AtomicU32,
    taken: Arc<Mutex<HashMap<K, u32>>>,
}

/// A place that is taken, until it is dropped.
pub struct Place<K: Hash + Eq> {
    key: K,
    taken: Arc<Mutex<HashMap<K, u32>>>,
}

impl<K: Hash + Eq + Clone> Places<K> {
    /// All free.
    pub fn new(limit: u32) -> Self {
        Self { limit: AtomicU32::new(limit), taken: Arc::default() }
    }

    /// So many from now on. Places that are taken stay so.
    pub fn change(&self, limit: u32) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Takes a place, if one is free for `key`.
    pub fn take(&self, key: &K) -> Option<Place<K>> {
        let limit = self.limit.load(Ordering::Relaxed);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(key) {
            Some(count) if *count >= limit => return None,
            Some(count) => *count += 1,
            None if limit == 0 => return None,
            None => {
                taken.insert(key.clone(), 1);
            }
        }
        Some(Place { key: key.clone(), taken: self.taken.clone() })
    }
}

impl<K: Hash + Eq> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

impl<K: Hash + Eq + fmt::Debug> fmt::Debug for Place<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(&self.key).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_so_many_places_and_leaves_nothing_behind() {
        let places = Places::new(2);
        let (first, second) = (places.take(&"a").unwrap(), places.take(&"a").unwrap());
        assert!(places.take(&"a").is_none());
        let other = places.take(&"b").unwrap();
        drop(first);
        let third = places.take(&"a").unwrap();
        assert!(places.take(&"a").is_none());
        drop((second, third, other));
        assert!(places.taken.lock().unwrap().is_empty());
    }
}
