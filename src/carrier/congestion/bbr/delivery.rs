//! Delivery rate samples (section 4.1): at which rate the network has delivered one flight of packets.
//!
//! quinn does not say which packet was acknowledged, but when it was sent, which is as good: packets that are sent at the
//! same instant have the same history. It reports a packet to be sent or lost only with others, so that a "packet" of the
//! draft is what was sent at one instant, as the draft recommends for offloads (section 4.1.3.1).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Bytes per second.
pub(super) type Rate = f64;

/// Flights that are remembered at most. Those beyond are taken for part of the one before them, whose samples are a
/// little too low then.
const MAX_FLIGHTS: usize = 8192;

/// How many packets below the largest acknowledged one may still be undecided. quinn deems a packet lost when one that was
/// sent three packets later is acknowledged (RFC 9002, section 6.1.1); the rest is margin.
const UNDECIDED_PACKETS: u64 = 16;

/// Flights that an idle connection keeps room for.
const IDLE_FLIGHTS: usize = 32;

/// What one batch of acknowledgements says about the path: `RS` of the draft. Volumes are in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    /// The delivery rate, unless the interval was too short to tell.
    pub(super) rate: Option<Rate>,
    /// What was delivered over the interval of the sample, which begins before the newest packet was sent.
    pub(super) delivered: u64,
    /// What had been delivered before the newest packet was sent.
    pub(super) prior_delivered: u64,
    /// What this batch acknowledges.
    pub(super) newly_acked: u64,
    /// What has been lost since the newest packet was sent.
    pub(super) lost: u64,
    /// What was in flight when the newest packet had been sent.
    pub(super) tx_in_flight: u64,
    /// From the sending of the newest packet to its acknowledgement.
    pub(super) rtt: Duration,
    /// Whether the application had nothing to send at some time meanwhile.
    pub(super) is_app_limited: bool,
}

/// What a lost packet says about the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Loss {
    /// What was lost now.
    pub(super) newly_lost: u64,
    /// What has been lost since the packet was sent, itself included.
    pub(super) lost: u64,
    /// What was in flight when the packet had been sent.
    pub(super) tx_in_flight: u64,
    /// Whether the application had nothing to send at some time meanwhile.
    pub(super) is_app_limited: bool,
}

/// What was sent at one instant, with the state of the connection at that time: `P` of the draft.
#[derive(Debug, Clone, Copy)]
struct Flight {
    sent: Instant,
    last_packet: u64,
    first_send_time: Instant,
    delivered_time: Instant,
    delivered: u64,
    lost: u64,
    tx_in_flight: u64,
    is_app_limited: bool,
}

/// Samples the delivery rate of one path: the state of section 4.1.2.1.
#[derive(Debug, Clone)]
pub(super) struct DeliveryRateSampler {
    flights: VecDeque<Flight>,
    /// Bytes delivered so far: `C.delivered`.
    delivered: u64,
    delivered_time: Instant,
    first_send_time: Instant,
    /// Bytes lost so far: `C.lost`.
    lost: u64,
    /// Bytes in flight as far as is known; quinn tells the true value with every batch of acknowledgements.
    in_flight: u64,
    /// The application had nothing to send before this much was delivered: `C.app_limited`.
    app_limited_until: Option<u64>,
    /// The newest packet of the batch that is being acknowledged.
    newest: Option<Flight>,
    newly_acked: u64,
}

