//! The requests that are open now, so that one which is not allowed any more can be ended, and all of them at a stop.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::authorize::{Authorizer, Decision, OwnedAttributes};

/// The open requests.
#[derive(Debug, Default)]
pub struct OpenRequests {
    requests: Mutex<HashMap<u64, Arc<Entry>>>,
    next_id: AtomicU64,
    stopping: AtomicBool,
}

/// One open request; dropping it means that the request has ended.
#[derive(Debug)]
pub struct OpenRequest {
    requests: Arc<OpenRequests>,
    id: u64,
    entry: Arc<Entry>,
}

/// Why an open request has to end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ending {
    /// The user has lost the right to it.
    #[error("it is not allowed any more: {0}")]
    Revoked(String),
    /// The stub stops.
    #[error("the access node is shutting down")]
    Stopping,
}

#[derive(Debug)]
struct Entry {
    attributes: Arc<OwnedAttributes>,
    cancelled: CancellationToken,
    /// Set before `cancelled`.
    ending: OnceLock<Ending>,
}

impl OpenRequests {
    /// Notes an open request. Do it before the request is authorized: a right that is taken away in between is then
    /// noticed either there or here.
    pub fn open(self: &Arc<Self>, attributes: OwnedAttributes) -> OpenRequest {
        let entry = Arc::new(Entry {
            attributes: Arc::new(attributes),
            cancelled: CancellationToken::new(),
            ending: OnceLock::new(),
        });
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id, entry.clone());
        // Looked at afterwards: a stop in between finds the request among the open ones.
        if self.stopping.load(Ordering::SeqCst) {
            entry.end(Ending::Stopping);
        }
        OpenRequest { requests: self.clone(), id, entry }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Ends every open request and every one to come.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for entry in self.lock().values() {
            entry.end(Ending::Stopping);
        }
    }

    /// Asks `authorizer` about every open request again whenever its decisions may have changed; never ends.
    pub async fn follow(self: Arc<Self>, authorizer: Arc<dyn Authorizer>) {
        let Some(mut changes) = authorizer.changes() else { return std::future::pending().await };
        while changes.changed().await.is_ok() {
            self.authorize_again(&*authorizer).await;
        }
        std::future::pending().await
    }

    async fn authorize_again(&self, authorizer: &dyn Authorizer) {
        let entries: Vec<Arc<Entry>> = self.lock().values().cloned().collect();
        for entry in entries {
            match authorizer.authorize(entry.attributes.borrowed()).await {
                Ok(Decision::Allow(_)) => {}
                Ok(Decision::Deny(reason)) => entry.revoke(reason.into_owned()),
                // It fails closed.
                Err(error) => entry.revoke(error.to_string()),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Entry>>> {
        // Nothing that holds the lock leaves the map half changed.
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn revoke(&self, why: String) {
        let revoked = Ending::Revoked(why);
        let OwnedAttributes { user, cluster, request, .. } = &*self.attributes;
        tracing::warn!(user = user.user, %cluster, verb = request.verb, path = request.path, "ending a request: {revoked}");
        self.end(revoked);
    }

    fn end(&self, ending: Ending) {
        // Set already where there is a second reason meanwhile.
        let _ = self.ending.set(ending);
        self.cancelled.cancel();
    }
}

impl OpenRequest {
    /// What the request is about.
    pub fn attributes(&self) -> &Arc<OwnedAttributes> {
        &self.entry.attributes
    }

    /// Why the request has to end, if it has to.
    pub fn ending(&self) -> Option<&Ending> {
        self.entry.ending.get()
    }

    /// Waits until [`OpenRequest::ending`] gives something.
    pub fn wait_for_ending(&self) -> WaitForCancellationFutureOwned {
        self.entry.cancelled.clone().cancelled_owned()
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.requests.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use tokio::sync::watch;

    use super::*;
    use crate::kube::RequestInfo;
    use crate::stub::authorize::{Attributes, CannotDecide, Deciding};
    use crate::wire::Identity;

    /// Allows everybody but those whom `refused` names.
    #[derive(Debug)]
    struct Switch {
        refused: Mutex<Vec<&'static str>>,
        broken: AtomicBool,
        changes: watch::Sender<u64>,
    }

    impl Switch {
        fn new() -> Self {
            Self { refused: Mutex::default(), broken: AtomicBool::new(false), changes: watch::Sender::new(0) }
        }

        fn refuse(&self, user: &'static str) {
            self.refused.lock().unwrap().push(user);
            self.changes.send_modify(|count| *count += 1);
        }
    }

    impl Authorizer for Switch {
        fn authorize<'a>(&'a self, attributes: Attributes<'a>) -> Deciding<'a> {
            Box::pin(async move {
                if self.broken.load(Ordering::Relaxed) {
                    return Err(CannotDecide("the line is dead".to_owned()));
                }
                let refused = self.refused.lock().unwrap().contains(&attributes.user.user.as_str());
                Ok(if refused { Decision::Deny("no".into()) } else { Decision::Allow("yes".into()) })
            })
        }

        fn changes(&self) -> Option<watch::Receiver<u64>> {
            Some(self.changes.subscribe())
        }
    }

    fn attributes(user: &str) -> OwnedAttributes {
        OwnedAttributes {
            user: Identity::named(user),
            requested: None,
            cluster: "eu".parse().unwrap(),
            request: RequestInfo::default(),
        }
    }

    #[tokio::test]
    async fn a_request_that_is_not_allowed_any_more_is_told_so() {
        let (requests, authorizer) = (Arc::new(OpenRequests::default()), Arc::new(Switch::new()));
        let (alice, bob) = (requests.open(attributes("alice")), requests.open(attributes("bob")));
        let following = tokio::spawn(requests.clone().follow(authorizer.clone()));
        tokio::task::yield_now().await;
        assert_eq!(alice.ending(), None);
        authorizer.refuse("alice");
        tokio::time::timeout(Duration::from_secs(30), alice.wait_for_ending()).await.unwrap();
        assert_eq!(alice.ending(), Some(&Ending::Revoked("no".to_owned())));
        assert_eq!(bob.ending(), None);
        following.abort();
    }

    #[tokio::test]
    async fn an_authorizer_that_cannot_decide_ends_what_is_open() {
        let (requests, authorizer) = (Arc::new(OpenRequests::default()), Switch::new());
        let alice = requests.open(attributes("alice"));
        authorizer.broken.store(true, Ordering::Relaxed);
        requests.authorize_again(&authorizer).await;
        assert!(alice.ending().is_some());
    }

    #[test]
    fn a_stop_ends_what_is_open_and_what_comes_later() {
        let requests = Arc::new(OpenRequests::default());
        let before = requests.open(attributes("alice"));
        requests.stop();
        let after = requests.open(attributes("alice"));
        assert_eq!([before.ending(), after.ending()], [Some(&Ending::Stopping); 2]);
    }

    #[test]
    fn a_request_that_has_ended_is_forgotten() {
        let requests = Arc::new(OpenRequests::default());
        let request = requests.open(attributes("alice"));
        assert_eq!(requests.lock().len(), 1);
        drop(request);
        assert!(requests.lock().is_empty());
    }
}
