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
    /// another agent serves its cluster. Default 5 s; longer while more than 500 agents are connected, up to 30 s with 3,000, as
    /// all of their reports together are what an idle stub is busy with. So long it may take then until one side notices that the
    /// other has died without a word; a request that meets such a silence shows it within seconds.
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
    /// A directory in which each connection over QUIC is recorded (qlog), for looking into a problem; see
    /// [`QlogDirectory`](crate::carrier::QlogDirectory) for its bounds. Default: none.
    pub qlog: Option<PathBuf>,
}

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
            qlog: None,
        }
    }
}

/// How much longer than an agent is silent on its own the stub waits before it asks: a stub with thousands of idle agents
/// answers, and asks only those that have fallen silent.
const KEEP_ALIVE_MARGIN: Duration = Duration::from_secs(1);

/// What is added to the interval for each agent that is connected already.
const INTERVAL_OF_EACH: Duration = Duration::from_millis(10);

/// Bindings in NATs last longer than this (RFC 9308, section 3.2).
const LONGEST_INTERVAL: Duration = Duration::from_secs(30);

impl AgentsConfig {
    /// The QUIC settings of connections from agents.
    pub fn quic(&self) -> QuicSettings {
        QuicSettings {
            idle_timeout: self.idle_timeout.unsigned_abs(),
            keep_alive: keep_alive_for(LONGEST_INTERVAL),
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

/// How long the stub lets an agent be silent that reports at this interval before it asks whether it is still there.
pub fn keep_alive_for(report_interval: Duration) -> Duration {
    report_interval.saturating_add(KEEP_ALIVE_MARGIN)
}

/// How often an agent has to report while `others` are connected, if `least` is the setting.
pub fn report_interval_beside(least: Duration, others: usize) -> Duration {
    let for_all = INTERVAL_OF_EACH.saturating_mul(u32::try_from(others).unwrap_or(u32::MAX));
    least.max(for_all.min(LONGEST_INTERVAL))
}

/// Whether an agent that reports at the interval `now` should be asked for `wanted`. A message for each agent that comes or goes
/// would cost more than it saves.
pub fn is_worth_asking_for(wanted: Duration, now: Duration) -> bool {
    let (shorter, longer) = (wanted.min(now), wanted.max(now));
    longer >= shorter.saturating_mul(4) / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTING: Duration = Duration::from_secs(5);

    #[test]
    fn an_agent_reports_once_in_five_seconds_and_in_thirty_beside_thousands() {
        let intervals = [10, 1_000, 10_000].map(|others| report_interval_beside(SETTING, others).as_secs());
        assert_eq!(intervals, [5, 10, 30]);
    }

    #[test]
    fn an_agent_that_came_among_the_first_of_thousands_is_asked_for_a_few_longer_intervals() {
        let mut interval = SETTING;
        let mut asked = 0;
        for others in 0..10_000 {
            let wanted = report_interval_beside(SETTING, others);
            if is_worth_asking_for(wanted, interval) {
                interval = wanted;
                asked += 1;
            }
        }
        assert!((1..10).contains(&asked), "{asked}");
        assert!(interval > LONGEST_INTERVAL * 3 / 4, "{interval:?}");
        assert!(is_worth_asking_for(SETTING, interval), "when they have gone");
    }

    #[test]
    fn an_agent_reports_before_the_stub_asks_for_a_sign_of_life() {
        let quic = AgentsConfig::default().quic();
        for others in [0, 499, 1_000, 2_999, 1_000_000] {
            let interval = report_interval_beside(SETTING, others);
            assert!(interval < keep_alive_for(interval));
            assert!(interval < quic.keep_alive);
        }
    }

    #[test]
    fn an_interval_that_the_operator_has_made_longer_stays_as_long() {
        assert_eq!(report_interval_beside(Duration::from_secs(60), 10_000), Duration::from_secs(60));
    }
}
