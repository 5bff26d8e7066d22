//! Agents that come with the same join token at the same time are served together.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use crate::pki::{JoinTokenStore, RedeemError, TokenId, TokenSecret};
use crate::wire::ClusterId;

/// Redeems join tokens. The store is slow: it writes to a disk, or to an API server. While it takes the uses of some agents,
/// those who come with the same token wait, and are then served with one write.
#[derive(Debug)]
pub struct Redemptions(Arc<Queues>);

#[derive(Debug)]
struct Queues {
    tokens: JoinTokenStore,
    /// A token that somebody waits for, or is being served for, is in it.
    waiting: Mutex<HashMap<TokenId, Vec<Applicant>>>,
    /// Each use of the store takes a thread.
    at_store: Semaphore,
}

/// Somebody who waits.
#[derive(Debug)]
struct Applicant {
    secret: TokenSecret,
    answer: oneshot::Sender<Redeemed>,
}

/// The cluster that the agent joins.
type Redeemed = Result<ClusterId, RedeemError>;

/// How many tokens are looked up and changed at once.
const TOKENS_AT_ONCE: usize = 8;

/// How long an agent waits: as long as it would itself.
const PATIENCE: Duration = Duration::from_secs(10);

impl Redemptions {
    /// Redeems the tokens in `tokens`.
    pub fn new(tokens: JoinTokenStore) -> Self {
        Self(Arc::new(Queues { tokens, waiting: Mutex::default(), at_store: Semaphore::new(TOKENS_AT_ONCE) }))
    }

    /// Takes one use of a token. `None` if the store does not answer in time, or the stub is stopping.
    pub async fn redeem(&self, id: TokenId, secret: &TokenSecret) -> Option<Redeemed> {
        let (answer, answered) = oneshot::channel();
        if self.0.enter(id, Applicant { secret: secret.clone(), answer }) {
            tokio::spawn(self.0.clone().serve(id));
        }
        timeout(PATIENCE, answered).await.ok()?.ok()
    }
}

impl Queues {
    /// Queues somebody, and says whether nobody is serving this token.
    fn enter(&self, id: TokenId, applicant: Applicant) -> bool {
        let mut waiting = self.lock();
        let is_first = !waiting.contains_key(&id);
        waiting.entry(id).or_default().push(applicant);
        is_first
    }

    /// Serves everybody who has come with a token, until nobody waits for it any more.
    async fn serve(self: Arc<Self>, id: TokenId) {
        // Nobody closes the semaphore.
        while let Ok(_turn) = self.at_store.acquire().await
            && let Some(applicants) = self.next(id)
        {
            let queues = self.clone();
            // If the store panics, those who have just been served learn that they were not, by their channels' end.
            let _ = tokio::task::spawn_blocking(move || queues.serve_together(id, applicants)).await;
        }
    }

    /// Everybody who waits for a token; `None`, once and for all, if nobody does.
    fn next(&self, id: TokenId) -> Option<Vec<Applicant>> {
        let mut waiting = self.lock();
        let applicants = waiting.get_mut(&id).map(std::mem::take).filter(|applicants| !applicants.is_empty());
        if applicants.is_none() {
            waiting.remove(&id);
        }
        applicants
    }

    fn serve_together(&self, id: TokenId, mut applicants: Vec<Applicant>) {
        // Whoever has gone takes no use.
        applicants.retain(|applicant| !applicant.answer.is_closed());
        let secrets: Vec<_> = applicants.iter().map(|applicant| applicant.secret.clone()).collect();
        let results = self.tokens.redeem_each(id, &secrets, SystemTime::now());
        for (applicant, result) in applicants.into_iter().zip(results) {
            // It may have gone meanwhile: its use is lost (proto-spec/qtunnel-1.md, section 11).
            let _ = applicant.answer.send(result);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TokenId, Vec<Applicant>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;

    use super::*;
    use crate::pki::store::{DirectoryStore, Key, Store, StoreError, Table};
    use crate::pki::{CertificateFingerprint, JoinToken};

    /// Counts how often it is written to.
    #[derive(Debug)]
    struct Counted {
        store: DirectoryStore,
        writes: AtomicUsize,
    }

    impl Store for Counted {
        fn get(&self, key: &Key) -> Result<Option<Vec<u8>>, StoreError> {
            self.store.get(key)
        }

        fn names(&self, table: Table) -> Result<Vec<String>, StoreError> {
            self.store.names(table)
        }

        fn swap(&self, key: &Key, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<bool, StoreError> {
            self.writes.fetch_add(1, Ordering::Relaxed);
            self.store.swap(key, old, new)
        }

        fn place(&self, key: &Key) -> PathBuf {
            self.store.place(key)
        }
    }

    struct Scene {
        _root: tempfile::TempDir,
        store: Arc<Counted>,
        redemptions: Redemptions,
        token: JoinToken,
    }

    fn scene(uses: u32) -> Scene {
        let root = tempfile::tempdir().unwrap();
        let store = Arc::new(Counted { store: DirectoryStore::new(root.path()), writes: AtomicUsize::new(0) });
        let tokens = JoinTokenStore::new(store.clone(), CertificateFingerprint::from_bytes([1; 32]));
        let token = tokens.create(&"eu".parse().unwrap(), Duration::from_secs(3600), uses, SystemTime::now()).unwrap();
        Scene { _root: root, store, redemptions: Redemptions::new(tokens), token }
    }

    #[tokio::test]
    async fn a_thousand_agents_with_one_token_need_two_writes() {
        let Scene { _root, store, redemptions, token } = scene(999);
        let before = store.writes.load(Ordering::Relaxed);
        let everybody = (0..1000).map(|_| redemptions.redeem(token.id(), token.secret()));
        let results = join_all(everybody).await;
        let joined = results.iter().filter(|result| matches!(result, Some(Ok(_)))).count();
        assert_eq!(joined, 999);
        // All have come before the first of them is served, as this runtime has one thread.
        assert!(store.writes.load(Ordering::Relaxed) - before <= 2);
        // Who serves a token forgets it after the last answer.
        let forgotten = async {
            while !redemptions.0.lock().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, forgotten).await.expect("nobody waits, so the token is forgotten");
    }

    #[tokio::test]
    async fn agents_that_come_one_after_the_other_are_served_each() {
        let Scene { _root, redemptions, token, .. } = scene(2);
        for is_joining in [true, true, false] {
            let result = redemptions.redeem(token.id(), token.secret()).await.unwrap();
            assert_eq!(result.is_ok(), is_joining, "{result:?}");
        }
    }
}
