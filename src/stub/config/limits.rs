//! Bounds for clients.

use std::time::Duration;

use jiff::SignedDuration;
use serde::Deserialize;

/// The `[limits]` section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Connections of clients at once, and of agents over TCP. Default 20,000.
    pub client_connections: u32,
    /// Requests at once on one HTTP/2 connection, watches among them. Default 10,000.
    pub requests_per_connection: u32,
    /// How long a TLS or QUIC handshake may take, and a client's request head. Default 10 s.
    pub handshake_timeout: SignedDuration,
    /// How long a request waits for an agent to take its stream, and for one whose connection answers. Default 10 s.
    pub dispatch_timeout: SignedDuration,
    /// How long an answer to a request that is not long-running (a watch, a log, an exec) may take to begin. Default 10 min.
    pub response_timeout: SignedDuration,
    /// While an agent's connection does not answer, how long a request is waited for whose answer has not begun. Answers
    /// that have begun wait for as long as the connection lives. Default 30 s.
    pub silence_timeout: SignedDuration,
    /// At a stop, how long the stub still takes requests when it is not ready any more: as long as load balancers need to
    /// notice. Default 1 s.
    pub drain_delay: SignedDuration,
    /// After that, how long requests may take to end. Default 10 s.
    pub shutdown_timeout: SignedDuration,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            client_connections: 20_000,
            requests_per_connection: 10_000,
            handshake_timeout: SignedDuration::from_secs(10),
            dispatch_timeout: SignedDuration::from_secs(10),
            response_timeout: SignedDuration::from_mins(10),
            silence_timeout: SignedDuration::from_secs(30),
            drain_delay: SignedDuration::from_secs(1),
            shutdown_timeout: SignedDuration::from_secs(10),
        }
    }
}

impl LimitsConfig {
    /// See [`LimitsConfig::handshake_timeout`].
    pub fn handshake(&self) -> Duration {
        self.handshake_timeout.unsigned_abs()
    }

    /// See [`LimitsConfig::dispatch_timeout`].
    pub fn dispatch(&self) -> Duration {
        self.dispatch_timeout.unsigned_abs()
    }

    /// See [`LimitsConfig::response_timeout`].
    pub fn response(&self) -> Duration {
        self.response_timeout.unsigned_abs()
    }

    /// See [`LimitsConfig::silence_timeout`].
    pub fn silence(&self) -> Duration {
        self.silence_timeout.unsigned_abs()
    }

    /// See [`LimitsConfig::drain_delay`].
    pub fn drain_delay(&self) -> Duration {
        self.drain_delay.unsigned_abs()
    }

    /// See [`LimitsConfig::shutdown_timeout`].
    pub fn shutdown(&self) -> Duration {
        self.shutdown_timeout.unsigned_abs()
    }
}
