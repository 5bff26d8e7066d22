//! What may be sent (section 5.6): the congestion window, the pacing rate, and the one number that quinn asks for.
//!
//! quinn sends while less than the window is in flight, and paces at 5/4 of a window per round trip. If the window were
//! the congestion window of the draft, twice the bandwidth-delay product, then the queue would hold the second half of it
//! all the time. So the window is only what is in flight and a *credit*, which grows at the pacing rate and shrinks by what
//! is sent. It is reckoned anew with each acknowledgement and loss; in between it stays the same, because both of its
//! parts change by the same amount.

use std::time::Instant;

use super::delivery::{Rate, Sample};
use super::state::State;
use super::{Bbr, INITIAL_WINDOW_PACKETS};

/// `BBR.PacingMarginPercent`: sending a little less than the bandwidth keeps queues short.
const PACING_MARGIN: f64 = 0.99;

/// `BBR.MinPipeCwnd` in packets.
const MIN_PIPE_PACKETS: u64 = 4;

/// The largest `C.send_quantum`.
const MAX_SEND_QUANTUM: u64 = 64 * 1024;

/// The part of a round trip (one in so many) that acknowledgements may be away without loss of credit.
const SILENCE_MADE_GOOD: u64 = 8;

/// The part of the degree of aggregation (one in so many) that may be sent after a silence at least. With jitter more than
/// `BBR.bdp` is in flight all the time, as that is reckoned with the shortest round trip, so that the path never lacks
/// anything by that measure. On `wifi-1` none of it makes 28 of 100 Mbit/s, a half 83, and all of it 92; but all of it adds 20 ms to
/// the queue that two flows keep on `bufferbloat-10mbit`, and a half nothing.
const AGGREGATION_MADE_GOOD: u64 = 2;

/// What is controlled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Control {
    mss: u64,
    cwnd: u64,
    prior_cwnd: u64,
    /// Unknown until there is a sample of the bandwidth; until then the window alone controls.
    pacing_rate: Option<Rate>,
    credit: f64,
    credited: Instant,
    window: u64,
    is_cwnd_limited: bool,
    was_cwnd_limited: bool,
}

impl Control {
    pub(super) fn new(now: Instant, mss: u64) -> Self {
        let initial = INITIAL_WINDOW_PACKETS * mss;
        Self {
            mss,
            cwnd: initial,
            prior_cwnd: 0,
            pacing_rate: None,
            credit: 0.0,
            credited: now,
            window: initial,
            is_cwnd_limited: false,
            was_cwnd_limited: false,
        }
    }

    /// The largest packet, in bytes.
    pub(super) fn mss(&self) -> u64 {
        self.mss
    }

    pub(super) fn set_mss(&mut self, mss: u64) {
        self.mss = mss;
        self.cwnd = self.cwnd.max(self.min_pipe_cwnd());
    }

    /// `C.cwnd`.
    pub(super) fn cwnd(&self) -> u64 {
        self.cwnd
    }

    /// `C.pacing_rate`.
    pub(super) fn pacing_rate(&self) -> Option<Rate> {
        self.pacing_rate
    }

    /// What quinn may have in flight now.
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    /// `BBR.MinPipeCwnd`.
    pub(super) fn min_pipe_cwnd(&self) -> u64 {
        MIN_PIPE_PACKETS * self.mss
    }

    /// `C.is_cwnd_limited`: whether the congestion window was used up in this round or the one before.
    pub(super) fn is_cwnd_limited(&self) -> bool {
        self.is_cwnd_limited || self.was_cwnd_limited
    }

    pub(super) fn on_round_start(&mut self) {
        self.was_cwnd_limited = std::mem::take(&mut self.is_cwnd_limited);
    }

    pub(super) fn on_sent(&mut self, bytes: u64, in_flight: u64) {
        // Probes of the probe timeout may exceed it.
        self.credit = (self.credit - bytes as f64).max(0.0);
        // quinn sends when there is room for a packet and more.
        self.is_cwnd_limited |= in_flight + self.mss >= self.cwnd;
    }

    /// `OnEnterRTO` (section 5.6.4.4).
    pub(super) fn on_persistent_congestion(&mut self) {
        self.cwnd = self.min_pipe_cwnd();
    }

    /// `SaveCwnd`, before ProbeRTT.
    pub(super) fn save_cwnd(&mut self) {
        self.prior_cwnd = self.cwnd;
    }

    /// `RestoreCwnd`, after ProbeRTT.
    pub(super) fn restore_cwnd(&mut self) {
        self.cwnd = self.cwnd.max(self.prior_cwnd);
    }

    /// `SetSendQuantum` (section 5.6.3).
    fn send_quantum(&self) -> u64 {
        self.of_a_millisecond().min(MAX_SEND_QUANTUM).max(2 * self.mss)
    }

    /// `BBR.offload_budget`: what the two hosts themselves hold back. To the draft, where kernels send and acknowledge,
    /// that is three quanta. Here two programs wait for their turn meanwhile, so it is what the path delivers in a
    /// millisecond, and only a path with a shorter round trip notices. On loopback a bulk stream makes 0.73 of what Cubic
    /// does with one quantum, 0.90 with three, and 0.98 with this.
    fn offload_budget(&self) -> u64 {
        self.of_a_millisecond().max(2 * self.mss)
    }

