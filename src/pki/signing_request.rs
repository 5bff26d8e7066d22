//! Certificate signing requests (PKCS #10, RFC 2986) from agents.

use rcgen::{CertificateSigningRequestParams, PublicKey, PublicKeyData, SanType};
use rustls::pki_types::CertificateSigningRequestDer;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use super::certificate::{AgentIdentity, is_tunnel_uri};

/// A request whose sender has proved that it holds the private key.
pub(super) struct SigningRequest {
    public_key: PublicKey,
    claims: Vec<String>,
}

impl SigningRequest {
    /// Parses `der` and verifies its signature with the public key inside.
    pub(super) fn verify(der: &[u8]) -> Result<Self, SigningRequestError> {
        if der.len() > MAX_LENGTH {
            return Err(SigningRequestError::TooLong);
        }
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
            .map_err(SigningRequestError::Refused)?;
        refuse_a_key_that_would_change(der, &request.public_key)?;
        let claims = request.params.subject_alt_names.into_iter().filter_map(claimed_agent).collect();
        Ok(Self { public_key: request.public_key, claims })
    }

    /// The key to certify for `identity`. Every name in the request is ignored: the identity comes from the join token
    /// or from the certificate being renewed. But a request that asks to be *another* agent is an attack or a mix-up,
    /// not something to answer with a certificate (OCM CVE-2026-4740).
    pub(super) fn public_key_for(&self, identity: &AgentIdentity) -> Result<&PublicKey, SigningRequestError> {
        let expected = identity.to_string();
        match self.claims.iter().find(|claim| **claim != expected) {
            None => Ok(&self.public_key),
            Some(claim) => Err(SigningRequestError::OtherIdentity { claimed: claim.clone(), expected }),
        }
    }
}

/// Why a certificate signing request is refused.
#[derive(Debug, thiserror::Error)]
pub enum SigningRequestError {
    /// More bytes than any request has.
    #[error("the certificate signing request is longer than {MAX_LENGTH} bytes")]
    TooLong,
    /// Bytes follow the request.
    #[error("the certificate signing request cannot be parsed: bytes follow its end")]
    TrailingBytes,
    /// It cannot be parsed, asks for an unknown extension, or its signature is not by the key inside.
    #[error("the certificate signing request is refused: {0}")]
    Refused(#[source] rcgen::Error),
    /// A key that the issued certificate could not carry unchanged.
    #[error("the kind of key in the certificate signing request is not supported: use ECDSA P-256")]
    UnsupportedKey,
    /// It names another agent or another cluster.
    #[error("the certificate signing request asks for {claimed}, but its sender is {expected}")]
    OtherIdentity {
        /// What the request names.
        claimed: String,
        /// Who sent it.
        expected: String,
    },
}

/// A request with an RSA key of 8192 bits takes about 2 KiB.
const MAX_LENGTH: usize = 16 * 1024;

/// rcgen infers the kind of key from the signature's algorithm, so a P-384 key that signs with SHA-256 would be certified
/// as a P-256 key.
fn refuse_a_key_that_would_change(der: &[u8], public_key: &PublicKey) -> Result<(), SigningRequestError> {
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| SigningRequestError::UnsupportedKey)?;
    if !rest.is_empty() {
        return Err(SigningRequestError::TrailingBytes);
    }
    if request.certification_request_info.subject_pki.raw != public_key.subject_public_key_info() {
        return Err(SigningRequestError::UnsupportedKey);
    }
    Ok(())
}

fn claimed_agent(name: SanType) -> Option<String> {
    match name {
        SanType::URI(uri) if is_tunnel_uri(uri.as_str()) => Some(uri.as_str().to_owned()),
        _ => None,
    }
}
