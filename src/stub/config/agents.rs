//! How agents are treated.

use std::path::PathBuf;
use std::time::Duration;

use jiff::SignedDuration;
use serde::Deserialize;

use crate::carrier::{CongestionControl, QuicSettings, TcpSettings};
use crate::stub::select::SelectorKind;

/// The `[agents]` section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentsConfig {
    /// How long an agent's certificate is valid; agents renew theirs when two thirds are over. Default 720 h.
    pub certificate_ttl: SignedDuration,
    /// How often an agent reports at least. One that has not reported for three times as long gets no new requests while
    /// another agent serves its cluster. Default 5 s.
    pub report_interval: SignedDuration,
    /// How long a connection and its streams live without a packet from the agent. The agent's own setting counts if it is
    /// shorter. An agent whose connection does not answer gets no new requests after seconds. Default 5 min.
    pub idle_timeout: SignedDuration,
    /// Bytes that one stream may have in flight towards the stub. Default 16 MiB: 1 Gbit/s at 100 ms.
    pub stream_window: u32,
    /// Which of several agents takes the next request: `least-streams`, `random-round-robin` or `lowest-latency`. Agents that
    /// do not answer, or whose API server does not, come last whatever it says. Default `least-streams`.
    pub selector: SelectorKind,
    /// How much the stub has in flight towards agents: `bbr` or `cubic`. Default `bbr`.
    pub congestion: CongestionControl,
}
    /// A directory in which each connection over QUIC is recorded (qlog), for looking into a problem; see
    /// [`QlogDirectory`](crate::carrier::QlogDirectory) for its bounds. Default: none.
    pub qlog: Option<PathBuf>,

impl Default for AgentsConfig {
    fn default() -> Self {
        let quic = QuicSettings::default();
        Self {
            certificate_ttl: SignedDuration::from_hours(720),
            report_interval: SignedDuration::from_secs(5),
            idle_timeout: SignedDuration::from_mins(5),
            stream_window: quic.stream_window,
            selector: SelectorKind::default(),
            congestion: quic.congestion,
        }
            qlog: None,
    }
}

/// Longer than an agent is silent on its own: a stub with thousands of idle agents answers, and asks only those that have
/// fallen silent.
const KEEP_ALIVE: Duration = Duration::from_secs(6);

impl AgentsConfig {
    /// The QUIC settings of connections from agents.
    pub fn quic(&self) -> QuicSettings {
        QuicSettings {
            idle_timeout: self.idle_timeout.unsigned_abs(),
            keep_alive: KEEP_ALIVE,
            stream_window: self.stream_window,
            congestion: self.congestion,
            ..QuicSettings::default()
        }
    }

    /// The same for connections over TCP.
    pub fn tcp(&self) -> TcpSettings {
        TcpSettings::from(&self.quic())
    }
}
