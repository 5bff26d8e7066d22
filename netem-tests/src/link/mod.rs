//! One direction of a link as a state machine: no clock, no socket, no thread.
//!
//! A packet passes these stages in this order: corruption, loss, blackout, duplication, the queue and the rate behind
//! it, delay and jitter. Everything that happens to it is decided in [`Path::handle_packet`], so the outcome does not
//! depend on when [`Path::poll_output`] is called; a backend that is late delivers late, and can tell by how much.
//!
//! Randomness comes from one stream per (seed, direction, stage): the same seed and the same packets give the same
//! run, and turning one stage on does not change what another one does.

#![forbid(unsafe_code)]

mod chance;
mod delay;
mod loss;
mod queue;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::time::{Duration, Instant};

use chance::{Chance, Stage};
use delay::Delay;
use loss::LossStage;
use queue::Queue;

pub use loss::{Bursts, Loss};
pub use queue::QueueLimit;

use crate::histogram::{Histogram, Quantiles};
use crate::units::{Probability, Rate};

/// More than this many bytes on their way at once are dropped as if the queue were full. It only bounds memory: a link
/// of 1 Gbit/s and one second of delay stays below half of it.
pub const MAX_IN_FLIGHT_BYTES: usize = 256 * 1024 * 1024;

/// Which way packets travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the private network out: what the agent sends.
    Up,
    /// Into the private network: what the agent receives.
    Down,
}

/// What one direction of a link does to packets. The default does nothing at all.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PathSettings {
    /// Packets of which one bit is inverted.
    pub corrupt: Probability,
    /// Packets that vanish before they reach the queue.
    pub loss: Loss,
    /// Packets that are put into the queue twice.
    pub duplicate: Probability,
    /// What may wait for the link; meaningless without a rate.
    pub queue: QueueLimit,
    /// How fast the link sends; `None`: at once.
    pub rate: Option<Rate>,
    /// How long a packet travels after it has been sent.
    pub delay: Duration,
    /// Each packet's delay is drawn evenly from `delay - jitter ..= delay + jitter`; at most `delay`.
    pub jitter: Duration,
    /// Whether jitter may let packets overtake each other. Otherwise a packet waits for the one before it, which moves
    /// the mean delay of dense traffic towards `delay + jitter`.
    pub reorder: bool,
}

/// A packet, with what its backend needs to know to deliver it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet<T> {
    /// The bytes that travel.
    pub bytes: Vec<u8>,
    /// What the packet takes of the link's rate and queue: its bytes and the headers that are not among them.
    pub wire_length: usize,
    /// The backend's own note, carried along.
    pub tag: T,
}

/// What [`Path::poll_output`] says.
#[derive(Debug, PartialEq, Eq)]
pub enum Output<T> {
    /// This packet has arrived at the other end.
    Packet {
        /// When it should have been delivered: at or before the `now` of the call.
        due: Instant,
        /// The packet.
        packet: Packet<T>,
    },
    /// Nothing has arrived yet; ask again at this time, or after the next packet was handed in.
    Deadline(Instant),
    /// Nothing is on its way.
    Idle,
}

/// What became of the packets so far. `offered + duplicated = lost + blacked_out + queue_dropped + delivered` and
/// what is still on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Packets handed in.
    pub offered: u64,
    /// Packets with an inverted bit; they count among the others as well.
    pub corrupted: u64,
    /// Packets lost by chance.
    pub lost: u64,
    /// Packets handed in during a blackout.
    pub blacked_out: u64,
    /// Copies made.
    pub duplicated: u64,
    /// Packets that found the queue full.
    pub queue_dropped: u64,
    /// Packets that came out.
    pub delivered: u64,
    /// The wire length of the packets that came out.
    pub delivered_bytes: u64,
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offered, lost, blacked_out, queue_dropped, delivered, delivered_bytes, .. } = self;
        write!(f, "{offered} packets in, {delivered} out ({delivered_bytes} bytes), {lost} lost by chance, ")?;
        write!(f, "{queue_dropped} at a full queue, {blacked_out} in blackouts, ")?;
        write!(f, "{} copied, {} corrupted", self.duplicated, self.corrupted)
    }
}

