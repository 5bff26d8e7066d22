//! The cycle of probing for bandwidth (section 5.3.3).

use std::time::{Duration, Instant};

use rand::Rng;

use super::Bbr;
use super::delivery::Sample;
use super::model::BETA;
use super::state::State;

/// `BBR.Headroom`: the share of what fits into the path that is left to others.
const HEADROOM: f64 = 0.15;

/// The shortest and the longest time between probes.
const PROBE_WAIT: std::ops::Range<Duration> = Duration::from_secs(2)..Duration::from_secs(3);

/// Rounds after which Reno would have probed, at most (section 5.3.3.5.3).
const RENO_ROUNDS: u64 = 63;

/// Bounds the growth of `inflight_longterm`, which doubles every round.
const MAX_GROWTH_ROUNDS: u32 = 30;

/// `BBR.ack_phase`: what acknowledgements are about, with respect to probing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AckPhase {
    /// Not about probing.
    Init,
    /// Packets sent to fill the path.
    Refilling,
    /// Packets sent before probing began.
    ProbeStarting,
    /// Packets sent while probing.
    ProbeFeedback,
    /// Packets sent while probing, which has ended.
    ProbeStopping,
}

/// Where in the cycle the controller is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cycle {
    pub(super) ack_phase: AckPhase,
    /// `BBR.is_bw_probe_sample`: acknowledgements and losses are of packets that were sent while probing.
    pub(super) is_probe_sample: bool,
    pub(super) rounds_since_probe_up: u64,
    start: Instant,
    probe_wait: Duration,
    prev_probe_too_high: bool,
    prev_probe_precautionary: bool,
    up_rounds: u32,
    up_acked: u64,
    /// `BBR.probe_up_acked_per_inc`; `None` is infinity.
    up_acked_per_increment: Option<u64>,
}

impl Cycle {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            ack_phase: AckPhase::Init,
            is_probe_sample: false,
            rounds_since_probe_up: 0,
            start: now,
            probe_wait: Duration::ZERO,
            prev_probe_too_high: false,
            prev_probe_precautionary: false,
            up_rounds: 0,
            up_acked: 0,
            up_acked_per_increment: None,
        }
    }
}

impl Bbr {
    /// `UpdateProbeBWCyclePhase`.
    pub(super) fn update_probe_bw_cycle_phase(&mut self, now: Instant, sample: &Sample) {
        if !self.full_pipe.reached || self.adapt_long_term_model(sample) {
            return;
        }
        let state = self.state;
        match state {
            State::ProbeBwDown if self.is_time_to_probe_bw(now) => self.start_probe_bw_refill(),
            State::ProbeBwDown if self.is_time_to_cruise() => self.start_probe_bw_cruise(),
            State::ProbeBwCruise if self.is_time_to_probe_bw(now) => self.start_probe_bw_refill(),
            State::ProbeBwRefill if self.model.rounds.start => {
                self.cycle.is_probe_sample = true;
                self.start_probe_bw_up(sample);
            }
            State::ProbeBwUp if self.is_time_to_go_down(sample) => {
                self.cycle.prev_probe_too_high = false;
                self.start_probe_bw_down(now);
            }
            _ => {}
        }
    }

    /// `StartProbeBW_DOWN`.
    pub(super) fn start_probe_bw_down(&mut self, now: Instant) {
        self.model.reset_congestion_signals();
        self.cycle.up_acked_per_increment = None;
        self.pick_probe_wait();
        self.cycle.start = now;
        self.cycle.ack_phase = AckPhase::ProbeStopping;
        self.start_round();
        self.state = State::ProbeBwDown;
    }

    /// `StartProbeBW_CRUISE`.
    pub(super) fn start_probe_bw_cruise(&mut self) {
        self.state = State::ProbeBwCruise;
    }

    /// `HandleInflightTooHigh` (section 5.5.10.2).
    pub(super) fn handle_inflight_too_high(&mut self, now: Instant, inflight: u64, is_app_limited: bool) {
        self.cycle.prev_probe_too_high = true;
        // One answer for each probe.
        self.cycle.is_probe_sample = false;
        if !is_app_limited {
            let least = (self.target_inflight() as f64 * BETA) as u64;
            self.model.inflight_longterm = Some(inflight.max(least));
        }
        if self.state == State::ProbeBwUp {
            self.start_probe_bw_down(now);
        }
    }

    /// `InflightWithHeadroom`; `None` is infinity.
    pub(super) fn inflight_with_headroom(&self) -> Option<u64> {
        let longterm = self.model.inflight_longterm?;
        let headroom = ((longterm as f64 * HEADROOM) as u64).max(self.control.mss());
        Some(longterm.saturating_sub(headroom).max(self.control.min_pipe_cwnd()))
    }

    /// `StartRound`.
    pub(super) fn start_round(&mut self) {
        self.model.rounds.start_round(self.delivery.delivered());
    }

