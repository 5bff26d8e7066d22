//! The bearer token of a kubeconfig's user.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::HeaderValue;

use super::Credentials;
use crate::wire::BearerToken;

/// A token, or a file that holds the current one.
#[derive(Debug)]
pub struct Credential(Source);

#[derive(Debug)]
enum Source {
    None,
    Fixed(HeaderValue),
    File { path: PathBuf, cached: Mutex<Option<Cached>> },
}

#[derive(Debug, Clone)]
struct Cached {
    header: HeaderValue,
    read_at: Instant,
}

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the token file {path}: {why}")]
pub struct CredentialError {
    path: PathBuf,
    why: String,
}

/// How long a token that was read is used. The kubelet replaces the token of a service account well before it expires,
/// and client-go rereads it every minute.
const FRESH_FOR: Duration = Duration::from_secs(10);

impl Credential {
    /// The token of `credentials`, if they have one. A token file is read for a first time.
    pub fn new(credentials: &Credentials) -> Result<Self, CredentialError> {
        Ok(Self(match credentials {
            Credentials::Anonymous | Credentials::ClientCertificate(_) => Source::None,
            Credentials::Token(token) => Source::Fixed(bearer(token)),
            Credentials::TokenFile(path) => {
                let header = parse(path, std::fs::read_to_string(path))?;
                let cached = Mutex::new(Some(Cached { header, read_at: Instant::now() }));
                Source::File { path: path.clone(), cached }
            }
        }))
    }

    /// The `Authorization` to send.
    pub async fn authorization(&self) -> Result<Option<HeaderValue>, CredentialError> {
        match &self.0 {
            Source::None => Ok(None),
            Source::Fixed(header) => Ok(Some(header.clone())),
            Source::File { path, cached } => {
                let known = lock(cached).clone();
                match known {
                    Some(known) if known.read_at.elapsed() < FRESH_FOR => Ok(Some(known.header)),
                    _ => {
                        let header = parse(path, tokio::fs::read_to_string(path).await)?;
                        *lock(cached) = Some(Cached { header: header.clone(), read_at: Instant::now() });
                        Ok(Some(header))
                    }
                }
            }
        }
    }

    /// Reads the file again before the next request.
    pub fn forget(&self) {
        if let Source::File { cached, .. } = &self.0 {
            *lock(cached) = None;
        }
    }
}

fn lock(cached: &Mutex<Option<Cached>>) -> std::sync::MutexGuard<'_, Option<Cached>> {
    cached.lock().unwrap_or_else(PoisonError::into_inner)
}

fn parse(path: &Path, text: std::io::Result<String>) -> Result<HeaderValue, CredentialError> {
    let failed = |why: String| CredentialError { path: path.to_owned(), why };
    let text = text.map_err(|error| failed(error.to_string()))?;
    let token = BearerToken::new(text.trim()).ok_or_else(|| failed("it does not hold a bearer token".to_owned()))?;
    Ok(bearer(&token))
}

/// `Authorization: Bearer ...`, marked so that HTTP/2 never puts it into a compression table and `Debug` never shows it.
pub fn bearer(token: &BearerToken) -> HeaderValue {
    let mut header = HeaderValue::try_from(format!("Bearer {}", token.reveal()))
        // A bearer token is visible ASCII by construction.
        .unwrap_or_else(|_| unreachable!("a bearer token is a valid header value"));
    header.set_sensitive(true);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_file_that_rotates_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "first\n").unwrap();
        let credential = Credential::new(&Credentials::TokenFile(path.clone())).unwrap();
        assert_eq!(credential.authorization().await.unwrap().unwrap(), "Bearer first");
        std::fs::write(&path, "second\n").unwrap();
        credential.forget();
        assert_eq!(credential.authorization().await.unwrap().unwrap(), "Bearer second");
    }

    #[test]
    fn a_missing_token_file_is_named() {
        let error = Credential::new(&Credentials::TokenFile("/nowhere/token".into())).unwrap_err();
        assert!(error.to_string().contains("/nowhere/token"), "{error}");
    }
}