impl DeliveryRateSampler {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            flights: VecDeque::new(),
            delivered: 0,
            delivered_time: now,
            first_send_time: now,
            lost: 0,
            in_flight: 0,
            app_limited_until: None,
            newest: None,
            newly_acked: 0,
        }
    }

    /// Bytes delivered so far.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Bytes lost so far.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Bytes in flight.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Whether the application had nothing to send a short while ago.
    pub(super) fn is_app_limited(&self) -> bool {
        self.app_limited_until.is_some()
    }

    /// `MarkConnectionAppLimited`: samples are too low until what is in flight has been delivered.
    pub(super) fn mark_app_limited(&mut self) {
        self.app_limited_until = Some(self.delivered + self.in_flight);
    }

    /// `OnPacketSent`. Packets without anything to acknowledge are among `bytes`; with the next acknowledgement quinn
    /// tells what is in flight without them.
    pub(super) fn on_sent(&mut self, now: Instant, bytes: u64, last_packet: u64) {
        if self.in_flight == 0 {
            self.first_send_time = now;
            self.delivered_time = now;
        }
        self.in_flight += bytes;
        if let Some(last) = self.flights.back_mut().filter(|last| last.sent == now) {
            last.last_packet = last_packet;
            last.tx_in_flight = self.in_flight;
            return;
        }
        if self.flights.len() < MAX_FLIGHTS {
            self.flights.push_back(Flight {
                sent: now,
                last_packet,
                first_send_time: self.first_send_time,
                delivered_time: self.delivered_time,
                delivered: self.delivered,
                lost: self.lost,
                tx_in_flight: self.in_flight,
                is_app_limited: self.is_app_limited(),
            });
        }
    }

    /// `UpdateRateSample`, for one packet of a batch.
    pub(super) fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64) {
        self.delivered += bytes;
        self.delivered_time = now;
        self.newly_acked += bytes;
        let Some(flight) = self.flight(sent) else { return };
        if self.newest.is_none_or(|newest| flight.sent >= newest.sent) {
            self.newest = Some(flight);
            self.first_send_time = flight.sent;
        }
    }

    /// `GenerateRateSample`, at the end of a batch; `None` when it acknowledged nothing that is known. Rates over less
    /// than `min_rtt` cannot be true.
    pub(super) fn on_end_acks(
        &mut self,
        in_flight: u64,
        largest_acked: Option<u64>,
        min_rtt: Option<Duration>,
    ) -> Option<Sample> {
        self.in_flight = in_flight;
        if self.app_limited_until.is_some_and(|until| self.delivered > until) {
            self.app_limited_until = None;
        }
        let newly_acked = std::mem::take(&mut self.newly_acked);
        let newest = self.newest.take();
        if let Some(largest) = largest_acked {
            self.forget_before(largest.saturating_sub(UNDECIDED_PACKETS));
        }
        let newest = newest?;
        let send_elapsed = newest.sent.saturating_duration_since(newest.first_send_time);
        let ack_elapsed = self.delivered_time.saturating_duration_since(newest.delivered_time);
        let interval = send_elapsed.max(ack_elapsed);
        let delivered = self.delivered - newest.delivered;
        let is_reliable = !interval.is_zero() && min_rtt.is_none_or(|min_rtt| interval >= min_rtt);
        Some(Sample {
            rate: is_reliable.then(|| delivered as f64 / interval.as_secs_f64()),
            delivered,
            prior_delivered: newest.delivered,
            newly_acked,
            lost: self.lost - newest.lost,
            tx_in_flight: newest.tx_in_flight,
            rtt: self.delivered_time.saturating_duration_since(newest.sent),
            is_app_limited: newest.is_app_limited,
        })
    }

    /// A packet that was sent at `sent` has been marked by a router: it is as if `bytes` had been lost, but they are not in
    /// flight twice.
    pub(super) fn on_marked(&mut self, sent: Instant, bytes: u64) -> Option<Loss> {
        self.lost += bytes;
        self.loss(sent, bytes)
    }

    /// The first half of `HandleLostPacket`. `sent` is when the newest of the lost packets was sent; `None` when that
    /// has been forgotten.
    pub(super) fn on_lost(&mut self, sent: Instant, bytes: u64) -> Option<Loss> {
        self.lost += bytes;
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.loss(sent, bytes)
    }

    fn loss(&self, sent: Instant, bytes: u64) -> Option<Loss> {
        let flight = self.flight(sent)?;
        Some(Loss {
            newly_lost: bytes,
            lost: self.lost - flight.lost,
            tx_in_flight: flight.tx_in_flight,
            is_app_limited: flight.is_app_limited,
        })
    }

    /// What was sent at this instant, or the last before it: quinn does not report everything that it sends.
    fn flight(&self, sent: Instant) -> Option<Flight> {
        let after = self.flights.partition_point(|flight| flight.sent <= sent);
        self.flights.get(after.checked_sub(1)?).copied()
    }

    fn forget_before(&mut self, packet: u64) {
        while self.flights.front().is_some_and(|flight| flight.last_packet < packet) {
            self.flights.pop_front();
        }
        if self.in_flight == 0 && self.flights.capacity() > 2 * IDLE_FLIGHTS {
            self.flights.shrink_to(IDLE_FLIGHTS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: u64 = 1000;

    fn milliseconds(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Sends a packet every millisecond from `start`; each is acknowledged 10 ms later. Returns the last sample.
    fn steady_stream(sampler: &mut DeliveryRateSampler, start: Instant, packets: u64) -> Sample {
        let mut sample = None;
        for step in 0..packets + 10 {
            let now = start + milliseconds(step);
            if let Some(acked) = step.checked_sub(10) {
                sampler.on_ack(now, start + milliseconds(acked), PACKET);
                let in_flight = sampler.in_flight() - PACKET;
                sample = sampler.on_end_acks(in_flight, Some(acked), Some(milliseconds(10)));
            }
            if step < packets {
                sampler.on_sent(now, PACKET, step);
            }
        }
        sample.unwrap()
    }

    #[test]
    fn a_steady_stream_is_measured_at_its_rate() {
        let start = Instant::now();
        let mut sampler = DeliveryRateSampler::new(start);
        let sample = steady_stream(&mut sampler, start, 100);
        assert_eq!(sample.rate, Some(1_000_000.0));
        assert_eq!(sample.rtt, milliseconds(10));
        assert_eq!(sampler.delivered(), 100 * PACKET);
        assert_eq!(sampler.in_flight(), 0);
    }

    #[test]
    fn acknowledgements_that_arrive_all_at_once_do_not_raise_the_rate_above_that_of_sending() {
        let start = Instant::now();
        let mut sampler = DeliveryRateSampler::new(start);
        for packet in 0..50 {
            sampler.on_sent(start + milliseconds(packet), PACKET, packet);
        }
        let now = start + milliseconds(50);
        for packet in 0..50 {
            sampler.on_ack(now, start + milliseconds(packet), PACKET);
        }
        let sample = sampler.on_end_acks(0, Some(49), None).unwrap();
        assert_eq!(sample.rate, Some(50.0 * PACKET as f64 / 0.050));
        assert_eq!(sample.newly_acked, 50 * PACKET);
    }

    #[test]
    fn a_rate_over_less_than_a_round_trip_is_no_sample() {
        let start = Instant::now();
        let mut sampler = DeliveryRateSampler::new(start);
        sampler.on_sent(start, PACKET, 0);
        sampler.on_ack(start + milliseconds(5), start, PACKET);
        let sample = sampler.on_end_acks(0, Some(0), Some(milliseconds(10))).unwrap();
        assert_eq!(sample.rate, None);
    }

    #[test]
    fn samples_are_marked_until_the_gap_in_the_stream_has_been_delivered() {
        let start = Instant::now();
        let mut sampler = DeliveryRateSampler::new(start);
        sampler.on_sent(start, PACKET, 0);
        sampler.mark_app_limited();
        sampler.on_sent(start + milliseconds(1), PACKET, 1);
        sampler.on_ack(start + milliseconds(10), start, PACKET);
        assert!(!sampler.on_end_acks(PACKET, Some(0), None).unwrap().is_app_limited);
        assert!(sampler.is_app_limited());
        sampler.on_ack(start + milliseconds(11), start + milliseconds(1), PACKET);
        assert!(sampler.on_end_acks(0, Some(1), None).unwrap().is_app_limited);
        assert!(!sampler.is_app_limited());
    }

    #[test]
    fn a_loss_is_told_with_what_was_in_flight_and_lost_since() {
        let start = Instant::now();
        let mut sampler = DeliveryRateSampler::new(start);
        for packet in 0..10 {
            sampler.on_sent(start + milliseconds(packet), PACKET, packet);
        }
        let first = sampler.on_lost(start + milliseconds(2), PACKET).unwrap();
        assert_eq!((first.tx_in_flight, first.lost), (3 * PACKET, PACKET));
        let second = sampler.on_lost(start + milliseconds(4), 2 * PACKET).unwrap();
        assert_eq!((second.tx_in_flight, second.lost), (5 * PACKET, 3 * PACKET));
        assert_eq!(sampler.in_flight(), 7 * PACKET);
    }

    #[test]
    fn memory_is_bounded_when_nothing_is_ever_acknowledged() {
        let start = Instant::now();
        let mut sampler = DeliveryRateSampler::new(start);
        for packet in 0..3 * MAX_FLIGHTS as u64 {
            sampler.on_sent(start + Duration::from_micros(packet), PACKET, packet);
        }
        assert_eq!(sampler.flights.len(), MAX_FLIGHTS);
        let last = start + Duration::from_micros(3 * MAX_FLIGHTS as u64 - 1);
        sampler.on_ack(last + milliseconds(10), last, PACKET);
        sampler.on_end_acks(0, Some(3 * MAX_FLIGHTS as u64 - 1), None).unwrap();
        assert!(sampler.flights.capacity() < MAX_FLIGHTS / 2);
    }

    #[test]
    fn an_acknowledgement_of_something_that_was_never_reported_is_no_sample() {
        let start = Instant::now();
        let mut sampler = DeliveryRateSampler::new(start);
        sampler.on_ack(start + milliseconds(10), start, PACKET);
        assert_eq!(sampler.on_end_acks(0, Some(0), None), None);
        assert_eq!(sampler.delivered(), PACKET);
    }
}
