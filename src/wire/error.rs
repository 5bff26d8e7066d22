//! What can be wrong with received bytes, and the codes that tell the peer.

use std::fmt;

use super::frame::StreamKind;

/// Why received bytes are not version 1 of the protocol. Each maps to one [`ErrorCode`] for the peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A length goes past its bound.
    #[error("{what} of {length} bytes is longer than the {limit} allowed")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// The announced length in bytes.
        length: u64,
        /// The bound in bytes.
        limit: usize,
    },
    /// A list goes past its bound.
    #[error("more than {limit} entries in {what}")]
    TooMany {
        /// What has too many entries.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// The stream ended within a frame, or before its head.
    #[error("the stream ended within {0}")]
    Truncated(&'static str),
    /// A frame that this stream, or this moment of it, does not allow.
    #[error("unexpected {0} frame")]
    UnexpectedFrame(&'static str),
    /// Status 101 for a request that did not ask for an upgrade.
    #[error("status 101 answers a request that asked for no upgrade")]
    UnrequestedUpgrade,
    /// A body that is shorter or longer than its head said.
    #[error("the body has another length than its Content-Length says")]
    WrongLength,
    /// A stream of a kind that the peer does not open.
    #[error("unexpected {0:?} stream: the peer does not open streams of this kind")]
    UnexpectedStreamKind(StreamKind),
    /// A stream of a kind that this endpoint does not know.
    #[error("unknown stream kind {0:#x}")]
    UnknownStreamKind(u64),
    /// A field that has to be understood (its number is below 64) and is not.
    #[error("field {number} of the {message} is not known to this version and must be understood; update this side")]
    UnknownField {
        /// The message that carries it.
        message: &'static str,
        /// The field's number.
        number: u64,
    },
    /// A field whose value is not what its definition says.
    #[error("the {message} has a malformed {field}")]
    Malformed {
        /// The message that carries it.
        message: &'static str,
        /// The field's name.
        field: &'static str,
    },
    /// A field that has to be there and is not, or a second one of its kind.
    #[error("the {message} needs exactly one {field}")]
    NotExactlyOne {
        /// The message that lacks it.
        message: &'static str,
        /// The field's name.
        field: &'static str,
    },
}

impl WireError {
    /// The code to end the stream (or, for the control stream, the connection) with.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TooLong { .. } | Self::TooMany { .. } => ErrorCode::LimitExceeded,
            Self::UnknownStreamKind(_) => ErrorCode::UnknownStreamKind,
            _ => ErrorCode::ProtocolViolation,
        }
    }
}

/// Fails when `length` bytes of `what` are more than `limit`.
pub(super) fn check_length(what: &'static str, length: u64, limit: usize) -> Result<(), WireError> {
    if length <= limit as u64 { Ok(()) } else { Err(WireError::TooLong { what, length, limit }) }
}

/// Fails when `count` entries of `what` are more than `limit`.
pub(super) fn check_count(what: &'static str, count: usize, limit: usize) -> Result<(), WireError> {
    if count <= limit { Ok(()) } else { Err(WireError::TooMany { what, limit }) }
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// Codes of RESET_STREAM, STOP_SENDING and CONNECTION_CLOSE. Codes not listed are treated as
        /// [`ErrorCode::Internal`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode { $($(#[$doc])* $name = $value,)* }

        impl ErrorCode {
            /// Every code of this version.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The code's name in the specification.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

error_codes! {
    /// Nothing went wrong. On a connection: closed on purpose, reconnecting is welcome.
    NoError = 0x00, "NO_ERROR";
    /// Something failed at the sender that the receiver has no part in.
    Internal = 0x01, "INTERNAL";
    /// The bytes break the protocol.
    ProtocolViolation = 0x02, "PROTOCOL_VIOLATION";
    /// A length or a count goes past its bound.
    LimitExceeded = 0x03, "LIMIT_EXCEEDED";
    /// The stream kind is unknown.
    UnknownStreamKind = 0x04, "UNKNOWN_STREAM_KIND";
    /// The client went away; the answer is no longer wanted.
    Cancelled = 0x05, "CANCELLED";
    /// The API server's connection broke within the answer; what came so far is not whole.
    UpstreamAborted = 0x06, "UPSTREAM_ABORTED";
    /// The stream was never looked at; the request can safely be made again elsewhere.
    NotDispatched = 0x07, "NOT_DISPATCHED";
    /// On a connection: a newer connection of the same agent has taken its place.
    Superseded = 0x10, "SUPERSEDED";
    /// On a connection: the certificate does not allow what was asked, has expired, or was revoked.
    IdentityRejected = 0x11, "IDENTITY_REJECTED";
    /// On a connection: the join token was refused.
    EnrollmentRefused = 0x12, "ENROLLMENT_REFUSED";
    /// On a connection: the first control message did not come in time.
    HandshakeTimeout = 0x13, "HANDSHAKE_TIMEOUT";
}

impl ErrorCode {
    /// The number on the wire.
    pub fn value(self) -> u32 {
        self as u32
    }

    /// The code with this number; what is unknown counts as [`ErrorCode::Internal`].
    pub fn from_value(value: u64) -> Self {
        Self::ALL.iter().copied().find(|code| u64::from(code.value()) == value).unwrap_or(Self::Internal)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#04x})", self.name(), self.value())
    }
}
