//! The public keys of an issuer, fetched from where it publishes them (OpenID Connect Discovery 1.0, section 4).

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Uri;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::token::{Claims, Curve, PublicKey, SignedToken};
use crate::kube::kubeconfig::{Credentials, Upstream};
use crate::stub::outbound::Outbound;

/// How long an issuer may take to answer one of the two questions.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long keys are used before they are fetched again. A key that the issuer has withdrawn stays good for so long.
const FRESH_FOR: Duration = Duration::from_secs(5 * 60);

/// How soon keys are fetched again for a token with a key that is not among them: anybody can send such tokens.
const MIN_INTERVAL: Duration = Duration::from_secs(5);

/// The most keys of an issuer that are kept.
const MAX_KEYS: usize = 256;

/// The keys of one issuer.
#[derive(Debug)]
pub struct IssuerKeys {
    issuer: String,
    discovery: Uri,
    certificate_authority: Option<Vec<u8>>,
    current: ArcSwapOption<KeySet>,
    /// Locked while they are fetched: the moment of the last attempt, and why it failed.
    attempt: Mutex<Option<(Instant, Result<(), KeysError>)>>,
}

/// Why there are no keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the keys of the issuer {issuer} cannot be fetched: {why}")]
pub struct KeysError {
    issuer: String,
    why: String,
}

#[derive(Debug)]
struct KeySet {
    keys: Vec<(Option<String>, PublicKey)>,
    fetched: Instant,
}

impl IssuerKeys {
    /// The keys of `issuer`, whose configuration is at `discovery`. `certificate_authority` is the PEM of whom to trust
    /// there; `None`: whom the operating system trusts.
    pub fn new(issuer: String, discovery: Uri, certificate_authority: Option<Vec<u8>>) -> Self {
        let (current, attempt) = (ArcSwapOption::empty(), Mutex::default());
        Self { issuer, discovery, certificate_authority, current, attempt }
    }

    /// What a token says, if one of the issuer's keys has signed it. Keys are fetched where they are needed: at first, after
    /// a while, and for a key that is not known.
    ///
    /// # Errors
    /// There are no keys, and they cannot be fetched.
    pub async fn verify<'a>(&self, token: &'a SignedToken<'_>) -> Result<Option<&'a Claims>, KeysError> {
        let known = self.current.load_full();
        let verdict = known.as_ref().and_then(|keys| keys.verify(token));
        match &known {
            Some(keys) if keys.fetched.elapsed() < FRESH_FOR && (verdict.is_some() || keys.has(&token.key_id)) => {
                return Ok(verdict);
            }
            _ => {}
        }
        match (self.refresh(known.as_ref()).await, known) {
            (Err(error), None) => Err(error),
            // Old keys are better than nobody being let in.
            (Err(_), Some(_)) => Ok(verdict),
            (Ok(keys), _) => Ok(keys.verify(token)),
        }
    }

    /// Newer keys than those that are `known`, fetched by one of those who want them.
    async fn refresh(&self, known: Option<&Arc<KeySet>>) -> Result<Arc<KeySet>, KeysError> {
        let mut attempt = self.attempt.lock().await;
        let current = self.current.load_full();
        if let Some(newer) = current.as_ref().filter(|current| known.is_none_or(|known| !Arc::ptr_eq(known, current))) {
            return Ok(newer.clone());
        }
        if let Some((at, result)) = &*attempt
            && at.elapsed() < MIN_INTERVAL
        {
            return match (result, current) {
                (Ok(()), Some(current)) => Ok(current),
                (Ok(()), None) => Err(self.failed("nothing was fetched yet".to_owned())),
                (Err(error), _) => Err(error.clone()),
            };
        }
        let fetched = self.fetch().await;
        *attempt = Some((Instant::now(), fetched.as_ref().map(drop).map_err(KeysError::clone)));
        match fetched {
            Ok(keys) => {
                let keys = Arc::new(keys);
                self.current.store(Some(keys.clone()));
                Ok(keys)
            }
            Err(error) => {
                tracing::warn!("{error}");
                Err(error)
            }
        }
    }

    async fn fetch(&self) -> Result<KeySet, KeysError> {
        let configuration: Configuration = self.get(&self.discovery).await?;
        // Section 4.3: otherwise one issuer could speak with another's keys.
        if configuration.issuer != self.issuer {
            return Err(self.failed(format!("{} belongs to the issuer {:?}", self.discovery, configuration.issuer)));
        }
        let address = configuration.jwks_uri.parse::<Uri>().ok();
        let address = address.filter(|address| address.scheme_str() == Some("https"));
        let address = address.ok_or_else(|| self.failed("its jwks_uri is not an https:// address".to_owned()))?;
        let document: KeyDocument = self.get(&address).await?;
        let keys: Vec<_> = document.keys.into_iter().filter_map(JsonKey::public_key).take(MAX_KEYS).collect();
        match keys.is_empty() {
            false => Ok(KeySet { keys, fetched: Instant::now() }),
            true => Err(self.failed(format!("{address} has no key to verify signatures with"))),
        }
    }