/// One direction of a link.
#[derive(Debug)]
pub struct Path<T> {
    corruption: Chance,
    loss: LossStage,
    blackout: Option<(Instant, Instant)>,
    duplication: Chance,
    queue: Queue,
    delay: Delay,
    in_flight: BinaryHeap<Reverse<InFlight<T>>>,
    in_flight_bytes: usize,
    admitted: u64,
    counters: Counters,
    waits: Histogram,
}

impl<T: Clone> Path<T> {
    /// A link with nothing on it. `seed` and `direction` choose the random streams.
    pub fn new(settings: &PathSettings, seed: u64, direction: Direction) -> Self {
        let random = |stage| Chance::random(seed, direction, stage);
        Self {
            corruption: Chance::new(settings.corrupt, random(Stage::Corruption)),
            loss: LossStage::new(settings.loss, random(Stage::Loss)),
            blackout: None,
            duplication: Chance::new(settings.duplicate, random(Stage::Duplication)),
            queue: Queue::new(settings.rate, settings.queue),
            delay: Delay::new(settings.delay, settings.jitter, settings.reorder, random(Stage::Delay)),
            in_flight: BinaryHeap::new(),
            in_flight_bytes: 0,
            admitted: 0,
            counters: Counters::default(),
            waits: Histogram::new(),
        }
    }

    /// A packet enters the link. `now` must not be before the `now` of an earlier call.
    pub fn handle_packet(&mut self, now: Instant, mut packet: Packet<T>) {
        self.counters.offered += 1;
        if self.corruption.strikes() {
            self.counters.corrupted += 1;
            self.corruption.invert_one_bit(&mut packet.bytes);
        }
        if self.loss.strikes() {
            self.counters.lost += 1;
            return;
        }
        if self.is_blacked_out(now) {
            self.counters.blacked_out += 1;
            return;
        }
        let copy = self.duplication.strikes().then(|| packet.clone());
        self.enqueue(now, packet);
        if let Some(copy) = copy {
            self.counters.duplicated += 1;
            self.enqueue(now, copy);
        }
    }

    /// The next packet that has arrived by `now`, or when to ask again.
    pub fn poll_output(&mut self, now: Instant) -> Output<T> {
        let Some(Reverse(next)) = self.in_flight.peek() else { return Output::Idle };
        if next.due > now {
            return Output::Deadline(next.due);
        }
        let Some(Reverse(InFlight { due, packet, .. })) = self.in_flight.pop() else { return Output::Idle };
        self.in_flight_bytes -= packet.wire_length;
        self.counters.delivered += 1;
        self.counters.delivered_bytes += packet.wire_length as u64;
        Output::Packet { due, packet }
    }

    /// Packets handed in from `from` until `until` are lost; what is already on its way arrives. Replaces an earlier
    /// blackout.
    pub fn black_out(&mut self, from: Instant, until: Instant) {
        self.blackout = Some((from, until));
    }

    /// Whether a packet handed in at `now` would be lost to a blackout.
    pub fn is_blacked_out(&self, now: Instant) -> bool {
        self.blackout.is_some_and(|(from, until)| from <= now && now < until)
    }

    /// Whether the queue would take a packet of `wire_length` at `now`: for backends that can make senders wait.
    pub fn has_room(&mut self, now: Instant, wire_length: usize) -> bool {
        self.in_flight_bytes + wire_length <= MAX_IN_FLIGHT_BYTES && self.queue.has_room(now, wire_length)
    }

    /// The delay without jitter.
    pub fn delay(&self) -> Duration {
        self.delay.mean()
    }

    /// What became of the packets so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How long the packets that were admitted so far waited for the link, their own sending included.
    pub fn wait(&self) -> Quantiles {
        self.waits.quantiles()
    }

    fn enqueue(&mut self, now: Instant, packet: Packet<T>) {
        if !self.has_room(now, packet.wire_length) {
            self.counters.queue_dropped += 1;
            return;
        }
        let sent = self.queue.push(now, packet.wire_length);
        self.waits.record(sent - now);
        let due = self.delay.arrival(sent);
        self.in_flight_bytes += packet.wire_length;
        self.in_flight.push(Reverse(InFlight { due, order: self.admitted, packet }));
        self.admitted += 1;
    }
}

/// A packet whose arrival is settled. Ordered by arrival, then by who came first.
#[derive(Debug)]
struct InFlight<T> {
    due: Instant,
    order: u64,
    packet: Packet<T>,
}

impl<T> Ord for InFlight<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

impl<T> PartialOrd for InFlight<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for InFlight<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for InFlight<T> {}
