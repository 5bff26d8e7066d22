//! A port that two kinds of peers share: agents, and users over HTTP/3.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

/// Who vouches for agents, and who for users.
///
/// TLS over QUIC has to choose the verifier before it knows the application protocol. So the handshake takes a certificate
/// of either authority, and whoever accepts the connection must ask [`PeerAuthorities::verify`] again for the role that
/// the protocol has given the peer.
#[derive(Debug, Clone)]
pub struct PeerAuthorities {
    agents: Arc<dyn ClientCertVerifier>,
    users: Arc<dyn ClientCertVerifier>,
}

/// What a peer is on a connection, as its application protocol says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRole {
    /// An agent, or one that is to become one.
    Agent,
    /// A user.
    User,
}

impl PeerAuthorities {
    /// Whoever knows the authorities of agents, and whoever knows those of users.
    pub fn new(agents: Arc<dyn ClientCertVerifier>, users: Arc<dyn ClientCertVerifier>) -> Self {
        Self { agents, users }
    }

    /// Checks that an authority for `role` vouches for the chain that a peer presented, now. A peer that presented none
    /// passes: whether it needs one is for the caller to say.
    ///
    /// # Errors
    /// The chain leads elsewhere, or a certificate in it has expired.
    pub fn verify(&self, role: PeerRole, chain: &[CertificateDer<'_>]) -> Result<(), Error> {
        let Some((end_entity, intermediates)) = chain.split_first() else { return Ok(()) };
        let verifier = match role {
            PeerRole::Agent => &self.agents,
            PeerRole::User => &self.users,
        };
        verifier.verify_client_cert(end_entity, intermediates, UnixTime::now()).map(|_verified| ())
    }

    /// Takes the certificates of both, for the handshake.
    pub(super) fn either(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::new(EitherAuthority(self.clone()))
    }
}

#[derive(Debug)]
struct EitherAuthority(PeerAuthorities);

impl ClientCertVerifier for EitherAuthority {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// No hints: the authorities of users change, and clients leave out a certificate that the hints do not fit.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let PeerAuthorities { agents, users } = &self.0;
        agents
            .verify_client_cert(end_entity, intermediates, now)
            .or_else(|_not_an_agent| users.verify_client_cert(end_entity, intermediates, now))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.agents.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Whose certificate it is makes no difference to how its key signs.
        self.0.agents.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.agents.supported_verify_schemes()
    }
}
