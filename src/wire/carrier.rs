//! The carriers of the protocol and the names they go by (ALPN, RFC 7301).

use std::fmt;

/// What moves streams between stub and agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// QUIC.
    Quic,
    /// Yamux on TLS over TCP, where UDP is blocked.
    Tcp,
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        })
    }
}

/// An agent's connection over QUIC.
pub const ALPN_TUNNEL: &[u8] = b"qtunnel/1";

/// A connection over QUIC on which an agent without a certificate asks for one.
pub const ALPN_ENROLLMENT: &[u8] = b"qtunnel-enroll/1";

/// An agent's connection over TCP.
pub const ALPN_TUNNEL_TCP: &[u8] = b"qtunnel-tcp/1";

/// A connection over TCP on which an agent without a certificate asks for one.
pub const ALPN_ENROLLMENT_TCP: &[u8] = b"qtunnel-tcp-enroll/1";
