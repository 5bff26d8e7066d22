//! How an agent gets its certificate: the first one for a join token, later ones for the one before.

use std::net::SocketAddr;
use std::time::SystemTime;

use bytes::Bytes;

use super::shared::Shared;
use crate::pki::AuthorityError;
use crate::pki::CertificateError;
use crate::pki::InvalidJoinToken;
use crate::pki::{AgentIdentity, JoinToken, RedeemError, Validity};
use crate::wire::{AgentName, Certificate, Enroll};

/// Why no certificate is issued.
#[derive(Debug, thiserror::Error)]
pub enum EnrollmentError {
    /// The text is no join token.
    #[error("an enrolment with a text that is no join token: {0}")]
    NoToken(#[from] InvalidJoinToken),
    /// The token is not accepted.
    #[error("an enrolment with join token {id}: {error}")]
    Token {
        /// The token's id.
        id: crate::pki::TokenId,
        /// Why.
        error: RedeemError,
    },
    /// The certificate request is not one that can be signed.
    #[error("a certificate request: {0}")]
    Request(#[from] AuthorityError),
    /// What was issued cannot be read back.
    #[error("the issued certificate: {0}")]
    Issued(#[from] CertificateError),
    /// The work was interrupted.
    #[error("the stub is stopping")]
    Interrupted,
}

impl EnrollmentError {
    /// Whether the same token may be good a moment later: it was not looked at, or what it bought could not be made.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Token { error: RedeemError::Store(_) | RedeemError::Record(_), .. } => true,
            Self::Issued(_) | Self::Interrupted => true,
            Self::NoToken(_) | Self::Token { .. } | Self::Request(_) => false,
        }
    }

    /// What the peer may know.
    pub fn peer_message(&self) -> String {
        match self {
            Self::NoToken(error) => error.to_string(),
            Self::Token { error, .. } => error.peer_message().to_owned(),
            Self::Request(error) => error.to_string(),
            Self::Issued(_) | Self::Interrupted => {
                "the stub cannot issue certificates at the moment; try again".to_owned()
            }
        }
    }
}

/// A certificate that has been issued.
#[derive(Debug)]
pub struct Issued {
    /// The chain, DER, the agent's own certificate first.
    pub chain: Vec<Bytes>,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

/// Trades a join token for a certificate of the token's cluster. The stub chooses the agent's name.
pub async fn enroll(shared: &Shared, request: &Enroll, address: SocketAddr) -> Result<Certificate, EnrollmentError> {
    let token: JoinToken = request.token.parse()?;
    let store = shared.keys.tokens().clone();
    let redeemed = tokio::task::spawn_blocking(move || {
        let cluster = store.redeem(token.id(), token.secret(), SystemTime::now());
        cluster.map_err(|error| EnrollmentError::Token { id: token.id(), error })
    });
    let cluster = redeemed.await.map_err(|_| EnrollmentError::Interrupted)??;
    let identity = AgentIdentity { cluster, agent: new_agent_name() };
    let issued = issue(shared, request.request.clone(), identity.clone()).await?;
    tracing::info!(cluster = %identity.cluster, agent = %identity.agent, %address, "enrolled a new agent");
    Ok(Certificate { chain: issued.chain })
}

/// Issues a certificate for `identity` and the key in `request`.
pub async fn issue(shared: &Shared, request: Bytes, identity: AgentIdentity) -> Result<Issued, EnrollmentError> {
    let keys = shared.keys.clone();
    let ttl = shared.live().certificate_ttl;
    let issuing = tokio::task::spawn_blocking(move || {
        let certificate = keys.agent_authority().issue_agent(&request, &identity, ttl, SystemTime::now())?;
        let not_after = Validity::of(&certificate)?.not_after;
        let chain = vec![Bytes::copy_from_slice(&certificate)];
        Ok(Issued { chain, not_after })
    });
    issuing.await.map_err(|_| EnrollmentError::Interrupted)?
}

fn new_agent_name() -> AgentName {
    let name = format!("agent-{:012x}", rand::random::<u64>() >> 16);
    // Letters, digits and '-' only, of 18 bytes.
    name.parse().unwrap_or_else(|_| unreachable!("{name} is a DNS label"))
}
