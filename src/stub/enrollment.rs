//! How an agent gets its certificate: the first one for a join token, later ones for the one before.
//!
//! A thousand agents may come at once, with one token and at one moment. Their uses of it are taken together, and no more
//! certificates are signed at once than there are cores.

mod redemptions;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::Semaphore;

use self::redemptions::Redemptions;
use super::live_settings::LiveSettings;
use crate::pki::AuthorityError;
use crate::pki::CertificateError;
use crate::pki::InvalidJoinToken;
use crate::pki::{AgentIdentity, JoinToken, RedeemError, StubKeys, Validity};
use crate::wire::{AgentName, Certificate, Enroll};

/// Issues certificates to agents.
#[derive(Debug)]
pub struct Enrollment {
    keys: Arc<StubKeys>,
    settings: Arc<ArcSwap<LiveSettings>>,
    redemptions: Redemptions,
    signing: Semaphore,
}

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
    /// The work was interrupted, or took too long.
    #[error("an enrolment was not done in time, or the stub is stopping")]
    Interrupted,
}

impl EnrollmentError {
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

    /// Whether the same request may be granted later.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Token { error, .. } => error.is_temporary(),
            Self::NoToken(_) | Self::Request(_) => false,
            Self::Issued(_) | Self::Interrupted => true,
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

impl Enrollment {
    /// Issues certificates that are valid for as long as `settings` say at the time.
    pub fn new(keys: Arc<StubKeys>, settings: Arc<ArcSwap<LiveSettings>>) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let redemptions = Redemptions::new(keys.tokens().clone());
        Self { keys, settings, redemptions, signing: Semaphore::new(cores) }
    }

    /// Trades a join token for a certificate of the token's cluster. The stub chooses the agent's name.
    pub async fn enroll(&self, request: &Enroll, address: SocketAddr) -> Result<Certificate, EnrollmentError> {
        let token: JoinToken = request.token.parse()?;
        let redeemed = self.redemptions.redeem(token.id(), token.secret()).await.ok_or(EnrollmentError::Interrupted)?;
        let cluster = redeemed.map_err(|error| EnrollmentError::Token { id: token.id(), error })?;
        let identity = AgentIdentity { cluster, agent: new_agent_name() };
        let issued = self.issue(request.request.clone(), identity.clone()).await?;
        tracing::info!(cluster = %identity.cluster, agent = %identity.agent, %address, "enrolled a new agent");
        Ok(Certificate { chain: issued.chain })
    }

    /// Issues a certificate for `identity` and the key in `request`.
    pub async fn issue(&self, request: Bytes, identity: AgentIdentity) -> Result<Issued, EnrollmentError> {
        let _turn = self.signing.acquire().await.map_err(|_closed| EnrollmentError::Interrupted)?;
        let (keys, ttl) = (self.keys.clone(), self.settings.load().certificate_ttl);
        let issuing = tokio::task::spawn_blocking(move || {
            let certificate = keys.agent_authority().issue_agent(&request, &identity, ttl, SystemTime::now())?;
            let not_after = Validity::of(&certificate)?.not_after;
            let chain = vec![Bytes::copy_from_slice(&certificate)];
            Ok(Issued { chain, not_after })
        });
        issuing.await.map_err(|_| EnrollmentError::Interrupted)?
    }
}

fn new_agent_name() -> AgentName {
    let name = format!("agent-{:012x}", rand::random::<u64>() >> 16);
    // Letters, digits and '-' only, of 18 bytes.
    name.parse().unwrap_or_else(|_| unreachable!("{name} is a DNS label"))
}
