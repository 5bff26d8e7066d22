//! The requests that are open now, so that one which is not allowed any more can be ended, and all of them at a stop; and
//! for those who watch.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::authorize::{Authorizer, Decision, OwnedAttributes};
use super::meter::Meter;
use super::record::RequestFacts;
use crate::wire::{AgentName, ClusterId};

/// The open requests.
#[derive(Debug, Default)]
pub struct OpenRequests {
    /// By the order in which they came.
    requests: Mutex<BTreeMap<u64, Arc<Entry>>>,
    next_id: AtomicU64,
    stopping: AtomicBool,
}

/// One open request; dropping it means that the request has ended.
#[derive(Debug)]
pub struct OpenRequest {
    requests: Arc<OpenRequests>,
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

/// Where an open request came from, and when.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Its name in every log.
    pub audit_id: String,
    /// When it came, by the clock.
    pub received_at: Timestamp,
    /// When it came, to measure how long it takes.
    pub started: Instant,
    /// The client's address.
    pub source: IpAddr,
}

/// An open request as those see it who watch.
#[derive(Debug)]
pub struct Entry {
    id: u64,
    attributes: Arc<OwnedAttributes>,
    origin: Origin,
    meter: Meter,
    agent: OnceLock<AgentName>,
    cancelled: CancellationToken,
    /// Set before `cancelled`.
    ending: OnceLock<Ending>,
}

impl OpenRequests {
    /// Notes an open request. Do it before the request is authorized: a right that is taken away in between is then
    /// noticed either there or here.
    pub fn open(self: &Arc<Self>, attributes: OwnedAttributes, origin: Origin, meter: Meter) -> OpenRequest {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry {
            id,
            origin,
            meter,
            agent: OnceLock::new(),
            attributes: Arc::new(attributes),
            cancelled: CancellationToken::new(),
            ending: OnceLock::new(),
        });
        self.lock().insert(id, entry.clone());
        // Looked at afterwards: a stop in between finds the request among the open ones.
        if self.stopping.load(Ordering::SeqCst) {
            entry.end(Ending::Stopping);
        }
        OpenRequest { requests: self.clone(), entry }
    }

    /// How many are open, and the newest of them, up to `limit`: of a cluster, or of all.
    pub fn newest(&self, cluster: Option<&ClusterId>, limit: usize) -> (usize, Vec<Arc<Entry>>) {
        let requests = self.lock();
        let wanted = |entry: &&Arc<Entry>| cluster.is_none_or(|cluster| entry.attributes.cluster == *cluster);
        let total = match cluster {
            None => requests.len(),
            Some(_) => requests.values().filter(wanted).count(),
        };
        (total, requests.values().rev().filter(wanted).take(limit).cloned().collect())
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

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Entry>>> {
        // Nothing that holds the lock leaves the map half changed.
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Origin {
    /// Where the request of these facts came from.
    pub fn of(facts: &RequestFacts) -> Self {
        let RequestFacts { audit_id, received_at, started, source, .. } = facts;
        Self { audit_id: audit_id.clone(), received_at: *received_at, started: *started, source: *source }
    }
}

impl Entry {
    /// A number that no other request of this process has.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What it is about.
    pub fn attributes(&self) -> &OwnedAttributes {
        &self.attributes
    }

    /// Where it came from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// How much was carried.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Who carries it; `None` while it waits for an agent and an answer.
    pub fn agent(&self) -> Option<&AgentName> {
        self.agent.get()
    }

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

    /// What counts its bytes.
    pub fn meter(&self) -> &Meter {
        &self.entry.meter
    }

    /// Notes who has answered it.
    pub fn carried_by(&self, agent: &AgentName) {
        // It is answered once.
        let _ = self.entry.agent.set(agent.clone());
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
        self.requests.lock().remove(&self.entry.id);
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

    fn open(requests: &Arc<OpenRequests>, user: &str) -> OpenRequest {
        let origin = Origin {
            audit_id: user.to_owned(),
            received_at: Timestamp::now(),
            started: Instant::now(),
            source: IpAddr::from([192, 0, 2, 1]),
        };
        requests.open(attributes(user), origin, Meter::default())
    }

    #[test]
    fn those_who_watch_see_the_newest_first_and_how_many_there_are() {
        let requests = Arc::new(OpenRequests::default());
        let opened = ["alice", "bob", "carol"].map(|user| open(&requests, user));
        let (total, newest) = requests.newest(None, 2);
        let users: Vec<&str> = newest.iter().map(|entry| entry.attributes().user.user.as_str()).collect();
        assert_eq!((total, users), (3, vec!["carol", "bob"]));
        assert_eq!(requests.newest(Some(&"us".parse().unwrap()), 2).0, 0);
        opened[2].carried_by(&"a1".parse().unwrap());
        assert_eq!(newest[0].agent().map(AgentName::as_str), Some("a1"));
    }

    #[tokio::test]
    async fn a_request_that_is_not_allowed_any_more_is_told_so() {
        let (requests, authorizer) = (Arc::new(OpenRequests::default()), Arc::new(Switch::new()));
        let (alice, bob) = (open(&requests, "alice"), open(&requests, "bob"));
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
        let alice = open(&requests, "alice");
        authorizer.broken.store(true, Ordering::Relaxed);
        requests.authorize_again(&authorizer).await;
        assert!(alice.ending().is_some());
    }

    #[test]
    fn a_stop_ends_what_is_open_and_what_comes_later() {
        let requests = Arc::new(OpenRequests::default());
        let before = open(&requests, "alice");
        requests.stop();
        let after = open(&requests, "alice");
        assert_eq!([before.ending(), after.ending()], [Some(&Ending::Stopping); 2]);
    }

    #[test]
    fn a_request_that_has_ended_is_forgotten() {
        let requests = Arc::new(OpenRequests::default());
        let request = open(&requests, "alice");
        assert_eq!(requests.lock().len(), 1);
        drop(request);
        assert!(requests.lock().is_empty());
    }
}
