//! Connections through an agent, for programs that build on the tunnel.

use std::time::Duration;

use tokio::time::timeout;

use super::registry::{AgentLink, Registry, Unavailable};
use crate::carrier::{
    ConnectionEnd, FrameReceiver, FrameSender, ReceiveError, StreamReadError, StreamSocket, StreamWriteError,
};
use crate::wire::{
    ClusterId, Dial, ErrorCode, Failure, FailureReason, Frame, FrameReader, InvalidAddress, StreamKind, UnknownNetwork,
    WireError,
};

/// Beyond the time that a stream may take to open, how long an agent may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Why there is no connection through an agent.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The network is not one that an agent dials over.
    #[error(transparent)]
    Network(#[from] UnknownNetwork),
    /// The address is none.
    #[error(transparent)]
    Address(#[from] InvalidAddress),
    /// No agent can take a stream now.
    #[error("no agent of cluster \"{0}\" answers; `qtunnel status` shows which are connected")]
    NoAgent(ClusterId),
    /// The agent's own policy does not allow the address.
    #[error("the agent refuses: {0}")]
    NotAllowed(String),
    /// The agent cannot reach the address.
    #[error("the agent cannot connect: {0}")]
    Unreachable(String),
    /// The agent is of a version that does not know how to dial.
    #[error("the agent cannot dial; update it")]
    NotSupported,
    /// It took too long.
    #[error("the agent did not answer in time")]
    TimedOut,
    /// The way to the agent broke.
    #[error("the stream to the agent: {0}")]
    Receive(#[from] ReceiveError),
    /// The way to the agent broke.
    #[error("the stream to the agent: {0}")]
    Send(#[from] StreamWriteError),
    /// The connection to the agent is gone.
    #[error("the connection to the agent is gone: {0}")]
    Connection(#[from] ConnectionEnd),
    /// What was to be sent is not possible.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// Has an agent of `cluster` connect to the address in `dial`. `patience` is how long an agent and its stream are waited for.
pub async fn dial(
    registry: &Registry,
    cluster: &ClusterId,
    dial: Dial,
    patience: Duration,
) -> Result<StreamSocket, DialError> {
    let link = registry.choose_patiently(cluster, &[], patience).await;
    let link = link.map_err(|_: Unavailable| DialError::NoAgent(cluster.clone()))?;
    let dialing = dial_through(&link, dial);
    timeout(patience + CONNECT_TIMEOUT, dialing).await.map_err(|_elapsed| DialError::TimedOut)?
}

async fn dial_through(link: &AgentLink, dial: Dial) -> Result<StreamSocket, DialError> {
    let (send, recv) = link.connection.open().await?;
    let mut sender = FrameSender::open(send, StreamKind::Dial);
    let mut receiver = FrameReceiver::new(recv, FrameReader::for_dialed());
    sender.queue(&Frame::Dial(Box::new(dial)))?;
    sender.flush().await?;
    match receiver.next_frame().await {
        Ok(Some(Frame::Dialed(_))) => {
            sender.make_raw();
            Ok(StreamSocket::new(sender, receiver))
        }
        Ok(Some(Frame::Failure(Failure { reason: FailureReason::Forbidden, message, .. }))) => {
            Err(DialError::NotAllowed(message))
        }
        Ok(Some(Frame::Failure(failure))) => Err(DialError::Unreachable(failure.message)),
        Err(ReceiveError::Stream(StreamReadError::Reset(ErrorCode::UnknownStreamKind))) => Err(DialError::NotSupported),
        Err(error) => Err(error.into()),
        // The reader lets nothing else come first.
        Ok(_) => Err(DialError::NotSupported),
    }
}
