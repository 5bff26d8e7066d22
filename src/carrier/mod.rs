//! What moves streams between stub and agent.
//!
//! A [`Connection`] opens and accepts pairs of a [`SendStream`] and a [`RecvStream`]. Above them [`FrameSender`] and
//! [`FrameReceiver`] speak the wire protocol, [`ReceivedBody`] and [`send_body`] carry HTTP bodies, and [`relay`]
//! carries upgraded connections. QUIC carries them, or yamux on TLS over TCP where UDP is blocked; nothing above knows. Stub and agent use the same pieces: each direction of a stream looks alike from both
//! ends.

mod body;
mod congestion;
mod driver;
mod framed;
mod gather;
mod heartbeat;
mod qlog;
mod quic;
mod relay;
mod socket;
mod stream;
mod tcp;
#[cfg(test)]
mod tests;

pub use body::{ReceivedBody, SendBodyError, send_body};
pub use congestion::{BbrConfig, CongestionControl, LimitedStart};
pub use framed::{FrameReceiver, FrameSender, ReceiveError, SendError};
pub use heartbeat::PathState;
pub use qlog::{MAX_QLOG_BYTES, MAX_QLOG_FILES, QlogDirectory};
pub use quic::{
    Handshake, IdentifiedConnection, IncomingConnection, QuicDialer, QuicListener, QuicSettings, ResetSecret,
    presented_chain, requested_server_name,
};
pub use relay::{Disconnect, RelayEnd, relay};
pub use socket::StreamSocket;
pub use stream::{Connection, ConnectionEnd, PathStats, RecvStream, SendStream, StreamReadError, StreamWriteError};
pub use tcp::{TcpDialer, TcpSettings, accepted_over_tcp};