    /// `StartProbeBW_REFILL`.
    fn start_probe_bw_refill(&mut self) {
        self.model.reset_short_term();
        self.cycle.up_rounds = 0;
        self.cycle.up_acked = 0;
        self.cycle.prev_probe_precautionary = false;
        self.cycle.ack_phase = AckPhase::Refilling;
        self.start_round();
        self.state = State::ProbeBwRefill;
    }

    /// `StartProbeBW_UP`.
    fn start_probe_bw_up(&mut self, sample: &Sample) {
        self.cycle.ack_phase = AckPhase::ProbeStarting;
        self.start_round();
        self.full_pipe.reset(sample.rate);
        self.state = State::ProbeBwUp;
        self.raise_inflight_longterm_slope();
    }

    /// `PickProbeWait`.
    fn pick_probe_wait(&mut self) {
        self.cycle.rounds_since_probe_up = self.random.random_range(0..=1);
        self.cycle.probe_wait = self.random.random_range(PROBE_WAIT);
    }

    /// `IsTimeToProbeBW`, with `IsRenoCoexistenceProbeTime`.
    fn is_time_to_probe_bw(&self, now: Instant) -> bool {
        let reno_rounds = (self.target_inflight() / self.control.mss()).min(RENO_ROUNDS);
        now.saturating_duration_since(self.cycle.start) > self.cycle.probe_wait
            || self.cycle.rounds_since_probe_up >= reno_rounds
    }

    /// `IsTimeToCruise`.
    fn is_time_to_cruise(&self) -> bool {
        let in_flight = self.delivery.in_flight();
        self.inflight_with_headroom().is_none_or(|headroom| in_flight <= headroom) && in_flight <= self.inflight(1.0)
    }

    /// `IsTimeToGoDown`.
    fn is_time_to_go_down(&mut self, sample: &Sample) -> bool {
        let longterm = self.model.inflight_longterm.unwrap_or(u64::MAX);
        if self.cycle.prev_probe_too_high && self.delivery.in_flight() >= longterm {
            self.cycle.prev_probe_precautionary = true;
            return true;
        }
        if self.control.is_cwnd_limited() && self.control.cwnd() >= longterm {
            // The bandwidth is limited by `inflight_longterm`, so that it says nothing of the path.
            self.full_pipe.reset(sample.rate);
            return false;
        }
        self.full_pipe.now
    }

    /// `AdaptLongTermModel`. Says whether it has changed the state.
    fn adapt_long_term_model(&mut self, sample: &Sample) -> bool {
        if self.model.rounds.start && self.cycle.ack_phase == AckPhase::ProbeStarting {
            self.cycle.ack_phase = AckPhase::ProbeFeedback;
        }
        if self.model.rounds.start && self.cycle.ack_phase == AckPhase::ProbeStopping {
            self.cycle.is_probe_sample = false;
            self.cycle.ack_phase = AckPhase::Init;
            if self.state.is_probe_bw() && !sample.is_app_limited {
                self.model.advance_max_bw_filter();
            }
            if self.state.is_probe_bw() && self.cycle.prev_probe_precautionary && !self.cycle.prev_probe_too_high {
                self.start_probe_bw_refill();
                return true;
            }
        }
        if !self.is_too_high(sample.loss_rate())
            && let Some(longterm) = self.model.inflight_longterm
        {
            self.model.inflight_longterm = Some(longterm.max(sample.tx_in_flight));
            if self.state == State::ProbeBwUp {
                self.probe_inflight_longterm_upward(sample);
            }
        }
        false
    }

    /// `ProbeInflightLongtermUpward`.
    fn probe_inflight_longterm_upward(&mut self, sample: &Sample) {
        let Some(longterm) = self.model.inflight_longterm else { return };
        if !self.control.is_cwnd_limited() || self.control.cwnd() < longterm {
            return;
        }
        self.cycle.up_acked += sample.newly_acked;
        if let Some(per_increment) = self.cycle.up_acked_per_increment
            && self.cycle.up_acked >= per_increment
        {
            let increments = self.cycle.up_acked / per_increment;
            self.cycle.up_acked -= increments * per_increment;
            self.model.inflight_longterm = Some(longterm + increments * self.control.mss());
        }
        if self.model.rounds.start {
            self.raise_inflight_longterm_slope();
        }
    }

    /// `RaiseInflightLongtermSlope`.
    fn raise_inflight_longterm_slope(&mut self) {
        let growth_this_round = 1 << self.cycle.up_rounds;
        self.cycle.up_rounds = (self.cycle.up_rounds + 1).min(MAX_GROWTH_ROUNDS);
        let per_increment = (self.control.cwnd() / growth_this_round).max(self.control.mss());
        self.cycle.up_acked_per_increment = Some(per_increment);
    }

    /// `TargetInflight`.
    fn target_inflight(&self) -> u64 {
        let cwnd = self.control.cwnd();
        self.model.bdp_multiple(1.0).map_or(cwnd, |bdp| bdp.min(cwnd))
    }
}
