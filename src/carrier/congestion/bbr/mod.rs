//! BBR version 3, after draft-ietf-ccwg-bbr.
//!
//! Cubic takes every lost packet for congestion, so that on a path that loses 2% by itself it sends next to nothing. BBR
//! measures instead at which rate the path delivers and how long it takes when its queues are empty, and sends as much as
//! that model of the path asks for; it takes loss for congestion only where it exceeds what a path may lose by itself.
//!
//! Functions have the names of the draft's pseudocode, and comments cite its sections. [`delivery`] samples the delivery
//! rate, [`model`] makes the model of the path, [`startup`], [`probe_bw`] and [`probe_rtt`] are the state machine, and
//! [`control`] turns both into what may be sent.
//!
//! What differs from the draft, and why:
//! - quinn asks a controller for one number, the window, and paces by it: at 5/4 of a window per smoothed round trip, in
//!   bursts of 10 packets or 2 ms (quinn-proto's `connection/pacing.rs`). A window is no rate, so the pacing rate is kept
//!   by a credit that grows with time and shrinks with what is sent; the window that quinn sees is what is in flight and
//!   the credit (see [`control`]). It grows only with acknowledgements and losses, because nothing else wakes quinn up.
//!   Where acknowledgements come in clumps that costs a part of the rate: on a path with much jitter up to a fifth. In
//!   Startup quinn's pacing has to do: 2.5 times the bandwidth instead of 2.77.
//! - quinn does not tell whether a loss was spurious; nothing is undone (section 5.5.11).
//! - quinn does not tell of probe timeouts; only persistent congestion (RFC 9002, section 7.6) makes the window minimal.
//! - Loss is compared with the threshold as a statistician would, see [`LossRate`](loss::LossRate), and with what the path
//!   loses by itself, see [`OwnLoss`](loss::OwnLoss). The short-term bounds of section 5.5.10.3 fall only with more than
//!   that, unless the round trip time shows a queue.
//! - An explicit congestion notification counts as loss of one packet: the draft leaves the answer open (section 3.6).

mod control;
mod delivery;
mod filter;
mod loss;
mod model;
mod probe_bw;
mod probe_rtt;
mod startup;
mod state;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, ControllerMetrics};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use control::Control;
use delivery::{DeliveryRateSampler, Loss, Sample};
use model::Model;
use probe_bw::Cycle;
use probe_rtt::ProbeRtt;
use startup::FullPipe;
use state::State;

/// The initial window in packets (RFC 9002, section 7.2).
const INITIAL_WINDOW_PACKETS: u64 = 10;

/// The largest UDP payload that every path carries (RFC 9000, section 14).
const BASE_DATAGRAM_SIZE: u64 = 1200;

/// Makes BBR controllers.
#[derive(Debug, Clone, Default)]
pub struct BbrConfig {
    seed: Option<u64>,
}

impl BbrConfig {
    /// Controllers that draw the same random numbers in every run (of when to probe for bandwidth), for simulations.
    /// Default: random numbers that nobody knows.
    pub fn seeded(seed: u64) -> Self {
        Self { seed: Some(seed) }
    }
}

impl ControllerFactory for BbrConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let random = SmallRng::seed_from_u64(self.seed.unwrap_or_else(|| rand::rng().random()));
        Box::new(Bbr::new(now, current_mtu.into(), random))
    }
}

/// The controller of one path. Volumes are in bytes.
#[derive(Debug, Clone)]
struct Bbr {
    state: State,
    delivery: DeliveryRateSampler,
    model: Model,
    full_pipe: FullPipe,
    cycle: Cycle,
    probe_rtt: ProbeRtt,
    control: Control,
    /// Whether the application had nothing to send when the last acknowledgements came.
    has_nothing_to_send: bool,
    /// The smoothed round trip time, without what the peer delayed acknowledgements by.
    smoothed_rtt: Duration,
    random: SmallRng,
}

