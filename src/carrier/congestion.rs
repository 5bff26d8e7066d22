//! A congestion controller that can be told to let one packet through.
//!
//! Pings and datagrams obey the congestion window; only the probes of the probe timeout (PTO) pass it by. The timeout
//! doubles with every probe that is not answered (RFC 9002, section 6.2.1) and quinn does not cap it, so a connection
//! whose window was full when the network went away may wait for as long again as the outage took once it is back.
//! [`Pulse::force`] opens the window for the next transmission, whatever is in flight. The packets that then go out are
//! what a probe would be (RFC 9002, section 7.5 exempts those from the window): rare, small, and sent only while nothing
//! comes back.

mod bbr;
mod choice;
mod limited_start;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, ControllerMetrics};
use tokio::sync::Notify;

pub use bbr::BbrConfig;
pub use choice::CongestionControl;
pub use limited_start::LimitedStart;

/// What the congestion controllers of one connection, one for each of its paths, and its streams share with its heartbeat.
///
/// The controllers run under quinn's lock of the connection, and the count of streams is only looked at now and then, so
/// orderings do not matter.
#[derive(Debug, Default)]
pub struct Pulse {
    forced: AtomicBool,
    acknowledged: AtomicU64,
    in_flight: AtomicU64,
    sent_since_acknowledged: AtomicBool,
    sent: Signal,
    answered: Signal,
    work: AtomicUsize,
    standing_work: AtomicUsize,
    begun: Signal,
}

/// Something on a connection for whose sake its peer should answer: half of a stream, or a request that waits. It counts for as
/// long as it is there.
#[derive(Debug)]
pub struct Work(Arc<Pulse>);

/// What a stream counts for: both of its halves.
const STREAM: usize = 2;

impl Work {
    /// Begins on the connection that `pulse` is of.
    pub fn begin(pulse: &Arc<Pulse>) -> Self {
        pulse.work.fetch_add(1, Ordering::Relaxed);
        pulse.begun.give();
        Self(pulse.clone())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.0.work.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pulse {
    /// From now on so many streams are there for the connection's own sake, and nobody waits for what comes on them. Default
    /// none.
    pub fn set_standing_streams(&self, count: usize) {
        self.standing_work.store(count.saturating_mul(STREAM), Ordering::Relaxed);
    }

    /// Whether somebody may wait for the peer.
    pub fn has_work(&self) -> bool {
        self.work.load(Ordering::Relaxed) > self.standing_work.load(Ordering::Relaxed)
    }

    /// Waits until work begins from now on.
    pub async fn work_begins(&self) {
        self.begun.wait().await;
    }

    /// Lets the next transmission pass, even when the congestion window is full.
    pub fn force(&self) {
        self.forced.store(true, Ordering::Relaxed);
    }

    /// How many packets of this end the peer has acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Whether certainly nothing is left to be acknowledged. `false` may be wrong: what was sent last may have been
    /// acknowledgements, which nobody acknowledges.
    pub fn is_clear(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0 && !self.sent_since_acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until something is sent from now on.
    pub async fn sent(&self) {
        self.sent.wait().await;
    }

    /// Waits until something is acknowledged from now on.
    pub async fn answered(&self) {
        self.answered.wait().await;
    }

    fn on_sent(&self) {
        self.forced.store(false, Ordering::Relaxed);
        self.sent_since_acknowledged.store(true, Ordering::Relaxed);
        self.sent.give();
    }

    fn on_acknowledged(&self) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        self.answered.give();
    }
}

/// Wakes one task. It costs next to nothing while nobody waits: a busy connection sends thousands of times a second, and
/// its heartbeat needs to hear of it once.
#[derive(Debug, Default)]
struct Signal {
    wanted: AtomicBool,
    notify: Notify,
}

impl Signal {
    async fn wait(&self) {
        self.wanted.store(true, Ordering::Relaxed);
        self.notify.notified().await;
    }

    fn give(&self) {
        if self.wanted.load(Ordering::Relaxed) && self.wanted.swap(false, Ordering::Relaxed) {
            self.notify.notify_one();
        }
    }
}

/// Makes controllers that do as those of another factory, and obey a [`Pulse`].
pub struct PulsedFactory {
    controllers: Arc<dyn ControllerFactory + Send + Sync>,
    pulse: Arc<Pulse>,
}

impl PulsedFactory {
    /// Wraps the controllers that `controllers` makes, for the one connection that `pulse` is of.
    pub fn new(controllers: Arc<dyn ControllerFactory + Send + Sync>, pulse: Arc<Pulse>) -> Self {
        Self { controllers, pulse }
    }
}

impl ControllerFactory for PulsedFactory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let controller = self.controllers.clone().build(now, current_mtu);
        Box::new(PulsedController { controller, pulse: self.pulse.clone() })
    }
}