    fn of_a_millisecond(&self) -> u64 {
        self.pacing_rate.map_or(0, |rate| (rate / 1000.0) as u64)
    }
}

impl Bbr {
    /// `UpdateControlParameters`.
    pub(super) fn update_control_parameters(&mut self, sample: &Sample) {
        self.set_pacing_rate();
        self.set_cwnd(sample);
    }

    /// `Inflight`: what has to be in flight for `gain` times the bandwidth.
    pub(super) fn inflight(&self, gain: f64) -> u64 {
        self.quantization_budget(self.model.bdp_multiple(gain).unwrap_or(self.initial_cwnd()))
    }

    /// Reckons what quinn may have in flight.
    pub(super) fn update_window(&mut self, now: Instant) {
        let in_flight = self.delivery.in_flight();
        let bdp = self.inflight(1.0);
        let full = self.inflight(self.state.pacing_gain()) + self.model.extra_acked();
        let control = &mut self.control;
        let elapsed = now.saturating_duration_since(control.credited);
        control.credited = now;
        let rate = match control.pacing_rate {
            Some(rate) if self.full_pipe.reached => rate,
            // In Startup acknowledgements come in a clump each round, with silence between, in which a credit would not
            // grow. The congestion window is what is right for the round, and quinn's pacing spreads it.
            _ => {
                control.window = control.cwnd;
                return;
            }
        };
        if self.has_nothing_to_send {
            // The next bytes may be written when no acknowledgement is under way that could raise the window. With a window
            // of one bandwidth-delay product quinn paces them at 5/4 of the bandwidth (section 5.4: "at exactly BBR.bw").
            control.credit = 0.0;
            control.window = control.cwnd.min(bdp);
            return;
        }
        // While no acknowledgements came the path may have run empty. What would have been sent meanwhile can fill it
        // again; more than that would be a queue, because the path does not get the lost time back.
        let silence = (bdp / SILENCE_MADE_GOOD).max(self.model.extra_acked() / AGGREGATION_MADE_GOOD);
        let lacking = full.saturating_sub(in_flight).max(silence).max(control.send_quantum());
        let most = lacking.min(control.cwnd.saturating_sub(in_flight)) as f64;
        control.credit = (control.credit + rate * elapsed.as_secs_f64()).min(most);
        control.window = (in_flight + control.credit as u64).max(control.min_pipe_cwnd());
    }

    /// `SetPacingRate` (section 5.6.2).
    fn set_pacing_rate(&mut self) {
        let Some(bw) = self.model.bw() else { return };
        let rate = self.state.pacing_gain() * bw * PACING_MARGIN;
        if self.full_pipe.reached || self.control.pacing_rate.is_none_or(|current| rate > current) {
            self.control.pacing_rate = Some(rate);
        }
    }

    /// `SetCwnd` (section 5.6.4.6).
    fn set_cwnd(&mut self, sample: &Sample) {
        let max_inflight = self.max_inflight();
        let grown = self.control.cwnd + sample.newly_acked;
        if self.full_pipe.reached {
            self.control.cwnd = grown.min(max_inflight);
        } else if self.control.cwnd < max_inflight || self.delivery.delivered() < self.initial_cwnd() {
            self.control.cwnd = grown;
        }
        self.control.cwnd = self.control.cwnd.max(self.control.min_pipe_cwnd());
        if self.state == State::ProbeRtt {
            self.control.cwnd = self.control.cwnd.min(self.probe_rtt.cwnd);
        }
        self.bound_cwnd_for_model();
    }

    /// `BoundCwndForModel` (section 5.6.4.7).
    fn bound_cwnd_for_model(&mut self) {
        let longterm = match self.state {
            State::ProbeBwDown | State::ProbeBwRefill | State::ProbeBwUp => self.model.inflight_longterm,
            State::ProbeRtt | State::ProbeBwCruise => self.inflight_with_headroom(),
            State::Startup | State::Drain => None,
        };
        let bounds = [longterm, self.model.inflight_shortterm];
        if let Some(bound) = bounds.into_iter().flatten().min() {
            self.control.cwnd = self.control.cwnd.min(bound.max(self.control.min_pipe_cwnd()));
        }
    }

    /// `UpdateMaxInflight`.
    fn max_inflight(&self) -> u64 {
        let cap = self.model.bdp_multiple(self.state.cwnd_gain()).unwrap_or(self.initial_cwnd());
        self.quantization_budget(cap + self.model.extra_acked())
    }

    /// `QuantizationBudget`.
    fn quantization_budget(&self, inflight: u64) -> u64 {
        let budget = inflight.max(self.control.offload_budget()).max(self.control.min_pipe_cwnd());
        match self.state {
            State::ProbeBwUp => budget + 2 * self.control.mss(),
            _ => budget,
        }
    }

    fn initial_cwnd(&self) -> u64 {
        INITIAL_WINDOW_PACKETS * self.control.mss()
    }
}