impl Bbr {
    /// `OnInit` (section 5.2.1).
    fn new(now: Instant, mtu: u64, random: SmallRng) -> Self {
        Self {
            state: State::Startup,
            delivery: DeliveryRateSampler::new(now),
            model: Model::new(now),
            full_pipe: FullPipe::default(),
            cycle: Cycle::new(now),
            probe_rtt: ProbeRtt::default(),
            control: Control::new(now, mtu),
            has_nothing_to_send: false,
            smoothed_rtt: Duration::MAX,
            random,
        }
    }

    fn on_packet_acked(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, smoothed_rtt: Duration) {
        if app_limited {
            self.delivery.mark_app_limited();
        }
        self.smoothed_rtt = smoothed_rtt;
        self.delivery.on_ack(now, sent, bytes);
    }

    /// `UpdateOnACK` (section 5.2.3).
    fn update_on_ack(&mut self, now: Instant, sample: &Sample) {
        self.update_model_and_state(now, sample);
        self.update_control_parameters(sample);
        if self.model.rounds.start {
            self.trace(sample);
        }
    }

    /// Shows what the controller knows and does, once in a round.
    fn trace(&self, sample: &Sample) {
        tracing::trace!(
            state = ?self.state,
            bandwidth = self.model.bw().unwrap_or_default() as u64,
            delivery_rate = sample.rate.unwrap_or_default() as u64,
            min_rtt = ?self.model.min_rtt(),
            smoothed_rtt = ?self.smoothed_rtt,
            in_flight = self.delivery.in_flight(),
            cwnd = self.control.cwnd(),
            window = self.control.window(),
            lost = sample.lost,
            loss_threshold = self.loss_threshold(),
            inflight_longterm = self.model.inflight_longterm,
            inflight_shortterm = self.model.inflight_shortterm,
            extra_acked = self.model.extra_acked(),
            "a round of BBR begins"
        );
    }

    fn update_model_and_state(&mut self, now: Instant, sample: &Sample) {
        self.model.update_latest_delivery_signals(sample, self.delivery.delivered());
        self.update_congestion_signals(sample);
        self.update_ack_aggregation(now, sample);
        self.check_full_bw_reached(sample);
        self.check_startup_done(now, sample);
        self.check_drain_done(now);
        self.update_probe_bw_cycle_phase(now, sample);
        self.update_min_rtt(now, sample);
        self.check_probe_rtt(now, sample);
        self.model.advance_latest_delivery_signals(sample);
    }

    /// The second half of `HandleLostPacket` (section 5.5.10.2).
    fn handle_lost_packet(&mut self, now: Instant, loss: &Loss) {
        self.model.note_loss(self.delivery.delivered());
        if self.cycle.is_probe_sample && self.is_too_high(loss.rate()) {
            let inflight = loss.inflight_at_loss(self.loss_threshold());
            self.handle_inflight_too_high(now, inflight, loss.is_app_limited);
        }
    }
}

impl Controller for Bbr {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        if self.delivery.in_flight() == 0 && self.delivery.is_app_limited() {
            self.handle_restart_from_idle(now);
        }
        self.delivery.on_sent(now, bytes, last_packet_number);
        self.control.on_sent(bytes, self.delivery.in_flight());
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.on_packet_acked(now, sent, bytes, app_limited, rtt.get());
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        let sample = self.delivery.on_end_acks(in_flight, largest_packet_num_acked, self.model.min_rtt());
        if let Some(sample) = sample {
            self.update_on_ack(now, &sample);
        }
        self.has_nothing_to_send = app_limited;
        self.update_window(now);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        let loss = match lost_bytes {
            0 => self.delivery.on_marked(sent, self.control.mss()),
            _ => self.delivery.on_lost(sent, lost_bytes),
        };
        if let Some(loss) = loss {
            self.handle_lost_packet(now, &loss);
        }
        if is_persistent_congestion {
            self.control.on_persistent_congestion();
        }
        self.update_window(now);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.control.set_mss(new_mtu.into());
    }

    fn window(&self) -> u64 {
        self.control.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.window();
        metrics.pacing_rate = self.control.pacing_rate().map(|rate| (rate * 8.0) as u64);
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        INITIAL_WINDOW_PACKETS * BASE_DATAGRAM_SIZE
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
