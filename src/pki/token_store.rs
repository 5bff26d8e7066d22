//! The join tokens that the stubs of one store have issued, with a hash in the place of each secret.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::certificate::CertificateFingerprint;
use super::join_token::{JoinToken, RandomFailure, TokenId, TokenSecret};
use super::store::{self, Key, Store, StoreError, TOKEN_EXTENSION, Table};
use crate::wire::ClusterId;

/// Join tokens in a [`Store`]. Any number of stubs may use the same store at once: no use of a token is ever granted twice.
#[derive(Debug, Clone)]
pub struct JoinTokenStore {
    store: Arc<dyn Store>,
    authority: CertificateFingerprint,
}

impl JoinTokenStore {
    /// The tokens in `store`. Those it creates pin `authority`, the authority of the stub's server certificate.
    pub fn new(store: Arc<dyn Store>, authority: CertificateFingerprint) -> Self {
        Self { store, authority }
    }

    /// Creates a token with which `uses` agents can join `cluster` until `ttl` after `now`. This is the only moment at which
    /// its secret is known to the stub. Tokens that have expired are removed on the way.
    ///
    /// # Errors
    /// `uses` is 0, the expiry is out of range, or the store cannot be written.
    pub fn create(
        &self,
        cluster: &ClusterId,
        ttl: Duration,
        uses: u32,
        now: SystemTime,
    ) -> Result<JoinToken, TokenError> {
        if uses == 0 {
            return Err(TokenError::NoUses);
        }
        self.remove_expired(now)?;
        let expires = now.checked_add(ttl).ok_or(TokenError::ExpiryOutOfRange)?;
        let token = JoinToken::generate(cluster.clone(), self.authority)?;
        let record = Record {
            cluster: cluster.clone(),
            secret_sha256: token.secret().hash(),
            expires: Timestamp::try_from(expires).map_err(|_| TokenError::ExpiryOutOfRange)?,
            uses_left: uses,
        };
        store::create(&*self.store, &Key::token(token.id()), &record.to_json()?)?;
        Ok(token)
    }

    /// Takes one use of a token at `now` and says which cluster it lets an agent join. Only the right secret takes a use.
    ///
    /// # Errors
    /// The token is unknown, expired or used up, the secret is wrong, or the store failed.
    pub fn redeem(&self, id: TokenId, secret: &TokenSecret, now: SystemTime) -> Result<ClusterId, RedeemError> {
        let mut results = self.redeem_each(id, std::slice::from_ref(secret), now);
        // As many as there are secrets.
        results.pop().unwrap_or(Err(RedeemError::Unknown))
    }

    /// [Redeems](Self::redeem) a token for everybody who has come with one of `secrets`, in their order: the store is written
    /// once for all of them.
    ///
    /// # Errors
    /// For each of them. When the store failed nobody has taken a use.
    pub fn redeem_each(
        &self,
        id: TokenId,
        secrets: &[TokenSecret],
        now: SystemTime,
    ) -> Vec<Result<ClusterId, RedeemError>> {
        let redeemed = self.try_redeem_each(id, secrets, now).map_err(|error| match error {
            Failure::Unknown => RedeemError::Unknown,
            Failure::Record(error) => RedeemError::Unavailable(Arc::new(error)),
        });
        redeemed.unwrap_or_else(|error| vec![Err(error); secrets.len()])
    }

    fn try_redeem_each(
        &self,
        id: TokenId,
        secrets: &[TokenSecret],
        now: SystemTime,
    ) -> Result<Vec<Result<ClusterId, RedeemError>>, Failure> {
        let key = Key::token(id);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = self.store.get(&key)?.ok_or(Failure::Unknown)?;
            let mut record = self.record(&key, &text)?;
            let uses = record.uses_left;
            let results = secrets.iter().map(|secret| record.redeem(secret, now)).collect();
            // Nothing is written for those who are refused, so that strangers cannot keep holders of a token waiting.
            if record.uses_left == uses || self.store.swap(&key, Some(&text), Some(&record.to_json()?))? {
                return Ok(results);
            }
            // Another stub has taken a use meanwhile.
            if Instant::now() > deadline {
                return Err(StoreError::Busy { path: self.store.place(&key) }.into());
            }
        }
    }

    /// Removes the tokens that have expired before `now` and says how many there were.
    ///
    /// # Errors
    /// The store fails.
    pub fn remove_expired(&self, now: SystemTime) -> Result<usize, TokenError> {
        let mut removed = 0;
        for name in self.store.names(Table::Tokens)?.into_iter().filter(|name| name.ends_with(TOKEN_EXTENSION)) {
            let key = Key::listed(Table::Tokens, name);
            let Some(text) = self.store.get(&key)? else { continue };
            match self.record(&key, &text) {
                Ok(record) if record.is_expired(now) => {
                    removed += usize::from(self.store.swap(&key, Some(&text), None)?);
                }
                Ok(_) => {}
                // One bad record must not keep the operator from creating tokens.
                Err(error) => tracing::warn!(%error, "skipping a join token"),
            }
        }
        Ok(removed)
    }

    fn record(&self, key: &Key, text: &[u8]) -> Result<Record, TokenError> {
        let damaged =
            |error: serde_json::Error| TokenError::Damaged { path: self.store.place(key), reason: error.to_string() };
        serde_json::from_slice(text).map_err(damaged)
    }
}

