//! How an agent gets its first certificate: it trades its join token for one.

use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::time::timeout;

use super::address::StubAddress;
use super::dial::{CarrierSettings, DialError, DialTls, Dialer};
use super::target::Target;
use crate::carrier::{Connection, FrameReceiver, FrameSender, QuicSettings, ReceiveError, SendError};
use crate::pki::{
    AgentCredentials, AgentKey, AgentState, AgentStateError, JoinToken, Pin, TlsError, enrollment_client_config,
    find_pinned, tcp_enrollment_client_config,
};
use crate::wire::{Enroll, ErrorCode, Frame, FrameReader, StreamKind};

/// Why an agent could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No connection.
    #[error("cannot connect to the stub at {address} to join: {error}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        error: DialError,
    },
    /// Somebody answers who is not the stub that has made the token. The addresses of one name count as one stub.
    #[error(
        "cannot connect to the stub at {address} to join: {error}; make a new join token at that stub with \
         `qtunnel token create`, or correct --stub"
    )]
    OtherStub {
        /// Where.
        address: String,
        /// How the handshake failed.
        error: DialError,
    },
    /// There is nowhere to join.
    #[error("no address of a stub is given")]
    NoStub,
    /// No answer.
    #[error("the stub did not answer the join request within {} s", PATIENCE.as_secs())]
    TimedOut,
    /// A refusal in the stub's words.
    #[error("the stub refused to let this agent join: {0}")]
    Refused(String),
    /// The exchange failed.
    #[error("the join request failed: {0}")]
    Receive(#[from] ReceiveError),
    /// The exchange failed.
    #[error("the join request failed: {0}")]
    Send(#[from] SendError),
    /// The exchange ended without an answer.
    #[error("the stub ended the join request without an answer")]
    NoAnswer,
    /// Keys and files.
    #[error(transparent)]
    State(#[from] AgentStateError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The socket.
    #[error("cannot use QUIC: {0}")]
    Quic(#[from] std::io::Error),
}

impl JoinError {
    /// Whether trying again at the same stub with the same token may help.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::TimedOut | Self::Receive(_) | Self::Send(_) | Self::NoAnswer)
    }
}

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Joins: makes a key, has it certified, and stores both.
pub async fn join(
    stub: &StubAddress,
    carrier: &CarrierSettings,
    token: &JoinToken,
    state: &AgentState,
) -> Result<AgentCredentials, JoinError> {
    let key = AgentKey::generate()?;
    let pin = Pin::from(token.authority());
    let tls = DialTls { quic: enrollment_client_config(pin.clone())?, tcp: tcp_enrollment_client_config(pin.clone())? };
    let dialer = Dialer::new(&Target::any(stub.clone()), carrier, tls, &QuicSettings::default())?;
    // Without a session: a token is never early data.
    let connection = dialer.probe().await.map_err(|error| match (stub.to_string(), pin.is_missed()) {
        (address, true) => JoinError::OtherStub { address, error },
        (address, false) => JoinError::Connect { address, error },
    })?;
    let request = Enroll { token: token.to_string(), request: key.signing_request()?.to_vec().into() };
    let result = timeout(PATIENCE, exchange(&connection, request)).await.map_err(|_elapsed| JoinError::TimedOut);
    let chain = result??;
    let authority = pinned_authority(&connection, token).ok_or(JoinError::NoAnswer)?;
    let credentials = state.store(&key, chain, authority)?;
    connection.close(ErrorCode::NoError, "joined");
    Ok(credentials)
}

async fn exchange(connection: &Connection, request: Enroll) -> Result<Vec<CertificateDer<'static>>, JoinError> {
    let connect = |end| JoinError::Receive(ReceiveError::Stream(crate::carrier::StreamReadError::ConnectionLost(end)));
    let (send, recv) = connection.open().await.map_err(connect)?;
    let mut sender = FrameSender::open(send, StreamKind::Control);
    let mut receiver = FrameReceiver::new(recv, FrameReader::for_opened_enrollment());
    sender.send(&Frame::Enroll(request)).await?;
    match receiver.next_frame().await? {
        Some(Frame::Certificate(certificate)) => {
            Ok(certificate.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect())
        }
        Some(Frame::Refused(refused)) => Err(JoinError::Refused(refused.reason)),
        _ => Err(JoinError::NoAnswer),
    }
}

/// The authority that the token pins, out of the chain that TLS has verified with it.
fn pinned_authority(connection: &Connection, token: &JoinToken) -> Option<CertificateDer<'static>> {
    let chain = connection.peer_chain();
    find_pinned(&chain, &token.authority()).cloned()
}
