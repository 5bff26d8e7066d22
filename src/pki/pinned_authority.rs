//! Trust by fingerprint: how an agent that has only a join token recognizes its stub.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};

use super::certificate::CertificateFingerprint;

/// The certificate in `chain` that has `fingerprint`. After an enrolment handshake this is the authority to trust from
/// then on.
pub fn find_pinned<'a>(
    chain: &'a [CertificateDer<'static>],
    fingerprint: &CertificateFingerprint,
) -> Option<&'a CertificateDer<'static>> {
    chain.iter().find(|certificate| CertificateFingerprint::of(certificate) == *fingerprint)
}

/// The authority that a join token names, and whether a server has been met that it does not vouch for. Clones are the same
/// pin.
///
/// What carries TLS (QUIC above all) tells of a failed handshake in words alone; this tells it for programs.
#[derive(Debug, Clone)]
pub struct Pin {
    fingerprint: CertificateFingerprint,
    is_missed: Arc<AtomicBool>,
}

impl Pin {
    /// Whether a server without the pinned authority has answered.
    pub fn is_missed(&self) -> bool {
        self.is_missed.load(Ordering::Relaxed)
    }
}

impl From<CertificateFingerprint> for Pin {
    fn from(fingerprint: CertificateFingerprint) -> Self {
        Self { fingerprint, is_missed: Arc::default() }
    }
}

/// Accepts a server whose certificate chains to the one authority with a given fingerprint, for the name that was dialled.
#[derive(Debug)]
pub(super) struct PinnedAuthority {
    pin: Pin,
    provider: Arc<CryptoProvider>,
}

impl PinnedAuthority {
    pub(super) fn new(pin: Pin, provider: Arc<CryptoProvider>) -> Self {
        Self { pin, provider }
    }

    fn mismatch(&self) -> Error {
        self.pin.is_missed.store(true, Ordering::Relaxed);
        // Not `CertificateError::Other`, of which rustls shows the `Debug` form instead of the message.
        Error::Other(OtherError(Arc::new(FingerprintMismatch { expected: self.pin.fingerprint })))
    }

    /// Verifies as usual, but with `authority` as the only root.
    fn verifier(&self, authority: &CertificateDer<'_>) -> Result<Arc<WebPkiServerVerifier>, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(roots.into(), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))
    }
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| CertificateFingerprint::of(certificate) == self.pin.fingerprint)
            .ok_or_else(|| self.mismatch())?;
        self.verifier(authority)?.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // The configuration that uses this verifier offers TLS 1.3 only.
        Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The stub presents no certificate with the fingerprint of the join token.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server's certificate authority does not match the fingerprint {expected} in the join token: \
     this is not the stub that issued the token, or its keys were created anew"
)]
pub struct FingerprintMismatch {
    expected: CertificateFingerprint,
}
