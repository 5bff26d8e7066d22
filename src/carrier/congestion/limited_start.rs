//! Limited slow start (after RFC 3742) for any controller.
//!
//! A controller that doubles its window each round trip fills the path and its queue, notices a round trip later, and has
//! sent as much again by then: every other packet of a window is lost. Of each stream quinn keeps at most 1,024 pieces that
//! wait for what is missing before them, and it ends the whole connection when there are more (`MAX_CHUNKS` in
//! quinn-proto's `connection/assembler.rs`). Only the sender can keep that from happening on every path. So a window may
//! double only while half of it is less than so many packets; from there on it grows by a fixed number of packets each round
//! trip.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, ControllerMetrics};

/// Packets that may be in flight without further ado. Half of them lost are 512 pieces.
const FREE: u64 = 1024;

/// By how many packets the window may grow in a round trip beyond that. What is sent between a loss and the news of it is
/// twice that.
const STEP: u64 = 256;

/// Makes controllers that do as those of another factory, and start as slowly as limited slow start asks for.
pub struct LimitedStart {
    controllers: Arc<dyn ControllerFactory + Send + Sync>,
}

impl LimitedStart {
    /// Limits the start of the controllers that `controllers` makes.
    pub fn of(controllers: Arc<dyn ControllerFactory + Send + Sync>) -> Self {
        Self { controllers }
    }
}

impl ControllerFactory for LimitedStart {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let controller = self.controllers.clone().build(now, current_mtu);
        let packet = u64::from(current_mtu);
        Box::new(LimitedController { controller, packet, limit: FREE * packet })
    }
}

struct LimitedController {
    controller: Box<dyn Controller>,
    /// The size of a packet in bytes.
    packet: u64,
    /// What the window may be at most, in bytes. It only grows where all of it was used, so the path has carried as much.
    limit: u64,
}

impl LimitedController {
    /// Notes that the peer acknowledged so many bytes. Says whether the limit was what bounded them.
    fn on_acked(&mut self, bytes: u64, app_limited: bool) -> bool {
        let limited = self.controller.window() > self.limit;
        if limited && !app_limited {
            self.limit += bytes * STEP * self.packet / self.limit;
        }
        limited
    }
}

impl Controller for LimitedController {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.controller.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        let limited = self.on_acked(bytes, app_limited);
        // What a controller learns from a window that it could not use is what it learns from an application that does not
        // use it: no reason to grow, and no sign that the path is full.
        self.controller.on_ack(now, sent, bytes, app_limited || limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.controller.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        if is_persistent_congestion {
            // The path may be another one now.
            self.limit = FREE * self.packet;
        }
        self.controller.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.packet = new_mtu.into();
        self.controller.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.controller.window().min(self.limit)
    }

    fn metrics(&self) -> ControllerMetrics {
        self.controller.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { controller: self.controller.clone_box(), ..*self })
    }

    fn initial_window(&self) -> u64 {
        self.controller.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self.controller.into_any()
    }
}

#[cfg(test)]
mod tests {
    use quinn_proto::congestion::CubicConfig;

    use super::*;

    const PACKET: u16 = 1200;

    /// Lets so much be in flight from the start.
    fn controller(initial_window: u64) -> LimitedController {
        let mut config = CubicConfig::default();
        config.initial_window(initial_window);
        let packet = PACKET.into();
        LimitedController { controller: Arc::new(config).build(Instant::now(), PACKET), packet, limit: FREE * packet }
    }

    #[test]
    fn a_window_within_the_limit_is_the_controllers_own() {
        let mut controller = controller(FREE * u64::from(PACKET) / 2);
        assert_eq!(controller.window(), FREE * u64::from(PACKET) / 2);
        assert!(!controller.on_acked(controller.window(), false));
        assert_eq!(controller.limit, FREE * u64::from(PACKET));
    }

    #[test]
    fn beyond_it_a_window_grows_by_a_step_each_round_trip() {
        let packet = u64::from(PACKET);
        let mut controller = controller(1 << 30);
        assert_eq!(controller.window(), FREE * packet);
        for round in 1..=4 {
            for _ in 0..controller.window() / packet {
                assert!(controller.on_acked(packet, false));
            }
            let (least, most) = ((FREE + (STEP - 32) * round) * packet, (FREE + STEP * round) * packet);
            assert!((least..=most).contains(&controller.window()), "round {round}: {}", controller.window());
        }
    }

    #[test]
    fn an_application_that_does_not_use_the_window_does_not_raise_the_limit() {
        let mut controller = controller(1 << 30);
        let before = controller.window();
        assert!(controller.on_acked(before, true));
        assert_eq!(controller.window(), before);
    }

    #[test]
    fn persistent_congestion_begins_anew() {
        let mut controller = controller(1 << 30);
        controller.on_acked(controller.window(), false);
        assert!(controller.limit > FREE * u64::from(PACKET));
        controller.on_congestion_event(Instant::now(), Instant::now(), true, 0);
        assert_eq!(controller.limit, FREE * u64::from(PACKET));
    }
}
