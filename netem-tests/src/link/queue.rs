//! The queue in front of the link and the rate at which it drains.

use std::collections::VecDeque;
use std::time::Instant;

use crate::units::Rate;

/// What may wait behind the packet that is being sent. A packet for which there is no room is dropped (drop tail).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimit {
    /// The sum of the waiting packets' lengths. Default: no limit.
    pub bytes: usize,
    /// The number of waiting packets. Default: 1000, as `limit` of Linux's netem.
    pub packets: usize,
}

impl Default for QueueLimit {
    fn default() -> Self {
        Self { bytes: usize::MAX, packets: 1000 }
    }
}

/// Knows of every packet when its last bit will have left. Without a rate nothing ever waits.
#[derive(Debug)]
pub(super) struct Queue {
    rate: Option<Rate>,
    limit: QueueLimit,
    /// The packet being sent, then those that wait.
    unsent: VecDeque<Unsent>,
    unsent_bytes: usize,
}

#[derive(Debug)]
struct Unsent {
    sent: Instant,
    bytes: usize,
}

impl Queue {
    pub(super) fn new(rate: Option<Rate>, limit: QueueLimit) -> Self {
        Self { rate, limit, unsent: VecDeque::new(), unsent_bytes: 0 }
    }

    pub(super) fn has_room(&mut self, now: Instant, bytes: usize) -> bool {
        self.forget_sent(now);
        let Some(sending) = self.unsent.front() else { return true };
        let waiting_bytes = self.unsent_bytes - sending.bytes;
        let waiting_packets = self.unsent.len() - 1;
        waiting_packets < self.limit.packets && waiting_bytes.saturating_add(bytes) <= self.limit.bytes
    }

    /// Takes a packet for which there [is room](Self::has_room); returns when its last bit will have left.
    pub(super) fn push(&mut self, now: Instant, bytes: usize) -> Instant {
        let Some(rate) = self.rate else { return now };
        let start = self.unsent.back().map_or(now, |last| last.sent.max(now));
        let sent = start + rate.time_to_send(bytes);
        self.unsent.push_back(Unsent { sent, bytes });
        self.unsent_bytes += bytes;
        sent
    }

    fn forget_sent(&mut self, now: Instant) {
        while let Some(first) = self.unsent.front().filter(|first| first.sent <= now) {
            self.unsent_bytes -= first.bytes;
            self.unsent.pop_front();
        }
    }
}
