//! The requests that are open now, so that one which is not allowed any more can be ended, and all of them at a stop; and
//! for those who watch.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::{join, select_all};
use futures_util::{FutureExt, StreamExt, stream};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::authenticate::{Authenticator, CredentialKey, Credentials, NotVouched};
use super::authorize::{Authorizer, Decision, OwnedAttributes};
use super::meter::Meter;
use super::record::RequestFacts;
use crate::wire::{AgentName, ClusterId};

/// How often it is asked again whether the user of an open request is still who it was, and may still make it, where answers
/// change by time. Whoever is asked may remember the answer.
const INTERVAL: Duration = Duration::from_secs(2);

/// How long open requests go on while nobody can say whether they still may: an outage of a webhook should not end every
/// session, and whoever causes one should not win much by it.
const GRACE: Duration = Duration::from_secs(60);

/// Questions at once.
const CONCURRENCY: usize = 32;

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
    /// What the user is known by; `None` for one that the program of the stub vouches for.
    pub credentials: Option<Arc<Credentials>>,
}

/// An open request as those see it who watch.
#[derive(Debug)]
pub struct Entry {
    id: u64,
    attributes: Arc<OwnedAttributes>,
    origin: Origin,
    meter: Meter,
    agent: OnceLock<AgentName>,
    /// When the user was known last.
    known: Moment,
    /// When the request was allowed last.
    allowed: Moment,
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
            known: Moment::now(),
            allowed: Moment::now(),
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

    /// Asks about every open request again, whenever the answers may have changed and every few seconds; never ends.
    pub async fn follow(self: Arc<Self>, authenticator: Arc<dyn Authenticator>, authorizer: Arc<dyn Authorizer>) {
        join(self.follow_users(&*authenticator), self.follow_rights(&*authorizer)).await;
    }

    async fn follow_users(&self, authenticator: &dyn Authenticator) {
        let mut changes = authenticator.changes();
        loop {
            changed_within(&mut changes, INTERVAL).await;
            self.authenticate_again(authenticator).await;
        }
    }

    async fn follow_rights(&self, authorizer: &dyn Authorizer) {
        let mut changes = Vec::from_iter(authorizer.changes());
        let interval = if authorizer.decisions_age() { INTERVAL } else { Duration::MAX };
        loop {
            let patience = if changed_within(&mut changes, interval).await { Duration::ZERO } else { GRACE };
            self.authorize_again(authorizer, patience).await;
        }
    }

    /// Ends the requests of users who are not known any more, or are somebody else by now.
    async fn authenticate_again(&self, authenticator: &dyn Authenticator) {
        let mut by_key: HashMap<CredentialKey, (Arc<Credentials>, Vec<Arc<Entry>>)> = HashMap::new();
        for entry in self.lock().values() {
            if let Some(credentials) = &entry.origin.credentials {
                let same = by_key.entry(*credentials.key()).or_insert_with(|| (credentials.clone(), Vec::new()));
                same.1.push(entry.clone());
            }
        }
        let asking =
            stream::iter(by_key.into_values()).for_each_concurrent(CONCURRENCY, async |(credentials, entries)| {
                let answer = authenticator.authenticate(&credentials).await;
                for entry in entries {
                    let user = &entry.attributes.user;
                    match &answer {
                        Ok(Some(vouched)) if vouched.identity == *user => entry.known.renew(),
                        Ok(Some(_)) => entry.revoke("the credentials stand for another user now".to_owned()),
                        Ok(None) => entry.revoke("the credentials are not known any more".to_owned()),
                        Err(NotVouched::Refused(why)) => entry.revoke(why.clone()),
                        Err(NotVouched::CannotTell(_)) if entry.known.is_within(GRACE) => {}
                        Err(NotVouched::CannotTell(why)) => entry.revoke(why.clone()),
                    }
                }
            });
        asking.await;
    }

