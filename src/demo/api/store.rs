//! The state in memory: objects, one revision counter, and a bounded history for watches.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use serde_json::Value;
use tokio::sync::watch;

use super::{resources::Resource, status::ApiError};

/// Events kept for watches that start in the past; older ones are answered with 410.
const HISTORY: usize = 8192;
/// Objects the store accepts.
const MAX_OBJECTS: usize = 100_000;

/// Objects with resource versions.
pub(super) struct Store {
    state: RwLock<State>,
    newest: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Arc<Value>>,
    revision: u64,
    /// Revision of the newest event that is no longer in `history`.
    forgotten: u64,
    history: VecDeque<Event>,
}

/// Where an object is stored. Orders as lists are ordered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    group: &'static str,
    plural: &'static str,
    /// `""` for cluster-wide resources.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
}

/// What happened to one object.
#[derive(Debug, Clone)]
pub(super) struct Event {
    /// The revision this event made.
    pub revision: u64,
    /// Whose event it is.
    pub key: Key,
    /// The object before, unless it was created.
    pub before: Option<Arc<Value>>,
    /// The object after; a deleted object as it was, with the revision of its deletion.
    pub after: Arc<Value>,
    /// Whether the object is gone.
    pub deleted: bool,
}

/// Whether a write is kept, or only tried (`dryRun=All`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Commit {
    /// Keep it.
    Keep,
    /// Answer as if, and keep nothing.
    DryRun,
}

/// A revision that the history no longer reaches.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooOld {
    /// The oldest revision a watch may start from.
    pub oldest: u64,
}

impl Key {
    /// The key of one object; the namespace is `""` for cluster-wide resources.
    pub fn new(resource: &Resource, namespace: &str, name: &str) -> Self {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Self { group: resource.group, plural: resource.plural, namespace, name }
    }

    /// Whether the key belongs to that resource and, if one is given, that namespace.
    pub fn is_in(&self, resource: &Resource, namespace: Option<&str>) -> bool {
        self.group == resource.group
            && self.plural == resource.plural
            && namespace.is_none_or(|namespace| self.namespace == namespace)
    }
}

impl Store {
    /// An empty store.
    pub fn new() -> Self {
        Self { state: RwLock::default(), newest: watch::Sender::new(0) }
    }

    /// Follows the newest revision.
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<Value>> {
        self.read().objects.get(key).cloned()
    }

    /// The objects of a resource, of one namespace or of all, after a name (of the key `(namespace, name)`),
    /// and the revision they were read at.
    pub fn list(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        after: Option<(&str, &str)>,
    ) -> (u64, Vec<Arc<Value>>) {
        let state = self.read();
        let start = match after {
            Some((namespace, name)) => Bound::Excluded(Key::new(resource, namespace, name)),
            None => Bound::Included(Key::new(resource, namespace.unwrap_or_default(), "")),
        };
        let objects = state.objects.range((start, Bound::Unbounded));
        let found = objects.take_while(|(key, _)| key.is_in(resource, namespace)).map(|(_, object)| object.clone());
        (state.revision, found.collect())
    }

    /// Adds an object. Errors: 409 when there is one of that name.
    pub fn create(
        &self,
        resource: &Resource,
        key: Key,
        mut object: Value,
        commit: Commit,
    ) -> Result<Arc<Value>, ApiError> {
        let mut state = self.write();
        if state.objects.contains_key(&key) {
            return Err(ApiError::already_exists(resource, &key.name));
        }
        if state.objects.len() >= MAX_OBJECTS {
            return Err(ApiError::full(format!("this sample API keeps at most {MAX_OBJECTS} objects")));
        }
        if commit == Commit::DryRun {
            return Ok(Arc::new(object));
        }
        set_revision(&mut object, state.revision + 1);
        let object = Arc::new(object);
        state.objects.insert(key.clone(), object.clone());
        self.record(&mut state, key, None, object.clone(), false);
        Ok(object)
    }

