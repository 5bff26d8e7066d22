//! Users with tokens of an OpenID Connect issuer.

mod claims;
mod config;
mod expression;
mod keys;
mod token;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use self::config::JwtConfig;
use self::keys::IssuerKeys;
use self::token::{SignedToken, TokenError};
use super::{Authenticating, Authenticator, Credentials, NotVouched, Proof, SystemNames, Vouched};
use crate::kube::user_token::TokenHash;
use crate::stub::cache::AnswerCache;
use crate::stub::reload::{Followed, Reload};
use crate::stub::text_file::{TextFile, TextFileError};

/// How long a token that was good is taken for good. Its signature is verified again then, so a key that the issuer has
/// withdrawn is noticed at open requests, too.
const KEEP_GOOD: Duration = Duration::from_secs(10);

/// How long a token that was not good is not looked at again.
const KEEP_BAD: Duration = Duration::from_secs(2);

/// Tokens whose verdicts are kept.
const CACHE: usize = 16 * 1024;

/// Knows users by JSON Web Tokens, as an `AuthenticationConfiguration` file of kube-apiserver says. The file is read again
/// when it changes; the issuers' keys are fetched when they are needed first, and again for keys that are new.
///
/// Names under `system:` are refused, unless [`SystemNames`] lets others give them.
#[derive(Debug, Clone)]
pub struct JwtAuthenticator {
    file: Arc<Followed<TextFile<Issuers>>>,
    names: SystemNames,
}

/// The issuers of one state of the file, and what is remembered under it.
#[derive(Debug)]
struct Issuers {
    issuers: Vec<Arc<Issuer>>,
    verdicts: Arc<Verdicts>,
}

#[derive(Debug)]
struct Issuer {
    config: JwtConfig,
    keys: IssuerKeys,
}

type Verdict = Result<Option<Vouched>, NotVouched>;

type Verdicts = AnswerCache<TokenHash, Verdict>;

impl JwtAuthenticator {
    /// Reads the file for the first time. Issuers need not answer yet.
    ///
    /// # Errors
    /// It cannot be read, or holds what cannot be used.
    pub fn load(path: &Path, names: SystemNames) -> Result<Self, TextFileError> {
        let file = Followed::load(TextFile::new(path, "authentication configuration", Issuers::parse))?;
        Ok(Self { file: Arc::new(file), names })
    }

    /// What has to be followed for changes to be seen.
    pub(in crate::stub) fn file(&self) -> Arc<dyn Reload> {
        self.file.clone()
    }

    async fn vouch(&self, credentials: &Credentials) -> Verdict {
        let (Some(token), Some(hash)) = (credentials.token(), credentials.token_hash()) else { return Ok(None) };
        let token = match SignedToken::parse(token.reveal()) {
            Ok(token) => token,
            Err(TokenError::NotAToken) => return Ok(None),
            Err(error) => return Err(NotVouched::Refused(format!("the token: {error}"))),
        };
        // Only for tokens of known issuers: others would push those of users out of the cache.
        let Some((issuer, verdicts)) = self.issuer_of(&token) else { return Ok(None) };
        let verdict = verdicts.get(*hash, async {
            let verdict = self.verify(&issuer, &token).await;
            let keep_for = if matches!(verdict, Ok(Some(_))) { KEEP_GOOD } else { KEEP_BAD };
            (verdict, keep_for)
        });
        match verdict.await {
            Ok(Some(vouched)) if vouched.until.is_some_and(|until| until <= SystemTime::now()) => {
                Err(refused(&issuer, "it has expired"))
            }
            verdict => verdict,
        }
    }

    /// Who says to have issued a token, if that is somebody known, and what is remembered of tokens.
    fn issuer_of(&self, token: &SignedToken<'_>) -> Option<(Arc<Issuer>, Arc<Verdicts>)> {
        let claimed = token.unverified.get("iss")?.as_str()?;
        let issuers = self.file.current();
        let issuer = issuers.issuers.iter().find(|issuer| issuer.config.issuer == claimed)?;
        Some((issuer.clone(), issuers.verdicts.clone()))
    }

    async fn verify(&self, issuer: &Issuer, token: &SignedToken<'_>) -> Verdict {
        let verified = issuer.keys.verify(token).await.map_err(|error| NotVouched::CannotTell(error.to_string()))?;
        let claims = verified.ok_or_else(|| refused(issuer, "none of the issuer's keys has signed it"))?;
        let user = claims::user(&issuer.config, claims, SystemTime::now());
        let (identity, until) = user.map_err(|why| refused(issuer, why))?;
        let identity = self.names.check(identity)?;
        Ok(Some(Vouched { identity, by: Proof::Token, until: Some(until) }))
    }
}

fn refused(issuer: &Issuer, why: impl std::fmt::Display) -> NotVouched {
    NotVouched::Refused(format!("the token of {}: {why}", issuer.config.issuer))
}

impl Issuers {
    fn parse(text: &str) -> Result<Self, String> {
        let issuers = config::parse(text)?.into_iter().map(|config| {
            let authority = config.certificate_authority.clone().map(String::into_bytes);
            let keys = IssuerKeys::new(config.issuer.clone(), config.discovery.clone(), authority);
            Arc::new(Issuer { config, keys })
        });
        Ok(Self { issuers: issuers.collect(), verdicts: Arc::new(AnswerCache::new(CACHE)) })
    }
}

impl Authenticator for JwtAuthenticator {
    fn name(&self) -> &'static str {
        "jwt"
    }

    fn authenticate<'a>(&'a self, credentials: &'a Credentials) -> Authenticating<'a> {
        Box::pin(self.vouch(credentials))
    }

    fn changes(&self) -> Vec<watch::Receiver<u64>> {
        vec![self.file.changes()]
    }
}