    /// Ends the requests that are not allowed any more. Where that cannot be decided, those go on that have been allowed
    /// within `patience`.
    async fn authorize_again(&self, authorizer: &dyn Authorizer, patience: Duration) {
        let entries: Vec<Arc<Entry>> = self.lock().values().cloned().collect();
        let asking = stream::iter(entries).for_each_concurrent(CONCURRENCY, async |entry| {
            match authorizer.authorize(entry.attributes.borrowed()).await {
                Ok(Decision::Allow(_)) => entry.allowed.renew(),
                Ok(Decision::Deny(reason)) => entry.revoke(reason.into_owned()),
                Err(_) if entry.allowed.is_within(patience) => {}
                // It fails closed.
                Err(error) => entry.revoke(error.to_string()),
            }
        });
        asking.await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Entry>>> {
        // Nothing that holds the lock leaves the map half changed.
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Origin {
    /// Where the request of these facts came from.
    pub fn of(facts: &RequestFacts, credentials: Option<Arc<Credentials>>) -> Self {
        let RequestFacts { audit_id, received_at, started, source, .. } = facts;
        Self { audit_id: audit_id.clone(), received_at: *received_at, started: *started, source: *source, credentials }
    }
}

/// Waits for a change, but at most for `interval`; says whether there was one.
async fn changed_within(changes: &mut [watch::Receiver<u64>], interval: Duration) -> bool {
    let next = changes.iter_mut().map(|changes| {
        // Where nothing can change any more there is nothing to wait for.
        async {
            if changes.changed().await.is_err() {
                std::future::pending().await
            }
        }
        .boxed()
    });
    let next: Vec<_> = next.collect();
    let changed = async { if next.is_empty() { std::future::pending().await } else { select_all(next).await } };
    tokio::time::timeout(interval, changed).await.is_ok()
}

/// When something was last so.
#[derive(Debug)]
struct Moment(Mutex<Instant>);

impl Moment {
    fn now() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    fn renew(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn is_within(&self, patience: Duration) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < patience
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
    use crate::stub::authenticate::{Authenticating, Proof, Vouched};
    use crate::stub::authorize::{Attributes, CannotDecide, Deciding};
    use crate::wire::{BearerToken, Identity};

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
            credentials: Some(Arc::new(Credentials::new(None, BearerToken::new(user)))),
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
        let following = tokio::spawn(requests.clone().follow(Arc::new(Register), authorizer.clone()));
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
        requests.authorize_again(&authorizer, GRACE).await;
        assert_eq!(alice.ending(), None, "it was allowed a moment ago, and nothing has changed that is known of");
        requests.authorize_again(&authorizer, Duration::ZERO).await;
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

    /// Knows everybody by their names, but not mallory, takes eve for another, and cannot say who carol is.
    #[derive(Debug)]
    struct Register;

    impl Authenticator for Register {
        fn name(&self) -> &'static str {
            "register"
        }

        fn authenticate<'a>(&'a self, credentials: &'a Credentials) -> Authenticating<'a> {
            let vouched = |user: &str| Vouched { identity: Identity::named(user), by: Proof::Token, until: None };
            let answer = match credentials.token().unwrap().reveal() {
                "mallory" => Ok(None),
                "eve" => Ok(Some(vouched("adam"))),
                "carol" => Err(NotVouched::CannotTell("the line is dead".to_owned())),
                "dave" => Err(NotVouched::Refused("expired".to_owned())),
                user => Ok(Some(vouched(user))),
            };
            Box::pin(std::future::ready(answer))
        }
    }

    #[tokio::test]
    async fn requests_end_whose_user_is_not_known_any_more() {
        let requests = Arc::new(OpenRequests::default());
        let [alice, again, mallory, eve, carol, dave] =
            ["alice", "alice", "mallory", "eve", "carol", "dave"].map(|user| open(&requests, user));
        requests.authenticate_again(&Register).await;
        assert!([&alice, &again, &carol].iter().all(|request| request.ending().is_none()));
        assert!([&mallory, &eve, &dave].iter().all(|request| request.ending().is_some()));
    }

    #[tokio::test]
    async fn whom_the_program_vouches_for_no_authenticator_is_asked_about() {
        let requests = Arc::new(OpenRequests::default());
        let origin = Origin { credentials: None, ..open(&requests, "mallory").entry.origin.clone() };
        let request = requests.open(attributes("mallory"), origin, Meter::default());
        requests.authenticate_again(&Register).await;
        assert_eq!(request.ending(), None);
    }

    #[tokio::test]
    async fn a_change_is_noticed_before_its_time() {
        let changes = watch::Sender::new(0);
        let mut receivers = vec![watch::Sender::new(0).subscribe(), changes.subscribe()];
        assert!(!changed_within(&mut receivers, Duration::ZERO).await);
        changes.send_modify(|count| *count += 1);
        assert!(changed_within(&mut receivers, Duration::from_secs(3600)).await);
        assert!(!changed_within(&mut [], Duration::ZERO).await);
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
