//! The wire protocol between stub and agent, without IO.
//!
//! `proto-spec/qtunnel-1.md` is its specification. Start with [`Frame`] (what travels) and [`FrameReader`] (how it is
//! read); [`RequestHead`] and [`ResponseHead`] are the two messages that matter most.

mod control;
mod error;
mod fields;
mod frame;
mod head;
mod identity;
pub mod limits;
mod names;
mod reader;
#[cfg(test)]
mod tests;
mod varint;

pub use control::{AuthMode, Certificate, Drain, Enroll, Hello, Refused, Renew, Report, Welcome};
pub use error::{ErrorCode, WireError};
pub use frame::{Frame, MAX_DATA_HEADER_LENGTH, StreamKind, encode_data_header};
pub use head::{BearerToken, Failure, FailureReason, RequestHead, ResponseHead, Trailers, UpgradeProtocol};
pub use identity::Identity;
pub use names::{AgentName, ClusterId, InvalidName};
pub use reader::FrameReader;
pub use varint::{MAX_VARINT, read_varint, varint_length, write_varint};

/// The application protocol (ALPN, RFC 7301) of an agent's connection over QUIC.
pub const ALPN_TUNNEL: &[u8] = b"qtunnel/1";

/// The application protocol of a connection on which an agent without a certificate asks for one.
pub const ALPN_ENROLLMENT: &[u8] = b"qtunnel-enroll/1";