struct PulsedController {
    controller: Box<dyn Controller>,
    pulse: Arc<Pulse>,
}

impl Controller for PulsedController {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.pulse.on_sent();
        self.controller.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.pulse.on_acknowledged();
        self.controller.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.pulse.in_flight.store(in_flight, Ordering::Relaxed);
        self.pulse.sent_since_acknowledged.store(false, Ordering::Relaxed);
        self.controller.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.controller.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.controller.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        match self.pulse.forced.load(Ordering::Relaxed) {
            // More than 2^32 also takes the pacer out of the way.
            true => u64::MAX,
            false => self.controller.window(),
        }
    }

    fn metrics(&self) -> ControllerMetrics {
        self.controller.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { controller: self.controller.clone_box(), pulse: self.pulse.clone() })
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

    fn controller(pulse: &Arc<Pulse>) -> Box<dyn Controller> {
        let factory = PulsedFactory::new(Arc::new(CubicConfig::default()), pulse.clone());
        Arc::new(factory).build(Instant::now(), 1200)
    }

    #[test]
    fn a_forced_transmission_passes_the_window_and_the_next_one_does_not() {
        let pulse = Arc::new(Pulse::default());
        let mut controller = controller(&pulse);
        let window = controller.window();
        pulse.force();
        assert_eq!(controller.window(), u64::MAX);
        controller.on_sent(Instant::now(), 1200, 0);
        assert_eq!(controller.window(), window);
    }

    #[test]
    fn the_controller_of_a_new_path_obeys_the_same_pulse() {
        let pulse = Arc::new(Pulse::default());
        let controller = controller(&pulse);
        let of_new_path = controller.clone_box();
        pulse.force();
        assert_eq!(of_new_path.window(), u64::MAX);
    }

    #[test]
    fn a_connection_has_work_while_a_stream_is_open_beyond_those_that_stand() {
        let pulse = Arc::new(Pulse::default());
        let control = [Work::begin(&pulse), Work::begin(&pulse)];
        assert!(pulse.has_work());
        pulse.set_standing_streams(1);
        assert!(!pulse.has_work());
        let answer = Work::begin(&pulse);
        assert!(pulse.has_work());
        drop(answer);
        assert!(!pulse.has_work());
        drop(control);
    }

    #[test]
    fn what_was_acknowledged_leaves_the_connection_clear() {
        let pulse = Arc::new(Pulse::default());
        let mut controller = controller(&pulse);
        assert!(pulse.is_clear());
        controller.on_sent(Instant::now(), 1200, 0);
        assert!(!pulse.is_clear());
        controller.on_end_acks(Instant::now(), 0, false, Some(0));
        assert!(pulse.is_clear());
    }

    #[tokio::test]
    async fn what_is_sent_wakes_whoever_waits_for_it() {
        let pulse = Arc::new(Pulse::default());
        let mut controller = controller(&pulse);
        let waiting = tokio::spawn({
            let pulse = pulse.clone();
            async move { pulse.sent().await }
        });
        while !pulse.sent.wanted.load(Ordering::Relaxed) {
            tokio::task::yield_now().await;
        }
        controller.on_sent(Instant::now(), 1200, 0);
        tokio::time::timeout(std::time::Duration::from_secs(5), waiting).await.unwrap().unwrap();
    }
}