    async fn get<A: serde::de::DeserializeOwned>(&self, address: &Uri) -> Result<A, KeysError> {
        let server = Upstream {
            server: address.clone(),
            certificate_authority: self.certificate_authority.clone(),
            server_name: None,
            credentials: Credentials::Anonymous,
            insecure: false,
        };
        let outbound = Outbound::new(&server, TIMEOUT).map_err(|error| self.failed(error.to_string()))?;
        outbound.get().await.map_err(|error| self.failed(error.to_string()))
    }

    fn failed(&self, why: String) -> KeysError {
        KeysError { issuer: self.issuer.clone(), why }
    }
}

impl KeySet {
    fn has(&self, key_id: &Option<String>) -> bool {
        self.keys.iter().any(|(id, _)| id == key_id)
    }

    /// A token that names no key may be signed with any; one that names a key only with that one.
    fn verify<'a>(&self, token: &'a SignedToken<'_>) -> Option<&'a Claims> {
        let named = |id: &Option<String>| token.key_id.is_none() || *id == token.key_id;
        self.keys.iter().filter(|(id, _)| named(id)).find_map(|(_, key)| token.verify(key))
    }
}

#[derive(Deserialize)]
struct Configuration {
    issuer: String,
    jwks_uri: String,
}

/// A JWK Set (RFC 7517, section 5).
#[derive(Deserialize)]
struct KeyDocument {
    keys: Vec<JsonKey>,
}

#[derive(Deserialize)]
struct JsonKey {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    n: Option<String>,
    e: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl JsonKey {
    /// The key with its id, where it is for signatures and of a kind that is known; others are to be ignored (RFC 7517,
    /// section 5).
    fn public_key(self) -> Option<(Option<String>, PublicKey)> {
        if self.purpose.is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let number = |text: Option<String>| URL_SAFE_NO_PAD.decode(text?).ok();
        let key = match self.kty.as_str() {
            "RSA" => {
                let trimmed = |bytes: Vec<u8>| bytes.into_iter().skip_while(|byte| *byte == 0).collect();
                PublicKey::Rsa { n: number(self.n).map(trimmed)?, e: number(self.e).map(trimmed)? }
            }
            "EC" => {
                let curve = Curve::named(&self.crv?)?;
                let (x, y) = (number(self.x)?, number(self.y)?);
                let length = curve.coordinate_length();
                // An uncompressed point (SEC 1, section 2.3.3).
                let point = (x.len() == length && y.len() == length).then(|| [&[4][..], &x, &y].concat())?;
                PublicKey::EllipticCurve { curve, point }
            }
            _ => return None,
        };
        Some((self.kid, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Vec<(Option<String>, PublicKey)> {
        let document: KeyDocument = serde_json::from_str(text).unwrap();
        document.keys.into_iter().filter_map(JsonKey::public_key).collect()
    }

    #[test]
    fn keys_of_unknown_kinds_and_for_other_purposes_are_left_out() {
        let found = keys(
            r#"{"keys": [
                {"kty": "RSA", "kid": "a", "use": "sig", "n": "AAEC", "e": "AQAB", "alg": "RS256"},
                {"kty": "RSA", "kid": "b", "use": "enc", "n": "AAEC", "e": "AQAB"},
                {"kty": "oct", "kid": "c", "k": "c2VjcmV0"},
                {"kty": "EC", "crv": "P-256", "x": "AQ", "y": "AQ"},
                {"kty": "EC", "crv": "secp256k1", "x": "AQ", "y": "AQ"},
                {"kty": "RSA", "n": "not base64!", "e": "AQAB"}
            ]}"#,
        );
        assert_eq!(found, [(Some("a".to_owned()), PublicKey::Rsa { n: vec![1, 2], e: vec![1, 0, 1] })]);
    }

    #[tokio::test]
    async fn an_issuer_that_does_not_answer_is_not_asked_for_every_token() {
        // Port 9 (discard) of loopback: nobody listens there.
        let keys = IssuerKeys::new("https://127.0.0.1:9".to_owned(), "https://127.0.0.1:9/x".parse().unwrap(), None);
        let token = SignedToken::parse("eyJhbGciOiJSUzI1NiJ9.e30.c2ln").unwrap();
        assert!(keys.verify(&token).await.is_err());
        let at = keys.attempt.lock().await.as_ref().unwrap().0;
        assert!(keys.verify(&token).await.is_err());
        assert_eq!(keys.attempt.lock().await.as_ref().unwrap().0, at);
    }
}
