//! Bounds for clients.

use std::time::Duration;

use jiff::SignedDuration;
use serde::Deserialize;

/// The `[limits]` section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Connections on the TCP port at once, of clients and of agents, and as many of clients over HTTP/3. Default 20,000.
    pub client_connections: u32,
    /// New connections that one address may make in a second; ten times as many in a burst. For IPv6 an address is a network of
    /// 64 bits, here and below. Default 200.
    pub connections_per_second: u32,
    /// Connections of one address at once on which nobody has authenticated. Default 1,000.
    pub strangers_per_address: u32,
    /// Handshakes over QUIC at once. While half of them are in progress, addresses have to be proven (Retry). Default 1,000.
    pub quic_handshakes: u32,
    /// How long a client's connection may go without a request by somebody known. Default 30 s.
    pub authentication_timeout: SignedDuration,
    /// Requests of one address in a second that are refused with 401; ten times as many in a burst. From there on it is 429.
    /// Default 10.
    pub unauthenticated_per_second: u32,
    /// Requests at once on one HTTP/2 connection, watches among them, and on one HTTP/3 connection, there at most 1,000.
    /// Default 10,000.
    pub requests_per_connection: u32,
    /// Requests of one user in a second; twice as many in a burst. Default 0, no bound: API servers have their own (priority and
    /// fairness), and know what a request costs.
    pub requests_per_second_per_user: u32,
    /// Requests of one user at once that end soon. Default 1,000.
    pub requests_per_user: u32,
    /// Requests to one cluster at once that end soon. Default 4,000.
    pub requests_per_cluster: u32,
    /// Requests of one user at once that may go on for long: watches, logs, exec, port-forwards. Default 10,000.
    pub watches_per_user: u32,
    /// The same to one cluster. Default 20,000.
    pub watches_per_cluster: u32,
    /// The longest body of a request, in bytes; 0 is no bound. It does not count for upgrades and for what is sent through a
    /// pod, a service or a node (`proxy`). The API server itself takes 3 MiB for most requests. Default 1 GiB.
    pub request_body_length: u64,
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
            connections_per_second: 200,
            strangers_per_address: 1_000,
            quic_handshakes: 1_000,
            authentication_timeout: SignedDuration::from_secs(30),
            unauthenticated_per_second: 10,
            requests_per_connection: 10_000,
            requests_per_second_per_user: 0,
            requests_per_user: 1_000,
            requests_per_cluster: 4_000,
            watches_per_user: 10_000,
            watches_per_cluster: 20_000,
            request_body_length: 1 << 30,
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
    /// The first limit that would let nobody in.
    pub(super) fn impossible(&self) -> Option<&'static str> {
        let counts = [
            ("client_connections", self.client_connections),
            ("connections_per_second", self.connections_per_second),
            ("strangers_per_address", self.strangers_per_address),
            ("quic_handshakes", self.quic_handshakes),
            ("unauthenticated_per_second", self.unauthenticated_per_second),
            ("requests_per_connection", self.requests_per_connection),
            ("requests_per_user", self.requests_per_user),
            ("requests_per_cluster", self.requests_per_cluster),
            ("watches_per_user", self.watches_per_user),
            ("watches_per_cluster", self.watches_per_cluster),
        ];
        counts.iter().find(|(_, count)| *count == 0).map(|(key, _)| *key)
    }

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