/// Why a token is not accepted. The difference is for the log; the peer gets [`RedeemError::peer_message`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum RedeemError {
    /// No token has this id; it may have expired long ago.
    #[error("no such join token")]
    Unknown,
    /// The id is right, the secret is not: somebody guesses.
    #[error("wrong secret for the join token")]
    WrongSecret,
    /// The token was good once.
    #[error("the join token has expired")]
    Expired,
    /// All of its uses are taken.
    #[error("the join token has been used up")]
    UsedUp,
    /// The record of the token cannot be read or written. The same token may be good later.
    #[error(transparent)]
    Unavailable(Arc<TokenError>),
}

impl RedeemError {
    /// What the peer may know: not which part of its token was wrong.
    pub fn peer_message(&self) -> &'static str {
        match self {
            Self::Unknown | Self::WrongSecret | Self::Expired | Self::UsedUp => {
                "the join token is not valid: it may have expired or been used; ask the operator of the stub for a new one"
            }
            Self::Unavailable(_) => "the stub cannot check join tokens at the moment; try again",
        }
    }

    /// Whether the same token may be accepted later.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// Why a token cannot be made or kept.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// A token that nobody could use.
    #[error("a join token needs at least one use")]
    NoUses,
    /// An expiry beyond the year 9999.
    #[error("the join token's expiry is out of range: choose a shorter life")]
    ExpiryOutOfRange,
    /// The secret cannot be made.
    #[error(transparent)]
    Random(#[from] RandomFailure),
    /// A token's record with a content that was not written here.
    #[error("{} is damaged ({reason}): remove it and create a new join token", path.display())]
    Damaged {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A token's record cannot be encoded.
    #[error("the join token cannot be written as JSON: {0}")]
    Encode(#[source] serde_json::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How long a use is fought for: each time that another stub is faster, a use is gone, so that this is never long.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why nobody can redeem a token.
enum Failure {
    Unknown,
    Record(TokenError),
}

impl<E: Into<TokenError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Record(error.into())
    }
}

/// What is kept of a token.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    #[serde(with = "as_text")]
    cluster: ClusterId,
    /// In base64url.
    secret_sha256: String,
    expires: Timestamp,
    uses_left: u32,
}

impl Record {
    /// Takes a use, if `secret` is the right one.
    fn redeem(&mut self, secret: &TokenSecret, now: SystemTime) -> Result<ClusterId, RedeemError> {
        if !secret.has_hash(&self.secret_sha256) {
            return Err(RedeemError::WrongSecret);
        }
        if self.is_expired(now) {
            return Err(RedeemError::Expired);
        }
        self.uses_left = self.uses_left.checked_sub(1).ok_or(RedeemError::UsedUp)?;
        Ok(self.cluster.clone())
    }

    fn is_expired(&self, now: SystemTime) -> bool {
        now >= SystemTime::from(self.expires)
    }

    fn to_json(&self) -> Result<Vec<u8>, TokenError> {
        serde_json::to_vec_pretty(self).map_err(TokenError::Encode)
    }
}

