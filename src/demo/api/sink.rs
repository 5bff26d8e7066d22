//! Where a stream of events or lines goes: a chunked body, or the messages of a WebSocket.

use bytes::Bytes;

use super::{
    body::{BodySender, Gone},
    websocket::MessageSender,
};

/// One client of a stream.
pub(super) enum Sink {
    /// Chunks of a body.
    Body(BodySender),
    /// Text messages.
    Texts(MessageSender),
    /// Binary messages.
    Binaries(MessageSender),
}

impl Sink {
    /// Sends one event or line, waiting while the client is slow.
    pub async fn send(&self, piece: Bytes) -> Result<(), Gone> {
        match self {
            Self::Body(sender) => sender.send(piece).await,
            Self::Texts(sender) => sender.text(String::from_utf8_lossy(&piece).into_owned()).await,
            Self::Binaries(sender) => sender.binary(piece).await,
        }
    }

    /// Resolves when the client is gone.
    pub async fn gone(&self) {
        match self {
            Self::Body(sender) => sender.gone().await,
            Self::Texts(sender) | Self::Binaries(sender) => sender.gone().await,
        }
    }
}
