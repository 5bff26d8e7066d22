//! The model of the path (section 5.5): what it delivers, how long that takes, and what it holds.

use std::time::{Duration, Instant};

use super::Bbr;
use super::delivery::{Rate, Sample};
use super::filter::{MaxBandwidth, RoundMaximum};
use super::loss::OwnLoss;

/// `BBR.Beta`: what remains of a bound when congestion lowers it.
pub(super) const BETA: f64 = 0.7;

/// `BBR.ExtraAckedFilterLen`, in rounds.
const EXTRA_ACKED_ROUNDS: u64 = 10;

/// What is known of the path.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) rounds: Rounds,
    max_bw: MaxBandwidth,
    min_rtt: Option<Duration>,
    /// `BBR.bw_shortterm`; `None` is infinity.
    bw_shortterm: Option<Rate>,
    /// `BBR.inflight_shortterm`; `None` is infinity.
    pub(super) inflight_shortterm: Option<u64>,
    /// `BBR.inflight_longterm`; `None` is infinity.
    pub(super) inflight_longterm: Option<u64>,
    bw_latest: Rate,
    inflight_latest: u64,
    /// Rounds of their own, which begin when a loss is noticed.
    loss_round_delivered: u64,
    pub(super) loss_round_start: bool,
    is_loss_in_round: bool,
    pub(super) loss_events_in_round: u32,
    pub(super) own_loss: OwnLoss,
    aggregation: Aggregation,
}

/// Packet-timed round trips (section 5.5.1).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rounds {
    /// Round trips so far.
    pub(super) count: u64,
    /// Whether the batch of acknowledgements at hand begins a round.
    pub(super) start: bool,
    next_round_delivered: u64,
}

/// The degree of aggregation in the path (section 5.5.9).
#[derive(Debug, Clone)]
struct Aggregation {
    interval_start: Instant,
    delivered: u64,
    extra_acked: RoundMaximum,
}

impl Model {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            rounds: Rounds::default(),
            max_bw: MaxBandwidth::default(),
            min_rtt: None,
            bw_shortterm: None,
            inflight_shortterm: None,
            inflight_longterm: None,
            bw_latest: 0.0,
            inflight_latest: 0,
            loss_round_delivered: 0,
            loss_round_start: false,
            is_loss_in_round: false,
            loss_events_in_round: 0,
            own_loss: OwnLoss::default(),
            aggregation: Aggregation { interval_start: now, delivered: 0, extra_acked: RoundMaximum::default() },
        }
    }

    /// `BBR.min_rtt`, once there is one.
    pub(super) fn min_rtt(&self) -> Option<Duration> {
        self.min_rtt
    }

    pub(super) fn set_min_rtt(&mut self, rtt: Duration) {
        self.min_rtt = Some(rtt);
    }

    /// `BBR.bw` (`BoundBWForModel`), once there is a sample.
    pub(super) fn bw(&self) -> Option<Rate> {
        let max_bw = self.max_bw.get();
        (max_bw > 0.0).then(|| self.bw_shortterm.map_or(max_bw, |shortterm| shortterm.min(max_bw)))
    }

    /// `BBR.bdp` times `gain` (`BDPMultiple`), once there are samples.
    pub(super) fn bdp_multiple(&self, gain: f64) -> Option<u64> {
        Some((self.bw()? * self.min_rtt?.as_secs_f64() * gain) as u64)
    }

    /// `BBR.extra_acked`.
    pub(super) fn extra_acked(&self) -> u64 {
        self.aggregation.extra_acked.get()
    }

    /// `BBR.inflight_latest`: what was delivered in the last round.
    pub(super) fn inflight_latest(&self) -> u64 {
        self.inflight_latest
    }

    /// `AdvanceMaxBwFilter`.
    pub(super) fn advance_max_bw_filter(&mut self) {
        self.max_bw.advance();
    }

    /// What was acknowledged until now is no aggregation.
    pub(super) fn restart_aggregation(&mut self, now: Instant) {
        self.aggregation.interval_start = now;
        self.aggregation.delivered = 0;
    }

    /// `NoteLoss`.
    pub(super) fn note_loss(&mut self, delivered: u64) {
        if !self.is_loss_in_round {
            self.loss_round_delivered = delivered;
        }
        self.is_loss_in_round = true;
        self.loss_events_in_round = self.loss_events_in_round.saturating_add(1);
    }

    /// `UpdateLatestDeliverySignals`.
    pub(super) fn update_latest_delivery_signals(&mut self, sample: &Sample, delivered: u64) {
        self.bw_latest = self.bw_latest.max(sample.rate.unwrap_or(0.0));
        self.inflight_latest = self.inflight_latest.max(sample.delivered);
        self.loss_round_start = sample.prior_delivered >= self.loss_round_delivered;
        if self.loss_round_start {
            self.loss_round_delivered = delivered;
        }
    }

    /// `AdvanceLatestDeliverySignals`.
    pub(super) fn advance_latest_delivery_signals(&mut self, sample: &Sample) {
        if self.loss_round_start {
            self.bw_latest = sample.rate.unwrap_or(0.0);
            self.inflight_latest = sample.delivered;
        }
    }

    /// `ResetCongestionSignals`.
    pub(super) fn reset_congestion_signals(&mut self) {
        self.is_loss_in_round = false;
        self.loss_events_in_round = 0;
        self.bw_latest = 0.0;
        self.inflight_latest = 0;
    }

    /// `ResetShortTermModel`.
    pub(super) fn reset_short_term(&mut self) {
        self.bw_shortterm = None;
        self.inflight_shortterm = None;
    }

    /// `UpdateMaxBw`.
    fn update_max_bw(&mut self, sample: &Sample) {
        let Some(rate) = sample.rate else { return };
        if rate >= self.max_bw.get() || !sample.is_app_limited {
            self.max_bw.update(rate);
        }
    }

    /// `InitLowerBounds` and `LossLowerBounds`.
    fn lower_bounds(&mut self, cwnd: u64) {
        let bw = self.bw_shortterm.unwrap_or(self.max_bw.get());
        let inflight = self.inflight_shortterm.unwrap_or(cwnd);
        self.bw_shortterm = Some(self.bw_latest.max(BETA * bw));
        self.inflight_shortterm = Some(self.inflight_latest.max((BETA * inflight as f64) as u64));
    }
}

