//! What is measured of a flow.

use std::time::{Duration, Instant};

use quinn_proto::PathStats;

use super::CongestionControl;

/// What came of a flow, from the time that measuring began.
#[derive(Debug, Clone, PartialEq)]
pub struct FlowReport {
    /// What controlled it.
    pub control: CongestionControl,
    /// Bits per second that its application received.
    pub goodput: f64,
    /// The round trip time of half of its packets was at most this: the way there as it was, with its queue, and the way
    /// back as it is without one.
    pub rtt_p50: Duration,
    /// The same for 99 in 100 packets.
    pub rtt_p99: Duration,
    /// Packets that the sender deemed lost and sent again, as a share of those it sent.
    pub retransmitted: f64,
    /// Why its connection did not live until the end, if it did not.
    pub broken: Option<String>,
}

/// Measures a flow while it runs.
pub(super) struct Meter {
    control: CongestionControl,
    from: Instant,
    way_back: Duration,
    before: Counts,
    last: Counts,
    round_trips: Vec<Duration>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    bytes_read: u64,
    sent: u64,
    lost: u64,
}

impl Meter {
    pub(super) fn new(control: CongestionControl, from: Instant, way_back: Duration) -> Self {
        Self { control, from, way_back, before: Counts::default(), last: Counts::default(), round_trips: Vec::new() }
    }

    /// A packet of the sender reached the receiver.
    pub(super) fn packet_arrived(&mut self, now: Instant, entered: Instant) {
        if entered >= self.from {
            self.round_trips.push(now - entered + self.way_back);
        }
    }

    /// What the connection counts now.
    pub(super) fn update(&mut self, now: Instant, bytes_read: u64, path: &PathStats) {
        self.last = Counts { bytes_read, sent: path.sent_packets, lost: path.lost_packets };
        if now < self.from {
            self.before = self.last;
        }
    }

    pub(super) fn report(mut self, end: Instant) -> FlowReport {
        self.round_trips.sort_unstable();
        let received = self.last.bytes_read - self.before.bytes_read;
        let sent = self.last.sent - self.before.sent;
        let lost = self.last.lost - self.before.lost;
        FlowReport {
            control: self.control,
            goodput: received as f64 * 8.0 / end.saturating_duration_since(self.from).as_secs_f64(),
            rtt_p50: self.percentile(50),
            rtt_p99: self.percentile(99),
            retransmitted: lost as f64 / sent.max(1) as f64,
            broken: None,
        }
    }

    /// Of sorted round trips.
    fn percentile(&self, percent: usize) -> Duration {
        let index = self.round_trips.len().saturating_sub(1) * percent / 100;
        self.round_trips.get(index).copied().unwrap_or_default()
    }
}