    /// Replaces an object by what `change` makes of it, atomically. A change that changes nothing makes no
    /// revision. Errors: 404, and those of `change`.
    pub fn update(
        &self,
        resource: &Resource,
        key: &Key,
        commit: Commit,
        change: impl FnOnce(&Value) -> Result<Value, ApiError>,
    ) -> Result<Arc<Value>, ApiError> {
        let mut state = self.write();
        let before = state.objects.get(key).cloned().ok_or_else(|| ApiError::not_found(resource, &key.name))?;
        let mut after = change(&before)?;
        after["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
        if after == *before {
            return Ok(before);
        }
        if commit == Commit::DryRun {
            return Ok(Arc::new(after));
        }
        set_revision(&mut after, state.revision + 1);
        let after = Arc::new(after);
        state.objects.insert(key.clone(), after.clone());
        self.record(&mut state, key.clone(), Some(before), after.clone(), false);
        Ok(after)
    }

    /// Removes an object, if `check` agrees, and returns it. Errors: 404, and those of `check`.
    pub fn remove(
        &self,
        resource: &Resource,
        key: &Key,
        commit: Commit,
        check: impl FnOnce(&Value) -> Result<(), ApiError>,
    ) -> Result<Arc<Value>, ApiError> {
        let mut state = self.write();
        let before = state.objects.get(key).cloned().ok_or_else(|| ApiError::not_found(resource, &key.name))?;
        check(&before)?;
        if commit == Commit::Keep {
            self.forget(&mut state, key);
        }
        Ok(before)
    }

    /// Removes everything in a namespace, and returns the keys.
    pub fn remove_namespace(&self, namespace: &str) -> Vec<Key> {
        let mut state = self.write();
        let keys: Vec<Key> = state.objects.keys().filter(|key| key.namespace == namespace).cloned().collect();
        for key in &keys {
            self.forget(&mut state, key);
        }
        keys
    }

    /// Makes everything up to now history that watches can no longer start from.
    pub fn forget_history(&self) {
        let mut state = self.write();
        state.history.clear();
        state.forgotten = state.revision;
    }

    /// The events after `revision` of one resource, and the revision up to which they reach.
    pub fn events_since(
        &self,
        revision: u64,
        resource: &Resource,
        namespace: Option<&str>,
    ) -> Result<(u64, Vec<Event>), TooOld> {
        let state = self.read();
        if revision < state.forgotten {
            return Err(TooOld { oldest: state.forgotten });
        }
        let first = state.history.partition_point(|event| event.revision <= revision);
        let events = state.history.range(first..).filter(|event| event.key.is_in(resource, namespace));
        Ok((state.revision, events.cloned().collect()))
    }

    /// The oldest revision a watch may start from.
    pub fn oldest(&self) -> u64 {
        self.read().forgotten
    }

    fn forget(&self, state: &mut State, key: &Key) {
        if let Some(before) = state.objects.remove(key) {
            let mut last = (*before).clone();
            set_revision(&mut last, state.revision + 1);
            self.record(state, key.clone(), Some(before), Arc::new(last), true);
        }
    }

    fn record(&self, state: &mut State, key: Key, before: Option<Arc<Value>>, after: Arc<Value>, deleted: bool) {
        state.revision += 1;
        if state.history.len() == HISTORY
            && let Some(dropped) = state.history.pop_front()
        {
            state.forgotten = dropped.revision;
        }
        state.history.push_back(Event { revision: state.revision, key, before, after, deleted });
        self.newest.send_replace(state.revision);
    }

    // A panic elsewhere while the lock was held leaves whole objects behind, so a poisoned lock is usable.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn set_revision(object: &mut Value, revision: u64) {
    object["metadata"]["resourceVersion"] = Value::from(revision.to_string());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::demo::api::resources::pods;

    fn pod(name: &str) -> (Key, Value) {
        (Key::new(pods(), "demo", name), json!({"metadata": {"name": name, "namespace": "demo"}}))
    }

    #[test]
    fn every_change_makes_a_revision_and_an_event() {
        let store = Store::new();
        let (key, object) = pod("a");
        store.create(pods(), key.clone(), object, Commit::Keep).unwrap();
        let changed = store.update(pods(), &key, Commit::Keep, |old| {
            let mut new = old.clone();
            new["metadata"]["labels"] = json!({"x": "y"});
            Ok(new)
        });
        assert_eq!(changed.unwrap()["metadata"]["resourceVersion"], "2");
        store.remove(pods(), &key, Commit::Keep, |_| Ok(())).unwrap();
        let (revision, events) = store.events_since(0, pods(), Some("demo")).unwrap();
        assert_eq!((revision, events.len(), events[2].deleted), (3, 3, true));
        assert_eq!(events[2].after["metadata"]["resourceVersion"], "3");
    }

    #[test]
    fn a_dry_run_and_an_empty_change_leave_no_trace() {
        let store = Store::new();
        let (key, object) = pod("a");
        store.create(pods(), key.clone(), object.clone(), Commit::DryRun).unwrap();
        assert!(store.get(&key).is_none());
        store.create(pods(), key.clone(), object, Commit::Keep).unwrap();
        store.update(pods(), &key, Commit::Keep, |old| Ok(old.clone())).unwrap();
        assert_eq!(store.list(pods(), None, None).0, 1);
    }

    #[test]
    fn a_revision_beyond_the_history_is_too_old() {
        let store = Store::new();
        let (key, object) = pod("a");
        store.create(pods(), key, object, Commit::Keep).unwrap();
        store.forget_history();
        assert_eq!(store.events_since(0, pods(), None).unwrap_err(), TooOld { oldest: 1 });
        assert!(store.events_since(1, pods(), None).unwrap().1.is_empty());
    }

    #[test]
    fn a_list_goes_on_after_a_name() {
        let store = Store::new();
        for name in ["a", "b", "c"] {
            let (key, object) = pod(name);
            store.create(pods(), key, object, Commit::Keep).unwrap();
        }
        let (_, rest) = store.list(pods(), Some("demo"), Some(("demo", "a")));
        assert_eq!(rest.len(), 2);
        assert!(store.list(pods(), Some("other"), None).1.is_empty());
    }
}