impl Rounds {
    /// `StartRound`.
    pub(super) fn start_round(&mut self, delivered: u64) {
        self.next_round_delivered = delivered;
    }

    /// `UpdateRound`. Says whether a round has begun.
    fn update(&mut self, sample: &Sample, delivered: u64) -> bool {
        self.start = sample.prior_delivered >= self.next_round_delivered;
        if self.start {
            self.start_round(delivered);
            self.count += 1;
        }
        self.start
    }
}

impl Bbr {
    /// `UpdateCongestionSignals` with `AdaptLowerBoundsFromCongestion`.
    pub(super) fn update_congestion_signals(&mut self, sample: &Sample) {
        if self.model.rounds.update(sample, self.delivery.delivered()) {
            self.cycle.rounds_since_probe_up += 1;
            self.control.on_round_start();
            self.update_own_loss(sample);
        }
        self.model.update_max_bw(sample);
        if !self.model.loss_round_start {
            return;
        }
        // The draft takes any loss for a reason to bound what is sent until the next probe. On a path that loses packets by
        // itself that is every round, and as a bound only falls, each low sample of the bandwidth remains: where
        // acknowledgements come unevenly the rate falls to a half of what it is without this (`wifi-1`: 49 and 83 of 100
        // Mbit/s). So without a queue loss has to be more than chance explains. With one the draft's rule holds; flows that
        // share a queue come to even shares by it.
        let is_congested = self.model.is_loss_in_round && (self.has_queue() || self.is_too_high(sample.loss_rate()));
        if is_congested && !self.state.is_accelerating() {
            self.model.lower_bounds(self.control.cwnd());
        }
        self.model.is_loss_in_round = false;
    }

    /// Whether the round trip time shows a queue: that packets take longer than on the empty path by more than a quarter,
    /// and by more than twice what the aggregation of acknowledgements explains (once it, jitter makes 52 to 80 of `wifi-1`'s
    /// 100 Mbit/s, with twice 77 to 86).
    pub(super) fn has_queue(&self) -> bool {
        let model = &self.model;
        let (Some(bw), Some(most)) = (model.bw(), model.bdp_multiple(1.25)) else { return false };
        bw * self.smoothed_rtt.as_secs_f64() > (most + 2 * model.extra_acked()) as f64
    }

    /// `UpdateACKAggregation`.
    pub(super) fn update_ack_aggregation(&mut self, now: Instant, sample: &Sample) {
        let Some(bw) = self.model.bw() else { return };
        let aggregation = &mut self.model.aggregation;
        let interval = now.saturating_duration_since(aggregation.interval_start);
        let mut expected = (bw * interval.as_secs_f64()) as u64;
        if aggregation.delivered <= expected {
            aggregation.delivered = 0;
            aggregation.interval_start = now;
            expected = 0;
        }
        aggregation.delivered += sample.newly_acked;
        let extra = (aggregation.delivered - expected).min(self.control.cwnd());
        let window = if self.full_pipe.reached { EXTRA_ACKED_ROUNDS } else { 1 };
        aggregation.extra_acked.update(self.model.rounds.count, extra, window);
    }
}
