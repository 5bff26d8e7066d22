//! The minimal round trip time, and sending little to measure it (section 5.3.4), and restarting after a pause (section
//! 5.4).

use std::time::{Duration, Instant};

use super::Bbr;
use super::delivery::Sample;
use super::probe_bw::AckPhase;
use super::state::State;

/// `BBR.MinRTTFilterLen`: how long a minimum is trusted.
const MIN_RTT_LIFETIME: Duration = Duration::from_secs(10);

/// `BBR.ProbeRTTDuration`: how long little is in flight at least.
const PROBE_RTT_DURATION: Duration = Duration::from_millis(200);

/// When the minimum was measured, and how measuring it again goes on.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ProbeRtt {
    /// `BBR.min_rtt_stamp`; `None` until there is a first sample.
    measured: Option<Instant>,
    is_expired: bool,
    idle_restart: bool,
    /// `BBR.probe_rtt_cwnd`.
    pub(super) cwnd: u64,
    done: Option<Instant>,
    is_round_done: bool,
}

impl Bbr {
    /// `UpdateMinRTT`.
    pub(super) fn update_min_rtt(&mut self, now: Instant, sample: &Sample) {
        let measured = *self.probe_rtt.measured.get_or_insert(now);
        self.probe_rtt.is_expired = now.saturating_duration_since(measured) > MIN_RTT_LIFETIME;
        if self.probe_rtt.is_expired && self.state != State::ProbeRtt {
            self.save_probe_rtt_cwnd();
        }
        // The peer may keep an acknowledgement back (RFC 9000, section 13.2.1), and does with the lone packets of a quiet
        // connection. The smoothed round trip time is without that, and never below the minimum.
        let rtt = sample.rtt.min(self.smoothed_rtt);
        if self.probe_rtt.is_expired || self.model.min_rtt().is_none_or(|min_rtt| rtt < min_rtt) {
            self.model.set_min_rtt(rtt);
            self.probe_rtt.measured = Some(now);
        }
    }

    /// `CheckProbeRTT`.
    pub(super) fn check_probe_rtt(&mut self, now: Instant, sample: &Sample) {
        if self.state != State::ProbeRtt && self.probe_rtt.is_expired && !self.probe_rtt.idle_restart {
            self.control.save_cwnd();
            self.state = State::ProbeRtt;
            self.probe_rtt.done = None;
            self.cycle.ack_phase = AckPhase::ProbeStopping;
            self.start_round();
        }
        if self.state == State::ProbeRtt {
            self.handle_probe_rtt(now);
        }
        if sample.delivered > 0 {
            self.probe_rtt.idle_restart = false;
        }
    }

    /// `HandleRestartFromIdle`. The pacing rate is as it should be with the next acknowledgement.
    pub(super) fn handle_restart_from_idle(&mut self, now: Instant) {
        self.probe_rtt.idle_restart = true;
        self.model.restart_aggregation(now);
        if self.state == State::ProbeRtt {
            self.check_probe_rtt_done(now);
        }
    }

    /// `HandleProbeRTT`.
    fn handle_probe_rtt(&mut self, now: Instant) {
        // Rates are low on purpose.
        self.delivery.mark_app_limited();
        if self.probe_rtt.done.is_none() {
            if self.delivery.in_flight() <= self.probe_rtt.cwnd {
                self.probe_rtt.done = Some(now + PROBE_RTT_DURATION);
                self.probe_rtt.is_round_done = false;
                self.start_round();
            }
            return;
        }
        self.probe_rtt.is_round_done |= self.model.rounds.start;
        if self.probe_rtt.is_round_done {
            self.check_probe_rtt_done(now);
        }
    }

    /// `CheckProbeRTTDone`, with `ExitProbeRTT`.
    fn check_probe_rtt_done(&mut self, now: Instant) {
        if self.probe_rtt.done.is_none_or(|done| now <= done) {
            return;
        }
        self.probe_rtt.measured = Some(now);
        self.control.restore_cwnd();
        self.model.reset_short_term();
        if self.full_pipe.reached {
            self.start_probe_bw_down(now);
            self.start_probe_bw_cruise();
        } else {
            self.enter_startup();
        }
    }

    /// `SaveProbeRTTCwnd`.
    fn save_probe_rtt_cwnd(&mut self) {
        let cwnd = self.model.bdp_multiple(State::ProbeRtt.cwnd_gain()).unwrap_or(0);
        self.probe_rtt.cwnd = cwnd.max(self.control.min_pipe_cwnd());
    }
}
