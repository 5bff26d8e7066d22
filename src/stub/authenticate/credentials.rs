//! What a user presents.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustls::pki_types::CertificateDer;

use crate::kube::user_token::TokenHash;
use crate::pki::{CertificateError, CertificateFingerprint, Validity, user_identity};
use crate::wire::{BearerToken, Identity};

/// What a user presents with a request. Secrets in it are never printed.
#[derive(Debug, Clone)]
pub struct Credentials {
    certificate: Option<Arc<ClientCertificate>>,
    token: Option<BearerToken>,
    key: CredentialKey,
}

/// What an answer about credentials may be remembered by: equal for equal credentials, and no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CredentialKey {
    certificate: Option<CertificateFingerprint>,
    token: Option<TokenHash>,
}

impl Credentials {
    /// The certificate of a connection, and the bearer token of a request.
    pub fn new(certificate: Option<Arc<ClientCertificate>>, token: Option<BearerToken>) -> Self {
        let key = CredentialKey {
            certificate: certificate.as_ref().map(|certificate| certificate.fingerprint),
            token: token.as_ref().map(TokenHash::of),
        };
        Self { certificate, token, key }
    }

    /// The client certificate. TLS has verified that the client has its key.
    pub fn certificate(&self) -> Option<&ClientCertificate> {
        self.certificate.as_deref()
    }

    /// The bearer token.
    pub fn token(&self) -> Option<&BearerToken> {
        self.token.as_ref()
    }

    /// The SHA-256 of the bearer token.
    pub fn token_hash(&self) -> Option<&TokenHash> {
        self.key.token.as_ref()
    }

    /// What an answer may be remembered by.
    pub fn key(&self) -> &CredentialKey {
        &self.key
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.certificate.is_none() && self.token.is_none()
    }
}

/// A client's certificate, parsed once for its connection.
pub struct ClientCertificate {
    /// The certificate itself, and the intermediate ones that came with it.
    pub chain: Vec<CertificateDer<'static>>,
    /// Who it names.
    pub identity: Identity,
    /// When it is valid.
    pub validity: Validity,
    /// Its serial number, as bytes without leading zeros.
    pub serial: Vec<u8>,
    fingerprint: CertificateFingerprint,
    /// The state of trust under which it was verified last; see [`super::ClientCertificates`].
    pub(super) verified_under: AtomicU64,
}

impl ClientCertificate {
    /// The certificate that a chain begins with; `None` for an empty chain.
    ///
    /// # Errors
    /// It cannot be parsed, belongs to an agent, or does not name exactly one user in readable text.
    pub fn of(chain: &[CertificateDer<'_>]) -> Result<Option<Self>, CertificateError> {
        let Some(certificate) = chain.first() else { return Ok(None) };
        Ok(Some(Self {
            identity: user_identity(certificate)?,
            validity: Validity::of(certificate)?,
            serial: crate::pki::serial_number(certificate)?,
            fingerprint: CertificateFingerprint::of(certificate),
            verified_under: AtomicU64::new(0),
            chain: chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
        }))
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { identity, fingerprint, .. } = self;
        f.debug_struct("ClientCertificate").field("user", &identity.user).field("sha256", fingerprint).finish()
    }
}
