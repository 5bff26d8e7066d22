//! The wire protocol between stub and agent, without IO.
//!
//! `proto-spec/qtunnel-1.md` is its specification. Start with [`Frame`] (what travels) and [`FrameReader`] (how it is
//! read); [`RequestHead`] and [`ResponseHead`] are the two messages that matter most. [`Record`] is what keeps streams over
//! TCP as good as QUIC's.

mod carrier;
mod control;
mod dial;
mod error;
mod fields;
mod frame;
mod head;
mod identity;
mod input;
pub mod limits;
mod names;
mod reader;
mod record;
#[cfg(test)]
mod tests;
mod varint;

pub use carrier::{ALPN_ENROLLMENT, ALPN_ENROLLMENT_TCP, ALPN_TUNNEL, ALPN_TUNNEL_TCP, Carrier};
pub use control::{AuthMode, Certificate, Drain, Enroll, Hello, Pace, Refused, Renew, Report, Welcome};
pub use dial::{Dial, DialAddress, Dialed, InvalidAddress, Network, UnknownNetwork};
pub use error::{ErrorCode, WireError};
pub use frame::{Frame, MAX_DATA_HEADER_LENGTH, StreamKind, encode_data_header};
pub use head::{BearerToken, Failure, FailureReason, RequestHead, ResponseHead, Trailers, UpgradeProtocol};
pub use identity::Identity;
pub use names::{AgentName, ClusterId, InvalidName};
pub use reader::FrameReader;
pub use record::{Record, RecordReader};
pub use varint::{MAX_VARINT, read_varint, varint_length, write_varint};
