//! What is compared: a carrier and what controls its congestion.

use std::fmt;

use clap::ValueEnum;

/// One way from the agent to the stub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contender {
    /// What moves streams.
    pub carrier: Carrier,
    /// What decides how much is in flight, at both ends.
    pub congestion: Congestion,
}

/// What moves streams between agent and stub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Carrier {
    /// Each stream is a stream of QUIC.
    Quic,
    /// yamux on TLS on TCP.
    TcpYamux,
}

/// A congestion controller. QUIC has qtunnel's, TCP the kernel's: the same names, other implementations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Congestion {
    /// Cubic (RFC 9438).
    Cubic,
    /// BBR: version 3 in qtunnel, version 1 in Linux.
    Bbr,
}

impl Carrier {
    /// What `qtunnel agent --carrier` calls it.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::TcpYamux => "tcp",
        }
    }
}

impl Congestion {
    /// What qtunnel and Linux call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cubic => "cubic",
            Self::Bbr => "bbr",
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let carrier = match self.carrier {
            Carrier::Quic => "quic",
            Carrier::TcpYamux => "tcp-yamux",
        };
        f.pad(&format!("{carrier}/{}", self.congestion.name()))
    }
}
