//! What the two sides of a TLS handshake prove themselves with.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::certificate::{AgentIdentity, CertificateError, Validity};
use super::tls::provider;

/// The stub's server certificate and key. Clones share one certificate, which can be replaced while connections are
/// accepted: later handshakes present the new one, connections that exist are not disturbed.
#[derive(Debug, Clone)]
pub struct ServerCredentials {
    current: Arc<ArcSwap<CertifiedKey>>,
}

impl ServerCredentials {
    /// Credentials that present `chain`. It begins with the server's own certificate; for agents to be able to enrol it
    /// ends with the authority's, which their join tokens pin.
    ///
    /// # Errors
    /// The chain is empty, the key is unusable, or it belongs to another certificate.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, CredentialsError> {
        Ok(Self { current: Arc::new(ArcSwap::from_pointee(certified_key(chain, key)?)) })
    }

    /// Presents `chain` from now on.
    ///
    /// # Errors
    /// As for [`new`](Self::new); the old certificate then stays in use.
    pub fn replace(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), CredentialsError> {
        self.current.store(Arc::new(certified_key(chain, key)?));
        Ok(())
    }

    /// The chain that is presented at this moment.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.current.load().cert.clone()
    }

    /// What rustls asks for the certificate in each handshake.
    pub(super) fn resolver(&self) -> Arc<dyn ResolvesServerCert> {
        Arc::new(CurrentCertificate(self.clone()))
    }
}

/// An agent's certificate and key, and the authority that its stub's certificate must chain to.
#[derive(Debug)]
pub struct AgentCredentials {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    server_authority: CertificateDer<'static>,
    identity: AgentIdentity,
    validity: Validity,
}

impl AgentCredentials {
    /// Credentials of the agent that the first certificate of `chain` names.
    ///
    /// # Errors
    /// The chain is empty, the key is unusable or belongs to another certificate, or the certificate names no agent.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        server_authority: CertificateDer<'static>,
    ) -> Result<Self, CredentialsError> {
        let certified = certified_key(chain, key.clone_key())?;
        let leaf = certified.end_entity_cert().map_err(CredentialsError::Unusable)?;
        let (identity, validity) = (AgentIdentity::from_certificate(leaf)?, Validity::of(leaf)?);
        Ok(Self { chain: certified.cert, key, server_authority, identity, validity })
    }

    /// The agent's certificate, followed by intermediate ones if there are any.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The private key.
    pub fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    /// The authority that the stub's certificate must chain to.
    pub fn server_authority(&self) -> &CertificateDer<'static> {
        &self.server_authority
    }

    /// Who the agent is.
    pub fn identity(&self) -> &AgentIdentity {
        &self.identity
    }

    /// Whether these are the same key, certificates and trust as `other`.
    pub fn are(&self, other: &Self) -> bool {
        (&self.chain, &self.key, &self.server_authority) == (&other.chain, &other.key, &other.server_authority)
    }

    /// The last moment at which the certificate is valid.
    pub fn not_after(&self) -> SystemTime {
        self.validity.not_after
    }

    /// Whether the agent should ask for a new certificate at `now`: two thirds of this one's life are gone.
    pub fn renew_due(&self, now: SystemTime) -> bool {
        self.validity.renewal_due(now)
    }
}

/// Why a certificate and a key are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The chain is empty, or the key is unusable or belongs to another certificate.
    #[error("the certificate and its private key cannot be used together: {0}")]
    Unusable(#[source] rustls::Error),
    /// The certificate is not an agent's.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

#[derive(Debug)]
struct CurrentCertificate(ServerCredentials);

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current.load_full())
    }
}

fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, CredentialsError> {
    CertifiedKey::from_der(chain, key, &provider()).map_err(CredentialsError::Unusable)
}
