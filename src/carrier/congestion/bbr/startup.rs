//! Startup and Drain (sections 5.3.1 and 5.3.2).

use std::time::Instant;

use super::Bbr;
use super::delivery::{Rate, Sample};
use super::state::State;

/// Growth of the delivery rate that shows that the path is not full.
const GROWTH: f64 = 1.25;

/// Rounds without growth after which it is.
const ROUNDS_WITHOUT_GROWTH: u32 = 3;

/// `BBRStartupFullLossCnt`: in so many places packets must be lost in a round before that ends Startup.
const LOSS_EVENTS: u32 = 6;

/// Rounds that Drain takes at most.
const DRAIN_ROUNDS: u64 = 3;

/// Whether the path is full (section 5.3.1.2).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FullPipe {
    /// `BBR.full_bw_reached`: it has been full at some time.
    pub(super) reached: bool,
    /// `BBR.full_bw_now`: it is, since it was last looked for.
    pub(super) now: bool,
    baseline: Rate,
    rounds: u32,
    drain_start_round: u64,
}

impl FullPipe {
    /// `ResetFullBW`, from `rate` on.
    pub(super) fn reset(&mut self, rate: Option<Rate>) {
        self.baseline = rate.unwrap_or(0.0);
        self.rounds = 0;
        self.now = false;
    }
}

impl Bbr {
    /// `EnterStartup`.
    pub(super) fn enter_startup(&mut self) {
        self.state = State::Startup;
    }

    /// `CheckFullBWReached`.
    pub(super) fn check_full_bw_reached(&mut self, sample: &Sample) {
        if self.full_pipe.now || !self.model.rounds.start || sample.is_app_limited {
            return;
        }
        let Some(rate) = sample.rate else { return };
        if rate >= self.full_pipe.baseline * GROWTH {
            self.full_pipe.reset(Some(rate));
            return;
        }
        self.full_pipe.rounds += 1;
        self.full_pipe.now = self.full_pipe.rounds >= ROUNDS_WITHOUT_GROWTH;
        self.full_pipe.reached |= self.full_pipe.now;
    }

    /// `CheckStartupDone`.
    pub(super) fn check_startup_done(&mut self, now: Instant, sample: &Sample) {
        self.check_startup_high_loss(sample);
        if self.state == State::Startup && self.full_pipe.reached {
            self.state = State::Drain;
            self.full_pipe.drain_start_round = self.model.rounds.count;
            self.check_drain_done(now);
        }
    }

    /// `CheckDrainDone`.
    pub(super) fn check_drain_done(&mut self, now: Instant) {
        let rounds = self.model.rounds.count - self.full_pipe.drain_start_round;
        if self.state == State::Drain && (self.delivery.in_flight() <= self.inflight(1.0) || rounds > DRAIN_ROUNDS) {
            self.start_probe_bw_down(now);
        }
    }

    /// `CheckStartupHighLoss` (section 5.3.1.3).
    fn check_startup_high_loss(&mut self, sample: &Sample) {
        if self.full_pipe.reached || !self.model.loss_round_start {
            return;
        }
        let is_in_many_places = self.model.loss_events_in_round >= LOSS_EVENTS;
        self.model.loss_events_in_round = 0;
        if is_in_many_places && self.is_too_high(sample.loss_rate()) {
            self.full_pipe.reached = true;
            let bdp = self.model.bdp_multiple(1.0).unwrap_or(0);
            self.model.inflight_longterm = Some(bdp.max(self.model.inflight_latest()));
        }
    }
}