/// Reads and writes a value in its own textual form.
mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: FromStr<Err: Display>,
    {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::sync::Barrier;
    use std::{fs, thread};

    use super::*;
    use crate::pki::DirectoryStore;

    const HOUR: Duration = Duration::from_secs(3600);

    struct Scene {
        root: tempfile::TempDir,
        store: JoinTokenStore,
        now: SystemTime,
    }

    impl Scene {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let store = open(root.path());
            Self { root, store, now: SystemTime::now() }
        }

        fn token(&self, uses: u32) -> JoinToken {
            self.store.create(&cluster(), HOUR, uses, self.now).unwrap()
        }

        fn redeem(&self, token: &JoinToken) -> Result<ClusterId, RedeemError> {
            self.store.redeem(token.id(), token.secret(), self.now)
        }

        fn directory(&self) -> PathBuf {
            self.root.path().join("tokens")
        }
    }

    fn open(directory: &Path) -> JoinTokenStore {
        JoinTokenStore::new(Arc::new(DirectoryStore::new(directory)), fingerprint())
    }

    fn fingerprint() -> CertificateFingerprint {
        CertificateFingerprint::from_bytes([1; 32])
    }

    fn cluster() -> ClusterId {
        "prod".parse().unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_token_lets_as_many_agents_join_as_it_has_uses() {
        let scene = Scene::new();
        let token = scene.token(2);
        assert_eq!(token.authority(), fingerprint());
        assert_eq!(scene.redeem(&token).unwrap(), cluster());
        assert_eq!(scene.redeem(&token).unwrap(), cluster());
        assert!(matches!(scene.redeem(&token), Err(RedeemError::UsedUp)));
    }

    #[test]
    fn a_wrong_secret_takes_no_use() {
        let scene = Scene::new();
        let token = scene.token(1);
        let guess = TokenSecret::from_bytes([9; 32]);
        assert!(matches!(scene.store.redeem(token.id(), &guess, scene.now), Err(RedeemError::WrongSecret)));
        assert!(scene.redeem(&token).is_ok());
    }

    #[test]
    fn a_peer_does_not_learn_why_its_token_is_refused() {
        let scene = Scene::new();
        let token = scene.token(1);
        let unknown = scene.store.redeem(TokenId::from_bytes([0; 8]), token.secret(), scene.now).unwrap_err();
        assert!(matches!(unknown, RedeemError::Unknown));
        let expired = scene.store.redeem(token.id(), token.secret(), scene.now + HOUR).unwrap_err();
        assert!(matches!(expired, RedeemError::Expired));
        for other in [expired, RedeemError::UsedUp, RedeemError::WrongSecret] {
            assert_eq!(unknown.peer_message(), other.peer_message());
        }
    }

    #[test]
    fn the_files_are_private_and_hold_no_secret() {
        let scene = Scene::new();
        let token = scene.token(1);
        let path = scene.directory().join(format!("{}.json", token.id()));
        assert_eq!((mode(&scene.directory()), mode(&path)), (0o700, 0o600));
        let content = fs::read_to_string(&path).unwrap();
        assert!(content.contains(&token.secret().hash()) && content.contains("\"cluster\": \"prod\""), "{content}");
        let text = token.to_string();
        // Neither the secret's bytes nor any stretch of the token's text.
        assert!(!text.as_bytes().windows(12).any(|part| content.contains(std::str::from_utf8(part).unwrap())));
        scene.redeem(&token).unwrap();
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn expired_tokens_are_removed_when_a_new_one_is_created() {
        let scene = Scene::new();
        let old = scene.token(1);
        fs::write(scene.directory().join("damaged.json"), "{").unwrap();
        scene.store.create(&cluster(), HOUR, 1, scene.now + HOUR).unwrap();
        assert!(matches!(scene.redeem(&old), Err(RedeemError::Unknown)));
        assert_eq!(scene.store.remove_expired(scene.now + 2 * HOUR).unwrap(), 1);
    }

    #[test]
    fn agents_that_race_for_a_token_get_exactly_its_uses() {
        let scene = Scene::new();
        let token = scene.token(5);
        let start = Barrier::new(16);
        let granted = thread::scope(|scope| {
            let racers: Vec<_> = (0..16)
                .map(|_| {
                    scope.spawn(|| {
                        // As another process would: with a store of its own.
                        let store = open(scene.root.path());
                        start.wait();
                        store.redeem(token.id(), token.secret(), scene.now)
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).filter(Result::is_ok).count()
        });
        assert_eq!(granted, 5);
        assert!(matches!(scene.redeem(&token), Err(RedeemError::UsedUp)));
    }

    #[test]
    fn agents_that_come_together_get_what_each_would_get_alone() {
        let scene = Scene::new();
        let token = scene.token(2);
        let (right, wrong) = (token.secret().clone(), TokenSecret::from_bytes([9; 32]));
        let results = scene.store.redeem_each(token.id(), &[right.clone(), wrong, right.clone(), right], scene.now);
        let [Ok(_), Err(RedeemError::WrongSecret), Ok(_), Err(RedeemError::UsedUp)] = results.as_slice() else {
            panic!("{results:?}");
        };
        let unknown = scene.store.redeem_each(TokenId::from_bytes([0; 8]), &[token.secret().clone()], scene.now);
        assert!(matches!(unknown.as_slice(), [Err(RedeemError::Unknown)]), "{unknown:?}");
    }

    #[test]
    fn a_store_that_fails_refuses_nobody_for_good() {
        let scene = Scene::new();
        let token = scene.token(1);
        fs::write(scene.directory().join(format!("{}.json", token.id())), "{").unwrap();
        let error = scene.redeem(&token).unwrap_err();
        assert!(error.is_temporary() && !RedeemError::UsedUp.is_temporary(), "{error}");
    }

    #[test]
    fn a_token_that_nobody_could_use_is_refused() {
        let scene = Scene::new();
        assert!(matches!(scene.store.create(&cluster(), HOUR, 0, scene.now), Err(TokenError::NoUses)));
        let forever = scene.store.create(&cluster(), Duration::MAX, 1, scene.now);
        assert!(matches!(forever, Err(TokenError::ExpiryOutOfRange)));
    }
}
